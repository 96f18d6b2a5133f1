"""What `moot bench` runs: how fast it is, beside what limits it."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from cli.show import say
from cli.stack.processes import StackError
from tests.bench.report import describe_machine
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
    """Run benchmarks and print what they found, or write it into the document.

    Args:
        names: Which; all of them if empty.
        quick: Small sizes: to see that it runs, not how fast.
        write: Put the figures into their places in ``docs/benchmarks.md``, which says
            what they mean.

    Raises:
        StackError: there is no such benchmark, it has no place in the document, or it
            failed.
    """
    chosen = choose(names)
    if write and quick:
        raise StackError(
            "the document holds every benchmark in its full size",
            "Leave out --write or --quick.",
        )
    machine = describe_machine()
    for name in chosen:
        figures = _format([*_load(name)(_sayer(name), quick=quick), machine])
        if write:
            document = DOCUMENT.read_text(encoding="utf-8")
            document = replace_figures(document, name, figures)
            DOCUMENT.write_text(document, encoding="utf-8")
            say(f"wrote {name} in {DOCUMENT.name}", is_error=True)
        else:
            say(f"## {name}", "", *figures.splitlines(), "")


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


def replace_figures(document: str, name: str, figures: str) -> str:
    """Return the document with one benchmark's figures; all else stays as it is.

    Raises:
        StackError: it has no place for them.
    """
    begin, end = f"<!-- moot bench {name} -->\n", "<!-- end -->"
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    document, count = place.subn(lambda _: f"{begin}\n{figures}\n\n{end}", document)
    if count != 1:
        msg = f"{DOCUMENT.name} has {count or 'no'} places for {name}"
        raise StackError(msg, f"The place begins with {begin.strip()}.")
    return document


def _format(parts: Sequence[str]) -> str:
    return "\n\n".join(
        part
        if part.startswith("|")
        else textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)
        for part in parts
    )


def _load(name: str) -> Callable[..., Sequence[str]]:
    run: Callable[..., Sequence[str]] = import_module(f"tests.bench.{name}").run
    return run


def _sayer(name: str) -> Callable[[str], None]:
    began = time.monotonic()

    def say_progress(message: str) -> None:
        elapsed = time.monotonic() - began
        say(f"{name:>12} {elapsed:6.1f} s  {message}", is_error=True)

    return say_progress
