"""What must not count is refused for its own reason, on the ledger, and nothing stops.

Everything goes to the real topics in one round; at its end the good updates have made
a model, and the services are the processes that they were.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from cli.stack.services import FAUST_SERVICES
from ledger.signing import SigningKey
from protocol.encoding import update_to_blob
from protocol.envelope import NO_GENESIS
from protocol.rewards import RECOMMENDED_RULE
from protocol.tensors import tensors_to_blob
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.integration.harness import (
    NUM_PARAMETERS,
    Federation,
    Puppet,
    World,
    good_blob,
    wait_until,
)
from tests.sealed import list_contributions

NAME = "refusing"
GOOD = ("good-1", "good-2", "good-3")
BAD_BLOBS = {
    # An update's blob, and why it is refused.
    Reason.MALFORMED_BLOB: b"these bytes are no safetensors file",
    Reason.WRONG_SHAPE: good_blob(NUM_PARAMETERS + 1),
    Reason.WRONG_DTYPE: tensors_to_blob(
        {"update": np.zeros(NUM_PARAMETERS, dtype=np.int16)}
    ),
    Reason.NOT_FINITE: tensors_to_blob(
        {"update": np.full(NUM_PARAMETERS, np.nan, dtype=np.float32)}
    ),
    Reason.OUT_OF_RANGE: update_to_blob(
        np.full(NUM_PARAMETERS, -(2**31), dtype=np.int32)
    ),
}


@dataclass
class Aftermath:
    """What was published, and what should have become of it.

    Attributes:
        refused: Place of a record (topic, offset) and why the sequencer refuses it.
        rejected: Agent, and why its update in the round does not count.
        pids: The services' processes before it all began.
    """

    federation: Federation
    round: int
    refused: dict[tuple[str, int], Reason] = field(default_factory=dict)
    rejected: list[tuple[str, Reason]] = field(default_factory=list)
    pids: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def aftermath(world: World) -> Iterator[Aftermath]:
    """One round with everything in it that can be wrong."""
    federation = world.found(NAME)
    world.start_timer(NAME)
    world.start_exporter(NAME)
    yield _let_it_come(world, federation)
    world.services.stop(f"timer-{NAME}", f"exporter-{NAME}")


def _let_it_come(world: World, federation: Federation) -> Aftermath:
    puppets = {
        name: Puppet(world, NAME, name)
        for name in (
            *GOOD, *(reason.lower() for reason in BAD_BLOBS), "declining",
            "revoked-before", "revoked-after", "revoked-silent",
        )
    }  # fmt: skip
    federation.admit(*puppets.values())
    federation.revoke("revoked-before", "left")
    federation.wait(e.AgentRevoked, agent_id="revoked-before")
    number = federation.request_round()
    started = federation.wait(e.RoundStarted, round=number)
    latecomer = Puppet(world, NAME, "latecomer")
    federation.admit(latecomer)

    services = (*FAUST_SERVICES, f"timer-{NAME}", f"exporter-{NAME}")
    after = Aftermath(federation, number, pids=world.services.pids(*services))
    _publish_what_is_no_event(world, after, puppets["good-1"], started)
    _publish_what_nobody_may_say(world, after, puppets, started)
    _publish_bad_updates(world, after, puppets, latecomer, started)
    for name in GOOD:
        puppets[name].submit(started, num_examples=1)
    repeated = puppets["good-1"].update(started, num_examples=1)
    federation.wait(e.UpdateSubmitted, agent_id="good-1", num_examples=1)
    after.refused[topics.UPDATES, puppets["good-1"].say(repeated)] = (
        Reason.DUPLICATE_EVENT
    )
    puppets["good-1"].submit(started, num_examples=2)
    after.rejected.append(("good-1", Reason.DUPLICATE))

    # Whoever is revoked before the round is sealed is not in it, nor waited for.
    revoked = puppets["revoked-after"]
    revoked.submit(started)
    federation.wait(e.ContributionAccepted, agent_id=revoked.name)
    federation.revoke(revoked.name, "in the middle of the round")
    federation.revoke("revoked-silent", "before it answered")
    federation.wait(e.AgentRevoked, agent_id="revoked-silent")
    after.rejected.append((revoked.name, Reason.REVOKED_AGENT))
    after.rejected.append(("revoked-silent", Reason.REVOKED_AGENT))
    after.refused[topics.UPDATES, revoked.say(revoked.update(started))] = (
        Reason.REVOKED_AGENT
    )
    decline = e.UpdateDeclined(
        federation_id=NAME, round=number, agent_id="declining",
        reason=Reason.TRAINING_FAILED, detail="out of memory",
    )  # fmt: skip
    puppets["declining"].say(decline)
    after.rejected.append(("declining", Reason.TRAINING_FAILED))

    federation.wait(e.ModelVersionRegistered, round=number)
    puppets["good-2"].submit(started, num_examples=3)
    after.rejected.append(("good-2", Reason.LATE))
    federation.wait(e.ContributionRejected, agent_id="good-2", reason=Reason.LATE)
    return after


def _publish_what_is_no_event(
    world: World, after: Aftermath, puppet: Puppet, started: e.RoundStarted
) -> None:
    value, headers = puppet.frame(puppet.update(started, num_examples=99))
    foreign = _register_a_foreign_schema(world)
    unknown = (2**31 - 1).to_bytes(4, "big")

    def refuse(
        reason: Reason, value: bytes | None, topic: str = topics.UPDATES
    ) -> None:
        offset = world.produce(topic, value, key=NAME.encode(), headers=headers)
        after.refused[topic, offset] = reason

    refuse(Reason.NO_VALUE, None)
    refuse(Reason.NOT_FRAMED, b"")
    refuse(Reason.NOT_FRAMED, b"\x00\x01")
    refuse(Reason.NOT_FRAMED, b'{"an": "agent that speaks JSON"}')
    refuse(Reason.NOT_FRAMED, os.urandom(64).replace(b"\x00", b"\x01"))
    refuse(Reason.UNKNOWN_SCHEMA, b"\x00" + unknown + value[5:])
    refuse(Reason.UNKNOWN_SCHEMA, b"\x00" + foreign.to_bytes(4, "big") + b"\x02x")
    refuse(Reason.WRONG_TOPIC, value, topics.CONTROL)
    refuse(Reason.WRONG_TOPIC, value, topics.ROUNDS)
    refuse(Reason.MALFORMED_EVENT, value[:-1])
    refuse(Reason.MALFORMED_EVENT, value[:5])
    refuse(Reason.MALFORMED_EVENT, value + b"\x00")
    refuse(Reason.TOO_LARGE, value + bytes(codec.MAX_EVENT_SIZE_BYTES))


def _publish_what_nobody_may_say(
    world: World,
    after: Aftermath,
    puppets: dict[str, Puppet],
    started: e.RoundStarted,
) -> None:
    puppet = puppets["good-1"]
    update = puppet.update(started, num_examples=98)
    value, headers = puppet.frame(update)
    [(signature_header, signature)] = headers
    flipped = bytes([signature[0] ^ 1]) + signature[1:]
    key = NAME.encode()

    def refuse(reason: Reason, event: e.Event, signer: Puppet = puppet) -> None:
        topic = topics.topic_of(event)
        value, headers = signer.frame(event)
        offset = world.produce(topic, value, key=key, headers=headers)
        after.refused[topic, offset] = reason

    def refuse_headers(reason: Reason, headers: list[tuple[str, bytes]]) -> None:
        offset = world.produce(topics.UPDATES, value, key=key, headers=headers)
        after.refused[topics.UPDATES, offset] = reason

    refuse_headers(Reason.MISSING_SIGNATURE, [])
    refuse_headers(Reason.MISSING_SIGNATURE, [(signature_header, signature[:63])])
    refuse_headers(Reason.BAD_SIGNATURE, [(signature_header, flipped)])
    refuse_headers(Reason.BAD_SIGNATURE, [(signature_header, bytes(64))])

    stranger = Puppet(world, NAME, "stranger")
    refuse(Reason.UNKNOWN_AGENT, stranger.update(started), stranger)
    refuse(Reason.BAD_SIGNATURE, update, stranger)
    revoked = puppets["revoked-before"]
    refuse(Reason.REVOKED_AGENT, revoked.update(started), revoked)
    elsewhere = replace(update, federation_id="elsewhere")
    refuse(Reason.WRONG_KEY, elsewhere)
    refuse(Reason.INVALID_FIELD, replace(update, num_examples=0))
    refuse(Reason.INVALID_FIELD, replace(update, agent_id="Not A Name"))
    evil = replace(update.update, uri="s3://moot/../../etc/passwd")
    refuse(Reason.INVALID_FIELD, replace(update, update=evil))
    request = e.RoundRequested(federation_id=NAME, round=2, requested_at_ms=0)
    refuse(Reason.BAD_SIGNATURE, request)
    admission = e.AgentAdmitted(
        federation_id=NAME, agent_id="mine", public_key=SigningKey(bytes(32)).public_key
    )
    refuse(Reason.BAD_SIGNATURE, admission)
    accepted = e.ContributionAccepted(
        federation_id=NAME, round=1, agent_id="good-1", cause=bytes(32),
        cause_leaf_index=1, output_index=0, update_leaf_index=1,
        update_sha256=bytes(32), num_examples=1,
    )  # fmt: skip
    refuse(Reason.BAD_SIGNATURE, accepted)
    enrolment = e.AgentEnrolmentRequested(
        federation_id=NAME, agent_id="good-2",
        public_key=puppet.key.public_key,
    )  # fmt: skip
    refuse(Reason.AGENT_EXISTS, enrolment)


def _publish_bad_updates(
    world: World,
    after: Aftermath,
    puppets: dict[str, Puppet],
    latecomer: Puppet,
    started: e.RoundStarted,
) -> None:
    def reject(name: str, reason: Reason, **changes: object) -> None:
        puppets[name].submit(started, **changes)
        after.rejected.append((name, reason))

    # These are no answer to the round: the same agent's good update comes later.
    reject("good-1", Reason.WRONG_BASE_MODEL, base_model_sha256=bytes(32))
    reject("good-1", Reason.TOO_MANY_EXAMPLES, num_examples=2**22 + 1)
    reject("good-1", Reason.WRONG_ROUND, round=started.round + 1)
    latecomer.submit(started)
    after.rejected.append((latecomer.name, Reason.NOT_IN_COHORT))

    # These are: whoever sends a bad blob has had its turn.
    for reason, blob in BAD_BLOBS.items():
        reject(reason.lower(), reason, blob=blob)


def _ref(content: bytes, size_bytes: int) -> e.BlobRef:
    digest = hashlib.sha256(content)
    return e.BlobRef(
        uri=f"s3://moot/sha256/{digest.hexdigest()}",
        sha256=digest.digest(),
        size_bytes=size_bytes,
    )


def _register_a_foreign_schema(world: World) -> int:
    client = SchemaRegistryClient({"url": world.settings.schema_registry_url})
    schema = {
        "type": "record", "name": "Order", "namespace": "shop",
        "fields": [{"name": "item", "type": "string"}],
    }  # fmt: skip
    return client.register_schema("orders-value", Schema(json.dumps(schema), "AVRO"))


def test_the_round_completes_with_the_good_updates(aftermath: Aftermath) -> None:
    sealed = aftermath.federation.wait(e.RoundSealed, round=aftermath.round)

    counted = list_contributions(aftermath.federation.events, sealed)
    assert [c.agent_id for c in counted] == list(GOOD)


def test_each_record_is_refused_for_its_own_reason_as_a_leaf(
    aftermath: Aftermath,
) -> None:
    found = {
        (event.source_topic, event.source_offset): event.reason
        for event in aftermath.federation.events
        if isinstance(event, e.EventRejected)
    }

    assert found == aftermath.refused


def test_each_refusal_is_on_the_topic_of_refusals_too(
    world: World, aftermath: Aftermath
) -> None:
    records = world.records(topics.REJECTED, NAME)

    found = {
        (event.source_topic, event.source_offset): event.reason
        for event in map(world.decode, records)
    }
    assert found == aftermath.refused
    assert len(records) == len(aftermath.refused)


def test_each_update_that_does_not_count_says_why(aftermath: Aftermath) -> None:
    found = [
        (event.agent_id, event.reason)
        for event in aftermath.federation.events
        if isinstance(event, e.ContributionRejected)
    ]

    assert sorted(found) == sorted(aftermath.rejected)


def test_every_record_has_become_exactly_one_leaf(
    world: World, aftermath: Aftermath
) -> None:
    published = {
        (topic, record.offset)
        for topic in topics.SEQUENCED_TOPICS
        for record in world.records(topic, NAME)
    }

    sequenced = [
        (opened.leaf.source_topic, opened.leaf.source_offset)
        for opened in aftermath.federation.leaves
    ]
    assert sorted(sequenced) == sorted(published)


def test_no_service_has_ended(world: World, aftermath: Aftermath) -> None:
    assert world.services.pids(*aftermath.pids) == aftermath.pids


def test_the_audit_finds_every_refusal_right(aftermath: Aftermath) -> None:
    report = aftermath.federation.audit()

    assert sum(report["refusals"].values()) == len(aftermath.refused)
    assert sum(report["rejections"].values()) == len(aftermath.rejected)


def test_what_belongs_to_no_federation_is_refused_on_the_topic_alone(
    world: World, aftermath: Aftermath
) -> None:
    puppet = Puppet(world, "nowhere", "nobody")
    update = puppet.update(
        aftermath.federation.wait(e.RoundStarted), federation_id="nowhere"
    )
    value, headers = puppet.frame(update)
    places = {
        world.produce(topics.UPDATES, value, key=b"nowhere", headers=headers): (
            Reason.UNKNOWN_FEDERATION
        ),
        world.produce(topics.UPDATES, value, key=None, headers=headers): (
            Reason.WRONG_KEY
        ),
        world.produce(topics.UPDATES, value, key=b"\xff\x00", headers=headers): (
            Reason.WRONG_KEY
        ),
        world.produce(topics.UPDATES, b"?", key=b"nowhere"): Reason.NOT_FRAMED,
    }

    def refusals() -> dict[int, str]:
        return {
            event.source_offset: event.reason
            for event in map(world.decode, world.records(topics.REJECTED))
            if event.source_topic == topics.UPDATES and event.source_offset in places
        }

    wait_until(lambda: refusals() == places, "all four are refused")
    assert not world.records(topics.LEDGER, "nowhere")


def test_a_federation_is_founded_once_and_only_as_it_should_be(
    world: World, aftermath: Aftermath
) -> None:
    genesis = aftermath.federation.wait(e.FederationConfigured)

    again = replace(genesis, min_cohort=2)
    _, offset = world.publisher.publish(again, world.operator_key, NO_GENESIS)
    refused = aftermath.federation.wait(
        e.EventRejected, source_topic=topics.CONTROL, source_offset=offset
    )
    assert refused.reason == Reason.FEDERATION_EXISTS

    bad = replace(genesis, federation_id="bad", min_cohort=0)
    _, offset = world.publisher.publish(bad, world.operator_key, NO_GENESIS)

    def reasons() -> list[str]:
        return [
            event.reason
            for event in map(world.decode, world.records(topics.REJECTED))
            if (event.source_topic, event.source_offset) == (topics.CONTROL, offset)
        ]

    assert wait_until(reasons, "a refusal") == [Reason.INVALID_CONFIGURATION]


def test_what_the_store_lacks_is_refused_when_the_deadline_has_passed_and_costs_nobody(
    world: World,
) -> None:
    """Until then it may come; nobody can check later what the store had."""
    name = "lacking"
    federation = world.found(
        name, round_duration_ms=10_000, reward_rule=RECOMMENDED_RULE
    )
    longer = world.store.store(good_blob() + bytes(10))
    corrupt = world.store.store(b"what was promised")
    world.store._client.put_object(
        bucket_name=world.settings.bucket,
        object_name=f"sha256/{corrupt.sha256.hex()}",
        data=io.BytesIO(b"what is delivered"),
        length=17,
    )
    lacking = {
        "missing": (Reason.MISSING_BLOB, _ref(b"never stored", 12)),
        "claims-much": (Reason.OVERSIZED_BLOB, _ref(b"large", 2**40)),
        "longer": (Reason.OVERSIZED_BLOB, replace(longer, size_bytes=100)),
        "corrupt": (Reason.CORRUPT_BLOB, corrupt),
    }
    others = ("at-once", "at-last")
    puppets = {agent: Puppet(world, name, agent) for agent in (*lacking, *others)}
    federation.admit(*puppets.values())
    number = federation.request_round()
    started = federation.wait(e.RoundStarted, round=number)
    for agent, (_, ref) in lacking.items():
        puppets[agent].submit(started, update=ref)
    at_last = update_to_blob(np.full(NUM_PARAMETERS, 5, dtype=np.int32))
    puppets["at-last"].submit(started, update=_ref(at_last, len(at_last)))
    puppets["at-once"].submit(started)
    federation.wait(e.ContributionAccepted, agent_id="at-once")
    assert not [x for x in federation.events if isinstance(x, e.ContributionRejected)]
    world.store.store(at_last)

    world.start_timer(name)
    federation.wait(e.RoundSealed, round=number)
    rejected = {
        event.agent_id: event.reason
        for event in federation.events
        if isinstance(event, e.ContributionRejected)
    }
    assert rejected == {agent: reason for agent, (reason, _) in lacking.items()}
    federation.wait(e.AggregatePublished, round=number)
    for agent in others:
        federation.wait(e.BalanceChanged, account=agent)
    changed = [x for x in federation.events if isinstance(x, e.BalanceChanged)]
    assert {event.account for event in changed} == set(others)
    world.services.stop(f"timer-{name}")


def test_an_update_after_the_deadline_is_late_though_the_round_is_open(
    world: World,
) -> None:
    federation = world.found("late", round_duration_ms=2_500)
    quick, slow = Puppet(world, "late", "quick"), Puppet(world, "late", "slow")
    federation.admit(quick, slow)
    number = federation.request_round()
    started = federation.wait(e.RoundStarted, round=number)
    quick.submit(started)
    federation.wait(e.ContributionAccepted, agent_id="quick")

    time.sleep(max(0, started.deadline_ms / 1000 - time.time()) + 0.2)
    slow.submit(started)
    late = federation.wait(e.ContributionRejected, agent_id="slow")
    assert late.reason == Reason.LATE
    assert not [x for x in federation.events if isinstance(x, e.RoundSealed)]

    world.start_timer("late")
    sealed = federation.wait(e.RoundSealed, round=number)
    counted = list_contributions(federation.events, sealed)
    assert [c.agent_id for c in counted] == ["quick"]
    federation.wait(e.AggregatePublished, round=number)
    world.services.stop("timer-late")
