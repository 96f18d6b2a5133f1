"""`moot audit` over a real log: sound as it is, and any changed byte is found."""

import dataclasses
import io
import json
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confluent_kafka import Producer

from adapters.kafka import MAX_RECORD_SIZE_BYTES, Record, create_topics
from consumers.audit.auditor import run_audit
from schemas import events as e
from schemas import topics
from tests.integration.harness import Federation, World
from tests.integration.other_kafka import ImpatientKafka

NUM_FLIPS = 25
NOWHERE = "127.0.0.1:1"
LOGS = (topics.LEDGER, topics.CHECKPOINTS)


@pytest.fixture(scope="module")
def logs(world: World, main: Federation) -> dict[str, list[Record]]:
    """The main federation's blocks and checkpoints as Kafka has them."""
    return {topic: world.records(topic, main.name) for topic in LOGS}


@pytest.fixture(scope="module")
def seed() -> int:
    chosen = random.SystemRandom().randrange(2**32)
    print(f"seed {chosen}")
    return chosen


class Copy:
    """Another Kafka, to which a log can be copied."""

    def __init__(self, world: World, kafka: ImpatientKafka) -> None:
        self._world = world
        self._kafka = kafka
        kafka.delete_topics()
        create_topics(kafka.settings)

    @property
    def bootstrap_servers(self) -> str:
        """Where it is."""
        return self._kafka.settings.bootstrap_servers

    def audit(
        self, federation: Federation, logs: dict[str, list[Record]]
    ) -> subprocess.CompletedProcess[str]:
        """Put these logs on this Kafka, in place of any others, and audit them."""
        self._kafka.delete_topics(LOGS)
        create_topics(self._kafka.settings)
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "message.max.bytes": MAX_RECORD_SIZE_BYTES,
                # What it repeats, since the topic is new, may not come later.
                "enable.idempotence": True,
            }
        )
        for topic, records in logs.items():
            for record in records:
                producer.produce(
                    topic, record.value, key=record.key, headers=list(record.headers)
                )
        assert producer.flush(30) == 0
        return _audit(
            self._world,
            federation,
            MOOT_BOOTSTRAP_SERVERS=self.bootstrap_servers,
        )


@pytest.fixture(scope="module")
def copy(world: World, other_kafka: ImpatientKafka) -> Copy:
    return Copy(world, other_kafka)


def test_a_federation_that_ran_is_sound(main: Federation) -> None:
    report = main.audit()

    assert report["is_sound"]
    assert report["is_operator_key_pinned"]
    assert report["num_rounds_recomputed"] == main.last_round() >= 1
    assert report["findings"] == report["pending"] == []


def test_the_copy_on_another_kafka_is_as_sound_as_the_original(
    main: Federation, copy: Copy, logs: dict[str, list[Record]]
) -> None:
    finished = copy.audit(main, logs)

    assert finished.returncode == 0, finished.stdout
    assert json.loads(finished.stdout)["num_blocks"] == len(logs[topics.LEDGER])


@pytest.mark.parametrize(
    ("topic", "part"),
    [
        (topics.LEDGER, "value"),
        (topics.LEDGER, "moot-signature"),
        (topics.CHECKPOINTS, "value"),
    ],
)
def test_a_flipped_byte_on_another_kafka_is_found_where_it_is(
    main: Federation,
    copy: Copy,
    logs: dict[str, list[Record]],
    seed: int,
    topic: str,
    part: str,
) -> None:
    draw = random.Random(f"{seed}/{topic}/{part}")
    # The framing says which schema; without it nobody can tell what the record was.
    index = draw.randrange(1, len(logs[topic]) - 1)
    flipped = _flip(logs[topic][index], part, draw, start=5)

    finished = copy.audit(main, {**logs, topic: _replaced(logs[topic], index, flipped)})

    assert finished.returncode == 1, finished.stdout + finished.stderr
    finding = json.loads(finished.stdout)["findings"][0]
    place = finding["place"]
    assert (place["topic"], place["offset"]) == (topic, index) or (
        place["height"] == index
    ), finding


def test_every_byte_of_the_record_counts(
    world: World, main: Federation, logs: dict[str, list[Record]], seed: int
) -> None:
    """Flip one byte after another at random, wherever one may be."""
    draw = random.Random(seed)
    assert _count_findings(world, main, logs) == 0
    for _ in range(NUM_FLIPS):
        topic = draw.choice(LOGS)
        index = draw.randrange(len(logs[topic]) - 1)
        record = logs[topic][index]
        part = draw.choice(["value", "value", "key", *dict(record.headers)])
        flipped = _flip(record, part, draw)

        changed = {**logs, topic: _replaced(logs[topic], index, flipped)}
        assert _count_findings(world, main, changed) > 0, (topic, index, part)


def test_a_missing_block_is_found(
    world: World, main: Federation, logs: dict[str, list[Record]]
) -> None:
    records = logs[topics.LEDGER]
    middle = len(records) // 2

    changed = {**logs, topics.LEDGER: records[:middle] + records[middle + 1 :]}
    assert _count_findings(world, main, changed) > 0


def test_an_altered_blob_is_named(world: World, main: Federation) -> None:
    accepted = main.wait(e.ContributionAccepted)
    name = f"sha256/{accepted.update_sha256.hex()}"
    original = _get(world, name)
    altered = bytearray(original)
    altered[-1] ^= 1
    _put(world, name, bytes(altered))
    try:
        finished = _audit(world, main)
    finally:
        _put(world, name, original)

    assert finished.returncode == 1
    assert accepted.update_sha256.hex() in _blobs_named(finished)


def test_a_deleted_blob_is_named(world: World, main: Federation) -> None:
    model = main.wait(e.AggregatePublished).model
    name = f"sha256/{model.sha256.hex()}"
    original = _get(world, name)
    world.store._client.remove_object(
        bucket_name=world.settings.bucket, object_name=name
    )
    try:
        finished = _audit(world, main)
    finally:
        _put(world, name, original)

    assert finished.returncode == 1
    assert model.sha256.hex() in _blobs_named(finished)
    assert _audit(world, main).returncode == 0


def test_a_federation_that_another_operator_founded_is_not_the_one_you_trust(
    world: World, main: Federation
) -> None:
    finished = world.moot("audit", "-f", main.name, "--operator-key", "ab" * 32)

    assert finished.returncode == 1
    assert "Traceback" not in finished.stderr


def test_what_cannot_be_read_is_no_verdict(world: World, main: Federation) -> None:
    away = {
        "Kafka": {"MOOT_BOOTSTRAP_SERVERS": NOWHERE},
        "schema registry": {"MOOT_SCHEMA_REGISTRY_URL": f"http://{NOWHERE}"},
        "MinIO": {"MOOT_MINIO_ENDPOINT": NOWHERE},
    }
    with ThreadPoolExecutor() as together:  # each waits long before it gives up
        audits = {
            name: together.submit(_audit, world, main, **environment)
            for name, environment in away.items()
        }
    for name, audited in audits.items():
        finished = audited.result()
        assert finished.returncode == 2, finished.stdout + finished.stderr
        assert name in finished.stderr
        assert "Traceback" not in finished.stderr
        assert json.loads(finished.stdout)["is_sound"] is None


def test_a_bundle_is_as_sound_without_any_network(
    world: World, main: Federation, tmp_path: Path
) -> None:
    path = tmp_path / "log.tar"
    online = _audit(world, main, "--bundle", str(path))
    assert online.returncode == 0, online.stdout + online.stderr

    offline = world.moot(
        "audit",
        str(path),
        "--json",
        MOOT_BOOTSTRAP_SERVERS=NOWHERE,
        MOOT_SCHEMA_REGISTRY_URL=f"http://{NOWHERE}",
        MOOT_MINIO_ENDPOINT=NOWHERE,
    )

    assert offline.returncode == 0, offline.stdout + offline.stderr
    found, expected = json.loads(offline.stdout), json.loads(online.stdout)
    for name in ("num_blocks", "tree_root", "num_rounds_recomputed", "num_blobs"):
        assert found[name] == expected[name]


def test_an_audit_goes_on_from_an_earlier_one(
    world: World, main: Federation, tmp_path: Path
) -> None:
    state = str(tmp_path / "state")
    first = _audit(world, main, "--save", state)
    assert first.returncode == 0, first.stdout + first.stderr

    second = _audit(world, main, "--from", state)

    assert second.returncode == 0, second.stdout + second.stderr
    report = json.loads(second.stdout)
    assert report["continued_from"] == json.loads(first.stdout)["num_blocks"]
    assert report["num_blocks"] >= report["continued_from"]


def test_a_saved_state_is_not_of_another_kafka(
    world: World,
    main: Federation,
    copy: Copy,
    logs: dict[str, list[Record]],
    tmp_path: Path,
) -> None:
    """The log there was cut behind what the earlier audit saw."""
    state = str(tmp_path / "state")
    assert _audit(world, main, "--save", state).returncode == 0

    short = {topic: records[:-3] for topic, records in logs.items()}
    assert copy.audit(main, short).returncode == 0
    servers = copy.bootstrap_servers
    resumed = _audit(world, main, "--from", state, MOOT_BOOTSTRAP_SERVERS=servers)

    assert resumed.returncode == 1, resumed.stdout + resumed.stderr
    codes = [item["code"] for item in json.loads(resumed.stdout)["findings"]]
    assert "LOG_TRUNCATED" in codes


def _audit(
    world: World, federation: Federation, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    # Another process costs more than it saves; offline below there is one.
    return world.moot(
        "audit", "-f", federation.name, "--json", "--jobs", "1", *arguments,
        **environment,
    )  # fmt: skip


def _count_findings(
    world: World, federation: Federation, logs: dict[str, list[Record]]
) -> int:
    report = run_audit(
        logs[topics.LEDGER],
        federation_id=federation.name,
        unframe=world.registry.unframe_trusted,
        checkpoints=logs[topics.CHECKPOINTS],
        operator_key=federation.operator.public_key,
    ).report
    return len(report.findings)


def _flip(record: Record, part: str, draw: random.Random, start: int = 0) -> Record:
    """Return a record with one bit of one part changed."""

    def changed(data: bytes | None) -> bytes:
        flipped = bytearray(data or b"")
        begin = start if part == "value" else 0
        flipped[draw.randrange(begin, len(flipped))] ^= 1 << draw.randrange(8)
        return bytes(flipped)

    if part in {"value", "key"}:
        return dataclasses.replace(record, **{part: changed(getattr(record, part))})
    headers = tuple(
        (name, changed(value) if name == part else value)
        for name, value in record.headers
    )
    return dataclasses.replace(record, headers=headers)


def _replaced(records: list[Record], index: int, record: Record) -> list[Record]:
    return [*records[:index], record, *records[index + 1 :]]


def _blobs_named(finished: subprocess.CompletedProcess[str]) -> set[str]:
    report = json.loads(finished.stdout)
    return {finding["blob_sha256"] for finding in report["findings"]}


def _get(world: World, name: str) -> bytes:
    response = world.store._client.get_object(
        bucket_name=world.settings.bucket, object_name=name
    )
    try:
        return response.read()
    finally:
        response.close()
        response.release_conn()


def _put(world: World, name: str, data: bytes) -> None:
    world.store._client.put_object(
        bucket_name=world.settings.bucket,
        object_name=name,
        data=io.BytesIO(data),
        length=len(data),
    )
