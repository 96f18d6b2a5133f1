"""Peers know each other by key, exchange arrays, and notice when one is gone."""

import asyncio
import contextlib
import hashlib
import logging
import os
import pickle
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.modes.mpc import link as party_link
from adapters.modes.mpc.link import (
    LINK_MAGIC,
    MAX_DIMENSIONS,
    READY,
    ArrayKind,
    LinkError,
    LinkFailure,
    LinkPlan,
    PartyLink,
    Peer,
)
from protocol.fields import ADDRESS

STRANGER = bytes([99]) * 32
UINT64 = np.dtype("<u8")


def public_key(seed):
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


GENESIS = b"g" * 32


def make_plans(num_peers, **settings):
    seeds = [bytes([rank + 1]) * 32 for rank in range(num_peers)]
    peers = tuple(Peer("127.0.0.1", free_port(), public_key(seed)) for seed in seeds)
    settings = {"connect_timeout_s": 20, "timeout_s": 20} | settings
    return [
        LinkPlan(rank=rank, peers=peers, seed=seed, genesis=GENESIS, **settings)
        for rank, seed in enumerate(seeds)
    ]


def wait_for(plan):
    """Wait until a peer listens."""
    peer = plan.peers[plan.rank]
    while True:
        try:
            socket.create_connection((peer.host, peer.port), timeout=20).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return


def together(*calls):
    """Run calls at the same time; return what they return or raise."""

    def attempt(call):
        try:
            return call()
        except LinkError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(attempt, calls))


@contextlib.contextmanager
def links(num_peers, **settings):
    plans = make_plans(num_peers, **settings)
    made = together(*(lambda plan=plan: PartyLink(plan) for plan in plans))
    assert all(isinstance(link, PartyLink) for link in made), made
    try:
        yield made
    finally:
        for link in made:
            link.close()


def fails(reason, peer):
    """Return a context that expects this error."""

    @contextlib.contextmanager
    def expect():
        with pytest.raises(LinkError) as caught:
            yield caught
        assert (caught.value.reason, caught.value.peer) == (reason, peer)

    return expect()


# Arrays


@pytest.mark.parametrize(
    "array",
    [
        np.array([0, 255], dtype=np.uint8),
        np.array([[-(2**63), 2**63 - 1]], dtype=np.int64),
        np.array([2**64 - 1], dtype=np.uint64),
        np.array(7, dtype=np.int64),
        np.zeros((0, 3), dtype=np.uint64),
        np.arange(24, dtype=np.int64).reshape(2, 3, 4).transpose(2, 0, 1),
        np.zeros((1,) * MAX_DIMENSIONS, dtype=np.uint8),
    ],
    ids=["bytes", "signed", "words", "scalar", "empty", "transposed", "dimensions"],
)
def test_arrays_arrive_as_they_were_sent(array):
    with links(2) as (first, second):
        second.send(0, array)
        received = first.receive(1, max_size_bytes=array.nbytes)
        assert received.dtype == array.dtype
        assert received.shape == array.shape
        np.testing.assert_array_equal(received, array)
        first.send(1, array)
        again = second.receive_as(0, ArrayKind.of(array))
        np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(1),
        np.zeros(1, dtype=np.int32),
        np.array([None]),
        np.zeros(1, dtype=">u8"),
        np.zeros((1,) * (MAX_DIMENSIONS + 1), dtype=np.uint8),
    ],
    ids=["float", "int32", "object", "big-endian", "dimensions"],
)
def test_what_no_frame_holds_is_not_sent(array):
    with pytest.raises(ValueError, match="no frame holds it"):
        ArrayKind.of(array)
    with links(2) as (first, _), pytest.raises(ValueError, match="no frame holds it"):
        first.send(1, array)


def test_everybody_exchanges_with_everybody_more_than_buffers_hold():
    size = 3_000_000  # 24 MB, several times what sockets and readers buffer
    with links(4) as made:

        def exchange(link):
            others = [rank for rank in range(4) if rank != link.rank]
            array = np.full(size, link.rank, dtype=np.uint64)
            return [
                int(got.min()) + int(got.max()) for got in link.exchange(array, others)
            ]

        assert together(*(lambda link=link: exchange(link) for link in made)) == [
            [2 * other for other in range(4) if other != rank] for rank in range(4)
        ]


def test_a_sender_waits_until_it_is_heard():
    with links(2, timeout_s=1.0) as (first, second):
        begun = time.monotonic()
        with fails(LinkFailure.TIMED_OUT, 1):
            first.send(1, np.zeros(8_000_000, dtype=np.uint64))
        assert 0.9 < time.monotonic() - begun < 10
        # Nor did the other take it into its memory meanwhile.
        reader = second._connections[0].reader
        assert len(reader._buffer) < 8_000_000


def test_a_message_leaves_while_the_sender_does_something_else():
    with links(2) as (first, second):
        array = np.arange(200_000, dtype=np.uint64)
        first.send(1, array)  # nothing more is asked of the first
        np.testing.assert_array_equal(second.receive_as(0, ArrayKind.of(array)), array)


def test_what_was_sent_before_hanging_up_arrives():
    with links(2) as (first, second):
        array = np.arange(50_000, dtype=np.uint64)
        first.send(1, array)
        closing = threading.Thread(target=first.close)
        closing.start()
        received = second.receive_as(0, ArrayKind.of(array))
        closing.join()
        np.testing.assert_array_equal(received, array)
        with fails(LinkFailure.LOST, 0):
            second.receive(0, max_size_bytes=1)


# Unexpected arrays


def test_an_array_of_another_kind_is_refused():
    array = np.zeros(4, dtype=np.uint64)
    for kind in (
        ArrayKind(UINT64, (5,)),
        ArrayKind(UINT64, (2, 2)),
        ArrayKind(np.dtype("<i8"), (4,)),
    ):
        with links(2) as (first, second):
            second.send(0, array)
            with fails(LinkFailure.UNEXPECTED, 1) as caught:
                first.receive_as(1, kind)
            assert "uint64 [4]" in caught.value.detail


def test_peers_that_exchange_different_shapes_both_say_so():
    with links(2) as (first, second):
        errors = together(
            lambda: first.exchange(np.zeros(1, dtype=np.uint64), [1]),
            lambda: second.exchange(np.zeros(2, dtype=np.uint64), [0]),
        )
        assert [(error.reason, error.peer) for error in errors] == [
            (LinkFailure.UNEXPECTED, 1),
            (LinkFailure.UNEXPECTED, 0),
        ]


def test_the_size_limit_is_exact_and_holds_before_the_body_comes():
    with links(2) as (first, second):
        second.send(0, np.zeros(4, dtype=np.uint64))
        assert first.receive(1, max_size_bytes=32).size == 4
        second.send(0, np.zeros(4, dtype=np.uint64))
        with fails(LinkFailure.UNEXPECTED, 1):
            first.receive(1, max_size_bytes=31)


def send_raw(link, peer, data):
    async def write():
        link._connections[peer].writer.write(data)

    link._run(write())


@pytest.mark.parametrize(
    "data",
    [
        bytes([3, 1]) + bytes(8),
        bytes([0, MAX_DIMENSIONS + 1]),
        bytes([2, 1]) + struct.pack("<Q", 2**64 - 1),
        bytes([2, 2]) + struct.pack("<QQ", 2**40, 2**40),
        pickle.dumps(np.zeros(4)),
    ],
    ids=["type", "dimensions", "huge", "huge product", "pickle"],
)
def test_bytes_other_than_a_frame_are_refused(data):
    with links(2) as (first, second):
        send_raw(second, 0, data)
        with fails(LinkFailure.UNEXPECTED, 1):
            first.receive(1, max_size_bytes=2**20)


# Who is gone


def test_a_peer_that_hung_up_is_named():
    with links(3) as (first, second, third):
        third.close()
        array = np.zeros(4, dtype=np.uint64)
        first_error, second_error = together(
            lambda: first.exchange(array, [1, 2]),
            lambda: second.exchange(array, [0, 2]),
        )
        for error in (first_error, second_error):
            assert (error.reason, error.peer) == (LinkFailure.LOST, 2)
            assert "peer 2: gone" in str(error)


def test_a_silent_peer_is_named_in_time():
    with links(2, timeout_s=0.5) as (first, _):
        begun = time.monotonic()
        with fails(LinkFailure.TIMED_OUT, 1):
            first.receive(1, max_size_bytes=1)
        assert 0.4 < time.monotonic() - begun < 10


CHILD = """
import sys, time
from adapters.modes.mpc.link import LinkPlan, PartyLink, Peer
ports, keys, seed = sys.argv[1].split(","), sys.argv[2].split(","), sys.argv[3]
peers = tuple(
    Peer("127.0.0.1", int(port), bytes.fromhex(key))
    for port, key in zip(ports, keys)
)
link = PartyLink(
    LinkPlan(rank=1, peers=peers, seed=bytes.fromhex(seed), genesis=b"g" * 32)
)
print("linked", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (signal.SIGKILL, LinkFailure.LOST),
        (signal.SIGSTOP, LinkFailure.TIMED_OUT),
    ],
)
def test_a_process_that_was_killed_or_stopped_is_named(sent, reason):
    plan, other = make_plans(2, timeout_s=3)
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            CHILD,
            ",".join(str(peer.port) for peer in plan.peers),
            ",".join(peer.public_key.hex() for peer in plan.peers),
            other.seed.hex(),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        with PartyLink(plan) as link:
            assert child.stdout.readline() == b"linked\n"
            os.kill(child.pid, sent)
            begun = time.monotonic()
            with fails(reason, 1):
                link.receive(1, max_size_bytes=1)
            assert time.monotonic() - begun < 10
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_peer_that_never_comes_is_named():
    plans = make_plans(3, connect_timeout_s=2)
    errors = together(lambda: PartyLink(plans[0]), lambda: PartyLink(plans[1]))
    assert {(error.reason, error.peer) for error in errors} == {
        (LinkFailure.NOT_REACHED, 2)
    }
    with fails(LinkFailure.NOT_REACHED, 0) as caught:
        PartyLink(plans[2])
    assert f"127.0.0.1:{plans[0].peers[0].port}" in caught.value.detail


@pytest.mark.parametrize(
    "address", [("127.0.0.1", 99_999), ("a..b", 80), (".", 80), ("a" * 64, 80)]
)
def test_an_address_that_leads_nowhere_is_an_error_like_others(address):
    """Whoever founds a federation chooses it, and names whom it likes as its parties:
    nothing else may come of it, or it would end the process that serves others too.
    """
    assert ADDRESS.fullmatch(f"{address[0]}:{address[1]}"), "a federation may have it"
    plans = make_plans(2, connect_timeout_s=0.5)
    nowhere = Peer(*address, plans[0].peers[0].public_key)
    peers = (nowhere, plans[0].peers[1])
    with fails(LinkFailure.NOT_REACHED, 0):
        PartyLink(replace(plans[1], peers=peers))
    with pytest.raises(LinkError):  # who listens there, if it can, waits for the other
        PartyLink(replace(plans[0], peers=peers))


def test_peers_may_come_late_in_any_order():
    plans = make_plans(3)

    def come(plan, delay_s):
        time.sleep(delay_s)
        with PartyLink(plan) as link:
            array = np.array([plan.rank], dtype=np.uint64)
            others = [rank for rank in range(3) if rank != plan.rank]
            return [int(got[0]) for got in link.exchange(array, others)]

    assert together(
        lambda: come(plans[0], 0.6),
        lambda: come(plans[1], 0.3),
        lambda: come(plans[2], 0),
    ) == [[1, 2], [0, 2], [0, 1]]


def test_a_peer_that_begins_again_while_others_connect_is_let_in():
    plans = make_plans(3)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(PartyLink, plans[0])
        wait_for(plans[0])
        # The last one reaches the first, but not the second, and gives up.
        with fails(LinkFailure.NOT_REACHED, 1):
            PartyLink(replace(plans[2], connect_timeout_s=1))
        second = pool.submit(PartyLink, plans[1])
        with PartyLink(plans[2]) as third, first.result() as link, second.result():
            third.send(0, np.array([5], dtype=np.uint64))
            assert link.receive(2, max_size_bytes=8).tolist() == [5]


def dial_as(plan):
    """Return a connection to peer 0 that only TLS has been spoken on."""
    context = party_link._Certificate(plan.seed).make_context(
        ssl.PROTOCOL_TLS_CLIENT, [plan.peers[0].public_key]
    )
    address = (plan.peers[0].host, plan.peers[0].port)
    return context.wrap_socket(socket.create_connection(address, timeout=20))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"X", LinkFailure.UNEXPECTED),
        (b"", LinkFailure.LOST),
        (None, LinkFailure.NOT_REACHED),
    ],
    ids=["something else", "gone", "silent"],
)
def test_a_peer_that_is_not_ready_is_named(said, reason):
    plan, other = make_plans(2, connect_timeout_s=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PartyLink, plan)
        wait_for(plan)
        with dial_as(other) as connection:
            connection.sendall(LINK_MAGIC + plan.digest + (said or b""))
            if said == b"":
                received = b""
                while not received.endswith(READY):
                    received += connection.recv(100)
                connection.close()
            error = waiting.exception()
    assert (error.reason, error.peer) == (reason, 1)


def test_a_peer_that_comes_twice_displaces_nobody_once_all_are_linked():
    plan, other = make_plans(2)
    greeting = LINK_MAGIC + plan.digest
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PartyLink, plan)
        wait_for(plan)
        with dial_as(other) as first, dial_as(other) as late:
            for connection in (first, late):
                assert connection.recv(len(greeting)) == greeting
            first.sendall(greeting + READY)
            with waiting.result() as link:
                late.sendall(greeting)
                assert late.recv(1) == b""
                link.send(1, np.array([7], dtype=np.uint8))
                expected = READY + ArrayKind(np.dtype("u1"), (1,)).encode() + b"\7"
                received = b""
                while len(received) < len(expected):
                    received += first.recv(100)
                assert received == expected


def test_a_port_that_is_taken_is_said():
    plan, _ = make_plans(2)
    with (
        socket.create_server(("127.0.0.1", plan.peers[0].port)),
        fails(LinkFailure.CANNOT_LISTEN, 0),
    ):
        PartyLink(plan)


# Who is who


def test_a_peer_that_answers_with_another_key_is_refused():
    plan, other = make_plans(2)
    fake = replace(
        plan,
        seed=STRANGER,
        peers=(replace(plan.peers[0], public_key=public_key(STRANGER)), plan.peers[1]),
        connect_timeout_s=2,
    )
    server, client = together(lambda: PartyLink(fake), lambda: PartyLink(other))
    assert (client.reason, client.peer) == (LinkFailure.WRONG_PEER, 0)
    assert (server.reason, server.peer) == (LinkFailure.NOT_REACHED, 1)


def test_a_peer_with_an_unknown_key_is_refused_and_keeps_nobody_out():
    plan, other = make_plans(2)
    peers = (plan.peers[0], replace(plan.peers[1], public_key=public_key(STRANGER)))
    stranger = replace(other, seed=STRANGER, peers=peers, connect_timeout_s=1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PartyLink, plan)
        wait_for(plan)
        with fails(LinkFailure.REFUSED, 0) as caught:
            PartyLink(stranger)
        assert "did not know our key" in caught.value.detail
        assert not waiting.done()
        with PartyLink(other), waiting.result():
            pass


def make_context(*, certificate=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def speak_plain(address):
    with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(LINK_MAGIC + bytes(32))
        return connection.recv(1000)


def show_no_certificate(address):
    with (
        socket.create_connection(address, timeout=5) as raw,
        make_context().wrap_socket(raw) as connection,
    ):
        connection.sendall(LINK_MAGIC + bytes(32))
        return connection.recv(1000)


@pytest.mark.parametrize("attempt", [speak_plain, show_no_certificate])
def test_a_peer_without_tls_or_a_certificate_gets_nothing(attempt):
    plan, other = make_plans(2)
    address = ("127.0.0.1", plan.peers[0].port)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PartyLink, plan)
        wait_for(plan)
        got = b""
        with contextlib.suppress(OSError):  # TLS or the connection is broken off
            got = attempt(address)
        assert LINK_MAGIC not in got
        assert not waiting.done()
        with PartyLink(other), waiting.result():
            pass


def test_even_a_peer_speaks_no_older_tls():
    plan, other = make_plans(2)
    context = party_link._Certificate(other.seed).make_context(
        ssl.PROTOCOL_TLS_CLIENT, [plan.peers[0].public_key]
    )
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PartyLink, plan)
        wait_for(plan)
        address = ("127.0.0.1", plan.peers[0].port)
        with (
            socket.create_connection(address, timeout=20) as raw,
            pytest.raises(OSError),  # broken off, in one way or another
        ):
            context.wrap_socket(raw)
        with PartyLink(other), waiting.result():
            pass


def test_nothing_readable_is_on_the_wire():
    plan, other = make_plans(2)
    seen = bytearray()
    behind = plan.peers[0].port
    front = free_port()

    async def carry(reader, writer):
        while data := await reader.read(2**16):
            seen.extend(data)
            writer.write(data)
        writer.close()

    async def serve(ready, stop):
        async def handle(reader, writer):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", behind)
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

        server = await asyncio.start_server(handle, "127.0.0.1", front)
        ready.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    ready, stop = threading.Event(), threading.Event()
    relay = threading.Thread(target=lambda: asyncio.run(serve(ready, stop)))
    relay.start()
    ready.wait()
    secret = np.frombuffer(hashlib.sha512(b"secret").digest() * 4, dtype=np.uint64)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(PartyLink, plan)
        wait_for(plan)  # the relay gives up at once where nobody listens
        away = replace(
            other, peers=(replace(plan.peers[0], port=front), other.peers[1])
        )
        with PartyLink(away) as second, waiting.result() as first:
            second.send(0, secret)
            np.testing.assert_array_equal(
                first.receive(1, max_size_bytes=1_000), secret
            )
    stop.set()
    relay.join()
    assert len(seen) > 1_000
    assert hashlib.sha512(b"secret").digest() not in seen
    assert LINK_MAGIC not in seen


def test_other_peers_or_another_order_are_refused():
    plans = make_plans(3, connect_timeout_s=3)
    a, b, c = plans[0].peers
    third = replace(plans[2], peers=(b, a, c))
    first, second, swapped = together(
        lambda: PartyLink(plans[0]),
        lambda: PartyLink(plans[1]),
        lambda: PartyLink(third),
    )
    assert swapped.reason == LinkFailure.OTHER_PEERS
    for error in (first, second):
        assert error.peer == 2
        assert error.reason in {LinkFailure.OTHER_PEERS, LinkFailure.NOT_REACHED}
    # Whoever the third spoke to knows why.
    assert LinkFailure.OTHER_PEERS in {first.reason, second.reason}


def test_another_version_of_the_protocol_is_refused():
    plan, other = make_plans(2, connect_timeout_s=2)
    connecting = party_link._Connecting(plan, {})
    connecting._greeting = b"folkmoot-link/v2\n" + plan.digest
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(asyncio.run, connecting.connect())
        with fails(LinkFailure.UNEXPECTED, 0):
            PartyLink(other)
        assert isinstance(served.exception(), LinkError)


def test_plans_are_checked():
    plan, _ = make_plans(2)
    for wrong in (
        {"rank": 1},
        {"rank": 2},
        {"rank": -2},
        {"peers": plan.peers[:1]},
        {"peers": (plan.peers[0],) * 2},
        {"seed": STRANGER},
    ):
        with pytest.raises(ValueError, match="peer"):
            replace(plan, **wrong)


def test_a_plan_shows_no_seed():
    plan, _ = make_plans(2)
    assert plan.seed.hex() not in repr(plan)
    assert repr(plan.seed) not in repr(plan)


def test_our_own_key_is_in_no_file(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(
        party_link.Path,
        "write_bytes",
        lambda path, data, write=party_link.Path.write_bytes: (
            written.append((path, data)),
            write(path, data),
        ),
    )
    with links(2):
        pass
    assert len(written) == 2
    for path, data in written:
        assert not path.exists()
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in data
        assert b"BEGIN PRIVATE KEY" not in data


def test_a_link_closes_once_and_errors_can_be_pickled():
    with links(2) as (first, _):
        first.close()
        first.close()
    error = pickle.loads(pickle.dumps(LinkError(LinkFailure.LOST, 3, "gone")))
    assert (error.reason, error.peer, error.detail) == (LinkFailure.LOST, 3, "gone")
    assert str(error) == "LOST: peer 3: gone"


def test_refusals_are_logged(caplog):
    plans = make_plans(2, connect_timeout_s=2)
    with caplog.at_level(logging.WARNING, logger="adapters.modes.mpc.link"):
        a, b = plans[0].peers
        third = replace(b, public_key=public_key(STRANGER))
        together(
            lambda: PartyLink(plans[0]),
            lambda: PartyLink(replace(plans[1], peers=(a, b, third))),
        )
    assert "OTHER_PEERS: peer 1" in caplog.text
