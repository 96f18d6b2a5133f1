"""`moot bench`: the benchmarks lie beside the tests, in a checkout."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from cli.stack.processes import StackError

_FOLDER: Final = Path(__file__).parents[1] / "tests" / "bench"


def run_bench(names: Sequence[str], *, quick: bool, write: bool) -> None:
    """Run benchmarks: see `tests.bench.run.run_bench`.

    Raises:
        StackError: not a checkout, no such benchmark, or one failed.
    """
    if not _FOLDER.is_dir():
        raise StackError(
            "the benchmarks are not installed",
            "They come with the source: run `make bench` in a clone of the repository.",
        )
    import_module("tests.bench.run").run_bench(names, quick=quick, write=write)
