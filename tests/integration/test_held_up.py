"""What keeps the sequencer from a record that Kafka acknowledged is said, not guessed.

A stranger leaves a transaction open; records are deleted while nobody reads.
"""

import json
import time
import urllib.request

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition

from adapters.kafka import find_bounds, make_admin
from cli.stack.processes import find_free_ports
from schemas import events as e
from schemas import topics
from tests.integration.harness import (
    Federation,
    Puppet,
    World,
    wait_until,
)

NAME = "held"


@pytest.fixture(scope="module")
def federation(spoiled: World) -> Federation:
    federation = spoiled.found(NAME)
    federation.wait(e.FederationConfigured)
    return federation


def ask(world: World) -> tuple[Puppet, int]:
    """Ask to join under a new name; returns where that is."""
    puppet = Puppet(world, NAME, f"asks-{time.monotonic_ns()}")
    offset = puppet.say(
        e.AgentEnrolmentRequested(
            federation_id=NAME,
            agent_id=puppet.name,
            public_key=puppet.key.public_key,
        )
    )
    return puppet, offset


def make_stranger(world: World, timeout_ms: int) -> Producer:
    return Producer(
        {
            "bootstrap.servers": world.settings.bootstrap_servers,
            "transactional.id": "stranger",
            "transaction.timeout.ms": timeout_ms,
            "log_level": 0,
        }
    )


def test_the_local_broker_lets_nobody_hold_it_for_long(world: World) -> None:
    with pytest.raises(KafkaException, match="timeout"):
        make_stranger(world, 60_001).init_transactions(30)


def test_an_open_transaction_is_seen_and_its_end_too(
    world: World, federation: Federation
) -> None:
    (port,) = find_free_ports(1)
    world.services.start(
        "log-held", "serve", "log", "--federation", NAME, "--port", str(port)
    )

    def held() -> list[str] | None:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/status", timeout=5
            ) as got:
                alerts = json.loads(got.read())["alerts"]
        except OSError:
            return None
        return [a["detail"] for a in alerts if a["code"] == "KAFKA_HELD"]

    def said(what: str) -> bool:
        return what in world.services.log_of("sequencer", 500)

    wait_until(lambda: held() is not None, "the log is served")
    stranger = make_stranger(world, 60_000)
    stranger.init_transactions(30)
    stranger.begin_transaction()
    for topic in (topics.AGENTS, topics.ATTESTATIONS):
        stranger.produce(topic, b"junk", key=b"nobody", partition=0)
    assert stranger.flush(30) == 0
    start = find_bounds(world.settings, topics.AGENTS, 0).end
    puppet, offset = ask(world)
    assert offset > start
    hold = f"{topics.AGENTS}/0: an open transaction holds back everything from offset"
    wait_until(lambda: said(f"{hold} {start} on"), "the sequencer says so", 40)
    assert said(f"--topic {topics.AGENTS} --partition 0 --start-offset {start}`")
    wait_until(lambda: held() or None, "the log server says so", 40)
    assert f"{topics.ATTESTATIONS}/0: an open transaction" in (held() or [""])[0]
    stranger.abort_transaction(30)
    federation.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
    wait_until(lambda: said(f"{topics.AGENTS}/0: no longer held"), "it is over")
    wait_until(lambda: held() == [], "the alert went with it")
    world.services.stop("log-held")


def test_what_was_deleted_unread_is_named(world: World, federation: Federation) -> None:
    puppet, _ = ask(world)
    federation.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
    # What was read counts as read within a commit or two.
    time.sleep(1)
    with world.services.kept_down("sequencer"):
        _, first = ask(world)
        _, last = ask(world)
        admin = make_admin(world.settings)
        deleted = TopicPartition(topics.AGENTS, 0, last + 1)
        for answer in admin.delete_records([deleted]).values():
            answer.result(30)
    lost = f"{topics.AGENTS}/0: offsets {first} to {last} were deleted before"
    wait_until(
        lambda: lost in world.services.log_of("sequencer", 500), "the sequencer says so"
    )
    puppet, _ = ask(world)
    federation.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
