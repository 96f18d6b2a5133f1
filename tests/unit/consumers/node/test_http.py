"""A ledger node over real sockets: what it serves, and how it pulls from others."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from adapters import peers
from adapters.peers import Peer, PeerError, make_session
from consumers.node import http as node_http
from consumers.node import peers as node_peers
from consumers.node.http import NodeServer
from consumers.node.loop import NodeLoop
from consumers.node.peers import PeerPuller
from ledger.attestations import START
from ledger.checkpoint import parse_checkpoint
from ledger.finality import FinalityProof, verify_finality
from ledger.note import parse_note
from ledger.policy import parse_policy
from ledger.tiles import parse_entries, tree_from_tiles
from ledger.witness import monitoring_path
from schemas import codec
from schemas import events as e
from tests.builders import LogBuilder, build_log
from tests.unit.consumers.node.test_ledger_node import (
    NAMES,
    Bus,
    Member,
    quick,
    short_log,
    signed,
    two_trees,
)
from tests.witnessing import format_request

__all__ = ["quick"]  # a fixture
TILE = "application/octet-stream"
NOTE = "text/plain; charset=utf-8"


class Shell:
    """What `consumers.node.service` does around a node, but for Kafka."""

    def __init__(self, member, seeds=()):
        self.member = member
        self.node = member.node
        self.loop = NodeLoop(self.node)
        self.step = self.loop.step
        self.puller = PeerPuller(self.loop, seeds)
        self.server = NodeServer(
            self.node,
            step=self.loop.step,
            changed=self.loop.changed,
            describe=lambda: {"peers": self.puller.describe()},
        )

    async def start(self):
        port = await self.server.start("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{port}"


@asynccontextmanager
async def serving(*shells):
    async with make_session() as session:
        for shell in shells:
            await shell.start()
        try:
            yield session
        finally:
            for shell in shells:
                await shell.server.stop()


@pytest.fixture
def bus(tmp_path):
    bus = Bus(tmp_path, short_log())
    bus.run()
    return bus


def on(bus, name, test):
    """Run a test against a node's server."""

    async def run():
        shell = Shell(bus[name])
        async with serving(shell) as session:
            await test(shell, session)

    asyncio.run(run())


async def get(session, url):
    async with session.get(url) as answer:
        return answer.status, await answer.read(), answer.headers


# What is served


def test_the_log_is_served_as_tiles(bus):
    async def test(shell, session):
        status, note, headers = await get(session, f"{shell.url}/checkpoint")
        assert status == 200
        assert headers["Content-Type"] == NOTE
        assert headers["Cache-Control"] == "no-cache"
        status, policy, _ = await get(session, f"{shell.url}/policy")
        head = parse_policy(policy).verify(note, bus.log.origin).checkpoint
        tiles = {}
        for path in (f"0/000.p/{head.size}", f"entries/000.p/{head.size}"):
            status, tiles[path], headers = await get(
                session, f"{shell.url}/tile/{path}"
            )
            assert status == 200
            assert headers["Content-Type"] == TILE
            assert "immutable" in headers["Cache-Control"]
        tile, entries = tiles.values()
        assert tree_from_tiles(lambda *_: tile, head.size).root() == head.root
        leaves = [
            codec.decode(codec.decode(x).event)
            for x in parse_entries(entries, head.size)
        ]
        assert leaves == bus.log.leaves[: head.size]

    on(bus, "node0", test)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nothing",
        "checkpoint/",
        "checkpoint?x=1",
        "tile/0/000",  # a full one there is not yet
        "tile/0/000.p/0",
        "tile/0/000.p/255",
        "tile/00/000.p/1",
        "tile/0/0.p/1",
        "tile/0/000.p/1?x",
        "tile/0/000%2ep/1",
        "tile/0/000.p/1/",
        "tile/../checkpoint",
        "tile/../../blocks.sqlite",
        "tile/%2e%2e/%2e%2e/votes",
        "votes",
        "node.key",
        "blocks",
        "blocks/-1",
        "blocks/00",
        "blocks/99",
        "blocks/x",
        "blocks/" + "0" * 64,
        "blocks/" + "A" * 64,
        "blocks/0/0",
        "finality/1",
        "finality/x",
        "finality?era=0",
        "finality?era=0&height=1&era=1",
        "finality?era=0&height=x",
        "finality?era=0&height=1&x=1",
        "attestations?after=-1",
        "attestations?after=01",
        "attestations?after=1&after=2",
        "attestations?x=1",
        "attestations?after=99999999999999999999",
        "attestations/1",
        "0" * 64 + "/checkpoint",
        "status?x=1",
        "add-checkpoint",
    ],
)  # fmt: skip
def test_nothing_else_is_served(bus, path):
    async def test(shell, _):
        # By hand: a client would tidy the path up.
        port = int(shell.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        line = await reader.readline()
        writer.close()
        assert line.split()[1] in {b"404", b"400"}, line

    on(bus, "node0", test)


def test_only_what_is_needed_can_be_posted(bus):
    async def test(shell, session):
        for method, path, status in (
            ("POST", "/checkpoint", 404),
            ("POST", "/add-checkpoint?x=1", 404),
            ("POST", "/add-checkpoint", 400),
            ("PUT", "/add-checkpoint", 405),
            ("DELETE", "/checkpoint", 405),
        ):
            async with session.request(method, shell.url + path, data=b"x") as answer:
                assert answer.status == status
        async with session.post(
            f"{shell.url}/add-checkpoint", data=b"x" * (2**16 + 1)
        ) as answer:
            assert answer.status == 413

    on(bus, "node0", test)


def test_a_checkpoint_can_be_added(bus):
    async def test(shell, session):
        node = shell.node
        origin = monitoring_path(bus.log.origin)
        size, note = signed(bus.log, node.tree.final_height)
        assert size == node.consensus.votes.cosigned_size
        proof = node.tiles.consistency_proof(size, size)
        body = format_request(size, proof, note)
        async with session.post(f"{shell.url}/add-checkpoint", data=body) as answer:
            assert answer.status == 200
            line = await answer.read()
        status, cosigned, _ = await get(session, f"{shell.url}/{origin}")
        assert (status, cosigned) == (200, note + line)
        _, later = signed(bus.log)
        for old, added, expected in ((0, note, 409), (size + 9, later, 400)):
            body = format_request(old, (), added)
            async with session.post(f"{shell.url}/add-checkpoint", data=body) as answer:
                assert answer.status == expected
                if expected == 409:
                    assert answer.headers["Content-Type"] == "text/x.tlog.size"
                    assert await answer.read() == f"{size}\n".encode()

    on(bus, "node0", test)


def test_what_is_not_final_is_asked_for_again(tmp_path):
    bus = Bus(tmp_path, short_log())
    bus.show(checkpoints=[])

    async def test(shell, session):
        _, note = signed(bus.log)
        body = format_request(0, (), note)
        async with session.post(f"{shell.url}/add-checkpoint", data=body) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
        for path in ("checkpoint", "policy", monitoring_path(bus.log.origin)):
            assert (await get(session, f"{shell.url}/{path}"))[0] == 404

    on(bus, "node0", test)


def test_blocks_and_proofs_are_served(bus):
    async def test(shell, session):
        node, peer = shell.node, Peer(session, shell.url)
        for block in node.blocks.final_blocks():
            for which in (block.id, block.hash, block.height):
                assert await peer.fetch_block(which) == (block.data, block.signature)
        (pending,) = node.blocks.pending_blocks()
        assert await peer.fetch_block(pending.id) is not None
        assert await peer.fetch_block(pending.height) is None
        latest = node.blocks.last_proof()
        for path in ("finality", "finality/0", "finality?era=0&height=99"):
            assert (await get(session, f"{shell.url}/{path}"))[1] == latest
        data = await peer.fetch_proof(0, 0)
        proof = FinalityProof.from_bytes(data)
        verify_finality(node.nodes, proof, (-1, START))
        assert proof.header.height == 0
        assert await peer.fetch_proof(1, 0) is None

    on(bus, "node0", test)


def test_the_feed_is_a_long_poll(bus):
    async def test(shell, session):
        peer = Peer(session, shell.url)
        page = await peer.read_feed(0)
        assert page.final_height == shell.node.tree.final_height
        assert page.era == 0
        assert len(page.events) == len(shell.node.feed.read(0, 2**30))
        nothing = await peer.read_feed(page.last, wait_s=0)
        assert nothing == replace(page, events=())
        waiting = asyncio.create_task(peer.read_feed(page.last, wait_s=20))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        shell.step(lambda: shell.node.receive(two_trees(bus.log)))
        assert not waiting.done()  # evidence is not in the feed
        bus.log.request_finality()
        bus.show(bus["node0"])
        shell.step(lambda: None)
        after = await asyncio.wait_for(waiting, 5)
        assert {type(codec.decode(data)) for data in after.events} >= {
            e.CheckpointSigned
        }
        _, data, _ = await get(session, f"{shell.url}/evidence")
        (line,) = data.splitlines()
        proven = codec.decode(base64.b64decode(json.loads(line)["event"]))
        assert shell.node.evidence == [proven]

    on(bus, "node0", test)


def test_the_status_says_how_it_is(bus):
    async def test(shell, session):
        shell.step(lambda: shell.node.receive(two_trees(bus.log)))
        _, data, _ = await get(session, f"{shell.url}/status")
        status = json.loads(data)
        final = shell.node.tree.final.header
        assert status["name"] == "node0"
        assert status["signs"] is True
        assert status["final_height"] == final.height == status["pending_height"] - 1
        assert status["certified_height"] == final.height + 1
        assert status["final_size"] == status["cosigned_size"] == final.tree_size
        assert status["published_size"] == final.tree_size
        assert {alert["code"] for alert in status["alerts"]} == {"EQUIVOCATION"}
        assert status["peers"] == {}

    on(bus, "node0", test)


def test_without_ledger_nodes_the_logs_signature_is_the_policy(tmp_path):
    log = short_log(ledger_nodes=())
    bus = Bus(tmp_path, log, ())
    member = bus.add("log", has_identity=False)
    bus.show(member)

    async def test(shell, session):
        _, policy, _ = await get(session, f"{shell.url}/policy")
        _, note, _ = await get(session, f"{shell.url}/checkpoint")
        head = parse_policy(policy).verify(note, bus.log.origin).checkpoint
        assert head.size == len(log.leaves)
        assert (await get(session, f"{shell.url}/finality"))[0] == 404
        page = await Peer(session, shell.url).read_feed(0, wait_s=0)
        assert page.era == -1

    on(bus, "log", test)


async def ends(reader, within_s=5):
    """Return whether a connection is closed."""
    try:
        return await asyncio.wait_for(reader.read(1), within_s) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_old_and_many_connections_are_closed(bus, monkeypatch):
    monkeypatch.setattr(node_http, "MAX_CONNECTIONS_PER_ADDRESS", 3)

    async def test(shell, _):
        port = int(shell.url.rpartition(":")[2])
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
        readers = [reader for reader, _ in pairs]
        assert all([await ends(reader) for reader in readers[:2]])  # the oldest
        assert not await ends(readers[4], within_s=1.5)
        listener = shell.server._listener
        listener._limits = replace(listener._limits, age_s=0.0)
        assert await ends(readers[4])
        for _, writer in pairs:
            writer.close()

    on(bus, "node0", test)


# Pulling


async def wait_for(condition, what, timeout_s=20):
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # whatever it is
            await asyncio.sleep(0.02)


async def pull(late, *others, seeds=(), has_checkpoint=True):
    """Let a member catch up from others over HTTP alone."""
    shells = [Shell(other) for other in others]
    async with serving(*shells) as session:
        urls = [shell.url for shell in shells]
        shell = Shell(late, (*seeds, *urls))
        task = asyncio.create_task(shell.puller.run(session))
        goal = max(other.final_height for other in others)
        size = max(other.checkpoint.size for other in others)
        try:
            await wait_for(
                lambda: task.done() or late.final_height == goal, "the last block"
            )
            if has_checkpoint:
                await wait_for(
                    lambda: late.checkpoint and late.checkpoint.size == size,
                    "its checkpoint",
                )
            return shell.puller.describe()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_a_fresh_observer_catches_up_over_http_alone(tmp_path):
    log = build_log()
    bus = Bus(tmp_path, log, (*NAMES, "node4"))
    bus.run()
    late = bus.add("log", has_identity=False)
    described = asyncio.run(pull(late, bus["node0"]))
    assert late.node.nodes.era == 1
    (peer,) = described.values()
    assert peer["final_height"] == late.final_height
    assert peer["lag"] == 0
    assert peer["problem"] == ""


def test_it_takes_blocks_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(node_peers, "CATCH_UP_BLOCKS", 3)
    log = build_log()
    bus = Bus(tmp_path, log, (*NAMES, "node4"))
    bus.run()
    late = bus.add("log", has_identity=False)
    asyncio.run(pull(late, bus["node0"]))


def test_blocks_that_are_here_are_not_fetched_again(bus, monkeypatch):
    # The votes have been pruned there, so that it takes a proof.
    bus["node0"].node.feed.prune(era=9, height=0, size=0)
    late = bus.add("log", has_identity=False)
    bus.show(late)
    assert late.final_height == -1
    fetched = []
    real = Peer.fetch_block

    def fetch(peer, which):
        fetched.append(which)
        return real(peer, which)

    monkeypatch.setattr(Peer, "fetch_block", fetch)
    asyncio.run(pull(late, bus["node0"], has_checkpoint=False))
    assert not fetched


def test_a_node_that_restarts_far_behind_catches_up_and_signs(bus):
    bus.cut = {"node3"}
    for _ in range(5):
        bus.log.request_finality()
    bus.run()
    bus["node3"].restart()
    asyncio.run(pull(bus["node3"], bus["node1"]))
    assert bus["node3"].node.signs
    assert not bus["node3"].node.alerts.all()


def test_a_leader_gets_blocks_that_only_another_node_was_shown(bus):
    """While somebody leads, the others attest nothing that would tell of a block."""
    for member in bus.members.values():
        member.node._apply(member.node.consensus.give_up())
    bus.settle()
    assert bus["node1"].node.consensus.leader.name == "node1"
    (before,) = bus.heights()

    async def run():
        shells = [Shell(member) for member in bus.members.values()]
        async with serving(*shells) as session:
            for shell in shells:
                shell.puller._seeds = tuple(s.url for s in shells if s is not shell)
            tasks = [asyncio.create_task(s.puller.run(session)) for s in shells]
            await asyncio.sleep(0.5)  # all have heard all
            for _ in range(2):
                bus.log.request_finality()
            shown = shells[3]
            shown.step(lambda: bus.show(shown.member))
            for second in range(1, 7):  # nothing comes of it, and that is heard
                shown.step(lambda now_s=second: shown.node.tick(now_s))
            await wait_for(lambda: min(bus.heights()) > before, "a final block")
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_what_nobody_has_is_asked_for_less_and_less_often(bus, monkeypatch):
    monkeypatch.setattr(node_peers, "FETCH_AFTER_S", 0.05)
    asked = []

    async def fetch(_, which):
        asked.append(which)

    monkeypatch.setattr(Peer, "fetch_block", fetch)
    late = bus["node0"]

    async def run():
        shell = Shell(late)
        shell.puller._followed["x"] = node_peers._Followed(Peer(None, "http://x"))
        late.node.tree.missing = ((99, bytes(32)),)
        task = asyncio.create_task(shell.puller._fetch_wanted())
        await asyncio.sleep(1)
        task.cancel()

    asyncio.run(run())
    # After 0.05 s, then 0.1, 0.2, 0.4 and 0.8 later, at the earliest.
    assert asked[0] == bytes(32)
    assert 2 <= len(asked) <= 4


def test_a_tip_is_asked_for_once_a_page_and_only_if_it_is_news(bus):
    shell = Shell(bus["node0"])
    tree = bus["node0"].node.tree
    one = node_peers._Followed(Peer(None, "http://x"))
    shell.puller._followed["x"] = one

    async def wanted(*tip):
        one.tip = tip or None
        return list(shell.puller._find_wanted())

    height = tree.final_height
    assert asyncio.run(wanted()) == []
    assert asyncio.run(wanted(height + 9, bytes(32))) == [bytes(32)]
    assert asyncio.run(wanted(height, bytes(32))) == []
    assert tree.tip.header.height == height + 1
    assert asyncio.run(wanted(height + 1, tree.tip.hash)) == []


def hostile(handler):
    """Return a server that answers everything like this."""

    @asynccontextmanager
    async def serve():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    return serve()


FEED = {"moot-final-height": "99", "moot-era": "0"}


async def answer_with_nothing(_):
    return web.Response(status=500)


async def answer_too_much(_):
    return web.Response(body=b"x" * 10_000, headers=FEED)


async def answer_elsewhere(_):
    raise web.HTTPFound("http://127.0.0.1:1/")


async def answer_compressed(_):
    return web.Response(body=b"", headers={**FEED, "Content-Encoding": "gzip"})


async def answer_without_headers(_):
    return web.Response(body=b"")


async def answer_no_json(_):
    return web.Response(body=b"[" * 5_000, headers=FEED)


async def answer_another_json(_):
    return web.Response(body=b'{"number": []}\n', headers=FEED)


async def answer_never(_):
    await asyncio.sleep(60)


HOSTS = [
    answer_with_nothing,
    answer_too_much,
    answer_elsewhere,
    answer_compressed,
    answer_without_headers,
    answer_no_json,
    answer_another_json,
    answer_never,
]


@pytest.mark.parametrize("handler", HOSTS)
def test_what_a_peer_must_not_answer_is_an_error(handler, monkeypatch):
    monkeypatch.setattr(peers, "FETCH_TIMEOUT_S", 0.3)
    monkeypatch.setattr(peers, "MAX_FEED_SIZE_BYTES", 9_000)

    async def run():
        async with hostile(handler) as url, make_session() as session:
            with pytest.raises(PeerError):
                await Peer(session, url).read_feed(0, wait_s=0)

    asyncio.run(run())


def test_blocks_have_a_size_limit_and_may_be_missing(monkeypatch):
    monkeypatch.setattr(peers, "MAX_BLOCK_SIZE_BYTES", 9_000)

    async def nothing(_):
        return web.Response(status=404)

    async def run():
        async with make_session() as session:
            async with hostile(answer_too_much) as url:
                with pytest.raises(PeerError, match="more than 9000 bytes"):
                    await Peer(session, url).fetch_block(0)
            async with hostile(nothing) as url:
                assert await Peer(session, url).fetch_block(0) is None
                assert await Peer(session, url).fetch_proof(0, 0) is None
                with pytest.raises(PeerError, match="no feed"):
                    await Peer(session, url).read_feed(0)
            with pytest.raises(PeerError):
                await Peer(session, url).fetch_block(0)  # nobody is there any more
            with pytest.raises(PeerError):
                await Peer(session, "nonsense").fetch_block(0)

    asyncio.run(run())


async def answer_lies(request):
    """Far ahead, with a feed of rubbish, proofs of nothing and blocks of others."""
    if request.path == "/attestations":
        events = (b"rubbish", codec.encode(e.BlockAttested(
            federation_id="clinics", era=0, epoch=0, height=1, block_id=bytes(32),
            public_key=bytes(32), signature=bytes(64),
        )))  # fmt: skip
        lines = [
            json.dumps({"number": n, "event": base64.b64encode(data).decode()}) + "\n"
            for n, data in enumerate(events, 1)
        ]
        return web.Response(body="".join(lines).encode(), headers=FEED)
    if request.path == "/finality":
        return web.Response(body=b"folkmoot-finality/v1\nnothing")
    return web.Response(body=bytes(64) + b"not a block")


@pytest.mark.parametrize("handler", [*HOSTS, answer_lies])
def test_one_honest_peer_is_enough(tmp_path, monkeypatch, handler):
    monkeypatch.setattr(peers, "FETCH_TIMEOUT_S", 0.5)
    bus = Bus(tmp_path, short_log())
    bus.run()
    late = bus.add("log", has_identity=False)

    async def run():
        async with hostile(handler) as url:
            return url, await pull(late, bus["node0"], seeds=(url,))

    url, described = asyncio.run(run())
    assert described[url]["problem"] or handler in {answer_never, answer_lies}
    assert not late.node.alerts.all()


def test_nodes_are_found_on_the_log(tmp_path):
    """A node follows those that its era names, without itself."""

    async def run():
        servers = []
        for _ in range(2):
            server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
            servers.append(server)
        urls = [
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for server in servers
        ]
        log = LogBuilder(ledger_nodes=("node0", "node1"))
        member = Member(tmp_path, "node0", log)
        shell = Shell(member, ("http://127.0.0.1:1/",))
        named = tuple(
            e.LedgerNode(name=name, public_key=bytes([n]) * 32, url=url + "/")
            for n, (name, url) in enumerate(zip(("node0", "node1"), urls, strict=True))
        )

        class Named:
            era = 0
            nodes = named

        class Node:
            nodes = Named
            name = "node0"
            tree = member.node.tree

        shell.puller._node = Node()
        async with make_session() as session:
            shell.puller._refresh(session)
            assert set(shell.puller.describe()) == {urls[1], "http://127.0.0.1:1"}
            Named.nodes = named[:1]
            shell.puller._refresh(session)
            assert set(shell.puller.describe()) == {"http://127.0.0.1:1"}
            for followed in shell.puller._followed.values():
                followed.task.cancel()
        for server in servers:
            server.close()

    asyncio.run(run())


def test_the_clients_of_other_programs_are_served(bus):
    """`adapters.log_client` is what receipts are made with: another HTTP client."""
    from adapters.log_client import LogClient

    async def test(shell, _):
        client = LogClient(shell.url)
        note = await asyncio.to_thread(client.fetch_checkpoint)
        head = parse_checkpoint(parse_note(note).text)
        read = await asyncio.to_thread(tree_from_tiles, client.read_tile, head.size)
        assert read.root() == head.root

    on(bus, "node0", test)
