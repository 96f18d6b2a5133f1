"""One round is one trace, from the request to the registered model."""

import re
import time
from collections import Counter

import pytest

from protocol.envelope import TRACEPARENT_HEADER
from schemas import codec, topics
from schemas import events as e
from tests.integration.harness import (
    AGENTS,
    Federation,
    SpanSeen,
    World,
    wait_until,
)

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-0[13]")
PRODUCER, CONSUMER = 4, 5  # opentelemetry.proto.trace.v1.Span.SpanKind


@pytest.fixture(scope="module")
def number(world: World, main: Federation) -> int:
    """A round that the command line asked for, so that its request is traced too."""
    finished = world.moot("round", "start", "--federation", main.name)
    assert finished.returncode == 0, finished.stderr
    requested = next(
        int(line.split()[1])
        for line in finished.stdout.splitlines()
        if line.startswith("round ")
    )
    main.wait(e.ModelVersionRegistered, round=requested)
    # Rewards come from a decider of their own, in the order of the agents' names.
    main.wait(e.BalanceChanged, round=requested, account=max(AGENTS))
    return requested


@pytest.fixture(scope="module")
def trace_id(world: World, main: Federation, number: int) -> str:
    [record] = [
        record
        for record in world.records(topics.CONTROL, main.name)
        if isinstance(event := world.decode(record), e.RoundRequested)
        and event.round == number
    ]
    return _context(record.header(TRACEPARENT_HEADER))[0]


@pytest.fixture(scope="module")
def spans(world: World, trace_id: str) -> list[SpanSeen]:
    """Every span of the round's trace, once no more arrive."""
    wait_until(
        lambda: any(
            span.name == f"publish {topics.REGISTRY}"
            for span in world.collector.trace(trace_id)
        ),
        "the registered model's span arrives",
    )
    count = -1
    while len(found := world.collector.trace(trace_id)) > count:
        count = len(found)
        time.sleep(1.5)  # longer than the exporters' batches
    return found


def test_every_record_of_the_round_is_in_its_trace(
    world: World, main: Federation, number: int, trace_id: str
) -> None:
    counted: Counter[str] = Counter()
    for topic in topics.SEQUENCED_TOPICS:
        for record in world.records(topic, main.name):
            event = world.decode(record)
            if getattr(event, "round", None) == number:
                assert _context(record.header(TRACEPARENT_HEADER))[0] == trace_id
                counted[type(event).__name__] += 1

    assert counted == Counter(
        RoundRequested=1,
        RoundStarted=1,
        UpdateSubmitted=len(AGENTS),
        UpdatesChecked=counted["UpdatesChecked"],
        ContributionAccepted=len(AGENTS),
        RoundSealed=1,
        AggregateSubmitted=1,
        AggregatePublished=1,
        ModelExported=1,
        ModelVersionRegistered=1,
        # One each for contributing, and more if the model is the best so far.
        BalanceChanged=counted["BalanceChanged"],
    )
    assert counted["BalanceChanged"] >= len(AGENTS)


def test_every_block_and_checkpoint_carries_the_trace_of_its_leaves(
    world: World, main: Federation, number: int, trace_id: str
) -> None:
    checkpoints = {
        world.decode(record).height: record.header(TRACEPARENT_HEADER)
        for record in world.records(topics.CHECKPOINTS, main.name)
    }
    seen = 0
    for record in world.records(topics.LEDGER, main.name):
        block, header = world.decode(record), record.header(TRACEPARENT_HEADER)
        assert checkpoints[block.height] == header
        leaves = [codec.decode(codec.decode_as(e.Leaf, x).event) for x in block.leaves]
        for leaf, traceparent in zip(leaves, block.traceparents, strict=True):
            if getattr(leaf, "round", None) == number:
                assert _context(traceparent)[0] == trace_id
                seen += 1
        if any(getattr(leaf, "round", None) == number for leaf in leaves):
            assert header is not None
            assert header.decode() == next(filter(None, block.traceparents))
    assert seen >= 10


def test_the_trace_has_one_root_and_no_missing_parent(spans: list[SpanSeen]) -> None:
    ids = {span.span_id for span in spans}
    roots = [span for span in spans if not span.parent_id]

    assert [root.name for root in roots] == [f"publish {topics.CONTROL}"]
    orphans = [span for span in spans if span.parent_id and span.parent_id not in ids]
    assert not orphans
    assert len(ids) == len(spans)


def test_every_part_of_the_system_has_its_spans(spans: list[SpanSeen]) -> None:
    found = {(span.service, span.name) for span in spans}

    expected = {
        ("moot", f"publish {topics.CONTROL}"),
        ("moot-sequencer", f"process {topics.CONTROL}"),
        ("moot-rounds", f"publish {topics.ROUNDS}"),
        ("moot-sequencer", f"process {topics.ROUNDS}"),
        ("moot-sequencer", f"process {topics.UPDATES}"),
        ("moot-aggregator", "check update"),
        ("moot-aggregator", "aggregate round"),
        ("moot-aggregator", f"publish {topics.PARTIALS}"),
        ("moot-rounds", f"publish {topics.AGGREGATES}"),
        ("moot-exporter", "export model"),
        ("moot-exporter", f"publish {topics.PARTIALS}"),
        ("moot-registry", f"publish {topics.REGISTRY}"),
        *((f"moot-agent-{name}", f"process {topics.ROUNDS}") for name in AGENTS),
        *((f"moot-agent-{name}", "train round") for name in AGENTS),
        *((f"moot-agent-{name}", f"publish {topics.UPDATES}") for name in AGENTS),
    }
    assert expected <= found


def test_messaging_spans_follow_the_conventions(spans: list[SpanSeen]) -> None:
    messaging = [span for span in spans if span.kind in {PRODUCER, CONSUMER}]
    assert messaging
    for span in messaging:
        operation, destination = span.name.split(" ", 1)
        assert span.attributes["messaging.system"] == "kafka"
        assert span.attributes["messaging.operation.name"] == operation
        assert span.attributes["messaging.destination.name"] == destination
        assert destination in topics.EVENTS
        assert (span.attributes["messaging.operation.type"], span.kind) in {
            ("send", PRODUCER),
            ("process", CONSUMER),
        }


def _context(traceparent: bytes | str | None) -> tuple[str, str]:
    """Return the trace's and the span's id."""
    assert traceparent, "no traceparent"
    text = traceparent if isinstance(traceparent, str) else traceparent.decode()
    match = TRACEPARENT.fullmatch(text)
    assert match is not None, text
    return match[1], match[2]
