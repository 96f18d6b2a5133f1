"""What an audit has found so far: listed, counted, passed over."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from adapters.wording import counted
from consumers.audit.report import Finding, FindingCode, Noise, Place, Report
from schemas import topics

MAX_SHOWN: Final = 1_000
"""Characters shown of what was expected and found."""


class Stopped(Exception):  # noqa: N818  # not an error of the audit
    """Nothing after this can be believed."""


class Findings:
    """Puts findings into a report: the first few of each kind, and counts."""

    def __init__(self, report: Report, max_findings: int) -> None:
        self.report = report
        self._max_findings = max_findings
        self._noise = {(n.topic, n.code): n for n in report.noise}

    def add(self, finding: Finding) -> None:
        """List or count a finding."""
        counts = self.report.num_findings
        counts[finding.code] += 1
        if counts[finding.code] <= self._max_findings:
            self.report.findings.append(
                replace(
                    finding,
                    expected=_shorten(finding.expected),
                    found=_shorten(finding.found),
                )
            )

    def pass_over(self, finding: Finding) -> None:
        """Count what anybody could have written instead of reporting it."""
        key = (finding.place.topic, finding.code)
        noise = self._noise.get(key)
        if noise is None:
            noise = self._noise[key] = Noise(
                topic=finding.place.topic,
                code=finding.code,
                count=0,
                first=finding.place,
                message=_shorten(f"{finding.message}: {finding.found}"),
            )
            self.report.noise.append(noise)
        noise.count += 1

    def stop(
        self,
        code: FindingCode,
        place: Place,
        message: str,
        expected: str = "",
        found: str = "",
    ) -> Stopped:
        """Add a finding after which nothing can be believed; returns what to raise."""
        self.add(
            Finding(
                code=code, place=place, message=message, expected=expected, found=found
            )
        )
        return Stopped(f"{code} at {place}: nothing later can be believed")


def sort_key(finding: Finding) -> tuple[bool, str, int, int]:
    """Return a sort key: the ledger first, then by place."""
    place = finding.place
    return (
        place.topic != topics.LEDGER,
        place.topic,
        -1 if place.offset is None else place.offset,
        -1 if place.leaf_index is None else place.leaf_index,
    )


def _shorten(text: str) -> str:
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}… ({counted(len(text) - MAX_SHOWN, 'character')} more)"
