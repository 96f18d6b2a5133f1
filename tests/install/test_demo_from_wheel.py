"""The demo without a checkout, as `uvx` starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.install.conftest import uv

EXTRAS = "agent,examples,exporter,services,stack"


@pytest.mark.nightly
def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked.txt"
    uv(
        "export", "--frozen", "--all-extras", "--no-hashes", "--no-emit-project",
        "--output-file", locked,
    )  # fmt: skip
    said = uv(
        "tool", "run", "--constraints", locked, "--from", f"{wheel}[{EXTRAS}]",
        "moot", "demo", "--rounds", "1",
        directory=tmp_path,
    )  # fmt: skip
    assert "round 1 version 1" in said
    assert "SOUND" in said
