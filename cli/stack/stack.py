"""The local stack: Kafka, a schema registry and MinIO, without Docker or root.

A stack lives in one directory: data, logs, a state file and MinIO's credentials. It is
either *owned* (its services die with this process, whatever ends it) or *detached*
(`moot up`; it runs until `moot down`). Everything listens on 127.0.0.1 alone.

    with LocalStack(directory) as stack:
        endpoints = stack.endpoints

Nothing here is for production: one broker, no replication, no TLS.
"""

import base64
import http.client
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import IO, Self
from uuid import UUID

from adapters.durable import PRIVATE, lock_file, unlock_file, write_file
from cli.stack.fetch import (
    DEFINITIONS,
    Artifacts,
    ensure_fetched,
)
from cli.stack.processes import (
    LOOPBACK,
    Progress,
    StackError,
    find_free_ports,
    kill_group,
    last_lines,
    process_started,
    spawn_detached,
    spawn_owned,
)

KAFKA, REGISTRY, MINIO = "kafka", "schema-registry", "minio"
SERVICES = (KAFKA, REGISTRY, MINIO)
# The registry says goodbye to Kafka; with Kafka gone first it would wait for it.
_STOP_ORDER = (REGISTRY, MINIO, KAFKA)

_READY_TIMEOUT_S = 90.0  # a cold disk and a busy core: ten times what it usually takes
_STOP_TIMEOUT_S = 10.0
_PORT_ATTEMPTS = 3
_POLL_S = 0.05
_PROBE_TIMEOUT_S = 2.0

_KAFKA_JVM = ("-Xms512m", "-Xmx512m", "-XX:-UsePerfData", "-Djava.awt.headless=true")
# The registry lives briefly and does little: the first compiler tier and the serial
# collector halve its start (10 s to 5 s on two cores). Kafka keeps the defaults, which
# decide its throughput.
_BRIEF_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a stack's services are, and the credentials for them."""

    bootstrap_servers: str
    schema_registry_url: str
    minio_endpoint: str
    minio_access_key: str
    minio_secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """Return the same as the environment variables that our settings read."""
        return {
            "MOOT_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "MOOT_SCHEMA_REGISTRY_URL": self.schema_registry_url,
            "MOOT_MINIO_ENDPOINT": self.minio_endpoint,
            "MOOT_MINIO_ACCESS_KEY": self.minio_access_key,
            "MOOT_MINIO_SECRET_KEY": self.minio_secret_key,
        }


class StackState(StrEnum):
    """What a stack's directory says, checked against what really runs."""

    STOPPED = "stopped"
    RUNNING = "running"  # every service runs and answers
    DEGRADED = "degraded"  # some run, or some do not answer
    STALE = "stale"  # the state file is there, its processes are not


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service of a stack."""

    name: str
    pid: int
    alive: bool
    healthy: bool
    endpoint: str
    log_path: Path


@dataclass(frozen=True, slots=True)
class StackStatus:
    """A stack as `moot status` shows it."""

    directory: Path
    state: StackState
    detached: bool
    services: tuple[ServiceStatus, ...]
    endpoints: Endpoints | None


@dataclass(frozen=True, slots=True)
class _Ports:
    kafka: int
    kafka_controller: int
    registry: int
    registry_management: int
    minio: int

    @classmethod
    def choose(cls) -> Self:
        """Ports that are free now; another process may still take one first."""
        return cls(*find_free_ports(5))

    def free(self) -> bool:
        try:
            for port in asdict(self).values():
                socket.create_server((LOOPBACK, port)).close()
        except OSError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Process:
    """A service as the state file remembers it."""

    pid: int  # leads a session of its own
    started: str  # tells this process from a later one with the same id

    def alive(self) -> bool:
        return process_started(self.pid) == self.started


@dataclass(frozen=True, slots=True)
class _State:
    detached: bool
    owner: _Process
    ports: _Ports
    services: dict[str, _Process]


class _Files:
    """The layout of a stack's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state.json"
        self.ports = root / "ports.json"
        self.credentials = root / "minio-credentials.json"
        self.lock = root / "lock"

    def data(self, service: str) -> Path:
        return self.root / service

    def log(self, service: str) -> Path:
        return self.root / "logs" / f"{service}.log"


def default_directory() -> Path:
    """Return `$FOLKMOOT_STATE`, or `folkmoot` in the user's state directory."""
    if chosen := os.environ.get("FOLKMOOT_STATE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "folkmoot"


class LocalStack:
    """One stack in one directory; starting it again finds the data it had."""

    def __init__(self, directory: Path, *, detached: bool = False) -> None:
        """Name the stack; nothing happens before `start`.

        Args:
            directory: Holds everything of this stack; created when missing.
            detached: Whether the services survive this process.
        """
        self.directory = directory.absolute()
        self.detached = detached
        self.ready_after_s: dict[str, float] = {}
        self._files = _Files(self.directory)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock: IO[bytes] | None = None
        self._artifacts: Artifacts | None = None
        self._ports: _Ports | None = None

    @property
    def endpoints(self) -> Endpoints:
        """Where the services are; only after `start`."""
        return _endpoints(self._files, self._chosen_ports())

    def start(self, progress: Progress | None = None) -> Endpoints:
        """Start every service and wait until each answers.

        Raises:
            StackError: With what to do. Nothing of the stack is left running.
        """
        say = progress or _silent
        self._artifacts = ensure_fetched(say)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.chmod(0o700)
        self._take_directory(say)
        try:
            for attempt in range(1, _PORT_ATTEMPTS + 1):
                self._ports = self._choose_ports(fresh=attempt > 1)
                try:
                    self._start_all(say)
                    break
                except _PortTakenError as taken:
                    self._stop_all()
                    if attempt == _PORT_ATTEMPTS:
                        raise taken.error from None
                    say(taken.service, "a port was taken meanwhile; choosing others")
        except BaseException:
            self.stop()
            raise
        if self.detached:
            self._release_directory()
        return self.endpoints

    def stop(self) -> None:
        """Stop every service; data, logs and credentials stay."""
        self._stop_all()
        self._files.state.unlink(missing_ok=True)
        self._release_directory()

    def kill(self, service: str) -> None:
        """End one service as a crash would (SIGKILL)."""
        process = self._processes.pop(service)
        kill_group(process.pid)
        _reap(process)
        self._write_state()

    def start_service(self, service: str, progress: Progress | None = None) -> None:
        """Start one service again, on the ports and the data it had."""
        if service in self._processes and self._processes[service].poll() is None:
            raise ValueError(f"{service} is running")
        self._spawn(service)
        self._wait_ready(service, progress or _silent, time.monotonic())

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start_all(self, say: Progress) -> None:
        started = time.monotonic()
        self._spawn(MINIO)
        say(MINIO, "starting")
        self._spawn(KAFKA)
        say(KAFKA, "starting")
        self._wait_ready(KAFKA, say, started)
        registry_started = time.monotonic()
        self._spawn(REGISTRY)
        say(REGISTRY, "starting")
        self._wait_ready(MINIO, say, started)
        self._wait_ready(REGISTRY, say, registry_started)

    def _spawn(self, service: str) -> None:
        assert self._artifacts is not None, "start() comes first"
        prepare = {KAFKA: _kafka, REGISTRY: _registry, MINIO: _minio}[service]
        argv, variables = prepare(self._files, self._artifacts, self._chosen_ports())
        spawn = spawn_detached if self.detached else spawn_owned
        self._processes[service] = spawn(
            argv,
            env=_inherited_environment() | variables,
            log_path=self._files.log(service),
            cwd=self._files.data(service),
        )
        self._write_state()

    def _wait_ready(self, service: str, say: Progress, started: float) -> None:
        process = self._processes[service]
        log = self._files.log(service)
        probe = _probe(service, self.endpoints, self._files)
        while True:
            # In this order: a service that lost its port to a stranger must not be
            # declared ready because the stranger answered.
            answered = probe()
            if process.poll() is not None:
                tail = last_lines(log)
                error = StackError(
                    f"{service} ended at once (exit code {process.returncode}). "
                    f"The end of its log:\n{tail}",
                    f"The whole log is {log}.",
                )
                if "already in use" in tail or "BindException" in tail:
                    raise _PortTakenError(service, error)
                raise error
            if answered:
                break
            waited = time.monotonic() - started
            if waited > _READY_TIMEOUT_S:
                raise StackError(
                    f"{service} did not answer within {waited:.0f} s. "
                    f"The end of its log:\n{last_lines(log)}",
                    f"The whole log is {log}. The stack needs about 1.5 GiB of free "
                    "memory; on a busy machine, try again.",
                )
            time.sleep(_POLL_S)
        self.ready_after_s[service] = time.monotonic() - started
        say(service, f"ready after {self.ready_after_s[service]:.1f} s")

    def _stop_all(self) -> None:
        for service in _STOP_ORDER:
            if process := self._processes.get(service):
                _terminate(process.pid, partial(_runs, process))
                _reap(process)
        self._processes.clear()

    def _take_directory(self, say: Progress) -> None:
        """Lock the directory, and make sure nothing of an earlier stack runs in it."""
        try:
            self._lock = lock_file(self._files.lock)
        except BlockingIOError:
            raise StackError(
                f"Another process is using the stack in {self.directory}.",
                "Stop it first, or use another directory.",
            ) from None
        state = _read_state(self._files)
        if state is None:
            return
        if not state.detached:
            # Its owner is gone (we hold the lock); its guards are ending the services.
            say("stack", "waiting for the previous stack's services to end")
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while _any_alive(state) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        if _any_alive(state):
            self._release_directory()
            raise StackError(
                f"A stack is already running in {self.directory}.",
                "`moot status` shows it, `moot down` stops it.",
            )
        self._files.state.unlink()

    def _release_directory(self) -> None:
        if self._lock is not None:
            unlock_file(self._lock)
            self._lock = None

    def _choose_ports(self, *, fresh: bool) -> _Ports:
        """Take the last ports again if they are free, so that clients find us."""
        path = self._files.ports
        if path.exists() and not fresh:
            ports = _Ports(**json.loads(path.read_text(encoding="utf-8")))
            if ports.free():
                return ports
        ports = _Ports.choose()
        _write_private(path, asdict(ports))
        return ports

    def _chosen_ports(self) -> _Ports:
        assert self._ports is not None, "start() comes first"
        return self._ports

    def _write_state(self) -> None:
        def remember(pid: int) -> dict[str, object]:
            return asdict(_Process(pid, process_started(pid) or "ended"))

        _write_private(
            self._files.state,
            {
                "detached": self.detached,
                "owner": remember(os.getpid()),
                "ports": asdict(self._chosen_ports()),
                "services": {
                    name: remember(process.pid)
                    for name, process in self._processes.items()
                },
            },
        )


def read_endpoints(directory: Path) -> Endpoints | None:
    """Where the services of a directory's stack are; None if it was stopped.

    Asks no service: `read_status` also tells whether they are well.
    """
    files = _Files(directory.absolute())
    state = _read_state(files)
    return None if state is None else _endpoints(files, state.ports)


def read_status(directory: Path) -> StackStatus:
    """Tell what runs in a directory, asking each service whether it is well."""
    files = _Files(directory.absolute())
    state = _read_state(files)
    if state is None:
        return StackStatus(files.root, StackState.STOPPED, False, (), None)
    endpoints = _endpoints(files, state.ports)
    where = {
        KAFKA: endpoints.bootstrap_servers,
        REGISTRY: endpoints.schema_registry_url,
        MINIO: endpoints.minio_endpoint,
    }
    services = []
    for name, process in state.services.items():
        alive = process.alive()
        healthy = alive and _probe(name, endpoints, files)()
        services.append(
            ServiceStatus(
                name, process.pid, alive, healthy, where[name], files.log(name)
            )
        )
    if not any(service.alive for service in services):
        summary = StackState.STALE
    elif len(services) == len(SERVICES) and all(s.healthy for s in services):
        summary = StackState.RUNNING
    else:
        summary = StackState.DEGRADED
    return StackStatus(files.root, summary, state.detached, tuple(services), endpoints)


def stop_detached(directory: Path) -> bool:
    """Stop the detached stack of a directory.

    Returns:
        Whether anything was running.

    Raises:
        StackError: The stack belongs to a live process, which must stop it.
    """
    files = _Files(directory.absolute())
    state = _read_state(files)
    if state is None:
        return False
    if not state.detached and state.owner.alive():
        raise StackError(
            f"The stack in {files.root} belongs to process {state.owner.pid}.",
            "End that process (Ctrl-C); its stack ends with it.",
        )
    was_running = _any_alive(state)
    for name in _STOP_ORDER:
        if (process := state.services.get(name)) and process.alive():
            _terminate(process.pid, process.alive)
    files.state.unlink(missing_ok=True)
    return was_running


class _PortTakenError(Exception):
    """A service could not bind; worth another attempt with other ports."""

    def __init__(self, service: str, error: StackError) -> None:
        super().__init__(service)
        self.service = service
        self.error = error


def _runs(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is None


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _silent(_service: str, _message: str) -> None:
    pass


def _terminate(pid: int, alive: Callable[[], bool]) -> None:
    """SIGTERM, then SIGKILL for the whole session of what does not leave in time."""
    if not alive():
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while alive():
        if time.monotonic() > deadline:
            kill_group(pid)
            return
        time.sleep(_POLL_S)


def _kafka(
    files: _Files, artifacts: Artifacts, ports: _Ports
) -> tuple[list[str], dict[str, str]]:
    data = files.data(KAFKA)
    logs = data / "data"
    data.mkdir(parents=True, exist_ok=True)
    properties = data / "server.properties"
    listeners = f"PLAINTEXT://{LOOPBACK}:{ports.kafka},CONTROLLER://{LOOPBACK}:{ports.kafka_controller}"
    text = (
        (DEFINITIONS / "server.properties").read_text(encoding="utf-8")
        + f"\nlisteners={listeners}\n"
        # A static voter: it may move to another port when the stack starts again.
        + f"controller.quorum.voters=1@{LOOPBACK}:{ports.kafka_controller}\n"
        + f"log.dirs={_escape_property(logs)}\n"
    )
    write_file(properties, text.encode())
    # Sorted: the order of a wildcard is the file system's, and would differ by machine.
    jars = sorted(artifacts.kafka_jars.glob("*.jar"))
    java = [
        artifacts.kafka_java,
        f"-Dlog4j2.configurationFile={DEFINITIONS / 'log4j2.properties'}",
    ]
    classpath = ["-cp", os.pathsep.join(str(jar) for jar in jars)]
    if not (logs / "meta.properties").exists():
        # An interrupted format leaves a directory that the broker would not take.
        shutil.rmtree(logs, ignore_errors=True)
        _format_kafka(files, [*java, *_BRIEF_JVM, *classpath], properties)
    return [*java, *_KAFKA_JVM, *classpath, "kafka.Kafka", str(properties)], {}


def _format_kafka(files: _Files, java: list[str], properties: Path) -> None:
    cluster_id = _new_cluster_id()
    run = subprocess.run(
        [
            *java,
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id}",
            f"--config={properties}",
        ],
        env=_inherited_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_READY_TIMEOUT_S,
        check=False,
    )
    if run.returncode != 0:
        raise StackError(
            f"Kafka's storage could not be formatted:\n{run.stdout}{run.stderr}",
            f"Is there space left for {files.data(KAFKA)}?",
        )


def _new_cluster_id() -> str:
    """Make an id in Kafka's form: a UUID in URL-safe base64 without padding."""
    raw = UUID(bytes=secrets.token_bytes(16), version=4).bytes
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _cluster_id(files: _Files) -> str:
    meta = files.data(KAFKA) / "data" / "meta.properties"
    for line in meta.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name == "cluster.id":
            return value
    raise StackError(
        f"{meta} names no cluster.", f"Remove {files.data(KAFKA)} and start again."
    )


def _escape_property(path: Path) -> str:
    return str(path).replace("\\", "\\\\")


def _registry(
    files: _Files, artifacts: Artifacts, ports: _Ports
) -> tuple[list[str], dict[str, str]]:
    scratch = files.data(REGISTRY)
    scratch.mkdir(parents=True, exist_ok=True)
    argv = [
        artifacts.registry_java,
        "-Xmx384m",
        *_BRIEF_JVM,
        f"-Djava.io.tmpdir={scratch}",
        "-jar",
        str(artifacts.registry_home / "quarkus-run.jar"),
    ]
    return argv, {
        "APICURIO_STORAGE_KIND": "kafkasql",
        "APICURIO_KAFKASQL_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{ports.kafka}",
        # At start it polls for snapshots until a poll of this length comes back empty:
        # with the default, 5 s, that is 15 s of waiting for what a local broker has at
        # hand. We make no snapshots; its state is the whole journal.
        "APICURIO_KAFKASQL_CONSUMER_POLL_TIMEOUT": "200",
        "QUARKUS_HTTP_HOST": LOOPBACK,
        "QUARKUS_HTTP_PORT": str(ports.registry),
        "QUARKUS_MANAGEMENT_HOST": LOOPBACK,
        "QUARKUS_MANAGEMENT_PORT": str(ports.registry_management),
        # No web page the user happens to visit may talk to it.
        "QUARKUS_HTTP_CORS_ENABLED": "false",
        "QUARKUS_LOG_CATEGORY__ORG_APACHE_KAFKA__LEVEL": "WARN",
        "QUARKUS_LOG_CATEGORY__IO_QUARKUS_HTTP_ACCESS_LOG__LEVEL": "WARN",
        "QUARKUS_BANNER_ENABLED": "false",
    }


def _minio(
    files: _Files, artifacts: Artifacts, ports: _Ports
) -> tuple[list[str], dict[str, str]]:
    data = files.data(MINIO)
    data.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = _credentials(files)
    argv = [
        str(artifacts.minio),
        "server",
        "--quiet",
        f"--address={LOOPBACK}:{ports.minio}",
        str(data / "data"),
    ]
    return argv, {
        "MINIO_ROOT_USER": access_key,
        "MINIO_ROOT_PASSWORD": secret_key,
        "MINIO_BROWSER": "off",  # one listener less
        "MINIO_UPDATE": "off",  # it is pinned
    }


def _credentials(files: _Files) -> tuple[str, str]:
    """MinIO's root user and password: random, made once, as old as the data."""
    path = files.credentials
    if not path.exists():
        _write_private(
            path,
            {
                "access_key": f"moot-{secrets.token_hex(6)}",
                "secret_key": secrets.token_urlsafe(30),
            },
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["access_key"], found["secret_key"]


def _endpoints(files: _Files, ports: _Ports) -> Endpoints:
    access_key, secret_key = _credentials(files)
    return Endpoints(
        bootstrap_servers=f"{LOOPBACK}:{ports.kafka}",
        schema_registry_url=f"http://{LOOPBACK}:{ports.registry}/apis/ccompat/v7",
        minio_endpoint=f"{LOOPBACK}:{ports.minio}",
        minio_access_key=access_key,
        minio_secret_key=secret_key,
    )


def _inherited_environment() -> dict[str, str]:
    """Keep of ours what a service needs to run, nothing that configures it."""
    wanted = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "USER", "LOGNAME")
    return {name: os.environ[name] for name in wanted if name in os.environ}


def _probe(service: str, endpoints: Endpoints, files: _Files) -> Callable[[], bool]:
    """Return a check whether a service answers and is ours."""
    if service == KAFKA:
        return lambda: _kafka_answers(endpoints.bootstrap_servers, files)
    if service == REGISTRY:
        authority = endpoints.schema_registry_url.split("/")[2]
        return lambda: _http_ok(authority, "/apis/ccompat/v7/subjects")
    return lambda: _http_ok(endpoints.minio_endpoint, "/minio/health/ready")


def _kafka_answers(bootstrap_servers: str, files: _Files) -> bool:
    host, _, port = bootstrap_servers.rpartition(":")
    try:
        # librdkafka backs off and complains when nobody listens yet; ask TCP first.
        socket.create_connection((host, int(port)), _PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = logging.getLogger("cli.stack.stack.probe")
    quiet.setLevel(logging.CRITICAL + 1)
    admin = AdminClient(
        {"bootstrap.servers": bootstrap_servers, "log_level": 0}, logger=quiet
    )
    try:
        metadata = admin.list_topics(timeout=_PROBE_TIMEOUT_S)
    except KafkaException:
        return False
    return bool(metadata.cluster_id == _cluster_id(files) and metadata.brokers)


def _http_ok(authority: str, path: str) -> bool:
    # http.client, not urllib: a proxy configured for the internet has no say here.
    connection = http.client.HTTPConnection(authority, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _read_state(files: _Files) -> _State | None:
    """Return what the state file says, or None if there is none."""
    try:
        found = json.loads(files.state.read_text(encoding="utf-8"))
        return _State(
            detached=found["detached"],
            owner=_Process(**found["owner"]),
            ports=_Ports(**found["ports"]),
            services={n: _Process(**p) for n, p in found["services"].items()},
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{files.state} cannot be read: {error!r}.",
            "If no stack is running (ps), remove that file.",
        ) from error


def _any_alive(state: _State) -> bool:
    return any(process.alive() for process in state.services.values())


def _write_private(path: Path, content: Mapping[str, object]) -> None:
    write_file(path, json.dumps(content, indent=2).encode(), mode=PRIVATE)
