"""Reading the ledger from Kafka: what is passed over, and what stops a reader."""

from dataclasses import replace

import pytest

import adapters.kafka_log
from adapters.kafka import END, make_headers
from adapters.kafka_log import (
    Genesis,
    UntrustedFederationError,
    find_genesis,
    follow_log,
    read_log,
)
from adapters.schema_registry import FramingError
from protocol.log import LogError, SequencerState, sequence
from schemas import codec
from schemas.reasons import Reason
from tests.builders import LogBuilder, frame, make_key, unframe
from tests.unit.adapters.test_schema_registry import Client, make_registry

REGISTRY = make_registry(Client())
OPERATOR = make_key("OPERATOR").public_key


def found():
    log = LogBuilder()
    log.found()
    return log


GENESIS = found().genesis


@pytest.fixture
def log():
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea")
    return log


@pytest.fixture
def read(monkeypatch, log):
    """Return what is read of these records; all of the log's unless some are given."""
    monkeypatch.setattr(adapters.kafka_log, "find_partition", lambda *_: 0)

    def read(records=None, function=read_log, **options):
        shown = [*(log.records if records is None else records), END]
        monkeypatch.setattr(
            adapters.kafka_log, "follow_partition", lambda *_: iter(shown)
        )
        found = function(None, REGISTRY, "clinics", **options)
        return found if function is find_genesis else list(found)

    return read


def signed_by(name, record):
    """Return a record of the same event with somebody else's signature."""
    event = codec.decode(unframe(record.value))
    headers = make_headers(event, codec.encode(event), make_key(name), GENESIS, "")
    return replace(record, headers=tuple(headers))


def heights(blocks):
    return [read.block.height for read in blocks]


@pytest.mark.parametrize(
    "foreign",
    [
        lambda record: replace(record, value=None),
        lambda record: replace(record, value=b""),
        lambda record: replace(record, value=b"\1 not our framing"),
        lambda record: replace(record, headers=()),
        lambda record: signed_by("mallory", record),
        lambda record: signed_by("OPERATOR", record),
    ],
    ids=["tombstone", "empty", "framing", "unsigned", "stranger", "operator"],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_the_sequencer_did_not_sign_is_passed_over(
    log, read, foreign, place, caplog
):
    records = [*log.records]
    records.insert(place, foreign(log.records[min(place, 1)]))
    assert heights(read(records)) == [*range(len(log.records))]
    assert "passing over offset" in caplog.text


def test_an_id_that_the_registry_does_not_know_stops_every_reader(log, read):
    """It may be a registry that lost its ids: every block would look foreign."""
    records = [*log.records, replace(log.records[0], value=b"\0\xff\xff\xff\xff..")]
    with pytest.raises(FramingError) as error:
        read(records)
    assert error.value.reason == Reason.UNKNOWN_SCHEMA


@pytest.mark.parametrize("change", ["repeated", "left out", "altered"])
def test_a_block_that_the_sequencer_signed_and_that_does_not_fit_stops_every_reader(
    log, read, change
):
    records = [*log.records]
    if change == "repeated":
        records.append(records[-1])
    elif change == "left out":
        del records[1]
    else:
        block = codec.decode(unframe(records[-1].value))
        block = replace(block, tree_root=bytes(32))
        records[-1] = replace(records[-1], value=frame(block))
        records[-1] = signed_by("SEQUENCER", records[-1])
    with pytest.raises(LogError):
        read(records)


@pytest.fixture
def forged(log):
    """The first block of a log of that name that a stranger founded and sequenced."""
    mallory = make_key("mallory")
    config = log.configure(log.leaves[0].initial_model)
    config = replace(
        config,
        principals=tuple(
            replace(principal, public_key=mallory.public_key)
            for principal in config.principals
        ),
    )
    builder = LogBuilder()
    builder.say(config, mallory)
    _, block, _ = sequence(
        SequencerState(), builder._waiting, key=mallory, now_ms=builder.now_ms
    )
    headers = make_headers(
        block.event, codec.encode(block.event), mallory, builder.genesis, ""
    )
    return replace(
        log.records[0], offset=77, value=frame(block.event), headers=tuple(headers)
    )


@pytest.mark.parametrize("function", [read_log, follow_log, find_genesis])
def test_a_reader_that_pins_the_operators_key_refuses_a_strangers_log(
    read, forged, function
):
    with pytest.raises(UntrustedFederationError, match=OPERATOR.hex()):
        read([forged], function=function, operator_key=OPERATOR)


def test_a_reader_that_pins_nothing_believes_the_first_founder(log, read, forged):
    """And takes the true federation's blocks, which follow, for foreign ones."""
    (only,) = read([forged, *log.records])
    assert only.offset == 77
    misled = read([forged, *log.records], function=find_genesis)
    assert misled.config != log.leaves[0]
    found = read(function=find_genesis, operator_key=OPERATOR)
    assert found == Genesis(log.leaves[0], log.genesis)


def test_another_federations_record_does_not_matter(log, read):
    other = replace(log.records[0], key=b"banks", value=b"\0\xff\xff\xff\xff..")
    assert heights(read([other, *log.records])) == [*range(len(log.records))]
