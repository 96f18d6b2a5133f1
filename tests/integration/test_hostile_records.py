"""Ten thousand hostile records, on every topic that anybody may write to, while two
federations run on the same services: all goes on, and everything is accounted for.

One federation is of aggregation PLAIN; the other has parties and ledger nodes. The
records are batches made by hand (`tests.hostile`), drawn from a seed that is printed.
`make test-nightly` runs it. FOLKMOOT_HOSTILE_RECORDS says another number of records,
FOLKMOOT_HOSTILE_SEED a seed that was printed.
"""

import json
import os
import random
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Producer

from adapters.schema_registry import FramingError
from cli.modes.mpc import with_parties
from cli.node import make_node
from cli.stack import backends
from cli.stack.processes import find_free_ports
from cli.stack.services import FAUST_SERVICES
from ledger.signing import SigningKey
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.hostile.raw_client import Answer, Produce, RawClient
from tests.hostile.records import Hostile, Seen, Stranger, generate
from tests.integration.harness import (
    NUM_PARAMETERS,
    Federation,
    Puppet,
    SecretPuppet,
    World,
    find_worker,
    run_world,
    wait_until,
)
from tests.sealed import list_contributions

pytestmark = pytest.mark.nightly

NUM_RECORDS = int(os.environ.get("FOLKMOOT_HOSTILE_RECORDS", "10000"))
TARGETS = (*topics.INPUT_TOPICS, *topics.FACT_TOPICS, topics.ATTESTATIONS)
"""Facts too, which are a decider's to write: whoever reads inputs reads them alike.
Not the record itself, `moot.ledger` and its like: those are the sequencer's alone."""
MAX_GROWTH_MB = 200
PLAIN, SECRET = "meadow", "thicket"
NODES = ("ash", "beech", "cherry", "dune")
PARTIES = ("cairn", "dolmen", "menhir")
AGENTS = ("lark", "merle", "robin")
CLIP_NORM = 8.0
ROUND_S = 180 + NUM_RECORDS / 50
HELD_OPEN_S = 3.0
STARTUP_S = 240.0
WHOLE_BATCH = (Reason.UNREADABLE_RECORD, Reason.BATCH_TOO_LARGE)
"""A refusal for one of these may stand for records before it in its batch."""


Place = tuple[str, int]
"""A topic, and an offset in it."""


@dataclass
class Sent:
    """A hostile batch that Kafka stores."""

    topic: str
    kind: str
    offsets: range


@dataclass
class Siege:
    world: World
    seed: int
    plain: Federation
    secret: Federation
    urls: dict[str, str]
    puppets: dict[str, Puppet]
    secret_puppets: dict[str, SecretPuppet]
    sent: list[Sent] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[BaseException] = field(default_factory=list)

    # Rounds

    def run_rounds(self) -> None:
        """Run a round of each federation, side by side."""
        numbers = [f.request_round() for f in (self.plain, self.secret)]
        started = self.plain.wait(e.RoundStarted, ROUND_S, round=numbers[0])
        for puppet in self.puppets.values():
            puppet.submit(started)
        started = self.secret.wait(e.RoundStarted, ROUND_S, round=numbers[1])
        draw = np.random.default_rng(numbers[1])
        for agent in self.secret_puppets.values():
            agent.commit(started, draw.integers(-40_000, 40_000, NUM_PARAMETERS))
        for federation, number in zip((self.plain, self.secret), numbers, strict=True):
            federation.wait(e.ModelVersionRegistered, ROUND_S, round=number)
            sealed = federation.wait(e.RoundSealed, ROUND_S, round=number)
            counted = list_contributions(federation.events, sealed)
            assert [c.agent_id for c in counted] == sorted(AGENTS)

    # The stranger

    def see(self) -> list[Seen]:
        """Return what anybody can read."""
        return [
            Seen(
                topic=topic,
                key=record.key or b"",
                value=record.value or b"",
                headers=tuple((n.encode(), v) for n, v in record.headers),
                event=self.world.registry.unframe_trusted(record.value or b""),
            )
            for topic in TARGETS
            for record in self.world.records(topic)
        ]

    def draw(self) -> Iterator[tuple[str, Hostile]]:
        """Yield hostile batches, the topics in turn."""
        seen = self.see()
        ids = self.world.registry.register_all()
        streams = {
            topic: generate(
                Stranger(
                    draw=random.Random(f"{self.seed} {topic}"),
                    names=(PLAIN, SECRET),
                    seen=seen,
                    schema_ids={
                        subject.rpartition(".")[2]: number
                        for subject, number in ids.items()
                    },
                    key=SigningKey(random.Random(self.seed).randbytes(32)),
                ),
                NUM_RECORDS // len(TARGETS),
            )
            for topic in TARGETS
        }
        while streams:
            for topic, stream in [*streams.items()]:
                hostile = next(stream, None)
                if hostile is None:
                    del streams[topic]
                else:
                    yield topic, hostile

    def attack(self) -> None:
        """Send them all. For a thread."""
        try:
            said: list[tuple[str, Hostile]] = []

            def batches() -> Iterator[Produce]:
                for topic, hostile in self.draw():
                    said.append((topic, hostile))
                    yield Produce(topic, hostile.data)

            with RawClient(self.world.settings.bootstrap_servers) as client:
                for number, answer in enumerate(client.send_all(batches())):
                    self._note(*said[number], answer)
                    said[number] = said[number][0], Hostile("", b"", 0)
                    if number == 200:
                        self._hold_open()
        except BaseException as error:  # noqa: BLE001  # the test raises it again
            self.failures.append(error)

    def _note(self, topic: str, hostile: Hostile, answer: Answer) -> None:
        self.answers[answer.name] += 1
        if answer.is_stored:
            end = answer.offset + hostile.num_records
            self.sent.append(Sent(topic, hostile.kind, range(answer.offset, end)))

    def _hold_open(self) -> None:
        """Keep a transaction open for a while, and abort it."""
        producer = Producer(
            {
                "bootstrap.servers": self.world.settings.bootstrap_servers,
                "transactional.id": "stranger",
                "log_level": 2,
            }
        )
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(topics.UPDATES, b"never said", key=PLAIN.encode())
        producer.flush(30)
        time.sleep(HELD_OPEN_S)
        producer.abort_transaction(30)

    # What became of it

    def read_ledger(self) -> tuple[Counter[Place], Counter[Place], set[bytes]]:
        """Return whence leaves came, whence what leaves refuse, and all facts."""
        leaves, refused = Counter[Place](), Counter[Place]()
        facts = set()
        for record in self.world.records(topics.LEDGER):
            for data in self.world.decode(record).leaves:
                leaf = codec.decode_as(e.Leaf, data)
                event = codec.decode(leaf.event)
                if isinstance(event, e.EventRejected):
                    refused[event.source_topic, event.source_offset] += 1
                else:
                    leaves[leaf.source_topic, leaf.source_offset] += 1
                if isinstance(event, e.Fact):
                    facts.add(leaf.event)
        return leaves, refused, facts

    def find_repeated(self, facts: set[bytes]) -> set[Place]:
        """Return where on their topics facts are said, the first time or once more."""

        def is_said(value: bytes) -> bool:
            with suppress(FramingError):
                return self.world.registry.unframe_trusted(value) in facts
            return False

        return {
            (topic, record.offset)
            for topic in topics.FACT_TOPICS
            for record in self.world.records(topic)
            if record.value and is_said(record.value)
        }

    def status(self, node: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.urls[node]}/status", timeout=10) as got:
            found: dict[str, Any] = json.loads(got.read())
        return found

    def pids(self) -> dict[str, int]:
        """Every process that serves these federations, the stack's own included."""
        services = self.world.services.supervisor._processes
        stack = self.world.stack._processes
        return {
            name: find_worker(process.pid)
            for name, process in {**services, **stack}.items()
        }


def memory_mb(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) // 1024
    raise AssertionError(f"no {field} of {pid}")


@pytest.fixture(scope="module")
def full_heaps() -> Iterator[None]:
    """Have the broker take its heap, which is a bound itself, when it starts.

    Sooner or later any load fills it; what it grows by is then what lies beside it.
    """
    with pytest.MonkeyPatch.context() as patch:
        full = (*backends._KAFKA_JVM, "-XX:+AlwaysPreTouch")
        patch.setattr(backends, "_KAFKA_JVM", full)
        yield


@pytest.fixture(scope="module")
def siege(
    tmp_path_factory: pytest.TempPathFactory, full_heaps: None
) -> Iterator[Siege]:
    with run_world(tmp_path_factory.mktemp("siege"), None) as world:
        parties = world.services.start_parties(world.settings, *PARTIES)
        ports = find_free_ports(len(NODES))
        urls = {
            name: f"http://127.0.0.1:{port}"
            for name, port in zip(NODES, ports, strict=True)
        }
        members = tuple(make_node(world.settings, *item) for item in urls.items())
        plain = world.found(PLAIN, min_cohort=len(AGENTS))
        world.start_timer(PLAIN)
        world.start_exporter(PLAIN)
        secret = world.found(
            SECRET,
            min_cohort=len(AGENTS),
            ledger_nodes=members,
            **with_parties(parties, CLIP_NORM),
        )
        world.start_timer(SECRET)
        world.start_exporter(SECRET)
        for name in NODES:
            world.services.start(
                name, "serve", "ledger-node", "--federation", SECRET, "--name", name,
                "--port", urls[name].rpartition(":")[2],
                "--operator-key", world.operator_key.public_key.hex(),
            )  # fmt: skip
        for federation in (plain, secret):
            federation.wait(e.FederationConfigured, STARTUP_S)
        puppets = {name: Puppet(world, PLAIN, name) for name in AGENTS}
        secret_puppets = {name: SecretPuppet(world, SECRET, name) for name in AGENTS}
        plain.admit(*puppets.values())
        secret.admit(*secret_puppets.values())
        seed = os.environ.get("FOLKMOOT_HOSTILE_SEED")
        yield Siege(
            world,
            int(seed) if seed else random.SystemRandom().randrange(2**32),
            plain,
            secret,
            urls,
            puppets,
            secret_puppets,
        )


@pytest.mark.timeout(600 + NUM_RECORDS / 20)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts")
def test_rounds_go_on_and_nothing_grows_or_is_lost(siege: Siege) -> None:
    world = siege.world
    print(f"seed {siege.seed}")
    begun = time.monotonic()
    siege.run_rounds()
    siege.run_rounds()
    pids = siege.pids()
    before = {name: memory_mb(pid, "VmRSS") for name, pid in pids.items()}
    for pid in pids.values():
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # its peak begins anew
    print(f"{time.monotonic() - begun:.0f} s: warm")

    attacker = threading.Thread(target=siege.attack)
    attacker.start()
    num_rounds = 0
    while attacker.is_alive() or num_rounds < 2:
        siege.run_rounds()
        num_rounds += 1
        print(f"{time.monotonic() - begun:.0f} s: round {num_rounds} under attack")
    attacker.join()
    assert not siege.failures, siege.failures
    siege.run_rounds()
    print(f"{time.monotonic() - begun:.0f} s: one more round")
    print(siege.answers)
    assert sum(len(sent.offsets) for sent in siege.sent) >= NUM_RECORDS / 2

    growth = {
        name: memory_mb(pid, "VmHWM") - before[name] for name, pid in pids.items()
    }
    for name, grown in sorted(growth.items(), key=lambda item: -item[1]):
        print(f"{name}: {before[name]} MB, grew by {grown} MB at most")
    assert siege.pids() == pids, "something ended"
    assert not any(world.services.restarts().values())
    assert max(growth.values()) < MAX_GROWTH_MB


def test_every_record_is_accounted_for_once(siege: Siege) -> None:
    """As a leaf of a log, or as a refusal with a reason, which may be one for all that
    cannot be unpacked of a batch.
    """
    deadline = time.monotonic() + ROUND_S
    while True:  # a round that ended says nothing of topics that it does not need
        leaves, refused_on_log, facts = siege.read_ledger()
        refused, reasons = Counter[Place](), {}
        for record in siege.world.records(topics.REJECTED):
            refusal = siege.world.decode(record)
            place = refusal.source_topic, refusal.source_offset
            reasons[place] = Reason(refusal.reason)
            refused[place] += 1
        # A decider that restarts says its facts again: that is passed over.
        passed_over = siege.find_repeated(facts) - refused.keys() - leaves.keys()
        lost = []
        for sent in siege.sent:
            if sent.topic == topics.ATTESTATIONS or "producer" in sent.kind:
                continue
            places = [(sent.topic, offset) for offset in sent.offsets]
            if reasons.get(places[-1]) in WHOLE_BATCH:
                places = places[-1:]
            counts = ((place, refused[place] + leaves[place]) for place in places)
            lost += [
                (sent.kind, count, place)
                for place, count in counts
                if count != 1 and place not in passed_over
            ]
        if not lost or time.monotonic() > deadline:
            break
        time.sleep(5)
    assert not lost, (len(lost), lost[:20])
    assert not refused_on_log - refused
    assert max((leaves + refused).values()) == 1
    print(Counter(reasons.values()))


@pytest.mark.parametrize("name", [PLAIN, SECRET])
def test_the_audit_is_sound_and_counts_the_refusals(siege: Siege, name: str) -> None:
    federation = siege.plain if name == PLAIN else siege.secret
    on_log = Counter(
        event.reason
        for event in federation.events
        if isinstance(event, e.EventRejected)
    )
    assert sum(on_log.values()) > NUM_RECORDS / 10

    report = federation.audit()

    assert report["refusals"] == on_log
    assert report["num_rounds_recomputed"] == federation.last_round()
    if name == SECRET:
        print(report["noise"])


def test_everything_became_final_all_the_same(siege: Siege) -> None:
    height = siege.secret.blocks[-1].height
    wait_until(
        lambda: min(siege.status(n)["final_height"] for n in NODES) >= height - 1,
        "the last blocks are final",
        ROUND_S,
    )
    assert not any(siege.status(name)["alerts"] for name in NODES)


def test_no_process_fell_over_a_record(siege: Siege) -> None:
    """None of them wrote of an error that it had not thought of."""
    supervisor = siege.world.services.supervisor
    for name in (*FAUST_SERVICES, *NODES, *(f"timer-{n}" for n in (PLAIN, SECRET))):
        assert "Traceback" not in supervisor.log_path(name).read_text(), name
