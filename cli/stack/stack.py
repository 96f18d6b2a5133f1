"""The local stack: Kafka, a schema registry and MinIO, without Docker or root.

A stack lives in one directory: data, logs, a state file and MinIO's credentials. It is
either *owned* (its services die with this process, whatever ends it) or *detached*
(`moot up`; it runs until `moot down`). Everything listens on 127.0.0.1 alone.

    with LocalStack(directory) as stack:
        endpoints = stack.endpoints

Nothing here is for production: one broker, no replication, no TLS.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import IO, Self

from adapters.durable import describe_holder, lock_file, unlock_file
from cli.stack.backends import (
    BACKENDS,
    KAFKA,
    MINIO,
    READY_TIMEOUT_S,
    REGISTRY,
    Endpoints,
    Files,
    Ports,
    find_endpoints,
    inherited_environment,
    write_private,
)
from cli.stack.fetch import Artifacts, ensure_fetched, lock_cache, staged
from cli.stack.jvm_cache import JvmCache, find_jvm_cache
from cli.stack.processes import (
    Progress,
    StackError,
    kill_group,
    last_lines,
    process_started,
    spawn_detached,
    spawn_owned,
)

# The registry says goodbye to Kafka; with Kafka gone first it would wait for it.
_STOP_ORDER = (REGISTRY, MINIO, KAFKA)

_STOP_TIMEOUT_S = 10.0
_TRAINED_WITHIN_S = 180.0
_PORT_ATTEMPTS = 3
_POLL_S = 0.05


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
class _Process:
    """A service as the state file remembers it."""

    pid: int  # leads a session of its own
    started: str  # tells this process from a later one with the same id

    def alive(self) -> bool:
        return process_started(self.pid) == self.started


class _Adopted:
    """A service that another process started, as a `Popen` shows one."""

    stdin = None
    returncode = None  # nobody but its parent learns it

    def __init__(self, process: _Process) -> None:
        self.pid = process.pid
        self._process = process

    def poll(self) -> int | None:
        """Return a number once it has ended."""
        return None if self._process.alive() else -1

    def wait(self) -> None:
        """Wait until it has ended."""
        while self.poll() is None:
            time.sleep(_POLL_S)


@dataclass(frozen=True, slots=True)
class _State:
    detached: bool
    owner: _Process
    ports: Ports
    services: dict[str, _Process]


def default_directory() -> Path:
    """Return `$FOLKMOOT_STATE`, or `folkmoot` in the user's state directory."""
    if chosen := os.environ.get("FOLKMOOT_STATE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "folkmoot"


class LocalStack:
    """One stack in one directory; starting it again finds the data it had."""

    def __init__(
        self,
        directory: Path,
        *,
        detached: bool = False,
        artifacts: Artifacts | None = None,
    ) -> None:
        """Name the stack; nothing happens before `start`.

        Args:
            directory: Holds everything of this stack; created when missing.
            detached: Whether the services survive this process.
            artifacts: What it runs; by default, what is fetched for all stacks.
        """
        self.directory = directory.absolute()
        self.detached = detached
        self.ready_after_s: dict[str, float] = {}
        self._files = Files(self.directory)
        self._processes: dict[str, subprocess.Popen[bytes] | _Adopted] = {}
        self._lock: IO[bytes] | None = None
        self._artifacts = artifacts
        self._ports: Ports | None = None

    @property
    def endpoints(self) -> Endpoints:
        """Where the services are; only after `start`."""
        return find_endpoints(self._files, self._chosen_ports())

    def start(self, progress: Progress | None = None) -> Endpoints:
        """Start every service and wait until each answers.

        Of a detached stack of which a part is dead, that part is started again.

        Raises:
            StackError: With what to do. Nothing that was started is left running.
        """
        say = progress or _silent
        if self._artifacts is None:
            self._artifacts = add_jvm_cache(ensure_fetched(say), say)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory.chmod(0o700)
        if self._take_directory(say):
            self._mend(say)
            return self.endpoints
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

    def stop(self, timeout_s: float = _STOP_TIMEOUT_S) -> None:
        """Stop every service; data, logs and credentials stay.

        Args:
            timeout_s: How long each may take to end before it is killed.
        """
        self._stop_all(timeout_s)
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

    def _mend(self, say: Progress) -> None:
        """Start what is dead of a detached stack, where it was, with the data it had.

        Raises:
            StackError: it did not start; the rest runs on.
        """
        state = _read_state(self._files)
        assert state is not None, "a part of it runs"
        self._ports = state.ports
        for name, known in state.services.items():
            if known.alive() and BACKENDS[name].answers(self.endpoints, self._files):
                self._processes[name] = _Adopted(known)
            else:
                say(name, "does not answer; starting it again")
                _terminate(known.pid, known.alive)
        sound = {*self._processes}
        try:
            self._start_all(say)
        except BaseException:
            self._stop_all(but=sound)
            self._write_state()
            raise
        finally:
            self._release_directory()

    def _start_all(self, say: Progress) -> None:
        started = time.monotonic()
        # The registry first needs Kafka when Kafka is nearly there.
        for service in (MINIO, KAFKA, REGISTRY):
            if service not in self._processes:
                self._spawn(service)
                say(service, "starting")
        for service in (KAFKA, MINIO, REGISTRY):
            self._wait_ready(service, say, started)

    def _spawn(self, service: str) -> None:
        assert self._artifacts is not None, "start() comes first"
        argv, variables = BACKENDS[service].prepare(
            self._files, self._artifacts, self._chosen_ports()
        )
        spawn = spawn_detached if self.detached else spawn_owned
        self._processes[service] = spawn(
            argv,
            env=inherited_environment() | variables,
            log_path=self._files.log(service),
            cwd=self._files.data(service),
        )
        self._write_state()

    def _wait_ready(self, service: str, say: Progress, started: float) -> None:
        process = self._processes[service]
        log = self._files.log(service)
        endpoints, answers = self.endpoints, BACKENDS[service].answers
        while True:
            # In this order: a service that lost its port to a stranger must not be
            # declared ready because the stranger answered.
            answered = answers(endpoints, self._files)
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
            if waited > READY_TIMEOUT_S:
                raise StackError(
                    f"{service} did not answer within {waited:.0f} s. "
                    f"The end of its log:\n{last_lines(log)}",
                    f"The whole log is {log}. The stack needs about 1.5 GiB of free "
                    "memory; on a busy machine, try again.",
                )
            time.sleep(_POLL_S)
        self.ready_after_s[service] = time.monotonic() - started
        say(service, f"ready after {self.ready_after_s[service]:.1f} s")

    def _stop_all(
        self, timeout_s: float = _STOP_TIMEOUT_S, *, but: Collection[str] = ()
    ) -> None:
        for service in _STOP_ORDER:
            if service not in but and (process := self._processes.pop(service, None)):
                _terminate(process.pid, partial(_runs, process), timeout_s)
                _reap(process)

    def _take_directory(self, say: Progress) -> bool:
        """Lock the directory, and make sure nothing of an earlier stack runs in it.

        Returns:
            Whether a part of a detached stack runs, which is to be mended.
        """
        try:
            self._lock = lock_file(self._files.lock)
        except BlockingIOError:
            raise StackError(
                f"The stack in {self.directory} is in use by "
                f"{describe_holder(self._files.lock)}.",
                "Stop it first, or use another directory.",
            ) from None
        state = _read_state(self._files)
        if state is None:
            return False
        if not state.detached:
            # Its owner is gone (we hold the lock); its guards are ending the services.
            say("stack", "waiting for the previous stack's services to end")
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while _any_alive(state) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
        if _any_alive(state):
            is_sound = read_status(self.directory).state is StackState.RUNNING
            if self.detached and state.detached and not is_sound:
                return True
            self._release_directory()
            raise StackError(
                f"A stack is already running in {self.directory}.",
                "`moot status` shows it, `moot down` stops it.",
            )
        self._files.state.unlink()
        return False

    def _release_directory(self) -> None:
        if self._lock is not None:
            unlock_file(self._lock)
            self._lock = None

    def _choose_ports(self, *, fresh: bool) -> Ports:
        """Take the last ports again if they are free, so that clients find us."""
        path = self._files.ports
        if path.exists() and not fresh:
            ports = Ports.read(self._files)
            if ports.free():
                return ports
        ports = Ports.choose()
        write_private(path, asdict(ports))
        return ports

    def _chosen_ports(self) -> Ports:
        assert self._ports is not None, "start() comes first"
        return self._ports

    def _write_state(self) -> None:
        def remember(pid: int) -> dict[str, object]:
            return asdict(_Process(pid, process_started(pid) or "ended"))

        write_private(
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


def add_jvm_cache(artifacts: Artifacts, say: Progress) -> Artifacts:
    """Return the artifacts with a cache for their JVMs; it is made if missing."""
    cache = find_jvm_cache(artifacts.java, artifacts.jars)
    if cache is None:
        return artifacts
    if not cache.directory.is_dir():
        with lock_cache(say):
            if not cache.directory.is_dir():
                _train_jvms(artifacts, cache, say)
    return replace(artifacts, jvm_cache=cache)


def _train_jvms(artifacts: Artifacts, cache: JvmCache, say: Progress) -> None:
    """Start and stop a stack for Java to learn from; without it, all works, slowly."""
    say("fetch", "having Java prepare later starts (about 30 s, once)")
    with staged(cache.directory) as stage, tempfile.TemporaryDirectory() as scratch:
        training = replace(artifacts, jvm_cache=cache.train_in(stage))
        try:
            with LocalStack(Path(scratch), artifacts=training) as stack:
                stack.stop(_TRAINED_WITHIN_S)
        except StackError as error:
            say("fetch", f"later starts will be slow: {error}")
        else:
            say("fetch", "later starts are prepared")


def read_endpoints(directory: Path) -> Endpoints | None:
    """Where the services of a directory's stack are; None if it was stopped.

    Asks no service: `read_status` also tells whether they are well.
    """
    files = Files(directory.absolute())
    state = _read_state(files)
    return None if state is None else find_endpoints(files, state.ports)


def read_status(directory: Path) -> StackStatus:
    """Tell what runs in a directory, asking each service whether it is well."""
    files = Files(directory.absolute())
    state = _read_state(files)
    if state is None:
        return StackStatus(files.root, StackState.STOPPED, False, (), None)
    endpoints = find_endpoints(files, state.ports)
    services = []
    for name, process in state.services.items():
        backend, alive = BACKENDS[name], process.alive()
        healthy = alive and backend.answers(endpoints, files)
        where = backend.find(endpoints)
        services.append(
            ServiceStatus(name, process.pid, alive, healthy, where, files.log(name))
        )
    if not any(service.alive for service in services):
        summary = StackState.STALE
    elif len(services) == len(BACKENDS) and all(s.healthy for s in services):
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
    files = Files(directory.absolute())
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


def _runs(process: subprocess.Popen[bytes] | _Adopted) -> bool:
    return process.poll() is None


def _reap(process: subprocess.Popen[bytes] | _Adopted) -> None:
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _silent(_service: str, _message: str) -> None:
    pass


def _terminate(
    pid: int, alive: Callable[[], bool], timeout_s: float = _STOP_TIMEOUT_S
) -> None:
    """SIGTERM, then SIGKILL for the whole session of what does not leave in time."""
    if not alive():
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while alive():
        if time.monotonic() > deadline:
            kill_group(pid)
            return
        time.sleep(_POLL_S)


def _read_state(files: Files) -> _State | None:
    """Return what the state file says, or None if there is none."""
    try:
        found = json.loads(files.state.read_text(encoding="utf-8"))
        return _State(
            detached=found["detached"],
            owner=_Process(**found["owner"]),
            ports=Ports(**found["ports"]),
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
