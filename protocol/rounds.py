"""The rounds decider: from a request to a published aggregate.

States of a round: open (agents train and submit) → sealed (the set of contributions
is final) → published, or abandoned. One round at a time per federation.

Rules:

- A round starts when it is the next one, none is open, and enough agents are active.
- An update counts if its agent is in the cohort, it names this round and its base
  model, it was sequenced by the deadline, it is the agent's first answer, and the
  aggregator found its blob good.
- An agent that is revoked before the round is sealed is excluded, even if accepted.
- A round is sealed when every member of the cohort answered, or when the deadline has
  passed and every update that came in time was checked. With fewer than ``min_cohort``
  contributions it is abandoned instead.
- The operator may abandon a round at any time: nothing else ends one whose aggregator
  is gone for good.
- The claim about the sum must fit the sealed set; the audit recomputes the sum itself.
- With ledger nodes, the cohort is drawn from the final checkpoint of the block that
  ended the round before (of the genesis block, for the first): whoever asks for rounds
  cannot wait for a draw that suits. Where that checkpoint is not on the log when the
  round is asked for, the last one that was counts: training goes on while nothing
  becomes final. Without ledger nodes the block before the request's gives the seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from ledger.checkpoint import parse_checkpoint
from ledger.note import parse_note
from protocol.cohort import (
    compute_checkpoint_entropy,
    compute_cohort_seed,
    draw_cohort,
)
from protocol.decider import Decider, Sequenced
from schemas import events as e
from schemas.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingUpdate:
    """An update whose blob nobody has checked yet."""

    agent_id: str
    update_sha256: bytes
    num_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """The round in progress.

    Attributes:
        started: The fact that opened it.
        pending: Updates to be checked, by leaf index.
        contributions: Accepted contributions, by agent.
        answered: Agents of the cohort that cannot contribute any more: accepted,
            refused after a check, or declined.
        deadline_passed: Whether a block's stamp and the timer agree that it has.
        sealed: The fact that closed it, if it is closed.
    """

    started: e.RoundStarted
    pending: Mapping[int, PendingUpdate] = field(default_factory=dict)
    contributions: Mapping[str, e.Contribution] = field(default_factory=dict)
    answered: frozenset[str] = frozenset()
    deadline_passed: bool = False
    sealed: e.RoundSealed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsState:
    """What the rounds decider knows of a federation.

    Attributes:
        config: Its parameters; None before the first leaf.
        agents: Active agents.
        last_round: Number of the last round that started; 0 if none.
        last_requested_at_ms: Latest clock of a request for a round; -1 before any.
        version: Version of the current global model; 0 is the initial one.
        model: The current global model.
        current: The round in progress, if any.
        draw_size: Tree size of the checkpoint that the next cohort is drawn from; 0
            without ledger nodes.
        draw_entropy: What the last such checkpoint gave, 32 bytes; zeros at first.
        drawn_size: Its tree size; 0 at first.
    """

    config: e.FederationConfigured | None = None
    agents: frozenset[str] = frozenset()
    last_round: int = 0
    last_requested_at_ms: int = -1
    version: int = 0
    model: e.BlobRef | None = None
    current: OpenRound | None = None
    draw_size: int = 0
    draw_entropy: bytes = bytes(32)
    drawn_size: int = 0


def is_drawable(state: RoundsState) -> bool:
    """Return whether the checkpoint that the next cohort is drawn from is known."""
    return state.drawn_size == state.draw_size


def decide(state: RoundsState, leaf: Sequenced) -> Sequence[e.RoundFact]:
    """Return what follows from a leaf; every rule of a round is here."""
    match leaf.event:
        case e.RoundRequested() as request:
            return [_start(state, request, leaf)]
        case e.UpdateSubmitted() as update:
            refusal = _why_not(state, update, leaf)
            return [] if refusal is None else [refusal]
        case e.UpdateDeclined() as declined:
            return _with_closing(state, leaf, [_declined(state, declined, leaf)])
        case e.UpdatesChecked() as checked:
            return _with_closing(state, leaf, list(_checked(state, checked, leaf)))
        case e.DeadlineReached():
            return _with_closing(state, leaf, [])
        case e.RoundAbandonRequested() as request:
            return [_abandon(state, request, leaf)]
        case e.AgentRevoked() as revoked:
            return _with_closing(state, leaf, _revoked(state, revoked, leaf))
        case e.AggregateSubmitted() as claim:
            return [_publish(state, claim, leaf)]
        case _:
            return []


def evolve(state: RoundsState, happened: Sequenced | e.RoundFact) -> RoundsState:
    """Fold an input or a fact; refuses nothing."""
    if isinstance(happened, Sequenced):
        return _evolve_input(state, happened)
    return _evolve_fact(state, happened)


def _evolve_input(state: RoundsState, leaf: Sequenced) -> RoundsState:
    current = state.current
    match leaf.event:
        case e.FederationConfigured() as config:
            draw_size = leaf.tree_size if config.ledger_nodes else 0
            return replace(
                state, config=config, model=config.initial_model, draw_size=draw_size
            )
        # The round's end as the log has it, which is later than when it followed.
        case e.AggregatePublished() | e.RoundAbandoned() if state.draw_size:
            return replace(state, draw_size=leaf.tree_size)
        case e.CheckpointFinalised(checkpoint=note):
            text = parse_note(note.encode()).text
            if parse_checkpoint(text).size != state.draw_size:
                return state
            return replace(
                state,
                draw_entropy=compute_checkpoint_entropy(text),
                drawn_size=state.draw_size,
            )
        case e.AgentAdmitted(agent_id=agent_id):
            return replace(state, agents=state.agents | {agent_id})
        case e.AgentRevoked(agent_id=agent_id):
            return replace(state, agents=state.agents - {agent_id})
        case e.RoundRequested(requested_at_ms=at_ms):
            return replace(
                state, last_requested_at_ms=max(at_ms, state.last_requested_at_ms)
            )
        case e.UpdateSubmitted() as update if (
            current is not None and _why_not(state, update, leaf) is None
        ):
            pending = PendingUpdate(
                agent_id=update.agent_id,
                update_sha256=update.update.sha256,
                num_examples=update.num_examples,
            )
            return replace(
                state,
                current=replace(
                    current, pending={**current.pending, leaf.leaf_index: pending}
                ),
            )
        case e.DeadlineReached() if current is not None and _is_past(
            current, leaf, leaf.event
        ):
            return replace(state, current=replace(current, deadline_passed=True))
        case _:
            return state


def _evolve_fact(state: RoundsState, fact: e.RoundFact) -> RoundsState:
    current = state.current
    match fact:
        case e.RoundStarted():
            return replace(
                state, last_round=fact.round, current=OpenRound(started=fact)
            )
        case e.RoundSealed() if current is not None:
            return replace(state, current=replace(current, sealed=fact))
        case e.RoundAbandoned():
            return replace(state, current=None)
        case e.AggregatePublished():
            return replace(
                state, version=state.version + 1, model=fact.model, current=None
            )
        case e.ContributionAccepted() if current is not None:
            contribution = e.Contribution(
                agent_id=fact.agent_id,
                update_sha256=fact.update_sha256,
                num_examples=fact.num_examples,
            )
            return replace(
                state,
                current=replace(
                    _answer(current, fact.agent_id),
                    contributions={
                        **current.contributions,
                        fact.agent_id: contribution,
                    },
                ),
            )
        case e.ContributionRejected() if current is not None and (
            fact.update_leaf_index in current.pending or fact.reason in _FINAL
        ):
            contributions = {
                agent_id: contribution
                for agent_id, contribution in current.contributions.items()
                if agent_id != fact.agent_id
            }
            return replace(
                state,
                current=replace(
                    _answer(current, fact.agent_id), contributions=contributions
                ),
            )
        case _:
            return state


_DECLINES = frozenset(
    {
        Reason.TRAINING_FAILED,
        Reason.NOT_FINITE,
        Reason.OUT_OF_RANGE,
        Reason.TASK_NOT_ALLOWED,
    }
)
"""What an agent may say of itself."""
_FINAL = _DECLINES | {Reason.REVOKED_AGENT}
"""Rejections after which an agent has no further answer to the round."""


def _answer(current: OpenRound, agent_id: str) -> OpenRound:
    pending = {i: p for i, p in current.pending.items() if p.agent_id != agent_id}
    return replace(current, pending=pending, answered=current.answered | {agent_id})


def _cause(leaf: Sequenced) -> dict[str, Any]:
    return {
        "cause": leaf.leaf_hash,
        "cause_leaf_index": leaf.leaf_index,
        "output_index": 0,  # `step` numbers the facts
        "federation_id": leaf.event.federation_id,
    }


def _start(
    state: RoundsState, request: e.RoundRequested, leaf: Sequenced
) -> e.RoundStarted | e.RoundRefused:
    config = state.config
    assert config is not None, "admission lets nothing pass before the genesis"
    assert state.model is not None

    def refused(reason: Reason, detail: str) -> e.RoundRefused:
        return e.RoundRefused(
            round=request.round, reason=reason, detail=detail, **_cause(leaf)
        )

    if request.requested_at_ms <= state.last_requested_at_ms:
        # Whoever saw a request that was refused could send it again when it fits.
        detail = "a request that was made later is on the ledger already"
        return refused(Reason.STALE_REQUEST, detail)
    if state.current is not None:
        number = state.current.started.round
        return refused(Reason.ROUND_OPEN, f"round {number} is still in progress")
    if request.round != state.last_round + 1:
        return refused(Reason.WRONG_ROUND, f"the next round is {state.last_round + 1}")
    if len(state.agents) < config.min_cohort:
        return refused(
            Reason.NOT_ENOUGH_AGENTS,
            f"{len(state.agents)} active agents, min_cohort is {config.min_cohort}",
        )
    entropy = state.draw_entropy if config.ledger_nodes else leaf.previous_block_hash
    seed = compute_cohort_seed(entropy, config.federation_id, request.round)
    return e.RoundStarted(
        round=request.round,
        cohort=draw_cohort(seed, state.agents, config.cohort_size),
        cohort_seed=seed,
        base_version=state.version,
        base_model=state.model,
        task=config.task,
        num_parameters=config.num_parameters,
        fractional_bits=config.fractional_bits,
        deadline_ms=leaf.sequenced_at_ms + config.round_duration_ms,
        **_cause(leaf),
    )


def _abandon(
    state: RoundsState, request: e.RoundAbandonRequested, leaf: Sequenced
) -> e.RoundAbandoned | e.RoundRefused:
    common = {"round": request.round, **_cause(leaf)}
    if state.current is None or state.current.started.round != request.round:
        detail = "this round is not in progress"
        return e.RoundRefused(reason=Reason.WRONG_ROUND, detail=detail, **common)
    return e.RoundAbandoned(
        reason=Reason.OPERATOR_ABANDONED, detail=request.explanation, **common
    )


def _rejected(
    leaf: Sequenced, agent_id: str, number: int, reason: str, detail: str
) -> e.ContributionRejected:
    return e.ContributionRejected(
        round=number,
        agent_id=agent_id,
        update_leaf_index=leaf.leaf_index,
        reason=reason,
        detail=detail,
        **_cause(leaf),
    )


def _why_no_answer(
    state: RoundsState, agent_id: str, number: int, leaf: Sequenced
) -> tuple[Reason, str] | None:
    """Return why this agent cannot answer this round now; None if it can."""
    current = state.current
    if current is None or number != current.started.round:
        if 1 <= number <= state.last_round:
            return Reason.LATE, f"round {number} is over"
        return Reason.WRONG_ROUND, f"round {number} has not started"
    if agent_id not in current.started.cohort:
        return Reason.NOT_IN_COHORT, "this agent was not drawn for the round"
    if agent_id in current.answered or any(
        pending.agent_id == agent_id for pending in current.pending.values()
    ):
        return Reason.DUPLICATE, "this agent has answered the round already"
    if current.sealed is not None or leaf.sequenced_at_ms > current.started.deadline_ms:
        return Reason.LATE, f"the deadline was {current.started.deadline_ms} ms"
    return None


def _why_not(
    state: RoundsState, update: e.UpdateSubmitted, leaf: Sequenced
) -> e.ContributionRejected | None:
    """Return the refusal of an update; None if it waits for its blob's check."""
    config = state.config
    assert config is not None, "admission lets nothing pass before the genesis"
    problem = _why_no_answer(state, update.agent_id, update.round, leaf)
    if problem is None and state.current is not None:
        base = state.current.started.base_model
        if update.base_model_sha256 != base.sha256:
            problem = (
                Reason.WRONG_BASE_MODEL,
                f"the round's base model is {base.sha256.hex()}",
            )
        elif update.num_examples > config.max_num_examples:
            problem = (
                Reason.TOO_MANY_EXAMPLES,
                f"max_num_examples is {config.max_num_examples}",
            )
    if problem is None:
        return None
    return _rejected(leaf, update.agent_id, update.round, *problem)


def _declined(
    state: RoundsState, declined: e.UpdateDeclined, leaf: Sequenced
) -> e.ContributionRejected:
    problem = _why_no_answer(state, declined.agent_id, declined.round, leaf)
    if problem is None:
        known = declined.reason in _DECLINES
        reason = Reason(declined.reason) if known else Reason.TRAINING_FAILED
        problem = (reason, declined.detail)
    return _rejected(leaf, declined.agent_id, declined.round, *problem)


def _revoked(
    state: RoundsState, revoked: e.AgentRevoked, leaf: Sequenced
) -> list[e.RoundFact]:
    """Exclude a revoked agent from the open round, whatever it has contributed."""
    current = state.current
    if (
        current is None
        or current.sealed is not None
        or revoked.agent_id not in current.started.cohort
    ):
        return []
    number, reason = current.started.round, Reason.REVOKED_AGENT
    return [_rejected(leaf, revoked.agent_id, number, reason, revoked.explanation)]


def _checked(
    state: RoundsState, checked: e.UpdatesChecked, leaf: Sequenced
) -> Iterator[e.RoundFact]:
    current = state.current
    for result in checked.results:
        pending = None if current is None else current.pending.get(result.leaf_index)
        if current is None or pending is None or current.started.round != checked.round:
            detail = f"no update at leaf {result.leaf_index} waits for a check"
            yield e.ClaimRejected(
                round=checked.round,
                reason=Reason.UNEXPECTED_CLAIM,
                detail=detail,
                **_cause(leaf),
            )
        elif result.reason:
            yield e.ContributionRejected(
                round=checked.round,
                agent_id=pending.agent_id,
                update_leaf_index=result.leaf_index,
                reason=result.reason,
                detail=result.detail,
                **_cause(leaf),
            )
        else:
            yield e.ContributionAccepted(
                round=checked.round,
                agent_id=pending.agent_id,
                update_leaf_index=result.leaf_index,
                update_sha256=pending.update_sha256,
                num_examples=pending.num_examples,
                **_cause(leaf),
            )


def _is_past(current: OpenRound, leaf: Sequenced, event: e.DeadlineReached) -> bool:
    # The timer may be early or lie; the block's stamp is what everybody can check.
    return (
        event.round == current.started.round
        and leaf.sequenced_at_ms > current.started.deadline_ms
    )


def _with_closing(
    state: RoundsState, leaf: Sequenced, facts: list[e.RoundFact]
) -> list[e.RoundFact]:
    """Return the facts, and the end of the round if it follows from them."""
    config = state.config
    assert config is not None, "admission lets nothing pass before the genesis"
    after = reduce(evolve, facts, evolve(state, leaf))
    current = after.current
    if current is None or current.sealed is not None or current.pending:
        return facts
    everyone = current.answered >= frozenset(current.started.cohort)
    if not everyone and not current.deadline_passed:
        return facts
    number = current.started.round
    if len(current.contributions) < config.min_cohort:
        detail = (
            f"{len(current.contributions)} contributions, "
            f"min_cohort is {config.min_cohort}"
        )
        return [
            *facts,
            e.RoundAbandoned(
                round=number,
                reason=Reason.NOT_ENOUGH_CONTRIBUTIONS,
                detail=detail,
                **_cause(leaf),
            ),
        ]
    contributions = tuple(
        current.contributions[agent_id] for agent_id in sorted(current.contributions)
    )
    return [
        *facts,
        e.RoundSealed(
            round=number,
            contributions=contributions,
            num_examples=sum(c.num_examples for c in contributions),
            base_model=current.started.base_model,
            fractional_bits=current.started.fractional_bits,
            num_parameters=current.started.num_parameters,
            **_cause(leaf),
        ),
    ]


def _publish(
    state: RoundsState, claim: e.AggregateSubmitted, leaf: Sequenced
) -> e.AggregatePublished | e.ClaimRejected:
    sealed = None if state.current is None else state.current.sealed
    if (
        state.current is None
        or sealed is None
        or claim.round != sealed.round
        or claim.base_model_sha256 != sealed.base_model.sha256
        or claim.num_contributions != len(sealed.contributions)
        or claim.num_examples != sealed.num_examples
    ):
        return e.ClaimRejected(
            round=claim.round,
            reason=Reason.UNEXPECTED_CLAIM,
            detail="the claim does not fit a sealed round",
            **_cause(leaf),
        )
    return e.AggregatePublished(
        round=claim.round,
        base_model_sha256=claim.base_model_sha256,
        num_contributions=claim.num_contributions,
        num_examples=claim.num_examples,
        sum=claim.sum,
        model=claim.model,
        task=state.current.started.task,
        **_cause(leaf),
    )


DECIDER = Decider(initial=RoundsState(), decide=decide, evolve=evolve)
