"""Logs that were recorded once must be sound for ever.

A fact's bytes hold every word of its detail, so a sentence that is reworded in a
decider makes every older log look forged. When this test fails, the change is a new
protocol version, not a new recording. ``python -m tests.unit.test_recorded_logs NAME``
adds a recording; it never replaces one.
"""

import json
import sys
from pathlib import Path

import pytest

from adapters.kafka import Record
from adapters.schema_registry import FramingError
from consumers.audit import run_audit
from schemas import codec, topics
from schemas.reasons import Reason
from tests.builders import BlobDict, build_log
from tests.builders import unframe as builders_unframe

FOLDER = Path(__file__).parents[1] / "vectors" / "log"
PREFIX_SIZE = 5


def record_to_json(record):
    return {
        "offset": record.offset,
        "key": record.key.hex(),
        "value": record.value.hex(),
        "headers": [[name, value.hex()] for name, value in record.headers],
    }


def record_from_json(topic, plain):
    return Record(
        topic=topic,
        partition=0,
        offset=plain["offset"],
        key=bytes.fromhex(plain["key"]),
        value=bytes.fromhex(plain["value"]),
        headers=tuple((name, bytes.fromhex(v)) for name, v in plain["headers"]),
    )


def write(name):
    path = FOLDER / f"{name}.json"
    assert not path.exists(), "a recording is never replaced"
    log = build_log()
    records = [*log.records, *log.checkpoints]
    # Every framing that a record, or a refusal's quotation in one, may need.
    schemas = {}
    for schema_id in range(1, 2 * len(codec.CLASSES)):
        prefix = b"\0" + schema_id.to_bytes(4, "big")
        try:
            header = builders_unframe(prefix + b"")[: codec.HEADER_SIZE]
        except FramingError:
            continue
        schemas[prefix.hex()] = header.hex()
    plain = {
        "federation_id": log.federation_id,
        "schemas": schemas,
        "ledger": [record_to_json(record) for record in log.records],
        "checkpoints": [record_to_json(record) for record in log.checkpoints],
        "blobs": {digest.hex(): blob.hex() for digest, blob in log.blobs.items()},
        "size": log.state.log.chain.size,
        "tree_root": log.state.log.chain.tree.root().hex(),
    }
    path.write_text(json.dumps(plain, indent=1) + "\n")
    print(f"{path.name}: {len(records)} records")


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem
)
def test_a_recorded_log_is_still_sound(path):
    plain = json.loads(path.read_text())
    headers = {bytes.fromhex(p): bytes.fromhex(h) for p, h in plain["schemas"].items()}

    def unframe(value):
        if value[:PREFIX_SIZE] not in headers:
            raise FramingError(Reason.NOT_FRAMED, "not in the recording")
        return headers[value[:PREFIX_SIZE]] + value[PREFIX_SIZE:]

    blobs = BlobDict()
    for digest, blob in plain["blobs"].items():
        blobs[bytes.fromhex(digest)] = bytes.fromhex(blob)
    report = run_audit(
        [record_from_json(topics.LEDGER, record) for record in plain["ledger"]],
        federation_id=plain["federation_id"],
        unframe=unframe,
        fetch_blob=blobs.fetch,
        checkpoints=[
            record_from_json(topics.CHECKPOINTS, record)
            for record in plain["checkpoints"]
        ],
    ).report
    assert report.is_sound, report.findings
    assert report.num_leaves == plain["size"]
    assert report.tree_root == plain["tree_root"]


def test_there_is_a_recording():
    assert list(FOLDER.glob("*.json"))


if __name__ == "__main__":
    write(sys.argv[1])
