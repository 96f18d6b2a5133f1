"""What the integration tests stand on: real services, real agents, real records.

Nothing here is a mock. Services are the processes that `moot serve` starts, agents
those of `moot agent run`, without torch where training does not matter (`light_agent`);
or a test speaks for an agent itself, with a key of its own (`Puppet`).
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from confluent_kafka import Producer
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)

from adapters.blobs import BlobStore
from adapters.kafka import (
    MAX_RECORD_SIZE_BYTES,
    KafkaUnavailableError,
    Publisher,
    Record,
    create_topics,
    read_partition,
)
from adapters.kafka_log import ReadBlock, follow_log
from adapters.keys import key_path, load_or_create_key
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from cli.modes.mpc import start_dealer, start_parties
from cli.stack import services as cli_services
from cli.stack.fork_server import ForkServer
from cli.stack.processes import kill_owned, last_lines
from cli.stack.services import (
    FAUST_SERVICES,
    IMPORTS,
    TRAINING_IMPORTS,
    Supervisor,
)
from cli.stack.stack import Endpoints, LocalStack
from ledger.signing import SigningKey
from producers.control import Operator, Parameters, load_principals
from producers.modes.mpc import prove, share
from protocol.encoding import update_to_blob
from protocol.envelope import NO_GENESIS, sign_event
from protocol.log import OpenedLeaf
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.norm_prover import commit_update
from protocol.tensors import tensors_to_blob
from schemas import codec, topics
from schemas import events as e
from tests.paths import ROOT

EventT = TypeVar("EventT")

WAIT_S = 60.0
"""How long a test waits for what should take a second or two: two cores are slow."""
AGENTS = ("aster", "birch", "cedar")
"""The agents of the main federation."""
LIGHT_AGENT, REAL_AGENT = "tests.integration.light_agent", "cli.main"
"""Programs: the agent that trains without torch, and `moot` itself."""
PRELOADED = (
    *IMPORTS,
    *TRAINING_IMPORTS,
    "consumers.audit.auditor",
    "onnxscript",
    "tests.synthetic",
)
"""What programs here import, for the fork server: on two cores imports were most of
what these tests did."""

SYNTHETIC = e.Task(
    module="tests.synthetic:SyntheticModule",
    module_config='{"num_parameters": 21}',
    data_module="tests.synthetic:SyntheticDataModule",
    data_config="{}",
    local_epochs=1,
)
MAY_RUN = ("--allow", "tests.synthetic")
NUM_PARAMETERS = 21
PARAMETERS = Parameters(
    task=SYNTHETIC, cohort_size=256, min_cohort=1, round_duration_ms=120_000
)


def synthetic_model() -> bytes:
    """Return an initial model for `SYNTHETIC` without loading torch."""
    return tensors_to_blob(
        {
            "network.0.weight": np.full((1, 16), 0.1, dtype=np.float32),
            "network.0.bias": np.zeros(1, dtype=np.float32),
            "network.2.weight": np.full((2, 1), 0.1, dtype=np.float32),
            "network.2.bias": np.zeros(2, dtype=np.float32),
        }
    )


def wait_until(
    condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S
) -> Any:
    """Return what the condition returns as soon as it is truthy."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)
    return found


class Services:
    """A supervisor that somebody watches, as an orchestrator would."""

    def __init__(
        self,
        environment: Mapping[str, str],
        logs: Path,
        fork_server: ForkServer | None,
    ) -> None:
        self._patch = pytest.MonkeyPatch()
        # Tests kill on purpose, and a service may fail several times in an outage.
        self._patch.setattr(cli_services, "MAX_RESTARTS", 1_000)
        self.supervisor = Supervisor(environment, logs, fork_server)
        self._lock = threading.RLock()
        self._done = threading.Event()
        self._paused = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            if not self._paused.is_set():
                with self._lock:
                    self.supervisor.watch()

    def start(self, name: str, *arguments: str, module: str = "cli.main") -> None:
        with self._lock:
            self.supervisor.start(name, *arguments, module=module)

    def kill(self, name: str) -> None:
        """SIGKILL; the watcher starts it again."""
        with self._lock:
            self.supervisor.kill(name)

    @contextmanager
    def kept_down(self, *names: str) -> Iterator[None]:
        """SIGKILL, and nothing is started again before the block ends."""
        with self._lock:
            self._paused.set()
            for name in names:
                self.supervisor.kill(name)
        try:
            yield
        finally:
            self._paused.clear()

    def start_parties(self, settings: Settings, *names: str) -> tuple[e.Party, ...]:
        """Start parties as `party-<name>`, making their keys if need be."""
        with self._lock:
            return start_parties(self.supervisor, settings, names)

    def start_dealer(self, settings: Settings, name: str) -> bytes:
        """Start a dealer as `dealer-<name>`; returns its public key."""
        with self._lock:
            return start_dealer(self.supervisor, settings, name)

    def stop(self, *names: str) -> None:
        # All at once: each takes its time to end politely.
        with self._lock, ThreadPoolExecutor() as pool:
            list(pool.map(self.supervisor.stop, names))

    def names(self) -> list[str]:
        with self._lock:
            return [*self.supervisor._processes]

    def pids(self, *names: str) -> dict[str, int]:
        """The guards of these services, each of which leads a session."""
        with self._lock:
            return {name: self.supervisor._processes[name].pid for name in names}

    def restarts(self) -> dict[str, int]:
        """How often each was started again."""
        with self._lock:
            return dict(self.supervisor._restarts)

    def log_of(self, name: str, count: int = 30) -> str:
        return last_lines(self.supervisor.log_path(name), count)

    def close(self) -> None:
        self._done.set()
        self._watcher.join()
        with self._lock:
            self.supervisor.stop_all()
        self._patch.undo()


def find_worker(pid: int) -> int:
    """Return what a guard started, if that is what it is: the one that uses memory."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return find_worker(int(children[0])) if len(children) == 1 else pid


@dataclass(frozen=True)
class SpanSeen:
    """A span as the collector received it."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    attributes: Mapping[str, Any]


class Collector:
    """A small OTLP/HTTP collector that remembers spans."""

    def __init__(self) -> None:
        self.spans: deque[SpanSeen] = deque()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.path == "/v1/traces"
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource_spans in request.resource_spans:
            named = _attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self.spans.append(
                        SpanSeen(
                            service=named["service.name"],
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            kind=span.kind,
                            attributes=_attributes(span.attributes),
                        )
                    )

    def trace(self, trace_id: str) -> list[SpanSeen]:
        return [span for span in list(self.spans) if span.trace_id == trace_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _attributes(pairs: Any) -> dict[str, Any]:
    return {p.key: getattr(p.value, p.value.WhichOneof("value")) for p in pairs}


@dataclass
class World:
    """A running stack with Folkmoot's services, shared by the whole session."""

    stack: LocalStack
    directory: Path
    settings: Settings
    environment: Mapping[str, str]
    services: Services
    collector: Collector
    registry: SchemaRegistry
    store: BlobStore
    publisher: Publisher
    operator_key: SigningKey
    raw: Producer
    federations: dict[str, Federation] = field(default_factory=dict)

    @property
    def endpoints(self) -> Endpoints:
        return self.stack.endpoints

    def moot(
        self, *arguments: str, timeout_s: float = 90, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `moot` to its end, against this stack unless told otherwise."""
        return run_moot(
            self.services.supervisor.fork_server,
            *arguments,
            timeout_s=timeout_s,
            **{**self.environment, **environment},
        )

    def found(self, name: str, **changes: Any) -> Federation:
        """Found a federation of puppets."""
        keys = self.settings.state_directory / "keys"
        Operator(self.operator_key, self.publisher).found(
            name,
            replace(PARAMETERS, **changes),
            load_principals(keys),
            synthetic_model(),
            self.store,
        )
        return self.join(name)

    def join(self, name: str) -> Federation:
        """Return a federation that exists, or will."""
        federation = Federation(self, name)
        self.federations[name] = federation
        return federation

    def start_timer(self, federation: str) -> None:
        self.services.start(
            f"timer-{federation}", "serve", "timer", "--federation", federation
        )

    def start_exporter(self, federation: str) -> None:
        self.services.start(
            f"exporter-{federation}", "serve", "exporter", "--federation", federation,
            *MAY_RUN,
        )  # fmt: skip

    def produce(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> int:
        """Publish any bytes, as anybody could; returns the offset."""
        offsets: list[int] = []
        self.raw.produce(
            topic,
            value,
            key=key,
            headers=list(headers),
            on_delivery=lambda error, message: offsets.append(
                -1 if error else message.offset()
            ),
        )
        self.raw.flush(30)
        assert offsets, "Kafka did not confirm"
        assert offsets[0] >= 0, "Kafka did not take it"
        return offsets[0]

    def records(self, topic: str, key: str | None = None) -> list[Record]:
        """Return a topic's committed records, of one federation if named."""
        return [
            record
            for record in read_partition(self.settings, topic, 0)
            if key is None or record.key == key.encode()
        ]

    def decode(self, record: Record) -> Any:
        return codec.decode(self.registry.unframe_trusted(record.value or b""))


class Federation:
    """A federation as a test sees it: its log, read as it grows, and its operator."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self._operator: Operator | None = None
        self.leaves: list[OpenedLeaf] = []
        self.blocks: list[e.BlockSequenced] = []
        self._reader: Generator[Any, None, None] | None = None

    @property
    def genesis(self) -> bytes:
        """Hash of its genesis, once that is on the ledger."""
        if not self.leaves:
            self.wait(e.FederationConfigured)
        return self.leaves[0].sequenced.genesis

    @property
    def operator(self) -> Operator:
        """Who says what the operator says."""
        if self._operator is None:
            world = self.world
            self._operator = Operator(world.operator_key, world.publisher, self.genesis)
        return self._operator

    @property
    def events(self) -> list[Any]:
        return [leaf.sequenced.event for leaf in self.leaves]

    def read_on(self) -> None:
        """Take in what the log has beyond what was read."""
        try:
            if self._reader is None:
                self._reader = self._follow(len(self.blocks))
            item = next(self._reader)
        except KafkaUnavailableError:
            self._reader = None
            time.sleep(0.5)
            return
        if isinstance(item, ReadBlock):
            self.blocks.append(item.block)
            self.leaves.extend(item.leaves)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _follow(self, skip: int) -> Generator[Any, None, None]:
        for item in follow_log(self.world.settings, self.world.registry, self.name):
            if isinstance(item, ReadBlock) and item.block.height < skip:
                # What was read before must still be there, bit for bit.
                assert item.block == self.blocks[item.block.height]
                continue
            yield item

    def wait(
        self,
        kind: type[EventT],
        timeout_s: float = WAIT_S,
        *,
        where: Callable[[EventT], bool] = lambda _: True,
        **fields: Any,
    ) -> EventT:
        """Return the first event of this kind with these fields, once it is there."""

        def matches(event: Any) -> bool:
            return (
                isinstance(event, kind)
                and all(getattr(event, name) == fields[name] for name in fields)
                and where(event)
            )

        deadline = time.monotonic() + timeout_s
        looked = 0
        while True:
            events = self.events
            found = next(filter(matches, events[looked:]), None)
            if found is not None:
                return found
            looked = len(events)
            if time.monotonic() > deadline:
                raise AssertionError(self._explain(kind, fields, timeout_s))
            self.read_on()

    def _explain(self, kind: type, fields: Mapping[str, Any], timeout_s: float) -> str:
        tail = "\n".join(f"  {event!r:.200}" for event in self.events[-12:])
        logs = "\n".join(
            f"-- {name}\n{self.world.services.log_of(name, 6)}"
            for name in self.world.services.supervisor._processes
        )
        return (
            f"no {kind.__name__} {dict(fields)} in {self.name} within "
            f"{timeout_s:.0f} s; the last events are\n{tail}\n{logs}"
        )

    def leaf_of(self, event: Any) -> OpenedLeaf:
        return next(leaf for leaf in self.leaves if leaf.sequenced.event is event)

    def place_of(self, event: Any) -> int:
        """Return an event's leaf index."""
        return self.leaf_of(event).sequenced.leaf_index

    @property
    def config(self) -> e.FederationConfigured:
        return self.wait(e.FederationConfigured)

    def last_round(self) -> int:
        return max(
            (x.round for x in self.events if isinstance(x, e.RoundStarted)), default=0
        )

    def request_round(self) -> int:
        """Ask for the next round; returns its number."""
        number = self.last_round() + 1
        self.operator.request_round(self.name, number)
        return number

    def run_round(self, timeout_s: float = WAIT_S) -> e.ModelVersionRegistered:
        """Ask for a round and wait until its model is registered."""
        number = self.request_round()
        return self.wait(e.ModelVersionRegistered, timeout_s, round=number)

    def admit(self, *puppets: Puppet) -> None:
        self.operator.admit(
            self.name, {puppet.name: puppet.key.public_key for puppet in puppets}
        )
        for puppet in puppets:
            self.wait(e.AgentAdmitted, agent_id=puppet.name)

    def revoke(self, agent_id: str, why: str) -> None:
        """Revoke an agent, or somebody."""
        self.operator.say(
            e.AgentRevoked(federation_id=self.name, agent_id=agent_id, explanation=why)
        )

    def audit(self) -> dict[str, Any]:
        """Run `moot audit` and return its report; it must be sound."""
        finished = self.world.moot(
            "audit", "--federation", self.name, "--json", "--jobs", "1",
            "--operator-key", self.operator.public_key.hex(),
        )  # fmt: skip
        assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr
        report: dict[str, Any] = json.loads(finished.stdout)
        return report


@dataclass(frozen=True)
class Puppet:
    """An agent whose strings a test holds."""

    world: World
    federation: str
    name: str
    key: SigningKey = field(default_factory=lambda: SigningKey(os.urandom(32)))

    def update(
        self, started: e.RoundStarted, blob: bytes | None = None, **changes: Any
    ) -> e.UpdateSubmitted:
        """Return a good update for a round, its blob stored; or a changed one."""
        blob = good_blob() if blob is None else blob
        update = e.UpdateSubmitted(
            federation_id=self.federation,
            round=started.round,
            agent_id=self.name,
            base_model_sha256=started.base_model.sha256,
            update=self.world.store.store(blob),
            num_examples=10,
            loss_micros=0,
        )
        return replace(update, **changes)

    @property
    def genesis(self) -> bytes:
        """Hash of its federation's genesis; of none if nobody founded it."""
        federation = self.world.federations.get(self.federation)
        return NO_GENESIS if federation is None else federation.genesis

    def say(self, event: e.Event) -> int:
        """Sign and publish an event; returns its offset."""
        return self.world.publisher.publish(event, self.key, self.genesis)[1]

    def submit(
        self, started: e.RoundStarted, blob: bytes | None = None, **changes: Any
    ) -> e.UpdateSubmitted:
        """Publish an update."""
        update = self.update(started, blob, **changes)
        self.say(update)
        return update

    def frame(self, event: e.Event) -> tuple[bytes, list[tuple[str, bytes]]]:
        """Return an event as it would travel: value and headers."""
        data, value = self.world.registry.frame(event)
        return value, [("moot-signature", sign_event(self.key, self.genesis, data))]


class SecretPuppet(Puppet):
    """An agent of aggregation MPC whose strings a test holds.

    It does by default what an honest agent does.
    """

    def commit(
        self,
        started: e.RoundStarted,
        values: NDArray[np.int64],
        *,
        shared: NDArray[np.int64] | None = None,
        squared_bound: int | None = None,
        num_examples: int = 10,
        change: Callable[[e.UpdateCommitted], e.UpdateCommitted] = lambda event: event,
    ) -> e.UpdateCommitted:
        """Commit to an update, share and prove it.

        Args:
            started: The round.
            values: The update, shape (d,) int64.
            shared: What it shares; the same unless told.
            squared_bound: What it proves; the federation's unless told.
            num_examples: Its weight.
            change: What is done to the event before it is proved.
        """
        federation = self.world.federations[self.federation]
        state = commit_update(
            values,
            squared_bound=squared_bound or get_mpc(federation.config).norm_bound ** 2,
            entropy=os.urandom,
        )
        update = share(
            state if shared is None else replace(state, values=shared),
            started,
            federation.config,
            self.genesis,
            self.world.store,
            os.urandom,
            agent_id=self.name,
            num_examples=num_examples,
            loss_micros=0,
        )
        update = prove(
            state,
            change(update),
            federation.config,
            self.genesis,
            self.world.store,
            started_leaf_hash=federation.leaf_of(started).sequenced.leaf_hash,
        )
        self.answer(started, update)
        return update

    def answer(self, fact: e.Event, event: e.Event) -> None:
        """Publish an event in the trace of the fact that it answers."""
        leaf = self.world.federations[self.federation].leaf_of(fact)
        self.world.publisher.publish(
            event, self.key, self.genesis, traceparent=leaf.traceparent
        )


def good_blob(size: int = NUM_PARAMETERS) -> bytes:
    """Return an update that changes nothing much."""
    return update_to_blob(np.arange(size, dtype=np.int32))


def run_moot(
    fork_server: ForkServer | None,
    *arguments: str,
    timeout_s: float = 90,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run `moot` to its end, with these settings."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        said = [directory / "stdout", directory / "stderr"]
        process = Supervisor(environment, directory, fork_server).run(
            "moot", "tests.integration.apart", *map(str, said), *arguments
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            kill_owned(process)
            raise
        texts = [path.read_text(encoding="utf-8") for path in said]
    return subprocess.CompletedProcess(arguments, code, *texts)


@contextmanager
def run_world(directory: Path, fork_server: ForkServer | None) -> Iterator[World]:
    """Start the stack and every service that serves all federations."""
    collector = Collector()
    with LocalStack(directory / "stack") as stack:
        state_directory = directory / "state"
        environment = {
            **stack.endpoints.environment(),
            "MOOT_STATE_DIRECTORY": str(state_directory),
            "MOOT_OTLP_ENDPOINT": collector.endpoint,
            # Tests wait for whoever is silent to be missed.
            "MOOT_HEARTBEAT_S": "1",
        }
        settings = make_settings(stack.endpoints, state_directory)
        create_topics(settings)
        registry = SchemaRegistry(settings.schema_registry_url)
        registry.register_all()
        store = BlobStore(settings)
        store.ensure_bucket()
        keys = state_directory / "keys"
        load_principals(keys)
        services = Services(environment, directory / "logs", fork_server)
        for service in FAUST_SERVICES:
            services.start(service, "serve", service)
        world = World(
            stack=stack,
            directory=directory,
            settings=settings,
            environment=environment,
            services=services,
            collector=collector,
            registry=registry,
            store=store,
            publisher=Publisher(settings, registry),
            operator_key=load_or_create_key(key_path(keys, "OPERATOR")),
            raw=Producer(
                {
                    "log_level": 2,  # it outlives the stack
                    "bootstrap.servers": settings.bootstrap_servers,
                    "message.max.bytes": MAX_RECORD_SIZE_BYTES,
                }
            ),
        )
        try:
            yield world
        finally:
            for federation in world.federations.values():
                federation.close()
            services.close()
            collector.close()


def make_settings(endpoints: Endpoints, state_directory: Path) -> Settings:
    return Settings(
        bootstrap_servers=endpoints.bootstrap_servers,
        schema_registry_url=endpoints.schema_registry_url,
        minio_endpoint=endpoints.minio_endpoint,
        minio_access_key=endpoints.minio_access_key,  # type: ignore[arg-type]
        minio_secret_key=endpoints.minio_secret_key,  # type: ignore[arg-type]
        state_directory=state_directory,
    )


def start_agents(
    world: World,
    federation: str,
    names: Sequence[str] = AGENTS,
    *,
    program: str = LIGHT_AGENT,
) -> None:
    """Start a federation's agents as processes."""
    for index, name in enumerate(names):
        world.services.start(
            name, "agent", "run", name, "--federation", federation,
            "--operator-key", world.operator_key.public_key.hex(),
            "--data-config", json.dumps({"organisation": index}), *MAY_RUN,
            module=program,
        )  # fmt: skip


__all__ = [
    "AGENTS",
    "LIGHT_AGENT",
    "MAY_RUN",
    "NUM_PARAMETERS",
    "PARAMETERS",
    "PRELOADED",
    "REAL_AGENT",
    "ROOT",
    "SYNTHETIC",
    "Collector",
    "Federation",
    "Puppet",
    "SecretPuppet",
    "Services",
    "SpanSeen",
    "World",
    "find_worker",
    "good_blob",
    "make_settings",
    "run_moot",
    "run_world",
    "start_agents",
    "synthetic_model",
    "topics",
    "wait_until",
]
