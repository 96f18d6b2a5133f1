"""No byte of a log can change unnoticed: the promise of the audit."""

import contextlib
import hashlib
import io
import tarfile
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adapters.kafka import Record, make_headers
from consumers.audit import parallel as audit_parallel
from consumers.audit.auditor import run_audit
from consumers.audit.bundle import (
    Bundle,
    BundleError,
    BundleWriter,
    decode_record,
    encode_record,
)
from consumers.audit.parallel import Helpers
from consumers.audit.report import FindingCode
from protocol.envelope import sign_event
from schemas import codec, topics
from schemas import events as e
from tests.attesting import Nodes
from tests.builders import BlobDict, build_log, frame, make_key, unframe
from tests.examples import examples
from tests.mpc_builder import build_mpc_log, lie_once, start_mpc_log

PARTS = ("key", "value", "moot-signature", "moot-event-id", "traceparent")


@cache
def the_log():
    return build_log()


@cache
def blobs_that_count():
    """Return the digests that an audit looks at, in order."""
    seen = {}

    def fetch(ref, *, max_size_bytes):
        blob = the_log().blobs.fetch(ref, max_size_bytes=max_size_bytes)
        seen[ref.sha256] = None
        return blob

    assert audit(fetch=fetch).is_sound
    return tuple(seen)


@cache
def the_attestations():
    """Return what ledger nodes said of the log: every kind of record is there."""
    nodes = Nodes(the_log())
    nodes.attest_all()
    for name in ("node0", "node1", "node2"):
        nodes.request(1, name, 1, nodes.certify(nodes.blocks[-1]))
    return tuple(nodes.records)


def audit(
    *,
    records=None,
    checkpoints=None,
    attestations=None,
    fetch=None,
    log=None,
    **options,
):
    log = log or the_log()
    return run_audit(
        log.records if records is None else records,
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=fetch or log.blobs.fetch,
        checkpoints=log.checkpoints if checkpoints is None else checkpoints,
        attestations=attestations,
        **options,
    ).report


def flip(data, place, bit):
    """Return the bytes with one bit of one byte changed, or other bytes if empty."""
    if not data:
        return b"\x01"
    place %= len(data)
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def flip_record(record, part, place, bit):
    if part in {"key", "value"}:
        return replace(record, **{part: flip(getattr(record, part), place, bit)})
    headers = tuple(
        (name, flip(value, place, bit)) if name == part else (name, value)
        for name, value in record.headers
    )
    return replace(record, headers=headers)


indexes = st.integers(0, 10_000)
bits = st.integers(0, 7)


def is_about(report, topic, record, following):
    """Whether a finding names the record, or what noticed its loss."""
    offsets = {record.offset, following}
    return any(
        finding.place.topic == topic and finding.place.offset in offsets
        for finding in report.findings
    )


@given(indexes, st.sampled_from(PARTS), indexes, bits)
@settings(max_examples=examples(120))
def test_no_bit_of_a_ledger_record_can_change_unnoticed(number, part, place, bit):
    records = [*the_log().records]
    number %= len(records)
    records[number] = flip_record(records[number], part, place, bit)
    report = audit(records=records)
    assert not report.is_sound
    assert is_about(report, topics.LEDGER, records[number], None)


@given(indexes, st.sampled_from(PARTS), indexes, bits)
@settings(max_examples=examples(120))
def test_no_bit_of_a_checkpoint_can_change_unnoticed(number, part, place, bit):
    checkpoints = [*the_log().checkpoints]
    number %= len(checkpoints)
    checkpoints[number] = flip_record(checkpoints[number], part, place, bit)
    report = audit(checkpoints=checkpoints)
    assert not report.is_sound
    assert is_about(report, topics.CHECKPOINTS, checkpoints[number], None)


@cache
def the_blocks():
    """Return where an audit ends that read all but the attestations."""
    log = the_log()
    return run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=log.checkpoints,
    ).state


def audit_said(attestations):
    """Audit attestations; the blocks were audited before."""
    log = the_log()
    return run_audit(
        log.records[-1:],
        federation_id="clinics",
        unframe=unframe,
        checkpoints=log.checkpoints[-1:],
        attestations=attestations,
        start=the_blocks(),
    ).report


def is_noise(report, record):
    """Whether one record was passed over, and which; nothing is wrong with the log."""
    assert report.is_sound, report.findings
    assert [item.count for item in report.noise] == [1]
    return report.noise[0].first.offset == record.offset


@given(indexes, st.sampled_from(PARTS[:-1]), indexes, bits)
@settings(max_examples=examples(150))
def test_no_bit_of_an_attestation_can_change_unnoticed(number, part, place, bit):
    """But those of its trace context, which nothing else knows.

    Anybody could have written what comes out, so it counts for nothing and is counted.
    """
    records = [*the_attestations()]
    number %= len(records)
    records[number] = flip_record(records[number], part, place, bit)
    assert is_noise(audit_said(records), records[number])


@pytest.mark.parametrize(
    "kind", [e.BlockAttested, e.EpochRequested, e.CheckpointCosigned]
)
def test_no_byte_of_an_attestation_can_change_unnoticed(kind):
    """Not a sample: every byte of one record of each kind."""
    record = next(
        r for r in the_attestations() if type(codec.decode(unframe(r.value))) is kind
    )
    for part in PARTS[:-1]:
        named = {"key": record.key, "value": record.value}
        for place in range(len(named.get(part) or record.header(part))):
            changed = flip_record(record, part, place, 0)
            assert is_noise(audit_said([changed]), changed), (part, place)
    assert not audit_said([record]).noise


@given(indexes, indexes, bits)
@settings(max_examples=examples(80))
def test_no_bit_of_a_blob_can_change_unnoticed(number, place, bit):
    digests = blobs_that_count()
    digest = digests[number % len(digests)]
    blobs = BlobDict(the_log().blobs)
    blobs[digest] = flip(blobs[digest], place, bit)
    report = audit(fetch=blobs.fetch)
    assert not report.is_sound
    assert {finding.blob_sha256 for finding in report.findings} == {digest.hex()}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("number", [0, 3])
def test_no_byte_of_a_young_log_can_change_unnoticed(number, part):
    """Not a sample: every byte (of the long values every seventh) of two records."""
    log = the_log()
    records, checkpoints = log.records[: number + 1], log.checkpoints[: number + 1]
    for topic in ("records", "checkpoints"):
        *before, last = records if topic == "records" else checkpoints
        data = {"key": last.key, "value": last.value}.get(part) or last.header(part)
        for place in range(0, len(data), 7 if part == "value" else 1):
            logs = {"records": records, "checkpoints": checkpoints}
            logs[topic] = [*before, flip_record(last, part, place, 0)]
            assert not audit(**logs).is_sound


@given(indexes, indexes, st.sampled_from(["drop", "double", "swap", "move"]))
@settings(max_examples=examples(60))
def test_no_record_can_be_lost_doubled_or_moved_unnoticed(first, second, how):
    for topic in ("records", "checkpoints"):
        original = getattr(the_log(), topic)
        changed = rearrange(original, first, second, how)
        if changed == original:
            continue
        assert not audit(**{topic: changed}).is_sound


def rearrange(records, first, second, how):
    changed = [*records]
    first, second = first % len(changed), second % len(changed)
    if how == "drop":
        del changed[first]
    elif how == "double":
        changed.insert(second, changed[first])
    elif how == "swap":
        changed[first], changed[second] = changed[second], changed[first]
    else:
        changed.insert(second, changed.pop(first))
    return changed


@given(st.integers(0, 48), st.integers(0, 48))
@settings(max_examples=examples(60))
def test_no_log_can_be_cut_unnoticed(end, checkpoints_end):
    log = the_log()
    report = audit(
        records=log.records[:end], checkpoints=log.checkpoints[:checkpoints_end]
    )
    # What is left of both is a valid younger log only if both end at one block: that
    # nobody can see from the log alone.
    assert report.is_sound == (end == checkpoints_end > 0)


@given(indexes)
@settings(max_examples=examples(40))
def test_no_block_can_be_signed_again_with_another_key(number):
    records = [*the_log().records]
    number %= len(records)
    event = codec.decode(unframe(records[number].value))
    headers = make_headers(
        event, codec.encode(event), make_key("mallory"), the_log().genesis, ""
    )
    records[number] = replace(records[number], headers=tuple(headers))
    report = audit(records=records)
    assert is_about(report, topics.LEDGER, records[number], None)


FACTS = tuple(
    fact
    for topic in topics.FACT_TOPICS
    for fact in topics.EVENTS[topic]
    if any(type(event) is fact for event in the_log().leaves)
)


def list_fields(fact):
    """Return the fields of a fact that may be bent: the others are its place."""
    return [
        name
        for name in fact.__dataclass_fields__
        if name not in {"federation_id", "cause_leaf_index", "output_index"}
    ]


def count_fields(fact):
    return len(list_fields(fact))


class Bender:
    """Bends the first fact of each kind in one field: of a fixed number, modulo."""

    def __init__(self, kinds, number):
        self._kinds = set(kinds)
        self._number = number
        self._lies = []

    def send(self, fact):
        if type(fact) not in self._kinds:
            return [fact]
        self._kinds.remove(type(fact))
        names = list_fields(fact)
        self._lies.append(bend(fact, names[self._number % len(names)]))
        return self._lies[-1:]

    def demand_findings(self, log):
        """Each lie is found for itself: not only because of another."""
        assert not self._kinds
        report = audit(log=log)
        differing = {
            finding.place.leaf_index
            for finding in report.findings
            if finding.code == FindingCode.FACT_DIFFERS
        }
        for lie in self._lies:
            assert log.leaves.index(lie) in differing, lie


@given(st.sampled_from(FACTS), st.integers(0, 2), st.data())
@settings(max_examples=examples(80))
def test_no_fact_can_be_bent_by_a_decider_and_a_sequencer_together(kind, turn, data):
    """One field of one fact is changed, signed by the decider, and sequenced."""
    turn %= sum(type(event) is kind for event in the_log().leaves)
    seen = [0]
    lies = []

    def send(fact):
        if type(fact) is kind:
            seen[0] += 1
            if seen[0] == turn + 1:
                lies.append(bend(fact, data.draw(st.sampled_from(list_fields(fact)))))
                return lies
        return [fact]

    log = build_log(send_fact=send)
    (place,) = (i for i, event in enumerate(log.leaves) if event == lies[0])
    report = audit(log=log)
    assert place in {finding.place.leaf_index for finding in report.findings}


@pytest.mark.parametrize("number", range(max(map(count_fields, FACTS))))
def test_every_field_of_every_fact_counts(number):
    """Not a sample: the first fact of each kind is bent, each time in another field."""
    bender = Bender(FACTS, number)
    bender.demand_findings(build_log(send_fact=bender.send))


# Rounds whose updates nobody sees


NOBODY_IS_FAR = 2**62


@cache
def the_mpc_log():
    return build_mpc_log(far_threshold=NOBODY_IS_FAR)


SECRET_FACTS = tuple(
    fact
    for topic in topics.FACT_TOPICS
    for fact in topics.EVENTS[topic]
    if fact not in FACTS
)


def test_there_is_every_kind_of_fact_in_one_log_or_the_other():
    for kind in SECRET_FACTS:
        assert any(type(event) is kind for event in the_mpc_log().leaves), kind


@given(st.sampled_from(SECRET_FACTS), st.data())
@settings(max_examples=examples(12))
def test_no_fact_of_an_mpc_round_can_be_bent_either(kind, data):
    """Agents hear the lie, and go by it; the log goes on however it may."""
    lies = []

    def send(fact):
        if type(fact) is kind and not lies:
            lies.append(bend(fact, data.draw(st.sampled_from(list_fields(fact)))))
            return lies
        return [fact]

    log = run_mpc_round(send)
    (place,) = (i for i, event in enumerate(log.leaves) if event == lies[0])
    report = audit(log=log)
    assert place in {finding.place.leaf_index for finding in report.findings}


@pytest.mark.parametrize("number", range(max(map(count_fields, SECRET_FACTS))))
def test_every_field_of_every_fact_of_an_mpc_round_counts(number):
    bender = Bender(SECRET_FACTS, number)
    bender.demand_findings(run_mpc_round(bender.send))


def run_mpc_round(send_fact):
    log = start_mpc_log(
        "ada",
        "bea",
        "dora",
        cohort_size=3,
        far_threshold=NOBODY_IS_FAR,
        send_fact=send_fact,
    )
    log.speak = lie_once("p1")
    log.run_round()
    return log


@cache
def mpc_blobs_that_count():
    """Return the digests that an audit of the secret log looks at, in order."""
    seen = {}

    def fetch(ref, *, max_size_bytes):
        blob = the_mpc_log().blobs.fetch(ref, max_size_bytes=max_size_bytes)
        seen[ref.sha256] = None
        return blob

    assert audit(log=the_mpc_log(), fetch=fetch).is_sound
    return tuple(seen)


@given(indexes, indexes, bits)
@settings(max_examples=examples(30))
def test_no_bit_of_an_mpc_rounds_blob_can_change_unnoticed(number, place, bit):
    digests = mpc_blobs_that_count()
    digest = digests[number % len(digests)]
    blobs = BlobDict(the_mpc_log().blobs)
    blobs[digest] = flip(blobs[digest], place, bit)
    report = audit(log=the_mpc_log(), fetch=blobs.fetch)
    assert not report.is_sound
    assert {finding.blob_sha256 for finding in report.findings} == {digest.hex()}


@pytest.mark.parametrize(
    ("get_log", "get_digests"),
    [(the_log, blobs_that_count), (the_mpc_log, mpc_blobs_that_count)],
    ids=["plain", "mpc"],
)
def test_every_blob_counts(get_log, get_digests):
    """Not a sample: all are changed, then those from which others kept the audit."""
    log, left = get_log(), {digest.hex() for digest in get_digests()}
    while left:
        blobs = BlobDict(log.blobs)
        for digest in map(bytes.fromhex, left):
            blobs[digest] = flip(blobs[digest], len(blobs[digest]) // 2, 0)
        report = audit(log=log, fetch=blobs.fetch)
        found = {finding.blob_sha256 for finding in report.findings}
        assert found
        assert found <= left
        left -= found


@given(indexes, st.sampled_from(PARTS), indexes, bits)
@settings(max_examples=examples(30))
def test_no_bit_of_an_mpc_rounds_record_can_change_unnoticed(number, part, place, bit):
    log = the_mpc_log()
    records = [*log.records]
    number %= len(records)
    records[number] = flip_record(records[number], part, place, bit)
    report = audit(log=log, records=records)
    assert not report.is_sound
    assert is_about(report, topics.LEDGER, records[number], None)


def bend(fact, name):
    """Return the fact with one field changed to another valid value."""
    return replace(fact, **{name: bend_value(name, getattr(fact, name))})


def bend_value(name, value):
    match value:
        case int():
            return value + 1
        case str():
            return value + "x"
        case bytes():
            return flip(value, 0, 0)
        case ():
            return ("nobody",)
        case tuple():
            return value[:-1]
        case e.BlobRef():
            return replace(value, size_bytes=value.size_bytes + 1)
        case e.Task():
            return replace(value, local_epochs=value.local_epochs + 1)
        case e.Evaluation():
            return replace(value, num_examples=value.num_examples + 1)
        case None:
            return FOR_NULLS[name]
    raise AssertionError(value)


SOME_BLOB = e.BlobRef(
    uri=f"s3://moot/sha256/{'0' * 64}", sha256=bytes(32), size_bytes=1
)
FOR_NULLS = {
    "privacy": e.RoundPrivacy(**dict.fromkeys(e.RoundPrivacy.__annotations__, 1)),
    "base_state": SOME_BLOB,
    "state": SOME_BLOB,
    "num_weighted_steps": 1,
}
"""What a lie says where a fact of these logs says nothing."""


# Many processes


@pytest.fixture(scope="module")
def helpers():
    helpers = Helpers(1)
    yield helpers
    helpers.close()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["records", "checkpoints", "attestations"]),
            indexes,
            st.sampled_from(PARTS[:-1]),
            indexes,
            bits,
        ),
        max_size=3,
    ),
    st.integers(1, 70),
)
@settings(
    max_examples=examples(40),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_report_is_the_same_for_any_number_of_processes(helpers, flips, chunk):
    streams = streams_with(flips)
    alone = audit(**streams)
    audit_parallel.MAX_CHUNK_RECORDS = chunk
    try:
        together = run_audit(
            streams["records"],
            federation_id="clinics",
            unframe=unframe,
            fetch_blob=the_log().blobs.fetch,
            checkpoints=streams["checkpoints"],
            attestations=streams["attestations"],
            helpers=helpers,
        ).report
    finally:
        audit_parallel.MAX_CHUNK_RECORDS = 64
    assert together == alone
    assert alone.is_sound is all(name == "attestations" for name, *_ in flips)
    has_noise = any(name == "attestations" for name, *_ in flips)
    assert alone.stopped or bool(alone.noise) is has_noise


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["ada", "bea"])), max_size=8),
    st.integers(1, 9),
)
@settings(
    max_examples=examples(15),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_forged_leaf_passes_with_helpers(helpers, leaves, chunk):
    """The sequencer admits what nobody signed, anywhere in its blocks."""
    log = the_log().copy()
    events = []
    for number, (is_forged, agent) in enumerate(leaves):
        event = e.UpdateDeclined(
            federation_id="clinics",
            round=1,
            agent_id=agent,
            reason="TRAINING_FAILED",
            detail=str(number),
        )
        key = make_key("mallory" if is_forged else agent)
        events.append((log.make_leaf(event, key), event))
    for pair in (events[:3], events[3:]):
        if pair:
            log.append(pair, is_followed=False)
    audit_parallel.MAX_CHUNK_RECORDS = chunk
    try:
        report = run_audit(
            log.records,
            federation_id="clinics",
            unframe=unframe,
            checkpoints=log.checkpoints,
            helpers=helpers,
        ).report
    finally:
        audit_parallel.MAX_CHUNK_RECORDS = 64
    wrong = [finding.place.leaf_index for finding in report.findings]
    first = len(log.leaves)
    assert wrong == [first + i for i, (is_forged, _) in enumerate(leaves) if is_forged]


def streams_with(flips):
    streams = {
        "records": [*the_log().records],
        "checkpoints": [*the_log().checkpoints],
        "attestations": [*the_attestations()],
    }
    changed = set()
    for name, number, part, place, bit in flips:
        number %= len(streams[name])  # noqa: PLW2901  # into its range
        if (name, number) not in changed:  # a second flip could undo the first
            changed.add((name, number))
            record = streams[name][number]
            streams[name][number] = flip_record(record, part, place, bit)
    return streams


# Bundles


@cache
def the_bundle(folder):
    path = folder / "whole.tar"
    with BundleWriter(path) as writer:
        log = the_log()
        report = run_audit(
            writer.records(log.records),
            federation_id="clinics",
            unframe=writer.unframe(unframe),
            fetch_blob=writer.fetch(log.blobs.fetch),
            checkpoints=writer.records(log.checkpoints),
            attestations=writer.records(the_attestations()),
        ).report
        assert report.is_sound
        writer.write("clinics", b"{}", policy=None, settled_offset=None)
    return path.read_bytes(), report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


def audit_bundle(path):
    with Bundle(path) as bundle:
        return run_audit(
            bundle.records(topics.LEDGER),
            federation_id=bundle.manifest.federation_id,
            unframe=bundle.unframe,
            fetch_blob=bundle.fetch if bundle.manifest.has_blobs else None,
            checkpoints=bundle.records(topics.CHECKPOINTS),
            attestations=bundle.records(topics.ATTESTATIONS),
            settled_offset=bundle.manifest.settled_offset,
        ).report


def is_noticed(report, whole):
    """Whether a report says that something is not as it was, or nothing that counts is.

    Nothing but the order vouches for a record's offset.
    """
    if not report.is_sound or report.noise:
        return True
    return report == whole


def free_parts(data):
    """Return where a bundle holds what its audit does not look at."""
    free = []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar.getmembers():
            if member.name in TEXTS:
                free.append((member.offset_data, member.offset_data + member.size))
            elif member.name.startswith("blobs/"):
                digest = bytes.fromhex(member.name[6:])
                if digest not in blobs_that_count():
                    free.append((member.offset_data, member.offset_data + member.size))
    return free


@given(indexes, indexes, bits)
@settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_bit_of_a_bundle_can_change_unnoticed(folder, block, place, bit):
    data, whole = the_bundle(folder)
    # Blocks of 512 bytes alike, so that tar headers get their share.
    position = (block % (len(data) // 512)) * 512 + place % 512
    if any(start <= position < end for start, end in free_parts(data)):
        return
    path = folder / "flipped.tar"
    path.write_bytes(flip_at(data, position, bit))
    try:
        report = audit_bundle(path)
    except BundleError:
        return
    assert is_noticed(report, whole), position


def flip_at(data, place, bit):
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


def test_every_byte_of_a_bundles_frame_counts(folder):
    """Not a sample: tar headers, manifest and the first records of a young log."""
    log = the_log()
    path = folder / "young.tar"
    with BundleWriter(path) as writer:
        whole = run_audit(
            writer.records(log.records[:2]),
            federation_id="clinics",
            unframe=writer.unframe(unframe),
            checkpoints=writer.records(log.checkpoints[:2]),
            attestations=writer.records(the_attestations()[:4]),
        ).report
        assert whole.is_sound
        writer.write("clinics", b"{}", policy=None, settled_offset=None)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar.getmembers()}
    places = [
        place
        for name, member in members.items()
        for place in (
            *range(member.offset, member.offset_data),
            *range(
                member.offset_data,
                member.offset_data + (0 if name in TEXTS else min(member.size, 300)),
            ),
        )
    ]
    for place in places:
        path.write_bytes(flip_at(data, place, 0))
        try:
            report = audit_bundle(path)
        except BundleError:
            continue
        assert is_noticed(report, whole), place


TEXTS = {"README.txt", "report.json", "policy.txt"}
"""For people; an audit does not read them."""


@given(st.binary(max_size=300), st.integers(0, 40))
@settings(max_examples=examples(60))
def test_garbage_is_no_record_and_never_another_error(garbage, cut):
    record = the_log().records[0]
    for data in (garbage, encode_record(record)[4 : 4 + cut] + garbage):
        with contextlib.suppress(BundleError):
            decoded = decode_record(topics.LEDGER, data)
            assert encode_record(decoded)[4:] == data


@given(st.binary(max_size=2_000))
@settings(
    max_examples=examples(60),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_garbage_is_no_bundle_and_never_another_error(folder, garbage):
    path = folder / "garbage.tar"
    data, _ = the_bundle(folder)
    for content in (garbage, data[:1_536] + garbage, data[:-1_024] + garbage):
        path.write_bytes(content)
        with contextlib.suppress(BundleError):
            audit_bundle(path)


# Garbage


def record_of(value, *, key=b"clinics", signer="SEQUENCER"):
    headers = (
        ("moot-signature", sign_event(make_key(signer), the_log().genesis, value[:0])),
    )
    return Record(
        topic=topics.LEDGER,
        partition=0,
        offset=0,
        key=key,
        value=value,
        headers=headers,
    )


@given(
    st.lists(st.tuples(st.binary(max_size=80), st.booleans()), max_size=4),
    st.integers(0, 49),
)
@example([(b"", True)], 0)
@settings(max_examples=examples(60))
def test_garbage_is_a_finding_or_noise_and_never_an_error(garbage, place):
    log = the_log()
    ledger_prefix = log.records[0].value[:5]
    for topic in ("records", "checkpoints", "attestations"):
        records = [*getattr(log, topic, the_attestations())]
        for data, is_framed in garbage:
            value = (ledger_prefix if is_framed else b"") + data
            records.insert(place, record_of(value))
        report = audit(**{topic: records})
        if topic == "attestations":
            assert report.is_sound
            assert sum(item.count for item in report.noise) == len(garbage)
        else:
            assert report.is_sound == (not garbage)


@given(
    st.lists(st.binary(max_size=60), min_size=1, max_size=3),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
)
@settings(max_examples=examples(60))
def test_garbage_that_the_sequencer_signed_is_a_finding_too(leaves, number, is_leaf):
    log = the_log()
    if is_leaf:
        leaves = [
            codec.encode(
                e.Leaf(
                    event=data,
                    signature=bytes(64),
                    source_topic="moot.control",
                    source_partition=0,
                    source_offset=0,
                )
            )
            for data in leaves
        ]
    last = codec.decode(unframe(log.records[-1].value))
    block = replace(
        last,
        height=last.height + 1,
        leaves=tuple(leaves),
        sequenced_at_ms=number,
        first_leaf_index=number,
    )
    data = codec.encode(block)
    headers = make_headers(block, data, make_key("SEQUENCER"), the_log().genesis, "")
    record = replace(
        log.records[-1],
        offset=10_000,
        value=frame(block),
        headers=tuple(headers),
    )
    report = audit(records=[*log.records, record])
    assert report.findings[0].place.offset == 10_000


SEQUENCED = tuple(
    event for topic in topics.SEQUENCED_TOPICS for event in topics.EVENTS[topic]
)


@pytest.mark.parametrize("kind", [*SEQUENCED, e.EventRejected])
@given(data=st.data())
@settings(max_examples=examples(12))
def test_any_event_of_a_colluding_sequencer_is_judged_and_never_an_error(kind, data):
    """Every field random but the federation; signed by whoever should have."""
    event = replace(data.draw(instances(kind)), federation_id="clinics")
    log = the_log().copy()
    signer = data.draw(st.sampled_from(["OPERATOR", "DECIDER", "ada", "AGGREGATOR"]))
    log.append([(log.make_leaf(event, make_key(signer)), event)], is_followed=False)
    report = audit(log=log)
    assert report.num_blocks + bool(report.stopped) == len(log.records)


def instances(kind):
    hints = {name: field.type for name, field in kind.__dataclass_fields__.items()}
    return st.builds(kind, **{name: values(name, hint) for name, hint in hints.items()})


def values(name, hint):
    match hint:
        case "int":
            return st.integers(0, 2**31 - 1)
        case "str":
            return st.sampled_from(["ada", "", "LATE", "moot.control", "é"]) | st.text(
                max_size=8
            )
        case "bytes":
            size = {"signature": 64, "commitment": 48, "blindings": 48}.get(name, 32)
            return st.binary(min_size=size, max_size=size)
        case _ if hint.endswith(" | None"):
            return st.none() | values(name, hint.removesuffix(" | None"))
        case _ if hint.startswith("tuple["):
            inner = hint.removeprefix("tuple[").removesuffix(", ...]")
            return st.lists(values("", inner), max_size=3).map(tuple)
        case _:
            return instances(getattr(e, hint))


def test_digests_name_the_blobs():
    """The builder's store is what it should be, or the tests above test nothing."""
    log = the_log()
    assert all(
        hashlib.sha256(blob).digest() == digest for digest, blob in log.blobs.items()
    )
