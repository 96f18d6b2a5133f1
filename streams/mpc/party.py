"""A party: opens the shares that are sealed to it, links them, adds them up.

It follows the ledger with the rounds decider's own functions and says two things about
every MPC round: its links, once the set is closed, and its part of the sum, once the
round is sealed; and in between, if the federation compares updates, which of them are
far apart. Before any of it leaves the process, the party's memory must permit it
(`protocol.modes.mpc.party_memory`): so whoever runs sequencer and deciders gains
nothing by asking. If it does not, the party says `PartyDeclined`, which ends the round.
If the aggregator is gone it also says what all parts of the sum amount to.

A killed party reads the ledger again and says the same bytes: everything it says
follows from blobs, its sealing key and the ledger. With the first block after its start
it repeats what a round still waits for: so a party whose word was refused is fixed and
then restarted.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from adapters import heartbeats, telemetry
from adapters.ahead import Ahead
from adapters.blobs import BlobError, BlobStore
from adapters.kafka import Publisher
from adapters.modes.mpc.identity import PartyIdentity, load_party, party_directory
from adapters.modes.mpc.memory import PartyLog
from adapters.round_blobs import Checking, make_fetch
from adapters.settings import load_settings
from protocol.envelope import compute_fact_id
from protocol.fields import MAX_TEXT_LENGTH
from protocol.log import OpenedLeaf
from protocol.modes.mpc.checker import (
    MpcShape,
    Proven,
    RoundVerifier,
    encode_links,
    encode_partial,
    link_share,
    open_shares,
    read_seed,
)
from protocol.modes.mpc.far_pairs import compute_comparison_id, encode_far
from protocol.modes.mpc.party_memory import (
    Compared,
    Linked,
    PartyRefusesError,
    RefusalCode,
    Summed,
)
from protocol.modes.mpc.round import MpcRound, Owed, see
from protocol.modes.mpc.round_checker import MpcChecker
from protocol.modes.mpc.share_link import Link, SumMasks, compute_party_sum
from protocol.modes.mpc.shares import Share
from protocol.modes.mpc.sketches import Sketch
from protocol.modes.problem import UNFORESEEN, RoundError, explain_unforeseen
from protocol.round_view import WatchedRounds, watch
from protocol.strategies.arithmetic import verify_arithmetic
from protocol.tensors import MalformedBlobError
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from streams.app import Service, make_service_with_key
from streams.checking import complete
from streams.following import Follower, follow_ledger
from streams.mpc.comparing import Comparer, make_link_plan
from streams.mpc.robustness import run_find_far

log = logging.getLogger(__name__)


Answer: TypeAlias = (
    e.SharesLinked
    | e.PartialAggregateSubmitted
    | e.PartyDeclined
    | e.UpdatesChecked
    | e.AggregateSubmitted
)
"""What a party says about a round, as its log has it."""


class Work(NamedTuple):
    """A round that waits for a party, or has something to verify.

    Attributes:
        secret: The round.
        traceparent: The trace it belongs to.
        is_owed: Whether it waits.
    """

    secret: MpcRound
    traceparent: str
    is_owed: bool = True


VERIFIED_TOGETHER: Final = 8
"""Proofs, as they come: a batch costs less than one by one."""
LINKED_TOGETHER: Final = 16
"""Shares in memory at a time: 8 bytes per parameter each."""


def make_step(
    name: str,
) -> Callable[[WatchedRounds, OpenedLeaf], tuple[WatchedRounds, list[Work]]]:
    """Return how a party follows: what each leaf makes it owe. Pure."""

    def follow_step(
        state: WatchedRounds, leaf: OpenedLeaf
    ) -> tuple[WatchedRounds, list[Work]]:
        after = watch(state, leaf.sequenced)
        secret, before = see(after.view), see(state.view)
        if secret is None:
            return after, []
        owed = secret.owed_by_party(name)
        was_owed = None if before is None else before.owed_by_party(name)
        is_owed = owed not in {None, was_owed}
        if is_owed or isinstance(leaf.sequenced.event, e.UpdateCommitted):
            return after, [Work(secret, leaf.traceparent, is_owed)]
        return after, []

    return follow_step


def find_owed(name: str, state: WatchedRounds, traceparent: str) -> list[Work]:
    """Return what a round waits for from a party, whenever that began. Pure."""
    secret = see(state.view)
    if secret is None or secret.owed_by_party(name) is None:
        return []
    return [Work(secret, traceparent)]


class Party:
    """What one party computes and remembers; every method runs in a thread.

    Args:
        name: Its name in the federations that it serves.
        identity: Its keys.
        memory: What it has said.
        store: Where blobs are.
        min_cohort: The fewest contributions that it sums, whatever a federation says.
        listen_host: Where other parties reach it to compare, if not at its address.
    """

    def __init__(
        self,
        name: str,
        identity: PartyIdentity,
        memory: PartyLog,
        store: BlobStore,
        *,
        min_cohort: int,
        listen_host: str | None = None,
    ) -> None:
        self._name = name
        self._identity = identity
        self._memory = memory
        self._store = store
        self._fetch = make_fetch(store.fetch)
        self._min_cohort = min_cohort
        self._listen_host = listen_host
        self._checking = Checking(store.fetch, Ahead(os.cpu_count() or 1, "verify"))
        self._mask_key = identity.sealing_key.derive_mask_key()

    def do(self, work: list[Work]) -> list[tuple[e.Event, str]]:
        """Return what rounds wait for from this party, each with its trace."""
        said: list[tuple[e.Event, str]] = []
        for secret, traceparent, is_owed in work:
            heartbeats.do(f"working on round {secret.view.started.round}")
            if not is_owed:
                self.verify(secret)
                continue
            with telemetry.span(
                "process", topics.LEDGER, kind=telemetry.CONSUMER, parent=traceparent
            ) as current:
                answer = self.answer(secret)
                if answer is not None:
                    said.append((answer, current))
        heartbeats.do(heartbeats.FOLLOWING)
        return said

    def verify(self, secret: MpcRound) -> None:
        """Verify the proofs that have come, if any, while other agents still work."""
        if not self._is_mine(secret):
            return
        checker = self._get_checker(secret)
        new = checker.verifier.list_unproven(secret, sorted(secret.provable))
        if len(new) < VERIFIED_TOGETHER:
            return
        try:
            checker.prepare(secret.view, new)
        except UNFORESEEN:  # it matters only once the round waits for this party
            log.exception("round %d: proofs not verified", secret.started.round)

    def _is_mine(self, secret: MpcRound) -> bool:
        mine = self._name, self._identity.key.public_key
        return mine in {(p.name, p.public_key) for p in secret.mpc.parties}

    def answer(self, secret: MpcRound) -> Answer | None:
        """Return what the round waits for from this party; None if it says nothing."""
        if not self._is_mine(secret):
            return None
        try:
            if secret.sealed is None:
                return self._link(secret)
            if secret.owed_by_party(self._name) is Owed.RESULT:
                log.warning(
                    "round %d: the aggregator is silent; this party completes it",
                    secret.started.round,
                )
                checker = self._get_checker(secret)
                return complete(secret.view, checker, self._store, party=self._name)
            return self._sum(secret, secret.sealed)
        except PartyRefusesError as error:
            log.error("round %d: %s", secret.started.round, error)  # noqa: TRY400
            return self.decline(secret, error)
        except (BlobError, RoundError, MalformedBlobError) as error:
            # A share that was there when it was linked, or what an aggregator has
            # published. Other rounds go on.
            log.error("round %d has no sum: %s", secret.started.round, error)  # noqa: TRY400
        except UNFORESEEN:
            log.exception("round %d: this party says nothing", secret.started.round)
        return None

    def _get_checker(self, secret: MpcRound) -> MpcChecker:
        checker = self._checking.get(secret.view)
        assert isinstance(checker, MpcChecker), "it is a round of this mode"
        return checker

    def decline(self, secret: MpcRound, error: PartyRefusesError) -> e.PartyDeclined:
        """Return what ends a round that this party refuses to continue."""
        return e.PartyDeclined(
            federation_id=secret.config.federation_id,
            round=secret.started.round,
            party=self._name,
            reason=error.code,
            detail=error.detail[:MAX_TEXT_LENGTH],
        )

    def compare(self, secret: MpcRound) -> e.UpdatesCompared | None:
        """Find out with the other parties which updates of a round are far apart.

        Raises:
            LinkError: another party is away.
            RobustnessError: another party computes something else.
            PartyRefusesError: the memory does not permit it.
            RoundError: a share that was there when it was linked is gone.
        """
        config, comparison = secret.config, secret.comparison
        assert comparison is not None, "it is comparing"
        key = self._identity.key
        plan = make_link_plan(
            config, secret.genesis, key.public_key, key.seed, self._listen_host
        )
        if plan is None or secret.mpc.parties[plan.rank].name != self._name:
            return None
        committed = [secret.get_committed(name) for name in comparison.agent_ids]
        shape = MpcShape.of(config)
        sketch = Sketch.expand(
            secret.compute_sketch_seed(), num_values=shape.num_values
        )
        asked = Compared(
            federation_id=comparison.federation_id,
            base_model=secret.started.base_model.sha256,
            updates=tuple(c.event.commitments.sha256 for c in committed),
            far_threshold=comparison.far_threshold,
        )
        far = run_find_far(
            plan,
            np.stack(
                [
                    sketch.compute(
                        self._open(secret, c.event, shape, was_linked=True).values
                    )
                    for c in committed
                ]
            ),
            comparison.far_threshold,
            context=compute_comparison_id(
                compute_fact_id(comparison), asked.updates, comparison.far_threshold
            ),
            permit=lambda: self._memory.permit_comparison(
                asked, min_cohort=self._compute_min_cohort(secret)
            ),
        )
        log.info("round %d: compared %d", comparison.round, len(committed))
        return e.UpdatesCompared(
            federation_id=comparison.federation_id,
            round=comparison.round,
            party=self._name,
            far=encode_far(far),
        )

    def _link(self, secret: MpcRound) -> e.SharesLinked:
        agents = sorted(secret.waiting)
        fewest = self._compute_min_cohort(secret)
        if len(agents) < fewest:
            # It would not sum them: better said before anybody has given a part.
            detail = f"{len(agents)} updates; this party sums at least {fewest}"
            raise PartyRefusesError(RefusalCode.COHORT_TOO_SMALL, detail)
        checker = self._get_checker(secret)
        verifier = checker.verifier
        entries: dict[str, Link | RoundError] = {}
        proven: list[Proven] = []
        # Only what this party itself found proved is linked: so its result follows from
        # the proof.
        verifier.forget_absent()
        checker.prepare(secret.view, agents)
        for agent_id in agents:
            found = verifier.get_proven(secret, agent_id)
            if isinstance(found, RoundError):
                entries[agent_id] = found
            else:
                proven.append(found)
        for begin in range(0, len(proven), LINKED_TOGETHER):
            some = proven[begin : begin + LINKED_TOGETHER]
            self._link_some(secret, some, verifier, entries)
        log.info("round %d: linked %d shares", secret.started.round, len(entries))
        return e.SharesLinked(
            federation_id=secret.config.federation_id,
            round=secret.started.round,
            party=self._name,
            links=self._store.store(encode_links(entries)),
        )

    def _link_some(
        self,
        secret: MpcRound,
        proven: list[Proven],
        verifier: RoundVerifier,
        entries: dict[str, Link | RoundError],
    ) -> None:
        opened: list[tuple[Proven, Share]] = []
        for item in proven:
            update = item.committed.event
            try:
                opened.append((item, self._open(secret, update, verifier.shape)))
            except RoundError as error:
                entries[update.agent_id] = error
            except UNFORESEEN as error:
                log.exception("round %d: %s", update.round, update.agent_id)
                entries[update.agent_id] = explain_unforeseen(error)
        if not opened:
            return
        refused = self._memory.permit_links(
            Linked(
                federation_id=secret.config.federation_id,
                base_model=secret.started.base_model.sha256,
                updates=tuple(
                    (
                        item.committed.event.agent_id,
                        item.committed.event.commitments.sha256,
                        item.digest,
                    )
                    for item, _ in opened
                ),
            )
        )
        for place, (item, share) in enumerate(opened):
            update = item.committed.event
            if place in refused:
                code, why = refused[place]
                detail = f"{code}: {why}"
                entries[update.agent_id] = RoundError(Reason.BAD_SHARE, detail)
                log.error("round %d: %s: %s", update.round, update.agent_id, detail)
                continue
            entries[update.agent_id] = link_share(
                item,
                share,
                verifier.get_sum_projection(secret),
                self._get_masks(secret),
            )

    def _get_masks(self, secret: MpcRound) -> SumMasks:
        assert secret.closed is not None, "there is no sum to mask for before"
        return SumMasks(self._mask_key, secret.closed.sum_seed)

    def _sum(
        self, secret: MpcRound, sealed: e.RoundSealed
    ) -> e.PartialAggregateSubmitted:
        shape = MpcShape.of(secret.config)
        masks = self._get_masks(secret)
        self._memory.permit_sum(
            Summed.of(sealed, secret.contributions),
            min_cohort=self._compute_min_cohort(secret),
        )

        def shares() -> Iterator[tuple[Share, NDArray[np.uint64], int]]:
            for committed in secret.accepted():
                update = committed.event
                share = self._open(secret, update, shape, was_linked=True)
                seed = read_seed(secret, update.agent_id, self._fetch)
                yield share, masks.expand(seed), update.num_examples

        party_sum = compute_party_sum(shares(), shape=shape.shares)
        log.info("round %d: summed %d", sealed.round, sealed.num_contributions)
        return e.PartialAggregateSubmitted(
            federation_id=sealed.federation_id,
            round=sealed.round,
            party=self._name,
            num_contributions=sealed.num_contributions,
            num_examples=sealed.num_examples,
            partial=self._store.store(encode_partial(party_sum)),
        )

    def _compute_min_cohort(self, secret: MpcRound) -> int:
        """Return the fewest that this party sums: its own minimum, or the round's."""
        return max(self._min_cohort, secret.config.min_cohort)

    def _open(
        self,
        secret: MpcRound,
        update: e.UpdateCommitted,
        shape: MpcShape,
        *,
        was_linked: bool = False,
    ) -> Share:
        (share,) = (share for share in update.shares if share.party == self._name)
        sealed = self._fetch(share.sealed, shape.max_sealed_size)
        return open_shares(
            secret.genesis,
            update,
            self._name,
            sealed,
            self._identity.sealing_key,
            shape,
            was_linked=was_linked,
        )


def make_party(
    name: str, *, min_cohort: int = 2, listen_host: str | None = None
) -> Service:
    """Return a party's Faust app.

    Args:
        name: Its name.
        min_cohort: The fewest contributions that it sums, at least 2.
        listen_host: Where other parties reach it to compare, if not at its address.

    Raises:
        KeyFileError: it has no keys.
        PartyLogError: it lost its memory, or another process runs it.
    """
    settings = load_settings()
    settings.demand_minio()
    verify_arithmetic()  # it may complete a round
    directory = party_directory(settings, name)
    identity = load_party(directory)
    memory = PartyLog(directory)
    service = make_service_with_key(f"party-{name}", settings, identity.key)
    party = Party(
        name,
        identity,
        memory,
        BlobStore(settings),
        min_cohort=min_cohort,
        listen_host=listen_host,
    )
    publisher = Publisher(settings, service.registry)
    follower = Follower(
        service,
        WatchedRounds,
        WatchedRounds(),
        make_step(name),
        find_owed=partial(find_owed, name),
        directory=directory,
    )

    def compare(secret: MpcRound, traceparent: str) -> None:
        with telemetry.span(
            "compare", "round", kind=telemetry.INTERNAL, parent=traceparent
        ) as current:
            found: e.UpdatesCompared | e.PartyDeclined | None
            try:
                found = party.compare(secret)
            except PartyRefusesError as error:
                found = party.decline(secret, error)
                publisher.publish(
                    found, identity.key, secret.genesis, traceparent=current
                )
                raise
            if found is not None:
                publisher.publish(
                    found, identity.key, secret.genesis, traceparent=current
                )

    comparer = Comparer(compare)

    def look(event: Any) -> None:
        comparer.look(see(follower.get_state(event.key).view), event)

    follow_ledger(service, follower, party.do, look)
    return service
