"""Strategies and their parameters, as operators write and read them: as decimals."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from cli.stack.processes import StackError
from protocol.encoding import MILLION
from protocol.strategies import STRATEGIES, list_parameters
from schemas import events as e

_DECIMAL: Final = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,6}))?", re.ASCII)
"""Millionths, exactly: whatever `protocol.validation` may refuse can be said."""
_NUM_PLACES: Final = 6


def parse_parameters(texts: Iterable[str]) -> tuple[e.StrategyParameter, ...]:
    """Return a strategy's parameters, in ascending order of name.

    Args:
        texts: Each ``NAME=DECIMAL``, with at most six digits after the point.

    Raises:
        StackError: one is malformed, or a name comes twice. `protocol.validation`
            checks names and ranges.
    """
    values: dict[str, int] = {}
    for text in texts:
        name, _, number = text.partition("=")
        found = _DECIMAL.fullmatch(number)
        if not name or name in values or found is None:
            msg = f"{text!r:.80} is not NAME=NUMBER, each name once"
            hint = "For example: --strategy-parameter learning_rate=0.01"
            raise StackError(msg, f"{hint}; at most six digits after the point.")
        whole, places = found.group(1), found.group(2) or ""
        values[name] = int(whole + places.ljust(_NUM_PLACES, "0"))
    return tuple(
        e.StrategyParameter(name=name, value_micros=micros)
        for name, micros in sorted(values.items())
    )


def describe_parameters(config: e.FederationConfigured) -> dict[str, str]:
    """Return all parameters of a federation's strategy by name, as exact decimals."""
    micros = list_parameters(STRATEGIES[config.strategy], config.strategy_parameters)
    return {name: _show(value) for name, value in micros.items()}


def _show(micros: int) -> str:
    whole, places = divmod(micros, MILLION)
    return f"{whole}.{places:06}".rstrip("0").rstrip(".")
