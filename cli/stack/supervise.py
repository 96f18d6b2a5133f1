"""`moot serve all`: the services of this machine, kept running.

- The sequencer, the deciders and the aggregator serve every federation; a timer and an
  exporter are started for each federation whose genesis names this machine's keys for
  them, now or later.
- A service that ends is started again, each time later if it keeps failing.
- Their output is in one folder, each file bounded.
- They end with this process, however it ends.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from adapters.durable import rotate_file, write_file
from adapters.kafka import PartitionReader, count_partitions
from adapters.kafka_log import UntrustedFederationError, find_genesis
from adapters.keys import KeyFileError, key_path, load_key
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from cli.stack.processes import (
    ONE_THREAD,
    Progress,
    kill_group,
    process_started,
    spawn_detached,
)
from cli.stack.services import FAUST_SERVICES, Supervisor
from protocol.fields import NAME
from protocol.log import LogError
from schemas import topics

log = logging.getLogger(__name__)

LOOK_S: Final = 0.5
"""Between two looks at the services."""
SEARCH_S: Final = 5.0
"""Between two looks for new federations."""
STOP_WITHIN_S: Final = 30.0
MAX_LOG_SIZE_BYTES: Final = 10 * 2**20
"""Of a service's log; as much again is kept of what came before."""
MAX_FEDERATIONS: Final = 64
"""That one machine serves: each takes two processes."""
MAX_CANDIDATES: Final = 1_024
"""Names that are looked up: whoever may write to the control topic can add some."""
FOR_A_FEDERATION: Final = {"timer": "TIMER", "exporter": "EXPORTER"}
"""Services that serve one federation, and whose key each signs with."""


class Federations:
    """Finds federations, as they are founded, that this machine is to serve.

    Anybody may write the name of one; only one whose genesis names our keys counts.
    """

    def __init__(self, settings: Settings, only: str | None) -> None:
        self._settings = settings
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._only = only
        self._readers: list[PartitionReader] = []
        self._candidates: set[str] = set()
        self._judged: set[str] = set()

    def find(self) -> Iterator[tuple[str, list[str]]]:
        """Yield federations not found before, and the services that each needs here.

        Raises:
            KafkaUnavailableError: Kafka is away.
        """
        if not self._readers:
            number = count_partitions(self._settings, topics.CONTROL)
            self._readers = [
                PartitionReader(self._settings, topics.CONTROL, partition)
                for partition in range(number)
            ]
        for reader in self._readers:
            for record in reader.poll(0.1):
                name = (record.key or b"").decode(errors="replace")
                is_wanted = NAME.fullmatch(name) and self._only in {None, name}
                if is_wanted and len(self._candidates) < MAX_CANDIDATES:
                    self._candidates.add(name)
        for name in sorted(self._candidates - self._judged):
            try:
                genesis = find_genesis(self._settings, self._registry, name)
            except (LogError, UntrustedFederationError) as error:
                log.warning("not serving %s: %s", name, error)
                self._judged.add(name)
                continue
            if genesis is None:
                continue  # not sequenced yet, or refused
            self._judged.add(name)
            keys = {p.role: p.public_key for p in genesis.config.principals}
            yield (
                name,
                [
                    service
                    for service, role in FOR_A_FEDERATION.items()
                    if role in keys and keys[role] == self._find_key(role)
                ],
            )

    def _find_key(self, role: str) -> bytes | None:
        path = key_path(self._settings.state_directory / "keys", role)
        try:
            return load_key(path).public_key
        except KeyFileError:
            return None


def serve_all(
    settings: Settings, only: str | None, should_stop: Callable[[], bool]
) -> None:
    """Run this machine's services until told to stop.

    Args:
        settings: Theirs, too: they read the same environment.
        only: The only federation to have a timer and an exporter; None for all.
        should_stop: Says when.
    """
    logs = settings.state_directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor({}, logs, gives_up=False)
    federations = Federations(settings, only)
    searched_s = -SEARCH_S
    served: set[str] = set()
    is_away = False
    try:
        for service in FAUST_SERVICES:
            supervisor.start(service, "serve", service)
        log.info("running %s; their logs are in %s", ", ".join(FAUST_SERVICES), logs)
        while not should_stop():
            supervisor.watch()
            for path in logs.glob("*.log"):
                rotate_file(path, MAX_LOG_SIZE_BYTES)
            if time.monotonic() - searched_s > SEARCH_S:
                try:
                    _serve_new(supervisor, federations, served)
                    is_away = False
                except Exception as error:  # Kafka's, the registry's client has many
                    if not is_away:
                        log.warning("cannot look for federations: %s", error)
                    is_away = True
                searched_s = time.monotonic()
            time.sleep(LOOK_S)
    finally:
        log.info("stopping")
        supervisor.stop_all()


def _serve_new(
    supervisor: Supervisor, federations: Federations, served: set[str]
) -> None:
    for name, services in federations.find():
        if len(served) >= MAX_FEDERATIONS:
            log.error("not serving %s: there are %d already", name, len(served))
            continue
        served.add(name)
        for service in services:
            supervisor.start(
                f"{service}-{name}", "serve", service, "--federation", name
            )
        shown = ", ".join(services) or "nothing more is needed here"
        log.info("found federation %s: %s", name, shown)


# In the background, for `moot up --services`


def pid_file(directory: Path) -> Path:
    """Return the file that remembers the supervisor of a stack's services."""
    return directory / "services.pid"


def start_services(directory: Path, environment: dict[str, str], say: Progress) -> None:
    """Start a stack's services, unless they run, and leave them running.

    Args:
        directory: The stack's.
        environment: Settings of its services.
        say: Told what happens.
    """
    if find_services(directory) is not None:
        say("services", "running already")
        return
    path = directory / "services" / "logs" / "all.log"
    process = spawn_detached(
        [sys.executable, "-m", "cli.main", "serve", "all"],
        env={**os.environ, **ONE_THREAD, **environment},
        log_path=path,
    )
    known = f"{process.pid} {process_started(process.pid)}\n"
    write_file(pid_file(directory), known.encode())
    say("services", f"starting; their logs are in {path.parent}")


def find_services(directory: Path) -> int | None:
    """Return the id of the process that supervises a stack's services; None if none."""
    try:
        text = pid_file(directory).read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    pid, _, started = text.strip().partition(" ")
    if not pid.isdigit() or process_started(int(pid)) != started:
        return None
    return int(pid)


def stop_services(directory: Path) -> bool:
    """Stop a stack's services; returns whether any ran."""
    pid = find_services(directory)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        # It waits for its children, and kills those that do not leave.
        until_s = time.monotonic() + STOP_WITHIN_S
        while find_services(directory) is not None:
            if time.monotonic() > until_s:
                kill_group(pid)  # its children's guards see to them
            time.sleep(0.05)
    pid_file(directory).unlink(missing_ok=True)
    return pid is not None
