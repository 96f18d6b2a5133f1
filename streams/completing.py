"""What all parts of an MPC round's sum come to: the claim that ends it.

The aggregator makes it; if it is gone any party does, so that a sum that is public is
never lost: a round that is asked for once more would be a second sum. What it takes is
on the ledger and in the store, and everybody comes to the same bytes.
"""

from __future__ import annotations

from typing import Final

from adapters.blobs import BlobStore
from protocol.model import RoundResult, compute_max_model_size
from protocol.modes.mpc.checker import RoundVerifier
from protocol.modes.mpc.round import MpcRound
from protocol.modes.mpc.share_link import PartySum
from protocol.modes.problem import RoundError
from schemas import events as e

MAX_DETAIL_LENGTH: Final = 200


def complete(
    secret: MpcRound, verifier: RoundVerifier, store: BlobStore, *, party: str = ""
) -> e.UpdatesChecked | e.AggregateSubmitted:
    """Return what follows from all parts of a sum: the model, or whose part is wrong.

    Args:
        secret: The round, with all parts.
        verifier: The round's.
        store: Where blobs are.
        party: Who claims it; empty for the aggregator.

    Raises:
        BlobError: the base model is gone.
        RoundError: commitments are gone.
    """
    sealed = secret.sealed
    assert sealed is not None, "it has all parts"
    parts = {
        member.name: verifier.find_partial_problem(secret, member.name)
        for member in secret.mpc.parties
    }
    wrong = {name: part for name, part in parts.items() if isinstance(part, RoundError)}
    if wrong:
        return _reject(secret, wrong, party)
    base = store.fetch(
        sealed.base_model,
        max_size_bytes=compute_max_model_size(secret.config.initial_model),
    )
    good = [part for part in parts.values() if isinstance(part, PartySum)]
    try:
        result = verifier.compute_result(secret, good, base)
    except RoundError as error:
        if error.blob is not None:
            raise
        # Somebody lied, and nobody can say who. None of them counts, so that the round
        # can end; who was summed stays summed.
        return _reject(secret, dict.fromkeys(parts, error), party)
    return make_claim(sealed, result, store, party=party)


def make_claim(
    sealed: e.RoundSealed, result: RoundResult, store: BlobStore, *, party: str = ""
) -> e.AggregateSubmitted:
    """Store what a sealed round came to, and return the claim about it."""
    return e.AggregateSubmitted(
        federation_id=sealed.federation_id,
        round=sealed.round,
        base_model_sha256=sealed.base_model.sha256,
        num_contributions=sealed.num_contributions,
        num_examples=sealed.num_examples,
        sum=store.store(result.sum_blob),
        model=store.store(result.model_blob),
        party=party,
    )


def _reject(
    secret: MpcRound, wrong: dict[str, RoundError], party: str
) -> e.UpdatesChecked:
    checks = (
        make_check(secret.partials[name].leaf_index, problem.reason, problem.detail)
        for name, problem in wrong.items()
    )
    return e.UpdatesChecked(
        federation_id=secret.config.federation_id,
        round=secret.started.round,
        results=tuple(sorted(checks, key=lambda check: check.leaf_index)),
        party=party,
    )


def make_check(leaf_index: int, reason: str, detail: str = "") -> e.UpdateCheck:
    """Return one result of a check, with a detail that fits."""
    # A detail may quote the blob, which is an agent's to fill: a hundred of them must
    # fit a claim, whatever they quote.
    plain = detail.encode("ascii", "backslashreplace").decode()
    return e.UpdateCheck(
        leaf_index=leaf_index, reason=reason, detail=plain[:MAX_DETAIL_LENGTH]
    )
