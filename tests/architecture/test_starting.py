"""Importing a module starts nothing, except in `streams/apps`."""

import subprocess
import sys

import pytest

from tests.architecture.parsers import PACKAGES
from tests.paths import ROOT

APPS = "streams.apps"

IMPORT_ALL = """
import importlib, os, socket, sys, threading

def refuse(*_, **__):
    raise AssertionError("importing a module asked for this")

import adapters.keys, adapters.settings
adapters.settings.load_settings = refuse
adapters.keys.load_or_create_key = refuse
socket.socket.connect = refuse
socket.socket.bind = refuse
for name in sys.argv[1:]:
    importlib.import_module(name)
    others = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
    assert not others, f"{name} started {others}"
assert not os.listdir(), "importing a module wrote something"
"""


def list_modules():
    """Return the dotted names of all product modules, `streams.apps` left out."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            if not name.startswith(APPS):
                yield name.removesuffix(".__init__")


def run(names, directory):
    return subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *names],
        capture_output=True,
        text=True,
        cwd=directory,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        timeout=300,
        check=False,
    )


def test_importing_every_module_starts_nothing(tmp_path):
    result = run(list_modules(), tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("app", ["sequencer", "rounds"])
def test_the_apps_do_start_something(tmp_path, app):
    """So the test above would see it."""
    result = run([f"{APPS}.{app}"], tmp_path)
    assert "asked for this" in result.stderr
