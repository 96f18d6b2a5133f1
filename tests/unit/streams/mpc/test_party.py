"""A party: when it is asked, what it says, what it refuses, and after a restart."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import streams.mpc.party
from adapters.modes.mpc.identity import PartyIdentity
from adapters.modes.mpc.memory import PartyLog, create_party_log
from protocol.log import LogState, OpenedLeaf
from protocol.modes.mpc.checker import MpcShape, parse_links, parse_partial
from protocol.modes.mpc.party_memory import Linked, RefusalCode, Summed
from protocol.modes.mpc.round import Owed, see
from protocol.modes.mpc.share_link import Link, verify_link
from protocol.round_view import WatchedRounds, watch
from protocol.rounds import DECIDER
from protocol.validation import find_problem
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from streams.following import Followed, Follower
from streams.mpc.party import make_step
from tests.builders import BlobDict, make_key
from tests.mpc_builder import (
    build_mpc_log,
    make_identity,
    make_sealing_key,
    start_mpc_log,
)
from tests.mpc_rounds import change_mpc_round
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    DURATION_MS,
    MPC_CONFIG,
    NOW_MS,
    PARTIES,
    admitted,
    aggregate,
    checked,
    committed,
    deadline,
    linked,
    partial,
    request,
    start,
    update,
)

ME = "p1"


# When it is asked


class Asked:
    """A log, and what it makes each party owe."""

    def __init__(self, config=MPC_CONFIG):
        self.run = start(DECIDER)
        self.states = dict.fromkeys((*PARTIES, "somebody"), WatchedRounds())
        self.when(config, *map(admitted, AGENTS))
        self.request(1)

    def request(self, number, *at_ms):
        """Have a round started, and the fact sequenced."""
        asked = self.when(request(number, *at_ms))
        (fact,) = self.run.facts[-1]
        return asked + self.when(fact)

    def when(self, *events, at_ms=None):
        """Follow leaves; returns what is asked of whom, in order."""
        asked = []
        for event in events:
            self.run.when(event, at_ms=at_ms)
            data = codec.encode(event)
            leaf = OpenedLeaf(
                leaf=e.Leaf(
                    event=data,
                    signature=bytes(64),
                    source_topic="t",
                    source_partition=0,
                    source_offset=0,
                ),
                sequenced=self.run.leaves[-1],
                traceparent=f"trace {len(self.run.leaves)}",
            )
            for name, state in self.states.items():
                self.states[name], work = make_step(name)(state, leaf)
                for item in work:
                    if not item.is_owed:
                        continue
                    assert item.traceparent == leaf.traceparent
                    assert item.secret == see(self.states[name].view)
                    asked.append((name, item.secret.owed_by_party(name)))
        return asked

    def commit(self):
        """Let everybody commit, which asks for links; returns where."""
        first = self.run.next_index
        assert self.when(*map(committed, AGENTS[:-1])) == []
        assert self.when(committed(AGENTS[-1])) == everybody(Owed.LINKS)
        return range(first, first + len(AGENTS))


def everybody(owed):
    return [(name, owed) for name in (*PARTIES, "somebody")]


def test_a_party_is_asked_once_for_links_and_once_for_its_part():
    asked = Asked()
    places = asked.commit()
    assert asked.when(committed(AGENTS[-1]), *map(linked, PARTIES)) == []
    assert asked.when(checked(*places)) == everybody(Owed.PARTIAL)
    parts = [partial(party, 4, 40) for party in PARTIES]
    assert asked.when(*parts, *parts, request(2)) == []
    assert asked.when(aggregate(4, 40)) == []
    # The round after it begins anew.
    base = asked.run.state.model.sha256
    assert asked.request(2, NOW_MS + 1) == []
    events = [committed(a, 2, base_model_sha256=base) for a in AGENTS]
    assert asked.when(*events) == everybody(Owed.LINKS)


def test_a_party_whose_part_was_rejected_is_asked_again():
    asked = Asked()
    places = asked.commit()
    asked.when(*map(linked, PARTIES), checked(*places))
    place = asked.run.next_index
    asked.when(*(partial(party, 4, 40) for party in PARTIES))
    wrong = checked(place, place + 1, reason=Reason.WRONG_PARTIAL)
    assert asked.when(wrong) == [("p0", Owed.PARTIAL), ("p1", Owed.PARTIAL)]
    assert asked.when(partial("p1", 4, 40)) == []
    # And once more: whoever lies twice is asked three times.
    wrong = checked(asked.run.next_index - 1, reason=Reason.WRONG_PARTIAL)
    assert asked.when(wrong) == [("p1", Owed.PARTIAL)]


def test_the_deadline_asks_too():
    asked = Asked()
    asked.when(*map(committed, AGENTS[:2]))
    late = NOW_MS + DURATION_MS + 1
    assert asked.when(deadline(1), at_ms=late) == everybody(Owed.LINKS)


def test_nothing_is_asked_in_the_clear():
    asked = Asked(CONFIG)
    first = asked.run.next_index
    places = range(first, first + len(AGENTS))
    assert asked.when(*map(update, AGENTS), checked(*places), aggregate(4, 40)) == []
    assert asked.run.state.version == 1


# What it says


class Recorder:
    """Acts for a party, and keeps what it was asked."""

    def __init__(self, hands):
        self.hands = hands
        self.work = []
        self.came = []

    def do(self, work):
        self.work += [item for item in work if item.is_owed]
        self.came += [item for item in work if not item.is_owed]
        return self.hands.do(work)


@pytest.fixture(scope="module")
def log():
    """A round in which all is well."""
    log = start_mpc_log()
    log.hands[ME] = Recorder(log.hands[ME])
    log.run_round()
    return log


@pytest.fixture(scope="module")
def asked_to_link(log):
    return log.hands[ME].work[0].secret


@pytest.fixture(scope="module")
def asked_to_sum(log):
    return log.hands[ME].work[1].secret


@pytest.fixture
def directory(tmp_path):
    create_party_log(tmp_path / ME)
    return tmp_path / ME


@pytest.fixture
def blobs(log):
    return BlobDict(log.blobs)


@pytest.fixture
def party(directory, blobs):
    memory = PartyLog(directory)
    yield make(memory, blobs)
    memory.close()


def make(memory, blobs, *, identity=None, name=ME, min_cohort=2):
    return streams.mpc.party.Party(
        name, identity or make_identity(ME), memory, blobs, min_cohort=min_cohort
    )


def said(log, kind, party=ME):
    return next(x for x in log.leaves if isinstance(x, kind) and x.party == party)


def test_an_honest_party_says_what_everybody_can_check(
    log, party, asked_to_link, asked_to_sum, blobs
):
    links = party.answer(asked_to_link)
    assert links == said(log, e.SharesLinked)
    assert party.answer(asked_to_sum) == said(log, e.PartialAggregateSubmitted)
    by_party = [
        parse_links(blobs[said(log, e.SharesLinked, name).links.sha256])
        for name in log.parties
    ]
    for agent_id in asked_to_link.waiting:
        update = asked_to_link.commitments[agent_id].event
        proof = codec.decode(blobs[update.proof.sha256])
        verify_link(
            [links[agent_id] for links in by_party],
            projections=[
                int.from_bytes(proof.projections[i : i + 15], "little", signed=True)
                for i in range(0, len(proof.projections), 15)
            ],
            blinding=int.from_bytes(proof.z_blinding, "little"),
        )
    shape = MpcShape.of(log.config)
    parts = [
        parse_partial(
            blobs[said(log, e.PartialAggregateSubmitted, name).partial.sha256], shape
        )
        for name in log.parties
    ]
    total = sum(part.values for part in parts).view(np.int64)
    assert np.array_equal(total, log.compute_sum(asked_to_sum.sealed))


def test_what_it_says_has_the_trace_of_what_it_was_asked(party, asked_to_link):
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    ((event, traceparent),) = party.do([streams.mpc.party.Work(asked_to_link, parent)])
    assert isinstance(event, e.SharesLinked)
    assert traceparent.split("-")[1] == "ab" * 16
    assert traceparent != parent


def test_shares_are_linked_a_few_at_a_time_with_the_same_result(
    log, party, asked_to_link, monkeypatch
):
    monkeypatch.setattr(streams.mpc.party, "LINKED_TOGETHER", 2)
    assert len(asked_to_link.waiting) == 5
    assert party.answer(asked_to_link) == said(log, e.SharesLinked)


def entries_of(blobs, event):
    return {x.agent_id: x for x in codec.decode(blobs[event.links.sha256]).entries}


def with_my_share(secret, agent_id, **changes):
    """Return the round with this party's share of an update changed."""
    committed = secret.get_committed(agent_id)
    shares = tuple(
        replace(share, **changes) if share.party == ME else share
        for share in committed.event.shares
    )
    event = replace(committed.event, shares=shares)
    changed = committed._replace(event=event)
    return change_mpc_round(
        secret, commitments={**secret.commitments, agent_id: changed}
    )


def with_update(secret, update):
    """Return the round in which an agent says something else."""
    committed = secret.get_committed(update.agent_id)._replace(event=update)
    return change_mpc_round(
        secret, commitments={**secret.commitments, update.agent_id: committed}
    )


@pytest.mark.parametrize("how", ["garbage", "another's", "commitment", "missing"])
def test_a_share_that_is_not_its_own_is_said_to_be_bad(
    log, party, asked_to_link, blobs, how
):
    ada = asked_to_link.commitments["ada"].event
    bea = asked_to_link.commitments["bea"].event
    changes = {
        "garbage": {"sealed": blobs.store(b"garbage")},
        "another's": {"sealed": bea.shares[1].sealed},
        "commitment": {"commitment": ada.shares[0].commitment},
        "missing": {},
    }[how]
    secret = with_my_share(asked_to_link, "ada", **changes)
    secret = with_update(secret, log.prove(secret.get_committed("ada").event))
    blobs.update(log.blobs)
    if how == "missing":
        del blobs[ada.shares[1].sealed.sha256]
    entries = entries_of(blobs, party.answer(secret))
    assert entries["ada"].reason == (
        Reason.MISSING_BLOB if how == "missing" else Reason.BAD_SHARE
    )
    assert (entries["ada"].projections, entries["ada"].blinding) == (b"", b"")
    # The others are linked as ever.
    honest = entries_of(blobs, said(log, e.SharesLinked))
    assert {k: v for k, v in entries.items() if k != "ada"} == {
        k: v for k, v in honest.items() if k != "ada"
    }


def test_what_is_not_proved_is_not_linked_and_not_remembered(
    log, party, asked_to_link, blobs
):
    ada, bea = (asked_to_link.commitments[name].event for name in ("ada", "bea"))
    secret = with_update(asked_to_link, replace(ada, proof=bea.proof))
    entries = entries_of(blobs, party.answer(secret))
    assert entries["ada"].reason == Reason.INVALID_PROOF
    assert (entries["ada"].projections, entries["ada"].blinding) == (b"", b"")
    (remembered,) = party._memory.known
    assert "ada" not in {agent_id for agent_id, _, _ in remembered.updates}
    assert len(remembered.updates) == 4


def test_a_round_in_which_nothing_can_be_linked(log, party, asked_to_link, blobs):
    secret = asked_to_link
    for found in asked_to_link.commitments.values():
        update = replace(found.event, proof=blobs.store(b"no proof"))
        secret = with_update(secret, update)
    entries = entries_of(blobs, party.answer(secret))
    assert {entry.reason for entry in entries.values()} == {Reason.INVALID_PROOF}


# Restarts


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_party_that_was_killed_says_the_same_bytes(
    log, directory, blobs, asked_to_link, asked_to_sum, crashes
):
    """Killed when it remembered, before Kafka had what it said; each time."""
    for secret, kind in (
        (asked_to_link, e.SharesLinked),
        (asked_to_sum, e.PartialAggregateSubmitted),
    ):
        for _ in range(1 + crashes):
            memory = PartyLog(directory)
            answer = make(memory, blobs).answer(secret)
            assert answer == said(log, kind)
            memory.close()
    memory = PartyLog(directory)
    assert [type(item) for item in memory.known] == [Linked, Summed]
    memory.close()


# What it refuses


def refuses(party, secret, blobs, caplog, code):
    """Check that nothing is given, nothing is stored, and everybody is told why."""
    before = dict(blobs)
    caplog.clear()
    answer = party.answer(secret)
    assert blobs == before
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert code in record.getMessage()
    # A rule of its memory ends the round; anything else may pass.
    if code not in set(RefusalCode):
        assert answer is None
        assert party.do([streams.mpc.party.Work(secret, "")]) == []
        return
    assert isinstance(answer, e.PartyDeclined)
    assert (answer.party, answer.round) == (ME, secret.started.round)
    assert answer.reason == code
    assert find_problem(answer) is None
    assert [event for event, _ in party.do([streams.mpc.party.Work(secret, "")])] == [
        answer
    ]


def test_an_update_is_not_linked_under_two_projections(
    log, party, asked_to_link, blobs, caplog
):
    """The same commitments in another statement: with another weight, and its proof."""
    assert party.answer(asked_to_link) is not None
    secret = asked_to_link
    for found in asked_to_link.commitments.values():
        update = replace(found.event, num_examples=1)
        secret = with_update(secret, log.prove(update))
    blobs.update(log.blobs)
    entries = entries_of(blobs, party.answer(secret))
    assert len(entries) == 5
    for entry in entries.values():
        assert entry.reason == Reason.BAD_SHARE
        assert "LINKED_BEFORE" in entry.detail
        assert (entry.projections, entry.blinding) == (b"", b"")
        assert entry.sum_projections == b""
    assert "LINKED_BEFORE" in caplog.text
    assert len(party._memory.known) == 1


def test_an_update_is_not_linked_with_two_proofs(
    log, party, asked_to_link, blobs, monkeypatch
):
    """The same statement, and so the same projection; but another challenge."""
    assert party.answer(asked_to_link) is not None
    secret = asked_to_link
    for agent_id, found in asked_to_link.commitments.items():
        state = replace(log.states[agent_id], nonce_key=bytes(32))
        monkeypatch.setitem(log.states, agent_id, state)
        update = log.prove(found.event)
        assert update.proof != found.event.proof
        assert replace(update, proof=found.event.proof) == found.event
        secret = with_update(secret, update)
    blobs.update(log.blobs)
    entries = entries_of(blobs, party.answer(secret))
    assert len(entries) == 5
    assert all("LINKED_BEFORE" in entry.detail for entry in entries.values())
    assert len(party._memory.known) == 1


def test_a_link_is_said_again_for_another_set_with_other_masks(
    party, asked_to_link, blobs
):
    """Whoever shows another closed set gets the same link, and nothing to subtract."""
    first = entries_of(blobs, party.answer(asked_to_link))
    closed = replace(asked_to_link.closed, sum_seed=b"\7" * 32)
    again = entries_of(
        blobs, party.answer(change_mpc_round(asked_to_link, closed=closed))
    )
    for agent_id, entry in first.items():
        other = again[agent_id]
        assert (other.projections, other.blinding) == (
            entry.projections,
            entry.blinding,
        )
        words = (np.frombuffer(said.sum_projections, "<u8") for said in (entry, other))
        assert not np.equal(*words).any()
    assert len(party._memory.known) == 1


def test_only_the_agent_that_commits_to_an_update_linked_before_is_left_out(
    log, party, asked_to_link, blobs
):
    """An agent that commits in two rounds to the same, or two that do in one."""
    ada = asked_to_link.commitments["ada"].event
    party._memory.permit_links(
        Linked(
            federation_id="clinics",
            base_model=asked_to_link.started.base_model.sha256,
            updates=(("ada", ada.commitments.sha256, bytes(32)),),
        )
    )
    entries = entries_of(blobs, party.answer(asked_to_link))
    honest = entries_of(blobs, said(log, e.SharesLinked))
    assert "LINKED_BEFORE" in entries["ada"].detail
    assert {k: v for k, v in entries.items() if k != "ada"} == {
        k: v for k, v in honest.items() if k != "ada"
    }


def test_a_round_has_no_second_sum(party, asked_to_link, asked_to_sum, blobs, caplog):
    assert party.answer(asked_to_link) is not None
    assert party.answer(asked_to_sum) is not None
    sealed = asked_to_sum.sealed
    *others, last = asked_to_sum.contributions
    fewer = change_mpc_round(
        asked_to_sum,
        sealed=replace(
            sealed,
            num_contributions=len(others),
            num_examples=sealed.num_examples - last.num_examples,
        ),
        contributions=tuple(others),
    )
    refuses(party, fewer, blobs, caplog, "AGENT_SUMMED_BEFORE")


def test_an_agent_enters_no_second_sum_over_a_base_model(
    party, asked_to_link, asked_to_sum, blobs, caplog
):
    assert party.answer(asked_to_link) is not None
    assert party.answer(asked_to_sum) is not None
    again = replace(asked_to_sum.sealed, round=7, cause=bytes(32))
    secret = change_mpc_round(asked_to_sum, sealed=again)
    refuses(party, secret, blobs, caplog, "AGENT_SUMMED_BEFORE")


def test_an_agent_that_was_summed_is_left_out_when_the_others_are_linked(
    party, asked_to_link, blobs
):
    """A log that does not have what this party said draws them again."""
    ada = asked_to_link.commitments["ada"].event
    base = asked_to_link.started.base_model.sha256
    updates = [("ada", b"other commitments".ljust(32)), ("zoe", bytes(32))]
    party._memory.permit_links(
        Linked(
            federation_id="clinics",
            base_model=base,
            updates=tuple((name, digest, bytes(32)) for name, digest in updates),
        )
    )
    party._memory.permit_sum(
        Summed(
            federation_id="clinics",
            base_model=base,
            round=1,
            cause=bytes(32),
            updates=tuple((name, digest, 1) for name, digest in updates),
        ),
        min_cohort=2,
    )
    assert ada.base_model_sha256 == base
    entries = entries_of(blobs, party.answer(asked_to_link))
    assert "AGENT_SUMMED_BEFORE" in entries["ada"].detail
    assert {entries[name].reason for name in entries.keys() - {"ada"}} == {""}


def test_a_party_that_would_not_sum_so_few_says_so_before_anybody_sums(
    directory, asked_to_link, blobs, caplog
):
    memory = PartyLog(directory)
    party = make(memory, blobs, min_cohort=6)
    refuses(party, asked_to_link, blobs, caplog, "COHORT_TOO_SMALL")
    assert memory.known == ()
    memory.close()


@pytest.mark.parametrize("whose", ["party", "federation"])
def test_a_small_cohort_is_not_summed(directory, asked_to_sum, blobs, caplog, whose):
    memory = PartyLog(directory)
    party = make(memory, blobs, min_cohort=6 if whose == "party" else 2)
    secret = asked_to_sum
    if whose == "federation":
        secret = change_mpc_round(secret, config=replace(secret.config, min_cohort=6))
    refuses(party, secret, blobs, caplog, "COHORT_TOO_SMALL")
    assert memory.known == ()
    memory.close()


def test_what_was_not_linked_is_not_summed(
    party, asked_to_link, asked_to_sum, blobs, caplog
):
    """Whatever the aggregator made of it: this party could not open the share."""
    share = asked_to_sum.accepted()[2].event.shares[1].sealed
    kept = blobs.pop(share.sha256)
    assert party.answer(asked_to_link) is not None
    blobs[share.sha256] = kept
    refuses(party, asked_to_sum, blobs, caplog, "NOT_LINKED")


def test_a_sum_whose_share_is_gone_is_not_given(
    party, asked_to_link, asked_to_sum, blobs, caplog
):
    assert party.answer(asked_to_link) is not None
    share = asked_to_sum.accepted()[2].event.shares[1].sealed
    del blobs[share.sha256]
    refuses(party, asked_to_sum, blobs, caplog, "MISSING_BLOB")


def count_proven(party, secret):
    verifier = party._get_checker(secret).verifier
    return sum(verifier.has_proven(secret, name) for name in secret.commitments)


def test_proofs_are_verified_as_they_come_some_at_a_time(
    log, party, asked_to_link, monkeypatch
):
    came = log.hands[ME].came
    assert [len(item.secret.waiting) for item in came] == [1, 2, 3, 4]
    assert party.do(came) == []
    assert count_proven(party, asked_to_link) == 0, "too few to be worth it"
    monkeypatch.setattr(streams.mpc.party, "VERIFIED_TOGETHER", 2)
    assert party.do(came) == []
    assert count_proven(party, asked_to_link) == 4, "two by two"
    assert party.answer(asked_to_link) == said(log, e.SharesLinked)


def test_a_proof_that_came_late_is_fetched_again(
    log, party, asked_to_link, blobs, monkeypatch
):
    monkeypatch.setattr(streams.mpc.party, "VERIFIED_TOGETHER", 1)
    proof = asked_to_link.commitments["ada"].event.proof
    kept = blobs.pop(proof.sha256)
    party.do(log.hands[ME].came)
    blobs[proof.sha256] = kept
    assert party.answer(asked_to_link) == said(log, e.SharesLinked)


# Keys


def test_a_federation_that_names_another_key_under_its_name_gets_nothing(
    directory, asked_to_link, asked_to_sum, blobs
):
    memory = PartyLog(directory)
    other = PartyIdentity(make_key("another p1"), make_sealing_key(ME))
    party = make(memory, blobs, identity=other)
    before = dict(blobs)
    assert party.answer(asked_to_link) is None
    assert party.answer(asked_to_sum) is None
    assert memory.known == ()
    assert blobs == before
    memory.close()


def test_a_federation_that_it_is_no_party_of_gets_nothing(
    directory, asked_to_link, blobs
):
    memory = PartyLog(directory)
    party = make(memory, blobs, name="p9", identity=make_identity("p9"))
    assert party.answer(asked_to_link) is None
    assert memory.known == ()
    memory.close()


def test_a_party_with_anothers_sealing_key_can_open_nothing(
    directory, asked_to_link, blobs
):
    memory = PartyLog(directory)
    identity = PartyIdentity(make_key(ME), make_sealing_key("p2"))
    entries = entries_of(
        blobs, make(memory, blobs, identity=identity).answer(asked_to_link)
    )
    assert {entry.reason for entry in entries.values()} == {Reason.BAD_SHARE}
    memory.close()


# Snapshots


def test_snapshots_are_what_was_snapshot():
    """In the form that a follower caches them in."""
    log = build_mpc_log()
    initial = WatchedRounds()
    snapshots = Follower(SimpleNamespace(), WatchedRounds, initial, None)._snapshots
    state, phases = initial, set()
    for leaf in log.opened:
        state = watch(state, leaf.sequenced)
        followed = Followed(log=LogState(federation_id="clinics"), state=state)
        loaded = snapshots.validate_json(snapshots.dump_json(followed))
        assert loaded == followed
        secret = see(loaded.state.view)
        if secret is not None:
            phases.add((bool(secret.links), bool(secret.partials)))
            assert secret.owed_by_party(ME) == see(state.view).owed_by_party(ME)
    assert phases == {(False, False), (True, False), (True, True)}


def test_a_link_is_a_link(log, asked_to_link):
    links = parse_links(log.blobs[said(log, e.SharesLinked).links.sha256])
    assert links.keys() == asked_to_link.waiting.keys()
    assert all(isinstance(link, Link) for link in links.values())
