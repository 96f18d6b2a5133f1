"""Only pinned programs judge us."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from cli.stack.processes import StackError
from tests.interop import programs


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FOLKMOOT_CACHE", str(tmp_path))
    return tmp_path


def say(_service: str, _what: str) -> None:
    pass


def test_a_module_with_another_hash_is_not_built(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned = programs.MODULES[0]
    other = replace(pinned, sum=programs.MODULES[1].sum)
    monkeypatch.setattr(programs, "MODULES", (other,))
    with pytest.raises(StackError, match=re.escape(f"its hash is {pinned.sum}")):
        programs.ensure_programs(say)
    assert [path.name for path in empty_cache.iterdir()] == ["go.lock"]


def test_it_says_how_to_get_go(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(empty_cache))
    with pytest.raises(StackError, match="sudo apt install golang-go"):
        programs.ensure_programs(say)
