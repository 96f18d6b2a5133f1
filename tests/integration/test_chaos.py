"""Kills and outages in the middle of rounds: they complete, and the log stays sound.

`moot audit` is the judge: a fact that is missing, doubled or different is a finding.
"""

import random
import shutil
import time
from collections.abc import Callable

import pytest

from cli.stack.services import FAUST_SERVICES
from cli.stack.stack import KAFKA, MINIO, REGISTRY
from protocol.contributions import Contribution
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.integration.harness import AGENTS, Federation, World, wait_until
from tests.integration.outages import Kept, outage
from tests.sealed import list_contributions

NUM_KILLS = 20
NUM_KILLS_IN_CI = 2
KILL_POINTS = range(9)
"""How many leaves of a round follow its request; it has thirteen in all, or more."""
ROUND_TIMEOUT_S = 90.0


@pytest.mark.parametrize(
    "repetition",
    [
        pytest.param(n, marks=[pytest.mark.nightly] if n >= NUM_KILLS_IN_CI else [])
        for n in range(NUM_KILLS)
    ],
)
def test_kills_in_the_middle_of_a_round_change_no_fact(
    world: World, main: Federation, repetition: int
) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    victims = ["sequencer", "rounds", draw.choice(AGENTS)]
    draw.shuffle(victims)
    points = sorted(draw.sample(KILL_POINTS, len(victims)))

    number = main.request_round()
    killed_ms = {}
    for victim, point in zip(victims, points, strict=True):
        _wait_for_leaves(main, number, point)
        time.sleep(draw.uniform(0, 0.1))
        killed_ms[victim] = time.time_ns() // 1_000_000
        world.services.kill(victim)
        print(f"killed {victim} after {point} leaves of round {number}")
    registered = main.wait(e.ModelVersionRegistered, ROUND_TIMEOUT_S, round=number)

    assert registered.version == number
    sealed = _only(main, e.RoundSealed, number)
    assert list_contributions(main.events, sealed) == tuple(
        Contribution(
            agent_id=accepted.agent_id,
            update_sha256=accepted.update_sha256,
            num_examples=accepted.num_examples,
        )
        for name in AGENTS
        for accepted in [_only(main, e.ContributionAccepted, number, agent_id=name)]
    )
    requested_ms = _stamp(main, _only(main, e.RoundRequested, number))
    registered_ms = _stamp(main, registered)
    for victim, when_ms in killed_ms.items():
        assert requested_ms <= when_ms <= registered_ms, f"{victim} died too late"


def test_after_the_kills_the_audit_finds_the_log_sound(main: Federation) -> None:
    report = main.audit()

    assert report["is_sound"]
    assert report["facts"]["ModelVersionRegistered"] == main.last_round()
    assert report["num_rounds_recomputed"] == main.last_round()
    # Killed agents and deciders said what they had said before, and nothing else.
    assert not report["rejections"]


def test_the_caches_can_be_deleted(world: World, main: Federation) -> None:
    number = main.request_round()
    main.wait(e.RoundStarted, round=number)
    world.services.stop(*FAUST_SERVICES)
    shutil.rmtree(world.settings.state_directory / "faust")

    for service in FAUST_SERVICES:
        world.services.start(service, "serve", service)
    main.wait(e.ModelVersionRegistered, ROUND_TIMEOUT_S, round=number)

    main.run_round()
    assert main.audit()["is_sound"]


def test_a_round_survives_an_outage_of_minio(world: World, main: Federation) -> None:
    kept = Kept.store(world.endpoints)
    number = main.request_round()
    main.wait(e.RoundRequested, round=number)
    with outage(world.stack, MINIO):
        time.sleep(4)
        assert not _has(main, e.RoundSealed, number)
    kept.demand()

    main.wait(e.ModelVersionRegistered, ROUND_TIMEOUT_S, round=number)
    sealed = _only(main, e.RoundSealed, number)
    assert [c.agent_id for c in list_contributions(main.events, sealed)] == sorted(
        AGENTS
    )


def test_a_round_survives_an_outage_of_the_schema_registry(
    world: World, main: Federation
) -> None:
    kept = Kept.store(world.endpoints)
    with outage(world.stack, REGISTRY):
        # Nobody knows this schema id, and nobody can ask: it must wait, not be refused.
        unknown = world.produce(
            topics.UPDATES, b"\x00\x00\x0f\x42\x40...", key=b"nobody"
        )
        restarts = world.services.restarts().get("sequencer", 0)
        wait_until(
            lambda: world.services.restarts().get("sequencer", 0) > restarts,
            "the sequencer stops rather than decide",
        )
    kept.demand()

    def reasons() -> list[str]:
        refusals = map(world.decode, world.records(topics.REJECTED))
        return [
            refusal.reason
            for refusal in refusals
            if (refusal.source_topic, refusal.source_offset)
            == (topics.UPDATES, unknown)
        ]

    assert wait_until(reasons, "it is refused") == [Reason.UNKNOWN_SCHEMA]
    main.run_round(ROUND_TIMEOUT_S)


def test_a_round_survives_a_kill_of_kafka(world: World, main: Federation) -> None:
    kept = Kept.store(world.endpoints)
    number = main.request_round()
    main.wait(e.RoundStarted, round=number)

    with outage(world.stack, KAFKA):
        time.sleep(1)
    kept.demand()

    main.wait(e.ModelVersionRegistered, 2 * ROUND_TIMEOUT_S, round=number)


def test_after_the_outages_the_audit_finds_the_log_sound(main: Federation) -> None:
    report = main.audit()

    assert report["is_sound"]
    assert report["facts"]["ModelVersionRegistered"] == main.last_round()


def _of_round(main: Federation, number: int) -> list[object]:
    return [event for event in main.events if getattr(event, "round", 0) == number]


def _wait_for_leaves(main: Federation, number: int, count: int) -> None:
    """Wait until a round's log has this many leaves after its request."""
    deadline = time.monotonic() + ROUND_TIMEOUT_S
    while len(_of_round(main, number)) < 1 + count:
        assert time.monotonic() < deadline, f"round {number} does not go on"
        main.read_on()


def _has(main: Federation, kind: type, number: int) -> bool:
    return any(isinstance(event, kind) for event in _of_round(main, number))


def _only(main: Federation, kind: type, number: int, agent_id: str | None = None):
    """Return the one event of this kind in a round; there must be no second."""
    matches: Callable[[object], bool] = lambda event: (  # noqa: E731
        isinstance(event, kind) and (agent_id is None or event.agent_id == agent_id)  # type: ignore[attr-defined]
    )
    [found] = filter(matches, _of_round(main, number))
    return found


def _stamp(main: Federation, event: object) -> int:
    return next(
        leaf.sequenced.sequenced_at_ms
        for leaf in main.leaves
        if leaf.sequenced.event is event
    )
