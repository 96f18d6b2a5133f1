"""The schema registry, and the Confluent framing that refers to it.

Framing on the wire: a zero byte, the 4-byte big-endian id that the schema registry gave
a schema, the Avro body. It is added and removed only here; everything behind this
module sees single-object encodings (see `schemas.codec`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

from confluent_kafka.schema_registry import (
    ConfigCompatibilityLevel,
    Schema,
    SchemaRegistryClient,
    ServerConfig,
)
from confluent_kafka.schema_registry.error import SchemaRegistryError

from adapters.wording import describe_away
from schemas import codec, topics
from schemas.events import Event
from schemas.reasons import Reason

log = logging.getLogger(__name__)
# One line per request is noise in every service's log.
logging.getLogger("httpx2").setLevel(logging.WARNING)
logging.getLogger("httpx").setLevel(logging.WARNING)

MAGIC: Final = b"\x00"
COMPATIBILITY: Final = ConfigCompatibilityLevel.FULL_TRANSITIVE
MAX_UNKNOWN_IDS: Final = 4_096
NO_ERROR_CODE: Final = -1
"""The client's code for an answer that is not JSON."""
NOT_FOUND: Final = 404
NUM_CALLERS: Final = 8
SETTING: Final = "MOOT_SCHEMA_REGISTRY_URL"
MAX_SCHEMA_ID: Final = 2**31 - 1
"""Registries count with a positive int; their answers to other numbers mean nothing."""


class FramingError(ValueError):
    """The bytes cannot be unframed; `reason` is the code that refusals carry."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class SchemaRegistryFailedError(SchemaRegistryError):
    """The schema registry did not do what was asked; the message says where it is."""

    def __init__(self, message: str, http_status_code: int, code: int | None) -> None:
        code = NO_ERROR_CODE if code is None else code
        super().__init__(http_status_code, code, message)
        self._message = message

    def __str__(self) -> str:
        """Return the message."""
        return self._message


class SchemaRegistry:
    """Registers our schemas, and translates between framing and single objects."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = SchemaRegistryClient({"url": url})
        self._prefixes: dict[type[Event], bytes] = {}
        self._headers: dict[bytes, bytes] = {}  # framing prefix -> single-object header
        self._unknown: dict[bytes, None] = {}

    def register_all(self) -> dict[str, int]:
        """Register every schema under its subject and demand full compatibility.

        Idempotent. Returns the schema registry's id by subject.

        Raises:
            SchemaRegistryError: the schema registry is away, or a schema is
                incompatible with earlier versions.
        """

        def register(event: type[Event], topic: str) -> tuple[str, int]:
            subject = topics.subject(topic, event)
            text = codec.schema_text(event.__name__)
            config = ServerConfig(compatibility=COMPATIBILITY)
            with self._asking(subject):
                schema_id = self._client.register_schema(subject, Schema(text, "AVRO"))
                self._client.set_config(subject, config)
            self._learn(event, schema_id)
            return subject, schema_id

        with ThreadPoolExecutor(NUM_CALLERS) as pool:
            return dict(pool.map(lambda item: register(*item), topics.TOPIC_OF.items()))

    def frame(self, event: Event) -> tuple[bytes, bytes]:
        """Return an event as (single-object bytes, framed bytes).

        Raises:
            SchemaRegistryError: the schema registry is away, or lacks the schema:
                ``moot schemas register`` comes first.
        """
        data = codec.encode(event)
        prefix = self._prefixes.get(type(event)) or self._find(type(event))
        return data, prefix + data[codec.HEADER_SIZE :]

    def unframe(self, value: bytes | None) -> bytes:
        """Return the single-object bytes of a framed value.

        Raises:
            FramingError: it is not our framing, or not one of our schemas.
            Exception: the id is new to us and the schema registry is away (an error of
                its client or of HTTP); then nothing is known about the record, so it
                must not be refused.
        """
        if value is None:
            raise FramingError(Reason.NO_VALUE, "the record has no value")
        if len(value) > codec.MAX_VALUE_SIZE_BYTES:
            detail = f"{len(value)} bytes; at most {codec.MAX_VALUE_SIZE_BYTES}"
            raise FramingError(Reason.TOO_LARGE, detail)
        return self.unframe_trusted(value)

    def unframe_trusted(self, value: bytes) -> bytes:
        """Do as `unframe` for records of any size, such as blocks."""
        prefix = value[: codec.FRAMING_SIZE]
        if len(prefix) < codec.FRAMING_SIZE or prefix[:1] != MAGIC:
            detail = "not Confluent framing: a zero byte and a 4-byte schema id"
            raise FramingError(Reason.NOT_FRAMED, detail)
        header = self._headers.get(prefix) or self._look_up(prefix)
        return header + value[codec.FRAMING_SIZE :]

    def _find(self, event: type[Event]) -> bytes:
        subject = topics.subject(topics.TOPIC_OF[event], event)
        schema = Schema(codec.schema_text(event.__name__), "AVRO")
        with self._asking(subject):
            found = self._client.lookup_schema(subject, schema)
        self._learn(event, found.schema_id)
        return self._prefixes[event]

    def _learn(self, event: type[Event], schema_id: int | None) -> None:
        assert schema_id is not None
        prefix = MAGIC + schema_id.to_bytes(4, "big")
        self._prefixes[event] = prefix
        text = codec.schema_text(event.__name__)
        self._headers[prefix] = codec.MARKER + codec.compute_fingerprint(text)

    def _look_up(self, prefix: bytes) -> bytes:
        """Ask about an id that none of our subjects has."""
        schema_id = int.from_bytes(prefix[1:], "big")
        unknown = FramingError(
            Reason.UNKNOWN_SCHEMA, f"schema id {schema_id} is none of ours"
        )
        if prefix in self._unknown or not 0 < schema_id <= MAX_SCHEMA_ID:
            raise unknown
        text = self._ask(schema_id)
        if text is None:
            # A starting schema registry answers before it has read all its data: what
            # it lacks means something only once it has ours, and then it is asked
            # again.
            self._demand_ours()
            text = self._ask(schema_id)
        if text is None:
            self._remember_unknown(prefix)
            raise unknown
        try:
            fingerprint = codec.compute_fingerprint(text)
            codec.event_name(fingerprint)
        except Exception as error:  # noqa: BLE001  # a parser of others' text
            # Not Avro, or unreleased: the schema registry holds others' schemas too.
            log.info("schema id %d is none of ours: %r", schema_id, error)
            self._remember_unknown(prefix)
            raise unknown from None
        self._headers[prefix] = codec.MARKER + fingerprint
        return self._headers[prefix]

    def _ask(self, schema_id: int) -> str | None:
        """Return an id's schema; None if the schema registry says that there is none.

        Only that is an answer. Whatever is raised here, HTTP errors included, means
        that nothing is known about the record.
        """
        try:
            with self._asking(f"schema {schema_id}"):
                return self._client.get_schema(schema_id).schema_str or ""
        except SchemaRegistryError as error:
            # No schema registry answers without its own code: a gateway does, or
            # another server at this address.
            has_code = error.error_code not in {None, NO_ERROR_CODE}
            if error.http_status_code != NOT_FOUND or not has_code:
                raise
            return None

    def _demand_ours(self) -> None:
        """Check that the schema registry has all our schemas.

        Raises:
            SchemaRegistryError: it is away, has not read them yet, or nobody has
                registered them.
        """
        for event in topics.TOPIC_OF:
            if event not in self._prefixes:
                self._find(event)
        newest = max(self._prefixes, key=lambda event: self._prefixes[event])
        # Asked each time: the client remembers what it once looked up.
        subject = topics.subject(topics.TOPIC_OF[newest], newest)
        with self._asking(subject):
            self._client.get_versions(subject)

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Give errors of the client, and of HTTP below it, a message of ours.

        Raises:
            SchemaRegistryFailedError: the schema registry is away, or refused.
        """
        try:
            yield
        except SchemaRegistryError as error:
            cure = (
                " `moot schemas register` registers ours."
                if error.http_status_code == NOT_FOUND
                else ""
            )
            raise SchemaRegistryFailedError(
                f"the schema registry at {self._url} ({SETTING}) refuses {what}: "
                f"{error}.{cure}",
                error.http_status_code,
                error.error_code,
            ) from error
        except Exception as error:
            # Its client's HTTP library is its own affair.
            msg = describe_away("the schema registry", self._url, SETTING, error)
            raise SchemaRegistryFailedError(msg, 0, NO_ERROR_CODE) from error

    def _remember_unknown(self, prefix: bytes) -> None:
        if len(self._unknown) >= MAX_UNKNOWN_IDS:
            del self._unknown[next(iter(self._unknown))]
        self._unknown[prefix] = None
