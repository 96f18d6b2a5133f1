"""An audit that continues an earlier one finds what a full audit finds."""

import json
from dataclasses import is_dataclass, replace

import pytest
import typer

import cli.audit
from adapters.kafka import Record
from cli.audit import Options
from consumers.audit import state as audit_state
from consumers.audit.auditor import Audited, run_audit
from consumers.audit.report import FindingCode
from consumers.audit.state import (
    FORMAT,
    StateError,
    hash_record,
    load_state,
    save_state,
)
from schemas import topics
from tests.attesting import attest_all
from tests.builders import build_log, unframe


@pytest.fixture(scope="module")
def log():
    return build_log()


@pytest.fixture(scope="module")
def attestations(log):
    return attest_all(log)


@pytest.fixture(scope="module")
def whole(log, attestations):
    return audit(log, attestations)


def audit(log, attestations, *, start=None, ends=(None, None, None), **options):
    """Audit the topics up to these ends, from where an earlier audit ended."""
    streams = []
    names = (topics.LEDGER, topics.CHECKPOINTS, topics.ATTESTATIONS)
    all_records = (log.records, log.checkpoints, attestations)
    for topic, records, end in zip(names, all_records, ends, strict=True):
        begin = 0
        if start is not None and topic in start.positions:
            begin = start.positions[topic].offset
        streams.append([r for r in records[:end] if r.offset >= begin])
    ledger, checkpoints, said = streams
    return run_audit(
        ledger,
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=log.blobs.fetch,
        checkpoints=checkpoints,
        attestations=said,
        start=start,
        **options,
    )


def codes(audited):
    return [finding.code for finding in audited.report.findings]


def without_memory(report):
    """Return what does not say that there was an earlier audit."""
    return replace(report, continued_from=0, notes=[], blob_bytes=0, num_blobs=0)


def attestations_of(attestations, height):
    """Return how many of the first attestations are about blocks up to a height."""
    from schemas import codec
    from schemas import events as e

    for number, record in enumerate(attestations):
        event = codec.decode(unframe(record.value))
        if isinstance(event, e.BlockAttested) and event.height > height:
            return number
    return len(attestations)


@pytest.mark.parametrize("height", [0, 1, 7, 20, 33, 45, 60])
def test_two_halves_find_what_the_whole_finds(log, attestations, whole, height):
    ends = (height + 1, height + 1, attestations_of(attestations, height))
    first = audit(log, attestations, ends=ends)
    assert first.report.is_sound, first.report.findings
    saved = load_state(save_state(first.state))
    assert saved == first.state
    second = audit(log, attestations, start=saved)
    assert second.report.is_sound, second.report.findings
    assert second.report.continued_from == height + 1
    assert any("earlier audit" in note for note in second.report.notes)
    assert without_memory(second.report) == without_memory(whole.report)
    assert second.state == replace(
        whole.state, report=replace(second.state.report, findings=[], notes=[])
    )
    # What was saved is not touched.
    assert saved == first.state


def test_block_by_block_finds_what_the_whole_finds(log, attestations, whole):
    state = None
    last = len(log.records) - 1
    for height in range(last + 1):
        # Closing children are higher than the last block of their era.
        said = attestations_of(attestations, height) if height < last else None
        ends = (height + 1, height + 1, said)
        audited = audit(log, attestations, start=state, ends=ends)
        assert audited.report.is_sound, audited.report.findings
        state = audited.state
    assert without_memory(audited.report) == without_memory(whole.report)


def test_a_checkpoint_that_was_too_new_is_found_later(log, attestations, whole):
    settled = log.records[30].offset
    first = audit(log, attestations, ends=(33, 31, 10), settled_offset=settled)
    assert first.report.is_sound
    assert first.report.num_unsigned_blocks == 2
    second = audit(log, attestations, start=first.state)
    assert second.report.is_sound, second.report.findings
    assert second.report.num_unsigned_blocks == 0
    assert second.report.num_checkpoints == len(log.checkpoints)
    never = audit(log, attestations, start=first.state, ends=(None, 31, 10))
    assert codes(never)[0] is FindingCode.CHECKPOINT_MISSING


def test_nothing_new_is_sound_too(log, attestations, whole):
    again = audit(log, attestations, start=whole.state)
    assert again.report.is_sound
    assert again.report.num_blocks == len(log.records)


@pytest.fixture(scope="module")
def half(log, attestations):
    ends = (31, 31, attestations_of(attestations, 30))
    return audit(log, attestations, ends=ends)


def continued(
    half, log, attestations, *, ledger=None, checkpoints=None, said=None, **options
):
    """Go on with these records, which begin where the half ended."""
    positions = half.state.positions

    def rest(records, topic):
        return [r for r in records if r.offset >= positions[topic].offset]

    return run_audit(
        rest(log.records, topics.LEDGER) if ledger is None else ledger,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=rest(log.checkpoints, topics.CHECKPOINTS)
        if checkpoints is None
        else checkpoints,
        attestations=rest(attestations, topics.ATTESTATIONS) if said is None else said,
        start=half.state,
        **options,
    )


@pytest.mark.parametrize("name", ["ledger", "checkpoints", "said"])
def test_a_topic_that_was_rewritten_or_cut_ends_the_audit(
    half, log, attestations, name
):
    records = {
        "ledger": log.records,
        "checkpoints": log.checkpoints,
        "said": attestations,
    }[name]
    topic = records[0].topic
    position = half.state.positions[topic]
    rest = [record for record in records if record.offset >= position.offset]
    other = replace(rest[0], value=rest[1].value)
    for found, code in (
        ([], FindingCode.LOG_TRUNCATED),
        (records, FindingCode.LOG_TRUNCATED),  # Kafka began again from 0
        (rest[1:], FindingCode.LOG_TRUNCATED),
        ([other, *rest[1:]], FindingCode.LOG_REWRITTEN),
    ):
        audited = continued(half, log, attestations, **{name: found})
        assert code in codes(audited)
        assert audited.report.stopped
        finding = next(f for f in audited.report.findings if f.code == code)
        assert finding.place.topic == topic
        assert finding.place.offset == position.offset
        assert position.digest.hex() in finding.expected
        if topic == topics.LEDGER:
            assert half.report.tree_root in finding.expected
        # What was known stays known.
        assert audited.state == half.state


@pytest.mark.parametrize(
    "topic", [topics.LEDGER, topics.CHECKPOINTS, topics.ATTESTATIONS]
)
def test_a_topic_whose_beginning_was_deleted_ends_the_audit(
    half, log, attestations, topic
):
    """Nothing of it is read again: what is read looks as before."""
    audited = continued(half, log, attestations, first_offsets={topic: 2})
    (finding,) = [
        finding
        for finding in audited.report.findings
        if finding.code is FindingCode.LOG_TRUNCATED
    ]
    assert (finding.place.topic, finding.place.offset) == (topic, 0)
    assert finding.found == "it begins at offset 2"
    assert audited.report.stopped
    assert audited.state == half.state
    whole = dict.fromkeys((topics.LEDGER, topics.CHECKPOINTS, topics.ATTESTATIONS), 0)
    assert continued(half, log, attestations, first_offsets=whole).report.is_sound


def test_of_other_federations_records_anything_may_be_deleted(log, attestations):
    """A partition holds several: what was before this log's first is not of it."""
    end = log.records[8].offset

    def later(records):
        return [replace(record, offset=record.offset + 100) for record in records]

    def go_on(first, start=None):
        return run_audit(
            later(log.records)[0 if start is None else 8 :],
            federation_id="clinics",
            unframe=unframe,
            first_offsets={topics.LEDGER: first},
            start=start,
        )

    begun = run_audit(
        later(log.records[:9]), federation_id="clinics", unframe=unframe
    ).state
    assert begun.positions[topics.LEDGER].offset == end + 100
    assert begun.first_offsets == {topics.LEDGER: 100}
    assert load_state(save_state(begun)).first_offsets == begun.first_offsets
    assert go_on(100, begun).report.is_sound
    assert codes(go_on(101, begun)) == [FindingCode.LOG_TRUNCATED]
    # Whoever reads from the beginning sees for himself what is there.
    assert go_on(50).report.is_sound


def test_a_fork_after_what_was_verified_is_found(half, log, attestations):
    fork = build_log(now_ms=1_000)
    rest = [
        log.records[30],
        *(record for record in fork.records if record.offset > log.records[30].offset),
    ]
    audited = continued(half, log, attestations, ledger=rest)
    assert FindingCode.BROKEN_LOG in codes(audited)


def test_every_part_of_a_record_is_in_its_digest():
    record = Record("t", 0, 0, b"k", b"v", (("a", b"b"), ("c", b"")))
    others = [
        replace(record, key=b"x"),
        replace(record, key=None),
        replace(record, value=b"x"),
        replace(record, value=None),
        replace(record, value=b""),
        replace(record, key=b"kv", value=b""),
        replace(record, headers=(("a", b"b"),)),
        replace(record, headers=(("c", b""), ("a", b"b"))),
        replace(record, headers=(("ab", b""), ("c", b""))),
    ]
    assert len({hash_record(r) for r in [record, *others]}) == 10


# What is saved


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        json.dumps({"format": "other", "state": None}).encode(),
        json.dumps({"format": FORMAT, "state": None}).encode(),
        json.dumps({"format": FORMAT, "state": {"object": ["Popen", {}]}}).encode(),
        json.dumps(
            {"format": FORMAT, "state": {"object": ["AuditState", {}]}}
        ).encode(),
        json.dumps({"format": FORMAT, "state": {"else": 1}}).encode(),
        json.dumps({"format": FORMAT, "state": {"tuple": [], "set": []}}).encode(),
        json.dumps({"format": FORMAT, "state": {"bytes": "?"}}).encode(),
    ],
)
def test_what_is_not_a_saved_state_is_refused(data):
    with pytest.raises(StateError, match="audit from the beginning"):
        load_state(data)


def test_a_damaged_state_is_refused_or_another_one(half):
    """It is not signed: this is a check against accidents."""
    data = save_state(half.state)
    with pytest.raises(StateError):
        load_state(data[: len(data) // 2])
    with pytest.raises(StateError):
        load_state(data.replace(FORMAT.encode(), b"folkmoot-audit-state/v1"))


def test_no_two_classes_of_a_state_have_one_name():
    from consumers.audit import finality as audit_finality
    from consumers.audit import report as audit_report
    from ledger import attestations, blocks, equivocation, merkle
    from protocol import admission, log, registry, replay, rewards, rounds
    from schemas import events

    modules = (
        events, admission, log, registry, replay, rewards, rounds, attestations,
        blocks, equivocation, merkle, audit_finality, audit_report, audit_state,
    )  # fmt: skip
    names = [
        name
        for module in modules
        for name, value in vars(module).items()
        if is_dataclass(value) and value.__module__ == module.__name__
    ]
    assert len(names) == len(set(names))


def test_what_has_no_form_is_a_bug(half):
    with pytest.raises(TypeError, match="no form for set"):
        save_state(replace(half.state, positions={"a": set()}))


# Files


def test_a_state_is_saved_after_a_sound_audit_only(half, tmp_path, capsys):
    path = tmp_path / "state"
    cli.audit._save_state(path, half)
    assert cli.audit._load_state(path, "clinics") == half.state
    before = path.read_bytes()
    wrong = Audited(report=replace(half.report, num_blocks=0), state=half.state)
    cli.audit._save_state(path, wrong)
    assert path.read_bytes() == before
    assert "not sound" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_state_of_another_federation_or_none_is_refused(half, tmp_path):
    path = tmp_path / "state"
    with pytest.raises(cli.audit.CannotAuditError, match="No such file"):
        cli.audit._load_state(path, "clinics")
    cli.audit._save_state(path, half)
    with pytest.raises(cli.audit.CannotAuditError, match="not to 'banks'"):
        cli.audit._load_state(path, "banks")
    path.write_bytes(b"x")
    with pytest.raises(cli.audit.CannotAuditError, match="from the beginning"):
        cli.audit._load_state(path, "clinics")
    with pytest.raises(cli.audit.CannotAuditError, match="cannot write"):
        cli.audit._save_state(tmp_path / "no" / "state", half)


def test_a_bad_policy_file_is_refused(tmp_path):
    path = tmp_path / "policy"
    path.write_text("nonsense\n")
    with pytest.raises(cli.audit.CannotAuditError, match="not a policy"):
        cli.audit._load_policy(path)
    with pytest.raises(typer.Exit):
        cli.audit.audit(Options())
