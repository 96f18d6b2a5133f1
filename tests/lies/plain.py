"""Lies in rounds of aggregation PLAIN."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from consumers.audit.report import FindingCode
from protocol.encoding import update_to_blob
from protocol.tensors import tensors_to_blob
from schemas import events as e
from schemas.reasons import Reason
from tests.lies.lie import (
    AGENTS,
    COUNTS,
    LIAR,
    SPOILT,
    About,
    accept_all,
    make_lies,
    make_lost,
    make_result,
    make_results,
    make_unkept,
    say,
)
from tests.speaking import AGGREGATOR, Speak, SpeakingLog, speak_honestly, speak_in_turn

MODE: Final = "plain"


def start(**options: Any) -> SpeakingLog:
    """Return a federation before its first round."""
    log = SpeakingLog(cohort_size=len(AGENTS), ledger_nodes=("node0",), **options)
    log.found()
    log.admit(*AGENTS)
    return log


def _submit(blob: bytes) -> Speak:
    def change(log: SpeakingLog, said: e.UpdateSubmitted) -> e.UpdateSubmitted:
        return replace(said, update=log.blobs.store(blob))

    return say(LIAR, e.UpdateSubmitted, change)


def _integers(*values: int) -> Speak:
    return _submit(update_to_blob(np.array(values, np.int32)))


def _tensor(name: str, value: float, kind: type) -> Speak:
    return _submit(tensors_to_blob({name: np.full(6, value, kind)}))


UPDATES: Final = {
    "submits nonsense": (Reason.MALFORMED_BLOB, _submit(b"trust me")),
    "submits zeros": (Reason.MALFORMED_BLOB, _submit(bytes(64))),
    "submits another tensor": (Reason.MALFORMED_BLOB, _tensor("weight", 0, np.int32)),
    "submits too few values": (Reason.WRONG_SHAPE, _integers(*range(5))),
    "submits too many values": (Reason.WRONG_SHAPE, _integers(*range(7))),
    "submits far too many": (Reason.OVERSIZED_BLOB, _integers(*range(2_000))),
    "submits too low a value": (Reason.OUT_OF_RANGE, _integers(*5 * [0], -(2**31))),
    "submits floats": (Reason.WRONG_DTYPE, _tensor("update", 0, np.float32)),
    "submits no numbers": (Reason.NOT_FINITE, _tensor("update", np.nan, np.float32)),
}


def _publish_zeros(log: SpeakingLog) -> None:
    claim = make_result(log, np.zeros(log.num_parameters, np.int64))
    log.say(claim, log.key(AGGREGATOR))
    log.settle()


_NONSENSE: Final = speak_in_turn(
    _submit(b"trust me"),
    say(AGGREGATOR, e.UpdatesChecked, accept_all, times=len(AGENTS)),
)
PUBLISHED: Final = e.AggregatePublished
LOST: Final = (
    (e.UpdateSubmitted, "update", 0, (PUBLISHED,)),
    (e.RoundSealed, "base_model", 0, (e.FederationConfigured, PUBLISHED)),
    (PUBLISHED, "sum", 0, (PUBLISHED,)),
    (PUBLISHED, "model", 0, (PUBLISHED,)),
)
LIES: Final = (
    *make_lies(
        *(MODE, "nobody", About.ANSWERS, LIAR),
        rows={"lies": (COUNTS, speak_honestly)},
        words=sorted({*SPOILT.values(), *(reason for reason, _ in UPDATES.values())}),
    ),
    *make_lies(MODE, "agent", About.ANSWERS, LIAR, rows=UPDATES),
    *make_unkept(
        *(MODE, LIAR, About.ANSWERS, LIAR), kind=e.UpdateSubmitted, blob="update"
    ),
    *make_results(MODE),
    *make_lost(MODE, LOST),
    *make_lies(
        *(MODE, AGGREGATOR, About.RESULT),
        rows={"accepts nonsense and publishes": (COUNTS, _NONSENSE)},
        afterwards=_publish_zeros,
        findings=((FindingCode.INVALID_UPDATE, PUBLISHED),),
    ),
)
