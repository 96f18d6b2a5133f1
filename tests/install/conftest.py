"""Environments as others make them: the wheel, and nothing that it did not ask for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.stack.fetch import cache_directory
from tests.paths import ROOT


def find_uv() -> str:
    """Return the uv that runs us, or the one on the PATH, or the one of `make`."""
    found = os.environ.get("UV") or shutil.which("uv")
    return found or str(max(cache_directory().glob("uv-*/bin/uv")))


def uv(*arguments: str | Path, directory: Path = ROOT, **environment: str) -> str:
    """Run uv, in the checkout unless told; returns what it printed."""
    done = subprocess.run(
        [find_uv(), *map(str, arguments)],
        cwd=directory,
        # Compiling what is imported once takes longer than importing it.
        env={**os.environ, "UV_COMPILE_BYTECODE": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    directory = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--out-dir", directory)
    [path] = directory.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """An environment with the wheel and what it cannot do without, as locked."""
    directory = tmp_path_factory.mktemp("core") / "venv"
    uv(
        "sync", "--frozen", "--no-default-groups", "--no-install-project",
        UV_PROJECT_ENVIRONMENT=str(directory),
    )  # fmt: skip
    uv("pip", "install", "--no-deps", "--python", directory, wheel)
    return directory
