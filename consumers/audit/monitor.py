"""The audit that does not end: alerts for what deserves attention, once each.

A monitor audits what came since its last pass and turns findings into alerts. Each
alert is given once, however long its cause lasts.

Rules:

- FORK: a block, or what the sequencer or a quorum signed, belongs to another log than
  the one verified. The word of a few ledger nodes is not enough: any liar could end
  everybody's monitor.
- TRUNCATION: what was there is gone.
- EQUIVOCATION: somebody signed what contradicts itself.
- NODE: a few ledger nodes said something else that is wrong.
- STALE: something waits to become final, and a quorum cosigned no larger checkpoint for
  too long; or nothing could be read for too long. A timer event that only gives a quiet
  log's last block a child waits for nothing itself (ADR 0015).
- FINDING: anything else that an audit finds.

Deliberately not here: reading, clocks (time is an argument) and waiting; nor whether a
resting log continues elsewhere, which nobody can tell from Kafka alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from consumers.audit.report import Finding, FindingCode, Place, Report


class AlertKind(StrEnum):
    """What an alert is about."""

    FORK = "FORK"
    TRUNCATION = "TRUNCATION"
    EQUIVOCATION = "EQUIVOCATION"
    NODE = "NODE"
    STALE = "STALE"
    FINDING = "FINDING"


DEFAULT_STALE_AFTER_S: Final = 300.0
"""Ledger nodes make a block final within seconds; after a sequencer failure, within a
few epochs, whose timeouts double."""
UNREADABLE: Final = "UNREADABLE"
"""The code of an alert that nothing could be read."""
FATAL: Final = frozenset({AlertKind.FORK, AlertKind.TRUNCATION})
"""After these, the log is no longer one log."""
_KINDS: Final = {
    FindingCode.BROKEN_LOG: AlertKind.FORK,
    FindingCode.LOG_REWRITTEN: AlertKind.FORK,
    FindingCode.CHECKPOINT_DIFFERS: AlertKind.FORK,
    FindingCode.FINAL_BLOCK_DIFFERS: AlertKind.FORK,
    FindingCode.COSIGNATURE_DIFFERS: AlertKind.FORK,
    FindingCode.LOG_TRUNCATED: AlertKind.TRUNCATION,
    FindingCode.CHECKPOINT_BEYOND_END: AlertKind.TRUNCATION,
    FindingCode.EQUIVOCATION: AlertKind.EQUIVOCATION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something to look at.

    Attributes:
        kind: What it is about.
        code: The finding's code, or the kind.
        place: Where.
        message: What it means, as text.
        expected: What should be there.
        found: What is there.
    """

    kind: AlertKind
    code: str
    place: Place
    message: str
    expected: str = ""
    found: str = ""

    @property
    def is_fatal(self) -> bool:
        """Whether the log is no longer one log."""
        return self.kind in FATAL

    def __str__(self) -> str:
        line = f"{self.kind} {self.code} at {self.place}: {self.message}"
        for name, value in (("expected", self.expected), ("found", self.found)):
            if value:
                line += f"; {name} {value}"
        return " ".join(line.split())

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


class Monitor:
    """Remembers which alerts were given.

    Args:
        stale_after_s: How long something may wait for finality, and how long reading
            may fail, seconds; None for ever.
    """

    def __init__(self, stale_after_s: float | None) -> None:
        self._stale_after_s = stale_after_s
        self._said: set[tuple[str, str, str]] = set()
        self._num_equivocations = 0
        self._size = 0
        self._waiting_since_s: float | None = None
        self._is_stale = False
        self._read_at_s: float | None = None
        self._is_unreadable = False

    def judge(
        self, report: Report, now_s: float, at_s: float, *, held: str = ""
    ) -> list[Alert]:
        """Return the alerts that an audit's report gives rise to.

        Args:
            report: Of an audit that continued from the last one.
            now_s: Now, in seconds of a clock that never goes back.
            at_s: Now, seconds since 1970-01-01 UTC, to compare with others' stamps.
            held: What keeps Kafka from showing new records, as text; empty if nothing
                is known to.
        """
        self._read_at_s, self._is_unreadable = now_s, False
        said = [
            *(_as_alert(finding, AlertKind.FINDING) for finding in report.findings),
            *(_as_alert(finding, AlertKind.NODE) for finding in report.node_faults),
        ]
        alerts = [alert for alert in said if self._is_new(alert)]
        alerts += self._find_proven(report)
        alerts += self._find_staleness(report, now_s, at_s, held)
        return alerts

    def miss(self, why: str, now_s: float) -> list[Alert]:
        """Return the alert that reading failed for too long, once.

        Args:
            why: Why nothing could be read this time, as text.
            now_s: As in `judge`.
        """
        if self._read_at_s is None:
            self._read_at_s = now_s
        if self._stale_after_s is None or self._is_unreadable:
            return []
        missed_s = now_s - self._read_at_s
        if missed_s < self._stale_after_s:
            return []
        self._is_unreadable = True
        return [
            Alert(
                kind=AlertKind.STALE,
                code=UNREADABLE,
                place=Place(),
                message=f"nothing could be read for {missed_s:.0f} s: {why}",
            )
        ]

    def _is_new(self, alert: Alert) -> bool:
        what = alert.code, str(alert.place), alert.found
        if what in self._said:
            return False
        self._said.add(what)
        return True

    def _find_proven(self, report: Report) -> list[Alert]:
        new = report.equivocations[self._num_equivocations :]
        self._num_equivocations = len(report.equivocations)
        return [
            Alert(
                kind=AlertKind.EQUIVOCATION,
                code=proven.offence,
                place=Place(leaf_index=proven.leaf_index),
                message=f"{proven.public_key} contradicted itself: it is proven",
            )
            for proven in new
        ]

    def _find_staleness(
        self, report: Report, now_s: float, at_s: float, held: str
    ) -> list[Alert]:
        finality = report.finality
        if finality is None or self._stale_after_s is None:
            return []
        if finality.cosigned_size > self._size:
            self._size = finality.cosigned_size
            self._waiting_since_s, self._is_stale = None, False
        if report.awaited_size <= self._size:
            # Nothing waits: the time begins with the next block that says something.
            self._waiting_since_s = None
            return []
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        # A monitor that has just begun goes by others' stamps. Both must be old: after
        # a rest, the last cosignature is, through no fault.
        stamped_s = max(finality.cosigned_at_s, report.awaited_at_ms / 1_000)
        waited_s = max(now_s - self._waiting_since_s, at_s - stamped_s)
        if self._is_stale or waited_s < self._stale_after_s:
            return []
        self._is_stale = True
        return [
            Alert(
                kind=AlertKind.STALE,
                code=AlertKind.STALE,
                place=Place(height=report.num_blocks - 1),
                message=f"no larger checkpoint became final for {waited_s:.0f} s"
                + (f"; {held}" if held else ""),
                expected=f"a quorum's cosignatures up to size {report.awaited_size}",
                found=f"size {self._size}",
            )
        ]


def _as_alert(finding: Finding, otherwise: AlertKind) -> Alert:
    return Alert(
        kind=_KINDS.get(finding.code, otherwise),
        code=finding.code,
        place=finding.place,
        message=finding.message,
        expected=finding.expected,
        found=finding.found,
    )
