"""The link between the parties of a joint computation: authenticated and encrypted.

Every peer has a rank, 0 to n-1, and an Ed25519 key whose public half the others know
beforehand. Each pair of peers exchanges arrays of integers over one TCP connection
under TLS 1.3.

- **Who is there.** Both ends of a connection show a certificate signed by the peer's
  key. It certifies a key that lives as long as the link, so the peer's own key never
  leaves the process (`ssl` takes private keys from files only). Nothing in a
  certificate counts but that signature. Connections without one by a known key, or
  without TLS, are refused, and cannot keep others out: unidentified connections are few
  and short-lived (`adapters.listening`).
- **What is said.** First, both ends: a magic and a digest of the federation's genesis
  and of all peers' keys in order of rank, so that both mean the same; and, when all its
  peers are there, that it is ready. So a link exists for all or for nobody, and until
  then a peer that gave up may come again. Then frames:

      type (u8) | number of dimensions (u8) | each dimension (u64) | the elements

  all integers little-endian; types 0 to 2 are uint8, int64, uint64. Nothing is
  unpickled. The receiver says which type and shape it expects, or the largest size;
  anything else is refused before its body is read.
- **Nobody waits for ever.** Connecting has a time limit, and so has each send and
  receive. A peer that is gone or silent causes a `LinkError` that names it; then the
  link is useless: close it and begin again.
- **Nobody drowns.** What was not requested stays with the sender, apart from some
  buffers: a sender waits until the other end takes its data.

It deliberately neither reconnects nor retries, nor knows what is computed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import ssl
import tempfile
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import numpy as np
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from numpy.typing import NDArray

from adapters import alive
from adapters.listening import Guest, Limits, Listener

LINK_MAGIC: Final = b"folkmoot-link/v1\n"
READY: Final = b"R"
CONNECT_TIMEOUT_S: Final = 60.0
"""Peers may start at different times."""
TIMEOUT_S: Final = 60.0
"""For one send or receive: as long as other peers may compute in between."""
HANDSHAKE_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
MAX_CONNECTIONS: Final = 128
MAX_CONNECTIONS_PER_ADDRESS: Final = 64
RESERVED_DESCRIPTORS: Final = 64
"""For what a peer opens itself: connections to other peers and Kafka, and files."""
MAX_DIMENSIONS: Final = 8
MAX_SPAN: Final = 2**48
"""Elements, no dimension counted as 0: far above any array, far below numpy's limit."""
_WORD_SIZE: Final = 8
_RETRY_S: Final = 0.1
_BUFFER_BYTES: Final = 2**20
_PIECE_BYTES: Final = 2**16
#: Certificates are for a few minutes; the rest allows for clocks that differ.
_VALIDITY: Final = timedelta(days=1)
_TYPES: Final = tuple(np.dtype(name) for name in ("u1", "<i8", "<u8"))

_LEADS_NOWHERE: Final = (ValueError, OverflowError)
"""What an impossible name or port raises besides OSError: the federation chose it."""

log = logging.getLogger(__name__)

T = TypeVar("T")
Array = NDArray[Any]
"""Of a type that frames have."""


class LinkFailure(StrEnum):
    """Why a link is useless."""

    CANNOT_LISTEN = "CANNOT_LISTEN"
    """We cannot bind our own address."""
    NOT_REACHED = "NOT_REACHED"
    """A peer did not answer, or did not come, in time."""
    WRONG_PEER = "WRONG_PEER"
    """Whoever answers at a peer's address does not have its key."""
    REFUSED = "REFUSED"
    """A peer hangs up whenever we connect: it does not know our key."""
    OTHER_PEERS = "OTHER_PEERS"
    """A peer has another federation or other peers in mind, or in another order."""
    LOST = "LOST"
    """A peer is gone: it died, or gave up because another peer had."""
    TIMED_OUT = "TIMED_OUT"
    """A peer is silent, or takes nothing."""
    UNEXPECTED = "UNEXPECTED"
    """A peer sent something unexpected."""


class LinkError(Exception):
    """The link can't be made or is broken; close it and begin again.

    Attributes:
        reason: What is wrong.
        peer: The rank of the peer concerned.
        detail: Why, as text.
    """

    def __init__(self, reason: LinkFailure, peer: int, detail: str) -> None:
        super().__init__(reason, peer, detail)
        self.reason = reason
        self.peer = peer
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: peer {self.peer}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Peer:
    """One end of a link.

    Attributes:
        host: A name or an address.
        port: TCP.
        public_key: Ed25519, 32 bytes.
    """

    host: str
    port: int
    public_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """Who is linked with whom, as one of them sees it.

    Attributes:
        rank: Our own.
        peers: All of us, in the order of ranks.
        seed: Of our Ed25519 key, 32 bytes. **Secret.**
        genesis: Genesis hash of the link's federation, 32 bytes.
        listen_host: Where to wait for peers of higher ranks; by default, our own host.
        connect_timeout_s: How long all of connecting may take.
        timeout_s: How long one send or receive may take.
    """

    rank: int
    peers: tuple[Peer, ...]
    seed: bytes = field(repr=False)
    genesis: bytes
    listen_host: str | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    timeout_s: float = TIMEOUT_S

    def __post_init__(self) -> None:
        """Check that the plan is about us.

        Raises:
            ValueError: fewer than two peers, a shared key, or a key at our rank that is
                not ours.
        """
        keys = [peer.public_key for peer in self.peers]
        if len(keys) < 2 or len(set(keys)) != len(keys):  # noqa: PLR2004  # both ends
            msg = "a link takes two peers or more, each with a key of its own"
            raise ValueError(msg)
        ours = Ed25519PrivateKey.from_private_bytes(self.seed).public_key()
        if not 0 <= self.rank < len(keys) or keys[self.rank] != ours.public_bytes_raw():
            raise ValueError(f"the key of peer {self.rank} is not ours")

    @property
    def digest(self) -> bytes:
        """A digest of what all must agree on, 32 bytes: the link's federation, and all
        peers' keys in order.
        """
        keys = b"".join(peer.public_key for peer in self.peers)
        return hashlib.sha256(self.genesis + keys).digest()


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class ArrayKind:
    """Type and shape of the array in a frame.

    Attributes:
        dtype: uint8, int64 or uint64.
        shape: At most `MAX_DIMENSIONS` dimensions.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Array) -> ArrayKind:
        """Return an array's kind.

        Raises:
            ValueError: no frame holds it; a bug.
        """
        if array.dtype not in _TYPES or array.ndim > MAX_DIMENSIONS:
            msg = f"{array.dtype} in {array.ndim} dimensions: no frame holds it"
            raise ValueError(msg)
        return cls(array.dtype, array.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def size_bytes(self) -> int:
        """The size of the elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    def encode(self) -> bytes:
        """Return the header of a frame."""
        head = bytes([_TYPES.index(self.dtype), len(self.shape)])
        return head + b"".join(n.to_bytes(_WORD_SIZE, "little") for n in self.shape)


class PartyLink:
    """Connections to all peers, made at once. Used by one thread at a time.

    Attributes:
        rank: Our own.
        num_peers: Including us.

    Raises:
        LinkError: a peer was not there in time, or has the wrong key.
    """

    def __init__(self, plan: LinkPlan) -> None:
        self.rank = plan.rank
        self.num_peers = len(plan.peers)
        self._timeout_s = plan.timeout_s
        self._connections: dict[int, _Connection] = {}
        # A thread of its own, so that data leaves while we compute.
        self._loop = asyncio.new_event_loop()
        self._thread = alive.start_thread(self._loop.run_forever, f"link-{plan.rank}")
        try:
            self._run(_Connecting(plan, self._connections).connect())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, peer: int, array: Array) -> None:
        """Send an array; return when all but a buffer of it is on its way.

        Args:
            peer: A rank, not our own.
            array: uint8, int64 or uint64.

        Raises:
            LinkError: LOST or TIMED_OUT.
        """
        self._run(self._send(peer, array))

    def receive(self, peer: int, *, max_size_bytes: int) -> Array:
        """Return an array of any type and shape, read-only.

        Args:
            peer: A rank, not our own.
            max_size_bytes: The largest size of its elements.

        Raises:
            LinkError: LOST, TIMED_OUT, or UNEXPECTED if it is larger or no frame.
        """
        return self._run(self._receive(peer, None, max_size_bytes))

    def receive_as(self, peer: int, kind: ArrayKind) -> Array:
        """Return an array of this type and shape, read-only.

        Args:
            peer: A rank, not our own.
            kind: Type and shape.

        Raises:
            LinkError: LOST, TIMED_OUT, or UNEXPECTED if it has another or is no frame.
        """
        return self._run(self._receive(peer, kind, kind.size_bytes))

    def exchange(self, array: Array, peers: Iterable[int]) -> list[Array]:
        """Send an array to some peers, and return one of its kind from each.

        All at once: peers that exchange arrays with each other need no buffers.

        Args:
            array: uint8, int64 or uint64.
            peers: Ranks, not our own.

        Returns:
            What each sent, of the array's type and shape, in the order of `peers`,
            read-only.

        Raises:
            LinkError: as `send` and `receive_as`.
        """
        return self._run(self._exchange(array, tuple(peers)))

    def close(self) -> None:
        """Hang up; peers find us gone."""
        if self._loop.is_closed():
            return
        self._run(self._hang_up())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, todo: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(todo, self._loop).result()

    async def _exchange(self, array: Array, peers: Sequence[int]) -> list[Array]:
        kind = ArrayKind.of(array)
        sending = asyncio.gather(*(self._send(peer, array) for peer in peers))
        receiving = asyncio.gather(
            *(self._receive(peer, kind, kind.size_bytes) for peer in peers)
        )
        _, received = await asyncio.gather(sending, receiving)
        return received

    async def _send(self, peer: int, array: Array) -> None:
        kind = ArrayKind.of(array)
        frame = kind.encode() + array.tobytes()
        writer = self._connections[peer].writer
        with _naming(peer, self._timeout_s):
            async with asyncio.timeout(self._timeout_s):
                # In pieces: asyncio's TLS takes one write whole, however large.
                for begin in range(0, len(frame), _PIECE_BYTES):
                    writer.write(frame[begin : begin + _PIECE_BYTES])
                    await writer.drain()

    async def _receive(
        self, peer: int, expected: ArrayKind | None, max_size_bytes: int
    ) -> Array:
        reader = self._connections[peer].reader
        with _naming(peer, self._timeout_s):
            async with asyncio.timeout(self._timeout_s):
                kind = await _read_kind(reader, peer)
                if expected not in {None, kind} or kind.size_bytes > max_size_bytes:
                    detail = f"it sent {kind}; expected " + (
                        f"at most {max_size_bytes} bytes"
                        if expected is None
                        else f"{expected}"
                    )
                    raise LinkError(LinkFailure.UNEXPECTED, peer, detail)
                elements = await reader.readexactly(kind.size_bytes)
        return np.frombuffer(elements, kind.dtype).reshape(kind.shape)

    async def _hang_up(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        writers = [connection.writer for connection in self._connections.values()]
        for writer in writers:
            writer.close()
        # The last data may still be on its way; but not for ever.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await asyncio.gather(
                    *(writer.wait_closed() for writer in writers),
                    return_exceptions=True,
                )
        for writer in writers:
            writer.transport.abort()


async def _read_kind(reader: asyncio.StreamReader, peer: int) -> ArrayKind:
    kind, num_dimensions = await reader.readexactly(2)
    if kind >= len(_TYPES) or num_dimensions > MAX_DIMENSIONS:
        detail = f"type {kind} in {num_dimensions} dimensions is no frame"
        raise LinkError(LinkFailure.UNEXPECTED, peer, detail)
    sizes = await reader.readexactly(num_dimensions * _WORD_SIZE)
    shape = np.frombuffer(sizes, dtype="<u8").tolist()
    # Zeros don't make the other dimensions harmless: numpy multiplies those too.
    if math.prod(size or 1 for size in shape) > MAX_SPAN:
        detail = f"an array of shape {shape} is no frame"
        raise LinkError(LinkFailure.UNEXPECTED, peer, detail)
    return ArrayKind(_TYPES[kind], tuple(shape))


@contextmanager
def _naming(peer: int, timeout_s: float) -> Iterator[None]:
    """Name the peer in errors."""
    try:
        yield
    except TimeoutError as error:  # before OSError, its base class
        detail = f"silent for {timeout_s:g} s, or takes nothing"
        raise LinkError(LinkFailure.TIMED_OUT, peer, detail) from error
    except (OSError, EOFError) as error:
        detail = "gone: it died, or gave up because another peer had"
        raise LinkError(LinkFailure.LOST, peer, detail) from error


class _Connecting:
    """Dials peers of lower ranks and waits for those of higher ones."""

    def __init__(self, plan: LinkPlan, connections: dict[int, _Connection]) -> None:
        self._plan = plan
        self._greeting = LINK_MAGIC + plan.digest
        self._certificate = _Certificate(plan.seed)
        self._connections = connections
        self._higher = frozenset(range(plan.rank + 1, len(plan.peers)))
        self._all_came = asyncio.Event()
        self._is_over = False
        self._ready: set[int] = set()
        self._refused: dict[int, LinkError] = {}

    async def connect(self) -> None:
        plan = self._plan
        listener = await self._listen() if self._higher else None
        dialing = [self._dial(rank) for rank in range(plan.rank)]
        others = self._higher | set(range(plan.rank))
        try:
            async with asyncio.timeout(plan.connect_timeout_s):
                await asyncio.gather(*dialing)
                if self._higher:
                    await self._all_came.wait()
                self._is_over = True
                await asyncio.gather(*map(self._wait_until_ready, sorted(others)))
        except TimeoutError as error:
            # Peers that never came are why others gave up.
            never_came = others - self._connections.keys()
            missing = (
                never_came or others - self._find_present() or others - self._ready
            )
            raise self._explain(min(missing)) from error
        finally:
            self._is_over = True
            if listener is not None:
                await listener.close()

    async def _wait_until_ready(self, rank: int) -> None:
        reader, writer = self._connections[rank]
        with _naming(rank, self._plan.connect_timeout_s):
            writer.write(READY)
            if await reader.readexactly(len(READY)) != READY:
                detail = "it did not say that it is ready"
                raise LinkError(LinkFailure.UNEXPECTED, rank, detail)
        self._ready.add(rank)

    def _find_present(self) -> set[int]:
        # A peer that came and gave up is not there, and may come again.
        return {
            rank
            for rank, connection in self._connections.items()
            if not connection.writer.is_closing()
        }

    def _explain(self, missing: int) -> LinkError:
        if missing in self._refused:
            return self._refused[missing]
        peer = self._plan.peers[missing]
        detail = f"not ready within {self._plan.connect_timeout_s:g} s" + (
            f" at {peer.host}:{peer.port}" if missing < self._plan.rank else ""
        )
        return LinkError(LinkFailure.NOT_REACHED, missing, detail)

    async def _listen(self) -> Listener:
        plan = self._plan
        own = plan.peers[plan.rank]
        keys = [plan.peers[rank].public_key for rank in sorted(self._higher)]
        listener = Listener(
            self._make_protocol,
            Limits(
                connections=MAX_CONNECTIONS,
                per_address=MAX_CONNECTIONS_PER_ADDRESS,
                reserve=RESERVED_DESCRIPTORS,
                idle_s=HANDSHAKE_TIMEOUT_S,
                age_s=math.inf,
            ),
            {
                "ssl": self._certificate.make_context(ssl.PROTOCOL_TLS_SERVER, keys),
                "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_S,
                "ssl_shutdown_timeout": CLOSE_TIMEOUT_S,
            },
        )
        try:
            await listener.start(plan.listen_host or own.host, own.port)
        except (OSError, *_LEADS_NOWHERE) as error:
            detail = f"we can't listen at port {own.port}: {error}"
            raise LinkError(LinkFailure.CANNOT_LISTEN, plan.rank, detail) from error
        return listener

    def _make_protocol(self, guest: Guest) -> asyncio.StreamReaderProtocol:
        return asyncio.StreamReaderProtocol(
            asyncio.StreamReader(limit=_BUFFER_BYTES), partial(self._accept, guest)
        )

    async def _accept(
        self,
        guest: Guest,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        peer = _identify(
            writer, {rank: self._plan.peers[rank].public_key for rank in self._higher}
        )
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await self._greet(reader, writer, peer)
        except (OSError, EOFError) as error:
            log.warning("peer %d came and went: %r", peer, error)
            writer.close()
            return
        except LinkError as error:
            # It may be left over from earlier; the right one may still come.
            log.warning("refused: %s", error)
            self._refused[peer] = error
            writer.close()
            return
        if self._is_over:
            writer.close()
            return
        guest.begin()  # a stranger must not displace it
        before = self._connections.get(peer)
        if before is not None:  # it began again
            before.writer.transport.abort()
        self._connections[peer] = _Connection(reader, writer)
        if self._higher <= self._find_present():
            self._all_came.set()

    async def _dial(self, rank: int) -> None:
        peer = self._plan.peers[rank]
        context = self._certificate.make_context(
            ssl.PROTOCOL_TLS_CLIENT, [peer.public_key]
        )
        while True:
            try:
                reader, writer = await asyncio.open_connection(
                    peer.host,
                    peer.port,
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                    ssl_shutdown_timeout=CLOSE_TIMEOUT_S,
                    limit=_BUFFER_BYTES,
                )
            except ssl.SSLError as error:
                where = f"{peer.host}:{peer.port}"
                detail = f"whoever answers at {where} lacks its key: {error}"
                raise LinkError(LinkFailure.WRONG_PEER, rank, detail) from error
            except OSError:
                await asyncio.sleep(_RETRY_S)  # it may not have started
                continue
            except _LEADS_NOWHERE as error:
                detail = f"{peer.host}:{peer.port} leads nowhere: {error}"
                raise LinkError(LinkFailure.NOT_REACHED, rank, detail) from error
            try:
                await self._greet(reader, writer, rank)
            except (OSError, EOFError):
                # asyncio sends no alert. It may also have ended, and begin again.
                detail = "it hangs up, as if it did not know our key"
                self._refused[rank] = LinkError(LinkFailure.REFUSED, rank, detail)
                await asyncio.sleep(_RETRY_S)
                continue
            self._connections[rank] = _Connection(reader, writer)
            return

    async def _greet(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: int
    ) -> None:
        writer.write(self._greeting)
        greeting = await reader.readexactly(len(self._greeting))
        if greeting[: len(LINK_MAGIC)] != LINK_MAGIC:
            detail = "it speaks another protocol or version"
            raise LinkError(LinkFailure.UNEXPECTED, peer, detail)
        if greeting != self._greeting:
            detail = "its federation or its list of peers is not ours"
            raise LinkError(LinkFailure.OTHER_PEERS, peer, detail)


def _identify(writer: asyncio.StreamWriter, keys: Mapping[int, bytes]) -> int:
    """Return the rank whose key signed the certificate shown."""
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    certificate = x509.load_der_x509_certificate(shown)
    for rank, key in keys.items():
        with suppress(InvalidSignature):
            Ed25519PublicKey.from_public_bytes(key).verify(
                certificate.signature, certificate.tbs_certificate_bytes
            )
            return rank
    raise AssertionError("OpenSSL admitted a peer with none of the keys")


class _Certificate:
    """Our certificate: signed by our key, for a key of this link alone."""

    def __init__(self, seed: bytes) -> None:
        ours = Ed25519PrivateKey.from_private_bytes(seed)
        shown = Ed25519PrivateKey.generate()
        certificate = _certify(
            shown.public_key(),
            "link",
            ours.public_key().public_bytes_raw().hex(),
            ours,
            is_issuer=False,
        )
        self._password = secrets.token_bytes(32)
        self._pem = certificate.public_bytes(Encoding.PEM) + shown.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(self._password)
        )

    def make_context(
        self, protocol: ssl._SSLMethod, keys: Iterable[bytes]
    ) -> ssl.SSLContext:
        """Return a context that admits only holders of these keys.

        OpenSSL accepts a certificate if it trusts the issuer, so it gets one to trust
        per key. It does not check who signed those: being listed makes them trusted
        (partial chain).
        """
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # keys say who it is
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        nobody = Ed25519PrivateKey.generate()
        context.load_verify_locations(
            cadata=b"".join(
                _certify(
                    Ed25519PublicKey.from_public_bytes(key),
                    key.hex(),
                    "nobody",
                    nobody,
                    is_issuer=True,
                ).public_bytes(Encoding.DER)
                for key in keys
            )
        )
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "link.pem"
            path.write_bytes(self._pem)
            context.load_cert_chain(path, password=self._password)
        return context


def _certify(
    key: Ed25519PublicKey,
    subject: str,
    issuer: str,
    signer: Ed25519PrivateKey,
    *,
    is_issuer: bool,
) -> x509.Certificate:
    def make_name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(make_name(subject))
        .issuer_name(make_name(issuer))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _VALIDITY)
        .not_valid_after(now + _VALIDITY)
        .add_extension(
            x509.BasicConstraints(ca=is_issuer, path_length=None), critical=True
        )
        .sign(signer, None)
    )
