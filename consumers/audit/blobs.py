"""The blobs behind a log: fetched, checked, and every round computed again.

Blobs are fetched a few ahead and added up one at a time: a round of a hundred agents
needs the memory of a few updates.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from adapters.ahead import Ahead
from adapters.blobs import BlobError
from adapters.round_blobs import Checking, make_fetch
from adapters.wording import counted
from consumers.audit.modes import SECOND_OPINIONS
from consumers.audit.report import Finding, FindingCode, Place, Report
from protocol.aggregation import sum_from_blob
from protocol.exchanged_state import model_from_blob
from protocol.model import (
    MAX_ONNX_SIZE_BYTES,
    Base,
    RoundResult,
    compute_max_model_size,
    compute_max_state_size,
    compute_max_sum_size,
)
from protocol.modes import get_mode
from protocol.modes.problem import RoundError
from protocol.round_view import RoundView, list_parts
from protocol.strategies.arithmetic import ArithmeticModeError, verify_arithmetic
from protocol.tensors import MalformedBlobError
from schemas.events import AggregatePublished, BlobRef, RoundSealed
from schemas.reasons import Reason


class FetchBlob(Protocol):
    """`adapters.blobs.BlobStore.fetch`, or anything with the same contract."""

    def __call__(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        """Return a blob's bytes, digest verified.

        Raises:
            BlobError: it is missing, or not what the reference promises.
        """
        ...


class BlobAuditor:
    """Checks blobs in the background and rounds in the foreground.

    Args:
        fetch: Fetches a blob; called from several threads.
        report: The report whose counts it raises.
        add: Takes a finding.
        jobs: Blobs fetched concurrently.
        initial_model: The federation's, if an earlier audit checked it.
        asks_again: Whether another library opens sums again.
    """

    def __init__(
        self,
        fetch: FetchBlob,
        report: Report,
        add: Callable[[Finding], None],
        jobs: int,
        initial_model: BlobRef | None = None,
        *,
        asks_again: bool = False,
    ) -> None:
        verify_arithmetic()
        self._fetch_any = fetch
        self._trouble: Exception | None = None
        self._report = report
        self._add = add
        self._asks_again = asks_again
        self._window = jobs
        self._ahead = Ahead(jobs, "audit-fetch")
        self._tasks: deque[tuple[Future[int], Callable[[Future[int]], None]]] = deque()
        self._model: tuple[bytes, bytes] = (b"", b"")  # digest and bytes of the last
        self._state: tuple[bytes, bytes] = (b"", b"")  # of what the strategy carries
        # Without a genesis there are no models.
        self._max_model_size = (
            0 if initial_model is None else compute_max_model_size(initial_model)
        )
        self._checking = Checking(self._fetch_now, self._ahead)

    def _fetch(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        try:
            return self._fetch_any(ref, max_size_bytes=max_size_bytes)
        except BlobError:
            raise
        except Exception as error:
            self._trouble = error
            raise

    def _demand_cause(self, error: Exception) -> None:
        """Re-raise an error that says nothing about what was to be computed."""
        if self._trouble is not None or isinstance(
            error, MemoryError | ArithmeticModeError
        ):
            raise error

    def close(self) -> None:
        """End the threads; what was not checked stays unchecked."""
        self._ahead.close()

    def check_initial_model(self, ref: BlobRef, size: int, place: Place) -> None:
        """Check that the first model is there and has its size."""
        self._max_model_size = compute_max_model_size(ref)
        blob = self._get(ref, self._max_model_size, place, "the initial model")
        if blob is None:
            return
        try:
            found = model_from_blob(blob).num_integers
        except MalformedBlobError as error:
            problem = str(error)
        else:
            if found == size:
                self._model = (ref.sha256, blob)
                return
            problem = counted(found, "parameter")
        self._add(
            Finding(
                code=FindingCode.INVALID_MODEL,
                place=place,
                message="the initial model is not one of this federation",
                expected=f"a model of {counted(size, 'parameter')}",
                found=problem,
                blob_sha256=ref.sha256.hex(),
            )
        )

    def check_onnx(self, ref: BlobRef, place: Place) -> None:
        """Check that an exported model is there."""

        def work() -> int:
            return len(self._fetch(ref, max_size_bytes=MAX_ONNX_SIZE_BYTES))

        self._later(work, lambda done: self._settle(done, ref, place, "the ONNX file"))

    def check_answers(
        self, view: RoundView, reasons: Mapping[str, str], place: Place
    ) -> None:
        """Check again what the aggregator said about answers.

        Args:
            view: The round, just before the claim.
            reasons: The reason given, by agent; empty if the answer counts.
            place: Where it was claimed.
        """
        # A bad answer that counts shows when the result is computed again.
        is_shown_later = get_mode(view.config).result_shows_answers
        agents = sorted(a for a in reasons if reasons[a] or not is_shown_later)
        bad: dict[bytes, RoundError] = {}  # one blob may concern all agents
        for agent_id, problem in self._check(view, agents):
            claimed, found = (
                reasons[agent_id],
                "" if problem is None else problem.reason,
            )
            if claimed and _is_unknowable(claimed, problem):
                self._report.num_claims_unchecked += 1
                continue
            if claimed:
                self._report.num_claims_checked += 1
            if claimed == found:
                continue
            # If it is too large, the log itself says so, whatever the store holds.
            is_known = bool(claimed) and found == Reason.OVERSIZED_BLOB
            if problem is not None and problem.blob is not None and not is_known:
                bad[problem.blob.ref.sha256] = problem
                continue
            self._add(
                Finding(
                    code=FindingCode.CLAIM_CONTRADICTED
                    if claimed
                    else FindingCode.INVALID_UPDATE,
                    place=place,
                    message=f"the aggregator's word on {agent_id} is not what the "
                    "round's blobs show",
                    expected="it counts" if problem is None else str(problem),
                    found=claimed or "it counts",
                    blob_sha256=_hex(_get_blob(view, agent_id)),
                )
            )
        for problem in bad.values():
            self._add(_bad_blob_finding(problem, place))

    def check_part(
        self, view: RoundView, author: str, reason: str, place: Place
    ) -> None:
        """Check what an aggregator said about a part of the result that it refused."""
        problem = self._checking.get(view).check_refused(view, author, reason)
        if _is_unknowable(reason, problem):
            self._report.num_claims_unchecked += 1
            return
        self._report.num_claims_checked += 1
        if problem is not None and problem.reason == reason:
            return
        if problem is not None and problem.blob is not None:
            self._add(_bad_blob_finding(problem, place))
            return
        self._add(
            Finding(
                code=FindingCode.CLAIM_CONTRADICTED,
                place=place,
                message=f"the part of {author} was rejected for what it does not show",
                expected="it counts" if problem is None else str(problem),
                found=reason,
                blob_sha256=_hex_of_part(view, author),
            )
        )

    def check_result(
        self, view: RoundView, published: AggregatePublished, place: Place
    ) -> None:
        """Compute a round again and compare it with what was published."""
        sealed = view.open.sealed
        assert sealed is not None, "only a sealed round is published"
        result = self._compute(view, sealed, place)
        self._compare_round(view, sealed, result, published, place)
        if self._asks_again and result is not None:
            self._ask_again(view, result, published, place)

    def _ask_again(
        self,
        view: RoundView,
        result: RoundResult,
        published: AggregatePublished,
        place: Place,
    ) -> None:
        """Have another library check a result that rests on more than a sum."""
        recheck = SECOND_OPINIONS.get(get_mode(view.config).name)
        if recheck is None:
            return
        size = view.config.num_parameters
        total = sum_from_blob(result.sum_blob, num_parameters=size)
        try:
            rechecked = recheck(view, total, make_fetch(self._fetch))
        except RoundError as error:
            if error.blob is None:
                raise
            self._add(_bad_blob_finding(error, place))
            return
        self._report.rechecked.append(rechecked)
        for problem in rechecked.problems:
            self._add(
                Finding(
                    code=FindingCode.SECOND_OPINION_DIFFERS,
                    place=place,
                    message=f"round {rechecked.round}: two libraries do not agree on "
                    "whether its sum opens the commitments",
                    expected="both open it",
                    found=problem,
                    blob_sha256=published.sum.sha256.hex(),
                )
            )

    def check_unsummed(self, view: RoundView, place: Place) -> None:
        """Check answers that count in a round with no result, now or ever."""
        if get_mode(view.config).result_shows_answers:
            self._find_bad(view, sorted(view.open.contributions), place)

    def _check(
        self, view: RoundView, agents: Sequence[str]
    ) -> Iterator[tuple[str, RoundError | None]]:
        if agents:
            yield from self._checking.get(view).check(view, agents).items()

    def _find_bad(self, view: RoundView, agents: Sequence[str], place: Place) -> bool:
        """Report answers that count and should not; return whether there are any."""
        found = False
        for agent_id, problem in self._check(view, agents):
            if problem is not None:
                found = True
                ref = _get_blob(view, agent_id)
                self._add(_answer_finding(problem, ref, place))
        return found

    def _compute(
        self, view: RoundView, sealed: RoundSealed, place: Place
    ) -> RoundResult | None:
        checker = self._checking.get(view)
        base = self._get_base(view, sealed, place)
        is_good = True
        for author, problem in checker.check_parts(view).items():
            if problem is None:
                continue
            is_good = False
            if problem.blob is not None:
                self._add(_bad_blob_finding(problem, place))
                continue
            self._add(
                Finding(
                    code=FindingCode.WRONG_SUM,
                    place=place,
                    message=f"round {sealed.round}: the part of {author} is wrong",
                    expected="what its own links add up to",
                    found=problem.detail,
                    blob_sha256=_hex_of_part(view, author),
                )
            )
        if base is None or not is_good:
            if is_good:
                self.check_unsummed(view, place)
            return None
        try:
            return checker.compute(view, base)
        except RoundError as error:
            if get_mode(view.config).result_shows_answers and self._find_bad(
                view, [c.agent_id for c in view.contributions], place
            ):
                return None
            if error.blob is not None:
                self._add(_bad_blob_finding(error, place))
                return None
            problem_found = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, it does not compute
            self._demand_cause(error)
            problem_found = f"{type(error).__name__}: {error}"
        self._add(
            Finding(
                code=FindingCode.NOT_COMPUTABLE,
                place=place,
                message=f"round {sealed.round} cannot be computed",
                expected="a sum and a model",
                found=problem_found,
            )
        )
        return None

    def _fetch_now(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        blob = self._fetch(ref, max_size_bytes=max_size_bytes)
        self._count(len(blob))
        return blob

    def _compare_round(
        self,
        view: RoundView,
        sealed: RoundSealed,
        result: RoundResult | None,
        published: AggregatePublished,
        place: Place,
    ) -> None:
        size = sealed.num_parameters
        total = self._get(
            published.sum, compute_max_sum_size(size), place, "the published sum"
        )
        model = self._get(
            published.model, self._max_model_size, place, "the published model"
        )
        if model is not None:
            self._model = (published.model.sha256, model)
        if published.state is not None:
            limit = compute_max_state_size(view.config.strategy, sealed.num_parameters)
            what = "the published state of the strategy"
            state = self._get(published.state, limit, place, what)
            if state is not None:
                self._state = (published.state.sha256, state)
        if result is None:
            return
        self._report.num_rounds_recomputed += 1
        self._compare(
            FindingCode.WRONG_SUM,
            published.sum,
            result.sum_blob,
            place,
            f"round {sealed.round}: the published sum is not that of its updates"
            + _describe_difference(result.sum_blob, total, size),
        )
        if self._compare(
            FindingCode.WRONG_MODEL,
            published.model,
            result.model_blob,
            place,
            f"round {sealed.round}: the published model does not follow from its sum",
        ):
            # The next round can be computed even if the store has lost it.
            self._model = (published.model.sha256, result.model_blob)
        # The decider lets no claim pass that has one where there is none, or lacks it.
        if published.state is None or result.state_blob is None:
            return
        if self._compare(
            FindingCode.WRONG_STATE,
            published.state,
            result.state_blob,
            place,
            f"round {sealed.round}: what the strategy carries on does not follow from "
            "the round's sum",
        ):
            self._state = (published.state.sha256, result.state_blob)

    def _get_base(
        self, view: RoundView, sealed: RoundSealed, place: Place
    ) -> Base | None:
        """Return what a round's sum is applied to; None if a part of it is gone."""
        model = self._get_model(sealed.base_model, place)
        ref = sealed.base_state
        if ref is None:
            return None if model is None else Base(model)
        digest, state = self._state
        found: bytes | None = state
        if digest != ref.sha256:
            limit = compute_max_state_size(view.config.strategy, sealed.num_parameters)
            found = self._get(ref, limit, place, "the strategy's state")
        return None if model is None or found is None else Base(model, found)

    def _get_model(self, ref: BlobRef, place: Place) -> bytes | None:
        """Return a base model: nearly always the last one used."""
        digest, blob = self._model
        if digest == ref.sha256:
            return blob
        return self._get(ref, self._max_model_size, place, "the base model")

    def _compare(
        self, code: FindingCode, ref: BlobRef, blob: bytes, place: Place, message: str
    ) -> bool:
        digest = hashlib.sha256(blob).digest()
        if digest == ref.sha256 and len(blob) == ref.size_bytes:
            return True
        self._add(
            Finding(
                code=code,
                place=place,
                message=message,
                expected=f"{digest.hex()}, {len(blob)} bytes",
                found=f"{ref.sha256.hex()}, {ref.size_bytes} bytes",
                blob_sha256=ref.sha256.hex(),
            )
        )
        return False

    def _get(
        self, ref: BlobRef, max_size_bytes: int, place: Place, what: str
    ) -> bytes | None:
        try:
            blob = self._fetch(ref, max_size_bytes=max_size_bytes)
        except BlobError as error:
            self._add(_blob_finding(error, ref, place, what))
            return None
        self._count(len(blob))
        return blob

    def _count(self, size: int) -> None:
        self._report.num_blobs += 1
        self._report.blob_bytes += size

    def _later(
        self, work: Callable[[], int], settle: Callable[[Future[int]], None]
    ) -> None:
        self._tasks.append((self._ahead.submit(work), settle))
        while len(self._tasks) > self._window:
            self._settle_next()

    def _settle_next(self) -> None:
        future, settle = self._tasks.popleft()
        settle(future)

    def drain(self) -> None:
        """Wait for what is still in the background."""
        while self._tasks:
            self._settle_next()

    def _settle(self, done: Future[int], ref: BlobRef, place: Place, what: str) -> None:
        try:
            self._count(done.result())
        except BlobError as error:
            self._add(_blob_finding(error, ref, place, what))


def _blob_finding(error: BlobError, ref: BlobRef, place: Place, what: str) -> Finding:
    return Finding(
        code=FindingCode(error.reason),
        place=place,
        message=f"{what} is not in the store as the log promises",
        expected=f"{ref.size_bytes} bytes with this digest",
        found=str(error),
        blob_sha256=ref.sha256.hex(),
    )


def _bad_blob_finding(problem: RoundError, place: Place) -> Finding:
    assert problem.blob is not None, "its caller has looked"
    error = BlobError(problem.blob.reason, problem.detail)
    return _blob_finding(error, problem.blob.ref, place, "a blob of a round")


def _is_unknowable(claimed: str, problem: RoundError | None) -> bool:
    """Return whether a blob is missing now: what was there then cannot be known."""
    found = None if problem is None or problem.blob is None else problem.blob.reason
    return Reason.MISSING_BLOB in {claimed, found}


def _hex(ref: BlobRef) -> str:
    return ref.sha256.hex()


def _get_blob(view: RoundView, agent_id: str) -> BlobRef:
    return get_mode(view.config).get_blob(view.answers[agent_id].event)


def _hex_of_part(view: RoundView, author: str) -> str:
    get_blob = get_mode(view.config).get_part_blob
    assert get_blob is not None, "its mode knows parts"
    return _hex(get_blob(view.get_said(list_parts(view)[author])))


def _answer_finding(problem: RoundError, ref: BlobRef, place: Place) -> Finding:
    if problem.blob is not None:
        error = BlobError(problem.blob.reason, problem.detail)
        return _blob_finding(error, problem.blob.ref, place, "an accepted update")
    return Finding(
        code=FindingCode.INVALID_UPDATE,
        place=place,
        message="an update was accepted that should have been rejected",
        expected=f"a rejection: {problem.reason}",
        found=problem.detail,
        blob_sha256=ref.sha256.hex(),
    )


def _describe_difference(expected: bytes, found: bytes | None, size: int) -> str:
    """Return where two sums differ, as text."""
    if found is None or found == expected:
        return ""
    try:
        theirs = sum_from_blob(found, num_parameters=size)
    except MalformedBlobError as error:
        return f"; it is not even a sum: {error}"
    ours = sum_from_blob(expected, num_parameters=size)
    differing = np.flatnonzero(ours != theirs)
    if not len(differing):
        return "; the numbers agree, the bytes do not"
    first = int(differing[0])
    return (
        f"; {len(differing)} of {counted(size, 'coordinate')} differ, first {first}: "
        f"expected {ours[first]}, found {theirs[first]}"
    )
