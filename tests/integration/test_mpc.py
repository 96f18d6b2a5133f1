"""Aggregation MPC on the real stack: services, parties and agents are processes.

Puppets, whose strings these tests hold, give updates that a test knows, and lie. `moot
audit` is the judge at the end of each test.
"""

import os
import random
import re
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import urllib3
from confluent_kafka import TopicPartition
from numpy.typing import NDArray

from adapters.blobs import make_client
from adapters.kafka import make_consumer
from adapters.modes.mpc.identity import party_directory
from adapters.modes.mpc.memory import SAID_FILE
from cli.modes.mpc import with_parties
from cli.stack.processes import kill_owned, last_lines, spawn_owned
from protocol.aggregation import sum_from_blob
from protocol.clipping import compute_squared_norm
from protocol.cohort import is_drawn
from protocol.envelope import TRACEPARENT_HEADER
from protocol.model import compute_max_sum_size
from protocol.modes.mpc.checker import MpcShape
from protocol.modes.mpc.configuration import get_mpc
from protocol.rewards import RECOMMENDED_RULE, Basis
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.integration.harness import (
    NUM_PARAMETERS,
    WAIT_S,
    Federation,
    SecretPuppet,
    World,
    start_agents,
    wait_until,
)
from tests.paths import ROOT
from tests.sealed import list_contributions

NAME = "secret"
PARTIES = ("cairn", "dolmen", "menhir")
PUPPETS = ("lark", "merle", "robin", "wren")
REAL = ("heath", "ivy")
"""Agents of `moot agent run`."""
CLIP_NORM = 8.0
ROUND_S = 90.0
LARGEST = 40_000
"""Of a good update's values: 21 of them are within the norm bound."""

Updates = dict[str, NDArray[np.int64]]


@dataclass
class Secret:
    """A federation with parties, some of whose agents are puppets."""

    federation: Federation
    puppets: Mapping[str, SecretPuppet]
    draw: np.random.Generator = field(default_factory=np.random.default_rng)

    @property
    def world(self) -> World:
        return self.federation.world

    def begin(self) -> e.RoundStarted:
        number = self.federation.request_round()
        return self.federation.wait(e.RoundStarted, round=number)

    def make_update(self) -> NDArray[np.int64]:
        return self.draw.integers(-LARGEST, LARGEST, NUM_PARAMETERS)

    def commit(self, started: e.RoundStarted, *names: str) -> Updates:
        """Have puppets commit, each with a weight of its own; all unless named."""
        updates = {name: self.make_update() for name in names or self.puppets}
        for name, values in updates.items():
            weight = weight_of(name)
            self.puppets[name].commit(started, values, num_examples=weight)
        return updates

    def wait_closed(self, started: e.RoundStarted) -> e.CommitmentsClosed:
        return self.federation.wait(e.CommitmentsClosed, ROUND_S, round=started.round)

    def wait_published(self, number: int) -> e.AggregatePublished:
        return self.federation.wait(e.AggregatePublished, ROUND_S, round=number)

    def fetch_sum(self, published: e.AggregatePublished) -> NDArray[np.int64]:
        size = compute_max_sum_size(NUM_PARAMETERS)
        blob = self.world.store.fetch(published.sum, max_size_bytes=size)
        return sum_from_blob(blob, num_parameters=NUM_PARAMETERS)

    def balance_of(self, number: int, account: str) -> e.BalanceChanged:
        return self.federation.wait(e.BalanceChanged, round=number, account=account)

    def has(self, kind: type, number: int, **fields: Any) -> bool:
        return any(
            isinstance(event, kind)
            and event.round == number
            and all(getattr(event, name) == value for name, value in fields.items())
            for event in self.federation.events
        )

    def look_for(self, seconds: float) -> None:
        """Read what comes, for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.federation.read_on()

    def find_contradictions(self) -> set[tuple[int, str]]:
        """Return where a party said two things of a kind: round and party."""
        said = defaultdict(set)
        for record in self.world.records(topics.PARTIALS, self.federation.name):
            event = self.world.decode(record)
            if isinstance(event, e.SharesLinked | e.PartialAggregateSubmitted):
                said[type(event), event.round, event.party].add(record.value)
        assert said
        return {place[1:] for place, values in said.items() if len(values) > 1}


def weight_of(name: str) -> int:
    return 3 + PUPPETS.index(name)


def add_up(updates: Updates, *names: str) -> NDArray[np.int64]:
    total = np.zeros(NUM_PARAMETERS, dtype=np.int64)
    for name in names or updates:
        total += weight_of(name) * updates[name]
    return total


@contextmanager
def puppet_show(
    world: World, name: str, parties: tuple[e.Party, ...], **changes: Any
) -> Iterator[Secret]:
    """Found a federation with parties and admit puppets."""
    comparing = {
        option: changes.pop(option)
        for option in ("dealer_key", "max_distance")
        if option in changes
    }
    secrecy = with_parties(parties, CLIP_NORM, **comparing)
    federation = world.found(name, **{"min_cohort": 2, **secrecy, **changes})
    world.start_timer(name)
    puppets = {agent: SecretPuppet(world, name, agent) for agent in PUPPETS}
    federation.admit(*puppets.values())
    yield Secret(federation, puppets)
    world.services.stop(f"timer-{name}")


@pytest.fixture(scope="module")
def secret(world: World) -> Iterator[Secret]:
    parties = world.services.start_parties(world.settings, *PARTIES)
    start_agents(world, NAME, REAL)  # they wait for the federation, and to be admitted
    with puppet_show(world, NAME, parties) as show:
        yield show
    world.services.stop(*REAL, *map(service_of, PARTIES))


def service_of(party: str) -> str:
    return f"party-{party}"


def test_an_honest_round_publishes_the_sum_and_nothing_shows_an_update(
    secret: Secret,
) -> None:
    finished = secret.world.moot("round", "start", "--federation", NAME, "--no-wait")
    assert finished.returncode == 0, finished.stderr
    started = secret.federation.wait(e.RoundStarted, round=1)
    updates = secret.commit(started)
    published = secret.wait_published(1)

    total = add_up(updates)
    assert np.array_equal(secret.fetch_sum(published), total)
    everything = b"|".join(everything_said(secret.world))
    assert shows(everything, total), "what is looked for is found where it is"
    for name, values in updates.items():
        assert not shows(everything, values), name
        assert not shows(everything, weight_of(name) * values), name
    assert secret.federation.audit()["num_rounds_recomputed"] == 1


def everything_said(world: World) -> Iterator[bytes]:
    """Every record on Kafka, every blob, and all that parties keep."""
    with ThreadPoolExecutor() as pool:  # a reader waits most of the time
        for records in pool.map(world.records, topics.EVENTS):
            yield from (record.value or b"" for record in records)
    client = make_client(world.settings, urllib3.PoolManager())
    bucket = world.settings.bucket
    for item in client.list_objects(bucket_name=bucket, recursive=True):
        answer = client.get_object(bucket_name=bucket, object_name=item.object_name)
        yield answer.read()
        answer.release_conn()
    for name in PARTIES:
        directory = party_directory(world.settings, name)
        yield from (
            path.read_bytes() for path in directory.rglob("*") if path.is_file()
        )


def shows(everything: bytes, values: NDArray[np.int64]) -> bool:
    """Return whether three values in a row are somewhere, in some usual form."""
    forms = [values.astype(kind) for kind in ("<i4", ">i4", "<i8", ">i8")]
    forms += [
        (values / scale).astype(kind)
        for kind in ("<f4", ">f4", "<f8", ">f8")
        for scale in (1.0, 2.0**15)
    ]
    return any(
        form[begin : begin + 3].tobytes() in everything
        for form in forms
        for begin in range(len(values) - 2)
    )


def test_the_round_is_one_trace_through_parties_and_aggregator(secret: Secret) -> None:
    world = secret.world
    trace_ids: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    with ThreadPoolExecutor() as pool:
        read = list(pool.map(world.records, topics.SEQUENCED_TOPICS))
    for record in chain.from_iterable(read):
        if record.key == NAME.encode():
            event = world.decode(record)
            if getattr(event, "round", None) == 1:
                header = record.header(TRACEPARENT_HEADER) or b""
                trace_ids[header.decode().split("-")[1]] += 1
                kinds[type(event).__name__] += 1
    assert len(trace_ids) == 1, trace_ids
    assert kinds == Counter(
        RoundRequested=1,
        RoundStarted=1,
        UpdateCommitted=len(PUPPETS),
        CommitmentsClosed=1,
        SharesLinked=len(PARTIES),
        UpdatesChecked=1,
        ContributionAccepted=len(PUPPETS),
        RoundSealed=1,
        PartialAggregateSubmitted=len(PARTIES),
        AggregateSubmitted=1,
        AggregatePublished=1,
        BalanceChanged=len(PUPPETS),
    )
    expected = {
        ("moot-aggregator", "check update"),
        ("moot-aggregator", f"publish {topics.PARTIALS}"),
        *((f"moot-party-{name}", f"process {topics.LEDGER}") for name in PARTIES),
        *((f"moot-party-{name}", f"publish {topics.PARTIALS}") for name in PARTIES),
    }
    (trace_id,) = trace_ids
    wait_until(
        lambda: (
            expected
            <= {(span.service, span.name) for span in world.collector.trace(trace_id)}
        ),
        "the spans arrive",
    )


def test_an_agent_that_shares_or_claims_too_much_is_left_out(secret: Secret) -> None:
    started = secret.begin()
    honest = secret.commit(started, "wren")
    # An update like others, and as good as robin's.
    ordinary = secret.draw.integers(1_000, 1_500, NUM_PARAMETERS)
    weight = weight_of("robin")
    secret.puppets["robin"].commit(started, ordinary, num_examples=weight)
    honest["robin"] = ordinary
    # Within the bound is what it commits to and proves, not what it shares.
    small = secret.make_update()
    secret.puppets["lark"].commit(started, small, shared=100 * small)
    # 100 times that, proved as if the federation's bound were as large: nothing but the
    # norm is wrong with it.
    poison = 100 * ordinary
    squared_norm = compute_squared_norm(poison)
    assert squared_norm > get_mpc(secret.federation.config).norm_bound ** 2
    secret.puppets["merle"].commit(
        started, poison, squared_bound=squared_norm, num_examples=weight
    )
    published = secret.wait_published(started.round)

    assert np.array_equal(secret.fetch_sum(published), add_up(honest))
    sealed = secret.federation.wait(e.RoundSealed, round=started.round)
    counted = list_contributions(secret.federation.events, sealed)
    assert [c.agent_id for c in counted] == ["robin", "wren"]
    for agent, reason in (
        ("lark", Reason.SHARES_DIFFER),
        ("merle", Reason.INVALID_PROOF),
    ):
        assert secret.has(
            e.ContributionRejected, started.round, agent_id=agent, reason=reason
        )
    cost = secret.balance_of(started.round, "merle")
    assert (cost.amount, cost.basis) == (
        -RECOMMENDED_RULE.failed_proof,
        Basis.FAILED_PROOF,
    )
    secret.balance_of(started.round, "wren")
    assert not secret.has(e.BalanceChanged, started.round, account="lark")
    report = secret.federation.audit()
    assert report["num_rounds_recomputed"] == started.round


LIAR = """
import sys
from dataclasses import replace

import numpy as np

import streams.mpc.party
from streams.app import serve

compute_sum = streams.mpc.party.Party._sum
name, number = sys.argv[1:]


def lie(self, secret, sealed):
    encode_partial = streams.mpc.party.encode_partial
    if sealed.round == int(number):  # it may read earlier ones again
        streams.mpc.party.encode_partial = lambda party_sum: encode_partial(
            replace(party_sum, values=party_sum.values + np.uint64(1))
        )
    try:
        return compute_sum(self, secret, sealed)
    finally:
        streams.mpc.party.encode_partial = encode_partial


streams.mpc.party.Party._sum = lie
serve(streams.mpc.party.make_party(name))
"""


def test_a_party_that_lies_is_named_and_mended_by_a_restart(secret: Secret) -> None:
    world, federation, liar = secret.world, secret.federation, PARTIES[1]
    world.services.stop(service_of(liar))
    process = spawn_owned(
        [sys.executable, "-c", LIAR, liar, str(federation.last_round() + 1)],
        env={**os.environ, **world.environment, "PYTHONPATH": str(ROOT)},
        log_path=world.directory / "logs" / "liar.log",
    )
    try:
        started = secret.begin()
        updates = secret.commit(started)
        rejected = federation.wait(e.PartialRejected, ROUND_S, round=started.round)
        assert (rejected.party, rejected.reason) == (liar, Reason.WRONG_PARTIAL)
        # It says the very same again, which is no other part.
        federation.wait(
            e.EventRejected,
            reason=Reason.DUPLICATE_EVENT,
            source_topic=topics.PARTIALS,
        )
        cost = secret.balance_of(started.round, f"party:{liar}")
        assert (cost.amount, cost.basis) == (
            -RECOMMENDED_RULE.failed_proof,
            Basis.FAILED_PROOF,
        )
    finally:
        kill_owned(process)
        world.services.start(service_of(liar), "serve", "party", "--name", liar)
    assert not secret.has(e.AggregatePublished, started.round)

    # A party that starts looks at the round with the next leaf: a refusal will do.
    federation.operator.request_round(NAME, started.round + 1)
    federation.wait(e.RoundRefused, round=started.round + 1, reason=Reason.ROUND_OPEN)

    published = secret.wait_published(started.round)
    assert np.array_equal(secret.fetch_sum(published), add_up(updates))
    report = federation.audit()
    assert report["facts"]["PartialRejected"] == 1
    assert set(report["refusals"]) == {Reason.DUPLICATE_EVENT}


def test_a_round_waits_for_a_party_that_is_dead(secret: Secret) -> None:
    dead = PARTIES[2]
    with secret.world.services.kept_down(service_of(dead)):
        started = secret.begin()
        updates = secret.commit(started)
        for party in PARTIES[:2]:
            secret.federation.wait(e.SharesLinked, round=started.round, party=party)
        secret.look_for(2)
        assert not secret.has(e.SharesLinked, started.round, party=dead)
        assert not secret.has(e.ContributionAccepted, started.round)
        assert not secret.has(e.ContributionRejected, started.round)

    published = secret.wait_published(started.round)
    assert np.array_equal(secret.fetch_sum(published), add_up(updates))


DEALER = "quarry"
OUTLIER = "robin"
MAX_DISTANCE = 0.4
"""In clip norms. An update of the tests is about 0.4 of one long, so opposite ones are
twice as far apart, and those that differ by noise hardly at all."""

KILL_POINTS = (
    e.UpdateCommitted,
    e.SharesLinked,
    e.RoundSealed,
    e.PartialAggregateSubmitted,
)


@pytest.mark.parametrize(
    "num_points", [1, pytest.param(len(KILL_POINTS), marks=pytest.mark.nightly)]
)
def test_kills_of_parties_change_nothing_that_they_say(
    secret: Secret, num_points: int
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)

    def kill_after(point: type, number: int) -> None:
        secret.federation.wait(point, ROUND_S, round=number)
        time.sleep(draw.uniform(0, 0.1))
        for victim in draw.sample(PARTIES, draw.choice((1, 2))):
            secret.world.services.kill(service_of(victim))
            print(f"killed {victim} after {point.__name__} of round {number}")

    for point in draw.sample(KILL_POINTS, num_points):
        started = secret.begin()
        updates = secret.commit(started)
        kill_after(point, started.round)
        published = secret.wait_published(started.round)
        assert np.array_equal(secret.fetch_sum(published), add_up(updates))

    report = secret.federation.audit()
    assert report["num_rounds_recomputed"] == secret.federation.last_round()
    # What a party that was killed says again changes nothing.
    assert set(report["refusals"]) <= {Reason.DUPLICATE_EVENT}
    for party in PARTIES:
        said = secret.world.services.log_of(service_of(party), 1_000)
        assert "the cached state is of no use" not in said
    unexpected = [
        (event.round, event.detail)
        for event in secret.federation.events
        if isinstance(event, e.ClaimRejected)
    ]
    assert unexpected == []
    assert secret.find_contradictions() == {
        (event.round, event.party)  # of whom lied, and was mended
        for event in secret.federation.events
        if isinstance(event, e.PartialRejected)
    }


@pytest.fixture(scope="module")
def vanishing(secret: Secret) -> Iterator[Secret]:
    """A federation with the same parties that does not wait for long."""
    parties = get_mpc(secret.federation.config).parties
    rule = replace(RECOMMENDED_RULE, missed_assignment=100)
    with puppet_show(
        secret.world, "vanishing", parties, round_duration_ms=6_000, reward_rule=rule
    ) as show:
        yield show


def test_an_agent_that_vanishes_is_left_out_after_its_deadline(
    vanishing: Secret,
) -> None:
    show, world = vanishing, vanishing.world

    def lose_a_share(update: e.UpdateCommitted) -> e.UpdateCommitted:
        digest = os.urandom(32)
        first, second, third = update.shares
        lost = replace(
            second.sealed,
            uri=f"s3://{world.settings.bucket}/sha256/{digest.hex()}",
            sha256=digest,
        )
        return replace(update, shares=(first, replace(second, sealed=lost), third))

    started = show.begin()
    honest = show.commit(started, "lark", "merle")
    show.puppets["wren"].commit(started, show.make_update(), change=lose_a_share)
    closed = show.wait_closed(started)
    published = show.wait_published(started.round)

    assert np.array_equal(show.fetch_sum(published), add_up(honest, "lark", "merle"))
    assert closed.num_commitments == 3
    assert show.has(
        e.ContributionRejected,
        started.round,
        agent_id="wren",
        reason=Reason.BAD_SHARE,
    )
    leaf = show.federation.leaf_of(closed)
    assert leaf.sequenced.sequenced_at_ms > started.deadline_ms
    cost = show.balance_of(started.round, "robin")
    assert cost.basis == Basis.MISSED_ASSIGNMENT
    show.balance_of(started.round, "merle")
    assert not show.has(e.BalanceChanged, started.round, account="wren")
    # The share is not there for the audit either.
    report = show.federation.audit()
    assert report["num_rounds_recomputed"] == started.round


VANISHED = (-signal.SIGKILL, 128 + signal.SIGKILL)
"""The exit code, and as a guard passes it on."""


def test_an_agent_that_vanishes_in_the_middle_of_its_upload_is_left_out(
    vanishing: Secret,
) -> None:
    show, world, federation = vanishing, vanishing.world, vanishing.federation
    supervisor = world.services.supervisor
    log_path = supervisor.log_path("moth")
    present = [name for name in PUPPETS if name != "robin"]
    process = supervisor.run(
        "moth", "tests.integration.vanishing_agent",
        "agent", "run", "moth", "--federation", federation.name,
        "--operator-key", world.operator_key.public_key.hex(),
    )  # fmt: skip
    try:
        asked = federation.wait(e.AgentEnrolmentRequested, ROUND_S, agent_id="moth")
        federation.operator.admit(federation.name, {"moth": asked.public_key})
        federation.wait(e.AgentAdmitted, agent_id="moth")
        started = show.begin()
        assert is_drawn(started, "moth")
        # Robin missed the round before, if there was one, and is not drawn.
        updates = show.commit(started, *present)
        closed = show.wait_closed(started)
        published = show.wait_published(started.round)
        # It may have begun to train when everybody else had finished.
        assert process.wait(WAIT_S) in VANISHED, last_lines(log_path)
    finally:
        kill_owned(process)

    assert closed.num_commitments == len(present)
    assert np.array_equal(show.fetch_sum(published), add_up(updates))
    # Commitments alone are in the store: no share, and not a word on the ledger.
    [digest] = re.findall(r"vanishing with (\w{64}) stored", last_lines(log_path))
    shape = MpcShape.of(federation.config)
    commitments = world.store.fetch(
        e.BlobRef(
            uri="",
            sha256=bytes.fromhex(digest),
            size_bytes=shape.commitments_size,
        ),
        max_size_bytes=shape.commitments_size,
    )
    assert len(commitments) == shape.commitments_size
    for kind in (e.UpdateCommitted, e.UpdateDeclined):
        assert not show.has(kind, started.round, agent_id="moth")
    silent = {"agent_id": "moth", "reason": Reason.NO_ANSWER}
    assert show.has(e.ContributionRejected, started.round, **silent)
    leaf = federation.leaf_of(closed)
    assert leaf.sequenced.sequenced_at_ms > started.deadline_ms
    cost = show.balance_of(started.round, "moth")
    assert cost.basis == Basis.MISSED_ASSIGNMENT
    assert federation.audit()["num_rounds_recomputed"] == started.round


@pytest.fixture(scope="module")
def comparing(secret: Secret) -> Iterator[Secret]:
    """A federation with the same parties, which compare updates with a dealer."""
    world = secret.world
    dealer_key = world.services.start_dealer(world.settings, DEALER)
    parties = get_mpc(secret.federation.config).parties
    distance = {"dealer_key": dealer_key, "max_distance": MAX_DISTANCE}
    with puppet_show(world, "comparing", parties, min_cohort=3, **distance) as show:
        yield show
    world.services.stop(f"dealer-{DEALER}")


def play_with_an_outlier(show: Secret) -> tuple[e.RoundStarted, Updates]:
    """Have three puppets point where one does, and one, as long, elsewhere."""
    started = show.begin()
    common = show.make_update()
    updates = {name: common + show.draw.integers(-500, 500) for name in PUPPETS}
    updates[OUTLIER] = -common
    for name, values in updates.items():
        show.puppets[name].commit(started, values, num_examples=weight_of(name))
    return started, updates


def demand_left_out(show: Secret, started: e.RoundStarted, updates: Updates) -> None:
    """Wait for the sum of the others, and for the reason."""
    published = show.wait_published(started.round)
    others = [name for name in PUPPETS if name != OUTLIER]
    assert np.array_equal(show.fetch_sum(published), add_up(updates, *others))
    rejected = show.federation.wait(
        e.ContributionRejected, round=started.round, agent_id=OUTLIER
    )
    assert rejected.reason == Reason.FAR_FROM_OTHERS
    assert rejected.detail == "far from 3 of the 3 others"
    far = {
        event.party: event.far
        for event in show.federation.events
        if isinstance(event, e.UpdatesCompared) and event.round == started.round
    }
    # Pairs of lark, merle, robin, wren; robin is far from all.
    assert far == dict.fromkeys(PARTIES, bytes([0b01010100]))
    assert not show.has(e.BalanceChanged, started.round, account=OUTLIER)


def test_an_agent_that_points_elsewhere_is_left_out_of_the_sum(
    comparing: Secret,
) -> None:
    started, updates = play_with_an_outlier(comparing)
    demand_left_out(comparing, started, updates)
    report = comparing.federation.audit()
    assert report["num_rounds_recomputed"] == started.round
    assert any("word of all parties" in note for note in report["notes"])


def test_a_comparison_survives_the_death_of_a_party_and_of_the_dealer(
    comparing: Secret,
) -> None:
    services = comparing.world.services
    dead = PARTIES[0]
    with services.kept_down(service_of(dead)):
        started, updates = play_with_an_outlier(comparing)
        # It has to link, too: then it dies again, while all others compare.
    comparing.federation.wait(e.ComparisonStarted, ROUND_S, round=started.round)
    with services.kept_down(service_of(dead), f"dealer-{DEALER}"):
        comparing.look_for(5)
        assert not comparing.has(e.RoundSealed, started.round)
    # Whoever starts looks at the round with the next leaf: a refusal will do.
    wait_until(
        lambda: (
            comparing.federation.operator.request_round(
                comparing.federation.name, started.round + 1
            )
            and (comparing.look_for(5) or comparing.has(e.RoundSealed, started.round))
        ),
        "the parties have compared",
        ROUND_S,
    )
    demand_left_out(comparing, started, updates)
    report = comparing.federation.audit()
    assert report["num_rounds_recomputed"] == started.round


def test_agents_that_have_spoken_are_not_needed_any_more(secret: Secret) -> None:
    """Both are away until the sum is published; one then hears of the round again."""
    world, federation = secret.world, secret.federation
    keys = {
        name: federation.wait(e.AgentEnrolmentRequested, agent_id=name).public_key
        for name in REAL
    }
    federation.operator.admit(NAME, keys)
    for name in REAL:
        federation.wait(e.AgentAdmitted, agent_id=name)

    started = secret.begin()
    assert all(is_drawn(started, name) for name in REAL)
    for name in REAL:
        federation.wait(e.UpdateCommitted, ROUND_S, round=started.round, agent_id=name)
    world.services.stop(*REAL)
    world.services.kill("aggregator")  # it verifies their proofs again
    updates = secret.commit(started)
    sealed = federation.wait(e.RoundSealed, ROUND_S, round=started.round)
    published = secret.wait_published(started.round)
    offset = forget_having_read(world, REAL[1], started)
    start_agents(world, NAME, REAL)

    assert {c.agent_id for c in list_contributions(federation.events, sealed)} == {
        *updates,
        *REAL,
    }
    assert not np.array_equal(secret.fetch_sum(published), add_up(updates))
    wait_until(
        lambda: find_offset(world, REAL[1]) > offset, "the agent reads the round again"
    )
    answers = [
        answer.agent_id
        for answer in map(world.decode, world.records(topics.UPDATES, NAME))
        if answer.round == started.round and answer.agent_id in REAL
    ]
    assert sorted(answers) == sorted(REAL), "each has spoken once"
    report = federation.audit()
    assert report["num_rounds_recomputed"] == federation.last_round()


def test_a_party_runs_once_and_never_without_its_memory(secret: Secret) -> None:
    world = secret.world
    finished = world.moot("serve", "party", "--name", PARTIES[0])
    assert finished.returncode == 2
    assert re.search(r"process \d+ \(.*\) uses ", finished.stderr)

    shown = world.moot("party", "init", "lost").stdout
    assert shown.startswith("lost=")
    assert world.moot("party", "init", "lost").stdout == shown
    (party_directory(world.settings, "lost") / SAID_FILE).unlink()
    world.moot("party", "init", "lost")
    finished = world.moot("serve", "party", "--name", "lost")
    assert finished.returncode == 2
    assert "make another party" in finished.stderr


def forget_having_read(world: World, name: str, started: e.RoundStarted) -> int:
    """Leave an agent's offset as if it had died before it committed that one."""
    [offset] = [
        record.offset
        for record in world.records(topics.ROUNDS, NAME)
        if world.decode(record) == started
    ]
    consumer = make_consumer(world.settings, f"moot-agent-{NAME}-{name}")
    position = TopicPartition(topics.ROUNDS, 0, offset)
    consumer.commit(offsets=[position], asynchronous=False)
    consumer.close()
    return offset


def find_offset(world: World, name: str) -> int:
    """Return what an agent reads next of the rounds."""
    consumer = make_consumer(world.settings, f"moot-agent-{NAME}-{name}")
    [position] = consumer.committed([TopicPartition(topics.ROUNDS, 0)])
    consumer.close()
    return position.offset
