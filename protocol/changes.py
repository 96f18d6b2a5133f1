"""What an operator may change in a federation, and what never.

A `FederationChanged` carries the whole new configuration, so it does not depend on what
its signer believed before.

Rules:

- Changes are numbered from 1, without gaps: of two made for the same configuration the
  second is refused, and a repeated one counts only once.
- A change touches only `RULES`; everything else stays. So what a later version adds to
  a configuration stays until it has a rule.
- What protects agents, the fewest contributions of a sum and the bounds on what one
  agent may add, only ever tightens. What has no order, such as the mode, cannot change.
- A change takes effect with the next round requested after it: it never touches an open
  one.

What agents run may change; each agent decides whether to run it.

Source: DESIGN.md sections 11 and 12, ADR 0034.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from ledger.signing import InvalidSignatureError
from protocol.configuration import read_configuration
from protocol.envelope import verify_event
from protocol.modes import MODES
from protocol.modes.problem import Problem
from protocol.strategies import keeps_bounds
from protocol.validation import find_configuration_problem
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason


def _anyhow(_before: Any, _after: Any) -> bool:
    return True


def _up(before: int, after: int) -> bool:
    return after >= before


def _down(before: int, after: int) -> bool:
    return after <= before


RULES: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "task": _anyhow,
    "cohort_size": _anyhow,
    "round_duration_ms": _anyhow,
    "reward_rule": _anyhow,
    "strategy_parameters": keeps_bounds,
    "rules_version": _up,
    "min_cohort": _up,
    "max_num_examples": _down,
}
"""What may be changed, and how; a name covers everything inside it. A mode may add
parameters that only shrink, such as mpc.norm_bound."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A parameter that differs between two configurations.

    Attributes:
        name: Its name with its sections, such as plain.bound.
        before: Its value in the first.
        after: Its value in the second.
    """

    name: str
    before: Any
    after: Any


def list_differences(before: Any, after: Any, name: str = "") -> Iterator[Difference]:
    """Yield the differences of two configurations, in the order of their fields."""
    if before == after:
        return
    if is_dataclass(before) and type(before) is type(after):
        for part in fields(before):
            yield from list_differences(
                getattr(before, part.name),
                getattr(after, part.name),
                f"{name}.{part.name}" if name else part.name,
            )
    else:
        yield Difference(name, before, after)


def make_change(config: e.FederationConfigured, number: int) -> e.FederationChanged:
    """Return the change that puts a configuration into force."""
    return e.FederationChanged(
        federation_id=config.federation_id,
        number=number,
        configuration=codec.encode(config),
    )


def _show(value: Any) -> Any:
    if isinstance(value, tuple):
        shown = [f"{each.name} {each.value_micros}" for each in value]
        return ", ".join(shown) or "the default"
    return value


def _find_rule(name: str) -> Callable[[Any, Any], bool] | None:
    tightened = {
        f"{m.name}.{value}": _down for m in MODES.values() for value in m.tightens
    }
    rules = {**RULES, **tightened}
    return next(
        (rule for of, rule in rules.items() if f"{name}.".startswith(f"{of}.")), None
    )


def find_change_problem(
    config: e.FederationConfigured, number: int, change: e.FederationChanged
) -> Problem | None:
    """Return which rule a change breaks; None if it may be made.

    Args:
        config: The result of earlier changes.
        number: Number of the last of them; 0 if none.
        change: The change; its configuration may be any bytes.
    """
    if change.number != number + 1:
        detail = f"it is change {change.number}; the next one is {number + 1}"
        return Reason.STALE_CHANGE, detail
    try:
        changed = read_configuration(change)
    except codec.CodecError as error:
        return Reason.INVALID_CONFIGURATION, f"configuration: {error}"
    differences = list(list_differences(config, changed))
    if not differences:
        return Reason.NOTHING_CHANGES, "the configuration is in force already"
    for difference in differences:
        name = difference.name
        rule = _find_rule(name)
        if rule is None:
            return Reason.NOT_CHANGEABLE, f"{name} is as it was founded, for good"
        if not rule(difference.before, difference.after):
            detail = (
                f"{name} protects agents: it may become "
                f"{'larger' if rule is _up else 'smaller'} than "
                f"{_show(difference.before)}, not {_show(difference.after)}"
            )
            return Reason.LOOSENS_PROTECTION, detail
    return find_configuration_problem(changed)


def apply_change(
    config: e.FederationConfigured | None, number: int, change: e.FederationChanged
) -> e.FederationConfigured | None:
    """Return what a change leads to; None if it may not be made and so has no effect.

    Followers of a log use this too, whether or not somebody judged its leaves.

    Args:
        config: The result of earlier changes; None before the genesis.
        number: Number of the last of them; 0 if none.
        change: The change.
    """
    if config is None or find_change_problem(config, number, change) is not None:
        return None
    return read_configuration(change)


def apply_signed_change(
    config: e.FederationConfigured,
    number: int,
    change: e.FederationChanged,
    leaf: e.Leaf,
    genesis: bytes,
) -> e.FederationConfigured | None:
    """Do as `apply_change`, if the operator named in the configuration signed it.

    For those who build on a log without judging all of it: its writer cannot put words
    into the operator's mouth.
    """
    keys = {p.role: p.public_key for p in config.principals}
    try:
        verify_event(keys["OPERATOR"], genesis, leaf.event, leaf.signature)
    except InvalidSignatureError:
        return None
    return apply_change(config, number, change)
