"""The programs, once per session, and the one log that they all judge."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.programs import Programs, ensure_programs
from tests.interop.publication import Publication, write_synthetic

NUM_ENTRIES = 700  # two full tiles, a partial one, and one above them


@pytest.fixture(scope="session")
def programs() -> Programs:
    return ensure_programs(lambda _service, what: print(what))


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Publication:
    """The log under test: `$FOLKMOOT_PUBLICATION`, or a made-up one.

    Nobody may change it; `forgery` gives copies.
    """
    if directory := os.environ.get("FOLKMOOT_PUBLICATION"):
        return Publication(Path(directory))
    return write_synthetic(tmp_path_factory.mktemp("log") / "it", NUM_ENTRIES)


@pytest.fixture
def forgery(published: Publication, tmp_path: Path) -> Callable[[], Publication]:
    """Make a copy of the publication, to forge something in it."""

    def copy() -> Publication:
        target = tmp_path / "forgery"
        return Publication(Path(shutil.copytree(published.directory, target)))

    return copy
