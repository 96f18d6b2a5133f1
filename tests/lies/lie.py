"""What a lie in a round is, what the aggregator makes of it, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from consumers.audit.report import FindingCode
from protocol.aggregation import sum_from_blob, sum_to_blob
from protocol.model import apply_sum
from protocol.modes.mode import Answer
from protocol.round_view import list_parts
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict
from tests.speaking import AGGREGATOR, Speak, SpeakingLog, speak_honestly, speak_in_turn

AGENTS: Final = ("ada", "bea", "dora")
LIAR: Final = "dora"
TRUTH: Final = None
"""What the aggregator says if it says what it means to."""
COUNTS: Final = ""
SPOILT: Final = {
    "gone": Reason.MISSING_BLOB,
    "another": Reason.CORRUPT_BLOB,
    "longer": Reason.OVERSIZED_BLOB,
}
"""How a blob may be in the store, and the reason that it gives."""
UNEXPECTED: Final = ((e.ClaimRejected, Reason.UNEXPECTED_CLAIM),)


class About(StrEnum):
    """What of a round a lie is about."""

    ANSWERS = "answers"
    PARTS = "parts"
    RESULT = "result"
    STORE = "store"
    """Nobody lies; a blob is lost afterwards."""
    NOTHING = "nothing"
    """The decider refuses what is said, or goes by it; no blob shows more."""


OTHERS: Final = {
    About.ANSWERS: (Reason.WRONG_SHAPE, Reason.INVALID_PROOF),
    About.PARTS: (Reason.WRONG_PARTIAL, Reason.WRONG_SUM),
}
"""Reasons that the aggregator may give instead of the true one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lie:
    """A lie that somebody tells in a round, and what the aggregator says of it.

    Attributes:
        mode: The federation's.
        teller: Who tells it.
        name: What is wrong, for people.
        about: What it is about.
        of: Whose answers or parts the aggregator speaks of because of it.
        reason: What is wrong with these, as the log says it; empty if nothing is.
        word: What the aggregator says of them: a reason, `COUNTS`, or what it means to.
        lost: How a blob that they need is in the store, if it is not as promised.
        speak: What is said for what was meant.
        afterwards: What happens once everybody has had its turn.
        findings: If it is about result or store: what the audit finds, and the fact
            that follows from the leaf at which it does.
        num_unchecked: If it is about the store: what nodes cannot check.
        facts: What the decider concludes, and the reasons.
        options: Of the federation.
    """

    mode: str
    teller: str
    name: str
    about: About
    of: tuple[str, ...] = ()
    reason: str = ""
    word: str | None = TRUTH
    lost: str = ""
    speak: Speak = speak_honestly
    afterwards: Callable[[Any], None] = lambda _: None
    findings: tuple[tuple[str, type], ...] = ()
    num_unchecked: int = 0
    facts: tuple[tuple[type, str], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return its name, for people."""
        word = "" if self.word is TRUTH else f", said: {self.word or 'it counts'}"
        return f"{self.mode}: {self.teller} {self.name}{word}"

    @property
    def said(self) -> str:
        """The reason that is given; empty if they are said to count."""
        return self.reason if self.word is TRUTH else self.word

    @property
    def is_of_blobs(self) -> bool:
        """Whether it is about what somebody answered, or gave as its part."""
        return self.about in OTHERS

    def tell(self, start: Callable[..., SpeakingLog]) -> SpeakingLog:
        """Return the log of a round in which it is told."""
        if self.about is About.STORE:
            log = copy(run_honestly(start, tuple(self.options.items())))
            log.blobs = BlobDict(log.blobs)
            self.afterwards(log)
            return log
        log = start(speak=speak_in_turn(self.speak, self._mislead), **self.options)
        assert set(log.request_round()) == {*AGENTS}
        for agent in AGENTS:
            log.answer(agent)
        log.settle()
        if log.awaits_blobs:
            log.pass_deadline()
        self.afterwards(log)
        # The last block has a child or two: so it may become final.
        log.request_finality()
        log.request_finality()
        return log

    def _mislead(self, log: SpeakingLog, author: str, event: Any) -> list[e.Event]:
        """Put the word into the aggregator's mouth, where it speaks of whom it is."""
        if author != AGGREGATOR or self.word is TRUTH:
            return [event]
        if self.about is About.ANSWERS and isinstance(event, e.UpdatesChecked):
            results = (
                replace(r, reason=self.word, detail="")
                if getattr(log.leaves[r.leaf_index], "agent_id", "") in self.of
                else r
                for r in event.results
            )
            return [replace(event, results=tuple(results))]
        if self.about is About.PARTS and log.is_complete and not log.told[self]:
            log.told[self] += 1
            if self.word == COUNTS:
                return [make_result(log, compute_sum(log))]
            parts = list_parts(log.view)
            return [check(log, self.word, *(parts[author] for author in self.of))]
        return [event]


@lru_cache(maxsize=1)
def run_honestly(
    start: Callable[..., SpeakingLog], options: tuple[tuple[str, Any], ...] = ()
) -> SpeakingLog:
    """Return the log of a round in which nobody lies."""
    honest = Lie(
        mode="",
        teller="nobody",
        name="lies",
        about=About.NOTHING,
        options=dict(options),
    )
    return honest.tell(start)


def check(log: SpeakingLog, reason: str, *places: int, party: str = "") -> e.Event:
    """Return the claim that what is at some leaves is wrong."""
    results = [e.UpdateCheck(leaf_index=x, reason=reason, detail="") for x in places]
    return e.UpdatesChecked(
        federation_id=log.federation_id, round=1, results=tuple(results), party=party
    )


def compute_sum(log: SpeakingLog) -> NDArray[np.int64]:
    """Return what the round in progress must come to, from the updates in the clear."""
    return sum(
        (c.num_examples * log.values[1, c.agent_id] for c in log.view.contributions),
        start=np.zeros(log.num_parameters, dtype=np.int64),
    )


def make_result(log: SpeakingLog, total: NDArray[np.int64]) -> e.AggregateSubmitted:
    """Return the claim that the round in progress comes to a sum."""
    sealed = log.view.open.sealed
    assert sealed is not None, "it has a result"
    base = sealed.base_state
    result = apply_sum(
        log.config.strategy,
        total,
        sealed,
        log.blobs[sealed.base_model.sha256],
        parameters=log.config.strategy_parameters,
        state_blob=None if base is None else log.blobs[base.sha256],
    )
    return e.AggregateSubmitted(
        federation_id=log.federation_id,
        round=sealed.round,
        base_model_sha256=sealed.base_model.sha256,
        num_contributions=sealed.num_contributions,
        num_examples=sealed.num_examples,
        sum=log.blobs.store(result.sum_blob),
        model=log.blobs.store(result.model_blob),
        state=None if result.state_blob is None else log.blobs.store(result.state_blob),
    )


# How somebody lies


def say(
    author: str, kind: type, change: Callable[[Any, Any], Any], *, times: int = 1
) -> Speak:
    """Return what lets somebody say something else than an event, so many times.

    Args:
        author: Who.
        kind: The event's.
        change: Returns what is said instead, or several, of the log and the event.
        times: How often.
    """

    def speak(log: Any, who: str, event: Any) -> Iterable[e.Event]:
        is_it = who == author and isinstance(event, kind)
        if not is_it or log.told[speak] == times:
            return [event]
        log.told[speak] += 1
        said = change(log, event)
        return said if isinstance(said, list) else [said]

    return speak


def edit(**changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what changes fields of a record, each by its function."""
    return lambda record: replace(
        record, **{name: new(getattr(record, name)) for name, new in changes.items()}
    )


def accept_all(_log: Any, checked: e.UpdatesChecked) -> e.UpdatesChecked:
    """Return the claim that all that was checked counts."""
    count = edit(reason=lambda _: COUNTS, detail=lambda _: "")
    return replace(checked, results=tuple(map(count, checked.results)))


def edit_sum(log: SpeakingLog, claim: e.AggregateSubmitted) -> e.AggregateSubmitted:
    """Return the claim with one value of the sum off by one."""
    blob = log.blobs[claim.sum.sha256]
    total = sum_from_blob(blob, num_parameters=log.num_parameters).copy()
    total[3] += 1
    return replace(claim, sum=log.blobs.store(sum_to_blob(total)))


def edit_model(log: SpeakingLog, claim: e.AggregateSubmitted) -> e.AggregateSubmitted:
    """Return the claim with one bit of the model changed."""
    blob = log.blobs[claim.model.sha256]
    return replace(claim, model=log.blobs.store(blob[:-1] + bytes([blob[-1] ^ 1])))


def edit_state(log: SpeakingLog, claim: e.AggregateSubmitted) -> e.AggregateSubmitted:
    """Return the claim with one bit of what the strategy carries changed."""
    assert claim.state is not None, "it carries something"
    blob = log.blobs[claim.state.sha256]
    return replace(claim, state=log.blobs.store(blob[:-1] + bytes([blob[-1] ^ 1])))


def _keep_model(log: SpeakingLog, claim: e.AggregateSubmitted) -> e.AggregateSubmitted:
    return replace(claim, model=log.config.initial_model)


def _edit_both(log: SpeakingLog, _claim: e.AggregateSubmitted) -> e.AggregateSubmitted:
    total = compute_sum(log)
    total[3] -= 2**30
    return make_result(log, total)


def _say_first(change: Callable[[Any], Any]) -> Callable[[Any, Any], list[Any]]:
    return lambda _, claim: [change(claim), claim]


def _take_back(log: SpeakingLog, claim: e.AggregateSubmitted) -> list[e.Event]:
    place = log.leaves.index(log.get_said(LIAR, Answer))
    return [check(log, Reason.WRONG_SHAPE, place), claim]


# Rows


def make_lies(
    mode: str,
    teller: str,
    about: About,
    *of: str,
    rows: Mapping[str, Any],
    words: Iterable[str] = (),
    **more: Any,
) -> list[Lie]:
    """Return lies of a kind, each with everything that the aggregator says of it.

    Args:
        mode: As `Lie` has it, and so are the others.
        teller: Who.
        about: What.
        of: Whose.
        rows: Reason and `speak`, by name.
        words: Reasons for what there is none for. For what there is, it is said to
            count, and another one is given.
        more: What else a lie has.
    """
    known = {"mode": mode, "teller": teller, "about": about, "of": of, **more}
    lies = []
    for name, (reason, speak) in rows.items():
        lie = Lie(name=name, reason=reason, speak=speak, **known)
        others = [x for x in OTHERS[about] if x != reason][:1] if reason else []
        said = [TRUTH, *words, *([COUNTS, *others] if reason else [])]
        lies += [replace(lie, word=word) for word in said]
    return lies


def spoil(log: SpeakingLog, ref: e.BlobRef, how: str) -> None:
    """Let the store have a blob not as it is promised."""
    data = log.blobs.pop(ref.sha256)
    if how != "gone":
        other = bytes([data[0] ^ 1]) + data[1:]
        log.blobs[ref.sha256] = other if how == "another" else data + b"\0"


def make_unkept(
    mode: str,
    author: str,
    about: About,
    *of: str,
    kind: type,
    blob: str,
    reason: str = "",
    **more: Any,
) -> list[Lie]:
    """Return lies in which somebody's blob never was what its event promises."""

    def promise(how: str, log: SpeakingLog, said: Any) -> Any:
        data = log.blobs[getattr(said, blob).sha256]
        ref = log.blobs.store(data[:-1] + bytes([data[-1] ^ 1]))
        spoil(log, ref, how)
        return replace(said, **{blob: ref})

    teller = "agent" if author == LIAR else "party"
    lies = []
    for how, lost in SPOILT.items():
        speak = say(author, kind, partial(promise, how))
        rows = {f"promises {blob} that is {how}": (reason or lost, speak)}
        lies += make_lies(mode, teller, about, *of, rows=rows, lost=lost, **more)
    return lies


def make_lost(
    mode: str,
    rows: Iterable[tuple[type, str, int, Iterable[type]]],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> list[Lie]:
    """Return rounds in which nobody lies, and a blob is lost afterwards.

    Args:
        mode: The federation's.
        rows: The event that names the blob, and how; the number of claims that nodes
            cannot check without it; and the facts that follow from these.
        options: Of the federation.
    """

    def lose(kind: type, blob: str, how: str, log: SpeakingLog) -> None:
        event = next(x for x in log.leaves if isinstance(x, kind))
        spoil(log, getattr(event, blob), how)

    return [
        Lie(
            mode=mode,
            teller="store",
            name=f"has {blob} of {kind.__name__}: {how}",
            about=About.STORE,
            afterwards=partial(lose, kind, blob, how),
            findings=tuple((reason, place) for place in places),
            num_unchecked=num_unchecked,
            options=options,
        )
        for kind, blob, num_unchecked, places in rows
        for how, reason in SPOILT.items()
    ]


def make_results(mode: str) -> list[Lie]:
    """Return the aggregator's lies about the result, which are those of every mode."""
    wrong_sum, wrong_model = FindingCode.WRONG_SUM, FindingCode.WRONG_MODEL
    results = {
        "publishes another sum": (edit_sum, wrong_sum),
        "publishes another model": (edit_model, wrong_model),
        "publishes the model of before": (_keep_model, wrong_model),
        "publishes another sum, and its model": (_edit_both, wrong_sum, wrong_model),
    }
    refused = {
        "says fewer contributions": edit(num_contributions=lambda number: number - 1),
        "says more examples": edit(num_examples=lambda number: number + 1),
        "says another base model": edit(base_model_sha256=lambda _: bytes(32)),
        "speaks of another round": edit(round=lambda _: 2),
    }
    wrong = {name: _say_first(change) for name, change in refused.items()}
    wrong["takes back what counts"] = _take_back
    lies = []
    for name, (change, *codes) in results.items():
        rows = {name: (COUNTS, say(AGGREGATOR, e.AggregateSubmitted, change))}
        found = tuple((code, e.AggregatePublished) for code in codes)
        lies += make_lies(mode, AGGREGATOR, About.RESULT, rows=rows, findings=found)
    rows = {
        name: (COUNTS, say(AGGREGATOR, e.AggregateSubmitted, change))
        for name, change in wrong.items()
    }
    lies += make_lies(mode, AGGREGATOR, About.NOTHING, rows=rows, facts=UNEXPECTED)
    return lies + _make_states(mode)


ADAPTIVE: Final = {"strategy": "FEDADAM"}
"""A federation whose strategy carries something."""


def _make_states(mode: str) -> list[Lie]:
    """Return lies about what a strategy carries, and rounds that lose it."""
    published = e.AggregatePublished
    another, none, some = (
        {name: (COUNTS, say(AGGREGATOR, e.AggregateSubmitted, change))}
        for name, change in {
            "publishes another state": edit_state,
            "says no state": _say_first(edit(state=lambda _: None)),
            "says a state where there is none": lambda _, claim: [
                replace(claim, state=claim.model),
                claim,
            ],
        }.items()
    )
    about = (mode, AGGREGATOR, About.RESULT)
    nothing = (mode, AGGREGATOR, About.NOTHING)
    wrong = ((FindingCode.WRONG_STATE, published),)
    return [
        *make_lies(*about, rows=another, findings=wrong, options=ADAPTIVE),
        *make_lies(*nothing, rows=none, facts=UNEXPECTED, options=ADAPTIVE),
        *make_lies(*nothing, rows=some, facts=UNEXPECTED),
        *make_lost(mode, [(published, "state", 0, (published,))], ADAPTIVE),
    ]
