"""A round as a sequence of phases has the rules, and the state, that it had before."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any, Final

import pytest

from protocol.modes.mpc.far_pairs import (
    encode_far,
    make_symmetric,
)
from protocol.modes.mpc.phases import has_all_partials
from protocol.rounds import DECIDER
from protocol.state_root import encode
from schemas import events as e
from schemas.reasons import Reason
from tests.mpc_rounds import has_all_links
from tests.property import rounds_before
from tests.simulation.federation import (
    AGENTS,
    COMPARING_CONFIG,
    CONFIG,
    DURATION_MS,
    FEDERATION,
    MPC_CONFIG,
    NOW_MS,
    PARTIES,
    Run,
    admitted,
    aggregate,
    checked,
    committed,
    compared,
    deadline,
    declined,
    linked,
    make_blob,
    partial,
    request,
    revoked,
    start,
    update,
)

NUM_LEAVES: Final = 180
"""Of a history."""
OFTEN: Final = range(40)
"""Histories of each kind of federation in an ordinary run: 21,600 leaves of all."""
NIGHTLY: Final = range(40, 120)
"""The others: 43,200 leaves."""
EVERYBODY: Final = (*AGENTS, "eve", "fay", "gus")
NOISE: Final = e.PartyNoise(
    commitments=make_blob("noise"), proof=make_blob("its proof"), blindings=bytes(48)
)

ALWAYS: Final = {
    "RoundStarted", "RoundRefused", "RoundAbandoned", "RoundSealed", "ClaimRejected",
    "ContributionAccepted", "ContributionRejected", "AggregatePublished",
}  # fmt: skip
MPC_FACTS: Final = ALWAYS | {"CommitmentsClosed", "PartialRejected"}
EXPECTED: Final = {
    "plain": (CONFIG, ALWAYS),
    "mpc": (MPC_CONFIG, MPC_FACTS),
    "compared": (COMPARING_CONFIG, MPC_FACTS | {"ComparisonStarted"}),
}


class Guess:
    """Says what may fit, or may not."""

    def __init__(self, run: Run[Any, Any], chance: random.Random) -> None:
        self.run = run
        self.chance = chance

    def happens(self, probability: float) -> bool:
        return self.chance.random() < probability

    def make(self) -> e.LedgerEvent:
        """Return an event."""
        chance, state = self.chance, self.run.state
        current = state.current
        number = max(1, state.last_round + chance.choice([0] * 12 + [1, -1]))
        if current is None:
            if self.happens(0.6):
                at_ms = state.last_requested_at_ms + chance.choice([1, 1, 1, 0])
                wanted = state.last_round + chance.choice([1, 1, 1, 0])
                return request(max(wanted, 0), max(at_ms, NOW_MS))
            return admitted(chance.choice(EVERYBODY))
        seldom: list[e.LedgerEvent] = [
            request(number, NOW_MS),
            revoked(chance.choice(EVERYBODY)),
            admitted(chance.choice(EVERYBODY)),
            self.abandon(number),
            self.decline(number),
            deadline(number),
            self.answer(number, strange=True),
            self.check(number, [chance.randrange(self.run.next_index)]),
            compared(chance.choice(PARTIES), b"\0", number),
            aggregate(3, 30, number),
            self.give_part(number),
            replace(linked(chance.choice(PARTIES), number), noise=NOISE),
            update(chance.choice(EVERYBODY), number),
            committed(chance.choice(EVERYBODY), number),
        ]
        if self.happens(0.15):
            said = chance.choice(seldom)
            # Nobody is a party of a federation without any: admission sees to that.
            if not hasattr(said, "party") or state.config.mpc is not None:
                return said
        if current.sealed is not None:
            return self.end(number)
        if "comparison" in current.begun:
            return self.compare(number)
        if current.pending and self.happens(0.5) and self.is_checkable():
            some = chance.sample(sorted(current.pending), k=1)
            return self.check(number, some)
        if "closed" in current.begun:
            return linked(chance.choice(PARTIES), number)
        if current.owing and self.happens(0.2):
            return declined(chance.choice(sorted(current.owing)), number)
        return self.answer(number)

    def is_checkable(self) -> bool:
        state = self.run.state
        return state.config.mpc is None or has_all_links(state)

    def answer(self, number: int, *, strange: bool = False) -> e.LedgerEvent:
        """Return an answer of somebody; strange ones are wrong in something."""
        state = self.run.state
        some = sorted(state.current.owing) if self.happens(0.8) else EVERYBODY
        who = self.chance.choice(some or EVERYBODY)
        make: Any = update if state.config.mpc is None else committed
        said = make(who, number, base_model_sha256=state.model.sha256)
        if not strange:
            return said
        changes: list[dict[str, Any]] = [
            {"base_model_sha256": bytes(32)},
            {"num_examples": 10**6},
            {"agent_id": "nobody"},
        ]
        if state.config.mpc is not None:
            changes.append({"shares": said.shares[:-1]})
        return replace(said, **self.chance.choice(changes))

    def decline(self, number: int) -> e.LedgerEvent:
        if self.happens(0.5):
            reasons = [Reason.NOT_FINITE, "SOMETHING_ELSE"]
            who = self.chance.choice(EVERYBODY)
            return declined(who, number, reason=self.chance.choice(reasons))
        return e.PartyDeclined(
            federation_id=FEDERATION,
            round=number,
            party=self.chance.choice(PARTIES),
            reason="AGENT_SUMMED_BEFORE",
            detail="ada",
        )

    def abandon(self, number: int) -> e.LedgerEvent:
        return e.RoundAbandonRequested(
            federation_id=FEDERATION, round=number, explanation="why not"
        )

    def check(self, number: int, indexes: list[int]) -> e.LedgerEvent:
        reason = self.chance.choice(["", "", "", Reason.SHARES_DIFFER])
        said = checked(*indexes, number=number, reason=reason)
        if self.happens(0.1):
            return replace(said, party=self.chance.choice(PARTIES))
        return said

    def compare(self, number: int) -> e.LedgerEvent:
        started = self.run.state.current.begun["comparison"]
        said = self.run.state.current.said.get("far", {})
        num_agents = len(started.agent_ids)
        bits = [
            self.chance.randrange(2) for _ in range(num_agents * (num_agents - 1) // 2)
        ]
        far = encode_far(make_symmetric(bits, num_agents=num_agents))
        if said and self.happens(0.9):
            far = next(iter(said.values()))
        return compared(self.chance.choice(PARTIES), far, number)

    def give_part(self, number: int) -> e.LedgerEvent:
        sealed = self.run.state.current.sealed
        size, examples = (3, 30) if sealed is None else (
            sealed.num_contributions, sealed.num_examples
        )  # fmt: skip
        size += self.chance.choice([0, 0, 0, 1])
        return partial(self.chance.choice(PARTIES), size, examples, number)

    def end(self, number: int) -> e.LedgerEvent:
        state = self.run.state
        sealed, parts = state.current.sealed, state.current.said.get("partials", {})
        is_complete = state.config.mpc is None or has_all_partials(state)
        if is_complete and self.happens(0.4):
            party = self.chance.choice([*PARTIES, "", "", ""] if parts else [""])
            return aggregate(
                sealed.num_contributions + self.chance.choice([0, 0, 0, 1]),
                sealed.num_examples,
                number,
                base_model_sha256=sealed.base_model.sha256,
                model=make_blob(f"model {self.chance.randrange(3)}"),
                party=party,
            )
        if is_complete and self.happens(0.3):
            return deadline(number)
        if parts and self.happens(0.3):
            return self.check(number, self.chance.sample(sorted(parts.values()), k=1))
        if state.config.mpc is None:
            return self.abandon(number)
        return self.give_part(number)


@pytest.mark.parametrize(
    "histories",
    [OFTEN, pytest.param(NIGHTLY, marks=pytest.mark.nightly)],
    ids=["often", "nightly"],
)
@pytest.mark.parametrize("kind", EXPECTED)
def test_facts_and_state_are_those_of_before(kind: str, histories: range) -> None:
    """Over random leaves: each fact, and after each leaf the encoding of the state."""
    config, expected = EXPECTED[kind]
    met: Counter[str] = Counter()
    for seed in histories:
        chance = random.Random(f"{kind} {seed}")
        now, before = start(DECIDER), start(rounds_before.DECIDER)
        mine = replace(config, min_cohort=chance.choice([2, 3]))
        for event in (mine, *map(admitted, AGENTS)):
            now.when(event)
            before.when(event)
        at_ms = NOW_MS
        guess = Guess(now, chance)
        for _ in range(NUM_LEAVES):
            at_ms += chance.choice([0, 0, 1, DURATION_MS // 20, DURATION_MS // 5])
            event = guess.make()
            facts = now.when(event, at_ms=at_ms)
            assert facts == before.when(event, at_ms=at_ms), (seed, event)
            assert encode(now.state) == encode(before.state), (seed, event)
            met.update(type(fact).__name__ for fact in facts)
    assert {name for name in expected if met[name] < 20} == set(), met
    assert set(met) <= expected
