"""For every test: none is judged by how long it takes."""

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.lies", "tests.rechecking")

settings.register_profile("folkmoot", deadline=None)
settings.load_profile("folkmoot")
