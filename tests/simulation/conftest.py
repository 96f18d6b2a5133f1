"""The full simulation of the consensus: only where it can tell something new."""

import pytest

from tests.simulation.full import has_passed


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    if has_passed():
        for item in items:
            if item.get_closest_marker("full"):
                item.add_marker("nightly")
