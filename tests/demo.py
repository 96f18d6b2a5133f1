"""One run of `moot demo`, for all tests that look at what came of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.paths import ROOT

ROUNDS: Final = 2
TIMEOUT_S: Final = 480


@dataclass(frozen=True)
class Demo:
    """A demo that has ended.

    Attributes:
        directory: What it was told to leave behind.
        temporary: The folder for temporary files that it was given.
        code: Its exit code.
        output: All that it printed.
    """

    directory: Path
    temporary: Path
    code: int
    output: str


def run_demo(directory: Path) -> Demo:
    """Run a demo in a process of its own, its directory in this one."""
    temporary = directory / "tmp"
    temporary.mkdir(parents=True)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOOT_")}
    finished = subprocess.run(
        [
            sys.executable, "-m", "cli.main", "demo",
            "--rounds", str(ROUNDS), "--directory", str(directory / "demo"),
        ],
        cwd=ROOT,
        env={
            **clean,
            "TMPDIR": str(temporary),
            "COLUMNS": "1000",  # or the audit's lines would be folded
            # The other tests have one partition; most of these three stay empty.
            "MOOT_NUM_PARTITIONS": "3",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )  # fmt: skip
    return Demo(directory / "demo", temporary, finished.returncode, finished.stdout)
