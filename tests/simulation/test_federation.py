"""A federation under faults: whatever happens, the log is right and everything ends."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from protocol.cohort import is_drawn
from protocol.encoding import parse_update
from protocol.tensors import tensors_from_blob
from schemas import events as e
from tests.sealed import list_contributions
from tests.simulation.federation import NOW_MS
from tests.simulation.world import (
    BASE_BLOB,
    GENESIS,
    NUM_PARAMETERS,
    Auditor,
    World,
)

NUM_STEPS = 120


def live(seed: int, **options: float) -> World:
    """Run one federation from its seed; a failure says which."""
    world = World(seed, **options)
    try:
        for _ in range(NUM_STEPS):
            world.step()
        world.settle()
        check_end(world)
    except AssertionError as error:
        error.add_note(f"seed {seed}")
        raise
    return world


def check_end(world: World) -> None:
    """Check what must hold once everybody has finished."""
    world.auditor.check_complete()
    world.auditor.check_fold()
    # Who comes later and reads everything at once sees the same.
    late = Auditor()
    late.read(world.kafka.ledger)
    assert late.states == world.auditor.states
    assert world.rounds.state == late.states["rounds"]
    assert world.registry.state == late.states["registry"]
    check_rounds(world)


def check_rounds(world: World) -> None:
    """Check every sealed round, and compute every model again in another way."""
    events = [leaf.event for leaf in world.auditor.leaves]
    genesis = events[0]
    assert isinstance(genesis, e.FederationConfigured)
    min_cohort, base = genesis.min_cohort, genesis.initial_model
    published = {a.round: a for a in events if isinstance(a, e.AggregatePublished)}
    blobs = world.kafka.blobs
    for sealed in (event for event in events if isinstance(event, e.RoundSealed)):
        contributions = list_contributions(events, sealed)
        names = [c.agent_id for c in contributions]
        assert len(names) == len(set(names)) >= min_cohort
        assert sealed.base_model == base
        assert set(names) >= find_heard(world, sealed)
        total = np.zeros(NUM_PARAMETERS, dtype=object)  # Python's own integers
        for contribution in contributions:
            vector = parse_update(
                blobs[contribution.update_sha256], num_parameters=NUM_PARAMETERS
            )
            total += vector.astype(object) * contribution.num_examples
        result = published[sealed.round]
        assert result.num_examples == sealed.num_examples
        found = tensors_from_blob(blobs[result.sum.sha256])["sum"]
        assert found.tolist() == total.tolist()
        before = tensors_from_blob(blobs[base.sha256])["w"]
        after = tensors_from_blob(blobs[result.model.sha256])["w"]
        mean = total.astype("f8") / result.num_examples / 2**GENESIS.fractional_bits
        np.testing.assert_allclose(after, before + mean, rtol=1e-5, atol=1e-6)
        base = result.model
    versions = [
        event for event in events if isinstance(event, e.ModelVersionRegistered)
    ]
    assert [v.version for v in versions] == list(range(1, len(published) + 1))
    assert [v.model for v in versions] == [p.model for p in published.values()]


def find_heard(world: World, sealed: e.RoundSealed) -> set[str]:
    """Return who must be in a sealed round: honest, drawn, and in time."""
    leaves = world.auditor.leaves[: sealed.cause_leaf_index]
    (started,) = (
        leaf.event
        for leaf in leaves
        if isinstance(leaf.event, e.RoundStarted) and leaf.event.round == sealed.round
    )
    return {
        leaf.event.agent_id
        for leaf in leaves
        if isinstance(leaf.event, e.UpdateSubmitted)
        and leaf.event.round == sealed.round
        and leaf.event.agent_id in world.honest
        and is_drawn(started, leaf.event.agent_id)
        and leaf.sequenced_at_ms <= started.deadline_ms
    }


@pytest.mark.parametrize(
    "tens",
    [*range(6), *(pytest.param(n, marks=pytest.mark.nightly) for n in range(6, 60))],
)
def test_faults_change_nothing_that_is_true(tens: int) -> None:
    for seed in range(tens * 10, tens * 10 + 10):
        live(seed)


def test_many_faults_only_delay() -> None:
    for seed in range(1_000, 1_010):
        live(seed, fault_rate=0.3)


def test_the_simulation_meets_what_it_is_for() -> None:
    """Or all of the above would hold of a federation in which nothing happens."""
    seen: Counter[str] = Counter()
    for seed in range(2_000, 2_040):
        for leaf in live(seed).auditor.leaves:
            seen[type(leaf.event).__name__] += 1
            seen[getattr(leaf.event, "reason", "")] += 1
    for kind in (
        "AggregatePublished",
        "ModelVersionRegistered",
        "RoundAbandoned",
        "ContributionRejected",
        "ClaimRejected",
        "RoundRefused",
        "EventRejected",
        "LATE",
        "NO_ANSWER",
        "DUPLICATE",
        "NOT_ENOUGH_CONTRIBUTIONS",
        "WRONG_BASE_MODEL",
        "TOO_MANY_EXAMPLES",
        "MALFORMED_BLOB",
        "MISSING_BLOB",
        "TRAINING_FAILED",
        "DUPLICATE_EVENT",
        "BAD_SIGNATURE",
        "INVALID_FIELD",
        "FEDERATION_EXISTS",
        "UNEXPECTED_CLAIM",
        "REVOKED_AGENT",
    ):
        assert seen[kind] > 0, kind
    assert seen["AggregatePublished"] >= 35


def test_one_seed_is_one_history() -> None:
    one, two = live(7), live(7)
    assert one.kafka.ledger == two.kafka.ledger
    assert one.now_ms == two.now_ms > NOW_MS


def test_without_faults_and_liars_every_round_is_published() -> None:
    world = World(3, fault_rate=0.0)
    world.honest = ["ana", "bea", "cem", "dan"]
    world.settle()
    for number in range(1, 4):
        world._ask()
        world.settle()
        assert world.rounds.state.version == number
    assert tensors_from_blob(BASE_BLOB)["w"].tolist() == [0.0] * NUM_PARAMETERS
