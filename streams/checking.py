"""The claim about a round's result, in any mode.

The aggregator makes it. Where a mode lets others do so when the aggregator is gone,
they make the same one: all it takes is on the ledger and in the store, and everybody
arrives at the same bytes.

The backlog of checks is on Kafka: a block is followed when the one before it is done,
so only one block's blobs are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from adapters.blobs import BlobStore
from protocol.model import Base, compute_max_model_size, compute_max_state_size
from protocol.modes.mode import Checker
from protocol.modes.problem import MAX_DETAIL_LENGTH, RoundError
from protocol.round_view import RoundView, list_parts
from schemas import events as e


def complete(
    view: RoundView, checker: Checker, store: BlobStore, *, party: str = ""
) -> e.UpdatesChecked | e.AggregateSubmitted:
    """Return a round's result, for the aggregator or a party: the model, or which of
    its parts are wrong.

    Raises:
        BlobError: the base model, or what the strategy carries, is gone.
        RoundError: something else is.
    """
    sealed = view.open.sealed
    assert sealed is not None, "it is complete"
    places = list_parts(view)
    wrong = {
        places[author]: problem
        for author, problem in checker.check_parts(view).items()
        if problem is not None
    }
    if wrong:
        return _reject(view, wrong, party)
    base = Base(
        store.fetch(
            sealed.base_model,
            max_size_bytes=compute_max_model_size(view.config.initial_model),
        ),
        None
        if sealed.base_state is None
        else store.fetch(
            sealed.base_state,
            max_size_bytes=compute_max_state_size(
                view.config.strategy, sealed.num_parameters
            ),
        ),
    )
    try:
        result = checker.compute(view, base)
    except RoundError as error:
        if error.blob is not None or not places:
            raise
        # Somebody lied, and nobody can say who. No part counts, so that the round can
        # end; summed agents stay summed.
        return _reject(view, dict.fromkeys(places.values(), error), party)
    return e.AggregateSubmitted(
        federation_id=sealed.federation_id,
        round=sealed.round,
        base_model_sha256=sealed.base_model.sha256,
        num_contributions=sealed.num_contributions,
        num_examples=sealed.num_examples,
        sum=store.store(result.sum_blob),
        model=store.store(result.model_blob),
        party=party,
        state=None if result.state_blob is None else store.store(result.state_blob),
    )


def _reject(
    view: RoundView, wrong: Mapping[int, RoundError], party: str
) -> e.UpdatesChecked:
    return e.UpdatesChecked(
        federation_id=view.config.federation_id,
        round=view.started.round,
        results=tuple(
            make_check(at, problem.reason, problem.detail)
            for at, problem in sorted(wrong.items())
        ),
        party=party,
    )


def make_check(leaf_index: int, reason: str, detail: str = "") -> e.UpdateCheck:
    """Return one result of a check, with a detail that fits."""
    # A detail may quote the blob, which an agent fills: a hundred of them must fit a
    # claim, whatever they quote.
    ascii_only = detail.encode("ascii", "backslashreplace").decode()
    return e.UpdateCheck(
        leaf_index=leaf_index, reason=reason, detail=ascii_only[:MAX_DETAIL_LENGTH]
    )
