"""For every test: none is judged by how long it takes.

An ordinary run draws the same examples each time; a nightly run draws more, and prints
how to reproduce a failure.
"""

from typing import Final

import pytest
from hypothesis import settings

from tests.demo import Demo, run_demo

pytest.register_assert_rewrite("tests.lies", "tests.rechecking")

settings.register_profile("often", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, print_blob=True)
settings.load_profile("often")

SHARED: Final = {
    "tests/integration/test_demo.py": "demo",
    "tests/integration/": "stack",
    "tests/interop/": "demo",
}
"""What is started once for the tests of a file or folder, and takes long."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class ByShared(LoadScopeScheduling):
        """Gives a process all tests that share something, or else those of a file."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            names = (name for path, name in SHARED.items() if file.startswith(path))
            return next(names, file)

    config.option.loadscopereorder = False  # but in the order of their collection
    return ByShared(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(tuple(SHARED)))


@pytest.fixture(scope="session")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A demo that was run once, for whoever looks at what came of it."""
    return run_demo(tmp_path_factory.mktemp("demo"))
