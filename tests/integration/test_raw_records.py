"""Records that no client makes stop no service, and none of them grows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.hostile.batches import COMPRESSING, Codec, RawBatch, RawRecord, bomb
from tests.hostile.raw_client import RawClient
from tests.integration.harness import Puppet, World, run_world, wait_until

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

    with RawClient(poisoned.settings.bootstrap_servers) as client:
        for batch in UNREADABLE:
            assert client.produce(topics.CONTROL, batch.encode()).is_stored
        for codec in COMPRESSING:
            made = bomb(codec, BOMB_BYTES).encode()
            if len(made) < topics.MAX_EVENT_RECORD_SIZE_BYTES:
                assert client.produce(topics.AGENTS, made).is_stored

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
