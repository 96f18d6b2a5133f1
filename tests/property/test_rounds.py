"""Properties of the rounds decider, over any leaves in any order."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from protocol.contributions import Contribution
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.sealed import list_contributions, list_sealed
from tests.simulation.federation import (
    AGENTS,
    BASE,
    CONFIG,
    DURATION_MS,
    NOW_MS,
    Run,
    admitted,
    aggregate,
    checked,
    deadline,
    declined,
    exported,
    make_blob,
    request,
    revoked,
    start,
    update,
)

agents = st.sampled_from([*AGENTS, "eve"])
numbers = st.integers(0, 3) | st.just(2**63 - 1)
reasons = st.sampled_from(["", "", "", Reason.MISSING_BLOB, Reason.NOT_FINITE])


anything: st.SearchStrategy[e.LedgerEvent] = st.one_of(
    st.builds(revoked, agents),
    st.builds(admitted, agents),
    st.builds(request, numbers),
    st.builds(deadline, numbers),
    st.builds(
        lambda agent, number, examples: update(agent, number, num_examples=examples),
        agents,
        numbers,
        st.sampled_from([1, 7, 1_001]),
    ),
    st.builds(
        lambda agent, number, reason: declined(agent, number, reason=reason),
        agents,
        numbers,
        st.text(max_size=3) | reasons,
    ),
    st.builds(
        lambda indexes, number, reason: checked(
            *sorted(indexes), number=number, reason=reason
        ),
        st.sets(st.integers(0, 30), min_size=1, max_size=3),
        numbers,
        reasons,
    ),
    st.builds(aggregate, st.integers(-1, 4), st.integers(-1, 30), numbers),
)


class AnyLeaves(RuleBasedStateMachine):
    """Anybody says anything at any time; half of it makes sense."""

    def __init__(self) -> None:
        super().__init__()
        self.run: Run[RoundsState, e.RoundFact] = start(DECIDER)

    @initialize(min_cohort=st.integers(1, 3), cohort_size=st.integers(3, 5))
    def found(self, min_cohort: int, cohort_size: int) -> None:
        config = replace(CONFIG, min_cohort=min_cohort, cohort_size=cohort_size)
        self.run.given(config, *map(admitted, AGENTS), request(1))
        self.min_cohort = min_cohort

    # What makes sense

    @rule()
    def ask_for_the_next_round(self) -> None:
        state = self.run.state
        at_ms = max(NOW_MS, state.last_requested_at_ms + 1)
        self.run.when(request(state.last_round + 1, at_ms))

    @precondition(lambda self: self.run.state.current is not None)
    @rule(data=st.data(), examples=st.integers(1, 1_000), everybody=st.booleans())
    def submit(self, data: st.DataObject, examples: int, everybody: bool) -> None:
        started = self.current.started
        cohort = sorted(self.current.cohort)
        some = [data.draw(st.sampled_from(cohort))]
        for agent in cohort if everybody else some:
            self.run.when(
                update(
                    agent,
                    started.round,
                    base_model_sha256=started.base_model.sha256,
                    num_examples=examples,
                )
            )

    @precondition(
        lambda self: self.run.state.current and self.run.state.current.pending
    )
    @rule(reason=reasons, all_of_them=st.booleans())
    def check(self, reason: str, all_of_them: bool) -> None:
        waiting = sorted(self.current.pending)
        waiting = waiting if all_of_them else waiting[:1]
        number = self.current.started.round
        self.run.when(checked(*waiting, number=number, reason=reason))

    @precondition(lambda self: self.run.state.current is not None)
    @rule(late_ms=st.sampled_from([0, 1, 500]))
    def let_the_deadline_pass(self, late_ms: int) -> None:
        started = self.current.started
        at_ms = max(self.run.now_ms, started.deadline_ms + late_ms)
        self.run.when(deadline(started.round), at_ms=at_ms)

    @precondition(lambda self: self.run.state.current and self.run.state.current.sealed)
    @rule(model=st.sampled_from("xyz"))
    def claim(self, model: str) -> None:
        sealed = self.current.sealed
        assert sealed is not None
        self.run.when(
            aggregate(
                sealed.num_contributions,
                sealed.num_examples,
                sealed.round,
                base_model_sha256=sealed.base_model.sha256,
                model=make_blob(model),
            )
        )

    # What need not

    @rule(event=anything)
    def say_anything(self, event: e.LedgerEvent) -> None:
        self.run.when(event)

    @rule(data=st.data())
    def say_again(self, data: st.DataObject) -> None:
        """Admission drops it; should it not, no contribution changes or doubles."""
        before = self.run.state.current
        leaf = data.draw(st.sampled_from(self.run.leaves[5:] or self.run.leaves))
        if isinstance(
            leaf.event, e.UpdateSubmitted | e.UpdateDeclined | e.UpdatesChecked
        ):
            self.run.when(leaf.event)
            after = self.run.state.current
            if before is not None and after is not None:
                old = dict(before.contributions)
                new = after.contributions
                assert {name: new[name] for name in old} == old

    @rule()
    def say_what_is_none_of_its_business(self) -> None:
        before = self.run.state
        assert self.run.when(exported(1, BASE)) == []
        assert self.run.state == before

    @property
    def current(self) -> Any:
        assert self.run.state.current is not None
        return self.run.state.current

    @invariant()
    def facts_name_their_cause_and_are_numbered(self) -> None:
        for leaf, facts in zip(self.run.leaves[-1:], self.run.facts[-1:], strict=True):
            for index, fact in enumerate(facts):
                assert fact.output_index == index
                assert fact.cause == leaf.leaf_hash
                assert fact.cause_leaf_index == leaf.leaf_index
                assert fact.federation_id == CONFIG.federation_id
                codec.encode(fact)

    @invariant()
    def nobody_answers_twice(self) -> None:
        current = self.run.state.current
        if current is None:
            return
        waiting = Counter(p.agent_id for p in current.pending.values())
        assert all(count == 1 for count in waiting.values())
        indexes = {p.agent_id: index for index, p in current.pending.items()}
        assert dict(current.pending_of) == indexes
        answered = {*waiting, *current.contributions}
        assert not answered & {*current.owing}
        assert answered | {*current.owing} <= current.cohort
        assert not {*waiting} & {*current.contributions}

    @invariant()
    def every_leaf_that_asks_gets_an_answer(self) -> None:
        """Refusals are facts: whatever was said, somebody can see what became of it."""
        if not self.run.leaves:
            return
        event, facts = self.run.leaves[-1].event, self.run.facts[-1]
        if isinstance(
            event,
            e.RoundRequested
            | e.UpdateDeclined
            | e.UpdatesChecked
            | e.AggregateSubmitted,
        ):
            assert facts
        if isinstance(event, e.UpdateSubmitted) and not facts:
            assert self.run.leaves[-1].leaf_index in self.current.pending

    def teardown(self) -> None:
        """Look at the whole history once."""
        if not self.run.leaves:
            return
        rounds: dict[int, list[e.RoundFact]] = {}
        for facts in self.run.facts:
            for fact in facts:
                rounds.setdefault(fact.round, []).append(fact)
        for facts_of_round in rounds.values():
            check_round(facts_of_round, self.min_cohort)
        check_fold(self.run)


def check_round(facts: list[e.RoundFact], min_cohort: int) -> None:
    """Check what must hold of all facts about one round."""
    kinds = Counter(type(fact) for fact in facts)
    assert kinds[e.RoundStarted] <= 1
    assert kinds[e.RoundSealed] + kinds[e.RoundAbandoned] <= kinds[e.RoundStarted]
    assert kinds[e.AggregatePublished] <= kinds[e.RoundSealed]
    accepted = [fact for fact in facts if isinstance(fact, e.ContributionAccepted)]
    assert len({fact.agent_id for fact in accepted}) == len(accepted)
    excluded = {
        fact.agent_id
        for fact in facts
        if isinstance(fact, e.ContributionRejected)
        and fact.reason == Reason.REVOKED_AGENT
    }
    for sealed in facts:
        if isinstance(sealed, e.RoundSealed):
            counted = [f for f in accepted if f.agent_id not in excluded]
            contributions = list_contributions(facts, sealed)
            assert [c.agent_id for c in contributions] == sorted(
                fact.agent_id for fact in counted
            )
            assert len(contributions) >= min_cohort


def check_fold(run: Run[RoundsState, e.RoundFact]) -> None:
    """Check both audits: the fold of the log, and the replay of its inputs."""
    state = DECIDER.initial
    for leaf, facts in zip(run.leaves, run.facts, strict=True):
        state = DECIDER.evolve(state, leaf, facts)
    assert state == run.state
    again = start(DECIDER)
    for leaf in run.leaves:
        again.when(leaf.event, at_ms=max(again.now_ms, leaf.sequenced_at_ms))
    assert again.facts == run.facts
    assert again.state == run.state


AnyLeaves.TestCase.settings = settings(max_examples=150, stateful_step_count=50)
TestAnyLeaves = AnyLeaves.TestCase


@given(
    order=st.permutations(AGENTS),
    checks=st.permutations(AGENTS),
    at_once=st.booleans(),
    bad=st.sets(st.sampled_from(AGENTS), max_size=2),
)
def test_the_order_of_arrival_changes_no_sealed_set(
    order: list[str], checks: list[str], at_once: bool, bad: set[str]
) -> None:
    run = start(DECIDER).given(CONFIG, *map(admitted, AGENTS), request(1))
    index = {}
    for agent_id in order:
        index[agent_id] = run.next_index
        run.when(update(agent_id))
    facts: list[e.RoundFact] = []
    if at_once and not bad:
        facts = run.when(checked(*sorted(index.values())))
    else:
        for agent_id in checks:
            reason = Reason.NOT_FINITE if agent_id in bad else ""
            facts = run.when(checked(index[agent_id], reason=reason))
    sealed = facts[-1]
    assert isinstance(sealed, e.RoundSealed)
    assert list_sealed(run.facts) == tuple(
        Contribution(
            agent_id=agent_id,
            update_sha256=update(agent_id).update.sha256,
            num_examples=10,
        )
        for agent_id in AGENTS
        if agent_id not in bad
    )


@given(st.lists(st.tuples(agents, st.integers(1, 50)), max_size=20), st.data())
def test_redelivery_changes_no_contribution(
    submitted: list[tuple[str, int]], data: st.DataObject
) -> None:
    """Each leaf may come again, at once or later: the first answers count."""

    def seal(events: list[e.LedgerEvent]) -> tuple[Contribution, ...]:
        run = start(DECIDER).given(CONFIG, *map(admitted, AGENTS), request(1), *events)
        current = run.state.current
        assert current is not None
        if current.pending:
            run.when(checked(*sorted(current.pending)))
        run.when(deadline(1), at_ms=NOW_MS + DURATION_MS + 1)
        if any(isinstance(f, e.RoundSealed) for facts in run.facts for f in facts):
            return list_sealed(run.facts)
        return ()

    once: list[e.LedgerEvent] = [update(a, num_examples=n) for a, n in submitted]
    again = list(once)
    for event in once:
        place = again.index(event)
        again.insert(data.draw(st.integers(place + 1, len(again))), event)
    assert seal(once) == seal(again)
