"""The timer: what it says when, and what it accepts from writers to Kafka."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat

import pytest

import producers.timer
from adapters.kafka import END, Pause, Record
from adapters.kafka_log import ReadBlock
from adapters.settings import Settings
from ledger.attestations import sign_attestation
from ledger.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from ledger.signing import SigningKey
from producers.timer import (
    FINAL_AFTER_S,
    MAX_FINAL_AFTER_S,
    MAX_REPEAT_AFTER_MS,
    QUIET_AFTER_S,
    REPEAT_AFTER_MS,
    Timer,
)
from protocol.log import LogState
from schemas import codec, topics
from schemas import events as e
from tests.builders import (
    _SCHEMA_IDS,
    LogBuilder,
    frame,
    make_header,
    make_key,
    read_blocks,
)
from tests.mpc_builder import MpcLogBuilder, start_mpc_log

NAMES = ("node0", "node1", "node2", "node3")
KEY = make_key("TIMER")
NOW_S = 1_760_000_000
SETTINGS = Settings(
    bootstrap_servers="127.0.0.1:1",
    schema_registry_url="http://127.0.0.1:1",
    minio_endpoint="127.0.0.1:1",
    minio_access_key="x",  # type: ignore[arg-type]  # pydantic makes it one
    minio_secret_key="x",  # type: ignore[arg-type]  # pydantic makes it one
)


@dataclass
class Recorder:
    """Keeps what would be published."""

    said: list[e.Event] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)

    def publish(
        self, event: e.Event, key: SigningKey, genesis: bytes, *, traceparent: str = ""
    ) -> tuple[int, int]:
        assert key.public_key == KEY.public_key
        self.said.append(event)
        self.traceparents.append(traceparent)
        return 0, len(self.said) - 1

    def take(self) -> list[e.Event]:
        said, self.said = self.said, []
        return said


@dataclass
class Clock:
    now_s: float = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(producers.timer, "Publisher", lambda *_: recorder)
    return recorder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(producers.timer.time, "monotonic", clock)
    return clock


@pytest.fixture
def log() -> LogBuilder:
    log = LogBuilder(ledger_nodes=NAMES)
    log.found()
    return log


@pytest.fixture
def timer(recorder: Recorder, clock: Clock) -> Timer:
    return make_timer()


def make_timer() -> Timer:
    timer = Timer(SETTINGS, "clinics", KEY)
    for event, schema_id in _SCHEMA_IDS.items():  # what the registry would say
        timer._registry._learn(event, schema_id)
    return timer


def learn(timer: Timer, log: LogBuilder) -> None:
    """Let the timer read what it has not read yet."""
    first = timer._admission.num_leaves
    for read in read_blocks(log):
        if read.block.first_leaf_index >= first:
            timer._learn(read)


# Deadlines


def test_a_deadline_is_announced_when_it_has_passed(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    learn(timer, log)
    timer._announce_if_due(2**62)
    assert recorder.take() == []  # no round is open
    log.admit("ada", "bea")
    log.request_round()
    learn(timer, log)
    started = next(v for v in log.leaves if isinstance(v, e.RoundStarted))
    timer._announce_if_due(started.deadline_ms - 1)
    assert recorder.take() == []
    timer._announce_if_due(started.deadline_ms)
    assert recorder.take() == [
        e.DeadlineReached(
            federation_id="clinics", round=1, observed_at_ms=started.deadline_ms
        )
    ]
    assert recorder.traceparents[0] != ""  # the round's trace goes on


def test_each_repetition_waits_longer(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    log.admit("ada", "bea")
    log.request_round()
    learn(timer, log)
    now_ms, wait_ms, waits = 2**50, REPEAT_AFTER_MS, []
    timer._announce_if_due(now_ms)
    while len(waits) < 8:
        timer._announce_if_due(now_ms + wait_ms - 1)
        assert len(recorder.take()) == 1, wait_ms
        now_ms += wait_ms
        timer._announce_if_due(now_ms)
        waits.append(wait_ms)
        wait_ms = min(2 * wait_ms, MAX_REPEAT_AFTER_MS)
    assert waits[:3] == [2_000, 4_000, 8_000]
    assert waits[-1] == MAX_REPEAT_AFTER_MS


def test_an_aggregator_that_is_late_with_a_public_sum_is_announced(
    timer: Timer, recorder: Recorder
) -> None:
    """From when all parts are there; not while one is missing, nor once it is done."""

    def speak(log: MpcLogBuilder, author: str, event: e.Event) -> list[e.Event]:
        del log
        is_held_back = author == "p2" and isinstance(event, e.PartialAggregateSubmitted)
        held_back.extend([event] * is_held_back)
        is_result = isinstance(event, e.AggregateSubmitted)
        return [] if is_held_back or (is_result and author == "AGGREGATOR") else [event]

    held_back: list[e.Event] = []
    log = start_mpc_log("ada", "bea", "cleo", cohort_size=3, speak=speak)
    for agent in log.request_round():
        log.commit(agent)
    log.settle()
    learn(timer, log)
    timer._announce_if_due(2**62)
    assert recorder.take() == []
    log.say(held_back[0], make_key("p2"))
    log.settle()
    learn(timer, log)
    sealed_at_ms = log.now_ms
    timer._announce_if_due(sealed_at_ms)
    assert recorder.take() == []
    late_ms = sealed_at_ms + log.config.round_duration_ms
    timer._announce_if_due(late_ms)
    assert [type(event) for event in recorder.take()] == [e.DeadlineReached]
    log.pass_deadline()
    assert [x for x in log.leaves if isinstance(x, e.AggregatePublished)]
    learn(timer, log)
    timer._announce_if_due(2**62)
    assert recorder.take() == []


@pytest.mark.parametrize("end", ["abandoned", "sealed", "published"])
def test_a_round_that_has_ended_has_no_deadline(
    timer: Timer, log: LogBuilder, recorder: Recorder, end: str
) -> None:
    log.admit("ada", "bea")
    cohort = log.request_round()
    if end == "abandoned":
        log.pass_deadline()
    else:
        for agent in cohort:
            log.submit(agent)
        log.settle()
        log.check()
        if end == "published":
            log.aggregate()
    learn(timer, log)
    timer._announce_if_due(2**62)
    assert recorder.take() == []


def test_the_next_round_has_its_own_deadline(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    log.admit("ada", "bea")
    log.request_round()
    learn(timer, log)
    for _ in range(9):
        timer._announce_if_due(timer._due_ms)
    log.pass_deadline()
    log.request_round()
    learn(timer, log)
    recorder.take()
    due_ms = timer._due_ms
    timer._announce_if_due(due_ms)
    timer._announce_if_due(due_ms + REPEAT_AFTER_MS)
    said = recorder.take()
    assert [(type(v), v.round) for v in said if isinstance(v, e.DeadlineReached)] == [
        (e.DeadlineReached, 2),
        (e.DeadlineReached, 2),
    ]


# A child for the last block


def test_a_quiet_block_gets_one_child(
    timer: Timer, log: LogBuilder, recorder: Recorder, clock: Clock
) -> None:
    timer._request_finality()
    assert recorder.take() == []  # there is no block yet
    log.admit("ada")
    learn(timer, log)
    timer._request_finality()
    clock.now_s += QUIET_AFTER_S / 2
    timer._request_finality()
    assert recorder.take() == []
    clock.now_s += QUIET_AFTER_S / 2
    timer._request_finality()
    height = log.state.log.chain.height - 1
    [request] = recorder.take()
    assert request == e.FinalityRequested(federation_id="clinics", height=height)
    clock.now_s += FINAL_AFTER_S / 2
    timer._request_finality()
    assert recorder.take() == []
    # It is admitted, and the child asks for no child of its own.
    log.say(request, KEY)
    log.settle()
    assert log.refused == []
    learn(timer, log)
    collect(timer, [cosigned(make_note(log, *NAMES, size=log.state.log.chain.size))])
    clock.now_s += 100 * FINAL_AFTER_S
    timer._request_finality()
    assert recorder.take() == []


def test_a_block_that_does_not_become_final_gets_more_children(
    timer: Timer, log: LogBuilder, recorder: Recorder, clock: Clock
) -> None:
    """Certified in another epoch than its child, it needs another."""
    learn(timer, log)
    clock.now_s += QUIET_AFTER_S
    waits = []
    for _ in range(9):
        timer._request_finality()
        [request] = recorder.take()
        log.say(request, KEY)
        log.settle()
        assert log.refused == []  # each is another event
        learn(timer, log)
        waits.append(timer._child_due_s - clock.now_s)
        clock.now_s = timer._child_due_s - 0.01
        timer._request_finality()
        assert recorder.take() == []
        clock.now_s += 0.01
    assert waits[0] == FINAL_AFTER_S
    assert waits == sorted(waits)
    assert waits[-1] == MAX_FINAL_AFTER_S


def test_a_busy_log_needs_no_children(
    timer: Timer, log: LogBuilder, recorder: Recorder, clock: Clock
) -> None:
    for number in range(10):
        log.admit(f"agent{number}")
        learn(timer, log)
        clock.now_s += QUIET_AFTER_S * 0.9
        timer._request_finality()
    assert recorder.take() == []


def test_a_child_that_says_something_needs_a_child(
    timer: Timer, log: LogBuilder, recorder: Recorder, clock: Clock
) -> None:
    request = e.FinalityRequested(federation_id="clinics", height=0)
    log.say(request, KEY)
    log.say(e.RoundRequested(federation_id="clinics", round=1, requested_at_ms=1), KEY)
    log.settle()
    assert len(log.refused) == 1  # a leaf too: the timer may not ask for rounds
    learn(timer, log)
    clock.now_s += QUIET_AFTER_S
    timer._request_finality()
    assert len(recorder.take()) == 1


# Final checkpoints


def make_note(
    log: LogBuilder, *names: str, size: int | None = None, root: bytes | None = None
) -> bytes:
    """Return the checkpoint that the next draw needs, cosigned."""
    size = log._rounds.draw_size if size is None else size
    tree = LogState().chain.tree
    for read in read_blocks(log):
        if read.state.chain.size <= size:
            tree = read.state.chain.tree
    head = Checkpoint(log.origin, size, tree.root() if root is None else root)
    note = sign_checkpoint(head, make_key("SEQUENCER"))
    for name in names:
        note = cosign_checkpoint(note, name, make_key(name), NOW_S)
    return note


def attestation(event: e.Event, *, federation_id: str = "clinics") -> Record:
    return Record(
        topic=topics.ATTESTATIONS,
        partition=0,
        offset=0,
        key=federation_id.encode(),
        value=frame(event),
        headers=(),
    )


def cosigned(note: bytes, **options: str) -> Record:
    event = e.CheckpointCosigned(
        federation_id="clinics", height=0, checkpoint=note.decode()
    )
    return attestation(event, **options)


def collect(timer: Timer, records: Iterable[Record | Pause]) -> None:
    timer._collect(iter([*records, END]))


def announce(timer: Timer) -> None:
    timer._announce_final()


def test_a_quorum_of_cosignatures_is_announced_once(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    learn(timer, log)
    for number, name in enumerate(NAMES, start=1):
        collect(timer, [cosigned(make_note(log, name))])
        announce(timer)
        assert len(recorder.said) == (number >= 3)
    [event] = recorder.take()
    assert isinstance(event, e.CheckpointFinalised)
    assert event.checkpoint.encode() == make_note(log, *NAMES[:3])
    log.say(event, KEY)
    log.settle()
    assert log.refused == []
    assert log.state.admission.finalised_size == log._rounds.drawn_size == 1
    learn(timer, log)
    announce(timer)
    assert recorder.take() == []


def test_what_is_on_the_log_is_not_said_again_after_a_restart(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    log.finalise()
    learn(timer, log)
    collect(timer, [cosigned(make_note(log, name)) for name in NAMES])
    announce(timer)
    assert recorder.take() == []


def test_a_restart_before_it_was_on_the_log_says_it_again(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    records = [cosigned(make_note(log, name)) for name in NAMES]
    said = []
    for one in (timer, make_timer()):
        learn(one, log)
        collect(one, records)
        announce(one)
        said += recorder.take()
    assert len(said) == 2
    for event in said:
        log.say(event, KEY)
    log.settle()
    assert [refusal.reason for refusal in log.refused] == ["STALE_CHECKPOINT"]


def test_one_note_may_bring_them_all(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    learn(timer, log)
    collect(timer, [cosigned(make_note(log, *NAMES))])
    announce(timer)
    assert len(recorder.take()) == 1


def test_only_the_checkpoint_of_the_next_draw_is_announced(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    log.admit("ada", "bea")
    learn(timer, log)
    collect(timer, [cosigned(make_note(log, *NAMES, size=3))])
    announce(timer)
    assert recorder.take() == []
    # Once a round has ended there, it is.
    collect(timer, [cosigned(make_note(log, "node0"))])
    log.request_round()
    log.pass_deadline()
    learn(timer, log)
    collect(timer, [cosigned(make_note(log, *NAMES))])
    announce(timer)
    [event] = recorder.take()
    assert isinstance(event, e.CheckpointFinalised)
    assert event.checkpoint.encode() == make_note(log, *NAMES)
    assert f"\n{log._rounds.draw_size}\n" in event.checkpoint
    # A size that no draw and no open block needs is not even looked at.
    collect(timer, [cosigned(make_note(log, *NAMES, size=2))])
    assert timer._collector().merge(2) is None


def test_cosignatures_may_come_before_their_block(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    log.admit("ada", "bea")
    learn(timer, log)
    log.request_round()
    log.pass_deadline()
    collect(timer, [cosigned(make_note(log, *NAMES))])
    announce(timer)
    assert recorder.take() == []
    learn(timer, log)
    announce(timer)
    assert len(recorder.take()) == 1


def test_strangers_and_forgers_do_not_count(
    timer: Timer,
    log: LogBuilder,
    recorder: Recorder,
) -> None:
    learn(timer, log)
    other_root = make_note(log, "node2", root=b"\x01" * 32)
    forged = cosign_checkpoint(make_note(log), "node2", make_key("mallory"), NOW_S)
    collect(
        timer,
        [
            cosigned(make_note(log, "node0")),
            cosigned(make_note(log, "node1")),
            cosigned(make_note(log, "mallory")),
            cosigned(make_note(log)),
            cosigned(forged),
            cosigned(other_root),
        ],
    )
    announce(timer)
    assert recorder.take() == []
    # The good ones still count.
    collect(timer, [cosigned(make_note(log, "node3"))])
    announce(timer)
    [event] = recorder.take()
    assert b"mallory" not in event.checkpoint.encode()


def test_after_a_change_the_new_nodes_count(
    timer: Timer, log: LogBuilder, recorder: Recorder
) -> None:
    log.change_nodes("node0", "node5")
    learn(timer, log)
    collect(timer, [cosigned(make_note(log, *NAMES))])
    announce(timer)
    assert recorder.take() == []
    collect(timer, [cosigned(make_note(log, "node5"))])
    announce(timer)
    assert len(recorder.take()) == 1


def test_records_other_than_cosigned_checkpoints_are_passed_over(
    timer: Timer, log: LogBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    learn(timer, log)
    nodes = timer._admission.node_sets[-1]
    attested = sign_attestation(
        make_key("node0"), nodes, "clinics", 0, make_header(nodes, b"x")
    )
    good = make_note(log, "node0")
    timer._registry._remember_unknown(b"\x00\x00\x00\xff\xff")
    base = cosigned(good)
    junk = [
        replace(base, offset=n, value=value)
        for n, value in enumerate(
            (None, b"", b"x" * 10, b"\x00\x00\x00\xff\xff", (base.value or b"")[:-1])
        )
    ]
    with caplog.at_level(logging.WARNING):
        collect(
            timer,
            [
                *junk,
                cosigned(b"not a note"),
                cosigned(good.replace(b"\n1\n", b"\none\n")),
            ],
        )
    assert timer._num_passed_over == len(junk) + 2
    # Of the first, the second and the fourth: nobody's junk fills a log.
    assert caplog.text.count("passing over attestation") == 3
    caplog.clear()
    collect(
        timer,
        [attestation(attested), cosigned(good, federation_id="banks")],
    )
    assert caplog.text == ""
    assert timer._collector()._said == {}
    collect(timer, [base])
    assert set(timer._collector()._said) == {1}


@pytest.mark.parametrize("pause", list(Pause))
def test_collecting_stops_at_a_pause(
    timer: Timer, log: LogBuilder, pause: Pause
) -> None:
    learn(timer, log)
    records = iter(
        [cosigned(make_note(log, "node0")), pause, cosigned(make_note(log, "node1"))]
    )
    timer._collect(records)
    assert len(timer._collector()._said[1]) == 1
    timer._collect(records)
    assert len(timer._collector()._said[1]) == 2


# As a whole


def test_a_federation_without_ledger_nodes_is_only_told_deadlines(
    timer: Timer,
    recorder: Recorder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = LogBuilder(ledger_nodes=())
    log.found()
    log.admit("ada", "bea")
    log.request_round()
    run(timer, log, monkeypatch)
    assert [type(event) for event in recorder.take()] == [e.DeadlineReached]


def test_run_says_everything_that_is_due(
    timer: Timer,
    log: LogBuilder,
    recorder: Recorder,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log.admit("ada", "bea")
    log.request_round()
    run(timer, log, monkeypatch, [cosigned(make_note(log, *NAMES))])
    assert [type(event) for event in recorder.take()] == [
        e.DeadlineReached,  # the builder's clock is long past
        e.CheckpointFinalised,
        e.FinalityRequested,
    ]


def test_whoever_fills_a_topic_keeps_nobody_from_the_deadlines(
    timer: Timer,
    log: LogBuilder,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log.admit("ada", "bea")
    log.request_round()
    run(timer, log, monkeypatch, repeat(cosigned(b"junk")))
    assert e.DeadlineReached in [type(event) for event in recorder.take()]


def test_junk_by_the_thousand_is_a_few_lines_in_the_log(
    timer: Timer,
    log: LogBuilder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log.admit("ada", "bea")
    run(timer, log, monkeypatch, repeat(cosigned(b"junk"), 1_000))
    lines = [line for line in caplog.messages if "passing over" in line]
    assert len(lines) == 10
    assert "512 so far" in lines[-1]


def test_records_other_than_cosignatures_are_not_decoded(
    timer: Timer, log: LogBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block of a thousand empty leaves, say; its sender chooses what it costs."""
    log.admit("ada", "bea")
    monkeypatch.setattr(codec, "decode", None)
    block = replace(log.records[0], topic=topics.ATTESTATIONS)
    timer._admission = log.state.admission
    timer._collect(iter([block, END]))


def run(
    timer: Timer,
    log: LogBuilder,
    monkeypatch: pytest.MonkeyPatch,
    attestations: Iterable[Record] = (),
) -> None:
    """Run until two pauses have passed, with what Kafka would hold."""

    def follow_log(*_: object) -> Iterator[ReadBlock | Pause]:
        yield from read_blocks(log)
        for _ in range(2):
            # Time passes while nothing comes.
            timer._child_due_s -= QUIET_AFTER_S
            yield END

    def follow_partition(*_: object) -> Iterator[Record | Pause]:
        yield from attestations
        while True:
            yield END

    monkeypatch.setattr(producers.timer, "find_partition", lambda *_: 0)
    monkeypatch.setattr(producers.timer, "follow_log", follow_log)
    monkeypatch.setattr(producers.timer, "follow_partition", follow_partition)
    timer.run(lambda: False)


def test_run_stops_when_told(
    timer: Timer,
    log: LogBuilder,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(producers.timer, "find_partition", lambda *_: 0)
    monkeypatch.setattr(producers.timer, "follow_log", lambda *_: read_blocks(log))
    monkeypatch.setattr(producers.timer, "follow_partition", lambda *_: iter([END]))
    timer.run(lambda: True)
    assert timer._admission.num_leaves == 0
