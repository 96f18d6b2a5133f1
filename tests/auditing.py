"""Auditing a builder's log, and finding things in it."""

from consumers.audit.auditor import run_audit
from tests.builders import unframe


def audit(log, *, fetch=None, **options):
    return run_audit(
        options.pop("records", log.records),
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=fetch or log.blobs.fetch,
        checkpoints=log.checkpoints,
        **options,
    ).report


def found(report):
    """Return code and leaf of every finding."""
    return [(finding.code, finding.place.leaf_index) for finding in report.findings]


def index_of(log, event_type, number=0):
    places = [i for i, event in enumerate(log.leaves) if isinstance(event, event_type)]
    return places[number]


def only(log, event_type, number=0):
    return log.leaves[index_of(log, event_type, number)]
