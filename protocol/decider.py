"""The shape of every decider: a pure state machine over the ledger.

``decide`` holds every rule and returns its verdict as facts; ``evolve`` folds a leaf
and the facts that followed from it, and knows no rule: what somebody said counts unless
a fact refuses it. So two audits hold: deciding the log's inputs again gives the facts
on it; and folding its leaves with those facts gives the state, whatever the rules were.
Live processors, the audit and recovery all move state only through `step`, on purpose:
that is why live and replay agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from protocol.rules import verify_rules
from schemas.events import Fact, LedgerEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequenced:
    """A leaf as a decider sees it.

    Attributes:
        event: What was said.
        leaf_hash: RFC 9162 leaf hash, 32 bytes; the ``cause`` of what follows from it.
        leaf_index: Its place in the log, from 0.
        sequenced_at_ms: Its block's stamp: the only clock that deciders know.
        previous_block_hash: Hash of the block before its own, 32 bytes.
        tree_size: Number of leaves after its block: the size of the block's checkpoint.
        genesis: Hash of the log's genesis, 32 bytes.
    """

    event: LedgerEvent
    leaf_hash: bytes
    leaf_index: int
    sequenced_at_ms: int
    previous_block_hash: bytes
    tree_size: int
    genesis: bytes


State = TypeVar("State")
FactT = TypeVar("FactT", bound=Fact)


@dataclass(frozen=True, slots=True)
class Decider(Generic[State, FactT]):
    """A pure state machine.

    Attributes:
        initial: The state before the first leaf of a federation's log.
        decide: Every rule. Must depend only on its arguments.
        evolve: Folds a leaf and its facts. Must accept all that ``decide`` returned.
    """

    initial: State
    decide: Callable[[State, Sequenced], Sequence[FactT]]
    evolve: Callable[[State, Sequenced, Sequence[FactT]], State]


def step(
    decider: Decider[State, FactT], state: State, leaf: Sequenced
) -> tuple[State, Sequence[FactT]]:
    """Consume one leaf: the only way state moves, live or in replay.

    Returns:
        The next state and the facts that follow, numbered in order.

    Raises:
        UnknownRulesError: this program does not know the rules that hold from this leaf
            on.
    """
    verify_rules(leaf.event, leaf.leaf_index)
    facts = [
        replace(fact, output_index=index)
        for index, fact in enumerate(decider.decide(state, leaf))
    ]
    return decider.evolve(state, leaf, facts), facts
