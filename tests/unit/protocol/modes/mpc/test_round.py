"""A followed MPC round counts what the decider counts, leaf by leaf."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from protocol.modes import get_mode
from protocol.modes.mpc.phases import has_all_partials
from protocol.modes.mpc.round import MpcRound, Owed
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from schemas import events as e
from schemas.reasons import Reason
from tests.mpc_rounds import follow, has_all_links, owed_by_aggregator
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    DURATION_MS,
    MPC_CONFIG,
    NOW_MS,
    PARTIES,
    Run,
    admitted,
    aggregate,
    checked,
    committed,
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


class Followed:
    """A decider's run, and the round as it is followed beside it."""

    def __init__(self, config: e.FederationConfigured = MPC_CONFIG) -> None:
        self.run: Run[RoundsState, e.RoundFact] = start(DECIDER)
        self.secret: MpcRound | None = None
        self.given(config, *map(admitted, AGENTS))

    def when(self, event: e.LedgerEvent, *, at_ms: int | None = None) -> int:
        """Follow one leaf, and check what is known after it; returns where it is."""
        index = self.run.next_index
        self.run.when(event, at_ms=at_ms)
        self.secret = follow(self.secret, self.run.state, self.run.leaves[-1])
        self.check()
        return index

    def request(self, number: int, at_ms: int = NOW_MS) -> Followed:
        """Have a round started, and the fact sequenced."""
        self.when(request(number, at_ms))
        (fact,) = self.run.facts[-1]
        self.when(fact)
        return self

    def given(self, *events: e.LedgerEvent) -> Followed:
        for event in events:
            self.when(event)
        return self

    def check(self) -> None:
        """Compare with the decider's state, and with the leaves that it points to."""
        state, secret = self.run.state, self.secret
        current, config = state.current, state.config
        is_secret = config is not None and config.mpc is not None
        assert (secret is not None) == (is_secret and current is not None)
        if secret is None or current is None:
            return
        leaves = self.run.leaves
        assert (secret.config, secret.started) == (config, current.started)
        assert (secret.closed, secret.sealed) == (
            current.begun.get("closed"),
            current.sealed,
        )
        waiting = {p.agent_id: i for i, p in current.pending.items()}
        assert secret.waiting.keys() == waiting.keys()
        is_checkable = get_mode(config).is_checkable(config, current)
        assert is_checkable == has_all_links(state)
        assert secret.has_all_partials == has_all_partials(state)
        for agent_id, index in waiting.items():
            assert secret.get_committed(agent_id).leaf_index == index
        for agent_id, found in secret.commitments.items():
            event = leaves[found.leaf_index].event
            assert found.event == event
            assert found.event.agent_id == agent_id
        assert secret.links == {
            p: leaves[i].event.links for p, i in current.said.get("links", {}).items()
        }  # type: ignore[union-attr]
        assert {
            party: (given.leaf_index, given.blob)
            for party, given in secret.partials.items()
        } == {
            p: (i, leaves[i].event.partial)
            for p, i in current.said.get("partials", {}).items()
        }  # type: ignore[union-attr]
        if secret.sealed is not None:
            accepted = [c.event.commitments.sha256 for c in secret.accepted()]
            assert accepted == [c.update_sha256 for c in secret.contributions]

    @property
    def owed(self) -> tuple[dict[str, Owed | None], Owed | None]:
        """What each party owes, and what the aggregator does."""
        assert self.secret is not None
        by_party = {party: self.secret.owed_by_party(party) for party in PARTIES}
        return by_party, owed_by_aggregator(self.secret)


def all_owe(owed: Owed | None) -> dict[str, Owed | None]:
    return dict.fromkeys(PARTIES, owed)


NOBODY = (all_owe(None), None)


# Whose turn it is


def test_who_owes_what_in_a_whole_round() -> None:
    followed = Followed()
    assert followed.secret is None
    followed.request(1)
    indexes = []
    for agent_id in AGENTS:
        assert followed.owed == NOBODY
        indexes.append(followed.when(committed(agent_id)))
    assert followed.owed == (all_owe(Owed.LINKS), None)
    followed.when(linked("p1"))
    assert followed.owed == ({**all_owe(Owed.LINKS), "p1": None}, None)
    followed.given(linked("p0"), linked("p2"))
    assert followed.owed == (all_owe(None), "CHECKS")
    followed.when(checked(*indexes[:2]))
    assert followed.owed == (all_owe(None), "CHECKS")
    followed.when(checked(*indexes[2:]))
    assert followed.owed == (all_owe(Owed.PARTIAL), None)
    followed.when(partial("p2", 4, 40))
    assert followed.owed == ({**all_owe(Owed.PARTIAL), "p2": None}, None)
    followed.given(partial("p0", 4, 40), partial("p1", 4, 40))
    assert followed.owed == (all_owe(None), Owed.RESULT)
    followed.when(aggregate(4, 40))
    assert followed.secret is None


def sealed_round() -> Followed:
    followed = Followed().request(1)
    indexes = [followed.when(committed(agent_id)) for agent_id in AGENTS]
    followed.given(*map(linked, PARTIES))
    followed.when(checked(*indexes))
    return followed


def test_a_rejected_part_is_owed_again() -> None:
    followed = sealed_round()
    places = {party: followed.when(partial(party, 4, 40)) for party in PARTIES}
    assert followed.owed == (all_owe(None), Owed.RESULT)
    wrong = checked(places["p0"], places["p2"], reason=Reason.WRONG_PARTIAL)
    followed.when(wrong)
    assert followed.owed == (
        {"p0": Owed.PARTIAL, "p1": None, "p2": Owed.PARTIAL},
        None,
    )
    followed.when(partial("p2", 4, 40))
    assert followed.owed[1] is None
    followed.when(partial("p0", 4, 40))
    assert followed.owed == (all_owe(None), Owed.RESULT)


def test_parties_owe_nothing_before_the_last_answer_or_the_deadline() -> None:
    followed = Followed().request(1).given(*map(committed, AGENTS[:3]))
    assert followed.owed == NOBODY
    followed.when(deadline(1), at_ms=NOW_MS + DURATION_MS + 1)
    assert followed.owed == (all_owe(Owed.LINKS), None)
    assert followed.secret is not None
    assert followed.secret.waiting.keys() == set(AGENTS[:3])


def test_a_revocation_may_make_the_set_complete() -> None:
    followed = Followed().request(1).given(*map(committed, AGENTS[:3]))
    followed.when(revoked("dan"))
    assert followed.owed == (all_owe(Owed.LINKS), None)


def test_nothing_is_owed_before_the_round_itself_is_on_the_log() -> None:
    """What is proved is about its leaf; whoever is quick may come before it."""
    followed = Followed()
    followed.when(request(1))
    (started,) = followed.run.facts[-1]
    assert isinstance(started, e.RoundStarted)
    followed.given(*map(committed, AGENTS))
    assert followed.secret is not None
    assert followed.secret.closed is not None
    assert followed.secret.started_leaf_hash == b""
    assert followed.secret.provable == frozenset()
    assert followed.owed == NOBODY
    # Nor if parties link all the same.
    followed.given(*map(linked, PARTIES))
    assert followed.owed == NOBODY
    followed.when(started)
    assert followed.secret.started_leaf_hash == followed.run.leaves[-1].leaf_hash
    assert followed.secret.provable == set(AGENTS)
    assert followed.owed == (all_owe(None), "CHECKS")


def test_another_rounds_beginning_is_not_this_ones() -> None:
    followed = Followed().request(1)
    assert followed.secret is not None
    known = followed.secret.started_leaf_hash
    followed.when(followed.secret.started)
    assert followed.secret.started_leaf_hash == known
    # Nor is a copy of it from another place in Kafka.
    copy = replace(followed.run.leaves[-1], leaf_hash=bytes(32))
    again = follow(followed.secret, followed.run.state, copy)
    assert again is not None
    assert again.started_leaf_hash == known
    other = Followed()
    other.when(request(1))
    assert other.secret is not None
    other.when(replace(other.secret.started, cause=bytes(32)))
    assert other.secret.started_leaf_hash == b""


def test_the_seed_of_sketches_follows_from_the_set_and_all_links() -> None:
    def seed_of(*links: e.SharesLinked) -> bytes:
        followed = Followed().request(1).given(*map(committed, AGENTS), *links)
        assert followed.secret is not None
        return followed.secret.compute_sketch_seed()

    links = [linked(party) for party in PARTIES]
    seeds = [seed_of(*links)]
    assert seed_of(*reversed(links)) == seeds[0]
    for place, said in enumerate(links):
        others = [*links]
        others[place] = replace(said, links=make_blob("others"))
        seeds.append(seed_of(*others))
    fewer = Followed().request(1).given(*map(committed, AGENTS[1:]))
    fewer.given(declined(AGENTS[0]), *links)
    assert fewer.secret is not None
    seeds.append(fewer.secret.compute_sketch_seed())
    assert len(set(seeds)) == 2 + len(PARTIES)
    with pytest.raises(KeyError):
        seed_of(*links[:2])


def test_an_unknown_party_owes_links_like_any_other() -> None:
    """Whoever asks knows that it is one of the federation's."""
    followed = Followed().request(1).given(*map(committed, AGENTS))
    assert followed.secret is not None
    assert followed.secret.owed_by_party("somebody") is Owed.LINKS


def test_the_accepted_are_those_of_the_sealed_set_in_its_order() -> None:
    followed = Followed().request(1)
    indexes = {a: followed.when(committed(a)) for a in reversed(AGENTS)}
    followed.given(*map(linked, PARTIES))
    assert followed.secret is not None
    with pytest.raises(AssertionError, match="only a sealed round"):
        followed.secret.accepted()
    followed.when(checked(indexes["bea"], reason=Reason.SHARES_DIFFER))
    followed.when(checked(*sorted(indexes[a] for a in AGENTS if a != "bea")))
    assert [c.event.agent_id for c in followed.secret.accepted()] == [
        "ana",
        "cem",
        "dan",
    ]


@pytest.mark.parametrize(
    "end",
    [
        e.RoundAbandonRequested(federation_id="clinics", round=1, explanation="gone"),
        e.PartyDeclined(
            federation_id="clinics", round=1, party="p2", reason="NO", detail=""
        ),
        aggregate(4, 40),
    ],
    ids=["abandoned", "declined", "published"],
)
def test_the_next_round_begins_with_nothing(end: e.LedgerEvent) -> None:
    followed = sealed_round().given(admitted("eve"), admitted("fay"))
    is_complete = isinstance(end, e.AggregateSubmitted)
    givers = PARTIES if is_complete else PARTIES[:-1]
    followed.given(*(partial(party, 4, 40) for party in givers), end)
    assert followed.secret is None
    followed.when(request(2, NOW_MS + 1))
    assert followed.secret is not None
    assert (followed.secret.commitments, followed.secret.sealed) == ({}, None)
    assert followed.owed == NOBODY


def test_when_the_aggregator_is_late_every_party_owes_the_result() -> None:
    followed = sealed_round()
    followed.given(*(partial(party, 4, 40) for party in PARTIES))
    assert {followed.secret.owed_by_party(party) for party in PARTIES} == {None}  # type: ignore[union-attr]
    late_ms = followed.run.now_ms + DURATION_MS + 1
    followed.run.now_ms = late_ms
    followed.when(deadline(1))
    assert followed.secret is not None
    assert {followed.secret.owed_by_party(party) for party in PARTIES} == {Owed.RESULT}
    assert owed_by_aggregator(followed.secret) == Owed.RESULT


def test_another_rounds_leftovers_are_dropped() -> None:
    """Should two rounds ever meet without a leaf between."""
    followed = sealed_round()
    old = followed.secret
    fresh = Followed().request(1).given(committed("ana"))
    assert fresh.run.state.current is not None
    moved = replace(fresh.run.state.current.started, round=2)
    current = replace(fresh.run.state.current, started=moved)
    state = replace(fresh.run.state, current=current)
    secret = follow(old, state, fresh.run.leaves[-1])
    assert secret is not None
    assert secret.commitments.keys() == {"ana"}
    assert not secret.started_leaf_hash
    assert not secret.links


def test_a_round_in_the_clear_is_not_followed() -> None:
    followed = Followed(CONFIG).given(request(1), *map(update, AGENTS))
    assert followed.run.state.current is not None
    assert followed.secret is None


# Whatever comes


KINDS = (
    lambda chance, n: committed(chance.choice(AGENTS), n),
    lambda chance, n: committed(chance.choice(AGENTS), n),
    lambda chance, n: committed("ana", n, shares=()),
    lambda chance, n: declined(chance.choice(AGENTS), n),
    lambda chance, n: linked(chance.choice(PARTIES), n),
    lambda chance, n: linked(chance.choice(PARTIES), n),
    lambda chance, n: update(chance.choice(AGENTS), n),
    lambda chance, n: deadline(n),
)


def guess(followed: Followed, chance: random.Random) -> e.LedgerEvent:
    """Return an event that may fit, or may not."""
    state = followed.run.state
    current = state.current
    number = state.last_round + chance.choice([0, 0, 0, 0, 1, -1])
    number = max(1, number)
    if current is None or chance.random() < 0.02:
        return request(state.last_round + 1, NOW_MS + followed.run.next_index)
    if chance.random() < 0.02:
        return e.RoundAbandonRequested(
            federation_id="clinics", round=number, explanation="why not"
        )
    if chance.random() < 0.01:
        return revoked(chance.choice(AGENTS))
    if chance.random() < 0.05:
        return admitted(chance.choice(AGENTS))
    if current.sealed is not None:
        size = current.sealed.num_contributions + chance.choice([0, 0, 0, 1])
        if chance.random() < 0.3 and has_all_partials(state):
            return aggregate(size, current.sealed.num_examples, number)
        if chance.random() < 0.3 and current.said.get("partials", {}):
            index = chance.choice(sorted(current.said.get("partials", {}).values()))
            reason = chance.choice(["", Reason.WRONG_PARTIAL])
            return checked(index, number=number, reason=reason)
        party = chance.choice(PARTIES)
        return partial(party, size, current.sealed.num_examples, number)
    if current.pending and has_all_links(state) and chance.random() < 0.5:
        reason = chance.choice(["", "", "", Reason.SHARES_DIFFER])
        index = chance.choice(sorted(current.pending))
        return checked(index, number=number, reason=reason)
    return chance.choice(KINDS)(chance, number)


def test_what_is_followed_is_what_counts_whatever_comes() -> None:
    """Checked after every leaf; the seeds are fixed."""
    met: Counter[str] = Counter()
    for seed in range(150):
        chance = random.Random(seed)
        followed = Followed()
        now_ms = NOW_MS
        for _ in range(120):
            now_ms += chance.choice([0, 1, DURATION_MS // 20])
            followed.when(guess(followed, chance), at_ms=now_ms)
        met.update(type(f).__name__ for facts in followed.run.facts for f in facts)
    for kind in (
        "RoundStarted",
        "CommitmentsClosed",
        "ContributionAccepted",
        "ContributionRejected",
        "RoundSealed",
        "PartialRejected",
        "AggregatePublished",
        "RoundAbandoned",
        "ClaimRejected",
    ):
        assert met[kind] >= 5, (kind, met)
