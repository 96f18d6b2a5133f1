"""What the benchmarks measure on: a stack, a federation, and load for it.

The load is made here, fast: agents are keys that sign, and train nothing. What reads
it are the real services, as `moot serve` runs them.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from adapters.blobs import BlobStore
from adapters.kafka import (
    MAX_EVENT_RECORD_SIZE_BYTES,
    MAX_RECORD_SIZE_BYTES,
    Publisher,
    Record,
    create_topics,
    follow_partition,
    make_headers,
    read_partition,
)
from adapters.kafka_log import find_partition
from adapters.keys import key_path, load_or_create_key
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings, load_settings
from cli.modes.mpc import with_parties
from cli.stack.processes import StackError, last_lines
from cli.stack.services import Supervisor
from cli.stack.stack import LocalStack
from consumers.audit.auditor import run_audit
from consumers.audit.blobs import FetchBlob
from consumers.audit.report import Report
from ledger.merkle import leaf_hash
from ledger.signing import SigningKey
from producers.control import Operator, Parameters, load_principals
from protocol.envelope import NO_GENESIS
from protocol.tensors import tensors_to_blob
from schemas import codec, topics
from schemas import events as e
from tests.builders import TASK, BlobDict, make_key

Say = Callable[[str], None]
"""Called with what is being done; for people who wait."""

TIMEOUT_S: Final = 600.0
ROUND_DURATION_S: Final = 3_600
CLIP_NORM: Final = 8.0


def make_agent_keys(count: int) -> dict[str, SigningKey]:
    """Return agents by name, with the keys of their names."""
    names = [f"agent-{number:04d}" for number in range(count)]
    return {name: make_key(name) for name in names}


def make_model(num_parameters: int) -> bytes:
    """Return an initial model with so many parameters."""
    return tensors_to_blob({"weight": np.zeros(num_parameters, np.float32)})


def make_update_event(
    federation_id: str, agent_id: str, number: int
) -> e.UpdateSubmitted:
    """Return an update whose blob does not exist: the sequencer never looks."""
    return e.UpdateSubmitted(
        federation_id=federation_id,
        round=1,
        agent_id=agent_id,
        base_model_sha256=bytes(32),
        update=BlobDict().store(b"%d" % number),
        num_examples=100,
        loss_micros=500_000,
    )


def measure_waits(
    send: Callable[[int], object], reader: Iterator[object], count: int
) -> list[float]:
    """Return how long it takes until what is sent can be read, milliseconds, sorted."""
    waits = []
    for number in range(count):
        sent = time.perf_counter()
        send(number)
        next(reader)
        waits.append((time.perf_counter() - sent) * 1e3)
        # Not in step with anything that goes by the clock.
        time.sleep(0.02 + 0.1 * (number % 7) / 7)
    return sorted(waits)


def measure_leaf_ms(stack: BenchStack, federation_id: str, count: int) -> list[float]:
    """Return the time from one update's sending to its leaf; as `measure_waits`."""
    name, key = next(iter(make_agent_keys(1).items()))
    reader = stack.follow_ledger(federation_id)
    for _ in range(stack.count_records(topics.LEDGER, federation_id)):
        next(reader)

    def send(number: int) -> None:
        stack.producer.send(make_update_event(federation_id, name, 10**6 + number), key)
        stack.producer.flush()

    return measure_waits(send, reader, count)


class FastProducer:
    """Sends signed events without waiting for each; `flush` waits for all."""

    def __init__(self, settings: Settings, registry: SchemaRegistry) -> None:
        self.genesis = NO_GENESIS
        """Of the federation that was founded last."""
        self._registry = registry
        self._failures: list[str] = []
        self._producer = Producer(
            {
                "bootstrap.servers": settings.bootstrap_servers,
                "log_level": 2,
                "enable.idempotence": True,
                "linger.ms": 5,
                "batch.size": MAX_EVENT_RECORD_SIZE_BYTES // 2,
                "compression.type": "lz4",
                "message.max.bytes": MAX_RECORD_SIZE_BYTES,
                "partitioner": "murmur2_random",
            }
        )

    def sign(
        self, event: e.Event, key: SigningKey
    ) -> tuple[str, bytes, bytes, Sequence[tuple[str, bytes]]]:
        """Return an event as `send_raw` takes it."""
        data, value = self._registry.frame(event)
        headers = make_headers(event, data, key, self.genesis, "")
        return topics.topic_of(event), event.federation_id.encode(), value, headers

    def send(self, event: e.Event, key: SigningKey) -> None:
        """Sign and send one event."""
        self.send_raw(*self.sign(event, key))

    def send_raw(
        self, topic: str, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Send framed bytes."""
        while True:
            try:
                self._producer.produce(
                    topic,
                    key=key,
                    value=value,
                    headers=list(headers),
                    on_delivery=self._on_delivery,
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def flush(self) -> None:
        """Wait until Kafka has everything.

        Raises:
            StackError: it does not.
        """
        remaining = self._producer.flush(60)
        if remaining or self._failures:
            what = self._failures[0] if self._failures else f"{remaining} unconfirmed"
            raise StackError(f"Kafka did not take the load: {what}", "See its log.")

    def _on_delivery(self, error: Any, _message: Any) -> None:
        if error is not None:
            self._failures.append(error.str())


@dataclass
class BenchStack:
    """A running stack with topics, schemas and keys, and the services on it."""

    settings: Settings
    registry: SchemaRegistry
    store: BlobStore
    supervisor: Supervisor
    producer: FastProducer

    def key(self, role: str) -> SigningKey:
        """Return a principal's key."""
        return load_or_create_key(
            key_path(self.settings.state_directory / "keys", role)
        )

    def found(
        self,
        federation_id: str,
        num_parameters: int,
        cohort_size: int,
        *,
        ledger_nodes: tuple[e.LedgerNode, ...] = (),
        parties: tuple[e.Party, ...] = (),
    ) -> Operator:
        """Found a federation and return its operator."""
        operator = Operator(
            self.key("OPERATOR"), Publisher(self.settings, self.registry)
        )
        operator.found(
            federation_id,
            Parameters(
                task=TASK,
                cohort_size=cohort_size,
                min_cohort=cohort_size,
                round_duration_ms=ROUND_DURATION_S * 1_000,
                ledger_nodes=ledger_nodes,
                **with_parties(parties, CLIP_NORM),
            ),
            load_principals(self.settings.state_directory / "keys"),
            make_model(num_parameters),
            self.store,
        )
        self.producer.genesis = operator.genesis
        return operator

    def serve(self, *services: str) -> None:
        """Start services, each in a process of its own."""
        for service in services:
            self.supervisor.start(service, "serve", service)

    def process_environment(self) -> dict[str, str]:
        """Return the environment of a process that belongs to this stack."""
        return {**os.environ, **self.supervisor.environment}

    def check(self) -> None:
        """Fail when a service has ended.

        Raises:
            StackError: one has; shows the end of its log.
        """
        restarted = self.supervisor.watch()
        if restarted:
            name = restarted[0]
            tail = last_lines(self.supervisor.log_path(name))
            raise StackError(f"{name} ended:\n{tail}", "The benchmark means nothing.")

    def cpu_s(self, service: str) -> float | None:
        """Return the processor time that a service has used; None if unknown."""
        return measure_cpu_s(self.supervisor.pid(service))

    def follow_ledger(
        self, federation_id: str, start: int | None = None
    ) -> Iterator[Record]:
        """Yield records of a federation's ledger; checks the services meanwhile."""
        key = federation_id.encode()
        partition = find_partition(self.settings, topics.LEDGER, federation_id)
        began = time.monotonic()
        options = {} if start is None else {"start": start}
        for record in follow_partition(
            self.settings, topics.LEDGER, partition, **options
        ):
            if isinstance(record, Record):
                if record.key == key:
                    began = time.monotonic()
                    yield record
                continue
            self.check()
            if time.monotonic() - began > TIMEOUT_S:
                msg = f"the ledger did not move for {TIMEOUT_S:.0f} s"
                raise StackError(msg, f"The logs are in {self.supervisor.logs}.")

    def follow_leaves(
        self, federation_id: str, start: int | None = None
    ) -> Iterator[tuple[bytes, e.LedgerEvent]]:
        """Yield each leaf's hash and event; nothing is verified."""
        for record in self.follow_ledger(federation_id, start):
            for data in self.open_block(record).leaves:
                leaf = codec.decode_as(e.Leaf, data)
                event = codec.decode(leaf.event)
                yield leaf_hash(data), event  # type: ignore[misc]  # a leaf's event

    def open_block(self, record: Record) -> e.BlockSequenced:
        """Return a ledger record's block, without verifying it."""
        data = self.registry.unframe_trusted(record.value or b"")
        return codec.decode_as(e.BlockSequenced, data)

    def read(self, topic: str, federation_id: str) -> Iterator[Record]:
        """Yield a federation's committed records of a topic."""
        partition = find_partition(self.settings, topic, federation_id)
        key = federation_id.encode()
        records = read_partition(self.settings, topic, partition)
        return (record for record in records if record.key == key)

    def count_records(self, topic: str, federation_id: str) -> int:
        """Return how many there are."""
        return sum(1 for _ in self.read(topic, federation_id))

    def create_topic(self, name: str) -> None:
        """Create a topic of the benchmark's own."""
        admin = AdminClient(
            {"bootstrap.servers": self.settings.bootstrap_servers, "log_level": 2}
        )
        size = {"max.message.bytes": str(MAX_RECORD_SIZE_BYTES)}
        new = NewTopic(name, num_partitions=1, replication_factor=1, config=size)
        admin.create_topics([new])[name].result(30)


@contextmanager
def bench_stack(say: Say) -> Iterator[BenchStack]:
    """Run a stack of its own for a block; nothing of it is left behind."""
    work = Path(tempfile.mkdtemp(prefix="moot-bench-"))
    saved = dict(os.environ)
    try:
        with LocalStack(work / "stack") as stack:
            say("Kafka, schema registry and MinIO are up")
            environment = {
                **stack.endpoints.environment(),
                "MOOT_STATE_DIRECTORY": str(work / "services"),
                "MOOT_LOG_LEVEL": "WARNING",
            }
            for name in [n for n in os.environ if n.startswith("MOOT_")]:
                del os.environ[name]
            os.environ.update(environment)
            settings = load_settings()
            registry = SchemaRegistry(settings.schema_registry_url)
            create_topics(settings)
            registry.register_all()
            store = BlobStore(settings)
            store.ensure_bucket()
            supervisor = Supervisor(environment, work / "logs")
            producer = FastProducer(settings, registry)
            try:
                yield BenchStack(settings, registry, store, supervisor, producer)
            finally:
                supervisor.stop_all()
                # Clients that nobody uses any more would complain of Kafka's end.
                gc.collect()
    finally:
        os.environ.clear()
        os.environ.update(saved)
        shutil.rmtree(work, ignore_errors=True)


class Process(NamedTuple):
    """What Linux says of a process.

    Attributes:
        pid: Its id.
        parent: Its parent's.
        session: Its session's leader's.
        cpu_s: Processor time so far, user's and system's.
        pages: Resident memory.
    """

    pid: int
    parent: int
    session: int
    cpu_s: float
    pages: int


def list_processes() -> Iterator[Process]:
    """Yield all live processes; none where there is no /proc."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended meanwhile
        # proc(5): fields 4, 6, 14, 15 and 24, counted behind the name, which may hold
        # anything.
        fields = [int(field) for field in stat.rpartition(")")[2].split()[1:22]]
        cpu_s = (fields[10] + fields[11]) / os.sysconf("SC_CLK_TCK")
        yield Process(int(entry.name), fields[0], fields[2], cpu_s, fields[20])


def measure_cpu_s(leader: int) -> float | None:
    """Return the processor time of all live processes of a session; None if unknown.

    Args:
        leader: Process id of the session's leader.
    """
    if not Path("/proc/self/stat").exists():
        return None
    return sum(p.cpu_s for p in list_processes() if p.session == leader)


def admit(
    stack: BenchStack,
    operator: Operator,
    federation_id: str,
    agents: Mapping[str, SigningKey],
) -> int:
    """Admit agents, wait until the ledger says so; returns the offset after it."""
    operator.admit(federation_id, {n: key.public_key for n, key in agents.items()})
    for record in stack.follow_ledger(federation_id):
        block = stack.open_block(record)
        if block.first_leaf_index + len(block.leaves) > len(agents):
            return record.offset + 1
    raise AssertionError("follow_ledger does not end")


def audit_ledger(
    stack: BenchStack,
    federation_id: str,
    operator_key: bytes,
    *,
    fetch_blob: FetchBlob | None = None,
    num_fetches: int = 2,
) -> Report:
    """Audit what is on Kafka as `moot audit` does, checkpoints included."""
    report = run_audit(
        stack.read(topics.LEDGER, federation_id),
        federation_id=federation_id,
        unframe=stack.registry.unframe_trusted,
        fetch_blob=fetch_blob,
        checkpoints=stack.read(topics.CHECKPOINTS, federation_id),
        operator_key=operator_key,
        num_fetches=num_fetches,
    ).report
    demand_sound(report, report.num_leaves)
    return report


def demand_sound(report: Report, num_leaves: int) -> None:
    """Return if an audit found nothing.

    Raises:
        StackError: it did, or did not see so many leaves.
    """
    if not report.is_sound or report.num_leaves != num_leaves:
        first = report.findings[0] if report.findings else "leaves are missing"
        raise StackError(f"the audit found {first}", "A bug of the benchmark or worse.")
