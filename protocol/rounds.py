"""The rounds decider: from a request to a published aggregate.

A round is open (agents train and answer), then goes through the phases of the
federation's mode (`protocol.modes`); the last one seals it: the set of contributions is
final. It ends published or abandoned. One round at a time per federation.

Rules:

- A round starts when it is the next one, none is open, and enough agents are active.
- An answer counts if its agent is in the cohort, it names this round and its base
  model, it was sequenced by the deadline, it is the agent's first answer, and the
  aggregator found its blob good.
- An answer says how many steps its agent took exactly where the strategy counts them.
- An agent revoked before the round is sealed is excluded, even if accepted.
- A drawn agent that has not answered by the deadline is rejected (``NO_ANSWER``).
- When every member of the cohort has answered or been rejected, and the phase is over,
  the next one begins; with fewer than ``min_cohort`` contributions the round is
  abandoned instead.
- In a phase each author that owes an event says it once; the mode decides whether it
  counts and what follows.
- A change of the configuration takes effect with the next round requested
  (`protocol.changes`); an open round continues as it began.
- Agents that answer are drawn rather than others (`protocol.attendance`).
- Where a sum is opened once (ADR 0032), an agent of a sealed set is not drawn again for
  the same base model, whatever became of the round.
- The operator may abandon a round, as nothing else ends a stuck one, unless its mode
  forbids that.
- The claim about the sum must fit the sealed set, and has a state exactly where the
  strategy carries one; the audit recomputes the sum itself.
  Others than the aggregator may make it, if at all, only after its time is over.
- With ledger nodes, the cohort is drawn from the final checkpoint of the block that
  ended the previous round (of the genesis block, for the first): whoever requests
  rounds cannot wait for a convenient draw. If the nodes change before that checkpoint
  is on the log, it is that of the block with the change. If it is not on the log when
  the round is requested, the last one that counts is used: training goes on while
  nothing becomes final. Without ledger nodes the block before the request's gives the
  seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from ledger.checkpoint import parse_checkpoint
from ledger.note import parse_note
from protocol.attendance import (
    NOTES_OF_MISSING,
    choose_candidates,
    find_cohort,
    note_answer,
)
from protocol.changes import apply_change
from protocol.cohort import (
    compute_checkpoint_entropy,
    compute_cohort_seed,
    compute_ticket,
    draw_cohort,
)
from protocol.contributions import (
    WITHDRAWN,
    Contribution,
    compute_contributions_digest,
)
from protocol.decider import Decider, Sequenced
from protocol.facts import name_cause, refuse_claim, reject
from protocol.modes import get_mode, is_complete, list_kinds, name_mode
from protocol.modes.mode import SEALED, Answer, Mode, Phase, find_missing
from protocol.modes.problem import Problem
from protocol.persistent import PersistentMap, PersistentSet
from protocol.round_state import (
    OpenRound,
    PendingUpdate,
    RoundsState,
    describe_few,
    find_drawable_agents,
    find_newest,
    is_drawable,
)
from protocol.rules import choose
from protocol.strategies import carries_state, counts_steps, read_max_steps
from schemas import events as e
from schemas.reasons import Reason

_DECLINES = frozenset(
    {
        Reason.TRAINING_FAILED,
        Reason.STATE_REFUSED,
        Reason.NOT_FINITE,
        Reason.OUT_OF_RANGE,
        Reason.TASK_NOT_ALLOWED,
        Reason.TASK_NOT_ACCEPTED,
        Reason.COHORT_TOO_SMALL,
        Reason.MODE_NOT_ALLOWED,
        Reason.UNKNOWN_CONFIGURATION,
    }
)
"""What an agent may say about itself."""
_FINAL = _DECLINES | WITHDRAWN | {Reason.NO_ANSWER}
"""Rejections after which an agent has no further answer in the round."""


def decide(state: RoundsState, leaf: Sequenced) -> Sequence[e.RoundFact]:
    """Return what follows from a leaf; every rule of a round is here, or its mode's."""
    match leaf.event:
        case e.RoundRequested() as request:
            return [_start(state, request, leaf)]
        case e.UpdateDeclined() as declined:
            return _go_on(state, leaf, _declined(state, declined, leaf))
        case e.UpdatesChecked() as checked:
            return _go_on(state, leaf, list(_checked(state, checked, leaf)))
        case e.DeadlineReached() as reached:
            return _go_on(state, leaf, _missing(state, reached, leaf))
        case e.RoundAbandonRequested() as request:
            return [_abandon(state, request, leaf)]
        case e.AgentRevoked() as revoked:
            return _go_on(state, leaf, _revoked(state, revoked, leaf))
        case e.AggregateSubmitted() as claim:
            return [_publish(state, claim, leaf)]
        case event:
            return _said(state, event, leaf)


def _said(
    state: RoundsState, event: e.LedgerEvent, leaf: Sequenced
) -> Sequence[e.RoundFact]:
    """Return what follows from what a mode's agents and parties say."""
    kinds, kind = list_kinds(), type(event)
    if kind in kinds.answers:
        return _go_on(state, leaf, _why_not(state, event, leaf))
    phase = kinds.awaited.get(kind)
    if phase is not None:
        return _go_on(state, leaf, _in_phase(state, phase, event, leaf))
    other = kinds.others.get(kind)
    return [] if other is None else other[1](state, event, leaf)


def _in_phase(
    state: RoundsState, phase: Phase, said: Any, leaf: Sequenced
) -> list[e.RoundFact]:
    """Return what follows from an event that a phase waits for."""
    current = state.current
    author = phase.get_author(said)
    if (
        current is None
        or said.round != current.started.round
        or _mode(state).find_phase(current) is not phase
        or author in current.said.get(phase.collects, {})
    ):
        return [refuse_claim(leaf, said.round, phase.refuse(said))]
    problem = phase.find_problem(state, said, leaf)
    if problem:
        return [refuse_claim(leaf, said.round, problem)]
    return phase.conclude(evolve(state, leaf, []), said, leaf)


def _mode(state: RoundsState) -> Mode:
    assert state.config is not None, "admission lets nothing pass before the genesis"
    return get_mode(state.config)


def evolve(
    state: RoundsState, leaf: Sequenced, facts: Sequence[e.RoundFact]
) -> RoundsState:
    """Fold a leaf and what followed from it; knows no rule."""
    return reduce(_evolve_fact, facts, _evolve_input(state, leaf, facts))


def _counts(event: e.LedgerEvent, facts: Sequence[e.RoundFact]) -> bool:
    """Return whether what somebody said counts: no resulting fact refuses it."""
    said_by = getattr(event, "agent_id", None)
    return not any(
        isinstance(fact, e.ClaimRejected)
        or (isinstance(fact, e.ContributionRejected) and fact.agent_id == said_by)
        for fact in facts
    )


def _evolve_input(
    state: RoundsState, leaf: Sequenced, facts: Sequence[e.RoundFact]
) -> RoundsState:
    current = state.current
    match leaf.event:
        case e.FederationConfigured() as config:
            draw_size = 0 if config.ledger_nodes is None else leaf.tree_size
            return replace(
                state, config=config, model=config.initial_model, draw_size=draw_size
            )
        case e.FederationChanged() as change:
            return _change(state, change)
        # The round's end as the log has it, which is later than when it followed.
        case e.AggregatePublished() | e.RoundAbandoned() if state.draw_size:
            return replace(state, draw_size=leaf.tree_size)
        # Only the old nodes would cosign the awaited checkpoint, and their word no
        # longer counts. Both old and new nodes cosign this block's.
        case e.NodeSetChanged() if not is_drawable(state):
            return replace(state, draw_size=leaf.tree_size)
        case e.CheckpointFinalised(checkpoint=note):
            checkpoint = parse_checkpoint(parse_note(note.encode()).text)
            if checkpoint.size != state.draw_size:
                return state
            return replace(
                state,
                draw_entropy=compute_checkpoint_entropy(checkpoint),
                drawn_size=state.draw_size,
            )
        case e.AgentAdmitted(agent_id=agent_id):
            return replace(state, agents=state.agents.insert(agent_id))
        case e.AgentRevoked(agent_id=agent_id):
            return replace(
                state,
                agents=state.agents.discard(agent_id),
                missed=state.missed.discard(agent_id),
            )
        case e.RoundRequested(requested_at_ms=at_ms):
            return replace(
                state, last_requested_at_ms=max(at_ms, state.last_requested_at_ms)
            )
        case e.DeadlineReached(round=number) if (
            current is not None
            and current.sealed is not None
            and number == current.started.round
        ):
            told = replace(current, told_at_ms=leaf.sequenced_at_ms)
            return replace(state, current=told)
        case event if current is not None and _counts(event, facts):
            return _evolve_said(state, current, event, leaf)
        case _:
            return state


def _evolve_said(
    state: RoundsState, current: OpenRound, event: Any, leaf: Sequenced
) -> RoundsState:
    kinds, kind = list_kinds(), type(event)
    mode = kinds.answers.get(kind)
    if mode is not None:
        pending = PendingUpdate(
            agent_id=event.agent_id,
            update_sha256=mode.get_blob(event).sha256,
            num_examples=event.num_examples,
            leaf_hash=leaf.leaf_hash,
            num_steps=event.num_steps,
        )
        answered = replace(
            current,
            owing=current.owing.discard(event.agent_id),
            pending=current.pending.insert(leaf.leaf_index, pending),
            pending_of=current.pending_of.insert(event.agent_id, leaf.leaf_index),
        )
        return replace(state, current=answered)
    phase = kinds.awaited.get(kind)
    if phase is None:
        return state
    mine = {
        **current.said.get(phase.collects, {}),
        phase.get_author(event): phase.note(event, leaf),
    }
    after = replace(current, said={**current.said, phase.collects: mine})
    assert state.config is not None, "it has a round"
    if phase.limits_result and not find_missing(phase, state.config, after):
        deadline_ms = leaf.sequenced_at_ms + state.config.round_duration_ms
        after = replace(after, result_deadline_ms=deadline_ms)
    return replace(state, current=after)


def _evolve_fact(state: RoundsState, fact: e.RoundFact) -> RoundsState:
    current = state.current
    match fact:
        case e.RoundStarted():
            return replace(
                state,
                last_round=fact.round,
                current=_open(state, fact),
            )
        case e.AttendanceChanged(agent_id=agent_id, num_missed=number):
            missed = state.missed.discard(agent_id)
            missed = missed.insert(agent_id, number) if number else missed
            return replace(state, missed=missed)
        case e.RoundAbandoned():
            return _end(state)
        case e.AggregatePublished():
            # A sum of nothing does not move the model.
            has_moved = fact.model.sha256 != fact.base_model_sha256
            return _end(
                replace(
                    state,
                    version=state.version + 1,
                    model=fact.model,
                    strategy_state=fact.state,
                    summed=frozenset() if has_moved else state.summed,
                )
            )
        case e.ContributionAccepted() if current is not None:
            pending = current.pending.get(fact.update_leaf_index)
            contribution = Contribution(
                agent_id=fact.agent_id,
                update_sha256=fact.update_sha256,
                num_examples=fact.num_examples,
                num_steps=None if pending is None else pending.num_steps,
            )
            contributions = current.contributions.insert(fact.agent_id, contribution)
            answered = _answer(current, fact.agent_id, contributions)
            return replace(state, current=answered)
        case e.ContributionRejected() if current is not None and (
            fact.update_leaf_index in current.pending or fact.reason in _FINAL
        ):
            contributions = current.contributions.discard(fact.agent_id)
            answered = _answer(current, fact.agent_id, contributions)
            return replace(state, current=answered)
        case _ if current is not None:
            return _evolve_phase(state, current, fact)
        case _:
            return state


def _evolve_phase(state: RoundsState, current: OpenRound, fact: Any) -> RoundsState:
    kinds, kind = list_kinds(), type(fact)
    name = kinds.begins.get(kind)
    if name is not None:
        if name == SEALED and _mode(state).sums_once:
            state = replace(state, summed=state.summed.union(current.contributions))
        begun = {**current.begun, name: fact}
        return replace(state, current=replace(current, begun=begun))
    phase = kinds.retracts.get(kind)
    if phase is None:
        return state
    said = dict(current.said)
    mine = dict(said.pop(phase.collects, {}))
    mine.pop(phase.get_author(fact), None)
    if mine:
        said[phase.collects] = mine
    after = replace(current, said=said, result_deadline_ms=0)
    return replace(state, current=after)


def _answer(
    current: OpenRound, agent_id: str, contributions: PersistentMap[str, Contribution]
) -> OpenRound:
    pending, pending_of = current.pending, current.pending_of
    index = pending_of.get(agent_id)
    if index is not None:
        pending, pending_of = pending.discard(index), pending_of.discard(agent_id)
    return replace(
        current,
        owing=current.owing.discard(agent_id),
        pending=pending,
        pending_of=pending_of,
        contributions=contributions,
    )


def _open(state: RoundsState, started: e.RoundStarted) -> OpenRound:
    cohort = find_cohort(find_drawable_agents(state), state.missed, started)
    return OpenRound(started=started, cohort=cohort, owing=PersistentSet(cohort))


def _change(state: RoundsState, change: e.FederationChanged) -> RoundsState:
    """Note a change; it does not touch an open round."""
    if apply_change(*find_newest(state), change) is None:
        return state
    waiting = replace(state, waiting=change)
    return waiting if state.current is not None else _end(waiting)


def _end(state: RoundsState) -> RoundsState:
    """Return the state without a round; a waiting change takes effect."""
    config, number = find_newest(state)
    return replace(state, current=None, config=config, change=number, waiting=None)


def _start(
    state: RoundsState, request: e.RoundRequested, leaf: Sequenced
) -> e.RoundStarted | e.RoundRefused:
    config = state.config
    assert config is not None, "admission lets nothing pass before the genesis"
    assert state.model is not None

    def refused(reason: Reason, detail: str) -> e.RoundRefused:
        return e.RoundRefused(
            round=request.round, reason=reason, detail=detail, **name_cause(leaf)
        )

    if request.requested_at_ms <= state.last_requested_at_ms:
        # A refused request, once seen, could be sent again when it fits.
        detail = "a request that was made later is on the ledger already"
        return refused(Reason.STALE_REQUEST, detail)
    if state.current is not None:
        number = state.current.started.round
        return refused(Reason.ROUND_OPEN, f"round {number} is still in progress")
    if request.round != state.last_round + 1:
        return refused(Reason.WRONG_ROUND, f"the next round is {state.last_round + 1}")
    drawable = find_drawable_agents(state)
    if len(drawable) < config.min_cohort:
        return refused(Reason.NOT_ENOUGH_AGENTS, describe_few(state, config))
    entropy = (
        leaf.previous_block_hash if config.ledger_nodes is None else state.draw_entropy
    )
    seed = compute_cohort_seed(entropy, config.federation_id, request.round)
    candidates = choose_candidates(
        drawable, state.missed, request.round, fewest=config.min_cohort
    )
    cohort = draw_cohort(seed, candidates, config.cohort_size)
    return e.RoundStarted(
        round=request.round,
        num_drawn=len(cohort),
        cohort_seed=seed,
        last_ticket=compute_ticket(seed, cohort[-1]),
        base_version=state.version,
        base_model=state.model,
        task=config.task,
        num_parameters=config.num_parameters,
        fractional_bits=config.fractional_bits,
        deadline_ms=leaf.sequenced_at_ms + config.round_duration_ms,
        change=state.change,
        **name_cause(leaf),
    )


def _abandon(
    state: RoundsState, request: e.RoundAbandonRequested, leaf: Sequenced
) -> e.RoundAbandoned | e.RoundRefused:
    current = state.current
    common = {"round": request.round, **name_cause(leaf)}
    problem: Problem | None = None
    if current is None or current.started.round != request.round:
        problem = Reason.WRONG_ROUND, "this round is not in progress"
    else:
        problem = _mode(state).find_abandon_problem(state)
    if problem is not None:
        reason, detail = problem
        return e.RoundRefused(reason=reason, detail=detail, **common)
    return e.RoundAbandoned(
        reason=Reason.OPERATOR_ABANDONED, detail=request.explanation, **common
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
    if agent_id not in current.cohort:
        return Reason.NOT_IN_COHORT, "this agent was not drawn for the round"
    if current.begun or leaf.sequenced_at_ms > current.started.deadline_ms:
        return Reason.LATE, f"the deadline was {current.started.deadline_ms} ms"
    if agent_id not in current.owing:
        return Reason.DUPLICATE, "this agent has answered the round already"
    return None


def _why_not(state: RoundsState, update: Any, leaf: Sequenced) -> list[e.RoundFact]:
    """Return the refusal of an answer; none if it awaits its blob's check."""
    problem = _why_no_answer(state, update.agent_id, update.round, leaf)
    bad = None
    if problem is None or problem[0] == Reason.NOT_IN_COHORT:
        bad = _find_answer_problem(state, update)
    back = [] if bad else _note_if_timely(state, update.agent_id, problem, leaf)
    problem = problem or bad
    if problem is None:
        return back
    return [reject(leaf, update.agent_id, update.round, *problem), *back]


def _note_if_timely(
    state: RoundsState, agent_id: str, problem: Problem | None, leaf: Sequenced
) -> list[e.RoundFact]:
    """Return that an agent answers again, if its answer came in time.

    Args:
        state: The state.
        agent_id: The agent.
        problem: Why it cannot answer this round now, if so.
        leaf: Its answer.
    """
    current = state.current
    if problem is not None and (
        problem[0] != Reason.NOT_IN_COHORT
        or current is None
        or current.begun
        or leaf.sequenced_at_ms > current.started.deadline_ms
    ):
        return []
    return [*note_answer(state, agent_id, leaf)]


def _find_answer_problem(state: RoundsState, update: Answer) -> Problem | None:
    config, current = state.config, state.current
    assert config is not None, "admission lets nothing pass before the genesis"
    assert current is not None, "it may be answered"
    base, mode = current.started.base_model, get_mode(config)
    if update.base_model_sha256 != base.sha256:
        return Reason.WRONG_BASE_MODEL, f"the round's base model is {base.sha256.hex()}"
    if update.num_examples > config.max_num_examples:
        detail = f"max_num_examples is {config.max_num_examples}"
        return Reason.TOO_MANY_EXAMPLES, detail
    if not isinstance(update, mode.answer):
        detail = f"the federation's aggregation is {name_mode(config)}"
        return Reason.WRONG_AGGREGATION, detail
    if (update.num_steps is not None) != counts_steps(config):
        how = "with" if counts_steps(config) else "without"
        detail = f"with the strategy {config.strategy} an answer comes {how} num_steps"
        return Reason.WRONG_STRATEGY, detail
    if update.num_steps is not None and update.num_steps > read_max_steps(config):
        return Reason.WRONG_STRATEGY, f"max_steps is {read_max_steps(config)}"
    return mode.find_answer_problem(config, update)


def _missing(
    state: RoundsState, reached: e.DeadlineReached, leaf: Sequenced
) -> list[e.RoundFact]:
    """Reject those who have not answered when the deadline has passed."""
    current = state.current
    if current is None:
        return []
    # The timer may be early or lie; everybody can check the block's stamp.
    number, deadline_ms = current.started.round, current.deadline_ms
    if (
        reached.round != number
        or deadline_ms is None
        or leaf.sequenced_at_ms <= deadline_ms
    ):
        return []
    detail = f"no answer by the deadline, {deadline_ms} ms"
    missing = sorted(current.owing)
    assert state.config is not None, "it has a round"
    note = choose(NOTES_OF_MISSING, state.config.rules_version)
    return [
        *(reject(leaf, name, number, Reason.NO_ANSWER, detail) for name in missing),
        *note(state, current, missing, leaf),
    ]


def _declined(
    state: RoundsState, declined: e.UpdateDeclined, leaf: Sequenced
) -> list[e.RoundFact]:
    problem = _why_no_answer(state, declined.agent_id, declined.round, leaf)
    back = _note_if_timely(state, declined.agent_id, problem, leaf)
    if problem is None:
        known = declined.reason in _DECLINES
        reason = Reason(declined.reason) if known else Reason.TRAINING_FAILED
        problem = (reason, declined.detail)
    return [reject(leaf, declined.agent_id, declined.round, *problem), *back]


def _revoked(
    state: RoundsState, revoked: e.AgentRevoked, leaf: Sequenced
) -> list[e.RoundFact]:
    """Exclude a revoked agent from the open round, whatever it has contributed."""
    current = state.current
    if (
        current is None
        or current.sealed is not None
        or revoked.agent_id not in current.cohort
    ):
        return []
    number, reason = current.started.round, Reason.REVOKED_AGENT
    return [reject(leaf, revoked.agent_id, number, reason, revoked.explanation)]


def _checked(
    state: RoundsState, checked: e.UpdatesChecked, leaf: Sequenced
) -> Iterator[e.RoundFact]:
    current, mode = state.current, _mode(state)
    if current is not None and current.started.round != checked.round:
        current = None
    takes_answers = (
        current is not None
        and state.config is not None
        and not checked.party
        and mode.is_checkable(state.config, current)
    )
    takes_parts = _may_claim(state, checked.party)
    for result in checked.results:
        pending = part = None
        if current is not None and takes_answers:
            pending = current.pending.get(result.leaf_index)
        if current is not None and takes_parts:
            part = mode.find_part(current, result.leaf_index)
        if part is not None and result.reason and mode.refuse_part is not None:
            yield mode.refuse_part(part, result, checked, leaf)
        elif pending is None:
            detail = f"no update at leaf {result.leaf_index} waits for a check"
            yield refuse_claim(leaf, checked.round, detail)
        elif result.reason:
            yield e.ContributionRejected(
                round=checked.round,
                agent_id=pending.agent_id,
                update_leaf_index=result.leaf_index,
                reason=result.reason,
                detail=result.detail,
                **name_cause(leaf),
            )
        else:
            yield e.ContributionAccepted(
                round=checked.round,
                agent_id=pending.agent_id,
                update_leaf_index=result.leaf_index,
                update_sha256=pending.update_sha256,
                num_examples=pending.num_examples,
                **name_cause(leaf),
            )


def _go_on(
    state: RoundsState, leaf: Sequenced, facts: list[e.RoundFact]
) -> list[e.RoundFact]:
    """Return the facts, and the next phase or the end of the round if it follows."""
    config, mode = state.config, _mode(state)
    assert config is not None, "admission lets nothing pass before the genesis"
    after = evolve(state, leaf, facts)
    current = after.current
    if current is None or current.sealed is not None or current.owing:
        return facts
    phase = mode.find_phase(current)
    is_over = (
        not (mode.awaits_checks and current.pending)
        if phase is None
        else phase.is_over(after)
    )
    if not is_over:
        return facts
    if current.num_possible < config.min_cohort:
        return [*facts, _give_up(current, config, leaf)]
    following = mode.find_next(config, current)
    assert following is not None, "every row of phases has one that seals"
    if following.begin is not None:
        return [*facts, following.begin(after, leaf)]
    return [*facts, _seal(after, current, leaf)]


def _give_up(
    current: OpenRound, config: e.FederationConfigured, leaf: Sequenced
) -> e.RoundAbandoned:
    detail = f"{current.num_possible} contributions, min_cohort is {config.min_cohort}"
    return e.RoundAbandoned(
        round=current.started.round,
        reason=Reason.NOT_ENOUGH_CONTRIBUTIONS,
        detail=detail,
        **name_cause(leaf),
    )


def _seal(state: RoundsState, current: OpenRound, leaf: Sequenced) -> e.RoundSealed:
    contributions = current.ordered
    return e.RoundSealed(
        round=current.started.round,
        num_contributions=len(contributions),
        contributions_sha256=compute_contributions_digest(contributions),
        num_examples=sum(c.num_examples for c in contributions),
        base_model=current.started.base_model,
        fractional_bits=current.started.fractional_bits,
        num_parameters=current.started.num_parameters,
        base_state=state.strategy_state,
        num_weighted_steps=sum(
            c.num_examples * (c.num_steps or 0) for c in contributions
        )
        if state.config is not None and counts_steps(state.config)
        else None,
        **name_cause(leaf),
    )


def _may_claim(state: RoundsState, party: str) -> bool:
    """Return whether a party, or else the aggregator, may claim the result now."""
    return not party or (state.current is not None and state.current.is_result_late)


def _publish(
    state: RoundsState, claim: e.AggregateSubmitted, leaf: Sequenced
) -> e.AggregatePublished | e.ClaimRejected:
    config, current = state.config, state.current
    sealed = None if current is None else current.sealed
    if (
        config is None
        or current is None
        or sealed is None
        or claim.round != sealed.round
        or claim.base_model_sha256 != sealed.base_model.sha256
        or claim.num_contributions != sealed.num_contributions
        or claim.num_examples != sealed.num_examples
        or (claim.state is not None) != carries_state(config)
        or not is_complete(config, current)
    ):
        return refuse_claim(leaf, claim.round, "the claim does not fit a sealed round")
    if not _may_claim(state, claim.party):
        return refuse_claim(leaf, claim.round, "it is the aggregator's turn still")
    return e.AggregatePublished(
        round=claim.round,
        base_model_sha256=claim.base_model_sha256,
        num_contributions=claim.num_contributions,
        num_examples=claim.num_examples,
        sum=claim.sum,
        model=claim.model,
        task=current.started.task,
        state=claim.state,
        **name_cause(leaf),
    )


DECIDER = Decider(initial=RoundsState(), decide=decide, evolve=evolve)
