"""Who judges the statements of a round, and the verdict that each must reach.

What they must come to follows from the mode, and from what is so and what is said; it
is derived here, for every lie at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from consumers.audit.report import FindingCode
from protocol.aggregation import sum_to_blob
from protocol.modes import MODES
from schemas import events as e
from schemas.reasons import Reason
from tests.auditing import audit, found, index_of, only
from tests.lies.lie import (
    AGENTS,
    COUNTS,
    SPOILT,
    TRUTH,
    About,
    Lie,
)
from tests.rechecking import counts, demand_attested, demand_refused, follow
from tests.speaking import SpeakingLog

COSTS_NOTHING: Final = {
    *(Reason.SHARES_DIFFER, Reason.BAD_SHARE, Reason.WRONG_SUM),  # agent or party
    *SPOILT.values(),  # nobody can check later what the store had
}
WORDS: Final = {FindingCode.INVALID_UPDATE, FindingCode.CLAIM_CONTRADICTED}
"""Findings about what is said of answers and parts."""


def _place_of(lie: Lie, log: SpeakingLog) -> int:
    """Return the leaf at which it is said what is so of whom a lie concerns."""
    if lie.findings:
        _, fact = lie.findings[0]
        return _place_before(fact, log)
    if lie.about is About.PARTS and lie.said == COUNTS:
        return index_of(log, e.AggregateSubmitted)
    return next(
        place
        for place, event in enumerate(log.leaves)
        if isinstance(event, e.UpdatesChecked)
        and {_name(log, r.leaf_index) for r in event.results} & {*lie.of}
    )


def _place_before(kind: type, log: SpeakingLog) -> int:
    """Return the leaf that a fact follows from, or the founding."""
    return getattr(only(log, kind), "cause_leaf_index", 0)


def _shown(lie: Lie) -> str:
    """Return the reason that blobs show to whoever asks whether something is so."""
    asks_for_sum = lie.said in {COUNTS, Reason.WRONG_SUM}
    return "" if lie.reason == Reason.WRONG_SUM and not asks_for_sum else lie.reason


def _count_others(lie: Lie, log: SpeakingLog, *reasons: Reason) -> int:
    """Return how many parts are rejected in turn, for what was in the store then."""
    rejected = (x for x in log.leaves if isinstance(x, e.PartialRejected))
    return sum(x.party not in lie.of and x.reason in reasons for x in rejected)


def _is_unknowable_to_nodes(lie: Lie) -> bool:
    """Return whether what is said is about a store of another time."""
    if lie.said in SPOILT.values() or lie.lost:
        return True
    had_no_links = {*lie.of} == {*AGENTS} and lie.reason in {"", Reason.SHARES_DIFFER}
    return lie.said == Reason.BAD_SHARE and had_no_links


def is_false(lie: Lie) -> bool:
    """Return whether what is said contradicts blobs that are there."""
    if lie.about in {About.NOTHING, About.STORE}:
        return False
    return lie.about is About.RESULT or lie.said != lie.reason


# The aggregator


def judge_as_aggregator(lie: Lie, log: SpeakingLog, _directory: Path) -> None:
    """See that it means to say what is so, of those alone of whom it is so.

    And that the log follows it, unless something else is said.
    """
    wrong = dict.fromkeys(lie.of, lie.reason) if lie.reason else {}
    if lie.is_of_blobs:
        checks = [x for x in log.meant if isinstance(x, e.UpdatesChecked)]
        meant: dict[str, str] = {}
        for result in (result for claim in checks for result in claim.results):
            name = _name(log, result.leaf_index)
            if (name in AGENTS) == (lie.about is About.ANSWERS):
                meant.setdefault(name, result.reason)
        assert {name: reason for name, reason in meant.items() if reason} == wrong
    # Whatever was said before, it publishes a sum of what counts, or none.
    for event in log.meant:
        if isinstance(event, e.AggregateSubmitted):
            total = log.compute_sum(only(log, e.RoundSealed))
            assert event.sum.sha256 == hashlib.sha256(sum_to_blob(total)).digest()
    if lie.word is not TRUTH or lie.about is About.RESULT:
        return
    rejected = {
        getattr(x, "agent_id", "") or x.party: x.reason
        for x in log.leaves
        if isinstance(x, e.ContributionRejected | e.PartialRejected)
    }
    assert rejected == wrong
    for kind, reason in lie.facts:
        assert reason in {x.reason for x in log.leaves if isinstance(x, kind)}
    if lie.reason != Reason.WRONG_SUM:  # then the parts are waited for again
        ends = [e.AggregatePublished, e.RoundAbandoned]
        kinds = [type(x) for x in log.leaves if type(x) in ends]
        is_abandoned = e.RoundAbandoned in {kind for kind, _ in lie.facts}
        assert kinds == [ends[is_abandoned]]


def _name(log: SpeakingLog, place: int) -> str:
    event: Any = log.leaves[place]
    return getattr(event, "agent_id", "") or event.party


# A ledger node


def judge_as_node(lie: Lie, log: SpeakingLog, directory: Path) -> None:
    """See that it attests all but what is proven false.

    It says what it could not check. Where a mode is not for nodes it passes over all.
    """
    bus = follow(directory, log)
    if not MODES[lie.mode].is_for_nodes:
        demand_attested(bus, log, unchecked=0)
        assert counts(bus["node0"]) == (0, 0, 0)
    elif is_false(lie) and not _is_unknowable_to_nodes(lie):
        demand_refused(bus, log, _place_of(lie, log))
        details = [alert.detail for alert in bus["node0"].node.alerts.all()]
        for name in lie.of if lie.about is About.ANSWERS else ():
            said = f"says of {name}: {lie.said or 'it counts'}; "
            shown = f"proofs and links show: {lie.reason or 'it counts'}"
            assert any(said + shown in detail for detail in details)
        assert any(_shown(lie) in detail for detail in details)
    else:
        is_unknown = lie.is_of_blobs and _is_unknowable_to_nodes(lie)
        unchecked = len(lie.of) if is_unknown else lie.num_unchecked
        others = _count_others(lie, log, *SPOILT.values())
        demand_attested(bus, log, unchecked=unchecked + others)
        if not unchecked + others:
            assert counts(bus["node0"])[0] == _count_claims(log)


def _count_claims(log: SpeakingLog) -> int:
    """Return what is claimed of answers, parts and results, where all of it holds."""
    one = e.ContributionAccepted | e.ContributionRejected | e.PartialRejected
    return sum(
        2 + (x.state is not None)
        if isinstance(x, e.AggregatePublished)
        else isinstance(x, one)
        for x in log.leaves
    )


# The audit


def judge_as_auditor(lie: Lie, log: SpeakingLog, _directory: Path) -> None:
    """See that it finds what is false, and nothing else; and who pays for the truth."""
    report = audit(log)
    if lie.about in {About.RESULT, About.STORE}:
        assert found(report) == [
            (code, _place_before(kind, log)) for code, kind in lie.findings
        ]
        if lie.about is About.STORE:
            (digest,) = {bytes.fromhex(f.blob_sha256) for f in report.findings}
            assert hashlib.sha256(log.blobs.get(digest, b"")).digest() != digest
        return
    codes = _find(lie)
    place = _place_of(lie, log) if codes else None
    if lie.said == COUNTS and MODES[lie.mode].result_shows_answers:
        place = None  # there is no result: it is found at the log's end
    assert found(report) == [(code, place) for code in codes]
    for finding, name in zip(report.findings, sorted(lie.of), strict=False):
        if finding.code is FindingCode.NOT_COMPUTABLE:
            assert lie.reason in finding.found
        elif finding.code not in SPOILT.values():
            assert finding.blob_sha256 in _list_blobs(log, name)
            assert place is None or name in finding.message
        if finding.code in WORDS:
            assert (_shown(lie) or "it counts") in finding.expected
    if not lie.is_of_blobs:
        return
    claimed = len(lie.of) if lie.said else 0
    unknown = claimed if Reason.MISSING_BLOB in {lie.said, lie.lost} else 0
    others = _count_others(lie, log, Reason.MISSING_BLOB)
    assert report.num_claims_unchecked == unknown + others
    if lie.word is TRUTH:
        assert report.num_claims_checked == claimed - unknown
        prefix = "party:" if lie.about is About.PARTS else ""
        is_paid_for = lie.reason not in {"", *COSTS_NOTHING}
        assert {name: x for name, x in report.balances.items() if x < 0} == {
            prefix + name: -500 for name in lie.of if is_paid_for
        }


def _list_blobs(log: SpeakingLog, name: str) -> set[str]:
    """Return the blobs that an agent or a party spoke of."""
    events = (
        x
        for x in log.leaves
        if name in {getattr(x, "agent_id", ""), getattr(x, "party", "")}
    )
    values = (getattr(x, field.name) for x in events for field in fields(x))
    return {x.sha256.hex() for x in values if isinstance(x, e.BlobRef)}


def _find(lie: Lie) -> list[str]:
    """Return the codes of what the audit finds, if it is not about the result."""
    said = lie.said
    if not is_false(lie):
        return []
    if said and Reason.MISSING_BLOB in {said, lie.lost}:
        return []  # nobody knows whether it was there then
    # Of a blob that is too large the log itself may say so.
    is_contradicted = lie.about is About.ANSWERS and lie.reason == Reason.OVERSIZED_BLOB
    if lie.lost and not (said and is_contradicted):
        return [lie.lost]
    if said:
        return [FindingCode.CLAIM_CONTRADICTED] * len(lie.of)
    if lie.reason == Reason.OVERSIZED_BLOB:
        return [lie.reason]
    if lie.about is About.ANSWERS:
        return [FindingCode.INVALID_UPDATE] * len(lie.of)
    if lie.reason == Reason.WRONG_SUM:
        return [FindingCode.NOT_COMPUTABLE]
    return [FindingCode.WRONG_SUM] * len(lie.of)


Judge = Callable[[Lie, SpeakingLog, Path], None]
JUDGES: Final[dict[str, Judge]] = {
    "aggregator": judge_as_aggregator,
    "node": judge_as_node,
    "audit": judge_as_auditor,
}
