"""Nobody but a rival ends a service: neither silence, nor suspension, nor an outage.

Kafka takes a producer for a stale one whenever it ended that one's transaction itself,
or forgot it. All time-outs are short here; `tests.integration.echo_service` is a real
service on a real Kafka.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from adapters.alive import EXIT_FAILED
from adapters.kafka import create_topics, read_partition
from cli.stack import backends
from cli.stack.fork_server import ForkServer
from cli.stack.processes import kill_owned, last_lines
from cli.stack.services import Supervisor
from schemas import topics
from tests.integration.harness import wait_until
from tests.integration.other_kafka import FORGOTTEN_MS, IDLE_MS, ImpatientKafka

TIMEOUT_S = 2.0
"""After which Kafka gives up a transaction, and a member."""
ABSENT_S = 10 + max(TIMEOUT_S, IDLE_MS / 1_000)
"""Longer than everything that Kafka waits for. It looks for transactions whose time is
up every 10 s. More often it would do so before it knows partitions' leaders after a
start, take the partitions for deleted, and leave the transaction open for ever.
"""
AWAY_S = 5.0


class Echo:
    """The service as a process, and what it said."""

    def __init__(
        self, kafka: ImpatientKafka, directory: Path, fork_server: ForkServer | None
    ) -> None:
        self._kafka = kafka
        self._directory = directory
        self._fork_server = fork_server
        self._number = 0
        self._processes: list[Any] = []
        self.settings = kafka.settings.model_copy(
            update={"state_directory": directory / "state"}
        )

    def start(self, instance: str = "0") -> Any:
        """Start a process; returns it."""
        name = str(len(self._processes))
        environment = {
            "MOOT_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "MOOT_SCHEMA_REGISTRY_URL": self.settings.schema_registry_url,
            "MOOT_STATE_DIRECTORY": str(self.settings.state_directory),
            "MOOT_INSTANCE_ID": instance,
            "MOOT_SESSION_TIMEOUT_S": str(TIMEOUT_S),
            "MOOT_TRANSACTION_TIMEOUT_S": str(TIMEOUT_S),
        }
        supervisor = Supervisor(environment, self._directory, self._fork_server)
        process: Any = supervisor.run(name, "tests.integration.echo_service")
        process.log_path = supervisor.log_path(name)
        self._processes.append(process)
        return process

    def get_process(self) -> Any:
        """Return the last process, or a new one if that has ended."""
        if self._processes and self._processes[-1].poll() is None:
            return self._processes[-1]
        started = self.start()
        self.demand(self.ask("begin"))
        return started

    def ask(self, what: str) -> bytes:
        """Write a record for it to repeat; returns that, which nobody wrote before."""
        self._number += 1
        value = f"{what} {self._number}".encode()
        producer = Producer(
            {"bootstrap.servers": self.settings.bootstrap_servers, "log_level": 2}
        )
        producer.produce(topics.LEDGER, value, key=b"key")
        assert producer.flush(30) == 0
        return value

    def said(self) -> list[bytes | None]:
        """Return all that it said, committed."""
        return [r.value for r in read_partition(self.settings, topics.REWARDS, 0)]

    def demand(self, *values: bytes) -> None:
        """Wait until it has said these, each once."""
        wait_until(
            lambda: {*values} <= {*self.said()},
            f"{values!r} is repeated; {last_lines(self._processes[-1].log_path)}",
        )
        said = self.said()
        assert [said.count(value) for value in values] == [1] * len(values)

    def close(self) -> None:
        for process in self._processes:
            kill_owned(process)


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImpatientKafka]:
    with ImpatientKafka(tmp_path_factory.mktemp("kafka")) as running:
        create_topics(running.settings)
        yield running


@pytest.fixture(scope="module")
def echo(
    kafka: ImpatientKafka,
    tmp_path_factory: pytest.TempPathFactory,
    fork_server: ForkServer | None,
) -> Iterator[Echo]:
    running = Echo(kafka, tmp_path_factory.mktemp("echo"), fork_server)
    yield running
    running.close()


@pytest.fixture
def process(echo: Echo) -> Any:
    """The service."""
    return echo.get_process()


def is_suspended(process: Any) -> bool:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def suspend_in_transaction(echo: Echo, process: Any) -> bytes:
    """Have it suspend itself with a transaction open; returns what it is to repeat."""
    value = echo.ask("suspend")
    wait_until(lambda: is_suspended(process), "it suspends itself")
    return value


def test_what_is_said_late_is_visible_and_leaves_nothing_open(
    echo: Echo, process: Any
) -> None:
    """A transaction without an offset to commit stayed open, until Kafka aborted it and
    took the service, at its next event, for a stale one.
    """
    value = echo.ask("late")
    echo.demand(value, b"more of " + value)
    time.sleep(ABSENT_S)
    echo.demand(echo.ask("after it"))
    assert process.poll() is None
    assert "joining again" not in last_lines(process.log_path, 1_000)


def test_silence_ends_nobody(echo: Echo, process: Any) -> None:
    """Kafka has closed its connections, and forgotten its producer."""
    time.sleep(FORGOTTEN_MS / 1_000 + 2)
    echo.demand(echo.ask("after silence"))
    assert process.poll() is None


@pytest.mark.nightly
def test_suspension_ends_nobody(echo: Echo, process: Any) -> None:
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(ABSENT_S)
    os.kill(process.pid, signal.SIGCONT)
    echo.demand(echo.ask("after suspension"))
    assert process.poll() is None


def test_suspension_in_a_transaction_ends_nobody(echo: Echo, process: Any) -> None:
    value = suspend_in_transaction(echo, process)
    time.sleep(ABSENT_S)
    assert value not in echo.said()
    os.kill(process.pid, signal.SIGCONT)
    echo.demand(value, echo.ask("after suspension"))
    assert process.poll() is None
    assert "nobody has taken over: joining again" in last_lines(process.log_path, 1_000)


@pytest.mark.parametrize(
    "in_transaction", [pytest.param(False, marks=pytest.mark.nightly), True]
)
def test_an_outage_ends_nobody(
    kafka: ImpatientKafka, echo: Echo, process: Any, in_transaction: bool
) -> None:
    """With one broker it is every coordinator that goes, and comes again."""
    values = [suspend_in_transaction(echo, process)] if in_transaction else []
    kafka.kill(backends.KAFKA)
    if in_transaction:
        os.kill(process.pid, signal.SIGCONT)
    time.sleep(AWAY_S)
    kafka.start_service(backends.KAFKA)
    echo.demand(*values, echo.ask("after the outage"))
    assert process.poll() is None


@pytest.mark.parametrize(
    "instance", ["0", pytest.param("1", marks=pytest.mark.nightly)]
)
def test_a_rival_wins(echo: Echo, process: Any, instance: str) -> None:
    """Whether it has the same id or one of its own."""
    echo.demand(echo.ask("before the rival"))
    value = suspend_in_transaction(echo, process)
    time.sleep(ABSENT_S)
    rival = echo.start(instance)
    echo.demand(value, echo.ask("to the rival"))
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: process.poll() == EXIT_FAILED, "the first one ends")
    assert "has taken over: this process ends" in last_lines(process.log_path, 1_000)
    echo.demand(value, echo.ask("still to the rival"))
    assert rival.poll() is None
    kill_owned(rival)
