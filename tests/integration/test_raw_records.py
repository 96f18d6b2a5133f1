"""Records that no client makes stop no process, and none of them grows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.kafka import read_partition
from cli.node import make_node
from cli.stack.processes import find_free_ports
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.hostile.batches import COMPRESSING, Codec, RawBatch, RawRecord, bomb
from tests.hostile.raw_client import RawClient
from tests.integration.harness import Puppet, World, run_world, wait_until
from tests.integration.test_ledger_nodes import Nodes

NAME = "poisoned"
MAX_GROWTH_BYTES = 200 * 2**20
BOMB_BYTES = 2**29
UNREADABLE = (
    RawBatch([RawRecord(key=NAME.encode(), headers=[(b"\xff\xfe", b"x")])]),
    RawBatch([RawRecord(key=NAME.encode(), offset_delta=2**31 - 1)]),
    RawBatch([RawRecord(key=NAME.encode(), offset_delta=-1)]),
    RawBatch([RawRecord(key=NAME.encode(), length=300)], codec=Codec.ZSTD),
    RawBatch([RawRecord(key=NAME.encode(), length=-1)], codec=Codec.GZIP),
)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # A stack of its own: others read every topic with clients that these would harm.
    with run_world(tmp_path_factory.mktemp("poisoned")) as running:
        yield running


def poison(world: World, topic: str) -> None:
    """Write what cannot be read, and what is too much, to a topic."""
    with RawClient(world.settings.bootstrap_servers) as client:
        for batch in UNREADABLE:
            assert client.produce(topic, batch.encode()).is_stored
        for codec in COMPRESSING:
            made = bomb(codec, BOMB_BYTES).encode()
            if len(made) < topics.MAX_EVENT_RECORD_SIZE_BYTES:
                assert client.produce(topic, made).is_stored


def peak_memory(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(pid)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts it")
def test_the_sequencer_refuses_what_cannot_be_read_and_goes_on(poisoned: World) -> None:
    federation = poisoned.found(NAME)
    federation.admit(Puppet(poisoned, NAME, "before"))
    pids = poisoned.services.pids("sequencer")
    before = peak_memory(pids["sequencer"])

    poison(poisoned, topics.CONTROL)

    def reasons() -> list[str]:
        refused = map(poisoned.decode, poisoned.records(topics.REJECTED))
        return [event.reason for event in refused]

    wait_until(
        lambda: (
            reasons().count(Reason.UNREADABLE_RECORD) == len(UNREADABLE)
            and Reason.BATCH_TOO_LARGE in reasons()
        ),
        "each is refused",
    )
    federation.admit(Puppet(poisoned, NAME, "after"))
    assert poisoned.services.pids("sequencer") == pids
    assert peak_memory(pids["sequencer"]) - before < MAX_GROWTH_BYTES

    poisoned.services.kill("sequencer")
    federation.admit(Puppet(poisoned, NAME, "later"))
    federation.wait(e.AgentAdmitted, agent_id="later")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts it")
def test_other_readers_go_on_too(poisoned: World) -> None:
    """Ledger node, timer and audit; what strangers write is there before and during."""
    (port,) = find_free_ports(1)
    url = f"http://127.0.0.1:{port}"
    member = make_node(poisoned.settings, "n0", url)
    federation = poisoned.found("read", ledger_nodes=(member,))
    nodes = Nodes(poisoned, federation, {"n0": url}, url)
    open_topics = (topics.ATTESTATIONS, topics.CHECKPOINTS, topics.LEDGER)
    for topic in open_topics:
        poison(poisoned, topic)
    federation.wait(e.FederationConfigured)
    poisoned.start_timer("read")
    nodes.start("n0")
    nodes.wait_final(nodes.say())

    processes = poisoned.services.pids("timer-read", "n0")
    before = {name: peak_memory(pid) for name, pid in processes.items()}
    for topic in open_topics:
        poison(poisoned, topic)
    nodes.wait_final(nodes.say())
    assert federation.audit()["is_sound"]
    assert poisoned.services.pids(*processes) == processes
    for name, pid in processes.items():
        assert peak_memory(pid) - before[name] < MAX_GROWTH_BYTES, name


def test_what_comes_after_it_is_read(poisoned: World) -> None:
    poison(poisoned, topics.ROUNDS)
    poisoned.produce(topics.ROUNDS, b"after", key=b"nobody")
    found = [r.value for r in read_partition(poisoned.settings, topics.ROUNDS, 0)]
    assert found == [b"after"]
