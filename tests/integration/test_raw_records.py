"""Records that no client makes stop no process, and none of them grows."""

from pathlib import Path

import pytest

from adapters.kafka import find_bounds, read_partition
from cli.node import make_node
from cli.stack.processes import find_free_ports
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.hostile.batches import COMPRESSING, Codec, RawBatch, RawRecord, bomb
from tests.hostile.raw_client import RawClient
from tests.integration.harness import Puppet, World, find_worker, wait_until
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
def poisoned(spoiled: World) -> World:
    # Others read every topic with clients that these would harm.
    return spoiled


def poison(world: World, topic: str) -> None:
    """Write what cannot be read, and what is too much, to a topic."""
    with RawClient(world.settings.bootstrap_servers) as client:
        for batch in UNREADABLE:
            assert client.produce(topic, batch.encode()).is_stored
        for codec in COMPRESSING:
            made = bomb(codec, BOMB_BYTES).encode()
            if len(made) < topics.MAX_EVENT_RECORD_SIZE_BYTES:
                assert client.produce(topic, made).is_stored


class Memory:
    """The memory of services, not of the guards that they run under."""

    def __init__(self, world: World, *names: str) -> None:
        self._workers = {
            name: find_worker(pid) for name, pid in world.services.pids(*names).items()
        }
        for pid in self._workers.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # its peak begins anew
        self._before = {name: self._peak(pid) for name, pid in self._workers.items()}

    def demand_little_growth(self) -> None:
        """Demand that none has needed much more since."""
        for name, pid in self._workers.items():
            grown = self._peak(pid) - self._before[name]
            assert grown < MAX_GROWTH_BYTES, name

    @staticmethod
    def _peak(pid: int) -> int:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(pid)


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux counts it"
)
def test_the_sequencer_refuses_what_cannot_be_read_and_goes_on(poisoned: World) -> None:
    federation = poisoned.found(NAME)
    federation.admit(Puppet(poisoned, NAME, "before"))
    pids = poisoned.services.pids("sequencer")
    memory = Memory(poisoned, "sequencer")

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
    memory.demand_little_growth()

    poisoned.services.kill("sequencer")
    federation.admit(Puppet(poisoned, NAME, "later"))
    federation.wait(e.AgentAdmitted, agent_id="later")


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux counts it"
)
def test_other_readers_go_on_too(poisoned: World) -> None:
    """Ledger node, timer and audit; what strangers write is there before and during."""
    (port,) = find_free_ports(1)
    url = f"http://127.0.0.1:{port}"
    member = make_node(poisoned.settings, "reader", url)
    federation = poisoned.found("read", ledger_nodes=(member,))
    nodes = Nodes(poisoned, federation, {"reader": url}, url)
    open_topics = (topics.ATTESTATIONS, topics.CHECKPOINTS, topics.LEDGER)
    for topic in open_topics:
        poison(poisoned, topic)
    federation.wait(e.FederationConfigured)
    poisoned.start_timer("read")
    nodes.start("reader")
    nodes.wait_final(nodes.say())

    processes = poisoned.services.pids("timer-read", "reader")
    memory = Memory(poisoned, *processes)
    for topic in open_topics:
        poison(poisoned, topic)
    nodes.wait_final(nodes.say())
    assert federation.audit()["is_sound"]
    assert poisoned.services.pids(*processes) == processes
    memory.demand_little_growth()
    poisoned.services.stop(*processes)


def test_what_comes_after_it_is_read(poisoned: World) -> None:
    begin = find_bounds(poisoned.settings, topics.ROUNDS, 0).end
    poison(poisoned, topics.ROUNDS)
    poisoned.produce(topics.ROUNDS, b"after", key=b"nobody")
    read = read_partition(poisoned.settings, topics.ROUNDS, 0, start=begin)
    assert [record.value for record in read] == [b"after"]
