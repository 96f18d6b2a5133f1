"""Kafka's operator turns against the ledger, and holds the log's key as well.

Four ledger nodes have made blocks final. Then, on the real broker and one after the
other: a node that never ran is served another order, old blocks come again, records
are deleted, the topic is dropped and an old log put in its place, and then a rewritten
one with good hashes and good signatures. Every node must notice each, and an audit
what it can; what is final must stay what it was. `-s` prints how long it took until
the last node had seen it.
"""

import json
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from adapters.kafka import (
    MAX_RECORD_SIZE_BYTES,
    Record,
    create_topics,
    make_headers,
)
from adapters.keys import key_path, load_or_create_key
from adapters.log_client import LogClient
from cli.node import make_node
from cli.stack.processes import find_free_ports
from cli.stack.services import FAUST_SERVICES
from consumers.node.feed import AlertCode
from ledger.blocks import Chain, plan_block
from ledger.checkpoint import (
    Checkpoint,
    compute_origin,
    parse_checkpoint,
    sign_checkpoint,
)
from ledger.note import parse_note
from ledger.signing import SigningKey
from schemas import codec, topics
from schemas import events as e
from tests.integration.harness import (
    Federation,
    Puppet,
    Services,
    World,
    wait_until,
)
from tests.integration.other_kafka import ImpatientKafka

NAME = "victim"
NODES = ("ash", "beech", "cherry", "dune")
LATE = "dune"
"""The node that never ran before it is served another order."""
NUM_OLD = 3
"""Records of the old log that is put in the topic's place."""
SEEN_WITHIN_S = 30.0


@dataclass
class Siege:
    world: World
    federation: Federation
    urls: dict[str, str]
    log_key: SigningKey
    true_records: list[Record] = field(default_factory=list)
    heads: dict[str, Checkpoint] = field(default_factory=dict)

    @property
    def genesis(self) -> bytes:
        return self.federation.genesis

    @property
    def audit_state(self) -> Path:
        """Where an audit ended before the attacks."""
        return self.world.directory / "before-the-siege"

    def start(self, name: str, services: Services | None = None) -> None:
        (services or self.world.services).start(
            name, "serve", "ledger-node", "--federation", NAME, "--name", name,
            "--port", self.urls[name].rpartition(":")[2],
            "--operator-key", self.world.operator_key.public_key.hex(),
        )  # fmt: skip

    def status(self, name: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.urls[name]}/status", timeout=5) as got:
                found: dict[str, Any] = json.loads(got.read())
        except OSError:
            return {"final_height": -1, "alerts": []}
        return found

    def first_alert_s(
        self, name: str, codes: Sequence[AlertCode], since_s: float
    ) -> float:
        """Return when a node first raised one of these since then; 0 if it did not."""
        times = [
            alert["at_s"]
            for alert in self.status(name)["alerts"]
            if alert["code"] in {str(code) for code in codes}
        ]
        return min((at_s for at_s in times if at_s >= since_s), default=0.0)

    @contextmanager
    def seen_as(
        self, attack: str, *codes: AlertCode, by: Sequence[str] = NODES
    ) -> Iterator[None]:
        """Wait until each of these nodes raised one of these since this began, and
        print how long after the attack the last one did.
        """
        began_s = time.time()
        yield
        ended_s = time.time()
        seen_s = []
        for name in by:

            def find(name: str = name) -> float:
                return self.first_alert_s(name, codes, began_s)

            seen_s.append(wait_until(find, f"{name} sees {attack}", SEEN_WITHIN_S))
        print(f"{attack}: {', '.join(by)}: {max(seen_s) - ended_s:.1f} s")

    def audit(self, *arguments: str) -> set[str]:
        """Return the codes of an audit's findings; there must be some."""
        finished = self.world.moot(
            "audit", "--federation", NAME, "--no-blobs", "--json", "--jobs", "1",
            *arguments,
        )  # fmt: skip
        assert finished.returncode == 1, finished.stdout[-3000:] + finished.stderr
        report = json.loads(finished.stdout)
        assert not report["is_sound"]
        return {finding["code"] for finding in report["findings"]}

    def has_evidence(self) -> bool:
        """Whether a node has published that the log's key contradicts itself."""
        said = map(self.world.decode, self.world.records(topics.PROOFS, NAME))
        return any(
            isinstance(event, e.EquivocationProven)
            and event.public_key == self.log_key.public_key
            for event in said
        )

    def replace_ledger(self) -> World:
        """Drop the ledger's topic and make it anew; returns whence to write to it."""
        admin = _admin(self)
        admin.delete_topics([topics.LEDGER])[topics.LEDGER].result(30)
        wait_until(
            lambda: topics.LEDGER not in admin.list_topics(timeout=10).topics,
            "it is gone",
        )
        create_topics(self.world.settings)
        # A producer that knew the old topic may not find the new one at once.
        raw = Producer(
            {
                "log_level": 2,
                "bootstrap.servers": self.world.settings.bootstrap_servers,
                "message.max.bytes": MAX_RECORD_SIZE_BYTES,
            }
        )
        return replace(self.world, raw=raw)

    def await_final(self, height: int, *names: str) -> None:
        wait_until(
            lambda: min(self.status(n)["final_height"] for n in names) >= height,
            f"block {height} is final",
            60,
        )

    def say(self) -> int:
        """Put something on the log; returns the height of its block."""
        puppet = Puppet(self.world, NAME, f"puppet-{time.monotonic_ns()}")
        puppet.say(
            e.AgentEnrolmentRequested(
                federation_id=NAME,
                agent_id=puppet.name,
                public_key=puppet.key.public_key,
            )
        )
        self.federation.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
        return self.federation.blocks[-1].height

    def final_heads(self) -> dict[str, Checkpoint]:
        """Return each node's published checkpoint."""
        return {
            name: parse_checkpoint(parse_note(LogClient(url).fetch_checkpoint()).text)
            for name, url in self.urls.items()
        }

    def blocks(self, records: Sequence[Record] | None = None) -> list[e.BlockSequenced]:
        """Return the blocks in these records, or on the ledger now."""
        if records is None:
            records = self.world.records(topics.LEDGER, NAME)
        return [self.world.decode(record) for record in records]

    def forge(
        self, blocks: Sequence[e.BlockSequenced], leaves: Sequence[tuple[bytes, ...]]
    ) -> list[e.BlockSequenced]:
        """Return the blocks that the log's key could have made of other leaves."""
        chain, forged = Chain(), []
        for block, own in zip(blocks, leaves, strict=True):
            plan = plan_block(chain, own, block.sequenced_at_ms)
            made = replace(
                block,
                height=plan.header.height,
                previous_block_hash=plan.header.previous_block_hash,
                first_leaf_index=plan.header.first_leaf_index,
                leaves=own,
                tree_root=plan.header.tree_root,
                traceparents=("",) * len(own),
            )
            forged.append(made)
            chain = plan.seal(codec.encode(made))
        return forged

    def publish(
        self, world: World, event: e.BlockSequenced | e.CheckpointSigned
    ) -> None:
        data, value = world.registry.frame(event)
        world.produce(
            topics.topic_of(event),
            value,
            key=NAME.encode(),
            headers=make_headers(event, data, self.log_key, self.genesis, ""),
        )


@pytest.fixture(scope="module")
def siege(spoiled: World) -> Iterator[Siege]:
    world = spoiled
    ports = find_free_ports(len(NODES))
    urls = {
        name: f"http://127.0.0.1:{port}"
        for name, port in zip(NODES, ports, strict=True)
    }
    members = tuple(make_node(world.settings, *item) for item in urls.items())
    federation = world.found(NAME, ledger_nodes=members)
    keys = world.settings.state_directory / "keys"
    made = Siege(
        world,
        federation,
        urls,
        load_or_create_key(key_path(keys, "SEQUENCER")),
    )
    world.start_timer(NAME)
    for name in NODES:
        if name != LATE:
            made.start(name)
    federation.wait(e.FederationConfigured)
    for _ in range(4):
        height = made.say()
    made.await_final(height, *(name for name in NODES if name != LATE))
    saved = world.moot(
        "audit", "--federation", NAME, "--no-blobs", "--json",
        "--save", str(made.audit_state),
    )  # fmt: skip
    assert saved.returncode == 0, saved.stdout[-3000:] + saved.stderr
    yield made
    world.services.stop(*NODES)


def test_another_order_for_one_node_is_seen_and_healed(
    siege: Siege, other_kafka: ImpatientKafka, tmp_path: Path
) -> None:
    """A second Kafka has the same leaves in another order, signed with the log's key:
    that node sees it, says nothing false, and gets the true blocks from its peers.
    """
    blocks = siege.blocks()
    forged = siege.forge(blocks, _swap_two_applicants(blocks))
    other_kafka.delete_topics()
    create_topics(other_kafka.settings)
    servers = other_kafka.settings.bootstrap_servers
    raw = Producer({"bootstrap.servers": servers, "log_level": 2})
    for block in forged:
        siege.publish(replace(siege.world, raw=raw), block)
    elsewhere = Services(
        {**siege.world.environment, "MOOT_BOOTSTRAP_SERVERS": servers},
        tmp_path / "logs",
        siege.world.services.supervisor.fork_server,
    )
    with siege.seen_as(
        "another order for one node",
        AlertCode.FORK,
        AlertCode.KAFKA_REWRITTEN,
        by=[LATE],
    ):
        siege.start(LATE, elsewhere)
    # Its peers have the true blocks, and the certificates that make them final.
    siege.await_final(len(blocks) - 2, LATE)
    elsewhere.close()
    siege.start(LATE)
    siege.await_final(siege.say(), *NODES)
    heads = siege.final_heads()
    for head in heads.values():
        assert {other.root for other in heads.values() if other.size == head.size} == {
            head.root
        }


def _swap_two_applicants(
    blocks: Sequence[e.BlockSequenced],
) -> list[tuple[bytes, ...]]:
    """Return the blocks' leaves, two events the other way round.

    Where an event came from is the sequencer's word, so the forger keeps the order of
    the sources.
    """
    leaves = [list(block.leaves) for block in blocks]
    (one, first), (other, second) = [
        (height, leaf)
        for height, block in enumerate(blocks)
        if len(block.leaves) == 1
        for leaf in [codec.decode_as(e.Leaf, block.leaves[0])]
        if isinstance(codec.decode(leaf.event), e.AgentEnrolmentRequested)
    ][:2]
    for height, place, said in ((one, first, second), (other, second, first)):
        leaf = replace(place, event=said.event, signature=said.signature)
        leaves[height] = [codec.encode(leaf)]
    return [tuple(own) for own in leaves]


def test_old_blocks_that_come_again_are_seen(siege: Siege) -> None:
    siege.true_records = siege.world.records(topics.LEDGER, NAME)
    with siege.seen_as("old blocks again", AlertCode.KAFKA_REPLAYED):
        for record in siege.true_records[:NUM_OLD]:
            siege.world.produce(
                topics.LEDGER, record.value, key=record.key, headers=record.headers
            )
    assert "BROKEN_LOG" in siege.audit()


def test_deleted_records_are_seen(siege: Siege) -> None:
    admin = _admin(siege)
    with siege.seen_as("deleted records", AlertCode.KAFKA_TRUNCATED):
        kept = TopicPartition(topics.LEDGER, 0, siege.true_records[2].offset)
        (done,) = admin.delete_records([kept]).values()
        done.result(30)
    # What it reads is as it was: only that the beginning is gone tells.
    assert "LOG_TRUNCATED" in siege.audit("--from", str(siege.audit_state))


def test_an_old_log_in_place_of_the_topic_is_seen(siege: Siege) -> None:
    """What it holds is true, and all of it final: there was more."""
    siege.world.services.stop(*FAUST_SERVICES, f"timer-{NAME}")
    siege.heads = siege.final_heads()
    with siege.seen_as("an old log in the topic's place", AlertCode.KAFKA_RECREATED):
        anew = siege.replace_ledger()
        for record in siege.true_records[:NUM_OLD]:
            anew.produce(
                topics.LEDGER, record.value, key=record.key, headers=record.headers
            )
    assert "FINAL_BLOCK_DIFFERS" in siege.audit()
    assert "LOG_TRUNCATED" in siege.audit("--from", str(siege.audit_state))


def test_a_rewritten_log_with_good_signatures_is_seen_and_changes_nothing(
    siege: Siege,
) -> None:
    """One byte of one leaf, and everything after it computed and signed again."""
    blocks = siege.blocks(siege.true_records)
    leaves = [block.leaves for block in blocks]
    changed = bytearray(leaves[1][0])
    changed[-1] ^= 2  # its source offset
    leaves[1] = (bytes(changed), *leaves[1][1:])
    forged = siege.forge(blocks, leaves)
    with siege.seen_as("rewritten with the log's key", AlertCode.KAFKA_REWRITTEN):
        anew = siege.replace_ledger()
        for block in forged:
            siege.publish(anew, block)
    last = forged[-1]
    size = last.first_leaf_index + len(last.leaves)
    signed = e.CheckpointSigned(
        federation_id=NAME,
        height=last.height,
        checkpoint=sign_checkpoint(
            Checkpoint(compute_origin(NAME, siege.genesis), size, last.tree_root),
            siege.log_key,
        ).decode(),
    )
    with siege.seen_as(
        "two checkpoints of one size",
        AlertCode.EQUIVOCATION,
        AlertCode.CHECKPOINT_DIFFERS,
    ):
        siege.publish(siege.world, signed)
    wait_until(siege.has_evidence, "a node publishes the evidence", SEEN_WITHIN_S)
    # What is final stays what it was, for every node, and is still served.
    assert siege.final_heads() == siege.heads
    assert "FINAL_BLOCK_DIFFERS" in siege.audit()


def _admin(siege: Siege) -> AdminClient:
    servers = siege.world.settings.bootstrap_servers
    return AdminClient({"bootstrap.servers": servers, "log_level": 2})
