"""What a real broker stores of batches that no client would send, and how readers
cope.
"""

from collections.abc import Iterator

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from adapters.kafka import read_partition
from schemas import topics
from tests.hostile.batches import RawBatch, RawRecord
from tests.hostile.lies import Lie, make_lies
from tests.hostile.raw_client import RawClient
from tests.integration.harness import World, wait_until

pytestmark = pytest.mark.nightly

SCRATCH = "scratch-raw-batches"
"""Made as our topics are; no service reads it."""
LIES = {lie.name: lie for lie in make_lies()}
MARK = RawBatch([RawRecord(key=b"mark", value=b"mark")]).encode()


@pytest.fixture(scope="module")
def client(world: World) -> Iterator[RawClient]:
    admin = AdminClient({"bootstrap.servers": world.settings.bootstrap_servers})
    new = NewTopic(
        SCRATCH,
        num_partitions=1,
        replication_factor=1,
        config=topics.config_of(topics.CONTROL),
    )
    admin.create_topics([new])[SCRATCH].result(30)
    with RawClient(world.settings.bootstrap_servers) as raw:
        wait_until(
            lambda: raw.produce(SCRATCH, MARK).is_stored, "the topic has a leader"
        )
        yield raw


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_the_broker_answers_as_the_table_says(client: RawClient, lie: Lie) -> None:
    answer = client.produce(SCRATCH, lie.encode())

    assert answer.name == lie.answer, answer
    assert client.produce(SCRATCH, MARK).is_stored


def test_our_readers_come_past_all_that_is_stored(
    world: World, client: RawClient
) -> None:
    """In order, each record in its own place; what cannot be read is left out."""
    begin = client.produce(SCRATCH, MARK).offset
    marks, whole = [begin], []
    for lie in LIES.values():
        if lie.is_stored:
            offset = client.produce(SCRATCH, lie.encode()).offset
            marks.append(client.produce(SCRATCH, MARK).offset)
            if not lie.spoils and offset >= begin:  # a sequence may be there already
                whole.extend(range(offset, marks[-1]))

    read = list(read_partition(world.settings, SCRATCH, 0, start=begin))

    offsets = [r.offset for r in read]
    assert offsets == sorted({*offsets}), "each once, in order"
    assert {*marks, *whole} <= {*offsets} <= {*range(begin, marks[-1] + 1)}
    assert [r.offset for r in read if r.value == b"mark"] == marks
