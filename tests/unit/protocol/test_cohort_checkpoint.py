"""Cohorts are drawn from final checkpoints: nobody who requests rounds can choose."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import pytest

from ledger.checkpoint import (
    Checkpoint,
    cosign_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from ledger.note import parse_note
from protocol.cohort import (
    compute_checkpoint_entropy,
    compute_cohort_seed,
    draw_cohort,
)
from protocol.round_state import RoundsState, is_drawable
from protocol.rounds import DECIDER
from schemas import events as e
from tests.builders import LogBuilder, make_nodes
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    FEDERATION,
    NOW_MS,
    Run,
    admitted,
    aggregate,
    checked,
    deadline,
    make_key,
    start,
    update,
)
from tests.simulation.federation import request as make_request

Rounds = Run[RoundsState, e.RoundFact]
NODES = make_nodes(["node0", "node1", "node2", "node3"])
NO_ENTROPY = bytes(32)
_clock = itertools.count(NOW_MS)


def request(number: int) -> e.RoundRequested:
    return make_request(number, next(_clock))


def founded(*, with_nodes: bool = True) -> Rounds:
    """A federation with agents; its genesis block ends at size 1."""
    config = replace(
        CONFIG, ledger_nodes=e.LedgerNodes(nodes=NODES) if with_nodes else None
    )
    run = start(DECIDER).given(config)
    return run.given(*map(admitted, AGENTS))


def finalised(size: int, *, root: bytes = b"\x01" * 32, cosigners: int = 3):
    """Return the leaf that makes a checkpoint known; admission verified it."""
    checkpoint = Checkpoint(f"folkmoot/{FEDERATION}", size, root)
    note = sign_checkpoint(checkpoint, make_key("SEQUENCER"))
    for node in NODES[:cosigners]:
        note = cosign_checkpoint(note, node.name, make_key(node.name), 1_700_000_000)
    return e.CheckpointFinalised(federation_id=FEDERATION, checkpoint=note.decode())


def entropy_of(event: e.CheckpointFinalised) -> bytes:
    text = parse_note(event.checkpoint.encode()).text
    return compute_checkpoint_entropy(parse_checkpoint(text))


def seed_of(run: Rounds, number: int = 1) -> bytes:
    """Ask for a round, and return the seed that it was drawn by."""
    [started] = run.when(request(number))
    assert isinstance(started, e.RoundStarted)
    drawn = draw_cohort(started.cohort_seed, AGENTS, CONFIG.cohort_size)
    assert run.state.current is not None
    assert run.state.current.cohort == set(drawn)
    return started.cohort_seed


def end_round(run: Rounds, number: int = 1) -> None:
    """Abandon the open round, and put that on the log."""
    current = run.state.current
    assert current is not None
    past_ms = current.started.deadline_ms + 1
    *silent, abandoned = run.when(deadline(number, past_ms), at_ms=past_ms)
    assert {fact.agent_id for fact in silent} == current.cohort
    assert isinstance(abandoned, e.RoundAbandoned)
    run.when(abandoned)


def test_the_entropy_is_what_the_documentation_says() -> None:
    text = "folkmoot/clinics\n7\n" + "A" * 43 + "=\n"
    expected = hashlib.sha256(
        b"folkmoot/cohort-checkpoint/v1\n" + text.encode()
    ).digest()
    checkpoint = parse_checkpoint(text)
    assert compute_checkpoint_entropy(checkpoint) == expected
    assert compute_checkpoint_entropy(replace(checkpoint, size=8)) != expected


def test_signatures_are_not_in_the_entropy() -> None:
    """Whoever collects cosignatures may choose which to take."""
    assert finalised(1).checkpoint != finalised(1, cosigners=4).checkpoint
    assert entropy_of(finalised(1)) == entropy_of(finalised(1, cosigners=4))
    assert entropy_of(finalised(1)) != entropy_of(finalised(2))
    assert entropy_of(finalised(1)) != entropy_of(finalised(1, root=b"\x02" * 32))


def test_the_first_cohort_is_drawn_from_the_genesis_checkpoint() -> None:
    run = founded()
    assert (run.state.draw_size, run.state.drawn_size) == (1, 0)
    assert not is_drawable(run.state)
    final = finalised(1)
    assert run.when(final) == []
    assert is_drawable(run.state)
    assert run.state.drawn_size == 1
    assert run.state.draw_entropy == entropy_of(final)
    assert seed_of(run) == compute_cohort_seed(entropy_of(final), FEDERATION, 1)


def test_the_draw_is_of_the_whole_genesis_block() -> None:
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea")
    assert log._rounds.draw_size == 1
    log.finalise()
    assert is_drawable(log._rounds)
    assert log._rounds.drawn_size == log.state.admission.finalised_size == 1


def test_without_a_final_checkpoint_training_goes_on() -> None:
    run = founded()
    assert seed_of(run) == compute_cohort_seed(NO_ENTROPY, FEDERATION, 1)
    end_round(run)
    assert not is_drawable(run.state)
    # Another round, another draw; still nothing that the operator could wait for.
    run.given(admitted("eve"))
    [started] = run.when(request(2))
    assert isinstance(started, e.RoundStarted)
    assert started.cohort_seed == compute_cohort_seed(NO_ENTROPY, FEDERATION, 2)


@pytest.mark.parametrize("size", [2, 3, 5, 100])
def test_another_final_checkpoint_is_not_drawn_from(size: int) -> None:
    """Or whoever says which are final could choose among them."""
    run = founded()
    run.given(finalised(size))
    assert not is_drawable(run.state)
    assert run.state.drawn_size == 0
    assert run.state.draw_entropy == NO_ENTROPY
    run.given(finalised(1))
    assert is_drawable(run.state)


def test_the_next_cohort_is_drawn_from_where_an_abandoned_round_ended() -> None:
    run = founded().given(first := finalised(1))
    seed_of(run)
    end_round(run)
    # The block that holds the fact, not the one that it followed from.
    assert run.state.draw_size == len(run.leaves)
    assert isinstance(run.leaves[-1].event, e.RoundAbandoned)
    assert not is_drawable(run.state)
    second = finalised(run.state.draw_size)
    late = Run(decider=DECIDER, state=run.state, leaves=[*run.leaves])
    run.given(second)
    assert is_drawable(run.state)
    assert seed_of(run, 2) == compute_cohort_seed(entropy_of(second), FEDERATION, 2)
    # Where it is not known when the round is asked for, the last one counts.
    late.now_ms = run.now_ms
    assert seed_of(late, 2) == compute_cohort_seed(entropy_of(first), FEDERATION, 2)


def test_the_next_cohort_is_drawn_from_where_a_published_round_ended() -> None:
    run = founded().given(finalised(1))
    seed_of(run)
    indexes = []
    for agent_id in AGENTS:
        indexes.append(run.next_index)
        run.when(update(agent_id))
    sealed = run.when(checked(*indexes))[-1]
    assert isinstance(sealed, e.RoundSealed)
    [published] = run.when(aggregate(len(AGENTS), sealed.num_examples))
    assert isinstance(published, e.AggregatePublished)
    before = run.state.draw_size
    run.when(sealed)
    assert run.state.draw_size == before
    run.when(published)
    assert run.state.draw_size == len(run.leaves) > before


def test_a_checkpoint_that_comes_too_late_serves_no_later_round() -> None:
    run = founded()
    seed_of(run)
    end_round(run)
    run.given(finalised(1))
    assert run.state.draw_entropy == NO_ENTROPY
    assert not is_drawable(run.state)


def changed() -> e.NodeSetChanged:
    return e.NodeSetChanged(
        federation_id=FEDERATION, era=1, nodes=NODES[1:], approvals=()
    )


def test_a_change_of_the_nodes_moves_a_draw_that_is_not_known() -> None:
    run = founded()
    seed_of(run)
    end_round(run)
    late = finalised(run.state.draw_size)
    run.given(changed())
    assert run.state.draw_size == len(run.leaves)
    run.given(late)
    assert not is_drawable(run.state)
    final = finalised(run.state.draw_size)
    run.given(final)
    assert is_drawable(run.state)
    assert seed_of(run, 2) == compute_cohort_seed(entropy_of(final), FEDERATION, 2)


def test_a_change_of_the_nodes_moves_no_draw_that_is_known() -> None:
    run = founded().given(first := finalised(1)).given(changed())
    assert is_drawable(run.state)
    assert run.state.drawn_size == 1
    assert seed_of(run) == compute_cohort_seed(entropy_of(first), FEDERATION, 1)
    without = founded(with_nodes=False)
    without.given(changed())
    assert without.state.draw_size == 0


def test_the_new_nodes_can_make_the_draw_known() -> None:
    """The word of those before, on the checkpoint that was waited for, would not be
    enough any more.
    """
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.change_nodes("node0", "node4", "node5", "node6")
    log.request_finality()
    assert not is_drawable(log._rounds)
    log.finalise()
    assert is_drawable(log._rounds)
    assert log._rounds.drawn_size == log.state.admission.finalised_size > 1
    assert not any(isinstance(leaf, e.EventRejected) for leaf in log.leaves)


def test_a_checkpoint_may_come_while_the_round_before_goes_on() -> None:
    """It changes the draw of no round that has started."""
    run = founded()
    seed = seed_of(run)
    run.given(finalised(1))
    assert is_drawable(run.state)
    current = run.state.current
    assert current is not None
    assert current.started.cohort_seed == seed


def test_without_ledger_nodes_the_block_before_gives_the_seed() -> None:
    run = founded(with_nodes=False)
    assert run.state.draw_size == 0
    assert is_drawable(run.state)
    [started] = run.when(request(1))
    assert isinstance(started, e.RoundStarted)
    before = run.leaves[-1].previous_block_hash
    assert started.cohort_seed == compute_cohort_seed(before, FEDERATION, 1)
    end_round(run)
    assert run.state.draw_size == 0
    assert is_drawable(run.state)


def test_the_operator_cannot_try_again() -> None:
    """A refused request, another clock, another block before: the same cohort."""
    seeds = set()
    for attempts in range(3):
        run = founded().given(finalised(1))
        for _ in range(attempts):
            [refused] = run.when(request(7))
            assert isinstance(refused, e.RoundRefused)
        seeds.add(seed_of(run))
    assert len(seeds) == 1
