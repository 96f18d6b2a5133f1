"""`moot rewards`: the balances of a federation, and how they came about.

Computed from the log as the rewards decider does, whatever `moot.rewards` or the log's
facts say; `moot audit` compares the two.

Also parses the reward rule for `moot federation create`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Final

from adapters.settings import Settings
from cli.describe import to_jsonable
from cli.operate import read_leaves
from cli.show import say, say_json
from cli.stack.processes import StackError
from protocol.decider import step
from protocol.log import OpenedLeaf
from protocol.rewards import DECIDER, RECOMMENDED_RULE, RewardsState
from schemas import events as e

NOTHING: Final = "none=0"
MAX_DIGITS: Final = 18  # enough for what validation refuses, too few to exhaust it


def parse_reward_rule(texts: Iterable[str]) -> e.RewardRule | None:
    """Return the recommended reward rule with these values replaced; None if nothing
    earns or costs.

    Args:
        texts: Each ``NAME=POINTS``, a field of `RewardRule`; ``none=0`` sets all that
            are not named to 0.

    Raises:
        StackError: one is malformed, or a name comes twice. `protocol.validation`
            checks ranges.
    """
    names = [part.name for part in fields(e.RewardRule)]
    rule, values = RECOMMENDED_RULE, dict[str, int]()
    for text in texts:
        if text == NOTHING:
            rule = e.RewardRule()
            continue
        name, _, number = text.partition("=")
        if name not in names or name in values or not _is_decimal(number):
            msg = f"{text!r} is not NAME=POINTS, each name once"
            raise StackError(msg, f"The names are {', '.join(names)}; or {NOTHING}.")
        values[name] = int(number)
    rule = replace(rule, **values)
    return None if rule == e.RewardRule() else rule


def _is_decimal(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def show_rewards(
    settings: Settings, federation_id: str, *, as_json: bool, history: bool
) -> None:
    """Print a federation's balances or, with ``history``, every change of one.

    Raises:
        StackError: there is no such federation.
    """
    state, changes = follow_rewards(read_leaves(settings, federation_id))
    if as_json:
        say_json(summarise(state, changes, history=history))
        return
    for line in list_changes(changes) if history else list_balances(state):
        say(line)


def follow_rewards(
    leaves: Iterable[OpenedLeaf],
) -> tuple[RewardsState, list[e.BalanceChanged]]:
    """Return the balances after these leaves, and every change on the way.

    Args:
        leaves: A federation's log from its first leaf on.
    """
    state = DECIDER.initial
    changes: list[e.BalanceChanged] = []
    for leaf in leaves:
        state, facts = step(DECIDER, state, leaf.sequenced)
        changes += facts
    return state, changes


def summarise(
    state: RewardsState, changes: Sequence[e.BalanceChanged], *, history: bool
) -> dict[str, object]:
    """Return rule and balances, with ``history`` every change too, as JSON types."""
    summary: dict[str, object] = {
        "rule": to_jsonable(state.rule),
        "balances": dict(sorted(state.balances.items())),
    }
    if history:
        summary["history"] = [
            {
                "leaf_index": change.cause_leaf_index,
                "round": change.round,
                "account": change.account,
                "basis": change.basis,
                "amount": change.amount,
                "balance": change.balance,
            }
            for change in changes
        ]
    return summary


def list_balances(state: RewardsState) -> Iterator[str]:
    """Yield a table of the balances, the highest first."""
    if not state.balances:
        yield _nothing(state)
        return
    yield f"{'balance':>12} account"
    accounts = sorted(state.balances.items(), key=lambda item: (-item[1], item[0]))
    for account, balance in accounts:
        yield f"{balance:>12} {account}"


def list_changes(changes: Sequence[e.BalanceChanged]) -> Iterator[str]:
    """Yield a table of the changes, in the order of the log."""
    yield "  leaf round       amount      balance basis             account"
    for change in changes:
        yield (
            f"{change.cause_leaf_index:>6} {change.round or '':>5} "
            f"{change.amount:>+12} {change.balance:>12} {change.basis:<17} "
            f"{change.account}"
        )


def _nothing(state: RewardsState) -> str:
    if state.rule == e.RewardRule():
        return "this federation has no reward_rule: nothing earns or costs"
    return "no balance has changed yet"
