"""A Kafka beside the stack's, impatient and alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from confluent_kafka.admin import AdminClient

from adapters.settings import Settings
from cli.stack import backends
from tests.integration.harness import wait_until
from tests.integration.part_of_stack import PartOfStack

IDLE_MS = 3_000
"""After so long the impatient broker closes a connection on which nothing is said."""
FORGOTTEN_MS = 20_000
"""After so long it forgets a producer that is silent."""
IMPATIENT = f"""
# Deletes what has expired at once, not every five minutes.
log.retention.check.interval.ms=200
log.initial.task.delay.ms=200
connections.max.idle.ms={IDLE_MS}
# Forgets who has sent nothing for a while.
transactional.id.expiration.ms={FORGOTTEN_MS}
transaction.remove.expired.transaction.cleanup.interval.ms=200
producer.id.expiration.ms={FORGOTTEN_MS}
producer.id.expiration.check.interval.ms=200
group.min.session.timeout.ms=1000
"""


class ImpatientKafka(PartOfStack):
    """A broker that waits for nothing, for tests of what Kafka does by itself."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, backends.KAFKA)
        self._definitions = directory / "definitions"

    @property
    def settings(self) -> Settings:
        """Settings that name it, and no schema registry."""
        return Settings(
            bootstrap_servers=self.endpoints.bootstrap_servers,
            schema_registry_url="http://127.0.0.1:1",
            state_directory=self.directory / "state",
        )

    def delete_topics(self, names: Iterable[str] | None = None) -> None:
        """Delete these topics, or all there are, and wait until they are gone."""
        admin = AdminClient(
            {"bootstrap.servers": self.endpoints.bootstrap_servers, "log_level": 2}
        )

        def find() -> set[str]:
            there = {
                name
                for name in admin.list_topics(timeout=30).topics
                if not name.startswith("__")
            }
            return there if names is None else there & {*names}

        if found := find():
            for deleted in admin.delete_topics([*found]).values():
                deleted.result(30)
            wait_until(lambda: not find(), "the topics go")

    def _spawn(self, service: str) -> None:
        if not self._definitions.exists():
            self._definitions.mkdir(parents=True)
            for path in backends.DEFINITIONS.iterdir():
                content = path.read_bytes()
                if path.name == "server.properties":
                    content += IMPATIENT.encode()
                (self._definitions / path.name).write_bytes(content)
        # Only here: other stacks of this process keep theirs.
        ours, backends.DEFINITIONS = backends.DEFINITIONS, self._definitions
        try:
            super()._spawn(service)
        finally:
            backends.DEFINITIONS = ours
