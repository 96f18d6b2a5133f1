"""Running Folkmoot's services: one in this process, or several as child processes."""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from adapters import alive
from adapters.durable import describe_holder, lock_file
from cli.extras import demand
from cli.modes import IMPORTS as MODE_IMPORTS
from cli.modes import SERVICES as MODE_SERVICES
from cli.stack.fork_server import ForkServer
from cli.stack.processes import (
    LOOPBACK,
    ONE_THREAD,
    Child,
    StackError,
    find_free_ports,
    kill_owned,
    last_lines,
    spawn_owned,
)
from protocol.deciders import DECIDERS

if TYPE_CHECKING:
    from adapters.settings import Settings
    from ledger.signing import SigningKey
    from schemas.events import LedgerNode

log = logging.getLogger(__name__)

FAUST_SERVICES: Final = ("sequencer", *DECIDERS, "aggregator")
"""Each is a module in `streams.apps`."""
NODE_PORTS: Final = {"ledger-node": 7400, "log": 7480}
"""Where a ledger node and the log server listen by default."""
LOCK_FILE: Final = "lock"
_locks: Final[list[IO[bytes]]] = []
"""Of this process, held until it ends."""
LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_RESTARTS: Final = 5
STEADY_S: Final = 60.0
"""A service that ran for so long did not fail at its start."""
MAX_BACKOFF_S: Final = 60.0
STOP_TIMEOUT_S: Final = 10.0
IMPORTS: Final = (
    "cli.main",
    "cli.node",
    "cli.operate",
    "consumers.export.exporter",
    "consumers.node.service",
    "producers.agent.agent",
    "producers.timer",
    "streams.aggregator",
    "streams.deciding",
    "streams.sequencer",
    *MODE_IMPORTS,
)
"""What services and agents import, for a fork server."""
TRAINING_IMPORTS: Final = ("producers.agent.training", "onnx")
"""What agents and the exporter import besides: torch. Not onnxruntime, which takes no
time and starts a thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """Options of `moot serve`; few services use most of them."""

    federation: str | None = None
    name: str | None = None
    allowed_prefixes: tuple[str, ...] = ()
    min_cohort: int | None = None
    host: str | None = None
    port: int | None = None
    operator_key: bytes | None = None
    genesis: bytes | None = None
    peers: tuple[str, ...] = ()

    def demand_federation(self, service: str) -> str:
        """Return the federation.

        Raises:
            StackError: none was given.
        """
        if self.federation is None:
            msg = f"the {service} serves one federation"
            raise StackError(msg, "Name it: --federation NAME.")
        return self.federation

    def demand_name(self, service: str, how: str) -> str:
        """Return the service's name.

        Args:
            service: The service's kind.
            how: Where names come from, as text.

        Raises:
            StackError: none was given.
        """
        if self.name is None:
            msg = f"a {service} needs a name"
            raise StackError(msg, f"Name it: --name NAME; {how}.")
        return self.name


def run_service(service: str, options: ServiceOptions) -> None:
    """Run one service in this process until it is told to stop.

    Raises:
        StackError: there is no such service, it needs a federation or a name, or an
            extra is missing.
    """
    if service not in SERVICES:
        msg = f"there is no service {service!r}"
        raise StackError(msg, f"The services are {', '.join(SERVICES)}.")
    SERVICES[service](options)


def _run_app(service: str, _options: ServiceOptions) -> None:
    demand("services")
    from streams.app import serve

    serve(importlib.import_module(f"streams.apps.{service}").service)


def _run_timer(options: ServiceOptions) -> None:
    with _serving("timer", options) as serving:
        from producers.timer import Timer

        Timer(*serving).run(_stop_on_signal())


def _run_exporter(options: ServiceOptions) -> None:
    demand("exporter")
    with _serving("exporter", options, needs_minio=True) as serving:
        from consumers.export.exporter import Exporter

        settings, federation, _ = serving
        exporter = Exporter(
            *serving,
            options.allowed_prefixes,
            directory=settings.state_directory / "exporter" / federation,
        )
        exporter.run(_stop_on_signal())


@contextmanager
def _serving(
    service: str, options: ServiceOptions, *, needs_minio: bool = False
) -> Iterator[tuple[Settings, str, SigningKey]]:
    """Set up what serves one federation, and has a key."""
    federation = options.demand_federation(service)
    from adapters import telemetry
    from adapters.heartbeats import beating
    from adapters.keys import key_path, load_or_create_key
    from adapters.settings import load_settings
    from adapters.topic_config import demand_topics

    settings = load_settings()
    if needs_minio:
        settings.demand_minio()
    _take_place(settings.state_directory / service / federation)
    _log_to_stderr(settings.log_level)
    demand_topics(settings)
    _warn_if_unfounded(settings, federation)
    telemetry.configure(f"moot-{service}", settings.otlp_endpoint)
    key = load_or_create_key(key_path(settings.state_directory / "keys", service))
    with beating(
        settings, key, service, settings.instance_id, federation_id=federation
    ):
        yield settings, federation, key
    telemetry.shut_down()


def _take_place(directory: Path) -> None:
    """Keep others from a service's directory until this process ends.

    Raises:
        StackError: another process has it.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = directory / LOCK_FILE
    try:
        _locks.append(lock_file(lock))
    except BlockingIOError:
        raise StackError(
            f"{describe_holder(lock)} serves in {directory}",
            "Stop it first, or give this one its own MOOT_STATE_DIRECTORY.",
        ) from None


def _warn_if_unfounded(settings: Settings, federation: str) -> None:
    from cli.federations import warn_if_unfounded

    work = partial(warn_if_unfounded, settings, federation)
    alive.start_thread(work, "look for the federation")


def _run_node(service: str, asked: ServiceOptions) -> None:
    from adapters.heartbeats import beating
    from adapters.keys import key_path, load_or_create_key
    from adapters.settings import load_settings
    from cli.node import node_directory
    from consumers.node.service import NodeOptions, NodeService

    federation = asked.demand_federation(service)
    is_node = service == "ledger-node"
    name = ""
    if is_node:
        name = asked.demand_name("ledger node", "`moot node init` makes its key")
    settings = load_settings()
    directory = settings.state_directory / "log" / federation
    if is_node:
        directory = node_directory(settings, name)
    else:
        _take_place(directory)
    _log_to_stderr(settings.log_level)
    _warn_if_unfounded(settings, federation)
    if settings.has_minio:
        settings.demand_minio()
    elif not is_node:
        log.info("there are no settings for MinIO: the log is not copied there")
    options = NodeOptions(
        federation_id=federation,
        directory=directory,
        is_node=is_node,
        host=asked.host or LOOPBACK,
        port=NODE_PORTS[service] if asked.port is None else asked.port,
        operator_key=asked.operator_key,
        genesis=asked.genesis,
        peers=asked.peers,
        is_mirrored=not is_node and settings.has_minio,
        rechecks=is_node and settings.has_minio,
    )
    node = NodeService(settings, options)
    # A log server signs nothing else.
    key = node.key or load_or_create_key(
        key_path(settings.state_directory / "keys", service)
    )
    name = name or settings.instance_id
    with beating(settings, key, service, name, federation_id=federation):
        node.run(_stop_on_signal())


def _run_all(options: ServiceOptions) -> None:
    from adapters.settings import load_settings
    from cli.stack.supervise import serve_all

    demand("services")
    settings = load_settings()
    _log_to_stderr(settings.log_level)
    serve_all(settings, options.federation, _stop_on_signal())


SERVICES: Final[Mapping[str, Callable[[ServiceOptions], None]]] = {
    **{name: partial(_run_app, name) for name in FAUST_SERVICES},
    **MODE_SERVICES,
    "timer": _run_timer,
    "exporter": _run_exporter,
    **{name: partial(_run_node, name) for name in NODE_PORTS},
    "all": _run_all,
}
"""All that `moot serve` runs, by name."""


def run_agent(
    settings: Any,
    *,
    federation: str,
    agent_id: str,
    operator_key: bytes,
    genesis: bytes | None,
    directory: Path | None,
    data_config: str,
    allowed_prefixes: tuple[str, ...],
    min_cohort: int | None = None,
    modes: tuple[str, ...] = (),
    task: bytes | None = None,
) -> None:
    """Run an agent in this process until it is told to stop.

    Raises:
        StackError: what it trains with is not installed, or its configuration is not
            JSON.
    """
    demand("agent")
    from adapters import telemetry
    from adapters.heartbeats import beating
    from adapters.topic_config import warn_of_topics
    from producers.agent.agent import Agent, AgentOptions
    from producers.agent.terms import Floors

    try:
        own_config = json.loads(data_config)
    except ValueError as error:
        msg = f"--data-config is not JSON: {error}"
        raise StackError(
            msg, "For example: --data-config '{\"organisation\": 0}'"
        ) from None
    agreed = _parse_modes(modes or settings.modes.split(","))
    settings.demand_minio()
    _log_to_stderr(settings.log_level)
    # The agent cannot mend them, and the services refuse to run on them.
    warn_of_topics(settings)
    _warn_if_unfounded(settings, federation)
    telemetry.configure(f"moot-agent-{agent_id}", settings.otlp_endpoint)
    options = AgentOptions(
        federation_id=federation,
        agent_id=agent_id,
        operator_key=operator_key,
        genesis=genesis,
        directory=directory or agent_directory(settings, federation, agent_id),
        allowed_prefixes=allowed_prefixes,
        data_config=own_config,
        floors=Floors(
            min_cohort=min_cohort or settings.min_cohort,
            modes=agreed,
        ),
        task=task,
    )
    agent = Agent(settings, options)
    with beating(settings, agent.key, "agent", agent_id, federation_id=federation):
        agent.run(_stop_on_signal())
    telemetry.shut_down()


def agent_directory(settings: Any, federation: str, agent_id: str) -> Path:
    """Return where an agent keeps its state by default."""
    directory: Path = settings.state_directory / "agents" / federation / agent_id
    return directory


def _parse_modes(names: Sequence[str]) -> tuple[str, ...]:
    from protocol.modes import MODES

    named = tuple(name.strip().lower() for name in names if name.strip())
    unknown = set(named) - set(MODES)
    if unknown:
        msg = f"no such mode: {', '.join(sorted(unknown))}"
        raise StackError(msg, f"The modes are {', '.join(MODES)}.")
    return named or tuple(MODES)


def _log_to_stderr(level: str) -> None:
    logging.basicConfig(level=level, format=LOG_FORMAT, force=True)
    # Our readers report that Kafka is away, and only once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)


def _stop_on_signal() -> Callable[[], bool]:
    stop = threading.Event()

    def hear(*_: object) -> None:
        if not stop.is_set():
            log.info("stopping")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hear)
    return stop.is_set


@dataclass
class Supervisor:
    """Our children: started, watched, restarted when they fail, stopped with us.

    A service that fails exits (it never skips a record), so restarting it is the
    whole of error handling: it reads the same record again.
    """

    environment: Mapping[str, str]
    logs: Path
    fork_server: ForkServer | None = None
    """What starts them; None to start each afresh."""
    gives_up: bool = True
    """Whether a child that keeps failing is an error. Otherwise it is started again
    each time later."""
    _commands: dict[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    _processes: dict[str, Child] = field(default_factory=dict)
    _restarts: dict[str, int] = field(default_factory=dict)
    _errands: list[Child] = field(default_factory=list)
    _started_s: dict[str, float] = field(default_factory=dict)
    _due_s: dict[str, float] = field(default_factory=dict)

    def start(self, name: str, *arguments: str, module: str = "cli.main") -> None:
        """Start `python -m module`, which is `moot`, as a child called ``name``."""
        self._commands[name] = module, arguments
        self._processes[name] = self._spawn(name, module, arguments)

    def run(self, name: str, module: str, *arguments: str) -> Child:
        """Start `python -m module`, which ends by itself and is not started again.

        Args:
            name: What it is called; its output goes to the log of that name.
            module: The program, with a function `main`.
            *arguments: Its command line.
        """
        child = self._spawn(name, module, arguments)
        self._errands.append(child)
        return child

    def _spawn(self, name: str, module: str, arguments: Sequence[str]) -> Child:
        log_path = self.log_path(name)
        self._started_s[name] = time.monotonic()
        if self.fork_server is not None:
            return self.fork_server.fork(
                module, arguments, env=self.environment, name=name, log_path=log_path
            )
        return spawn_owned(
            [sys.executable, "-m", module, *arguments],
            env={**ONE_THREAD, **os.environ, **self.environment},
            log_path=log_path,
        )

    def start_services(self, federation: str) -> None:
        """Start every service that one federation needs."""
        for service in FAUST_SERVICES:
            self.start(service, "serve", service)
        for service in ("timer", "exporter"):
            self.start(service, "serve", service, "--federation", federation)

    def start_nodes(
        self, settings: Settings, federation: str, names: Sequence[str], *more: str
    ) -> tuple[LedgerNode, ...]:
        """Start ledger nodes, making their keys; returns them by name."""
        from cli.node import make_node

        nodes = []
        for name, port in zip(names, find_free_ports(len(names)), strict=True):
            nodes.append(make_node(settings, name, f"http://{LOOPBACK}:{port}"))
            self.start(
                f"node-{name}", "serve", "ledger-node", "--name", name,
                "--port", str(port), "--federation", federation, *more,
            )  # fmt: skip
        return tuple(nodes)

    def log_path(self, name: str) -> Path:
        """Return where a child's output goes."""
        return self.logs / f"{name}.log"

    def pid(self, name: str) -> int:
        """Return the process id that leads a child's session."""
        return self._processes[name].pid

    def watch(self) -> list[str]:
        """Restart what has ended; returns its names.

        Raises:
            StackError: a child keeps failing; shows the end of its log.
        """
        restarted = []
        for name, process in self._processes.items():
            code = process.poll()
            if code is None or (not self.gives_up and not self._is_due(name, code)):
                continue
            self._restarts[name] = self._restarts.get(name, 0) + 1
            if self.gives_up and self._restarts[name] > MAX_RESTARTS:
                msg = f"{name} keeps failing:\n{last_lines(self.log_path(name))}"
                raise StackError(msg, f"Its whole log is {self.log_path(name)}.")
            restarted.append(name)
        for name in restarted:
            self._processes[name] = self._spawn(name, *self._commands[name])
        return restarted

    def _is_due(self, name: str, code: int) -> bool:
        """Return whether a child that has ended may be started again by now."""
        now_s = time.monotonic()
        if name not in self._due_s:
            if now_s - self._started_s[name] > STEADY_S:
                self._restarts.pop(name, None)
            wait_s = compute_backoff(self._restarts.get(name, 0))
            self._due_s[name] = now_s + wait_s
            log.warning(
                "%s ended with exit code %d; starting it again in %.0f s: %s",
                name, code, wait_s, self.log_path(name),
            )  # fmt: skip
        if now_s < self._due_s[name]:
            return False
        del self._due_s[name]
        return True

    def kill(self, name: str) -> None:
        """End a child as a crash would (SIGKILL); `watch` brings it back."""
        kill_owned(self._processes[name])

    def stop(self, name: str) -> None:
        """Stop one child for good."""
        process = self._processes.pop(name)
        process.terminate()
        _wait_or_kill([process])

    def stop_all(self) -> None:
        """Stop every child: politely first, then not."""
        processes = [*self._processes.values(), *self._errands]
        self._processes.clear()
        self._errands.clear()
        for process in processes:
            process.terminate()
        _wait_or_kill(processes)


def compute_backoff(num_restarts: int) -> float:
    """Return how long to wait before a service is started again, in seconds.

    Args:
        num_restarts: How often it was since it last ran well, 0 or more.
    """
    return min(MAX_BACKOFF_S, 2.0 ** min(num_restarts, 10) - 1)


def _wait_or_kill(processes: list[Child]) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_owned(process)
