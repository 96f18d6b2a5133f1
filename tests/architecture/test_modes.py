"""Outside the modes, no product file names a mode, or anything that belongs to one
(DESIGN 11).

What is a mode's is read from the code: from `MODES`, and from the classes of its
section of the configuration.
"""

from __future__ import annotations

import io
import re
import tokenize
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from protocol.modes import MODES
from protocol.modes.mode import Mode
from schemas import events as e
from tests.architecture.test_layout import PACKAGES, every_module, modules, show
from tests.paths import ROOT

MAX_LINES = 900
LONG = "schemas/events.py"  # a record for each schema
EVERYBODYS = {e.RoundSealed}  # the rounds of all modes are sealed


def is_of_a_mode(path: Path) -> bool:
    package, *rooms, _ = path.relative_to(ROOT).parts
    return (
        package == "schemas"
        or "modes" in rooms
        or (package == "streams" and not MODES.keys().isdisjoint(rooms))
    )


def list_events(mode: Mode) -> set[type]:
    """Return the kinds of events and facts that rounds of other modes don't have."""
    kinds = {mode.answer, *mode.fields, *mode.others}
    for phase in mode.phases:
        kinds |= {phase.begins, phase.awaits, phase.retracted_by} - {None}
    return kinds - EVERYBODYS


def list_records(annotation: object) -> set[type]:
    """Return the classes of records in an annotation, and in those records."""
    found = {annotation} if is_dataclass(annotation) else set()
    parts = {*typing.get_args(annotation)}
    for record in found:
        parts |= {*typing.get_type_hints(record).values()}
    return found.union(*map(list_records, parts))


SECTIONS = typing.get_type_hints(e.FederationConfigured)
CLASSES = {
    kind.__name__
    for mode in MODES.values()
    for kind in (*list_events(mode), *list_records(SECTIONS[mode.name]))
}
NAMED = re.compile(rf"\b({'|'.join(sorted({*CLASSES, *map(str.upper, MODES)}))})\b")


def list_words(token: tokenize.TokenInfo) -> Iterator[str]:
    """Yield what of modes a token names, which may be a comment or a docstring.

    In prose the name of a mode may be a word like any other: "plain".
    """
    yield from NAMED.findall(token.string)
    if not re.search(r"\s", token.string):
        yield from {*re.split(r"\W+", token.string)} & MODES.keys()


def find_named(text: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [f"line {t.start[0]}: {word}" for t in tokens for word in list_words(t)]


@pytest.mark.parametrize(
    "path",
    [path for path in modules(*sorted(PACKAGES)) if not is_of_a_mode(path)],
    ids=show,
)
def test_no_shared_file_names_a_mode(path: Path) -> None:
    assert find_named(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "from protocol.modes.mpc.configuration import list_parties",
        "from protocol.modes import mpc",
        "import streams.mpc.party",
        "bound = config.mpc.norm_bound",
        'names = ["mpc.norm_bound"]',
        "case e.ComparisonStarted():",
        'if facts["ComparisonStarted"]:',
        "def start(parties: tuple[Party, ...]) -> None:",
        "# Only in MPC rounds.",
        '"""Aggregation `PLAIN`: it has no parties."""',
        "config = replace(config, plain=Plain())",
    ],
)
def test_a_name_is_found(line: str) -> None:
    assert find_named(line)


@pytest.mark.parametrize(
    "line", ["get_mode(config)", "# In plain words.", "case e.RoundSealed():"]
)
def test_what_names_no_mode_is_not_found(line: str) -> None:
    assert find_named(line) == []


@every_module
def test_no_file_is_long(path: Path) -> None:
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_LINES or show(path) == LONG
