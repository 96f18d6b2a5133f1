"""Strategies on the command line: decimals, exactly."""

from dataclasses import replace

import pytest

from cli.stack.processes import StackError
from cli.strategies import describe_parameters, parse_parameters
from tests.simulation.federation import CONFIG


def test_decimals_are_read_exactly_and_sorted():
    chosen = parse_parameters(
        ["tau=0.001", "beta_1=0.9", "learning_rate=10", "beta_2=0.123456"]
    )
    assert [(each.name, each.value_micros) for each in chosen] == [
        ("beta_1", 900_000),
        ("beta_2", 123_456),
        ("learning_rate", 10_000_000),
        ("tau", 1_000),
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ["learning_rate"],
        ["learning_rate="],
        ["=1"],
        ["learning_rate=0.0000001"],
        ["learning_rate=1e-3"],
        ["learning_rate=-1"],
        ["learning_rate=.5"],
        ["learning_rate=1."],
        ["learning_rate= 1"],
        ["learning_rate=nan"],
        ["learning_rate=\u0661"],
        ["learning_rate=" + "9" * 13],
        ["learning_rate=1", "learning_rate=1"],
    ],
)
def test_anything_else_is_refused_with_an_example(texts):
    with pytest.raises(StackError) as refused:
        parse_parameters(texts)
    assert "learning_rate=0.01" in refused.value.hint


def test_all_parameters_are_shown_defaults_included():
    config = replace(
        CONFIG,
        strategy="FEDADAM",
        strategy_parameters=parse_parameters(["tau=2", "learning_rate=0.000001"]),
    )
    assert describe_parameters(config) == {
        "beta_1": "0.9",
        "beta_2": "0.99",
        "learning_rate": "0.000001",
        "tau": "2",
    }
    assert describe_parameters(CONFIG) == {"learning_rate": "1"}
