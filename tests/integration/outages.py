"""Outages of the stack's services, and what is asked of these with plain clients."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from minio import Minio

from cli.stack.stack import Endpoints, LocalStack, StackState, read_status


@dataclass(frozen=True)
class Kept:
    """Something that each service of a stack was given, to be asked for later."""

    endpoints: Endpoints
    name: str
    schema_id: object

    @classmethod
    def store(cls, endpoints: Endpoints) -> Self:
        """Give each service something."""
        name = f"kept-{time.monotonic_ns()}"
        create_topic(endpoints, name)
        producer = Producer({"bootstrap.servers": endpoints.bootstrap_servers})
        producer.produce(name, b"kept")
        assert producer.flush(10) == 0
        schema = {"schema": json.dumps({"type": "fixed", "name": "F", "size": 4})}
        said = ask_registry(endpoints, "POST", f"/subjects/{name}/versions", schema)
        make_minio(endpoints).make_bucket(name)
        return cls(endpoints, name, said["id"])

    def demand(self) -> None:
        """Demand that each still has it."""
        assert consume_one(self.endpoints, self.name) == b"kept"
        assert ask_registry(self.endpoints, "GET", f"/schemas/ids/{self.schema_id}")
        assert make_minio(self.endpoints).bucket_exists(self.name)


@contextmanager
def outage(stack: LocalStack, service: str) -> Iterator[None]:
    """SIGKILL a service, and start it again where it was when the block ends."""
    endpoints = stack.endpoints
    stack.kill(service)
    assert read_status(stack.directory).state is StackState.DEGRADED
    yield
    stack.start_service(service)
    assert stack.endpoints == endpoints


def create_topic(endpoints: Endpoints, name: str) -> None:
    """Make a topic of one partition."""
    admin = AdminClient({"bootstrap.servers": endpoints.bootstrap_servers})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)


def consume_one(endpoints: Endpoints, topic: str) -> bytes:
    consumer = Consumer(
        {
            "bootstrap.servers": endpoints.bootstrap_servers,
            "group.id": f"test-{time.monotonic_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    try:
        consumer.subscribe([topic])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        value = message.value()
        assert value is not None
        return value
    finally:
        consumer.close()


def ask_registry(
    endpoints: Endpoints, method: str, path: str, body: dict[str, str] | None = None
) -> dict[str, object]:
    """Return the answer, which must be one."""
    url = urlsplit(endpoints.schema_registry_url)
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    try:
        connection.request(
            method,
            url.path + path,
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        response = connection.getresponse()
        content: dict[str, object] = json.load(response)
        assert response.status == http.HTTPStatus.OK, content
        return content
    finally:
        connection.close()


def make_minio(endpoints: Endpoints) -> Minio:
    return Minio(
        endpoints.minio_endpoint,
        access_key=endpoints.minio_access_key,
        secret_key=endpoints.minio_secret_key,
        secure=False,
    )
