"""The checker of aggregation MPC: norm proofs, links, parts of the sum, the result.

Multiplying points, which is most of the work, releases Python's lock. A batch of proofs
costs less than the proofs one by one, so each thread gets one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from protocol.model import Base, RoundResult
from protocol.modes.mode import MapAll
from protocol.modes.mpc.checker import RoundVerifier
from protocol.modes.mpc.round import MpcRound
from protocol.modes.mpc.share_link import PartySum
from protocol.modes.problem import Fetch, RoundError
from protocol.round_view import RoundView

MIN_TOGETHER: Final = 2
"""Proofs in a batch: fewer are not worth a thread."""


class MpcChecker:
    """Checks one round; see `protocol.modes.mode.Checker`."""

    def __init__(self, view: RoundView, fetch: Fetch, map_all: MapAll) -> None:
        self.verifier = RoundVerifier(MpcRound(view), fetch)
        self._map_all = map_all
        self._parts: (
            tuple[dict[str, bytes], Mapping[str, PartySum | RoundError]] | None
        ) = None

    def prepare(self, view: RoundView, agent_ids: Sequence[str]) -> None:
        """Verify norm proofs; the outcome is remembered."""
        if not view.started_leaf_hash:
            return  # they are about that leaf
        secret, verifier = MpcRound(view), self.verifier
        new = verifier.list_unproven(secret, agent_ids)
        num_batches = min(self._map_all.num_threads, len(new) // MIN_TOGETHER) or 1
        batches = [new[first::num_batches] for first in range(num_batches)]
        for _ in self._map_all(
            lambda batch: verifier.verify_proofs(secret, batch), batches
        ):
            pass

    def check(
        self, view: RoundView, agent_ids: Sequence[str]
    ) -> Mapping[str, RoundError | None]:
        """Return what proofs and all parties' links show."""
        self.prepare(view, agent_ids)
        return self.verifier.find_reasons(MpcRound(view), agent_ids)

    def check_parts(self, view: RoundView) -> Mapping[str, RoundError | None]:
        """Return whose part of the sum differs from what its own links add up to."""
        parts = self._get_parts(MpcRound(view))
        return {
            name: part if isinstance(part, RoundError) else None
            for name, part in parts.items()
        }

    def check_refused(
        self, view: RoundView, author: str, reason: str
    ) -> RoundError | None:
        """Return what is wrong with a party's part of the sum, if anything."""
        return self.verifier.find_claim_problem(MpcRound(view), author, reason)

    def compute(self, view: RoundView, base: Base) -> RoundResult:
        """Return the sum that opens the commitments, and the model that follows."""
        secret = MpcRound(view)
        good: list[PartySum] = []
        for part in self._get_parts(secret).values():
            if isinstance(part, RoundError):
                raise part
            good.append(part)
        return self.verifier.compute_result(secret, good, base)

    def _get_parts(self, secret: MpcRound) -> Mapping[str, PartySum | RoundError]:
        known = {name: part.blob.sha256 for name, part in secret.partials.items()}
        if self._parts is None or self._parts[0] != known:
            found = {
                party.name: self.verifier.find_partial_problem(secret, party.name)
                for party in secret.mpc.parties
            }
            self._parts = known, found
            if any(isinstance(p, RoundError) and p.blob for p in found.values()):
                self._parts = None  # it may be there next time
            return found
        return self._parts[1]
