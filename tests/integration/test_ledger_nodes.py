"""Ledger nodes and the log server as processes, on a real Kafka."""

import json
import os
import random
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
from minio import Minio

from adapters.kafka import KafkaUnavailableError
from adapters.log_client import LogClient
from adapters.topic_watch import TopicWatcher
from adapters.vote_log import VOTES_FILE, create_identity
from cli.node import make_node, node_directory
from cli.stack.processes import find_free_ports, kill_owned, spawn_owned
from cli.stack.stack import KAFKA
from ledger.checkpoint import compute_origin, parse_checkpoint
from ledger.equivocation import find_contradiction
from ledger.note import parse_note
from ledger.policy import parse_policy
from ledger.tiles import tile_path, tree_from_tiles
from schemas import events as e
from schemas import topics
from tests.integration.harness import Federation, Puppet, World, wait_until
from tests.paths import ROOT
from tests.witnessing import format_request

NAME = "nodes"
NUM_NODES = 4


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

    @property
    def name(self) -> str:
        return self.federation.name

    @property
    def origin(self) -> str:
        """The origin of its checkpoints."""
        return compute_origin(self.name, self.federation.genesis)

    def height(self) -> int:
        """The height of the last block so far."""
        records = self.world.records(topics.LEDGER, self.name)
        return len(records) - 1

    def wait_final(self, height: int, *names: str, timeout_s: float = 60) -> None:
        wait_until(
            lambda: min(self.final_heights(*names)) >= height,
            f"block {height} is final: {self.final_heights()}",
            timeout_s,
        )

    def say(self) -> int:
        """Put something on the log; returns the height of the block that has it."""
        puppet = Puppet(self.world, self.name, f"agent-{time.monotonic_ns()}")
        event = e.AgentEnrolmentRequested(
            federation_id=self.name,
            agent_id=puppet.name,
            public_key=puppet.key.public_key,
        )
        puppet.say(event)
        self.federation.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
        return self.federation.blocks[-1].height

    def checkpoint(self, url: str):
        policy = parse_policy(get(url, "policy"))
        return policy.verify(get(url, "checkpoint"), self.origin)

    def start(self, name: str, *more: str) -> None:
        port = self.urls[name].rpartition(":")[2]
        self.world.services.start(
            name, "serve", "ledger-node", "--federation", self.name, "--name", name,
            "--port", port, "--operator-key", self.world.operator_key.public_key.hex(),
            *more,
        )  # fmt: skip


@pytest.fixture(scope="module")
def nodes(world: World):
    ports = find_free_ports(NUM_NODES + 1)
    urls = {f"n{i}": f"http://127.0.0.1:{ports[i]}" for i in range(NUM_NODES)}
    members = tuple(make_node(world.settings, *item) for item in urls.items())
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
    world.services.stop(*urls, "log", f"timer-{NAME}")


def test_blocks_become_final_and_their_checkpoints_are_published(nodes: Nodes) -> None:
    height = nodes.say()
    nodes.wait_final(height)
    size = nodes.federation.leaves[-1].sequenced.leaf_index
    for url in (*nodes.urls.values(), nodes.log_url):
        wait_until(lambda url=url: _size(url) >= size, "the checkpoint is published")
        verified = nodes.checkpoint(url)
        assert len(verified.cosignatures) >= 3
        head = verified.checkpoint
        client = LogClient(url)
        assert tree_from_tiles(client.read_tile, head.size).root() == head.root
    for name in nodes.urls:
        assert not nodes.status(name)["alerts"]
    policy = nodes.world.moot("node", "policy", "--federation", NAME).stdout
    comment, _, shown = policy.partition("\n")
    assert comment.endswith("era 0: the present one")
    assert get(nodes.log_url, "policy").decode() == shown


def _size(url: str) -> int:
    try:
        return parse_checkpoint(parse_note(get(url, "checkpoint")).text).size
    except OSError:
        return 0


def test_a_witness_client_is_answered(nodes: Nodes) -> None:
    url = nodes.urls["n0"]
    nodes.wait_final(nodes.say())
    status = nodes.status("n0")
    size = status["cosigned_size"]
    note = next(
        note
        for record in nodes.world.records(topics.CHECKPOINTS, NAME)
        for note in [nodes.world.decode(record).checkpoint.encode()]
        if parse_checkpoint(parse_note(note).text).size == size
    )
    request = urllib.request.Request(
        f"{url}/add-checkpoint", format_request(0, (), note), method="POST"
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=10)
    assert caught.value.code == 409
    assert int(caught.value.read()) >= size


@pytest.mark.parametrize("turns", [3, pytest.param(20, marks=pytest.mark.nightly)])
def test_kills_of_nodes_end_in_agreement_and_no_contradiction(
    nodes: Nodes, turns: int
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(turns):
        nodes.say()
        for name in draw.sample(sorted(nodes.urls), draw.choice((1, 1, 2))):
            nodes.world.services.kill(name)
            time.sleep(draw.uniform(0, 0.3))
    height = nodes.say()
    nodes.wait_final(height, timeout_s=150)
    ids = set()
    for url in nodes.urls.values():
        data = get(url, f"blocks/{height}")
        ids.add(data)
    assert len(ids) == 1
    check_attestations(nodes.world, NAME)
    report = nodes.federation.audit()
    assert report["is_sound"]


def check_attestations(world: World, federation: str) -> None:
    """Check that nobody contradicts itself on the topic."""
    said: dict[bytes, list] = {}
    for record in world.records(topics.ATTESTATIONS, federation):
        event = world.decode(record)
        if isinstance(event, e.BlockAttested | e.EpochRequested):
            said.setdefault(event.public_key, []).append(event)
    assert said
    for messages in said.values():
        blocks = [m for m in messages if isinstance(m, e.BlockAttested)]
        requests = [m for m in messages if isinstance(m, e.EpochRequested)]
        by_place: dict = {}
        for m in blocks:
            place = m.era, m.epoch, m.height
            assert by_place.setdefault(place, m.block_id) == m.block_id
        for request in requests:
            for m in blocks:
                assert find_contradiction((m, request)) is None
                for other in blocks:
                    assert find_contradiction((m, other, request)) is None


def test_two_of_four_wait_and_three_go_on(nodes: Nodes) -> None:
    world = nodes.world
    world.services.stop("n2", "n3")
    height = nodes.say()
    time.sleep(3)
    assert max(nodes.final_heights("n0", "n1")) < height
    nodes.start("n2")
    nodes.wait_final(height, "n0", "n1", "n2", timeout_s=150)
    nodes.start("n3")
    nodes.wait_final(height, timeout_s=60)


def test_an_outage_of_kafka_stops_nobody(nodes: Nodes) -> None:
    height = nodes.say()
    nodes.wait_final(height)
    nodes.world.stack.kill(KAFKA)
    for _ in range(5):
        assert min(nodes.final_heights()) >= height
        time.sleep(1)
    nodes.world.stack.start_service(KAFKA)
    wait_until(lambda: _try_to_say(nodes) > height, "Kafka is back", 120)
    nodes.wait_final(nodes.federation.blocks[-1].height, timeout_s=120)
    for name in nodes.urls:
        assert not nodes.status(name)["alerts"]


def _try_to_say(nodes: Nodes) -> int:
    try:
        return nodes.say()
    except KafkaUnavailableError:
        return -1


def test_the_log_is_mirrored(nodes: Nodes) -> None:
    nodes.wait_final(nodes.say())
    client = Minio(
        nodes.world.settings.minio_endpoint,
        access_key=nodes.world.settings.minio_access_key.get_secret_value(),
        secret_key=nodes.world.settings.minio_secret_key.get_secret_value(),
        secure=False,
    )

    def read(path: str) -> bytes:
        answer = client.get_object(
            bucket_name=nodes.world.settings.bucket, object_name=f"log/{NAME}/{path}"
        )
        try:
            return answer.read()
        finally:
            answer.close()
            answer.release_conn()

    wait_until(
        lambda: read("checkpoint") == get(nodes.log_url, "checkpoint"), "the copy"
    )
    head = parse_checkpoint(parse_note(read("checkpoint")).text)
    tree = tree_from_tiles(lambda *tile: read(tile_path(*tile)), head.size)
    assert tree.root() == head.root


DRIVER = """
import sys
from pathlib import Path
from adapters.settings import load_settings
from cli.stack.services import _stop_on_signal
from consumers.node.service import NodeOptions, NodeService

federation, directory, port, is_node, read, *peers = sys.argv[1:]
NodeService(
    load_settings(),
    NodeOptions(
        federation_id=federation,
        directory=Path(directory),
        is_node=is_node == "node",
        port=int(port),
        peers=tuple(peers),
        kafka_topics=frozenset(read.split(",") if read else ()),
    ),
).run(_stop_on_signal())
"""


def test_http_alone_is_enough(world: World) -> None:
    """No attestation goes to Kafka or is read from it; the last node gets nothing at
    all from Kafka, and neither does the log server.
    """
    name = "unheard"
    ports = find_free_ports(NUM_NODES + 1)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    directories = [node_directory(world.settings, f"m{i}") for i in range(NUM_NODES)]
    members = tuple(
        make_node(world.settings, f"m{i}", urls[i]) for i in range(NUM_NODES)
    )
    federation = world.found(name, ledger_nodes=members)
    federation.wait(e.FederationConfigured)
    world.start_timer(name)
    logs = world.directory / "logs"
    environment = {**os.environ, **world.environment, "PYTHONPATH": str(ROOT)}

    def spawn(number: int, *arguments: str) -> subprocess.Popen:
        return spawn_owned(
            [sys.executable, "-c", DRIVER, name, *arguments],
            env=environment,
            log_path=logs / f"unheard-{number}.log",
        )

    read = f"{topics.LEDGER},{topics.CHECKPOINTS}"
    processes = [
        spawn(i, str(directories[i]), str(ports[i]), "node", read)
        for i in range(NUM_NODES - 1)
    ]
    try:
        processes.append(
            spawn(3, str(directories[3]), str(ports[3]), "node", "", *urls[:3])
        )
        directory = world.settings.state_directory / "log" / name
        processes.append(spawn(4, str(directory), str(ports[4]), "log", "", *urls[1:2]))
        for number in range(3):
            puppet = Puppet(world, name, f"agent{number}")
            puppet.say(
                e.AgentEnrolmentRequested(
                    federation_id=name,
                    agent_id=puppet.name,
                    public_key=puppet.key.public_key,
                )
            )
            federation.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
        height = federation.blocks[-1].height

        def heights() -> list[int]:
            try:
                return [json.loads(get(u, "status"))["final_height"] for u in urls]
            except OSError:
                return [-1]

        wait_until(lambda: min(heights()) >= height, "everybody has it", 120)
        wait_until(lambda: _size(urls[4]) > 0, "the log is published")
        policy = parse_policy(get(urls[3], "policy"))
        for url in urls:
            origin = compute_origin(name, federation.genesis)
            wait_until(lambda url=url: _size(url) > 0, "a checkpoint")
            assert len(policy.verify(get(url, "checkpoint"), origin).cosignatures) >= 3
        assert not world.records(topics.ATTESTATIONS, name)
    finally:
        for process in processes:
            kill_owned(process)
        world.services.stop(f"timer-{name}")


def test_a_key_without_its_votes_is_refused(world: World) -> None:
    directory = node_directory(world.settings, "lost")
    create_identity(directory)
    (directory / VOTES_FILE).unlink()
    finished = world.moot(
        "serve", "ledger-node", "--federation", NAME, "--name", "lost", "--port", "0"
    )
    assert finished.returncode != 0
    assert "VOTE_LOG_LOST" in finished.stderr
    assert "make a new one" in finished.stderr


def test_kafka_is_asked_about_the_ledger(nodes: Nodes) -> None:
    watcher = TopicWatcher(nodes.world.settings, topics.LEDGER, 0)
    facts = watcher.look()
    watcher.close()
    assert facts.first == 0
    assert facts.end > nodes.height()
    assert len(facts.topic_id) > 8
