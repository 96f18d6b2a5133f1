"""Hostile records: many, each another one, and the same again from the same seed."""

import random
from collections import Counter

from schemas import topics
from tests.builders import build_log, make_key, unframe
from tests.hostile.records import KINDS, Seen, Stranger, generate

COUNT = 3_000


def make_stranger(seed: int) -> Stranger:
    log = build_log()
    seen = []
    for record in log.records:
        value = record.value or b""
        headers = tuple((name.encode(), content) for name, content in record.headers)
        seen.append(
            Seen(record.topic, record.key or b"", value, headers, unframe(value))
        )
    return Stranger(
        draw=random.Random(seed),
        names=("clinics", "banks"),
        seen=seen + log_foundings(log),
        schema_ids={event.__name__: i for i, event in enumerate(topics.TOPIC_OF)},
        key=make_key("stranger"),
    )


def log_foundings(log) -> list[Seen]:
    from schemas import codec
    from schemas import events as e
    from tests.builders import frame, read_blocks

    return [
        Seen(topics.CONTROL, b"clinics", frame(event), (), codec.encode(event))
        for block in read_blocks(log)
        for event in (leaf.sequenced.event for leaf in block.leaves)
        if isinstance(event, e.FederationConfigured)
    ]


def test_a_seed_gives_thousands_of_different_records_of_every_kind() -> None:
    made = list(generate(make_stranger(1), COUNT))

    kinds = Counter(hostile.kind for hostile in made if hostile.kind[:3] != "lie")
    assert set(kinds) == {kind.__name__ for kind in KINDS}
    assert min(kinds.values()) > 5
    assert max(kinds.values()) < 20 * min(kinds.values())
    assert len({hostile.data for hostile in made}) == len(made) > COUNT / 10
    again = list(generate(make_stranger(1), COUNT))
    assert [hostile.kind for hostile in again] == [hostile.kind for hostile in made]
    assert all(
        len(hostile.data) <= topics.MAX_EVENT_RECORD_SIZE_BYTES for hostile in made
    )
