"""How an audit's report reads: tables and sentences for people."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapters.log_lines import printable
from adapters.wording import counted

if TYPE_CHECKING:
    from consumers.audit.report import Finality, Finding, Report


MAX_RECHECKED: Final = 20
"""Rounds whose rows are shown."""
_START: Final = re.compile(r" +(?:\d+\. |- |\S+(?: \S+)* {2,})?")
"""The part of a line below which its continuations stay empty."""
_GLUE: Final = "\u00a0"
"""Not printable, so it was escaped wherever a text quotes others."""


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    value: str


def render(report: Report, elapsed_s: float) -> str:
    """Return a report as text; what others wrote into it stays within its line."""
    lines = [
        _Line("log", f"{counted(report.num_blocks, 'block')}, "
              f"{counted(report.num_leaves, 'leaf', 'leaves')}, "
              f"{_show_size(report.log_bytes)}"),
        _Line("signatures", f"{report.num_signatures:,} verified"),
        _Line("checkpoints", _show_checkpoints(report)),
        _Line("leaves", _show_counts(report.events)),
        _Line("facts", "as the deciders conclude: " + _show_counts(report.facts)),
        _Line("pending", counted(len(report.pending), "fact")
              if report.pending else ""),
        _Line("final", _show_final(report.finality)),
        _Line("cosigned", _show_cosigned(report.finality)),
        _Line("refused", _show_counts(report.refusals)),
        _Line("rejected", _show_counts(report.rejections)),
        _Line("models", f"{counted(report.num_rounds_recomputed, 'round')} recomputed, "
              "sum and model bit for bit"),
        _Line("rechecked", _show_rechecked(report)),
        _Line("blobs", f"{report.num_blobs:,} verified, "
              f"{_show_size(report.blob_bytes)}"),
        _Line("operator", report.operator_key
              + (" (the one you trust)" if report.is_operator_key_pinned else "")),
        _Line("sequencer", report.sequencer_key),
        _Line("tree root", report.tree_root),
        _Line("noise", _show_noise(report)),
        _Line("took", f"{elapsed_s:.1f} s"),
    ]  # fmt: skip
    width = max(len(line.name) for line in lines)
    out = [_verdict(report), ""]
    out += [f"  {line.name:<{width}}  {line.value}" for line in lines if line.value]
    for title, table in (
        ("Node sets", _list_eras(report.finality)),
        ("Ledger nodes", _list_nodes(report.finality)),
        ("Proven equivocations", _list_equivocations(report)),
        ("Balances", _list_balances(report)),
        ("Refused records", _list_refused(report)),
        ("Rows of sums that py-ecc opened again", _list_rechecked(report)),
    ):
        rows = list(table)
        if rows:
            out += ["", f"{title}:", *_align(rows)]
    for title, findings, counts in (
        ("Findings:", report.findings, report.num_findings),
        (
            "False statements of single ledger nodes; each counts for nothing:",
            report.node_faults,
            report.num_node_faults,
        ),
    ):
        out += _list_findings(title, findings, counts)
    if report.stopped:
        out += ["", f"The audit ended early: {report.stopped}."]
    if report.notes:
        out += ["", "What this rests on:"]
        out += [f"  - {note}" for note in report.notes]
    return "\n".join(map(printable, out))


def fold(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a text, long ones continued below where they began.

    Args:
        text: What `render` returns.
        width: Characters of a line, unless a single word is longer.
    """
    for line in text.split("\n"):
        start = _START.match(line)
        hang = len(start[0]) if start else width
        folded = textwrap.wrap(
            # A number stays beside what it counts.
            re.sub(r"(?<=\d) (?=[A-Za-z])", _GLUE, line.lstrip(" ")),
            width,
            initial_indent=" " * (len(line) - len(line.lstrip(" "))),
            subsequent_indent=" " * (hang if hang < width // 2 else 4),
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield from (item.replace(_GLUE, " ") for item in folded or [""])


def _list_findings(
    title: str, findings: Sequence[Finding], counts: Counter[str]
) -> Iterator[str]:
    if findings:
        yield ""
        yield title
    for number, finding in enumerate(findings, start=1):
        yield f"  {number}. {finding.code} at {finding.place}: {finding.message}"
        for name, value in (
            ("expected", finding.expected),
            ("found", finding.found),
            ("blob", finding.blob_sha256),
            *(("evidence", message) for message in finding.evidence),
        ):
            if value:
                yield f"       {name + ':':<9} {value}"
    listed = Counter(str(finding.code) for finding in findings)
    for code, count in sorted((counts - listed).items()):
        yield f"  and {count:,} more of {code}"


def _verdict(report: Report) -> str:
    if report.is_sound:
        aside = "" if report.has_blobs else ", blobs aside: none was checked"
        return f"SOUND: the log of {report.federation_id} checks out{aside}."
    if report.is_unknown:
        return (
            f"UNKNOWN: the log of {report.federation_id} follows rules that this "
            "version does not know; what comes before is sound."
        )
    count = report.num_findings.total()
    return (
        f"WRONG: the log of {report.federation_id} does not check out: "
        f"{counted(count, 'finding')}."
    )


def _show_final(finality: Finality | None) -> str:
    if finality is None:
        return ""
    if finality.final_height < 0:
        return "no block"
    return (
        f"up to block {finality.final_height:,}, size {finality.final_size:,}: "
        f"{counted(finality.num_certified, 'block')} by their own certificates, "
        f"{finality.num_by_descendant:,} by a later block's; "
        f"{counted(finality.num_epochs, 'epoch')}"
    )


def _show_cosigned(finality: Finality | None) -> str:
    if finality is None:
        return ""
    text = f"size {finality.cosigned_size:,} by a quorum"
    if finality.policy_size is not None:
        text += f", size {finality.policy_size:,} as your policy demands"
    return text


def _list_eras(finality: Finality | None) -> Iterator[Sequence[str]]:
    for era in finality.eras if finality is not None else ():
        yield (
            f"era {era.era}",
            f"from block {era.first_height:,}",
            f"quorum {era.quorum} of {len(era.nodes)}",
            " ".join(era.nodes),
        )


def _list_nodes(finality: Finality | None) -> Iterator[Sequence[str]]:
    for node in finality.nodes if finality is not None else ():
        yield (
            node.name,
            "" if node.is_present else "former",
            counted(node.num_attestations, "attestation"),
            counted(node.num_cosignatures, "cosignature"),
            f"{counted(node.num_blocks_behind, 'block')} behind"
            if node.is_present
            else "",
        )


def _list_equivocations(report: Report) -> Iterator[Sequence[str]]:
    for proven in report.equivocations:
        yield (
            f"leaf {proven.leaf_index}",
            proven.offence,
            proven.public_key,
            f"era {proven.era}, epoch {proven.epoch}, at {proven.position}",
        )


def _list_balances(report: Report) -> Iterator[Sequence[str]]:
    for account, points in sorted(
        report.balances.items(), key=lambda item: (-item[1], item[0])
    ):
        yield account, f"{points:,}"


def _list_refused(report: Report) -> Iterator[Sequence[str]]:
    for refused in report.refused:
        yield (
            f"leaf {refused.leaf_index}",
            refused.reason,
            refused.source,
            refused.detail,
        )


def _show_rechecked(report: Report) -> str:
    if not report.rechecked:
        return ""
    rows = sum(len(rechecked.rows) for rechecked in report.rechecked)
    of = sum(rechecked.num_rows for rechecked in report.rechecked)
    return (
        f"{rows:,} of {counted(of, 'row')} of opened sums, by another library (py-ecc)"
    )


def _list_rechecked(report: Report) -> Iterator[Sequence[str]]:
    for rechecked in report.rechecked[:MAX_RECHECKED]:
        which = "row " if len(rechecked.rows) == 1 else "rows "
        which += ", ".join(map(str, rechecked.rows))
        yield f"round {rechecked.round}", f"{which} of {rechecked.num_rows}"
    more = len(report.rechecked) - MAX_RECHECKED
    if more > 0:
        yield f"and {counted(more, 'more round')}", "(--json lists them)"


def _align(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield rows with aligned columns."""
    table = [[*map(printable, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  " + "  ".join(cells).rstrip()


def _show_checkpoints(report: Report) -> str:
    text = f"{report.num_checkpoints:,} verified"
    if report.num_unsigned_blocks:
        text += f"; {counted(report.num_unsigned_blocks, 'block')} too new for one"
    return text


def _show_noise(report: Report) -> str:
    return ", ".join(
        f"{noise.count:,} {noise.code} on {noise.topic}" for noise in report.noise
    )


def _show_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _show_size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004  # binary units
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
