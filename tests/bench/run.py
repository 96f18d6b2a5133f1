"""What `moot bench` runs: how fast it is, beside what limits it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from cli.show import say
from cli.stack.processes import StackError
from tests.bench.report import (
    Section,
    inspect_machine,
    render_document,
    replace_section,
)
from tests.paths import ROOT

BENCHMARKS: Final = (
    "sequencer",
    "hops",
    "rounds",
    "finality",
    "audit",
    "aggregation",
    "privacy",
    "differences",
)
DOCUMENT: Final = ROOT / "docs" / "benchmarks.md"


def run_bench(names: Sequence[str], *, quick: bool, write: bool) -> None:
    """Run benchmarks and print what they found, or write the document.

    Args:
        names: Which; all of them if empty.
        quick: Small sizes: to see that it runs, not how fast.
        write: Write ``docs/benchmarks.md`` instead of printing: all of it, or only the
            sections of the benchmarks that are named.

    Raises:
        StackError: there is no such benchmark, or one of them failed.
    """
    chosen = choose(names)
    if write and quick:
        raise StackError(
            "the document holds every benchmark in its full size",
            "Leave out --write or --quick.",
        )
    machine = inspect_machine()
    sections = [_load(name)(_sayer(name), quick=quick) for name in chosen]
    if write and chosen != BENCHMARKS:
        document = DOCUMENT.read_text(encoding="utf-8")
        for section in sections:
            document = replace_section(document, section, machine, BENCHMARKS)
    else:
        command = " ".join(["moot bench", *names, *(["--quick"] if quick else [])])
        document = render_document(machine, sections, command + " --write" * write)
    if write:
        DOCUMENT.write_text(document, encoding="utf-8")
        say(f"wrote {DOCUMENT.name}", is_error=True)
    else:
        say(*document.splitlines())


def choose(names: Sequence[str]) -> tuple[str, ...]:
    """Return the benchmarks to run, each once, in their order.

    Raises:
        StackError: there is no such benchmark.
    """
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        raise StackError(
            f"there is no benchmark {', '.join(unknown)}",
            f"The benchmarks are {', '.join(BENCHMARKS)}.",
        )
    return tuple(name for name in BENCHMARKS if not names or name in names)


def _load(name: str) -> Callable[..., Section]:
    run: Callable[..., Section] = import_module(f"tests.bench.{name}").run
    return run


def _sayer(name: str) -> Callable[[str], None]:
    began = time.monotonic()

    def say_progress(message: str) -> None:
        elapsed = time.monotonic() - began
        say(f"{name:>12} {elapsed:6.1f} s  {message}", is_error=True)

    return say_progress
