"""Connections are bounded on arrival, and leave descriptors for what must work."""

import asyncio
import errno
import json
import multiprocessing
import os
import resource
import socket
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from adapters.descriptors import WANTED, Spares, find_room, raise_limit
from adapters.listening import Guest, Limits, Listener, compute_group
from adapters.modes.mpc import link as party_link
from adapters.modes.mpc.link import LinkError, LinkFailure, PartyLink
from consumers.node import http as node_http
from tests.flood import Sampler, count_open_files, files_left, flood
from tests.unit.adapters.modes.mpc.test_link import make_plans, wait_for
from tests.unit.consumers.node.test_http import Shell, ends, get, serving
from tests.unit.consumers.node.test_ledger_node import Bus, quick, short_log

__all__ = ["quick"]  # a fixture
LIMITS = Limits(connections=20, per_address=20, reserve=32, idle_s=60, age_s=60)


def in_a_process(call, *arguments):
    """Return what a function returns in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(call, *arguments).result()


# Descriptors


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [(200, WANTED * 2, WANTED), (200, 300, 300), (WANTED * 2,) * 3],
)
def test_the_limit_is_raised_as_far_as_may_be_and_never_lowered(
    monkeypatch, soft, hard, expected
):
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    raise_limit()
    assert limits[-1] == (expected, hard)


def take_all(held):
    with suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))


def give_back(held):
    while held:
        os.close(held.pop())


@pytest.mark.parametrize("gap", [0, 30, 100])
def test_room_is_what_is_left_but_for_the_reserve(gap):
    """What is open beyond a gap in the numbers is counted, below the limit alone."""
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(gap + 20)]
    for descriptor in sorted(held)[:gap]:
        os.close(descriptor)
        held.remove(descriptor)
    before = len(held)
    with files_left(40):
        room = find_room(10)
        take_all(held)
        assert room == len(held) - before - 10 == 30
        give_back(held)


def test_spares_are_there_when_nothing_else_is(tmp_path):
    spares, held = Spares(), []
    path = tmp_path / "votes"
    spares.call(lambda: path.write_bytes(b"1"))
    with files_left(10):
        take_all(held)
        for number in range(3):  # not once only
            spares.call(lambda number=number: path.write_bytes(b"%d" % number))
        with pytest.raises(OSError, match="Too many"):
            path.read_bytes()
        give_back(held)
    assert path.read_bytes() == b"2"
    spares._give_up()


def test_what_else_is_wrong_is_not_tried_again():
    calls = []

    def fail():
        calls.append(1)
        raise FileNotFoundError

    spares = Spares()
    with pytest.raises(FileNotFoundError):
        spares.call(fail)
    assert len(calls) == 1
    spares._give_up()


def test_a_vote_is_stored_when_no_descriptor_is_left(tmp_path):
    """Whoever has taken them: a client of Kafka, a leak."""
    log = short_log()
    bus = Bus(tmp_path, log)
    bus.show(records=log.records[:2], checkpoints=log.checkpoints[:2])
    bus.settle()
    before, held = bus["node0"].final_height, []
    with files_left(10):
        take_all(held)
        try:
            bus.show(records=log.records[2:], checkpoints=log.checkpoints[2:])
            bus.settle()
        finally:
            give_back(held)
    assert bus["node0"].final_height > before


# Who is put out


class Fake(Guest):
    is_open = True


def fake(address, number, *, is_busy=False):
    return Fake(None, address, number, None if is_busy else number)


def choose(guests, **limits):
    """Return who has to go after the last has come."""
    listener = Listener(None, replace(LIMITS, **limits))
    listener._guests = guests
    return listener._find_excess(guests[-1].address)


def test_the_guest_with_most_connections_gives_up_its_oldest_idle_one():
    many = [fake("a", n, is_busy=n < 2) for n in range(4)]
    few = [fake("b", -1), fake("c", -2)]
    assert choose([*many, *few]) is None
    assert choose([*many, *few], connections=6) is None
    assert choose([*many, *few], connections=5) is many[2]
    for guest in many:
        guest.idle_since_s = None
    assert choose([*many, *few], connections=5) is many[0]


def test_a_guest_with_too_many_connections_gives_up_one_of_its_own():
    guests = [fake("b", 0), *(fake("a", n) for n in range(1, 6))]
    assert choose(guests, per_address=5) is None
    assert choose(guests, per_address=4) is guests[1]
    assert choose(guests, per_address=4, connections=5) is guests[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("10.0.0.1", "::ffff:10.0.0.1"),
        ("2001:db8::1", "2001:db8::ffff:2"),
        ("fe80::1%eth0", "fe80::2"),
    ],
)
def test_addresses_that_count_as_one(one, other):
    assert compute_group(one) == compute_group(other)


def test_addresses_that_do_not():
    groups = {"10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1", "", "nonsense"}
    assert len({compute_group(address) for address in groups}) == len(groups)


# Floods


async def listen(limits, make_protocol=lambda _: asyncio.Protocol()):
    listener = Listener(make_protocol, limits)
    return listener, await listener.start("127.0.0.1", 0)


class flood_in_thread:  # noqa: N801  # read as a function
    """A flood that the loop need not wait for."""

    def __init__(self, port, **options):
        self._flood = flood(port, **options)

    async def __aenter__(self):
        await asyncio.to_thread(self._flood.__enter__)

    async def __aexit__(self, *error):
        self._flood.__exit__(*error)


@pytest.mark.parametrize(
    "limits",
    [{"per_address": 1_000}, {"connections": 1_000}],
    ids=["all", "address"],
)
def test_there_is_never_more_than_one_connection_too_many(limits):
    async def run():
        listener, port = await listen(replace(LIMITS, **limits))
        before = count_open_files()
        with Sampler() as sampler:
            async with flood_in_thread(port):
                deadline, left = time.monotonic() + 30, 1_000
                while left and time.monotonic() < deadline:
                    await asyncio.sleep(0)
                    assert len(listener.guests) <= 21
                    left -= len(listener.guests) >= 20  # it is full
        assert not left
        assert sampler.most - before <= 21 + 8  # and what makes the flood
        await listener.close()
        await asyncio.sleep(0.05)
        assert not listener.guests

    asyncio.run(run())


def test_connections_leave_the_reserve():
    limits = replace(LIMITS, connections=1_000, per_address=1_000)
    room = 30

    async def run():
        with files_left(limits.reserve + room):
            listener, port = await listen(limits)
            most, deadline, left = 0, time.monotonic() + 30, 1_000
            async with flood_in_thread(port):
                while left and time.monotonic() < deadline:
                    await asyncio.sleep(0)
                    most = max(most, len(listener.guests))
                    left -= most >= room // 2
            await listener.close()
        return most

    assert room // 2 <= asyncio.run(run()) <= room + limits.reserve // 4


def test_an_address_has_few_connections_and_others_are_let_in():
    """Another address of this machine stands for another host."""

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    async def run():
        limits = replace(LIMITS, per_address=1_000)
        listener, port = await listen(limits, lambda _: Echo())
        loop = asyncio.get_running_loop()
        async with flood_in_thread(port):
            with socket.create_connection(
                ("127.0.0.1", port), source_address=("127.0.0.2", 0)
            ) as other:
                other.setblocking(False)
                for number in range(20):
                    await loop.sock_sendall(other, b"%02d" % number)
                    got = await asyncio.wait_for(loop.sock_recv(other, 2), 20)
                    assert got == b"%02d" % number
                    await asyncio.sleep(0.01)
        await listener.close()

    asyncio.run(run())


POLL = b"GET /attestations?after=%d&wait=20 HTTP/1.1\r\nHost: x\r\n\r\n"
HALF = [
    b"",
    b"GET /chec",
    b"GET / HTTP/1.1\r\nHost: x\r\n",
    b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n1",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5000\r\nab",
]


def vote_in_a_flood(directory, name, limit, said):
    """Return what became of a node while a stranger's connections poured in."""
    os.fsync = lambda _: None
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    log = short_log()
    for _ in range(12):
        log.request_finality()
    bus = Bus(directory, log)
    bus.add("log", has_identity=False)
    bus.show(records=log.records[:2], checkpoints=log.checkpoints[:2])
    bus.settle()
    member = bus[name]
    before = member.final_height

    async def run():
        shell = Shell(member)
        async with serving(shell) as session:
            port = int(shell.url.rpartition(":")[2])
            with Sampler() as sampler:
                async with flood_in_thread(port, said=said):
                    for record, checkpoint in zip(
                        log.records[2:], log.checkpoints[2:], strict=True
                    ):
                        await asyncio.sleep(0.05)
                        bus.show(records=[record], checkpoints=[checkpoint])
                        bus.settle()
            status, _, _ = await get(session, f"{shell.url}/checkpoint")
            return sampler.most, status

    most, status = asyncio.run(run())
    return member.final_height - before, member.node.signs, most, status


@pytest.mark.parametrize(
    ("name", "said"),
    [("node0", b""), ("node0", POLL % 10_000), ("log", HALF[1])],
    ids=["idle", "polls", "log"],
)
def test_a_node_votes_and_stores_while_sockets_pour_in(tmp_path, name, said):
    limit = 256
    num_final, signs, most, status = in_a_process(
        vote_in_a_flood, tmp_path, name, limit, said
    )
    assert num_final >= 12
    assert signs is (name != "log")
    assert status == 200
    # The reserve is for the rest; some of it is the flood's pipe.
    assert most <= limit - node_http.RESERVED_DESCRIPTORS + 16


def link_in_a_flood(limit, said):
    """Return what a peer receives over a link that is made while strangers pour in."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    waiting, coming = make_plans(2)
    sent = np.arange(1_000, dtype=np.uint64)
    with ThreadPoolExecutor(1) as pool, Sampler() as sampler:
        first = pool.submit(PartyLink, waiting)
        wait_for(waiting)
        with (
            flood(waiting.peers[0].port, said=said),
            PartyLink(coming) as link,
            first.result() as other,
        ):
            link.send(0, sent)
            received = other.receive(1, max_size_bytes=sent.nbytes)
    return received.tolist() == sent.tolist(), sampler.most


HELLO = bytes.fromhex("1603010200010001fc0303")
"""The first bytes of a client of TLS that says no more."""


@pytest.mark.parametrize("said", [b"", HELLO])
def test_a_link_is_made_while_sockets_pour_in(said):
    limit = 256
    is_there, most = in_a_process(link_in_a_flood, limit, said)
    assert is_there
    assert most <= limit - party_link.RESERVED_DESCRIPTORS + 16


def test_without_descriptors_enough_nobody_begins(tmp_path):
    bus = Bus(tmp_path, short_log())
    plan, _ = make_plans(2)

    async def start():
        await Shell(bus["node0"]).start()

    with files_left(60):
        with pytest.raises(OSError, match=r"more are needed.*ulimit -n"):
            asyncio.run(start())
        with pytest.raises(LinkError, match=r"more are needed.*ulimit -n") as caught:
            PartyLink(plan)
    assert caught.value.reason == LinkFailure.CANNOT_LISTEN


# Slowness


async def trickle(port, said):
    """Say something, and go on a byte at a time, until it is cut off."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def go_on():
        writer.write(said)
        with suppress(ConnectionError):
            while True:
                await asyncio.sleep(0.05)
                writer.write(b"a")
                await writer.drain()

    going_on = asyncio.create_task(go_on())
    try:
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 20)
    finally:
        going_on.cancel()
        writer.close()


@pytest.mark.parametrize("said", HALF)
def test_a_request_that_does_not_end_is_ended(tmp_path, monkeypatch, said):
    monkeypatch.setattr(node_http, "IDLE_S", 0.5)

    async def test(shell, session, port):
        # Meanwhile somebody waits for an answer, which takes longer.
        poll = asyncio.create_task(
            get(
                session,
                f"{shell.url}/attestations?after={shell.node.feed.last}&wait=20",
            )
        )
        await asyncio.sleep(0.1)
        await trickle(port, said)
        assert not poll.done()
        poll.cancel()

    on_node(tmp_path, test)


@pytest.mark.parametrize("said", [b"", HELLO])
def test_a_handshake_that_does_not_end_is_ended(monkeypatch, said):
    monkeypatch.setattr(party_link, "HANDSHAKE_TIMEOUT_S", 0.5)
    plan, _ = make_plans(2, connect_timeout_s=6)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PartyLink, plan)
        wait_for(plan)
        asyncio.run(trickle(plan.peers[0].port, said))
        assert not waiting.done()  # it is not the end that ended it
        assert isinstance(waiting.exception(), LinkError)


# Requests


def on_node(tmp_path, test):
    bus = Bus(tmp_path, short_log())
    bus.run()

    async def run():
        shell = Shell(bus["node0"])
        async with serving(shell) as session:
            await test(shell, session, int(shell.url.rpartition(":")[2]))

    asyncio.run(run())


def test_what_is_sent_ahead_is_bounded(tmp_path):
    async def test(shell, session, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        last = shell.node.feed.last
        poll = f"GET /attestations?after={last}&wait=20 HTTP/1.1\r\nHost: x\r\n\r\n"
        writer.write(poll.encode())
        more = b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 4_000 + b"\r\n\r\n"
        for _ in range(node_http.MAX_UNREAD_BYTES // len(more) + 1):
            writer.write(more)
        assert await ends(reader)
        # Asking one after the other is never too much.
        for _ in range(600):
            async with session.get(
                f"{shell.url}/checkpoint", headers={"X-Long": "x" * 500}
            ) as answer:
                assert answer.status == 200
        assert len(shell.server._listener.guests) == 1  # all on one connection
        writer.close()

    on_node(tmp_path, test)


def test_a_client_that_has_gone_ends_its_wait(tmp_path):
    async def test(shell, _, port):
        last = shell.node.feed.last
        poll = f"GET /attestations?after={last}&wait=20 HTTP/1.1\r\nHost: x\r\n\r\n"
        before = len(asyncio.all_tasks())
        for _ in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(poll.encode())
            await asyncio.sleep(0.002)
            writer.transport.abort()
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > before + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    on_node(tmp_path, test)


def test_a_slow_reader_is_cut_off_when_others_need_the_room(tmp_path, monkeypatch):
    size = 4 * 2**20
    monkeypatch.setattr(node_http, "MAX_UNSENT_BYTES", 2 * size)
    status = json.dumps({"big": "x" * size})

    async def test(shell, session, port):
        shell.server._describe = lambda: json.loads(status)
        slow = []
        for _ in range(4):
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            one.setblocking(False)
            await asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", port))
            one.send(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            slow.append(one)
            await asyncio.sleep(0.1)
            held = sum(shell.server._unsent.values())
            assert 0 < held <= node_http.MAX_UNSENT_BYTES
        _, data, _ = await get(session, f"{shell.url}/status")
        assert len(data) > size
        assert len(shell.server._listener.guests) <= 2  # a slow one, and we
        for one in slow:
            one.close()

    on_node(tmp_path, test)


def test_slow_headers_and_bodies_keep_nobody_out(tmp_path, monkeypatch):
    monkeypatch.setattr(node_http, "MAX_CONNECTIONS_PER_ADDRESS", 6)

    async def test(shell, session, port):
        writers = []
        for said in (
            b"",
            b"GET /chec",
            b"GET / HTTP/1.1\r\nHost: x\r\n",
            b"POST /add-checkpoint HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        ) * 2:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            writers.append(writer)
            await asyncio.sleep(0.02)
            assert not any(guest.is_busy for guest in shell.server._listener.guests)
        assert (await get(session, f"{shell.url}/checkpoint"))[0] == 200
        assert len(shell.server._listener.guests) <= 6
        for writer in writers:
            writer.close()

    on_node(tmp_path, test)


def test_a_file_that_cannot_be_read_costs_one_answer(tmp_path, monkeypatch):
    async def test(shell, session, _):
        def fail(*_):
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr(shell.node.tiles, "read", fail)
        status, _, headers = await get(session, f"{shell.url}/tile/0/000.p/1")
        assert status == 503
        assert "Retry-After" in headers
        assert (await get(session, f"{shell.url}/status"))[0] == 200

    on_node(tmp_path, test)
