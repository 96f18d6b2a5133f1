"""The rewards decider: what contributions earn, and what failures cost.

Points follow the federation's `RewardRule`, as integers. Every change of a balance is a
fact that follows from one leaf; a change of nothing is no fact.

Rules, by basis:

- ``CONTRIBUTION``: each contribution to a published aggregate earns
  ``per_contribution`` and, for its examples, ``per_thousand_examples`` pro rata,
  rounded down.
- ``UTILITY``: a registered version that is more accurate, by its metric ``accuracy``,
  than every earlier one (than 0, for the first) earns ``per_accuracy_percent`` for each
  percentage point gained, pro rata, rounded down. An unmeasured version earns nothing.
  All the points are shared among its round's contributions by their examples
  (`share_out`).
- ``MISSED_ASSIGNMENT``: an agent rejected for giving no answer, or no norm proof, pays
  when the round is sealed, or abandoned for want of contributions. Exempt are agents
  that had another answer refused by then, even a late one, or were revoked. A round
  abandoned by the operator costs nobody; nor does one, since version 2 of the rules,
  that fewer were heard in than were not: then something that all need was away.
- ``FAILED_PROOF``: an update refused by the aggregator for its blob or its norm proof,
  and a partial sum that contradicts its party's own links. Where agent and party accuse
  each other (shares that do not open, or do not add up), nobody pays. Since version 2
  what the store had or had not costs nothing: nobody can check that later.
- ``EQUIVOCATION``: a proven contradiction, paid by the ledger node that signed it, or
  by the sequencer.

A round is paid by the rule in force when it was requested, a contradiction by the
newest one.

Balances start at 0 and may be negative. They stop at the ends of Avro's ``long``: a
fact's amount is what was actually added.

The decider reads others' facts as leaves. They come on several topics, so an aggregate,
even its version, may be on the log before its round's ``RoundSealed``: whichever comes
last pays.

Deliberately not here: that a contradiction is real, and on the log only once
(`protocol.admission`); what points are worth; whether accuracy and numbers of examples
are true (the exporter's word, and the agents').
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, TypeAlias

from protocol.configuration import get_reward_rule, list_nodes, read_configuration
from protocol.contributions import WITHDRAWN, Contribution
from protocol.decider import Decider, Sequenced
from protocol.modes import find_refused_part
from protocol.persistent import PersistentMap, PersistentSet
from protocol.rules import choose
from protocol.validation import ACCURACY, BLOB_REASONS, STORE_REASONS, Direction
from schemas import events as e
from schemas.reasons import Reason

RECOMMENDED_RULE: Final = e.RewardRule(
    per_contribution=0,
    per_thousand_examples=1_000,
    per_accuracy_percent=1_000,
    missed_assignment=0,
    failed_proof=500,
    equivocation=100_000,
)
"""A starting point (ADR 0048): a point an example, the weight that it has in the model.
So nobody gains by dividing its data among several agents, as it would by a fixed sum
for each contribution. Silence earns nothing and costs nothing: nobody can tell it from
an outage. What can be checked later costs: a bad update as much as 500 examples earn, a
contradiction as much as 100,000."""
MAX_UNPAID_ROUNDS: Final = 8
"""Rounds remembered that have not earned everything yet, the latest. A version
registered when eight later rounds are waiting earns nothing."""
MIN_BALANCE: Final = -(2**63)  # Avro's long
MAX_BALANCE: Final = 2**63 - 1
SEQUENCER_ACCOUNT: Final = "principal:SEQUENCER"
"""With a colon, which no agent's name has: an agent may be called sequencer."""
NODE_PREFIX: Final = "node:"
PARTY_PREFIX: Final = "party:"
FAILED_PROOFS: Final = {
    1: BLOB_REASONS | {Reason.INVALID_PROOF},
    2: (BLOB_REASONS - STORE_REASONS) | {Reason.INVALID_PROOF},
}
"""What an agent pays for, by version of the rules."""
_FREE_PARTS: Final = {
    1: frozenset({Reason.WRONG_SUM}),
    2: STORE_REASONS | {Reason.WRONG_SUM},
}
"""What a party does not pay for: if parts open nothing together, nobody can say whose
is wrong."""
_EXCUSES_MOST: Final = {1: False, 2: True}
"""Whether silence costs nothing where most were silent."""


class Basis(StrEnum):
    """What a balance changes for."""

    CONTRIBUTION = "CONTRIBUTION"
    UTILITY = "UTILITY"
    MISSED_ASSIGNMENT = "MISSED_ASSIGNMENT"
    FAILED_PROOF = "FAILED_PROOF"
    EQUIVOCATION = "EQUIVOCATION"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpaidRound:
    """A round that has not earned everything yet.

    Attributes:
        contributions: Its contributions; None until it is known to be sealed.
        is_published: Whether its aggregate is.
        gain_micros: How much more accurate its version is than the best before, in
            millionths; None until that is registered.
        rule: The rule that pays it.
    """

    contributions: tuple[Contribution, ...] | None = None
    is_published: bool = False
    gain_micros: int | None = None
    rule: e.RewardRule = field(default_factory=e.RewardRule)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardsState:
    """What the rewards decider knows of a federation.

    Attributes:
        rules_version: The version of the rules that holds.
        rule: The reward rule of the newest configuration.
        rules: The rules that may pay future rounds, by number of the change that
            brought each.
        drawn_rule: The rule that pays the last round that started.
        sequencer_key: Public key of the sequencer; empty before the first leaf.
        node_names: Names of all ledger nodes so far, by public key.
        best_accuracy_micros: Accuracy of the best version so far; 0 before any.
        drawn_round: The last round that started; 0 if none.
        silent: Agents rejected in it for giving no answer or no norm proof.
        heard: Agents accepted or rejected in it for anything else.
        counted: Its contributions so far, by agent.
        unpaid: Rounds that have not earned everything yet, by number; at most
            `MAX_UNPAID_ROUNDS`.
        balances: Points by account, for those that ever changed.
    """

    rules_version: int = 1
    rule: e.RewardRule = field(default_factory=e.RewardRule)
    rules: Mapping[int, e.RewardRule] = field(default_factory=dict)
    drawn_rule: e.RewardRule = field(default_factory=e.RewardRule)
    sequencer_key: bytes = b""
    node_names: Mapping[bytes, str] = field(default_factory=dict)
    best_accuracy_micros: int = 0
    drawn_round: int = 0
    silent: PersistentSet[str] = field(default_factory=PersistentSet)
    heard: PersistentSet[str] = field(default_factory=PersistentSet)
    counted: PersistentMap[str, Contribution] = field(default_factory=PersistentMap)
    unpaid: Mapping[int, UnpaidRound] = field(default_factory=dict)
    balances: PersistentMap[str, int] = field(default_factory=PersistentMap)


def decide(state: RewardsState, leaf: Sequenced) -> Sequence[e.RewardFact]:
    """Return the changes that follow from a leaf; each affects the next."""
    balances: dict[str, int] = {}
    facts = []
    for account, points, basis in _find_changes(state, leaf.event):
        before = balances.get(account, state.balances.get(account, 0))
        after = max(MIN_BALANCE, min(MAX_BALANCE, before + points))
        if after == before:
            continue
        balances[account] = after
        facts.append(
            e.BalanceChanged(
                federation_id=leaf.event.federation_id,
                round=getattr(leaf.event, "round", 0),
                cause=leaf.leaf_hash,
                cause_leaf_index=leaf.leaf_index,
                output_index=0,  # `step` numbers the facts
                account=account,
                amount=after - before,
                balance=after,
                basis=basis,
            )
        )
    return facts


def evolve(
    state: RewardsState, leaf: Sequenced, facts: Sequence[e.RewardFact]
) -> RewardsState:
    """Fold a leaf and what followed from it; knows no rule."""
    if facts:
        balances = state.balances
        for fact in facts:
            balances = balances.insert(fact.account, fact.balance)
        state = replace(state, balances=balances)
    match leaf.event:
        case e.FederationConfigured() as config:
            keys = {p.role: p.public_key for p in config.principals}
            return replace(
                _name_nodes(state, list_nodes(config)),
                rules_version=config.rules_version,
                rule=get_reward_rule(config),
                rules={0: get_reward_rule(config)},
                sequencer_key=keys["SEQUENCER"],
            )
        case e.FederationChanged(number=number) as change:
            config = read_configuration(change)
            rule = get_reward_rule(config)
            return replace(
                state,
                rules_version=config.rules_version,
                rule=rule,
                rules={**state.rules, number: rule},
            )
        case e.NodeSetChanged(nodes=nodes):
            return _name_nodes(state, nodes)
        case e.RoundStarted(round=number, change=change):
            return replace(
                _forget(state),
                drawn_round=number,
                drawn_rule=state.rules.get(change, state.rule),
                # No later round goes back to a rule from before this one.
                rules={k: v for k, v in state.rules.items() if k >= change},
            )
        case e.ContributionAccepted(agent_id=agent_id) as accepted if (
            accepted.round == state.drawn_round
        ):
            contribution = Contribution(
                agent_id=agent_id,
                update_sha256=accepted.update_sha256,
                num_examples=accepted.num_examples,
            )
            return replace(
                state,
                heard=state.heard.insert(agent_id),
                counted=state.counted.insert(agent_id, contribution),
            )
        case e.ContributionRejected(agent_id=agent_id) as rejected if (
            rejected.round == state.drawn_round
        ):
            if rejected.reason == Reason.NO_ANSWER:
                return replace(state, silent=state.silent.insert(agent_id))
            counted = state.counted
            if rejected.reason in WITHDRAWN:
                counted = counted.discard(agent_id)
            heard = state.heard.insert(agent_id)
            return replace(state, heard=heard, counted=counted)
        case e.RoundSealed(round=number):
            unpaid = _sealed(state, number)
            return _remember(_forget(state), number, unpaid)
        case e.RoundAbandoned(round=number):
            others = {k: v for k, v in state.unpaid.items() if k != number}
            return replace(_forget(state), unpaid=others)
        case e.AggregatePublished(round=number):
            unpaid = replace(_unpaid(state, number), is_published=True)
            return _remember(state, number, unpaid)
        case e.ModelVersionRegistered(round=number) as version:
            gain_micros = _compute_gain(state, version)
            unpaid = replace(_unpaid(state, number), gain_micros=gain_micros)
            best = max(state.best_accuracy_micros, find_accuracy(version))
            after = _remember(state, number, unpaid)
            return replace(after, best_accuracy_micros=best)
        case _:
            return state


def share_out(pool: int, weights: Mapping[str, int]) -> dict[str, int]:
    """Split points by weight without remainder: the largest-remainder method.

    Args:
        pool: How many points, at least 0.
        weights: Weight by account, each at least 0, their sum at least 1.

    Returns:
        Points by account, in ascending order of account; their sum is the pool. The
        points left by rounding down go to the largest remainders, one each; of equal
        ones, to the account that comes first.
    """
    total = sum(weights.values())
    accounts = sorted(weights)
    shares = {account: pool * weights[account] // total for account in accounts}
    by_remainder = sorted(
        accounts, key=lambda account: -(pool * weights[account] % total)
    )
    for account in by_remainder[: pool - sum(shares.values())]:
        shares[account] += 1
    return shares


_Change: TypeAlias = tuple[str, int, Basis]
"""Account, points to add, what for."""


def _find_changes(state: RewardsState, event: e.LedgerEvent) -> Iterator[_Change]:
    """Yield what an event earns and costs; this applies the rule."""
    match event:
        case e.RoundSealed(round=number):
            unpaid = _sealed(state, number)
            yield from _missed(state, number)
            if unpaid.is_published:
                yield from _contributed(unpaid)
            if unpaid.gain_micros is not None:
                yield from _improved(unpaid, unpaid.gain_micros)
        case e.RoundAbandoned(round=number, reason=Reason.NOT_ENOUGH_CONTRIBUTIONS):
            yield from _missed(state, number)
        case e.AggregatePublished(round=number):
            yield from _contributed(_unpaid(state, number))
        case e.ModelVersionRegistered(round=number):
            gain_micros = _compute_gain(state, event)
            yield from _improved(_unpaid(state, number), gain_micros)
        case e.ContributionRejected(agent_id=agent_id, reason=reason) if (
            reason in choose(FAILED_PROOFS, state.rules_version)
            # What an agent says about itself follows from its own leaf.
            and event.update_leaf_index != event.cause_leaf_index
        ):
            cost = _unpaid(state, event.round).rule.failed_proof
            yield agent_id, -cost, Basis.FAILED_PROOF
        case e.EquivocationProven(public_key=key):
            if key in state.node_names:
                account = NODE_PREFIX + state.node_names[key]
                yield account, -state.rule.equivocation, Basis.EQUIVOCATION
            elif key == state.sequencer_key:
                yield SEQUENCER_ACCOUNT, -state.rule.equivocation, Basis.EQUIVOCATION
        case _:
            part = find_refused_part(event)
            free = choose(_FREE_PARTS, state.rules_version)
            if part is not None and part.reason not in free:
                cost = _unpaid(state, part.round).rule.failed_proof
                yield PARTY_PREFIX + part.author, -cost, Basis.FAILED_PROOF


def _missed(state: RewardsState, number: int) -> Iterator[_Change]:
    if number != state.drawn_round:
        return
    silent = sorted(state.silent - state.heard)
    if choose(_EXCUSES_MOST, state.rules_version) and len(silent) > len(state.heard):
        return
    for agent_id in silent:
        yield agent_id, -state.drawn_rule.missed_assignment, Basis.MISSED_ASSIGNMENT


def _sealed(state: RewardsState, number: int) -> UnpaidRound:
    """Return a sealed round, with what was counted."""
    counted = state.counted if number == state.drawn_round else {}
    contributions = tuple(item for _, item in sorted(counted.items()))
    return replace(_unpaid(state, number), contributions=contributions)


def _forget(state: RewardsState) -> RewardsState:
    """Return the state without what only counts until a round is sealed."""
    nobody: PersistentSet[str] = PersistentSet()
    return replace(state, silent=nobody, heard=nobody, counted=PersistentMap())


def _contributed(unpaid: UnpaidRound) -> Iterator[_Change]:
    for contribution in unpaid.contributions or ():  # in ascending order of agent_id
        points = (
            unpaid.rule.per_contribution
            + contribution.num_examples * unpaid.rule.per_thousand_examples // 1_000
        )
        yield contribution.agent_id, points, Basis.CONTRIBUTION


def _improved(unpaid: UnpaidRound, gain_micros: int) -> Iterator[_Change]:
    pool = gain_micros * unpaid.rule.per_accuracy_percent // 10_000
    if unpaid.contributions:
        weights = {c.agent_id: c.num_examples for c in unpaid.contributions}
        for agent_id, points in share_out(pool, weights).items():
            yield agent_id, points, Basis.UTILITY


def _compute_gain(state: RewardsState, version: e.ModelVersionRegistered) -> int:
    """Return how much better a version is than all before; 0 if it is not."""
    return max(0, find_accuracy(version) - state.best_accuracy_micros)


def find_accuracy(version: e.ModelVersionRegistered) -> int:
    """Return a version's accuracy in millionths; 0 if it was not measured."""
    metrics = () if version.evaluation is None else version.evaluation.metrics
    for metric in metrics:
        if (metric.name, metric.direction) == (ACCURACY, Direction.HIGHER):
            return metric.value_micros
    return 0


def _name_nodes(state: RewardsState, nodes: Iterable[e.LedgerNode]) -> RewardsState:
    names = {node.public_key: node.name for node in nodes}
    return replace(state, node_names={**state.node_names, **names})


def _unpaid(state: RewardsState, number: int) -> UnpaidRound:
    # An unknown one is the round in progress: its start and end are on one topic, so
    # they come in order. Its result is on another, and may be known before its start,
    # which says what it is paid by.
    unpaid = state.unpaid.get(number)
    if unpaid is None or number == state.drawn_round:
        unpaid = replace(unpaid or UnpaidRound(), rule=state.drawn_rule)
    return unpaid


def _remember(state: RewardsState, number: int, unpaid: UnpaidRound) -> RewardsState:
    """Return the state with what is now known of a round; nothing once it is paid."""
    rounds = {**state.unpaid, number: unpaid}
    if unpaid.contributions is not None and unpaid.gain_micros is not None:
        del rounds[number]
    latest = sorted(rounds)[-MAX_UNPAID_ROUNDS:]
    return replace(state, unpaid={k: rounds[k] for k in latest})


DECIDER = Decider(initial=RewardsState(), decide=decide, evolve=evolve)
