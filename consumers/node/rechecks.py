"""What a ledger node checks in the blobs of rounds before it attests a block.

Where a mode's blobs reveal nothing of an update, a node that can read the bucket checks
the aggregator's claims: which answers count, which parts of a result are wrong, and
that the published sum and model follow. The checks are the audit's, those of the mode
(`protocol.modes.mode.Checker`); a node without the bucket attests what follows from the
log alone.

The outcome has two sides, since blobs are outside the log:

- A claim is *false* if blobs that are there, with the digests that the log promises,
  prove it. Everybody who has them finds the same. Such a block is not attested.
- Absence proves nothing: a missing or different blob may have been there when the
  aggregator looked, and others may have it. The node waits for a block's blobs,
  `PATIENCE_S` for all of them; then the claim is *unchecked*, and the node says so.

For the same reason a claim about the store at that time is never false: that a blob was
missing, too long or different. Nor is a claim that a share is bad, as long as it covers
all whose proofs are good: a party's links may have been missing. A liar gains nothing
by either, as anybody can be left out for a missing blob. The audit is stricter, since
its errors cost nobody finality.

Proofs are verified in the block that brings them, so that the claim only compares.
Blocks are checked one at a time, in the thread that replays them.

Deliberately not here: modes whose updates not every node may read; which updates are
far apart, which nobody can compute again; the store's copies of the published sum and
model, as their digests say it all.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from adapters import alive
from adapters.blobs import BlobError
from adapters.round_blobs import Checking, make_fetch
from consumers.audit.blobs import FetchBlob
from consumers.audit.claims import (
    AnswersClaim,
    Claim,
    PartClaim,
    ResultClaim,
    read_claims,
)
from protocol.model import (
    Base,
    RoundResult,
    compute_max_model_size,
    compute_max_state_size,
)
from protocol.modes import get_mode
from protocol.modes.mode import Answer, OneByOne
from protocol.modes.problem import RoundError
from protocol.replay import Replayed
from protocol.round_view import RoundView, follow
from protocol.strategies.arithmetic import verify_arithmetic
from protocol.tensors import MalformedBlobError
from protocol.validation import STORE_REASONS
from schemas import events as e
from schemas.events import BlobRef
from schemas.reasons import Reason

log = logging.getLogger(__name__)

PATIENCE_S: Final = 20.0
"""How long one block waits for blobs. Well below `ledger_node.MAX_PATIENCE_S`, for
which a node busy with a block keeps an epoch alive."""
RECENT_S: Final = 600.0
"""Blobs of older blocks are not waited for: a reader of an old log would wait often."""
RETRY_S: Final = 0.5
FETCH_S: Final = 10.0
"""How long a fetch may take, plus a second for each `MIN_RATE`."""
MIN_RATE: Final = 2**20
"""Bytes a second; a slower store is as good as away."""
MAX_HANGING: Final = 8
"""Abandoned fetches still running. This many mean that the store is away."""

_NEEDS_LINKS: Final = frozenset({"", Reason.SHARES_DIFFER})
"""Claims about an agent that need every party's links to be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rechecked:
    """The outcome for a block.

    Attributes:
        num_true: Claims that were checked and hold: agents, parts, sums.
        falsehoods: Claims proven false, as text.
        unchecked: Claims that could not be checked, and why.
    """

    num_true: int = 0
    falsehoods: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


NOTHING_CLAIMED: Final = Rechecked()


class RecheckTally:
    """The outcome for all blocks since the start."""

    def __init__(self) -> None:
        self._num_true = 0
        self._num_false = 0
        self._num_unchecked = 0
        self._last_unchecked = ""

    def add(self, rechecked: Rechecked, height: int) -> None:
        """Count a block, and log what was not checked."""
        self._num_true += rechecked.num_true
        self._num_false += len(rechecked.falsehoods)
        self._num_unchecked += len(rechecked.unchecked)
        for detail in rechecked.unchecked:
            self._last_unchecked = f"block {height}: {detail}"
            log.warning("not re-checked: %s", self._last_unchecked)

    def describe(self) -> dict[str, int | str]:
        """Return the counts, for JSON."""
        return {
            "true": self._num_true,
            "false": self._num_false,
            "unchecked": self._num_unchecked,
            "last_unchecked": self._last_unchecked,
        }


class PatientFetcher:
    """Fetches blobs for one block after another, waiting for them a while.

    A blob that did not come is not requested again in the same block. Whatever the
    store does, hanging included, costs only time, and bounded time.

    Args:
        fetch: Fetches a blob; called from threads of its own.
        now_s: A clock that never steps back, seconds.
    """

    def __init__(self, fetch: FetchBlob, now_s: Callable[[], float]) -> None:
        self._fetch = fetch
        self._now_s = now_s
        self._deadline_s = 0.0
        self._is_away = False
        self._absent: dict[bytes, BlobError] = {}
        self._hanging: list[threading.Thread] = []
        self._is_stopping = threading.Event()

    def begin(self, patience_s: float) -> None:
        """Begin a block, whose blobs together may be waited for this long."""
        self._deadline_s = self._now_s() + patience_s
        self._is_away = False
        self._absent = {}

    def stop(self) -> None:
        """Stop waiting, from any thread."""
        self._is_stopping.set()

    def is_absent(self, ref: BlobRef) -> bool:
        """Return whether a blob did not come, in this block."""
        return ref.sha256 in self._absent

    def fetch(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        """Do as `adapters.blobs.BlobStore.fetch`, patiently."""
        if ref.size_bytes > max_size_bytes:  # the log itself says so
            detail = f"{ref.size_bytes} bytes; at most {max_size_bytes} are allowed"
            raise BlobError(Reason.OVERSIZED_BLOB, detail)
        known = self._absent.get(ref.sha256)
        while known is None:
            answer = self._try(ref, max_size_bytes)
            if isinstance(answer, bytes):
                return answer
            is_late = self._is_away or self._now_s() >= self._deadline_s
            if is_late or self._is_stopping.wait(RETRY_S):
                known = self._absent[ref.sha256] = answer
        raise known

    def _try(self, ref: BlobRef, max_size_bytes: int) -> bytes | BlobError:
        self._hanging = [thread for thread in self._hanging if thread.is_alive()]
        if self._is_away or len(self._hanging) >= MAX_HANGING:
            return BlobError(Reason.MISSING_BLOB, "the store does not answer")
        answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put(self._fetch(ref, max_size_bytes=max_size_bytes))
            except Exception as error:  # noqa: BLE001  # the store's client has many
                answers.put(error)

        # Not from a pool: a hanging thread must not keep the process.
        thread = alive.start_thread(work, "recheck-fetch")
        answer = self._wait(answers, FETCH_S + ref.size_bytes / MIN_RATE)
        if thread.is_alive():
            self._hanging.append(thread)
        if isinstance(answer, bytes | BlobError):
            return answer
        # Once time is up, every other blob would take as long.
        self._is_away = self._now_s() >= self._deadline_s
        detail = f"the store fails: {type(answer).__name__}: {answer}"
        return BlobError(Reason.MISSING_BLOB, detail)

    def _wait(
        self, answers: queue.SimpleQueue[bytes | Exception], timeout_s: float
    ) -> bytes | Exception:
        left_s = timeout_s
        while left_s > 0 and not self._is_stopping.is_set():
            try:
                return answers.get(timeout=RETRY_S)
            except queue.Empty:
                left_s -= RETRY_S
        return TimeoutError("it took too long")


class _Verdict(StrEnum):
    TRUE = "TRUE"
    FALSE = "FALSE"
    UNCHECKED = "UNCHECKED"


_Found: TypeAlias = tuple[_Verdict, str]


class Rechecker:
    """Checks the claims in blocks. One block at a time, in whichever thread.

    Args:
        fetch: Fetches blobs.
        clock: Seconds since 1970-01-01 UTC; only decides what is waited for.
        now_s: A clock that never steps back, seconds.

    Raises:
        ArithmeticModeError: this process does not compute as IEEE 754 says.
    """

    def __init__(
        self,
        fetch: FetchBlob,
        clock: Callable[[], float] = time.time,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        verify_arithmetic()
        self._blobs = PatientFetcher(fetch, now_s)
        self._fetch = make_fetch(self._blobs.fetch)
        self._clock = clock
        self._checking = Checking(self._blobs.fetch, OneByOne())
        self._model = (b"", b"")  # digest and bytes of the last one computed
        self._state = (b"", b"")  # the same, of what the strategy carries

    def stop(self) -> None:
        """Stop waiting for blobs, from any thread; what is unchecked stays so."""
        self._blobs.stop()

    def check(
        self,
        replayed: Replayed,
        views: Sequence[RoundView | None],
    ) -> Rechecked:
        """Check a block's claims; raises nothing, whatever the store and blobs do.

        Args:
            replayed: The block, without faults.
            views: What `follow_block` returns for it.
        """
        age_s = self._clock() - replayed.block.sequenced_at_ms / 1_000
        self._blobs.begin(PATIENCE_S if age_s <= RECENT_S else 0)
        found: list[_Found] = []
        # The last one is after the last leaf.
        for leaf, view in zip(replayed.leaves, views, strict=False):
            if view is not None and get_mode(view.config).is_for_nodes:
                index = leaf.opened.sequenced.leaf_index
                place = f"leaf {index}, round {view.started.round}"
                found += [
                    (verdict, f"{place}: {detail}")
                    for claim in read_claims(leaf.opened.sequenced.event, leaf.facts)
                    for verdict, detail in self._try(claim, view)
                ]
        self._prepare(replayed, views[-1])
        by_verdict = {
            verdict: tuple(detail for this, detail in found if this is verdict)
            for verdict in _Verdict
        }
        return Rechecked(
            num_true=len(by_verdict[_Verdict.TRUE]),
            falsehoods=by_verdict[_Verdict.FALSE],
            unchecked=by_verdict[_Verdict.UNCHECKED],
        )

    def _try(self, claim: Claim, view: RoundView) -> list[_Found]:
        try:
            match claim:
                case AnswersClaim():
                    return list(self._check_answers(claim.reasons, view))
                case PartClaim():
                    return [self._check_part(claim, view)]
                case ResultClaim():
                    return list(self._check_result(claim.published, view))
        except Exception as error:
            # Our own fault, or this machine's: it proves nothing.
            log.exception("a claim cannot be re-checked")
            return [(_Verdict.UNCHECKED, f"{type(error).__name__}: {error}")]

    def _prepare(self, replayed: Replayed, view: RoundView | None) -> None:
        """Check the answers that a block brought; missing ones follow later."""
        if view is None or not get_mode(view.config).is_for_nodes:
            self._checking.forget()
            return
        if not view.is_ready:
            return
        events = [leaf.opened.sequenced.event for leaf in replayed.leaves]
        if any(isinstance(event, e.RoundStarted) for event in events):
            new = sorted(view.open.pending_of)
        else:
            came = {event.agent_id for event in events if isinstance(event, Answer)}
            new = sorted(name for name in came if name in view.open.pending_of)
        if not new:
            return
        self._blobs.begin(0)
        try:
            self._checking.get(view).prepare(view, new)
        except Exception:
            log.exception("answers cannot be checked")

    def _check_answers(
        self, reasons: Mapping[str, str], view: RoundView
    ) -> Iterator[_Found]:
        knowable = [a for a in sorted(reasons) if reasons[a] not in STORE_REASONS]
        for agent_id in sorted(reasons.keys() - knowable):
            yield _cannot_know(agent_id, reasons[agent_id])
        if not knowable:
            return
        had_links = not _NEEDS_LINKS.isdisjoint(reasons.values())
        found = self._checking.get(view).check(view, knowable)
        for agent_id, problem in found.items():
            claimed = reasons[agent_id]
            true = "" if problem is None else str(problem.reason)
            if problem is not None and self._is_absent(problem):
                yield _Verdict.UNCHECKED, f"{agent_id}: {problem}"
            elif claimed == true:
                yield _Verdict.TRUE, agent_id
            elif claimed == Reason.BAD_SHARE and true in _NEEDS_LINKS and not had_links:
                yield _cannot_know(agent_id, claimed)
            else:
                detail = (
                    f"the aggregator says of {agent_id}: {claimed or 'it counts'}; "
                    f"proofs and links show: {problem or 'it counts'}"
                )
                yield _Verdict.FALSE, detail

    def _check_part(self, claim: PartClaim, view: RoundView) -> _Found:
        author, claimed = claim.author, claim.reason
        if claimed in STORE_REASONS:
            return _cannot_know(author, claimed)
        problem = self._checking.get(view).check_refused(view, author, claimed)
        if problem is None:
            found = "it is what its links add up to"
        elif self._is_absent(problem):
            return _Verdict.UNCHECKED, f"the part of {author}: {problem}"
        elif problem.reason == claimed:
            return _Verdict.TRUE, author
        else:
            found = str(problem)
        return (
            _Verdict.FALSE,
            f"the aggregator says of the part of {author}: {claimed}; {found}",
        )

    def _check_result(
        self, published: e.AggregatePublished, view: RoundView
    ) -> Iterator[_Found]:
        found: list[_Found] = []
        for author, problem in self._checking.get(view).check_parts(view).items():
            if problem is None:
                continue
            if self._is_absent(problem):
                detail = f"the part of {author}: {problem}"
                found.append((_Verdict.UNCHECKED, detail))
            else:
                detail = f"a sum is published, but the part of {author} is wrong"
                found.append((_Verdict.FALSE, f"{detail}: {problem}"))
        if found:
            yield from found
            return
        result = self._compute(view)
        if not isinstance(result, RoundResult):
            yield result
            return
        # Without the one there is no other: the decider would have refused the claim.
        for name, ref, blob in (
            ("sum", published.sum, result.sum_blob),
            ("model", published.model, result.model_blob),
            ("state of the strategy", published.state, result.state_blob),
        ):
            if ref is None or blob is None:
                continue
            digest = hashlib.sha256(blob).digest()
            if (ref.sha256, ref.size_bytes) == (digest, len(blob)):
                yield _Verdict.TRUE, name
            else:
                detail = (
                    f"the published {name} is {ref.sha256.hex()}, {ref.size_bytes} "
                    f"bytes; {digest.hex()}, {len(blob)} bytes, is what follows"
                )
                yield _Verdict.FALSE, detail
        self._model = hashlib.sha256(result.model_blob).digest(), result.model_blob
        if result.state_blob is not None:
            digest = hashlib.sha256(result.state_blob).digest()
            self._state = digest, result.state_blob

    def _compute(self, view: RoundView) -> RoundResult | _Found:
        sealed = view.open.sealed
        assert sealed is not None, "only a sealed round is published"
        digest, base = self._model
        try:
            if digest != sealed.base_model.sha256:
                size = compute_max_model_size(view.config.initial_model)
                base = self._fetch(sealed.base_model, size)
            whole = Base(base, self._get_state(view, sealed))
            return self._checking.get(view).compute(view, whole)
        except RoundError as error:
            if self._is_absent(error):
                return _Verdict.UNCHECKED, f"the sum: {error}"
            return _Verdict.FALSE, f"a sum is published, but none follows: {error}"
        except MalformedBlobError as error:
            detail = f"a model is published, but what it follows from is bad: {error}"
            return _Verdict.FALSE, detail

    def _get_state(self, view: RoundView, sealed: e.RoundSealed) -> bytes | None:
        """Return what the strategy carries: nearly always the last one computed."""
        if sealed.base_state is None:
            return None
        digest, state = self._state
        if digest == sealed.base_state.sha256:
            return state
        size = compute_max_state_size(view.config.strategy, sealed.num_parameters)
        return self._fetch(sealed.base_state, size)

    def _is_absent(self, problem: RoundError) -> bool:
        """Return whether the problem is only a blob that is not there.

        For a blob too large by the log's own word, its presence does not matter.
        """
        return problem.blob is not None and self._blobs.is_absent(problem.blob.ref)


def _cannot_know(name: str, claimed: str) -> _Found:
    detail = f"{name}: {claimed} is the aggregator's word: what was in the store then"
    return _Verdict.UNCHECKED, f"{detail} cannot be known"


def follow_block(view: RoundView | None, replayed: Replayed) -> list[RoundView | None]:
    """Return the round in progress before each leaf, and after the last.

    None where there is none, or nodes do not check its blobs.
    """
    views = [view]
    for leaf in replayed.leaves:
        config = leaf.rounds.config
        is_looked_at = config is not None and get_mode(config).is_for_nodes
        views.append(
            follow(views[-1], leaf.rounds, leaf.opened.sequenced)
            if is_looked_at
            else None
        )
    return views
