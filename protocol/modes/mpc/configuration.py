"""The section of aggregation MPC, and rules for its events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from protocol.clipping import compute_min_norm_bound
from protocol.fields import (
    ADDRESS,
    NAME,
    REFUSAL_CODE,
    find_blob_problem,
    find_text_problem,
    find_training_problem,
)
from protocol.modes.mpc.far_pairs import (
    MAX_FAR_THRESHOLD,
    MIN_COMPARED,
    compute_num_pairs,
)
from protocol.modes.problem import Problem
from schemas import events as e
from schemas.reasons import Reason

MAX_PARTIES: Final = 16
MAX_NORM_BOUND: Final = 2**19 - 1
"""So every value of an update is below 2**19 in magnitude, as the norm proof needs."""
MAX_SECRET_PARAMETERS: Final = 2**24 - 2**13  # = 16,769,024
"""The limit of the norm proof's bounds against wraparound: see
`protocol.modes.mpc.norm_proof`."""
SEALING_KEY_SIZES: Final = frozenset({32, 1_216})
"""X25519 (RFC 7748), and ML-KEM-768 with X25519 (X-Wing)."""
MIN_SECRET_COHORT: Final = 2
"""The sum of one update is that update."""
MAX_COMPARED: Final = 256
"""Updates that the parties compare, each with each: the result has a bit per pair."""
MAX_FAR_SIZE_BYTES: Final = (compute_num_pairs(MAX_COMPARED) + 7) // 8


def get_mpc(config: e.FederationConfigured) -> e.Mpc:
    """Return the section of a federation with aggregation MPC."""
    assert config.mpc is not None, "an MPC round is of a federation with parties"
    return config.mpc


def list_parties(config: e.FederationConfigured) -> tuple[e.Party, ...]:
    """Return a federation's parties; none without secret shares."""
    return () if config.mpc is None else config.mpc.parties


def get_comparison(config: e.FederationConfigured) -> e.Comparison | None:
    """Return how a federation's parties compare updates; None if they don't."""
    return None if config.mpc is None else config.mpc.comparison


def find_configuration_problem(config: e.FederationConfigured) -> Problem | None:
    """Return what is wrong with the section; None if nothing."""
    for reason, find in (
        (Reason.INVALID_PARTIES, _find_parties_problem),
        (Reason.INVALID_COMPARISON, _find_comparison_problem),
    ):
        detail = find(config)
        if detail is not None:
            return reason, detail
    return None


def _find_parties_problem(config: e.FederationConfigured) -> str | None:
    mpc = get_mpc(config)
    parties = mpc.parties
    names = [party.name for party in parties]
    keys = {party.public_key for party in parties}
    sealing_keys = {party.sealing_key for party in parties}
    if not 2 <= len(parties) <= MAX_PARTIES:  # noqa: PLR2004  # one party sees it all
        return f"aggregation MPC needs 2 to {MAX_PARTIES} parties"
    if names != sorted(set(names)) or any(NAME.fullmatch(n) is None for n in names):
        return "parties must be in ascending order of name, 1 to 64 of a-z 0-9 . _ -"
    if len(keys) != len(parties) or len(sealing_keys) != len(parties):
        return "every party has keys of its own"
    if any(len(party.sealing_key) not in SEALING_KEY_SIZES for party in parties):
        return "a party's sealing_key must have 32 or 1,216 bytes"
    if any(
        party.address and ADDRESS.fullmatch(party.address) is None for party in parties
    ):
        return "a party's address must be host:port"
    if not 1 <= config.num_parameters <= MAX_SECRET_PARAMETERS:
        return f"num_parameters must be 1 to {MAX_SECRET_PARAMETERS} with MPC"
    smallest = compute_min_norm_bound(config.num_parameters)
    if not smallest <= mpc.norm_bound <= MAX_NORM_BOUND:
        return (
            f"norm_bound must be {smallest} to {MAX_NORM_BOUND} for "
            f"{config.num_parameters} parameters, or rounding alone exceeds it"
        )
    if config.min_cohort < MIN_SECRET_COHORT:
        return f"min_cohort must be at least {MIN_SECRET_COHORT} with aggregation MPC"
    return None


def _find_comparison_problem(config: e.FederationConfigured) -> str | None:
    """Return what is wrong with how the parties compare updates, if they do."""
    comparison, parties = get_comparison(config), list_parties(config)
    if comparison is None:
        return None
    if not 1 <= comparison.far_threshold <= MAX_FAR_THRESHOLD:
        return f"far_threshold must be 1 to {MAX_FAR_THRESHOLD}"
    if any(party.public_key == comparison.dealer_key for party in parties):
        return "comparing updates needs a dealer with a key of its own"
    addresses = {party.address for party in parties}
    if "" in addresses or len(addresses) != len(parties):
        return "to compare updates every party needs an address of its own"
    if config.min_cohort < MIN_COMPARED or config.cohort_size > MAX_COMPARED:
        return (
            f"cohorts must be of {MIN_COMPARED} to {MAX_COMPARED} agents to compare "
            "their updates"
        )
    return None


def _find_update_problem(update: e.UpdateCommitted) -> str | None:
    problem = find_training_problem(
        update.num_examples, update.encoding_loss, update.num_steps
    )
    if problem is not None:
        return problem
    if len(update.shares) > MAX_PARTIES:
        return f"at most {MAX_PARTIES} shares"
    sealed = (share.sealed for share in update.shares)
    return _find_blobs_problem(update.commitments, *sealed, update.proof)


def _find_links_problem(said: e.SharesLinked) -> str | None:
    noise = said.noise
    return _find_blobs_problem(
        said.links, *(() if noise is None else (noise.commitments, noise.proof))
    )


def _find_declined_problem(declined: e.PartyDeclined) -> str | None:
    problem = find_text_problem(declined.detail)
    if problem is None and REFUSAL_CODE.fullmatch(declined.reason) is None:
        return "reason must be 1 to 64 of A-Z and _"
    return problem


def _find_compared_problem(compared: e.UpdatesCompared) -> str | None:
    if len(compared.far) > MAX_FAR_SIZE_BYTES:
        return f"far has {len(compared.far)} bytes; at most {MAX_FAR_SIZE_BYTES}"
    return None


def _find_blobs_problem(*blobs: e.BlobRef) -> str | None:
    return next(filter(None, map(find_blob_problem, blobs)), None)


FIELDS: Final[Mapping[type, Callable[[Any], str | None]]] = {
    e.UpdateCommitted: _find_update_problem,
    e.SharesLinked: _find_links_problem,
    e.UpdatesCompared: _find_compared_problem,
    e.PartialAggregateSubmitted: lambda said: find_blob_problem(said.partial),
    e.PartyDeclined: _find_declined_problem,
}
"""Finds problems in the fields of this mode's events, by kind."""
