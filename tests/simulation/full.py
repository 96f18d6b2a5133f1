"""The sources for which the full simulation of the ledger's consensus has passed.

The simulation is deterministic: run again on the same sources, it finds the same. So an
ordinary run plays a part of it, and all of it once a source is not as in `RECORD`.

`python -m tests.simulation.full`, which `make test-nightly` calls, plays all of it and,
if it passes, writes the record: what `sha256sum` prints. Commit it with the sources.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.paths import ROOT

COVERED: Final = ("ledger", "tests/simulation")
RECORD: Final = Path(__file__).with_name("full.sha256")


def list_sources() -> str:
    """Return a line for each source, as `sha256sum` writes it."""
    paths = [path for folder in COVERED for path in (ROOT / folder).rglob("*.py")]
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(ROOT)}\n"
        for path in sorted(paths)
    )


def has_passed() -> bool:
    """Return whether the full simulation has passed over the sources as they are."""
    return RECORD.exists() and RECORD.read_text(encoding="utf-8") == list_sources()


if __name__ == "__main__":
    played = list_sources()
    status = pytest.main([str(ROOT / "tests/simulation"), "-m", "full", *sys.argv[1:]])
    if status == pytest.ExitCode.OK and len(sys.argv) == 1:
        RECORD.write_text(played, encoding="utf-8")
    sys.exit(status)
