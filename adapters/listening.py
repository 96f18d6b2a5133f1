"""Listening to the public: as many connections as may be open, and no more.

asyncio accepts waiting connections, up to a hundred at once, before any code of ours is
asked. Here they are accepted one by one:

- **How many.** When one too many arrives, one is closed before the next is accepted. So
  there is never more than one too many.
- **Which one is closed.** One of the address with the most connections, so that a few
  addresses cannot keep out the others: its oldest idle one, or else its oldest. A
  network of IPv6 addresses as one customer gets (/64) counts as one address.
- **How long.** A client that does not complete a request, however it drags that out, is
  cut off after a while; the others after a longer one.
- **Descriptors.** Some are kept for other uses: see `adapters.descriptors`.

A flood from very many addresses still makes strangers displace each other, and takes
processor time; that is a firewall's job.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from adapters import alive
from adapters.descriptors import WANTED, find_room

MIN_CONNECTIONS: Final = 8
"""With room for fewer, there is no point in starting."""
_BACKLOG: Final = 128
_IPV6_NETWORK_BITS: Final = 64
_WAIT_S: Final = 0.05
_LOOK_S: Final = 0.25

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How many connections there may be, and for how long.

    Attributes:
        connections: In total.
        per_address: From one address.
        reserve: Descriptors left for other uses.
        idle_s: When a client that has not completed a request is cut off.
        age_s: When any client is.
    """

    connections: int
    per_address: int
    reserve: int
    idle_s: float
    age_s: float


@dataclass(slots=True, eq=False)
class Guest:
    """An accepted connection.

    Attributes:
        socket: Its socket.
        address: Its group of addresses; see `compute_group`.
        came_s: When it was accepted, in the loop's time.
        idle_since_s: Since when it is idle; None while it is served.
    """

    socket: socket.socket
    address: str
    came_s: float
    idle_since_s: float | None
    _task: asyncio.Task[Any] | None = field(default=None, repr=False)
    _transport: asyncio.Transport | None = field(default=None, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether it holds a descriptor."""
        return self.socket.fileno() >= 0

    @property
    def is_busy(self) -> bool:
        """Whether it is being served: idle ones are closed first."""
        return self.idle_since_s is None

    def begin(self) -> None:
        """Note that it is being served."""
        self.idle_since_s = None

    def end(self) -> None:
        """Note that it is idle again."""
        self.idle_since_s = asyncio.get_running_loop().time()

    def welcome(self, make: Callable[[], asyncio.BaseProtocol], **tls: Any) -> None:
        """Set up TLS, if any, and hand it to a protocol."""
        self._task = alive.start_task(self._connect(make, tls), "welcome")
        self._task.add_done_callback(self._leave)

    def put_out(self) -> None:
        """Close it, whatever is going on; its descriptor is free a moment later."""
        if self._transport is not None:
            self._transport.abort()
        elif self._task is not None:
            self._task.cancel()

    async def _connect(
        self, make: Callable[[], asyncio.BaseProtocol], tls: dict[str, Any]
    ) -> None:
        connect = asyncio.get_running_loop().connect_accepted_socket
        try:
            self._transport, _ = await connect(make, self.socket, **tls)
        except Exception as error:  # noqa: BLE001  # whatever a stranger's bytes cause
            log.debug("somebody came and went: %r", error)

    def _leave(self, _: asyncio.Task[Any]) -> None:
        if self._transport is None:
            self.socket.close()  # asyncio closed it too, if it got so far


class Listener:
    """Accepts connections. Made and used in one event loop.

    Args:
        make_protocol: Makes the protocol that serves a guest.
        limits: How many connections there may be.
        tls: The arguments of `loop.connect_accepted_socket` that begin with ``ssl``.
    """

    def __init__(
        self,
        make_protocol: Callable[[Guest], asyncio.BaseProtocol],
        limits: Limits,
        tls: dict[str, Any] | None = None,
    ) -> None:
        self._make_protocol = make_protocol
        self._limits = limits
        self._tls = tls or {}
        self._most = limits.connections
        self._guests: list[Guest] = []
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Args:
            host: A name or an address; empty for all of this machine's.
            port: 0 for any that is free.

        Raises:
            OSError: the port is taken, there is no such host, or the process may not
                open enough files.
        """
        room = find_room(self._limits.reserve)
        if room < MIN_CONNECTIONS:
            msg = (
                f"too few open files: at least {MIN_CONNECTIONS - room} more are needed"
                f" (`ulimit -n {WANTED}`, or LimitNOFILE= of systemd)"
            )
            raise OSError(errno.EMFILE, msg)
        self._most = min(room, self._limits.connections)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            for family, _, _, _, address in dict.fromkeys(found):
                listening = socket.create_server(
                    address, family=family, backlog=_BACKLOG
                )
                listening.setblocking(False)  # noqa: FBT003  # the standard library's
                self._sockets.append(listening)
        except OSError as error:
            self._close_sockets()
            msg = f"cannot listen on {host}:{port}: {error.strerror}"
            raise OSError(error.errno, msg) from error
        work = [self._accept_all(listening) for listening in self._sockets]
        self._tasks = [alive.start_task(w, "listen") for w in (self._watch(), *work)]
        return int(self._sockets[0].getsockname()[1])

    @property
    def guests(self) -> list[Guest]:
        """The open connections, in order of arrival."""
        self._guests = [guest for guest in self._guests if guest.is_open]
        return self._guests

    async def close(self) -> None:
        """Stop listening, and close idle connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_sockets()
        for guest in self.guests:
            if not guest.is_busy:
                guest.put_out()

    def _close_sockets(self) -> None:
        while self._sockets:
            self._sockets.pop().close()

    async def _accept_all(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:  # the system has no more, or the client left
                log.warning("a connection cannot be accepted: %s", error)
                await asyncio.sleep(_WAIT_S)
                continue
            now_s = loop.time()
            guest = Guest(accepted, compute_group(str(address[0])), now_s, now_s)
            self._guests.append(guest)
            guest.welcome(partial(self._make_protocol, guest), **self._tls)
            await asyncio.sleep(0)  # others have their turn in between
            while (excess := self._find_excess(guest.address)) is not None:
                excess.put_out()
                await asyncio.sleep(0)

    def _find_excess(self, address: str) -> Guest | None:
        """Return the connection to close now that one has come from an address."""
        guests = self.guests
        counts = Counter(guest.address for guest in guests)
        if counts[address] <= self._limits.per_address:
            if len(guests) <= self._most:
                return None
            address, _ = counts.most_common(1)[0]
        same = [guest for guest in guests if guest.address == address]
        return min(same, key=lambda guest: guest.is_busy)  # of equals, the oldest

    async def _watch(self) -> None:
        """Close connections that have lasted too long."""
        loop = asyncio.get_running_loop()
        while True:
            now_s = loop.time()
            for guest in self.guests:
                idle_since_s = guest.idle_since_s or now_s
                is_idle = now_s - idle_since_s > self._limits.idle_s
                if is_idle or now_s - guest.came_s > self._limits.age_s:
                    guest.put_out()
            await asyncio.sleep(_LOOK_S)


def compute_group(address: str) -> str:
    """Return the group that an address counts in: itself, or its network.

    Args:
        address: IPv4, IPv6, or IPv4 written as IPv6.
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _IPV6_NETWORK_BITS), strict=False))
