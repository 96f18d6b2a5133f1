"""The phases of aggregation MPC.

An agent commits to its update, proves its norm and shares it among the parties in one
message; it may then go. The set is *closed* when every member of the cohort has
answered or been rejected; its hash is the seed of the sum's projection, so nobody knew
it when choosing. Then:

- Each party links its shares; once all have, the aggregator says which commitments
  count.
- If the federation compares updates (ADR 0020), the parties find out which of those
  that count are far apart. Once all have said the same bits, flagged agents are
  rejected, and the rest is sealed.
- Every party sums the sealed set. A part that contradicts its party's own links is
  rejected, which names the party; it may give another. A round whose party is gone
  waits.
- Once all parts are on the log, the round is completed, never abandoned (ADR 0032). If
  the aggregator does not say the result within a round's duration, any party may. If
  the parts do not open the commitments, all are rejected.
- A sealed round is abandoned only if enough agents are left to draw. A party whose
  memory forbids it to continue ends the round at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from protocol.decider import Sequenced
from protocol.facts import name_cause, refuse_claim, reject
from protocol.modes.mode import SEALED, Checker, MapAll, Mode, Phase, find_missing
from protocol.modes.mpc.configuration import (
    FIELDS,
    find_configuration_problem,
    get_comparison,
    list_parties,
)
from protocol.modes.mpc.far_pairs import MalformedBitsError, flag, parse_far
from protocol.modes.problem import Fetch, Problem
from protocol.round_state import (
    OpenRound,
    RoundsState,
    describe_few,
    find_drawable_agents,
    find_newest,
)
from schemas import events as e
from schemas.reasons import Reason

if TYPE_CHECKING:
    from protocol.round_view import RoundView

Said: TypeAlias = (
    e.SharesLinked
    | e.UpdatesCompared
    | e.PartialAggregateSubmitted
    | e.PartyDeclined
    | e.PartialRejected
)

SUM_SEED_DOMAIN: Final = b"folkmoot/sum-projection/v1\n"


def list_party_names(config: e.FederationConfigured) -> tuple[str, ...]:
    """Return the names of a federation's parties, in order."""
    return tuple(party.name for party in list_parties(config))


def get_closed(current: OpenRound) -> e.CommitmentsClosed | None:
    """Return the fact that closed the set of commitments, if it is closed."""
    fact = current.begun.get(CLOSED.name)
    return fact if isinstance(fact, e.CommitmentsClosed) else None


def get_comparison_started(current: OpenRound) -> e.ComparisonStarted | None:
    """Return the fact that started the comparison of updates, if any."""
    fact = current.begun.get(COMPARISON.name)
    return fact if isinstance(fact, e.ComparisonStarted) else None


def _is_checkable(config: e.FederationConfigured, current: OpenRound) -> bool:
    return not find_missing(CLOSED, config, current)


def _make_checker(view: RoundView, fetch: Fetch, map_all: MapAll) -> Checker:
    # Code that only follows rounds does without the curves.
    from protocol.modes.mpc.round_checker import MpcChecker  # noqa: PLC0415

    return MpcChecker(view, fetch, map_all)


def has_all_comparisons(state: RoundsState) -> bool:
    """Return whether every party has said which updates are far apart."""
    return _has_all(state, COMPARISON)


def has_all_partials(state: RoundsState) -> bool:
    """Return whether every party has given its part of the sum."""
    return _has_all(state, PARTS)


def _has_all(state: RoundsState, phase: Phase) -> bool:
    config, current = state.config, state.current
    return (
        config is not None
        and current is not None
        and not find_missing(phase, config, current)
    )


def compute_sum_seed(
    federation_id: str, round_number: int, leaf_hashes: Sequence[bytes]
) -> bytes:
    """Return the seed of the projection of a round's sum, 32 bytes.

    Args:
        federation_id: The federation.
        round_number: The round, from 1.
        leaf_hashes: Leaf hashes of the commitments in the closed set, in ascending
            order of agent_id. A leaf holds the digests of commitments and sealed
            shares, so all of them are fixed before the seed is known.

    Source: ADR 0033.
    """
    return hashlib.sha256(
        SUM_SEED_DOMAIN
        + round_number.to_bytes(8, "big")
        + b"".join(leaf_hashes)
        + federation_id.encode()
    ).digest()


def _find_answer_problem(
    config: e.FederationConfigured, update: e.UpdateCommitted
) -> Problem | None:
    if tuple(share.party for share in update.shares) == list_party_names(config):
        return None
    detail = "there must be one share for each party, in the federation's order"
    return Reason.WRONG_PARTIES, detail


def _is_hopeless(state: RoundsState) -> bool:
    """Return whether the round can only get too few contributions."""
    config, current = state.config, state.current
    assert config is not None, "it has a round"
    assert current is not None, "it has a round"
    return current.num_possible < config.min_cohort


def _close(state: RoundsState, leaf: Sequenced) -> e.CommitmentsClosed:
    config, current = state.config, state.current
    assert config is not None, "it has a round"
    assert current is not None, "it has a round"
    number = current.started.round
    committed = sorted(current.pending.values(), key=lambda p: p.agent_id)
    hashes = [pending.leaf_hash for pending in committed]
    return e.CommitmentsClosed(
        round=number,
        num_commitments=len(committed),
        sum_seed=compute_sum_seed(config.federation_id, number, hashes),
        **name_cause(leaf),
    )


def _find_links_problem(
    state: RoundsState, said: e.SharesLinked, _leaf: Sequenced
) -> str:
    current = state.current
    assert current is not None, "it is in a phase of it"
    is_private = current.started.privacy is not None
    is_expected = bool(current.pending) and (said.noise is not None) == is_private
    return "" if is_expected else _refuse(said)


def _refuse(said: Said) -> str:
    return f"the round does not wait for this from party {said.party}"


def _get_party(said: Said) -> str:
    return said.party


def _is_checked(state: RoundsState) -> bool:
    assert state.current is not None, "it is in a phase of it"
    return not state.current.pending or _is_hopeless(state)


def _compare(state: RoundsState, leaf: Sequenced) -> e.ComparisonStarted:
    config, current = state.config, state.current
    assert config is not None, "it has a round"
    assert current is not None, "it has a round"
    comparison = get_comparison(config)
    assert comparison is not None, "or this phase is skipped"
    return e.ComparisonStarted(
        round=current.started.round,
        agent_ids=tuple(sorted(current.contributions)),
        far_threshold=comparison.far_threshold,
        **name_cause(leaf),
    )


def _find_comparison_problem(
    state: RoundsState, compared: e.UpdatesCompared, _leaf: Sequenced
) -> str:
    """Return why a party's comparison does not count.

    Parties that computed together opened the same bits: one with others did not.
    """
    current = state.current
    assert current is not None, "it is in a phase of it"
    started = get_comparison_started(current)
    assert started is not None, "it is in this phase"
    try:
        parse_far(compared.far, num_agents=len(started.agent_ids))
    except MalformedBitsError as error:
        return f"party {compared.party}: {error}"
    for other, far in sorted(current.said.get(COMPARISON.collects, {}).items()):
        if far != compared.far:
            return f"party {compared.party} has other bits than party {other}"
    return ""


def _flag(
    state: RoundsState, compared: e.UpdatesCompared, leaf: Sequenced
) -> list[e.RoundFact]:
    """Reject flagged agents, once every party has said which updates are far apart."""
    if not has_all_comparisons(state):
        return []
    assert state.current is not None, "it is in a phase of it"
    started = get_comparison_started(state.current)
    assert started is not None, "it is in this phase"
    num_others = len(started.agent_ids) - 1
    far = parse_far(compared.far, num_agents=len(started.agent_ids))
    return [
        reject(
            leaf,
            started.agent_ids[index],
            compared.round,
            Reason.FAR_FROM_OTHERS,
            f"far from {int(far[index].sum())} of the {num_others} others",
        )
        for index in sorted(flag(far))
        if started.agent_ids[index] in state.current.contributions  # not revoked
    ]


def _is_compared(state: RoundsState) -> bool:
    return has_all_comparisons(state) or _is_hopeless(state)


def _find_part_problem(
    state: RoundsState, said: e.PartialAggregateSubmitted, _leaf: Sequenced
) -> str:
    assert state.current is not None, "it is in a phase of it"
    sealed = state.current.sealed
    assert sealed is not None, "it is in this phase"
    is_of_this_set = (
        said.num_contributions == sealed.num_contributions
        and said.num_examples == sealed.num_examples
    )
    return "" if is_of_this_set else _refuse(said)


def _find_part(current: OpenRound, leaf_index: int) -> str | None:
    parts = current.said.get(PARTS.collects, {})
    return next((party for party, at in parts.items() if at == leaf_index), None)


def _refuse_part(
    party: str, result: e.UpdateCheck, checked: e.UpdatesChecked, leaf: Sequenced
) -> e.PartialRejected:
    return e.PartialRejected(
        round=checked.round,
        party=party,
        partial_leaf_index=result.leaf_index,
        reason=result.reason,
        detail=result.detail,
        **name_cause(leaf),
    )


def _find_abandon_problem(state: RoundsState) -> Problem | None:
    config, _ = find_newest(state)
    assert config is not None, "it has a round"
    assert state.current is not None, "it has a round"
    if state.current.sealed is None:
        return None
    if has_all_partials(state):
        detail = "every party has given its part: the sum is public, and is published"
        return Reason.ALL_PARTS_GIVEN, detail
    if len(find_drawable_agents(state)) < config.min_cohort:
        # Nothing could follow on this base model. It can still be completed.
        return Reason.NOT_ENOUGH_AGENTS, describe_few(state, config)
    return None


def _list_helpers(config: e.FederationConfigured) -> dict[str, bytes]:
    comparison = get_comparison(config)
    return {} if comparison is None else {"dealer": comparison.dealer_key}


def _party_declined(
    state: RoundsState, declined: e.PartyDeclined, leaf: Sequenced
) -> list[e.RoundFact]:
    """End the round that a party refuses to continue: without it there is no sum."""
    current = state.current
    if (
        current is None
        or declined.round != current.started.round
        or CLOSED.name not in current.begun
        or declined.party in current.said.get(PARTS.collects, {})
    ):
        detail = f"the round does not wait for party {declined.party}"
        return [refuse_claim(leaf, declined.round, detail)]
    return [
        e.RoundAbandoned(
            round=declined.round,
            reason=Reason.PARTY_DECLINED,
            detail=f"party {declined.party}: {declined.reason}: {declined.detail}",
            **name_cause(leaf),
        )
    ]


CLOSED: Final = Phase(
    name="closed",
    begins=e.CommitmentsClosed,
    begin=_close,
    awaits=e.SharesLinked,
    collects="links",
    debtors=list_party_names,
    debtor="party",
    get_author=_get_party,
    refuse=_refuse,
    find_problem=_find_links_problem,
    is_over=_is_checked,
)
COMPARISON: Final = Phase(
    name="comparison",
    begins=e.ComparisonStarted,
    begin=_compare,
    awaits=e.UpdatesCompared,
    collects="far",
    debtors=list_party_names,
    debtor="party",
    get_author=_get_party,
    refuse=_refuse,
    is_skipped=lambda config: get_comparison(config) is None,
    find_problem=_find_comparison_problem,
    note=lambda compared, _leaf: compared.far,
    conclude=_flag,
    is_over=_is_compared,
)
PARTS: Final = Phase(
    name=SEALED,
    begins=e.RoundSealed,
    awaits=e.PartialAggregateSubmitted,
    collects="partials",
    debtors=list_party_names,
    debtor="party",
    get_author=_get_party,
    refuse=_refuse,
    find_problem=_find_part_problem,
    retracted_by=e.PartialRejected,
    limits_result=True,
)
MPC: Final = Mode(
    name="mpc",
    answer=e.UpdateCommitted,
    get_blob=lambda update: update.commitments,
    find_answer_problem=_find_answer_problem,
    find_configuration_problem=find_configuration_problem,
    tightens=("norm_bound",),
    list_speakers=lambda config: {p.name: p.public_key for p in list_parties(config)},
    list_helpers=_list_helpers,
    fields=FIELDS,
    awaits_checks=False,
    is_checkable=_is_checkable,
    makes_checker=_make_checker,
    needs_leaf=True,
    is_for_nodes=True,
    phases=(CLOSED, COMPARISON, PARTS),
    find_part=_find_part,
    refuse_part=_refuse_part,
    get_part_blob=lambda said: said.partial,
    sums_once=True,
    find_abandon_problem=_find_abandon_problem,
    others={e.PartyDeclined: (_get_party, _party_declined)},
)
