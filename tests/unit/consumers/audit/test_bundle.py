"""A log in one file: written once, audited anywhere, and nothing in it is believed."""

import io
import json
import os
import tarfile
from dataclasses import replace

import pytest
import typer

import cli.audit
from adapters.blobs import BlobError
from adapters.kafka import Record
from adapters.schema_registry import FramingError
from cli.audit import Options, Streams
from consumers.audit import bundle as audit_bundle
from consumers.audit.auditor import run_audit
from consumers.audit.bundle import (
    Bundle,
    BundleError,
    BundleWriter,
    Manifest,
    decode_record,
    encode_record,
)
from consumers.audit.report import FindingCode
from ledger.policy import parse_policy
from schemas import topics
from tests.attesting import attest_all
from tests.builders import build_log, make_key, unframe


@pytest.fixture(scope="module")
def log():
    return build_log()


@pytest.fixture(scope="module")
def attestations(log):
    return attest_all(log)


class LogSource:
    """A `LogBuilder`'s log as a source of `moot audit`."""

    def __init__(self, log, attestations, *, with_blobs=True):
        self.unframe = unframe
        self.fetch = log.blobs.fetch if with_blobs else None
        self._log, self._attestations = log, attestations

    def open(self, _positions):
        return Streams(
            ledger=iter(self._log.records),
            checkpoints=iter(self._log.checkpoints),
            attestations=iter(self._attestations),
            settled_offset=None,
        )


def write(path, log, attestations, *, jobs=1, with_blobs=True):
    """Write a bundle as `moot audit --bundle` does."""
    source = LogSource(log, attestations, with_blobs=with_blobs)
    return write_from(path, source, jobs=jobs)


def write_from(path, source, *, jobs=1):
    with BundleWriter(path) as writer:
        kept, streams = cli.audit._keep(writer, source, source.open({}))
        options = Options(federation="clinics", jobs=jobs)
        audited = cli.audit._run(options, "clinics", kept, streams, None)
        cli.audit._write_bundle(writer, audited, streams)
    return audited.report


def read(path, **options):
    with Bundle(path) as bundle:
        return run_audit(
            bundle.records(topics.LEDGER),
            federation_id=bundle.manifest.federation_id,
            unframe=bundle.unframe,
            fetch_blob=bundle.fetch if bundle.manifest.has_blobs else None,
            checkpoints=bundle.records(topics.CHECKPOINTS),
            attestations=bundle.records(topics.ATTESTATIONS),
            **options,
        ).report


@pytest.fixture(scope="module")
def bundle(log, attestations, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "clinics.tar"
    write(path, log, attestations)
    return path


def moot_audit(path, **options):
    with pytest.raises(typer.Exit) as exit_:
        cli.audit.audit(Options(bundle=path, **options))
    return exit_.value.exit_code


def test_a_bundle_is_as_sound_as_its_log(log, attestations, bundle, tmp_path):
    report = write(tmp_path / "again.tar", log, attestations)
    assert report.is_sound, report.findings
    offline = read(bundle)
    assert offline == report


def test_the_same_log_gives_the_same_bytes(log, attestations, bundle, tmp_path):
    write(tmp_path / "again.tar", log, attestations, jobs=2)
    assert (tmp_path / "again.tar").read_bytes() == bundle.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["again.tar"]


def test_the_command_audits_a_bundle_offline(
    bundle, log, tmp_path, capsys, monkeypatch
):
    for name in list(os.environ):
        if name.startswith("MOOT_"):
            monkeypatch.delenv(name)
    key = make_key("OPERATOR").public_key.hex()
    assert moot_audit(bundle, operator_key=key, as_json=True, jobs=1) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["is_sound"]
    assert report["is_operator_key_pinned"]
    assert report["num_rounds_recomputed"] == 3
    assert moot_audit(bundle, operator_key=make_key("x").public_key.hex()) == 1
    assert "WRONG_OPERATOR" in capsys.readouterr().out
    assert moot_audit(bundle, with_blobs=False, jobs=1) == 0
    assert "Blobs were left out" in capsys.readouterr().out
    policy = tmp_path / "policy"
    with tarfile.open(bundle) as tar:
        policy.write_bytes(tar.extractfile("policy.txt").read())
    assert moot_audit(bundle, policy=policy, jobs=1) == 0
    assert "as your policy demands" in capsys.readouterr().out
    state = tmp_path / "state"
    assert moot_audit(bundle, save=state, jobs=1) == 0
    assert moot_audit(bundle, continue_from=state, jobs=1) == 0
    assert "earlier audit" in capsys.readouterr().out


def test_any_tar_reads_a_bundle(bundle, log):
    with tarfile.open(bundle) as tar:
        names = tar.getnames()
        assert names[:7] == [
            "README.txt",
            "manifest.json",
            "policy.txt",
            "report.json",
            "ledger.records",
            "checkpoints.records",
            "attestations.records",
        ]
        assert names[7:] == sorted(names[7:])
        assert "moot audit" in tar.extractfile("README.txt").read().decode()
        policy = parse_policy(tar.extractfile("policy.txt").read())
        assert len(policy.witnesses) == 4
        assert json.loads(tar.extractfile("report.json").read())["is_sound"]


def test_a_bundle_without_blobs_says_so(log, attestations, tmp_path):
    path = tmp_path / "b.tar"
    write(path, log, attestations, with_blobs=False)
    with Bundle(path) as bundle:
        assert not bundle.manifest.has_blobs
    report = read(path)
    assert report.is_sound
    assert report.num_rounds_recomputed == 0


def test_a_broken_log_gives_a_bundle_that_shows_it(log, attestations, tmp_path):
    broken = log.copy()
    del broken.records[10]
    report = write(tmp_path / "b.tar", broken, attestations)
    assert [f.code for f in report.findings] == [FindingCode.BROKEN_LOG]
    assert read(tmp_path / "b.tar").findings == report.findings


# Records


RECORD = Record(topics.LEDGER, 0, 7, b"key", b"value", (("a", b"b"), ("é", b"")))


@pytest.mark.parametrize(
    "record",
    [RECORD, replace(RECORD, key=None), replace(RECORD, value=None, headers=())],
)
def test_a_record_comes_back_as_it_was(record):
    data = encode_record(record)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert decode_record(topics.LEDGER, data[4:]) == record


def test_every_cut_and_every_byte_too_many_is_found():
    data = encode_record(RECORD)[4:]
    for end in range(len(data)):
        with pytest.raises(BundleError):
            decode_record(topics.LEDGER, data[:end])
    with pytest.raises(BundleError, match="longer"):
        decode_record(topics.LEDGER, data + b"\0")


def test_records_are_bounded():
    many = tuple((str(i), b"") for i in range(audit_bundle.MAX_HEADERS + 1))
    with pytest.raises(BundleError, match="too large"):
        encode_record(replace(RECORD, headers=many))
    with pytest.raises(BundleError, match="too large"):
        encode_record(replace(RECORD, value=bytes(audit_bundle.MAX_RECORD_SIZE_BYTES)))
    at_most = encode_record(replace(RECORD, headers=many[1:]))
    assert decode_record(topics.LEDGER, at_most[4:]).headers == many[1:]
    head = encode_record(replace(RECORD, headers=()))[4:-2]
    with pytest.raises(BundleError, match="101 headers"):
        decode_record(topics.LEDGER, head + (101).to_bytes(2, "big"))


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (b"\xff\xff\xff\xff\0\0\0\0", "null"),
        (b"\0\0\0\1a\xff\xff\xff\xff", "null"),
        (b"\0\0\0\1\xff\0\0\0\0", "UTF-8"),
    ],
)
def test_a_header_that_kafka_does_not_have_is_refused(headers, message):
    head = encode_record(replace(RECORD, headers=()))[4:-2]
    with pytest.raises(BundleError, match=message):
        decode_record(topics.LEDGER, head + b"\0\1" + headers)


# Malformed bundles


def members(path):
    with tarfile.open(path) as tar:
        return {
            member.name: tar.extractfile(member).read() for member in tar.getmembers()
        }


def make_tar(path, contents, **fields):
    """Write a tar; the last member gets these fields."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for number, (name, data) in enumerate(contents):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if number == len(contents) - 1:
                for field, value in fields.items():
                    setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return path


def refuse(path, message):
    with pytest.raises(BundleError, match=message):
        Bundle(path)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("../../etc/passwd", {}),
        ("/etc/passwd", {}),
        ("blobs/../x", {}),
        ("blobs/" + "A" * 64, {}),
        ("blobs/" + "a" * 63, {}),
        ("other.records", {}),
        ("x" * 120, {}),
        ("report.json", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("report.json", {"type": tarfile.LNKTYPE, "linkname": "README.txt"}),
        ("report.json", {"type": tarfile.DIRTYPE}),
        ("report.json", {"type": tarfile.FIFOTYPE}),
        ("report.json", {"type": tarfile.GNUTYPE_SPARSE}),
    ],
)
def test_only_plain_files_of_known_names_are_taken(bundle, tmp_path, name, fields):
    contents = [i for i in members(bundle).items() if i[0] != "report.json"]
    path = make_tar(tmp_path / "b.tar", [*contents, (name, b"")], **fields)
    refuse(path, "is not a bundle: byte")


def test_a_member_that_is_there_twice_is_refused(bundle, tmp_path):
    contents = [*members(bundle).items(), ("report.json", b"")]
    refuse(make_tar(tmp_path / "b.tar", contents), "twice")


@pytest.mark.parametrize("name", ["manifest.json", "ledger.records"])
def test_a_member_that_is_missing_is_named(bundle, tmp_path, name, capsys):
    contents = [item for item in members(bundle).items() if item[0] != name]
    path = make_tar(tmp_path / "b.tar", contents)
    assert moot_audit(path, jobs=1) == 2
    assert f"{name} is missing" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 1, 511, 512, 5_000])
def test_a_bundle_that_was_cut_is_refused(bundle, tmp_path, size):
    path = tmp_path / "b.tar"
    path.write_bytes(bundle.read_bytes()[:size])
    refuse(path, "not a bundle")


def test_compressed_or_other_files_are_refused(bundle, tmp_path):
    import gzip

    path = tmp_path / "b.tar"
    path.write_bytes(gzip.compress(bundle.read_bytes()))
    refuse(path, "not the header of a tar member|not octal")
    path.write_bytes(os.urandom(4_096))
    refuse(path, "not a bundle")
    refuse(tmp_path / "nothing", "No such file")


def test_nothing_can_be_hidden_in_a_bundle(bundle, tmp_path):
    data = bytearray(bundle.read_bytes())
    path = tmp_path / "b.tar"
    path.write_bytes(data + b"\0" * 1_000 + b"x")
    refuse(path, "hidden behind the end")
    size = len(members(bundle)["README.txt"])
    data[512 + size] = 1
    path.write_bytes(data)
    refuse(path, "hidden behind README")


def test_a_bundle_with_a_hole_behind_its_end_is_not_looked_through(bundle, tmp_path):
    """A file of a few KB on the disk may say that it is as long as it likes."""
    path = tmp_path / "holes.tar"
    path.write_bytes(bundle.read_bytes())
    os.truncate(path, 2**42)
    with pytest.raises(BundleError, match="hidden behind the end"):
        Bundle(path)


def test_a_bundle_may_end_wherever_tar_ends_it(bundle, tmp_path):
    contents = members(bundle)
    for size in range(0, tarfile.RECORDSIZE, tarfile.BLOCKSIZE):
        contents["README.txt"] = bytes(size)
        Bundle(make_tar(tmp_path / "b.tar", [*contents.items()]))


def test_a_size_beyond_the_file_is_refused(bundle, tmp_path):
    contents = [*members(bundle).items()]
    path = make_tar(tmp_path / "b.tar", contents)
    data = bytearray(path.read_bytes())
    for field in (b"77777777777\0", b"\x80" + b"\xff" * 11, b"9" * 12, b" " * 12):
        data[124:136] = field
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        path.write_bytes(data)
        refuse(path, "shorter|octal")


def test_a_manifest_that_is_too_large_is_not_read(bundle, tmp_path):
    contents = members(bundle)
    contents["manifest.json"] = b" " * (audit_bundle.MAX_TEXT_SIZE_BYTES + 1)
    refuse(make_tar(tmp_path / "b.tar", [*contents.items()]), "at most")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("folkmoot-bundle/v1", "folkmoot-bundle/v2"),
        lambda text: text + " ",
        lambda text: text.replace('"has_blobs"', '"has_blob"'),
        lambda text: text.replace('"c301', '"c302'),
        lambda text: text[:-40],
        lambda _text: "[]",
    ],
)
def test_a_bad_manifest_is_refused(bundle, tmp_path, change):
    contents = members(bundle)
    text = contents["manifest.json"].decode()
    contents["manifest.json"] = change(text).encode()
    path = make_tar(tmp_path / "b.tar", [*contents.items()])
    refuse(path, r"manifest\.json")


def test_a_schema_that_was_never_released_is_refused():
    manifest = Manifest(
        federation_id="clinics",
        schemas={b"\0\0\0\0\1": b"\xc3\x01" + bytes(8)},
        has_blobs=False,
        settled_offset=None,
    )
    with pytest.raises(BundleError, match="no released schema"):
        Manifest.from_bytes(manifest.to_bytes())


def test_damaged_records_are_no_verdict(bundle, tmp_path, capsys):
    contents = members(bundle)
    first = int.from_bytes(contents["ledger.records"][:4], "big")
    for damage, message in (
        (b"\xff\xff\xff\xff", "does not fit"),
        ((first - 1).to_bytes(4, "big"), "shorter than it says"),
    ):
        changed = {**contents}
        changed["ledger.records"] = damage + contents["ledger.records"][4:]
        path = make_tar(tmp_path / "b.tar", [*changed.items()])
        assert moot_audit(path, jobs=1, as_json=True) == 2
        out, err = capsys.readouterr()
        assert json.loads(out)["is_sound"] is None
        assert message in err
        assert "ledger.records, byte" in err
    changed["ledger.records"] = contents["ledger.records"][:-1]
    path = make_tar(tmp_path / "b.tar", [*changed.items()])
    assert moot_audit(path, jobs=1) == 2


def test_offsets_that_go_back_are_refused(bundle, log, tmp_path):
    contents = members(bundle)
    contents["ledger.records"] = b"".join(
        encode_record(record) for record in (log.records[1], log.records[0])
    )
    path = make_tar(tmp_path / "b.tar", [*contents.items()])
    with Bundle(path) as opened, pytest.raises(BundleError, match="comes after"):
        list(opened.records(topics.LEDGER))


def test_blobs_are_what_their_digest_says_or_refused(bundle, log):
    data = next(iter(log.blobs.values()))
    ref = log.blobs.store(data)
    with Bundle(bundle) as opened:
        assert opened.fetch(ref, max_size_bytes=len(data)) == data
        for bad, limit, reason in (
            (ref, len(data) - 1, "OVERSIZED_BLOB"),
            (replace(ref, size_bytes=len(data) - 1), len(data), "OVERSIZED_BLOB"),
            (replace(ref, sha256=bytes(32)), len(data), "MISSING_BLOB"),
        ):
            with pytest.raises(BlobError) as error:
                opened.fetch(bad, max_size_bytes=limit)
            assert error.value.reason == reason


def test_an_altered_blob_is_found(bundle, tmp_path):
    contents = members(bundle)
    name = max(name for name in contents if name.startswith("blobs/"))
    contents[name] = b"\0" + contents[name][1:]
    path = make_tar(tmp_path / "b.tar", [*contents.items()])
    findings = read(path).findings
    assert {finding.blob_sha256 for finding in findings} == {name[6:]}


def test_framing_is_judged_as_a_registry_would(bundle):
    with Bundle(bundle) as opened:
        for value, reason in (
            (b"", "NOT_FRAMED"),
            (b"\1\0\0\0\1", "NOT_FRAMED"),
            (b"\0\0\0\0", "NOT_FRAMED"),
            (b"\0\xff\0\0\1", "UNKNOWN_SCHEMA"),
        ):
            with pytest.raises(FramingError) as error:
                opened.unframe(value)
            assert error.value.reason == reason


def test_a_bundle_that_cannot_be_written_is_said(log, attestations, tmp_path):
    with pytest.raises(BundleError, match="cannot write"):
        BundleWriter(tmp_path / "no" / "b.tar")
    (tmp_path / "b.tar").mkdir()
    with pytest.raises(BundleError, match="cannot write"):
        write(tmp_path / "b.tar", log, attestations)


# What a bundle says about itself


def with_manifest(bundle, path, **changes):
    """Write a bundle whose manifest says something else, in the writer's own form."""
    contents = members(bundle)
    manifest = {**json.loads(contents["manifest.json"]), **changes}
    contents["manifest.json"] = json.dumps(manifest, indent=1).encode() + b"\n"
    return make_tar(path, [*contents.items()])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("has_blobs", value) for value in (1, 0, "true", None, [], 1.0)),
        *(("federation_id", value) for value in (5, None, [], {}, True, "\ud800")),
        *(("schemas", value) for value in ([], None, "x", {"00": "c301"}, {"": ""})),
        *(("schemas", {"0000000001": value}) for value in (1, None, "", "c301", [])),
        *(("schemas", {"0100000001": "c301" + 16 * "0"}) for _ in range(1)),
        *(
            ("settled_offset", value)
            for value in ("x", -1, 10**400, 2**63, 1.5, True, [], float("nan"))
        ),
        ("format", 1),
        ("format", None),
    ],
)
def test_a_manifest_of_wrong_types_is_refused_with_a_sentence(
    bundle, tmp_path, capsys, name, value
):
    path = with_manifest(bundle, tmp_path / "b.tar", **{name: value})
    assert moot_audit(path, jobs=1) == 2
    err = capsys.readouterr().err
    assert "manifest.json" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"5",
        b'"x"',
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"settled_offset": ' + b"9" * 100_000 + b"}",
        b'{"format": "folkmoot-bundle/v1", "format": "folkmoot-bundle/v1"}',
        b'{"settled_offset": NaN}',
    ],
)
def test_a_manifest_that_no_writer_wrote_is_refused(bundle, tmp_path, capsys, text):
    contents = {**members(bundle), "manifest.json": text}
    path = make_tar(tmp_path / "b.tar", [*contents.items()])
    assert moot_audit(path, jobs=1) == 2
    assert "manifest.json: " in capsys.readouterr().err


@pytest.mark.parametrize("settled_offset", [0, 1, 10**9, None])
def test_no_bundle_can_say_that_its_checkpoints_are_still_to_come(
    bundle, tmp_path, capsys, settled_offset
):
    path = with_manifest(bundle, tmp_path / "a.tar", settled_offset=settled_offset)
    assert moot_audit(path, jobs=1) == 0
    contents = members(path)
    records = contents["checkpoints.records"]
    first = int.from_bytes(records[:4], "big") + 4
    for left in (b"", records[:first]):
        changed = {**contents, "checkpoints.records": left}
        path = make_tar(tmp_path / "b.tar", [*changed.items()])
        assert moot_audit(path, jobs=1) == 1
        assert "CHECKPOINT_MISSING" in capsys.readouterr().out


def test_blocks_that_were_too_new_for_a_checkpoint_are_left_out(log, tmp_path):
    """So that every block that is in a bundle can be asked for one."""
    path = tmp_path / "b.tar"
    with BundleWriter(path) as writer:
        source = LogSource(log, ())
        streams = replace(
            source.open({}),
            checkpoints=iter(log.checkpoints[:40]),
            settled_offset=log.records[40].offset,
        )
        kept, streams = cli.audit._keep(writer, source, streams)
        audited = cli.audit._run(
            Options(federation="clinics", jobs=1), "clinics", kept, streams, None
        )
        assert audited.report.is_sound
        assert audited.report.num_unsigned_blocks == len(log.records) - 40
        cli.audit._write_bundle(writer, audited, streams)
    with Bundle(path) as bundle:
        assert len(list(bundle.records(topics.LEDGER))) == 40
    assert moot_audit(path, jobs=1) == 0


@pytest.mark.parametrize("has_blobs", [True, False])
def test_blobs_that_were_left_out_show_in_the_verdict(
    bundle, tmp_path, capsys, has_blobs
):
    path = with_manifest(bundle, tmp_path / "a.tar", has_blobs=has_blobs)
    # Blobs that are there are looked at, whatever the manifest says.
    assert moot_audit(path, jobs=1, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_rounds_recomputed"] == 3
    assert report["has_blobs"]
    without = [item for item in members(path).items() if "blobs/" not in item[0]]
    code = moot_audit(make_tar(tmp_path / "b.tar", without), jobs=1)
    out = capsys.readouterr().out
    if has_blobs:
        assert code == 1
        assert "MISSING_BLOB" in out
    else:
        verdict, *_ = out.split("\n")
        assert verdict.endswith("blobs aside: none was checked.")
        assert "author left its blobs out" in out


def test_without_what_nodes_said_a_policy_is_not_met(bundle, tmp_path, capsys):
    contents = {**members(bundle), "attestations.records": b""}
    path = make_tar(tmp_path / "b.tar", [*contents.items()])
    policy = tmp_path / "policy"
    policy.write_bytes(contents["policy.txt"])
    assert moot_audit(path, jobs=1) == 0
    assert "Demand finality with --policy" in capsys.readouterr().out
    assert moot_audit(path, policy=policy, jobs=1) == 1
    assert "POLICY_NOT_MET" in capsys.readouterr().out


def test_the_reader_may_say_whose_log_is_expected(bundle, capsys):
    assert moot_audit(bundle, federation="clinics", jobs=1) == 0
    assert moot_audit(bundle, federation="banks", jobs=1) == 2
    assert "belongs to 'clinics', not to 'banks'" in capsys.readouterr().err


def test_a_manifest_cannot_rename_a_log(bundle, tmp_path, capsys):
    path = with_manifest(bundle, tmp_path / "b.tar", federation_id="banks")
    assert moot_audit(path, jobs=1) in {1, 2}


def test_no_record_can_prevent_a_bundle(log, attestations, tmp_path):
    """Noise that is too large for a bundle, or no text, is there as noise."""
    noise = Record(topics.ATTESTATIONS, 0, 10**6, b"clinics", b"x", ())
    many = tuple((str(i), b"") for i in range(1_000))
    junk = [
        noise,
        replace(noise, headers=many),
        replace(noise, headers=(("\udcff", b""),)),
        replace(noise, value=bytes(9 * 2**20)),
        replace(noise, key=bytes(9 * 2**20)),
    ]
    junk = [replace(r, offset=r.offset + i) for i, r in enumerate(junk)]
    path = tmp_path / "b.tar"
    report = write(path, log, [*attestations, *junk])
    assert report.is_sound
    assert [item.count for item in report.noise] == [4]
    assert [item.count for item in read(path).noise] == [4]
