"""The programs, once per session, and the logs that they all judge."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.demo import Demo
from tests.interop.programs import Programs, ensure_programs
from tests.interop.publication import Publication, write_demo, write_synthetic

NUM_ENTRIES = 700  # two full tiles, a partial one, and one above them


@pytest.fixture(scope="session")
def programs() -> Programs:
    return ensure_programs(lambda _service, what: print(what))


@pytest.fixture(scope="session", params=["demo", "synthetic"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Publication:
    """The log under test: that of a real demo, and a larger one that is made up.

    Nobody may change it; `forgery` gives copies.
    """
    directory = tmp_path_factory.mktemp("log")
    if request.param == "synthetic":
        return write_synthetic(directory / "it", NUM_ENTRIES)
    demo: Demo = request.getfixturevalue("finished_demo")
    assert demo.code == 0, demo.output
    return write_demo(demo.directory, directory / "it")


@pytest.fixture
def forgery(published: Publication, tmp_path: Path) -> Callable[[], Publication]:
    """Make a copy of the publication, to forge something in it."""

    def copy() -> Publication:
        target = tmp_path / "forgery"
        return Publication(Path(shutil.copytree(published.directory, target)))

    return copy
