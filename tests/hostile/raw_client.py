"""A Produce client that sends any bytes as a batch, and says what the broker answers.

It speaks one version of one request and asks nothing else: no versions, no metadata.
That serves a single broker, which leads every partition, as the local stack's does.

    with RawClient(endpoints.bootstrap_servers) as client:
        answer = client.produce("moot.control", RawBatch([RawRecord()]).encode())
        assert answer.error == 0, answer
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Final, Self

from confluent_kafka import KafkaError

_PRODUCE: Final = 0
_VERSION: Final = 8
"""The first with messages in its answers; the last but one without tagged fields."""
_CLIENT_ID: Final = "hostile"
_TIMEOUT_S: Final = 60.0
_MAX_IN_FLIGHT: Final = 32

CLOSED: Final = -1_000
"""In an answer: the broker closed the connection instead of answering."""


@dataclass(frozen=True)
class Answer:
    """What the broker says to a batch.

    Attributes:
        error: Kafka's error code; 0 means stored, `CLOSED` a connection closed.
        offset: Offset of the first record, if stored; else -1.
        message: What the broker adds in words, if anything.
    """

    error: int
    offset: int = -1
    message: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the broker has the batch."""
        return self.error == 0

    @property
    def name(self) -> str:
        """The error's name, as Kafka writes it."""
        return "CLOSED" if self.error == CLOSED else KafkaError(self.error).name()


@dataclass(frozen=True)
class Produce:
    """A batch to send.

    Attributes:
        topic: The topic.
        batch: The batch's bytes; null if None.
        partition: The partition.
        transactional_id: What the request says its transaction's id is.
    """

    topic: str
    batch: bytes | None
    partition: int = 0
    transactional_id: str | None = None


class RawClient:
    """A connection to one broker, made again after the broker has closed it.

    Args:
        bootstrap_servers: One ``host:port``.
        timeout_s: How long to wait for any answer.
    """

    def __init__(self, bootstrap_servers: str, timeout_s: float = _TIMEOUT_S) -> None:
        host, _, port = bootstrap_servers.partition(",")[0].rpartition(":")
        self._address = host, int(port)
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def produce(self, topic: str, batch: bytes | None, partition: int = 0) -> Answer:
        """Send one batch, and wait for the answer.

        Raises:
            OSError: there is no broker, or no answer in time.
        """
        return self.send(Produce(topic, batch, partition))

    def send(self, what: Produce) -> Answer:
        """Send one batch, and wait for the answer; as `produce`."""
        try:
            self._write(what)
            return self._read()
        except (ConnectionError, EOFError):
            self.close()
            return Answer(CLOSED)

    def send_all(self, batches: Iterable[Produce]) -> Iterator[Answer]:
        """Send many batches, several ahead of their answers, which come in order.

        When the broker closes the connection, nobody knows what it took of the
        batches under way: those are answered with `CLOSED`, all of them.
        """
        waiting = 0
        for what in chain(batches, [None]):
            try:
                if what is not None:
                    waiting += 1
                    self._write(what)
                while waiting > (0 if what is None else _MAX_IN_FLIGHT):
                    yield self._read()
                    waiting -= 1
            except (ConnectionError, EOFError):
                self.close()
                yield from [Answer(CLOSED)] * waiting
                waiting = 0

    def _write(self, what: Produce) -> None:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, self._timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._number += 1
        batch = what.batch
        request = b"".join(
            [
                struct.pack(">hhi", _PRODUCE, _VERSION, self._number),
                _string(_CLIENT_ID),
                _string(what.transactional_id),
                struct.pack(">hi", -1, int(self._timeout_s * 1_000)),
                struct.pack(">i", 1),
                _string(what.topic),
                struct.pack(">ii", 1, what.partition),
                struct.pack(">i", -1 if batch is None else len(batch)),
                batch or b"",
            ]
        )
        self._socket.sendall(struct.pack(">i", len(request)) + request)

    def _read(self) -> Answer:
        [length] = struct.unpack(">i", self._receive(4))
        answer = _Reader(self._receive(length))
        answer.take(">i")  # in order, always
        found = None
        for _ in range(answer.take(">i")):
            answer.string()
            for _ in range(answer.take(">i")):
                answer.take(">i")
                error, offset = answer.take(">h"), answer.take(">q")
                answer.take(">q")
                answer.take(">q")
                messages = []
                for _ in range(answer.take(">i")):
                    answer.take(">i")
                    messages.append(answer.string())
                messages.append(answer.string())
                found = Answer(error, offset, "; ".join(filter(None, messages)))
        assert found is not None, "an answer about nothing"
        return found

    def _receive(self, count: int) -> bytes:
        assert self._socket is not None
        out = bytearray()
        while len(out) < count:
            part = self._socket.recv(count - len(out))
            if not part:
                raise EOFError
            out += part
        return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, form: str) -> int:
        [value] = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def string(self) -> str:
        length = self.take(">h")
        if length < 0:
            return ""
        self._at += length
        return self._data[self._at - length : self._at].decode(errors="replace")


def _string(text: str | None) -> bytes:
    if text is None:
        return struct.pack(">h", -1)
    data = text.encode()
    return struct.pack(">h", len(data)) + data


__all__ = ["CLOSED", "Answer", "Produce", "RawClient"]
