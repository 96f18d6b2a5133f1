"""Every lie in a round, in every mode, before everybody who judges it.

The table is mode x lie x judge. A mode has rows only (`tests.lies.plain`,
`tests.lies.mpc`): what somebody says, and what is so. What each judge must come to is
derived from that, for all modes alike (`tests.lies.judges`). A new mode adds a module
of rows to `ROWS`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from consumers.node import rechecks
from protocol.modes import MODES
from tests.lies import mpc, plain
from tests.lies.judges import JUDGES, Judge
from tests.lies.lie import Lie
from tests.speaking import SpeakingLog

ROWS: Final[dict[str, ModuleType]] = {"plain": plain, "mpc": mpc}
LIES: Final = [lie for mode in ROWS.values() for lie in mode.LIES]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes when it is looked at, and nobody pulls the plug."""
    monkeypatch.setattr(rechecks, "RETRY_S", 0.01)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@lru_cache(maxsize=1)
def run(lie: Lie) -> SpeakingLog:
    """Return the log of a round in which it is told, for one judge after the other."""
    return lie.tell(ROWS[lie.mode].start)


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_lie_is_judged(lie: Lie, judge: Judge, tmp_path: Path) -> None:
    judge(lie, run(lie), tmp_path)


def test_every_mode_has_lies() -> None:
    assert ROWS.keys() == MODES.keys()
    assert len({str(lie) for lie in LIES}) == len(LIES)
