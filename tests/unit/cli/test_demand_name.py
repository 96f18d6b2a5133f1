"""Names of nodes and parties are also folder names."""

import pytest

from cli.stack.processes import StackError, demand_name


@pytest.mark.parametrize("name", ["a", "p0", "node-1.example_x"])
def test_good_names(name):
    demand_name(name, "a party")


@pytest.mark.parametrize("name", ["", "../p0", "p0=", "P0", "a/b", ".", "..", "a" * 65])
def test_bad_names(name):
    with pytest.raises(StackError, match="party"):
        demand_name(name, "a party")
