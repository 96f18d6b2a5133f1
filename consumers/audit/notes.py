"""A report's notes for people: what was left out, and whose word is believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from adapters.wording import counted
from consumers.audit.modes import Watch
from consumers.audit.report import Report


def list_notes(
    report: Report, watches: Iterable[Watch], *, has_nodes: bool
) -> Iterator[str]:
    """Yield a report's notes.

    Args:
        report: The report, complete but for its notes.
        watches: The watches of particular modes.
        has_nodes: Whether the federation has ledger nodes.
    """
    if report.operator_key and not report.is_operator_key_pinned:
        yield (
            f"The operator's key {report.operator_key} is the log's own word: "
            "compare it with what the operator gave you, and pin it."
        )
    if not report.has_blobs:
        yield "Blobs were left out: no sum and no model was computed again."
    if report.has_second_opinion and not report.rechecked:
        yield "There was nothing for a second opinion: no sum rests on commitments."
    elif report.has_second_opinion:
        num_others = report.num_rounds_recomputed - len(report.rechecked)
        if num_others:
            yield (
                f"{counted(num_others, 'recomputed round')} had no second opinion: an "
                "earlier audit asked for none."
            )
    if not report.has_checkpoints:
        yield "Checkpoints were left out: a cut at the log's end would not show."
    yield from _list_noise(report)
    yield from _say_what_is_final(report, has_nodes=has_nodes)
    if report.continued_from:
        blocks = counted(report.continued_from, "block")
        yield (
            f"Your earlier audit verified the first {blocks}; this one did not read "
            "that part again."
        )
    if report.num_blocks:
        yield (
            f"Nothing in a log proves that it goes no further: compare size "
            f"{report.num_leaves} and root {report.tree_root} with what others saw."
        )
    if report.num_claims_unchecked:
        yield (
            "Rejected for blobs that the store does not have, on the aggregator's "
            f"word: {counted(report.num_claims_unchecked, 'update')}."
        )
    if report.num_refusals_unchecked:
        yield (
            "Refused for their signature, key or order, which a refusal does not "
            "keep, on the sequencer's word: "
            f"{counted(report.num_refusals_unchecked, 'record')}."
        )
    for watch in watches:
        yield from watch.list_notes(report)
    if report.facts["ModelVersionRegistered"]:
        yield (
            "Model versions' accuracy and loss, and that each ONNX file is its model, "
            "are the exporter's word."
        )
    if report.pending:
        oldest = min(item.cause_leaf_index for item in report.pending)
        yield (
            "Concluded from the log and not on it yet: "
            f"{counted(len(report.pending), 'fact')}, the oldest from leaf {oldest}."
        )


def _list_noise(report: Report) -> Iterator[str]:
    for topic in sorted({noise.topic for noise in report.noise}):
        kinds = [noise for noise in report.noise if noise.topic == topic]
        count = sum(noise.count for noise in kinds)
        yield (
            f"Passed over on {topic}, where they change nothing: "
            f"{counted(count, 'record')} not by a ledger node, or altered by somebody "
            "else who may write there, the first at offset "
            f"{min(noise.first.offset or 0 for noise in kinds)}."
        )
    if report.node_faults:
        yield (
            "Single ledger nodes said something wrong: alone it counts for nothing, "
            "and reflects on those nodes only."
        )


def _say_what_is_final(report: Report, *, has_nodes: bool) -> Iterator[str]:
    finality = report.finality
    if not has_nodes:
        if report.num_blocks:
            yield (
                "This federation has no ledger nodes: that there is no second log is "
                "the sequencer's word."
            )
    elif finality is None:
        yield "Attestations were left out: finality was not checked."
    else:
        if finality.num_not_final:
            yield (
                "Not final yet, by the attestations that were read: "
                f"{counted(finality.num_not_final, 'block')} at the end."
            )
        if finality.cosigned_size:
            late_s = report.last_block_at_ms / 1_000 - finality.cosigned_at_s
            yield (
                f"The last checkpoint that a quorum cosigned has size "
                f"{finality.cosigned_size} of {report.num_leaves}; by its nodes' "
                f"clocks it was cosigned {abs(late_s):.0f} s "
                f"{'before' if late_s > 0 else 'after'} the last block."
            )
        else:
            yield "No checkpoint was cosigned by a quorum of ledger nodes."
