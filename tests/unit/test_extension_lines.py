"""Checkpoints of our own logs have three lines, whoever reads them.

C2SP leaves room for extension lines. With one, the log could sign many texts for one
tree and choose among them whatever is derived from the text, such as a cohort.
"""

from __future__ import annotations

import ast
import io
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from adapters.kafka import END, Record, make_headers
from adapters.log_mirror import LogMirror
from adapters.tile_store import TileStore, TileStoreError
from consumers.audit.auditor import run_audit
from consumers.audit.finality import Context, verify_record
from consumers.audit.parallel import CheckpointContext, open_checkpoint
from consumers.audit.report import FindingCode
from consumers.node.checkpoints import CheckpointDesk
from consumers.node.feed import Alerts, size_of
from consumers.node.ledger_node import LedgerNode
from ledger.attestations import START, InvalidMessageError
from ledger.checkpoint import (
    InvalidCheckpointError,
    cosign_checkpoint,
    make_log_key,
    parse_checkpoint,
    verify_checkpoint,
)
from ledger.cosigning import CosignatureCollector
from ledger.equivocation import identify_contradiction
from ledger.note import (
    InvalidNoteError,
    Note,
    add_signature,
    parse_note,
    sign_cosignature,
    sign_note,
)
from ledger.proof_file import make_receipt, verify_receipt
from ledger.witness import (
    InvalidRequestError,
    Refusal,
    make_response,
    parse_request,
)
from protocol.admission import make_policy
from protocol.envelope import sign_event
from protocol.rounds import DECIDER
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.architecture.parsers import PACKAGES
from tests.attesting import Nodes
from tests.builders import LogBuilder, frame, make_key, unframe
from tests.paths import ROOT
from tests.unit.consumers.node.test_ledger_node import Bus, short_log
from tests.unit.producers import test_timer
from tests.unit.protocol.test_cohort_checkpoint import founded
from tests.witnessing import format_request

NAMES: Final = ("node0", "node1", "node2", "node3")
SEQUENCER: Final = make_key("SEQUENCER")
NOW_S: Final = 1_760_000_000
OPENERS: Final = {
    "parse_note",
    "open_note",
    "parse_checkpoint",
    "verify_checkpoint",
    "cosign_checkpoint",
    "sign_cosignature",
    "sign_note",
}
"""By these the text of a checkpoint is got at, or signed."""
EXEMPT: Final = {
    # Notes, of which checkpoints are one kind; the rules of these are `checkpoint`'s.
    "ledger/note.py",
    # It shows what a log server answers, once.
    "cli/demo.py",
    # It looks for the checkpoints that it signed itself, and passes over the rest.
    "streams/sequencer.py",
    # It cosigns what the desk has, by `cosign_checkpoint`.
    "consumers/node/cosigner.py",
}


class Case:
    """A log, and a checkpoint of it with an extension line."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log: LogBuilder = short_log()
        event = codec.decode_as(
            e.CheckpointSigned, unframe(self.log.checkpoints[-1].value or b"")
        )
        self.clean = event.checkpoint.encode()
        self.head = parse_checkpoint(parse_note(self.clean).text)
        self.text = parse_note(self.clean).text + "x 1\n"
        self.note = sign_note(self.text, self.head.origin, SEQUENCER)
        self.cosigned = self.note
        for name in NAMES:
            line = sign_cosignature(self.text, name, make_key(name), NOW_S)
            self.cosigned = add_signature(self.cosigned, line)

    @property
    def log_key(self) -> Any:
        return make_log_key("clinics", self.log.genesis, SEQUENCER.public_key)

    @property
    def nodes(self) -> Any:
        return self.log.state.admission.node_sets[-1]

    def signed_event(self) -> e.CheckpointSigned:
        return e.CheckpointSigned(
            federation_id="clinics", height=0, checkpoint=self.note.decode()
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def read_checkpoint(case: Case) -> None:
    refused: list[Callable[[], object]] = [
        lambda: parse_checkpoint(case.text),
        lambda: verify_checkpoint(case.note, case.log_key, case.head.origin),
        lambda: cosign_checkpoint(case.note, "node0", make_key("node0"), NOW_S),
    ]
    for read in refused:
        with pytest.raises(InvalidCheckpointError, match="extension"):
            read()


def read_collector(case: Case) -> None:
    for knows in (False, True):
        collector = CosignatureCollector(case.log_key, case.nodes.vkeys(), 3)
        if knows:
            collector.know(case.text, parse_note(case.note).signatures[0])
        with pytest.raises(InvalidCheckpointError):
            collector.add(case.cosigned)
        assert collector.merge(case.head.size) is None


def read_policy(case: Case) -> None:
    policy = make_policy(case.log.state.admission)
    with pytest.raises(InvalidCheckpointError):
        policy.verify(case.cosigned)
    with pytest.raises(InvalidCheckpointError):  # also the log server's clients
        verify_receipt(make_receipt(b"leaf", 0, (), case.cosigned), policy)


def read_witness(case: Case) -> None:
    request = format_request(0, [], case.clean).replace(case.clean, case.note)
    with pytest.raises(InvalidRequestError, match="extension") as caught:
        parse_request(request)
    assert caught.value.refusal.status == 400
    with pytest.raises(InvalidCheckpointError):
        make_response(case.note, "node0", make_key("node0"), NOW_S)


def read_equivocation(case: Case) -> None:
    clean = codec.encode(
        e.CheckpointSigned(
            federation_id="clinics", height=0, checkpoint=case.clean.decode()
        )
    )
    proven = e.EquivocationProven(
        federation_id="clinics",
        public_key=SEQUENCER.public_key,
        messages=(clean, codec.encode(case.signed_event())),
        reported_by=make_key("node0").public_key,
    )
    with pytest.raises(InvalidMessageError, match="extension"):
        identify_contradiction(proven)


def read_admission(case: Case) -> None:
    event = e.CheckpointFinalised(
        federation_id="clinics", checkpoint=case.cosigned.decode()
    )
    case.log.say(event, make_key("TIMER"))
    case.log.settle()
    assert case.log.refused[-1].reason == Reason.NOT_FINAL
    assert "extension" in case.log.refused[-1].detail


def read_rounds(case: Case) -> None:
    """Admission let it pass: the sequencer colludes. It seeds no cohort."""
    event = e.CheckpointFinalised(
        federation_id="clinics", checkpoint=case.cosigned.decode()
    )
    with pytest.raises(InvalidCheckpointError):
        founded().when(event)
    assert DECIDER.initial.draw_entropy == founded().state.draw_entropy


def read_desk(case: Case) -> None:
    tiles = TileStore(case.directory / "tiles", sync=False)
    desk = CheckpointDesk("clinics", tiles, Alerts(lambda: NOW_S))
    desk.begin(case.log.genesis, SEQUENCER.public_key, case.nodes)
    for note in (case.note, case.cosigned):
        with pytest.raises(InvalidCheckpointError):
            desk.add_signed(note)
        with pytest.raises(InvalidCheckpointError):
            desk.add_cosigned(note)
    assert desk.find(case.head.size) is None


def read_feed(case: Case) -> None:
    with pytest.raises(InvalidCheckpointError):
        size_of(case.note.decode())


def read_ahead(case: Case) -> None:
    data = codec.encode(case.signed_event())
    context = CheckpointContext(
        federation_id="clinics",
        genesis=case.log.genesis,
        sequencer_key=SEQUENCER.public_key,
    )
    with pytest.raises(InvalidCheckpointError):
        open_checkpoint(context, data, sign_event(SEQUENCER, case.log.genesis, data))


def read_finality(case: Case) -> None:
    line = sign_cosignature(case.text, "node0", make_key("node0"), NOW_S)
    event = e.CheckpointCosigned(
        federation_id="clinics",
        height=case.log.state.log.chain.height - 1,
        checkpoint=add_signature(case.note, line).decode(),
    )
    context = Context(
        federation_id="clinics",
        genesis=case.log.genesis,
        sequencer_key=SEQUENCER.public_key,
        eras=((case.nodes, (-1, START)),),
    )
    data = codec.encode(event)
    with pytest.raises(InvalidMessageError, match="extension"):
        verify_record(
            context, data, sign_event(make_key("node0"), case.log.genesis, data)
        )


def read_tiles(case: Case) -> None:
    store = TileStore(case.directory / "tiles", sync=False)
    for block in map(_open_block, case.log.records):
        store.append(block, [_hash(leaf) for leaf in block])
    with pytest.raises(TileStoreError, match="extension"):
        store.publish(case.cosigned)
    assert store.checkpoint() is None
    store.publish(case.clean)


def _open_block(record: Record) -> tuple[bytes, ...]:
    return codec.decode_as(e.BlockSequenced, unframe(record.value or b"")).leaves


def _hash(leaf: bytes) -> bytes:
    from ledger.merkle import leaf_hash

    return leaf_hash(leaf)


def read_mirror(case: Case) -> None:
    def answer(note: bytes) -> Any:
        body = io.BytesIO(note)
        return SimpleNamespace(
            read=lambda size, **_: body.read(size),
            close=lambda: None,
            release_conn=lambda: None,
        )

    mirror = LogMirror.__new__(LogMirror)
    mirror._bucket, mirror._prefix = "moot", "log/clinics/"
    for note, size in ((case.clean, case.head.size), (case.cosigned, 0)):
        mirror._client = SimpleNamespace(get_object=lambda note=note, **_: answer(note))  # type: ignore[assignment]  # all that is asked of it
        assert mirror._find_size() == size


def read_timer(case: Case) -> None:
    timer = test_timer.make_timer()
    test_timer.learn(timer, case.log)
    test_timer.collect(timer, [test_timer.cosigned(case.cosigned), END])  # type: ignore[list-item]
    assert timer._num_passed_over == 1
    assert timer._collector().largest() == 0


READERS: Final[dict[str, Callable[[Case], None]]] = {
    "ledger/checkpoint.py": read_checkpoint,
    "ledger/cosigning.py": read_collector,
    "ledger/policy.py": read_policy,
    "ledger/witness.py": read_witness,
    "ledger/equivocation.py": read_equivocation,
    "protocol/admission.py": read_admission,
    "protocol/rounds.py": read_rounds,
    "consumers/node/checkpoints.py": read_desk,
    "consumers/node/feed.py": read_feed,
    "consumers/audit/parallel.py": read_ahead,
    "consumers/audit/finality.py": read_finality,
    "adapters/tile_store.py": read_tiles,
    "adapters/log_mirror.py": read_mirror,
    "producers/timer.py": read_timer,
}


def _opens_checkpoints(path: Path) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module in {"ledger.note", "ledger.checkpoint"}
        and OPENERS & {alias.name for alias in node.names}
        for node in ast.walk(ast.parse(path.read_text()))
    )


def test_every_reader_is_here() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if _opens_checkpoints(path)
    }
    assert found - EXEMPT - {"ledger/checkpoint.py"} == set(READERS) - {
        "ledger/checkpoint.py"
    }


@pytest.mark.parametrize("reader", READERS)
def test_a_checkpoint_with_an_extension_line_is_refused(
    reader: str, case: Case
) -> None:
    READERS[reader](case)


def test_nodes_neither_cosign_nor_stumble(case: Case) -> None:
    """The log's text with an extension line comes first, and then the other one."""
    bus = Bus(case.directory / "bus", case.log)
    bus.show(checkpoints=[])
    evil = e.CheckpointCosigned(
        federation_id="clinics", height=0, checkpoint=case.cosigned.decode()
    )
    for event in (case.signed_event(), evil):
        for member in bus.members.values():
            with pytest.raises(InvalidNoteError, match="extension"):
                member.node.receive(event)
    bus.settle()
    node: LedgerNode = bus["node0"].node
    answer = node.add_checkpoint(
        format_request(0, [], case.clean).replace(case.clean, case.note)
    )
    assert isinstance(answer, Refusal)
    assert answer.status == 400
    bus.run()
    assert all("x 1" not in x.checkpoint for x in bus.sent(e.CheckpointCosigned))
    assert len(bus.sent(e.CheckpointCosigned)) > 0
    for member in bus.members.values():
        assert not member.node.alerts.all()
        assert not member.node.evidence


def test_a_tree_that_is_signed_twice_is_one_checkpoint(case: Case) -> None:
    """What else can differ in a note is its signatures: nobody minds."""
    bus = Bus(case.directory / "bus", case.log)
    bus.run()
    note = parse_note(case.clean)
    again = Note(note.text, (*note.signatures, *note.signatures)).to_bytes()
    event = e.CheckpointSigned(
        federation_id="clinics", height=0, checkpoint=again.decode()
    )
    for member in bus.members.values():
        member.node.receive(event)
        assert not member.node.alerts.all()
        assert not member.node.evidence


@pytest.mark.parametrize("topic", [topics.CHECKPOINTS, topics.ATTESTATIONS])
def test_the_audit_says_so_and_goes_on(topic: str, case: Case) -> None:
    log = case.log
    nodes = Nodes(log)
    nodes.attest_all()
    checkpoints, attestations = list(log.checkpoints), list(nodes.records)
    event: e.Event = case.signed_event()
    key, records = SEQUENCER, checkpoints
    if topic == topics.ATTESTATIONS:
        line = sign_cosignature(case.text, "node0", make_key("node0"), NOW_S)
        event = e.CheckpointCosigned(
            federation_id="clinics",
            height=0,
            checkpoint=add_signature(case.note, line).decode(),
        )
        key, records = make_key("node0"), attestations
    data = codec.encode(event)
    records.append(
        Record(
            topic=topic,
            partition=0,
            offset=records[-1].offset + 1,
            key=b"clinics",
            value=frame(event),
            headers=tuple(make_headers(event, data, key, log.genesis, "")),
        )
    )
    report = run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=checkpoints,
        attestations=attestations,
        fetch_blob=log.blobs.fetch,
        operator_key=make_key("OPERATOR").public_key,
    ).report
    codes = [finding.code for finding in report.findings]
    if topic == topics.CHECKPOINTS:  # only the sequencer can have signed it
        assert codes == [FindingCode.CHECKPOINT_INVALID]
    else:
        assert codes == []
        assert [noise.code for noise in report.noise] == [
            FindingCode.ATTESTATION_INVALID
        ]
    assert report.finality is not None
    assert report.finality.cosigned_size > 0
