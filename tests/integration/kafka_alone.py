"""A broker alone, impatient: for tests of what Kafka does by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters.settings import Settings
from cli.stack import stack
from cli.stack.stack import LocalStack

IMPATIENT = """
# Deletes what has expired at once, not every five minutes.
log.retention.check.interval.ms=200
log.initial.task.delay.ms=200
"""


class KafkaAlone(LocalStack):
    """The stack's broker, without what stands beside it."""

    def _start_all(self, say: stack.Progress) -> None:
        self._spawn(stack.KAFKA)
        self._wait_ready(stack.KAFKA, say, time.monotonic())


@contextmanager
def run_kafka(directory: Path) -> Iterator[Settings]:
    """Run a broker; yields settings that name it, and no schema registry."""
    definitions = directory / "definitions"
    definitions.mkdir()
    for path in stack.DEFINITIONS.iterdir():
        content = path.read_bytes()
        if path.name == "server.properties":
            content += IMPATIENT.encode()
        (definitions / path.name).write_bytes(content)
    ours, stack.DEFINITIONS = stack.DEFINITIONS, definitions
    try:
        with KafkaAlone(directory / "stack") as running:
            yield Settings(
                bootstrap_servers=running.endpoints.bootstrap_servers,
                schema_registry_url="http://127.0.0.1:1",
                state_directory=directory / "state",
            )
    finally:
        stack.DEFINITIONS = ours
