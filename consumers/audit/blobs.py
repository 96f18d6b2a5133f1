"""The blobs behind a log: fetched, checked, and every round computed again.

Blobs are fetched a few ahead and added up one at a time: a round of a hundred agents
needs the memory of a few updates.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol

import numpy as np

from adapters.blobs import BlobError
from adapters.round_blobs import make_fetch
from consumers.audit.report import Finding, FindingCode, Place, Report
from protocol.aggregation import sum_from_blob
from protocol.encoding import UpdateRefusedError, parse_update
from protocol.exchanged_state import model_from_blob
from protocol.model import (
    RoundResult,
    compute_max_model_size,
    compute_max_sum_size,
    compute_max_update_size,
    compute_result,
)
from protocol.modes.mpc.checker import RoundVerifier
from protocol.modes.mpc.round import MpcRound
from protocol.modes.mpc.share_link import PartySum
from protocol.modes.problem import RoundError
from protocol.tensors import MalformedBlobError, num_parameters
from schemas.events import AggregatePublished, BlobRef, RoundSealed
from schemas.reasons import Reason

MAX_ONNX_SIZE_BYTES: Final = 2**31
"""Protocol Buffers, and so ONNX files, end there."""


class FetchBlob(Protocol):
    """`adapters.blobs.BlobStore.fetch`, or something that promises the same."""

    def __call__(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        """Return a blob's bytes, digest verified.

        Raises:
            BlobError: it is missing, or not what the reference promises.
        """
        ...


class BlobAuditor:
    """Checks blobs in the background and rounds in the foreground.

    Args:
        fetch: How to fetch. Called from several threads.
        report: Whose counts to raise.
        add: What to do with a finding.
        jobs: Blobs fetched at a time.
        initial_model: The federation's, if an earlier audit has checked it.
    """

    def __init__(
        self,
        fetch: FetchBlob,
        report: Report,
        add: Callable[[Finding], None],
        jobs: int,
        initial_model: BlobRef | None = None,
    ) -> None:
        self._fetch_any = fetch
        self._trouble: Exception | None = None
        self._report = report
        self._add = add
        self._window = jobs
        self._pool = ThreadPoolExecutor(jobs, "audit-fetch")
        self._tasks: deque[tuple[Future[int], Callable[[Future[int]], None]]] = deque()
        self._model: tuple[bytes, bytes] = (b"", b"")  # digest and bytes of the last
        # Without a genesis there are no models.
        self._max_model_size = (
            0 if initial_model is None else compute_max_model_size(initial_model)
        )
        self._verifier: tuple[bytes, RoundVerifier] | None = None

    def _fetch(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        try:
            return self._fetch_any(ref, max_size_bytes=max_size_bytes)
        except BlobError:
            raise
        except Exception as error:
            self._trouble = error
            raise

    def _demand_cause(self, error: Exception) -> None:
        """Raise an error again that says nothing about what was to be computed."""
        if self._trouble is not None or isinstance(error, MemoryError):
            raise error

    def close(self) -> None:
        """End the threads; what was not looked at stays so."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def check_initial_model(self, ref: BlobRef, size: int, place: Place) -> None:
        """Check that the first model is there and of its size."""
        self._max_model_size = compute_max_model_size(ref)
        blob = self._get(ref, self._max_model_size, place, "the initial model")
        if blob is None:
            return
        try:
            found = num_parameters(model_from_blob(blob).manifest)
        except MalformedBlobError as error:
            problem = str(error)
        else:
            if found == size:
                self._model = (ref.sha256, blob)
                return
            problem = f"{found} parameters"
        self._add(
            Finding(
                code=FindingCode.INVALID_MODEL,
                place=place,
                message="the initial model is not one of this federation",
                expected=f"a model of {size} parameters",
                found=problem,
                blob_sha256=ref.sha256.hex(),
            )
        )

    def check_onnx(self, ref: BlobRef, place: Place) -> None:
        """Check that an exported model is there."""

        def work() -> int:
            return len(self._fetch(ref, max_size_bytes=MAX_ONNX_SIZE_BYTES))

        self._later(work, lambda done: self._settle(done, ref, place, "the ONNX file"))

    def check_update(self, ref: BlobRef, size: int, place: Place) -> None:
        """Check an accepted update that no sum was computed from."""

        def work() -> int:
            blob = self._fetch(ref, max_size_bytes=compute_max_update_size(size))
            parse_update(blob, num_parameters=size)
            return len(blob)

        self._later(
            work, lambda done: self._settle(done, ref, place, "an accepted update")
        )

    def check_claim(self, ref: BlobRef, size: int, reason: str, place: Place) -> None:
        """Check what an aggregator said about an update that it rejected."""
        if reason == Reason.MISSING_BLOB:
            # Whether it was there then cannot be known now.
            self._report.num_claims_unchecked += 1
            return

        def work() -> int:
            blob = self._fetch(ref, max_size_bytes=compute_max_update_size(size))
            parse_update(blob, num_parameters=size)
            return len(blob)

        self._later(work, lambda done: self._settle_claim(done, ref, reason, place))

    def _settle_claim(
        self, done: Future[int], ref: BlobRef, reason: str, place: Place
    ) -> None:
        found = ""
        try:
            self._count(done.result())
        except BlobError as error:
            if error.reason == Reason.MISSING_BLOB:
                self._report.num_claims_unchecked += 1
                return
            found = str(error.reason)
            if error.reason == Reason.CORRUPT_BLOB and reason != found:
                self._add(_blob_finding(error, ref, place, "a rejected update"))
                return
        except UpdateRefusedError as error:
            found = str(error.reason)
        self._report.num_claims_checked += 1
        if found != reason:
            self._add(
                Finding(
                    code=FindingCode.CLAIM_CONTRADICTED,
                    place=place,
                    message="the update was rejected for what its blob does not show",
                    expected=found or "nothing wrong with the update",
                    found=reason,
                    blob_sha256=ref.sha256.hex(),
                )
            )

    def check_round(
        self,
        sealed: RoundSealed,
        weights: Sequence[int],
        refs: Sequence[BlobRef],
        published: AggregatePublished,
        place: Place,
    ) -> None:
        """Compute a round again and compare what was published.

        Args:
            sealed: The round.
            weights: Of its contributions, in order.
            refs: Their blobs, in order.
            published: What should come out.
            place: Where it was claimed.
        """
        self._compare_round(
            sealed, self._compute(sealed, weights, refs, place), published, place
        )

    def check_commitments(
        self, secret: MpcRound, claims: Mapping[str, str], place: Place
    ) -> None:
        """Verify proofs and links again, and compare what the aggregator said of them.

        Args:
            secret: The round, just before the claim.
            claims: The reason that was given, by agent; empty if accepted.
            place: Where it was claimed.
        """
        verifier = self._get_verifier(secret)
        reasons = verifier.find_reasons(secret, sorted(claims))
        bad: dict[bytes, RoundError] = {}  # a party's links concern all agents
        for agent_id, problem in reasons.items():
            claimed, found = claims[agent_id], "" if problem is None else problem.reason
            if claimed and _is_unknowable(claimed, problem):
                self._report.num_claims_unchecked += 1
                continue
            if claimed:
                self._report.num_claims_checked += 1
            if claimed == found:
                continue
            if problem is not None and problem.blob is not None:
                bad[problem.blob.ref.sha256] = problem
                continue
            self._add(
                Finding(
                    code=FindingCode.CLAIM_CONTRADICTED
                    if claimed
                    else FindingCode.INVALID_UPDATE,
                    place=place,
                    message=f"the aggregator's word on {agent_id} is not what proofs "
                    "and links show",
                    expected="it counts" if problem is None else str(problem),
                    found=claimed or "it counts",
                    blob_sha256=_hex(secret.get_committed(agent_id).event.commitments),
                )
            )
        for problem in bad.values():
            self._add(_bad_blob_finding(problem, place))

    def check_partial_claim(
        self, secret: MpcRound, party: str, reason: str, place: Place
    ) -> None:
        """Check what an aggregator said of a party's part of the sum it rejected."""
        verifier = self._get_verifier(secret)
        problem = verifier.find_claim_problem(secret, party, reason)
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
                message=f"the part of {party} was rejected for what it does not show",
                expected="it counts" if problem is None else str(problem),
                found=reason,
                blob_sha256=_hex(secret.partials[party].blob),
            )
        )

    def check_mpc_round(
        self, secret: MpcRound, published: AggregatePublished, place: Place
    ) -> None:
        """Check that a published sum is that of exactly the accepted contributions.

        Args:
            secret: The round, sealed, with all parts of the sum.
            published: What was published.
            place: Where it was claimed.
        """
        sealed = secret.sealed
        assert sealed is not None, "only a sealed round is published"
        self._compare_round(
            sealed, self._add_parts(secret, sealed, place), published, place
        )

    def _add_parts(
        self, secret: MpcRound, sealed: RoundSealed, place: Place
    ) -> RoundResult | None:
        verifier = self._get_verifier(secret)
        base = self._get_model(sealed.base_model, place)
        parts: list[PartySum] = []
        for party in secret.mpc.parties:
            part = verifier.find_partial_problem(secret, party.name)
            if isinstance(part, PartySum):
                parts.append(part)
                continue
            if part.blob is not None:
                self._add(_bad_blob_finding(part, place))
                continue
            self._add(
                Finding(
                    code=FindingCode.WRONG_SUM,
                    place=place,
                    message=f"round {sealed.round}: the part of {party.name} is wrong",
                    expected="what its own links add up to",
                    found=part.detail,
                    blob_sha256=_hex(secret.partials[party.name].blob),
                )
            )
        if base is None or len(parts) < len(secret.mpc.parties):
            return None
        try:
            return verifier.compute_result(secret, parts, base)
        except RoundError as error:
            if error.blob is not None:
                self._add(_bad_blob_finding(error, place))
                return None
            problem = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, it does not compute
            self._demand_cause(error)
            problem = f"{type(error).__name__}: {error}"
        self._add(
            Finding(
                code=FindingCode.NOT_COMPUTABLE,
                place=place,
                message=f"round {sealed.round}: no sum follows from its parts",
                expected="a sum and a model",
                found=problem,
            )
        )
        return None

    def _get_verifier(self, secret: MpcRound) -> RoundVerifier:
        if self._verifier is None or self._verifier[0] != secret.identity:
            verifier = RoundVerifier(secret, make_fetch(self._fetch_now))
            self._verifier = (secret.identity, verifier)
        return self._verifier[1]

    def _fetch_now(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        blob = self._fetch(ref, max_size_bytes=max_size_bytes)
        self._count(len(blob))
        return blob

    def _compare_round(
        self,
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

    def _compute(
        self,
        sealed: RoundSealed,
        weights: Sequence[int],
        refs: Sequence[BlobRef],
        place: Place,
    ) -> RoundResult | None:
        size = sealed.num_parameters
        base = self._get_model(sealed.base_model, place)
        fetched = self._fetch_in_order(refs, compute_max_update_size(size))
        current: list[BlobRef] = []

        def usable() -> Iterator[bytes]:
            for ref, blob in fetched:
                current[:] = [ref]
                if isinstance(blob, BlobError):
                    raise blob
                yield blob

        try:
            if base is not None:
                return compute_result(sealed, weights, base, usable())
        except (BlobError, UpdateRefusedError) as error:
            self._add(_update_finding(error, current[0], place))
        except Exception as error:  # noqa: BLE001  # whatever it is, it does not compute
            self._demand_cause(error)
            self._add(
                Finding(
                    code=FindingCode.NOT_COMPUTABLE,
                    place=place,
                    message=f"round {sealed.round} cannot be computed",
                    expected="a sum and a model",
                    found=f"{type(error).__name__}: {error}",
                )
            )
        # Nothing can be compared any more; the other blobs are still looked at.
        for ref, blob in fetched:
            self._check_fetched(ref, blob, size, place)
        return None

    def _check_fetched(
        self, ref: BlobRef, blob: bytes | BlobError, size: int, place: Place
    ) -> None:
        try:
            if isinstance(blob, BlobError):
                raise blob
            parse_update(blob, num_parameters=size)
        except (BlobError, UpdateRefusedError) as error:
            self._add(_update_finding(error, ref, place))

    def _get_model(self, ref: BlobRef, place: Place) -> bytes | None:
        """Return a base model: nearly always the last one that was looked at."""
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

    def _fetch_in_order(
        self, refs: Iterable[BlobRef], max_size_bytes: int
    ) -> Iterator[tuple[BlobRef, bytes | BlobError]]:
        """Fetch a few blobs ahead of the sum, never all of them."""
        ahead: deque[tuple[BlobRef, Future[bytes]]] = deque()
        for ref in refs:
            future = self._pool.submit(self._fetch, ref, max_size_bytes=max_size_bytes)
            ahead.append((ref, future))
            if len(ahead) > self._window:
                yield self._take(*ahead.popleft())
        while ahead:
            yield self._take(*ahead.popleft())

    def _take(
        self, ref: BlobRef, future: Future[bytes]
    ) -> tuple[BlobRef, bytes | BlobError]:
        try:
            blob = future.result()
        except BlobError as error:
            return ref, error
        self._count(len(blob))
        return ref, blob

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
        self._tasks.append((self._pool.submit(work), settle))
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
        except UpdateRefusedError as error:
            self._add(_update_finding(error, ref, place))


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
    return _blob_finding(error, problem.blob.ref, place, "a blob of an MPC round")


def _is_unknowable(claimed: str, problem: RoundError | None) -> bool:
    """Return whether a blob is missing: if it was there then cannot be known now."""
    found = None if problem is None or problem.blob is None else problem.blob.reason
    return Reason.MISSING_BLOB in {claimed, found}


def _hex(ref: BlobRef) -> str:
    return ref.sha256.hex()


def _update_finding(
    error: BlobError | UpdateRefusedError, ref: BlobRef, place: Place
) -> Finding:
    if isinstance(error, BlobError):
        return _blob_finding(error, ref, place, "an accepted update")
    return Finding(
        code=FindingCode.INVALID_UPDATE,
        place=place,
        message="an update was accepted that should have been rejected",
        expected=f"a rejection: {error.reason}",
        found=error.detail,
        blob_sha256=ref.sha256.hex(),
    )


def _describe_difference(expected: bytes, found: bytes | None, size: int) -> str:
    """Return where two sums differ, for people."""
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
        f"; {len(differing)} of {size} coordinates differ, the first is {first}: "
        f"expected {ours[first]}, found {theirs[first]}"
    )
