"""Properties of the rewards decider, over leaves of whole rounds in any order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import registry, rounds
from protocol.decider import Decider, Sequenced, step
from protocol.rewards import (
    DECIDER,
    MAX_BALANCE,
    MAX_UNPAID_ROUNDS,
    MIN_BALANCE,
    Basis,
    RewardsState,
    share_out,
)
from protocol.validation import MAX_NUM_EXAMPLES, MAX_POINTS
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.sealed import list_contributions
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    DURATION_MS,
    Run,
    admitted,
    aggregate,
    checked,
    deadline,
    declined,
    evaluation,
    exported,
    make_key,
    request,
    revoked,
    start,
    update,
)

NODE = e.LedgerNode(name="one", public_key=make_key("node").public_key, url="")
points = st.integers(0, 1_000) | st.sampled_from([0, MAX_POINTS])
rules = st.builds(e.RewardRule, **dict.fromkeys(e.RewardRule.__slots__, points))
examples = st.integers(1, 5_000) | st.just(MAX_NUM_EXAMPLES)
GOOD, SILENT, DECLINES, BAD, REVOKED, FALSE = range(6)
answers = st.sampled_from([GOOD] * 5 + [SILENT, DECLINES, BAD, REVOKED, FALSE])


class Log:
    """Runs the rounds and the registry decider, and delays what they conclude.

    Facts of one topic stay in order; those of several may overtake each other, and
    inputs overtake them all.
    """

    def __init__(self, config: e.FederationConfigured, data: st.DataObject) -> None:
        self.run: Run[RewardsState, e.RewardFact] = start(DECIDER)
        self.deciders = Run(decider=rounds.DECIDER, state=rounds.DECIDER.initial)
        self.registry = registry.DECIDER.initial
        self.waiting: defaultdict[str, list[e.Fact]] = defaultdict(list)
        self.data = data
        self.say(config)

    def say(self, event: e.LedgerEvent, *, later_ms: int = 0) -> None:
        """Sequence an event; what follows from it waits."""
        self.run.when(event, at_ms=self.run.now_ms + later_ms)
        leaf = self.run.leaves[-1]
        self.deciders.state, concluded = step(rounds.DECIDER, self.deciders.state, leaf)
        self.registry, versions = step(registry.DECIDER, self.registry, leaf)
        for fact in (*concluded, *versions):
            self.waiting[topics.topic_of(fact)].append(fact)

    def catch_up(self, *, fully: bool = False) -> None:
        """Sequence some or all of the facts that wait, across topics in any order."""
        while ready := sorted(topic for topic, facts in self.waiting.items() if facts):
            choices = ready if fully else [*ready, ""]
            topic = self.data.draw(st.sampled_from(choices))
            if not topic:
                return
            self.say(self.waiting[topic].pop(0))

    @property
    def current(self) -> rounds.OpenRound | None:
        return self.deciders.state.current


def live(rule: e.RewardRule, data: st.DataObject) -> Log:
    """Run a federation for a few rounds in which anything goes wrong."""
    nodes = (NODE,)
    config = replace(
        CONFIG,
        reward_rule=rule,
        ledger_nodes=e.LedgerNodes(nodes=nodes),
        min_cohort=data.draw(st.integers(1, 2)),
        max_num_examples=MAX_NUM_EXAMPLES,
    )
    log = Log(config, data)
    for agent_id in AGENTS:
        log.say(admitted(agent_id))
    for number in range(1, data.draw(st.integers(1, 4)) + 1):
        log.catch_up(fully=True)
        log.say(request(number, log.run.now_ms + number))
        if log.current is None:
            break
        play(log, log.current.started, data)
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from(["node", "SEQUENCER", "nobody"]))
            log.say(
                e.EquivocationProven(
                    federation_id=CONFIG.federation_id,
                    public_key=make_key(key).public_key,
                    messages=(b"%d" % number, b""),
                    reported_by=NODE.public_key,
                )
            )
    log.catch_up(fully=True)
    return log


def play(log: Log, started: e.RoundStarted, data: st.DataObject) -> None:
    """Play one round to some end."""
    number = started.round
    reasons: dict[int, str] = {}
    assert log.current is not None
    for agent_id in sorted(log.current.cohort):
        what = data.draw(answers)
        good = update(
            agent_id,
            number,
            base_model_sha256=started.base_model.sha256,
            num_examples=data.draw(examples),
        )
        if what in {GOOD, BAD, REVOKED}:
            index = log.run.next_index
            reasons[index] = Reason.NOT_FINITE if what == BAD else ""
            log.say(good)
        if what == DECLINES:
            log.say(declined(agent_id, number, reason=Reason.OUT_OF_RANGE))
        if what == REVOKED:
            log.say(revoked(agent_id))
        if what == FALSE:
            log.say(replace(good, base_model_sha256=bytes(32)))
        log.catch_up()
    current = log.current
    for index in () if current is None else sorted(current.pending):
        log.say(checked(index, number=number, reason=reasons[index]))
        log.catch_up()
    if log.current is not None and log.current.sealed is None:
        log.say(deadline(number), later_ms=DURATION_MS + 1)
        log.catch_up()
    current = log.current
    if current is None or current.sealed is None:
        return
    if data.draw(st.sampled_from([False] * 5 + [True])):
        log.say(
            e.RoundAbandonRequested(
                federation_id=CONFIG.federation_id, round=number, explanation="tired"
            )
        )
        return
    log.say(
        aggregate(
            current.sealed.num_contributions,
            current.sealed.num_examples,
            number,
            base_model_sha256=current.sealed.base_model.sha256,
        )
    )
    log.catch_up()
    while log.waiting[topics.AGGREGATES]:  # its own topic's facts alone
        log.say(log.waiting[topics.AGGREGATES].pop(0))
    if data.draw(st.sampled_from([True, True, False])):
        accuracy = data.draw(st.integers(0, 1_000_000))
        model = log.deciders.state.model
        assert model is not None
        log.say(exported(number, model, evaluation=evaluation(accuracy)))


@settings(max_examples=150)
@given(rule=rules, data=st.data())
def test_everything_is_paid_by_the_rule_whatever_the_order(
    rule: e.RewardRule, data: st.DataObject
) -> None:
    log = live(rule, data)
    facts = [fact for facts in log.run.facts for fact in facts]
    found: Counter[tuple[str, int, str]] = Counter()
    for fact in facts:
        found[fact.account, fact.round, fact.basis] += fact.amount
    assert found == Counter(expect(rule, [leaf.event for leaf in log.run.leaves]))
    assert set(log.run.state.unpaid) == find_unpaid(log.run.leaves)


def expect(
    rule: e.RewardRule, events: list[e.LedgerEvent]
) -> dict[tuple[str, int, str], int]:
    """Say the rule again, over a finished log: order does not matter any more."""
    expected: Counter[tuple[str, int, str]] = Counter()
    counted = {
        s.round: list_contributions(events, s)
        for s in events
        if isinstance(s, e.RoundSealed)
    }
    declines = {
        index for index, s in enumerate(events) if isinstance(s, e.UpdateDeclined)
    }
    best = 0
    for event in events:
        if isinstance(event, e.AggregatePublished):
            for c in counted[event.round]:
                amount = (
                    rule.per_contribution
                    + rule.per_thousand_examples * c.num_examples // 1_000
                )
                expected[c.agent_id, event.round, Basis.CONTRIBUTION] += amount
        elif isinstance(event, e.ModelVersionRegistered):
            assert event.evaluation is not None
            accuracy = event.evaluation.metrics[0].value_micros
            gain, best = accuracy - best, max(best, accuracy)
            pool = max(0, gain) * rule.per_accuracy_percent // 10_000
            weights = {c.agent_id: c.num_examples for c in counted[event.round]}
            for agent_id, share in share_out(pool, weights).items():
                expected[agent_id, event.round, Basis.UTILITY] += share
        elif isinstance(event, e.ContributionRejected):
            if (
                event.reason == Reason.NOT_FINITE
                and event.cause_leaf_index not in declines
            ):
                place = (event.agent_id, event.round, Basis.FAILED_PROOF)
                expected[place] -= rule.failed_proof
        elif isinstance(event, e.EquivocationProven):
            accounts = {
                NODE.public_key: "node:one",
                make_key("SEQUENCER").public_key: "principal:SEQUENCER",
            }
            if event.public_key in accounts:
                place = (accounts[event.public_key], 0, Basis.EQUIVOCATION)
                expected[place] -= rule.equivocation
    for number, agent_id in find_silent(events):
        place = (agent_id, number, Basis.MISSED_ASSIGNMENT)
        expected[place] -= rule.missed_assignment
    return {place: amount for place, amount in expected.items() if amount}


def find_silent(events: list[e.LedgerEvent]) -> Iterator[tuple[int, str]]:
    for started in events:
        if not isinstance(started, e.RoundStarted):
            continue
        answered = {
            answer.agent_id
            for answer in events
            if isinstance(answer, e.ContributionAccepted | e.ContributionRejected)
            and answer.round == started.round
            and getattr(answer, "reason", "") != Reason.NO_ANSWER
        }
        silent = {
            answer.agent_id
            for answer in events
            if isinstance(answer, e.ContributionRejected)
            and (answer.round, answer.reason) == (started.round, Reason.NO_ANSWER)
        }
        if any(
            isinstance(end, e.RoundSealed)
            or (
                isinstance(end, e.RoundAbandoned)
                and end.reason == Reason.NOT_ENOUGH_CONTRIBUTIONS
            )
            for end in events
            if getattr(end, "round", 0) == started.round
        ):
            for agent_id in silent - answered:
                yield started.round, agent_id


def find_unpaid(leaves: list[Sequenced]) -> set[int]:
    def rounds_of(kind: type[e.Fact]) -> set[int]:
        return {leaf.event.round for leaf in leaves if isinstance(leaf.event, kind)}

    over = rounds_of(e.RoundAbandoned) | rounds_of(e.ModelVersionRegistered)
    return rounds_of(e.RoundSealed) - over


@settings(max_examples=100)
@given(rule=rules, data=st.data())
def test_facts_are_numbered_fold_to_the_state_and_come_again_to_the_byte(
    rule: e.RewardRule, data: st.DataObject
) -> None:
    run = live(rule, data).run
    balances: Counter[str] = Counter()
    for leaf, facts in zip(run.leaves, run.facts, strict=True):
        for index, fact in enumerate(facts):
            assert (fact.output_index, fact.cause) == (index, leaf.leaf_hash)
            assert fact.cause_leaf_index == leaf.leaf_index
            assert fact.amount != 0
            balances[fact.account] += fact.amount
            assert fact.balance == balances[fact.account]
            assert fact.balance in range(MIN_BALANCE, MAX_BALANCE + 1)
        for basis in Basis:
            accounts = [fact.account for fact in facts if fact.basis == basis]
            assert all(one < two for one, two in pairwise(accounts))
    state = DECIDER.initial
    for leaf, facts in zip(run.leaves, run.facts, strict=True):
        state = DECIDER.evolve(state, leaf, facts)
    assert state == run.state
    assert state.balances == {
        fact.account: fact.balance for facts in run.facts for fact in facts
    }
    assert replay(DECIDER, run.leaves) == [
        [codec.encode(fact) for fact in facts] for facts in run.facts
    ]


def replay(
    decider: Decider[RewardsState, e.RewardFact], leaves: list[Sequenced]
) -> list[list[bytes]]:
    state, encoded = decider.initial, []
    for leaf in leaves:
        state, facts = step(decider, state, leaf)
        encoded.append([codec.encode(fact) for fact in facts])
    return encoded


@settings(max_examples=100)
@given(rule=rules, data=st.data())
def test_facts_on_the_log_change_nothing(
    rule: e.RewardRule, data: st.DataObject
) -> None:
    """What the decider said is a leaf like any other, and nothing follows from it."""
    run = live(rule, data).run
    for facts in list(run.facts):
        for fact in facts:
            before = run.state
            assert run.when(fact) == []
            assert run.state == before


@given(
    pool=st.integers(0, 10**13),
    weights=st.dictionaries(
        st.text(max_size=3), st.integers(1, MAX_NUM_EXAMPLES), min_size=1, max_size=20
    ),
)
def test_shares_are_fair_and_their_sum_is_the_pool(
    pool: int, weights: dict[str, int]
) -> None:
    shares = share_out(pool, weights)
    total = sum(weights.values())
    assert sum(shares.values()) == pool
    assert list(shares) == sorted(weights)
    for account, share in shares.items():
        assert pool * weights[account] // total <= share
        assert share <= -(-pool * weights[account] // total)
    for first, second in pairwise(shares):
        if weights[first] == weights[second]:
            assert shares[first] - shares[second] in {0, 1}
    assert shares == share_out(pool, dict(reversed(weights.items())))


numbers = st.integers(1, 3) | st.integers(1, 2**63 - 1)


@given(
    st.lists(
        st.builds(
            lambda number, kind: (number, kind),
            numbers,
            st.sampled_from(["sealed", "published", "registered"]),
        ),
        max_size=60,
    )
)
def test_what_is_remembered_is_bounded(said: list[tuple[int, str]]) -> None:
    """Even if rounds never end as they should."""
    run = start(DECIDER).given(CONFIG)
    cause = {
        "federation_id": CONFIG.federation_id,
        "cause": bytes(32),
        "cause_leaf_index": 0,
        "output_index": 0,
    }
    for number, kind in said:
        blob = CONFIG.initial_model
        event: e.LedgerEvent
        if kind == "sealed":
            event = e.RoundSealed(
                round=number,
                num_contributions=1,
                contributions_sha256=bytes(32),
                num_examples=1,
                base_model=blob,
                fractional_bits=1,
                num_parameters=1,
                **cause,
            )
        elif kind == "published":
            event = e.AggregatePublished(
                round=number,
                base_model_sha256=bytes(32),
                num_contributions=1,
                num_examples=1,
                sum=blob,
                model=blob,
                task=CONFIG.task,
                **cause,
            )
        else:
            event = e.ModelVersionRegistered(
                round=number,
                version=1,
                parent_version=0,
                model=blob,
                onnx=blob,
                no_onnx="",
                evaluation=evaluation(1),
                no_evaluation="",
                registered_at_ms=1,
                **cause,
            )
        run.when(event)
        assert len(run.state.unpaid) <= MAX_UNPAID_ROUNDS
        assert list(run.state.unpaid) == sorted(run.state.unpaid)


def test_the_rounds_that_are_played_meet_every_basis() -> None:
    """Or the properties above would hold of federations in which nothing happens."""
    seen: Counter[str] = Counter()
    late: Counter[tuple[bool, bool]] = Counter()
    rule = e.RewardRule(**dict.fromkeys(e.RewardRule.__slots__, 1_000))

    @settings(max_examples=150, database=None, derandomize=True)
    @given(data=st.data())
    def look(data: st.DataObject) -> None:
        run = live(rule, data).run
        for leaf, facts in zip(run.leaves, run.facts, strict=True):
            seen.update(fact.basis for fact in facts)
            bases = {fact.basis for fact in facts}
            if isinstance(leaf.event, e.RoundSealed):
                late[Basis.CONTRIBUTION in bases, Basis.UTILITY in bases] += 1

    look()
    assert set(seen) == set(Basis)
    assert min(seen.values()) >= 10
    # In every order: sealed first, sealed after the aggregate, sealed last of all.
    assert late[False, False] >= 10
    assert late[True, False] >= 3
    assert late[True, True] >= 3
