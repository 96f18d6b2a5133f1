"""The rounds decider as it was before phases: `test_same_rules` compares it with ours.

States of a round: open (agents train and submit) → sealed (the set of contributions
is final) → published, or abandoned. One round at a time per federation. With
aggregation MPC an open round first collects commitments, each with its proof, then is
closed: none can come or change any more, and the parties link (ADR 0033).

Rules:

- A round starts when it is the next one, none is open, and enough agents are active.
- An update counts if its agent is in the cohort, it names this round and its base
  model, it was sequenced by the deadline, it is the agent's first answer, and the
  aggregator found its blob good.
- An agent that is revoked before the round is sealed is excluded, even if accepted.
- Who was drawn and has not answered by the deadline is rejected (``NO_ANSWER``).
- A round is sealed when every member of the cohort has answered or been rejected, and
  every update that came in time was checked. With fewer than ``min_cohort``
  contributions it is abandoned instead.
- With MPC an agent commits, proves and shares its update among the parties in one
  message; it may then go. The set is closed when every member has answered or been
  rejected; its hash is the seed of the projection of the sum, so nobody knew it when
  choosing.
- In a closed round each party links its shares; once all parties have, the aggregator
  says which commitments count. The sealed set is summed by every party.
- If the federation compares updates (ADR 0020), the parties first find out which of
  those that count are far apart. Once all of them have said the same bits, who is
  flagged is rejected, and the rest is sealed.
- A partial sum that contradicts its party's own links is rejected, which names the
  party; it may give another. A round whose party is gone waits.
- A change of the configuration is in force from the next round on that is asked for
  (`protocol.changes`); an open round goes on with what it began with.
- A sum is opened once (ADR 0032). With MPC an agent of a sealed set is not drawn again
  for the same base model, whatever became of the round: each party may have given its
  part, and two sums over one base would show their difference.
- Once all parts of a sum are on the log the round is completed, never abandoned. If the
  aggregator does not say what they come to within a round's duration, any party may.
  If they do not open the commitments, all parts are rejected.
- The operator may abandon a round before that, as nothing else ends one that cannot go
  on; a sealed one with MPC only if enough agents are left to draw. A party that its
  memory does not permit to go on ends the round at once.
- The claim about the sum must fit the sealed set; the audit recomputes the sum itself.
- With ledger nodes, the cohort is drawn from the final checkpoint of the block that
  ended the round before (of the genesis block, for the first): whoever asks for rounds
  cannot wait for a draw that suits. If the nodes change before that checkpoint is on
  the log, it is the one of the block with the change. Where it is not on the log when
  the round is asked for, the last one that was counts: training goes on while nothing
  becomes final. Without ledger nodes the block before the request's gives the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Final

from ledger.checkpoint import parse_checkpoint
from ledger.note import parse_note
from protocol.changes import apply_change
from protocol.cohort import (
    compute_checkpoint_entropy,
    compute_cohort_seed,
    compute_ticket,
    draw_cohort,
    is_drawn,
)
from protocol.configuration import read_configuration
from protocol.contributions import (
    WITHDRAWN,
    Contribution,
    compute_contributions_digest,
)
from protocol.decider import Decider, Sequenced
from protocol.modes import name_mode
from protocol.modes.mpc.configuration import get_comparison, list_parties
from protocol.modes.mpc.far_pairs import MalformedBitsError, flag, parse_far
from protocol.persistent import PersistentMap, PersistentSet
from schemas import events as e
from schemas.reasons import Reason

SUM_SEED_DOMAIN: Final = b"folkmoot/sum-projection/v1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingUpdate:
    """An update, or commitments to one, whose blobs nobody has checked yet."""

    agent_id: str
    update_sha256: bytes
    num_examples: int
    leaf_hash: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """The round in progress.

    Attributes:
        started: The fact that opened it.
        cohort: The agents drawn.
        owing: Those of them that have not answered: what they send may still count.
        pending: Updates to be checked, by leaf index.
        pending_of: Their leaf indexes, by agent.
        contributions: Accepted contributions, by agent.
        closed: With MPC, the fact that closed the set of commitments.
        links: With MPC, leaf index of what a party says of the shares, by party.
        comparison: With MPC, the fact that had the updates compared, if they are.
        far: With MPC, which of them are far apart as each party says, by party.
        sealed: The fact that sealed it, if it is sealed.
        partials: With MPC, leaf index of a party's partial sum, by party.
        result_deadline_ms: With MPC, until when the aggregator alone may say what all
            parts come to; 0 while some are missing.
        told_at_ms: Stamp of the last block in which the timer spoke of this round since
            it was sealed; 0 before any.
    """

    started: e.RoundStarted
    cohort: frozenset[str]
    owing: PersistentSet[str]
    pending: PersistentMap[int, PendingUpdate] = field(default_factory=PersistentMap)
    pending_of: PersistentMap[str, int] = field(default_factory=PersistentMap)
    contributions: PersistentMap[str, Contribution] = field(
        default_factory=PersistentMap
    )
    closed: e.CommitmentsClosed | None = None
    links: Mapping[str, int] = field(default_factory=dict)
    comparison: e.ComparisonStarted | None = None
    far: Mapping[str, bytes] = field(default_factory=dict)
    sealed: e.RoundSealed | None = None
    partials: Mapping[str, int] = field(default_factory=dict)
    result_deadline_ms: int = 0
    told_at_ms: int = 0

    @property
    def deadline_ms(self) -> int | None:
        """Return the deadline of the present phase; None if it has none."""
        if self.sealed is not None:
            return self.result_deadline_ms or None
        return None if self.closed is not None else self.started.deadline_ms

    @property
    def is_result_late(self) -> bool:
        """Return whether the aggregator has had its time, once all parts were there."""
        return 0 < self.result_deadline_ms < self.told_at_ms

    @property
    def ordered(self) -> tuple[Contribution, ...]:
        """Return the accepted contributions in ascending order of agent_id."""
        return tuple(item for _, item in sorted(self.contributions.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsState:
    """What the rounds decider knows of a federation.

    Attributes:
        config: Its parameters, of the round in progress if there is one; None before
            the first leaf.
        change: Number of the change that they came with; 0 as founded.
        waiting: The last change, if it waits for the end of the round in progress.
        agents: Active agents.
        last_round: Number of the last round that started; 0 if none.
        last_requested_at_ms: Latest clock of a request for a round; -1 before any.
        version: Version of the current global model; 0 is the initial one.
        model: The current global model.
        current: The round in progress, if any.
        summed: With MPC, agents that are or were in a sealed set on the current global
            model: a sum over them was opened, or may have been.
        draw_size: Tree size of the checkpoint that the next cohort is drawn from; 0
            without ledger nodes.
        draw_entropy: What the last such checkpoint gave, 32 bytes; zeros at first.
        drawn_size: Its tree size; 0 at first.
    """

    config: e.FederationConfigured | None = None
    change: int = 0
    waiting: e.FederationChanged | None = None
    agents: PersistentSet[str] = field(default_factory=PersistentSet)
    last_round: int = 0
    last_requested_at_ms: int = -1
    version: int = 0
    model: e.BlobRef | None = None
    current: OpenRound | None = None
    summed: frozenset[str] = frozenset()
    draw_size: int = 0
    draw_entropy: bytes = bytes(32)
    drawn_size: int = 0


def has_all_links(state: RoundsState) -> bool:
    """Return whether every party has linked its shares of the round in progress."""
    return _has_all(state, None if state.current is None else state.current.links)


def has_all_comparisons(state: RoundsState) -> bool:
    """Return whether every party has said which updates are far apart."""
    return _has_all(state, None if state.current is None else state.current.far)


def has_all_partials(state: RoundsState) -> bool:
    """Return whether every party has given its part of the sum."""
    return _has_all(state, None if state.current is None else state.current.partials)


def _has_all(state: RoundsState, by_party: Mapping[str, object] | None) -> bool:
    config = state.config
    return (
        config is not None
        and by_party is not None
        and by_party.keys() == {party.name for party in list_parties(config)}
    )


def is_result_late(state: RoundsState) -> bool:
    """Return whether any party may now say what all parts of the sum come to."""
    current = state.current
    return current is not None and current.is_result_late


def find_drawable_agents(state: RoundsState) -> frozenset[str]:
    """Return who may be drawn for a round on the current global model."""
    return frozenset(state.agents) - state.summed


def is_drawable(state: RoundsState) -> bool:
    """Return whether the checkpoint that the next cohort is drawn from is known."""
    return state.drawn_size == state.draw_size


def decide(state: RoundsState, leaf: Sequenced) -> Sequence[e.RoundFact]:
    """Return what follows from a leaf; every rule of a round is here."""
    match leaf.event:
        case e.RoundRequested() as request:
            return [_start(state, request, leaf)]
        case e.UpdateSubmitted() as update:
            return _why_not(state, update, leaf)
        case e.UpdateCommitted() as update:
            return _with_closing(state, leaf, _why_not(state, update, leaf))
        case e.SharesLinked() | e.PartialAggregateSubmitted() as said:
            return _why_unexpected(state, said, leaf)
        case e.UpdatesCompared() as compared:
            return _with_closing(state, leaf, _compared(state, compared, leaf))
        case e.UpdateDeclined() as declined:
            return _with_closing(state, leaf, [_declined(state, declined, leaf)])
        case e.UpdatesChecked() as checked:
            return _with_closing(state, leaf, list(_checked(state, checked, leaf)))
        case e.PartyDeclined() as declined:
            return [_party_declined(state, declined, leaf)]
        case e.DeadlineReached() as reached:
            return _with_closing(state, leaf, _missing(state, reached, leaf))
        case e.RoundAbandonRequested() as request:
            return [_abandon(state, request, leaf)]
        case e.AgentRevoked() as revoked:
            return _with_closing(state, leaf, _revoked(state, revoked, leaf))
        case e.AggregateSubmitted() as claim:
            return [_publish(state, claim, leaf)]
        case _:
            return []


def evolve(
    state: RoundsState, leaf: Sequenced, facts: Sequence[e.RoundFact]
) -> RoundsState:
    """Fold a leaf and what followed from it; knows no rule."""
    return reduce(_evolve_fact, facts, _evolve_input(state, leaf, facts))


def _counts(event: e.LedgerEvent, facts: Sequence[e.RoundFact]) -> bool:
    """Return whether what somebody said counts: no fact that follows refuses it."""
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
        # Only the nodes of before would cosign the checkpoint that is waited for, and
        # their word no longer counts. This block's both cosign, those of before and
        # the new ones.
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
            return replace(state, agents=state.agents.discard(agent_id))
        case e.RoundRequested(requested_at_ms=at_ms):
            return replace(
                state, last_requested_at_ms=max(at_ms, state.last_requested_at_ms)
            )
        case e.UpdateSubmitted() | e.UpdateCommitted() as update if (
            current is not None and _counts(update, facts)
        ):
            blob = (
                update.update
                if isinstance(update, e.UpdateSubmitted)
                else update.commitments
            )
            pending = PendingUpdate(
                agent_id=update.agent_id,
                update_sha256=blob.sha256,
                num_examples=update.num_examples,
                leaf_hash=leaf.leaf_hash,
            )
            return replace(
                state,
                current=replace(
                    current,
                    owing=current.owing.discard(update.agent_id),
                    pending=current.pending.insert(leaf.leaf_index, pending),
                    pending_of=current.pending_of.insert(
                        update.agent_id, leaf.leaf_index
                    ),
                ),
            )
        case e.SharesLinked(party=party) as said if current is not None and _counts(
            said, facts
        ):
            links = {**current.links, party: leaf.leaf_index}
            return replace(state, current=replace(current, links=links))
        case e.UpdatesCompared(party=party, far=far) as compared if (
            current is not None and _counts(compared, facts)
        ):
            return replace(
                state, current=replace(current, far={**current.far, party: far})
            )
        case e.PartialAggregateSubmitted(party=party) as said if (
            current is not None and _counts(said, facts)
        ):
            partials = {**current.partials, party: leaf.leaf_index}
            state = replace(state, current=replace(current, partials=partials))
            return _with_result_deadline(state, leaf)
        case e.DeadlineReached(round=number) if (
            current is not None
            and current.sealed is not None
            and number == current.started.round
        ):
            told = replace(current, told_at_ms=leaf.sequenced_at_ms)
            return replace(state, current=told)
        case _:
            return state


def _evolve_fact(state: RoundsState, fact: e.RoundFact) -> RoundsState:
    current = state.current
    match fact:
        case e.RoundStarted():
            return replace(
                state,
                last_round=fact.round,
                current=_open(find_drawable_agents(state), fact),
            )
        case e.CommitmentsClosed() if current is not None:
            closed = replace(current, closed=fact)
            return replace(state, current=closed)
        case e.ComparisonStarted() if current is not None:
            return replace(state, current=replace(current, comparison=fact))
        case e.PartialRejected() if current is not None:
            partials = {
                party: index
                for party, index in current.partials.items()
                if party != fact.party
            }
            return replace(
                state,
                current=replace(
                    current,
                    partials=partials,
                    result_deadline_ms=0,
                ),
            )
        case e.RoundSealed() if current is not None:
            sealed = replace(current, sealed=fact)
            if _is_mpc(state):
                summed = state.summed.union(current.contributions)
                state = replace(state, summed=summed)
            return replace(state, current=sealed)
        case e.RoundAbandoned():
            return _end(state)
        case e.AggregatePublished():
            # A sum of nothing leaves the model where it is.
            has_moved = fact.model.sha256 != fact.base_model_sha256
            return _end(
                replace(
                    state,
                    version=state.version + 1,
                    model=fact.model,
                    summed=frozenset() if has_moved else state.summed,
                )
            )
        case e.ContributionAccepted() if current is not None:
            contribution = Contribution(
                agent_id=fact.agent_id,
                update_sha256=fact.update_sha256,
                num_examples=fact.num_examples,
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
        case _:
            return state


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
"""What an agent may say of itself."""
_FINAL = _DECLINES | WITHDRAWN | {Reason.NO_ANSWER}
"""Rejections after which an agent has no further answer to the round."""


def _is_mpc(state: RoundsState) -> bool:
    return state.config is not None and state.config.mpc is not None


def _with_result_deadline(state: RoundsState, leaf: Sequenced) -> RoundsState:
    """Once all parts are there, set how long the result is the aggregator's to say."""
    if not has_all_partials(state):
        return state
    assert state.current is not None, "it has all parts"
    assert state.config is not None, "it has a round"
    deadline_ms = leaf.sequenced_at_ms + state.config.round_duration_ms
    return replace(
        state, current=replace(state.current, result_deadline_ms=deadline_ms)
    )


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


def _open(agents: Iterable[str], started: e.RoundStarted) -> OpenRound:
    cohort = frozenset(agent_id for agent_id in agents if is_drawn(started, agent_id))
    return OpenRound(started=started, cohort=cohort, owing=PersistentSet(cohort))


def find_newest(state: RoundsState) -> tuple[e.FederationConfigured | None, int]:
    """Return the configuration of the next round, and the number of its change."""
    if state.waiting is None:
        return state.config, state.change
    return read_configuration(state.waiting), state.waiting.number


def _change(state: RoundsState, change: e.FederationChanged) -> RoundsState:
    """Note a change; it does not touch an open round."""
    if apply_change(*find_newest(state), change) is None:
        return state
    waiting = replace(state, waiting=change)
    return waiting if state.current is not None else _end(waiting)


def _end(state: RoundsState) -> RoundsState:
    """Return the state without a round; what waited for that is in force."""
    config, number = find_newest(state)
    return replace(state, current=None, config=config, change=number, waiting=None)


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
    drawable = find_drawable_agents(state)
    if len(drawable) < config.min_cohort:
        return refused(Reason.NOT_ENOUGH_AGENTS, _describe_few(state, config))
    entropy = (
        leaf.previous_block_hash if config.ledger_nodes is None else state.draw_entropy
    )
    seed = compute_cohort_seed(entropy, config.federation_id, request.round)
    cohort = draw_cohort(seed, drawable, config.cohort_size)
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
        **_cause(leaf),
    )


def _describe_few(state: RoundsState, config: e.FederationConfigured) -> str:
    num_summed = len(frozenset(state.agents) & state.summed)
    summed = (
        f"; {num_summed} more are in a sum over this base model already"
        if num_summed
        else ""
    )
    return (
        f"{len(find_drawable_agents(state))} active agents{summed}, min_cohort is "
        f"{config.min_cohort}"
    )


def _abandon(
    state: RoundsState, request: e.RoundAbandonRequested, leaf: Sequenced
) -> e.RoundAbandoned | e.RoundRefused:
    config, current = find_newest(state)[0], state.current
    assert config is not None, "admission lets nothing pass before the genesis"
    common = {"round": request.round, **_cause(leaf)}

    def refused(reason: Reason, detail: str) -> e.RoundRefused:
        return e.RoundRefused(reason=reason, detail=detail, **common)

    if current is None or current.started.round != request.round:
        return refused(Reason.WRONG_ROUND, "this round is not in progress")
    is_sealed = _is_mpc(state) and current.sealed is not None
    if is_sealed and has_all_partials(state):
        detail = "every party has given its part: the sum is public, and is published"
        return refused(Reason.ALL_PARTS_GIVEN, detail)
    if is_sealed and len(find_drawable_agents(state)) < config.min_cohort:
        # Nothing would come after it on this base model. It can still be completed.
        return refused(Reason.NOT_ENOUGH_AGENTS, _describe_few(state, config))
    return e.RoundAbandoned(
        reason=Reason.OPERATOR_ABANDONED, detail=request.explanation, **common
    )


def _party_declined(
    state: RoundsState, declined: e.PartyDeclined, leaf: Sequenced
) -> e.RoundAbandoned | e.ClaimRejected:
    """End the round that a party will not go on with: without it there is no sum."""
    current = state.current
    if (
        current is None
        or declined.round != current.started.round
        or current.closed is None
        or declined.party in current.partials
    ):
        detail = f"the round does not wait for party {declined.party}"
        return _unexpected(leaf, declined.round, detail)
    return e.RoundAbandoned(
        round=declined.round,
        reason=Reason.PARTY_DECLINED,
        detail=f"party {declined.party}: {declined.reason}: {declined.detail}",
        **_cause(leaf),
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
    if agent_id not in current.cohort:
        return Reason.NOT_IN_COHORT, "this agent was not drawn for the round"
    if (
        current.closed is not None
        or current.sealed is not None
        or leaf.sequenced_at_ms > current.started.deadline_ms
    ):
        return Reason.LATE, f"the deadline was {current.started.deadline_ms} ms"
    if agent_id not in current.owing:
        return Reason.DUPLICATE, "this agent has answered the round already"
    return None


def _why_not(
    state: RoundsState, update: e.UpdateSubmitted | e.UpdateCommitted, leaf: Sequenced
) -> list[e.RoundFact]:
    """Return the refusal of an update; none if it waits for its blob's check."""
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
        elif isinstance(update, e.UpdateCommitted) != (config.mpc is not None):
            problem = (
                Reason.WRONG_AGGREGATION,
                f"the federation's aggregation is {name_mode(config)}",
            )
        elif isinstance(update, e.UpdateCommitted) and (
            [share.party for share in update.shares]
            != [party.name for party in list_parties(config)]
        ):
            problem = (
                Reason.WRONG_PARTIES,
                "there must be one share for each party, in the federation's order",
            )
    if problem is None:
        return []
    return [_rejected(leaf, update.agent_id, update.round, *problem)]


def _missing(
    state: RoundsState, reached: e.DeadlineReached, leaf: Sequenced
) -> list[e.RoundFact]:
    """Reject who has not answered when the deadline has passed."""
    current = state.current
    if current is None:
        return []
    # The timer may be early or lie; the block's stamp is what everybody can check.
    number, deadline_ms = current.started.round, current.deadline_ms
    if (
        reached.round != number
        or deadline_ms is None
        or leaf.sequenced_at_ms <= deadline_ms
    ):
        return []
    detail = f"no answer by the deadline, {deadline_ms} ms"
    return [
        _rejected(leaf, agent_id, number, Reason.NO_ANSWER, detail)
        for agent_id in sorted(current.owing)
    ]


def _why_unexpected(
    state: RoundsState,
    said: e.SharesLinked | e.PartialAggregateSubmitted,
    leaf: Sequenced,
) -> list[e.RoundFact]:
    """Return the refusal of what a party says; none if the round waits for it."""
    current = state.current
    if current is not None and said.round == current.started.round:
        if isinstance(said, e.SharesLinked):
            is_private = current.started.privacy is not None
            is_expected = (
                current.closed is not None
                and bool(current.pending)
                and said.party not in current.links
                and (said.noise is not None) == is_private
            )
        else:
            sealed = current.sealed
            is_expected = (
                sealed is not None
                and said.party not in current.partials
                and said.num_contributions == sealed.num_contributions
                and said.num_examples == sealed.num_examples
            )
        if is_expected:
            return []
    detail = f"the round does not wait for this from party {said.party}"
    return [_unexpected(leaf, said.round, detail)]


def _why_no_comparison(state: RoundsState, compared: e.UpdatesCompared) -> str:
    """Return why a party's word on who is far apart does not count; empty if it does.

    Parties that computed together opened the same bits: who says others has not.
    """
    current = state.current
    if (
        current is None
        or compared.round != current.started.round
        or current.comparison is None
        or current.sealed is not None
        or compared.party in current.far
    ):
        return f"the round does not wait for this from party {compared.party}"
    try:
        parse_far(compared.far, num_agents=len(current.comparison.agent_ids))
    except MalformedBitsError as error:
        return f"party {compared.party}: {error}"
    for other, far in sorted(current.far.items()):
        if far != compared.far:
            return f"party {compared.party} has other bits than party {other}"
    return ""


def _compared(
    state: RoundsState, compared: e.UpdatesCompared, leaf: Sequenced
) -> list[e.RoundFact]:
    """Reject who is flagged, once every party has said who is far from whom."""
    problem = _why_no_comparison(state, compared)
    if problem:
        return [_unexpected(leaf, compared.round, problem)]
    after = evolve(state, leaf, [])
    current = after.current
    assert current is not None, "the round waits for this"
    assert current.comparison is not None, "the round waits for this"
    if not has_all_comparisons(after):
        return []
    agent_ids = current.comparison.agent_ids
    num_others = len(agent_ids) - 1
    far = parse_far(compared.far, num_agents=len(agent_ids))
    return [
        _rejected(
            leaf,
            agent_ids[index],
            compared.round,
            Reason.FAR_FROM_OTHERS,
            f"far from {int(far[index].sum())} of the {num_others} others",
        )
        for index in sorted(flag(far))
        if agent_ids[index] in current.contributions  # not revoked meanwhile
    ]


def _unexpected(leaf: Sequenced, number: int, detail: str) -> e.ClaimRejected:
    return e.ClaimRejected(
        round=number, reason=Reason.UNEXPECTED_CLAIM, detail=detail, **_cause(leaf)
    )


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
        or revoked.agent_id not in current.cohort
    ):
        return []
    number, reason = current.started.round, Reason.REVOKED_AGENT
    return [_rejected(leaf, revoked.agent_id, number, reason, revoked.explanation)]


def _checked(
    state: RoundsState, checked: e.UpdatesChecked, leaf: Sequenced
) -> Iterator[e.RoundFact]:
    current = state.current
    waiting: Mapping[int, PendingUpdate] = {}
    parties: Mapping[int, str] = {}
    if current is not None and current.started.round == checked.round:
        # In the clear there are no parties: nothing has to be linked.
        if has_all_links(state) and not checked.party:
            waiting = current.pending
        if _may_claim(state, checked.party):
            parties = {index: party for party, index in current.partials.items()}
    for result in checked.results:
        pending = waiting.get(result.leaf_index)
        party = parties.get(result.leaf_index)
        if party is not None and result.reason:
            yield e.PartialRejected(
                round=checked.round,
                party=party,
                partial_leaf_index=result.leaf_index,
                reason=result.reason,
                detail=result.detail,
                **_cause(leaf),
            )
        elif pending is None:
            detail = f"no update at leaf {result.leaf_index} waits for a check"
            yield _unexpected(leaf, checked.round, detail)
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


def _with_closing(
    state: RoundsState, leaf: Sequenced, facts: list[e.RoundFact]
) -> list[e.RoundFact]:
    """Return the facts, and the end of the round if it follows from them."""
    config = state.config
    assert config is not None, "admission lets nothing pass before the genesis"
    after = evolve(state, leaf, facts)
    current = after.current
    if current is None or current.sealed is not None:
        return facts
    is_committing = config.mpc is not None and current.closed is None
    num_possible = len(current.contributions) + len(current.pending)
    if current.owing:
        return facts
    if current.closed is not None:
        if current.pending and num_possible >= config.min_cohort:
            return facts
    elif current.pending and not is_committing:
        return facts
    number = current.started.round
    if num_possible < config.min_cohort:
        detail = f"{num_possible} contributions, min_cohort is {config.min_cohort}"
        return [
            *facts,
            e.RoundAbandoned(
                round=number,
                reason=Reason.NOT_ENOUGH_CONTRIBUTIONS,
                detail=detail,
                **_cause(leaf),
            ),
        ]
    if is_committing:
        return [*facts, _close(current, config, leaf)]
    comparison = get_comparison(config)
    if comparison is not None and current.comparison is None:
        started = e.ComparisonStarted(
            round=number,
            agent_ids=tuple(sorted(current.contributions)),
            far_threshold=comparison.far_threshold,
            **_cause(leaf),
        )
        return [*facts, started]
    if comparison is not None and not has_all_comparisons(after):
        return facts
    contributions = current.ordered
    return [
        *facts,
        e.RoundSealed(
            round=number,
            num_contributions=len(contributions),
            contributions_sha256=compute_contributions_digest(contributions),
            num_examples=sum(c.num_examples for c in contributions),
            base_model=current.started.base_model,
            fractional_bits=current.started.fractional_bits,
            num_parameters=current.started.num_parameters,
            **_cause(leaf),
        ),
    ]


def _close(
    current: OpenRound, config: e.FederationConfigured, leaf: Sequenced
) -> e.CommitmentsClosed:
    number = current.started.round
    committed = sorted(current.pending.values(), key=lambda p: p.agent_id)
    return e.CommitmentsClosed(
        round=number,
        num_commitments=len(committed),
        sum_seed=compute_sum_seed(
            config.federation_id, number, [pending.leaf_hash for pending in committed]
        ),
        **_cause(leaf),
    )


def compute_sum_seed(
    federation_id: str, round_number: int, leaf_hashes: Sequence[bytes]
) -> bytes:
    """Return the seed of the projection of a round's sum, 32 bytes.

    Args:
        federation_id: The federation.
        round_number: The round, from 1.
        leaf_hashes: Of the commitments in the closed set, in ascending order of
            agent_id. A leaf holds the digests of commitments and sealed shares, so all
            of them are fixed before the seed is known.

    Source: ADR 0033.
    """
    return hashlib.sha256(
        SUM_SEED_DOMAIN
        + round_number.to_bytes(8, "big")
        + b"".join(leaf_hashes)
        + federation_id.encode()
    ).digest()


def _may_claim(state: RoundsState, party: str) -> bool:
    """Return whether somebody may say what the parts of the sum are worth now.

    Args:
        state: The federation.
        party: The party that claims; empty if it is the aggregator.
    """
    return not party or is_result_late(state)


def _publish(
    state: RoundsState, claim: e.AggregateSubmitted, leaf: Sequenced
) -> e.AggregatePublished | e.ClaimRejected:
    sealed = None if state.current is None else state.current.sealed
    if (
        state.current is None
        or sealed is None
        or claim.round != sealed.round
        or claim.base_model_sha256 != sealed.base_model.sha256
        or claim.num_contributions != sealed.num_contributions
        or claim.num_examples != sealed.num_examples
        or not has_all_partials(state)
    ):
        return _unexpected(leaf, claim.round, "the claim does not fit a sealed round")
    if not _may_claim(state, claim.party):
        return _unexpected(leaf, claim.round, "it is the aggregator's turn still")
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
