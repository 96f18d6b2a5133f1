"""The systemd units start what there is, with what their environment files give."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer

from adapters.settings import Settings
from cli.main import app
from cli.stack.services import SERVICES
from tests.paths import ROOT

UNITS = sorted((ROOT / "ops" / "systemd").glob("*.service"))
MOOT = "/opt/folkmoot/bin/moot"
PAGE = (ROOT / "docs" / "howto" / "operate.md").read_text(encoding="utf-8")
EXAMPLES = {"FEDERATION": "clinics", "OPERATOR_KEY": "0" * 64, "OPTIONS": ""} | {
    "HOST": "0.0.0.0",  # where a node listens
    "PORT": "7400",
}


def read(unit: Path) -> ConfigParser:
    parser = ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # as systemd
    parser.read(unit)
    return parser


def show(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("unit", UNITS, ids=show)
def test_a_units_command_can_be_typed_like_this(unit: Path) -> None:
    line = read(unit)["Service"]["ExecStart"].replace("%i", "ada")
    used = set(re.findall(r"\$\{?([A-Z_]+)\}?", line))
    assert used <= set(EXAMPLES)
    for name in used:
        line = line.replace(f"${{{name}}}", EXAMPLES[name])
        line = line.replace(f"${name}", EXAMPLES[name])
    program, *words = shlex.split(line)
    assert program == MOOT
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        command = command.commands[words.pop(0)]
    context = command.make_context("moot", words)
    assert context.params.get("service", "all") in SERVICES
    # What it needs is in the page that says how to set it up.
    assert f"ops/systemd/{unit.name}" in PAGE
    for name in used:
        assert f"{name}=" in PAGE


@pytest.mark.parametrize("unit", UNITS, ids=show)
def test_a_unit_sets_no_setting_that_does_not_exist(unit: Path) -> None:
    known = {f"MOOT_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"MOOT_[A-Z_]+", unit.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("unit", UNITS, ids=show)
def test_a_unit_restarts_for_ever_and_gives_time_to_stop(unit: Path) -> None:
    service = read(unit)["Service"]
    assert service["Restart"] == "always"
    assert int(service["TimeoutStopSec"]) > 10
    assert service["StateDirectory"] == "folkmoot"


@pytest.mark.parametrize("unit", UNITS, ids=show)
def test_systemd_finds_nothing_wrong(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        # The other tests read them as well.
        return
    # The program is elsewhere here, and so is the page.
    text = unit.read_text(encoding="utf-8").replace(MOOT, sys.executable)
    copy = tmp_path / unit.name
    copy.write_text(text.replace("/opt/folkmoot/docs", str(ROOT / "docs")))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if "folkmoot" in line]
    assert not said
    assert done.returncode == 0, done.stderr
