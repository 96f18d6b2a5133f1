"""What a schema registry can do to us, and what it cannot: it is asked about ids."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from confluent_kafka.schema_registry.error import SchemaRegistryError

import adapters.schema_registry
from adapters.schema_registry import (
    MAX_UNKNOWN_IDS,
    FramingError,
    SchemaRegistry,
)
from ledger.signing import InvalidSignatureError
from protocol.envelope import sign_event, verify_event
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import _SCHEMA_IDS, frame, make_key

KEY = make_key("OPERATOR")
EVENT = e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="left")
IDS_BY_SUBJECT = {
    topics.subject(topic, event): _SCHEMA_IDS[event]
    for event, topic in topics.TOPIC_OF.items()
}
ORDER = '{"type": "record", "name": "Order", "fields": []}'


class Client:
    """A registry's client: whoever runs the registry says what an id stands for."""

    def __init__(self):
        self.texts = {
            number: codec.schema_text(event.__name__)
            for event, number in _SCHEMA_IDS.items()
        }
        self.num_asked = 0
        self.read = set(self.texts)  # what it has read of all that it keeps
        self.reads_when_asked = False

    def get_schema(self, number):
        self.num_asked += 1
        found = self.texts.get(number, 404)
        if number in _SCHEMA_IDS.values() and number not in self.read:
            found = 404
        if isinstance(found, int):
            raise SchemaRegistryError(found, 40403, "no")
        return SimpleNamespace(schema_str=found)

    def lookup_schema(self, subject, schema):
        number = self.find(subject)
        assert schema.schema_str == self.texts[number]
        return SimpleNamespace(schema_id=number)

    def get_versions(self, subject):
        self.find(subject)
        return [1]

    def find(self, subject):
        """Return the id of a subject's schema."""
        if self.reads_when_asked:
            self.read = set(_SCHEMA_IDS.values())
        number = IDS_BY_SUBJECT[subject]
        if number in self.read:
            return number
        raise SchemaRegistryError(404, 40401, "no such subject")


@pytest.fixture
def client():
    return Client()


@pytest.fixture
def registry(client):
    return make_registry(client)


def make_registry(client):
    registry = SchemaRegistry("http://nowhere")
    registry._client = client
    return registry


def refusal_of(registry, value):
    with pytest.raises(FramingError) as error:
        registry.unframe(value)
    return error.value.reason


def id_of(value):
    return int.from_bytes(value[1 : codec.FRAMING_SIZE], "big")


def test_what_was_framed_is_the_very_event_that_was_signed(registry):
    assert registry.unframe(frame(EVENT)) == codec.encode(EVENT)


def test_an_id_of_another_schema_makes_no_other_event_pass(registry, client):
    """The signature is over the fingerprint as well: a record that the registry lets
    mean something else decodes, if at all, to what nobody signed.
    """
    asked = e.RoundRequested(federation_id="clinics", round=1, requested_at_ms=5)
    value, signature = frame(asked), sign_event(KEY, bytes(32), codec.encode(asked))
    names = {event.__name__ for event in _SCHEMA_IDS} - {"RoundRequested"}
    num_decoded = 0
    for name in names:
        client.texts[id_of(value)] = codec.schema_text(name)
        data = make_registry(client).unframe(value)
        with pytest.raises(InvalidSignatureError):
            verify_event(KEY.public_key, bytes(32), data, signature)
        with suppress(codec.CodecError):
            num_decoded += type(codec.decode(data)).__name__ == name
    assert num_decoded  # so it is the signature that tells
    assert len(names) > 30


@pytest.mark.parametrize(
    "text",
    ["", "no schema at all", ORDER, "[" * 5_000, '"string"'],
    ids=["nothing", "no JSON", "another's", "deep", "a type"],
)
def test_only_released_schemas_exist(registry, client, text):
    value = frame(EVENT)
    client.texts[id_of(value)] = text
    assert refusal_of(registry, value) == Reason.UNKNOWN_SCHEMA


def test_a_schema_with_another_default_is_not_ours(registry, client):
    value = frame(EVENT)
    text = codec.schema_text("AgentRevoked").replace("AgentRevoked", "AgentRevokedToo")
    client.texts[id_of(value)] = text
    assert refusal_of(registry, value) == Reason.UNKNOWN_SCHEMA


def test_that_there_is_no_such_id_is_believed(registry, client):
    assert refusal_of(registry, b"\0\x7f\xff\xff\xff..") == Reason.UNKNOWN_SCHEMA
    assert refusal_of(registry, b"\0\x7f\xff\xff\xff..") == Reason.UNKNOWN_SCHEMA
    assert client.num_asked == 2


def test_a_registry_that_is_starting_is_not_believed(registry, client):
    """It answers before it has read what it keeps, and nothing it says may last."""
    ours, others = frame(EVENT), b"\0\x7f\xff\xff\xff.."
    for read in (set(), client.read - {max(client.read)}):
        client.read = read - {id_of(ours)}
        for value in (ours, others):
            with pytest.raises(SchemaRegistryError):
                registry.unframe(value)
    client.read = set(_SCHEMA_IDS.values())
    assert registry.unframe(ours) == codec.encode(EVENT)
    assert refusal_of(registry, others) == Reason.UNKNOWN_SCHEMA
    # It starts again later, when everything of ours is known here.
    client.read = set()
    with pytest.raises(SchemaRegistryError):
        registry.unframe(b"\0\x7f\xff\xff\xfe..")


def test_what_the_registry_reads_in_between_is_found(registry, client):
    client.read, client.reads_when_asked = set(), True
    assert registry.unframe(frame(EVENT)) == codec.encode(EVENT)


@pytest.mark.parametrize("number", [0, 2**31, 2**32 - 1])
def test_a_number_that_is_no_id_is_not_asked_about(registry, client, number):
    """What a registry would say of it may be anything, also that it failed."""
    client.texts[number] = 500
    framed = b"\0" + number.to_bytes(4, "big") + b".."
    assert refusal_of(registry, framed) == Reason.UNKNOWN_SCHEMA
    assert client.num_asked == 0


@pytest.mark.parametrize("code", [None, -1])
def test_a_gateway_knows_nothing_of_a_schema(registry, client, monkeypatch, code):
    """It has no route, or another server is at this address: no record is refused."""

    def get_schema(_number):
        raise SchemaRegistryError(404, code, "Not Found")

    monkeypatch.setattr(client, "get_schema", get_schema)
    with pytest.raises(SchemaRegistryError):
        registry.unframe(b"\0" + (9_999).to_bytes(4, "big") + b"..")


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_any_other_answer_means_nothing(registry, client, status):
    """Nothing is refused for what the registry did not say."""
    client.texts[9_999] = status
    with pytest.raises(SchemaRegistryError):
        registry.unframe(b"\0" + (9_999).to_bytes(4, "big") + b"..")
    client.texts[9_999] = codec.schema_text("AgentRevoked")
    body = codec.encode(EVENT)[codec.HEADER_SIZE :]
    value = b"\0" + (9_999).to_bytes(4, "big") + body
    assert registry.unframe(value) == codec.encode(EVENT)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, Reason.NO_VALUE),
        (b"", Reason.NOT_FRAMED),
        (b"\0\0\0\1", Reason.NOT_FRAMED),
        (b"\1\0\0\0\1..", Reason.NOT_FRAMED),
        (bytes(codec.MAX_EVENT_SIZE_BYTES + 1), Reason.TOO_LARGE),
    ],
)
def test_bytes_other_than_a_framing_are_refused_without_asking(
    registry, client, value, reason
):
    assert refusal_of(registry, value) == reason
    assert client.num_asked == 0


def test_ids_that_nobody_knows_take_bounded_memory(registry, monkeypatch):
    assert MAX_UNKNOWN_IDS <= 2**16
    monkeypatch.setattr(adapters.schema_registry, "MAX_UNKNOWN_IDS", 8)
    for number in range(1_000, 1_100):
        refusal_of(registry, b"\0" + number.to_bytes(4, "big"))
    assert len(registry._unknown) == 8
