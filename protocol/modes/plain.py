"""Aggregation PLAIN: agents submit updates, the aggregator checks and sums them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from protocol.encoding import UpdateRefusedError, parse_update
from protocol.fields import find_blob_problem, find_training_problem
from protocol.model import (
    Base,
    RoundResult,
    compute_max_update_size,
    compute_result,
)
from protocol.modes.mode import SEALED, MapAll, Mode, Phase
from protocol.modes.problem import (
    UNFORESEEN,
    Fetch,
    RoundError,
    explain_unforeseen,
)
from schemas import events as e
from schemas.reasons import Reason

if TYPE_CHECKING:
    from protocol.round_view import RoundView


class PlainChecker:
    """Checks one round; see `protocol.modes.mode.Checker`."""

    def __init__(self, _view: RoundView, fetch: Fetch, map_all: MapAll) -> None:
        self._fetch = fetch
        self._map_all = map_all

    def prepare(self, view: RoundView, agent_ids: Sequence[str]) -> None:
        """Do nothing: an update can be judged when it arrives."""

    def check(
        self, view: RoundView, agent_ids: Sequence[str]
    ) -> Mapping[str, RoundError | None]:
        """Return which blobs are no updates for this model."""
        size = view.started.num_parameters

        def check_one(agent_id: str) -> RoundError | None:
            try:
                blob = self._get_update(view, agent_id)
                parse_update(blob, num_parameters=size)
            except RoundError as error:
                return error
            except UpdateRefusedError as error:
                return RoundError(Reason(error.reason), error.detail)
            except UNFORESEEN as error:
                return explain_unforeseen(error)
            return None

        found = self._map_all(check_one, agent_ids)
        return dict(zip(agent_ids, found, strict=True))

    def check_parts(self, _view: RoundView) -> Mapping[str, RoundError | None]:
        """Return nothing: a sum has no parts."""
        return {}

    def check_refused(
        self, _view: RoundView, _author: str, _reason: str
    ) -> RoundError | None:
        """Return nothing: there is no part to refuse."""

    def compute(self, view: RoundView, base: Base) -> RoundResult:
        """Return the sum of the accepted updates, and the model that follows."""
        sealed = view.open.sealed
        assert sealed is not None, "only a sealed round has a sum"
        agent_ids = [c.agent_id for c in view.contributions]
        weights = [c.num_examples for c in view.contributions]
        blobs = self._map_all(lambda agent: self._get_update(view, agent), agent_ids)
        try:
            return compute_result(
                view.config.strategy,
                sealed,
                weights,
                base.model,
                blobs,
                parameters=view.config.strategy_parameters,
                state_blob=base.state,
            )
        except UpdateRefusedError as error:
            raise RoundError(Reason(error.reason), error.detail) from error

    def _get_update(self, view: RoundView, agent_id: str) -> bytes:
        update = view.answers[agent_id].event
        assert isinstance(update, e.UpdateSubmitted), "no other answer counts"
        size = compute_max_update_size(view.started.num_parameters)
        return self._fetch(update.update, size)


def _find_update_problem(update: e.UpdateSubmitted) -> str | None:
    problem = find_training_problem(
        update.num_examples, update.encoding_loss, update.num_steps
    )
    return problem or find_blob_problem(update.update)


PLAIN: Final = Mode(
    name="plain",
    answer=e.UpdateSubmitted,
    get_blob=lambda update: update.update,
    fields={e.UpdateSubmitted: _find_update_problem},
    awaits_checks=True,
    makes_checker=PlainChecker,
    result_shows_answers=True,
    phases=(Phase(name=SEALED, begins=e.RoundSealed),),
)
