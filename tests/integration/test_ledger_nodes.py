"""Ledger nodes and the log server as processes, on a real Kafka."""

import json
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest

from adapters.log_client import LogClient
from adapters.vote_log import create_identity
from cli.node import node_directory
from ledger.checkpoint import parse_checkpoint
from ledger.note import parse_note
from ledger.policy import parse_policy
from ledger.tiles import tree_from_tiles
from schemas import events as e
from schemas import topics
from tests.integration.harness import Federation, Puppet, World, wait_until

NAME = "nodes"
ORIGIN = f"folkmoot/{NAME}"
NUM_NODES = 4


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def get(url: str, path: str) -> bytes:
    with urllib.request.urlopen(f"{url}/{path}", timeout=10) as answer:
        return answer.read()


@dataclass
class Nodes:
    """A federation with ledger nodes, the timer and the log server."""

    world: World
    federation: Federation
    urls: dict[str, str]
    log_url: str

    def status(self, name: str) -> dict:
        try:
            return json.loads(get(self.urls[name], "status"))
        except OSError:
            return {"final_height": -1, "published_size": 0, "alerts": []}

    def final_heights(self, *names: str) -> list[int]:
        return [self.status(name)["final_height"] for name in names or self.urls]

    def height(self) -> int:
        """The height of the last block so far."""
        records = self.world.records(topics.LEDGER, NAME)
        return len(records) - 1

    def wait_final(self, height: int, *names: str, timeout_s: float = 60) -> None:
        wait_until(
            lambda: min(self.final_heights(*names)) >= height,
            f"block {height} is final: {self.final_heights()}",
            timeout_s,
        )

    def say(self) -> int:
        """Put something on the log; returns the height of the block that has it."""
        puppet = Puppet(self.world, NAME, f"agent-{time.monotonic_ns()}")
        event = e.AgentEnrolmentRequested(
            federation_id=NAME,
            agent_id=puppet.name,
            public_key=puppet.key.public_key,
            display_name="A puppet",
        )
        puppet.say(event)
        self.federation.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
        return self.federation.blocks[-1].height

    def checkpoint(self, url: str):
        policy = parse_policy(get(url, "policy"))
        return policy.verify(get(url, "checkpoint"), ORIGIN)

    def start(self, name: str, *more: str) -> None:
        port = self.urls[name].rpartition(":")[2]
        self.world.services.start(
            name, "serve", "ledger-node", "--federation", NAME, "--name", name,
            "--port", port, "--operator-key", self.world.operator_key.public_key.hex(),
            *more,
        )  # fmt: skip


@pytest.fixture(scope="module")
def nodes(world: World):
    ports = free_ports(NUM_NODES + 1)
    urls = {f"n{i}": f"http://127.0.0.1:{ports[i]}" for i in range(NUM_NODES)}
    members = tuple(
        e.LedgerNode(
            name=name,
            public_key=create_identity(node_directory(world.settings, name)).public_key,
            url=url,
        )
        for name, url in urls.items()
    )
    federation = world.found(NAME, ledger_nodes=members)
    federation.wait(e.FederationConfigured)
    world.start_timer(NAME)
    made = Nodes(world, federation, urls, f"http://127.0.0.1:{ports[-1]}")
    for name in urls:
        made.start(name)
    world.services.start(
        "log", "serve", "log", "--federation", NAME, "--port", str(ports[-1])
    )
    yield made
    world.services.stop(*urls, "log")


def test_blocks_become_final_and_their_checkpoints_are_published(nodes: Nodes) -> None:
    height = nodes.say()
    nodes.wait_final(height)
    size = nodes.federation.leaves[-1].sequenced.leaf_index
    for url in (*nodes.urls.values(), nodes.log_url):
        wait_until(lambda: _size(url) >= size, "the checkpoint is published")
        verified = nodes.checkpoint(url)
        assert len(verified.cosignatures) >= 3
        head = verified.checkpoint
        client = LogClient(url)
        assert tree_from_tiles(client.read_tile, head.size).root() == head.root
    for name in nodes.urls:
        assert not nodes.status(name)["alerts"]
    policy = nodes.world.moot("node", "policy", "--federation", NAME).stdout
    assert get(nodes.log_url, "policy").decode() == policy


def _size(url: str) -> int:
    try:
        return parse_checkpoint(parse_note(get(url, "checkpoint")).text).size
    except OSError:
        return 0


def test_latency(nodes: Nodes) -> None:
    late = []
    for _ in range(15):
        height = nodes.say()
        at_ms = nodes.federation.blocks[height].sequenced_at_ms
        nodes.wait_final(height)
        late.append(time.time() * 1e3 - at_ms)
        time.sleep(1.5)
    print("latency ms", sorted(map(round, late)))
