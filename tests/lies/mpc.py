"""Lies in rounds of aggregation MPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

import numpy as np

from consumers.audit.report import FindingCode
from protocol.modes.mpc.checker import RoundVerifier
from protocol.modes.mpc.commitments import SCALAR_ORDER
from protocol.modes.mpc.round import MpcRound
from protocol.round_view import list_parts
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import make_key
from tests.lies.lie import (
    ADAPTIVE,
    AGENTS,
    COUNTS,
    LIAR,
    SPOILT,
    TRUTH,
    UNEXPECTED,
    About,
    Lie,
    accept_all,
    check,
    compute_sum,
    edit,
    edit_state,
    edit_sum,
    make_lies,
    make_lost,
    make_result,
    make_results,
    make_unkept,
    say,
)
from tests.mpc_builder import MpcLogBuilder, change_byte
from tests.speaking import AGGREGATOR, Speak, speak_honestly, speak_in_turn

MODE: Final = "mpc"
PARTIES: Final = ("p0", "p1", "p2")
PARTY: Final = "p1"
"""Which of them lies."""
FIRST: Final = "p0"
"""Which of them completes a round first."""
PART, RESULT = e.PartialAggregateSubmitted, e.AggregateSubmitted
_make = partial(make_lies, MODE)
_break = partial(make_unkept, MODE)
OTHER_SUM: Final = "AGGREGATOR publishes another sum"
DIFFER, BAD_PROOF = Reason.SHARES_DIFFER, Reason.INVALID_PROOF
BAD_SHARE, BAD_PART = Reason.BAD_SHARE, Reason.WRONG_PARTIAL


class ProvingOnce(MpcLogBuilder):
    """Honest agents say the same in equal rounds, and prove it once.

    Most of a lie's time would go into proofs that it is not about.
    """

    known: ClassVar[dict[Any, Any]] = {}

    def make_answer(self, agent: str, **how: Any) -> e.UpdateCommitted:
        """Return what an agent says, made now or in an equal round before."""
        if how:
            return super().make_answer(agent, **how)
        round_ = agent, self.genesis, self.started_leaf_hash
        if round_ not in self.known:
            before = set(self.blobs)
            said = super().make_answer(agent)
            blobs = {name: self.blobs[name] for name in set(self.blobs) - before}
            self.known[round_] = said, self.states[agent], blobs
        said, self.states[agent], blobs = self.known[round_]
        self.values[self.started.round, agent] = self.make_values(agent)
        self.blobs.update(blobs)
        return said


def start(**options: Any) -> MpcLogBuilder:
    """Return a federation before its first round; its node is a quorum by itself."""
    log = ProvingOnce(
        cohort_size=len(AGENTS), **{"ledger_nodes": ("node0",), **options}
    )
    log.found()
    log.admit(*AGENTS)
    return log


def off(place: int) -> Callable[[tuple[int, ...]], tuple[int, ...]]:
    """Return what makes one of a few numbers off by one."""
    return lambda numbers: tuple(
        number + (i == place % len(numbers)) for i, number in enumerate(numbers)
    )


# Agents


def _commit(change: Callable[[Any, Any], Any]) -> Speak:
    return say(LIAR, e.UpdateCommitted, change)


def _share(**changes: Callable[[Any], Any]) -> Speak:
    """Return what shares something else than is committed to."""
    return _commit(lambda log, _: log.make_answer(LIAR, share=edit(**changes)))


def _store(blob: str, make: Callable[[Any], bytes]) -> Speak:
    return _commit(
        lambda log, said: replace(said, **{blob: log.blobs.store(make(said))})
    )


def _replace_share(number: int, **changes: Callable[[Any, Any], Any]) -> Speak:
    """Return what replaces one share that is committed to, and proves that."""

    def change(log: MpcLogBuilder, said: e.UpdateCommitted) -> e.UpdateCommitted:
        shares = list(said.shares)
        made = {name: make(log, said) for name, make in changes.items()}
        shares[number] = replace(shares[number], **made)
        return log.prove(replace(said, shares=tuple(shares)))

    return _commit(change)


def _make_too_long(log: MpcLogBuilder, _said: Any) -> e.UpdateCommitted:
    """Return an answer that is too long, and proves that for a bound of its own."""
    return log.make_answer(
        LIAR, values=log.make_values(LIAR, largest=2**16), norm_bound=2**22
    )


def _lose_share(log: MpcLogBuilder, said: e.UpdateCommitted) -> e.UpdateCommitted:
    del log.blobs[said.shares[1].sealed.sha256]
    return said


ANOTHERS_PROOF: Final = _commit(
    lambda log, said: replace(said, proof=log.get_said("bea", type(said)).proof)
)
SHARES_A_HUNDRED: Final = _share(values=lambda values: values * 100)
ANSWERS: Final = {
    "shares another update": (
        DIFFER,
        _share(values=lambda values: values + 7 * (np.arange(len(values)) == 299)),
    ),
    "shares an update a hundred times as long": (DIFFER, SHARES_A_HUNDRED),
    "shares other squares": (DIFFER, _share(squares=off(0))),
    "shares other masks": (DIFFER, _share(masks=off(-1))),
    "shares a row's other blinding": (DIFFER, _share(blindings=off(0))),
    "shares another mask blinding": (DIFFER, _share(blindings=off(-1))),
    "is too long": (BAD_PROOF, _commit(_make_too_long)),
    "is too long and has somebody else's proof": (
        BAD_PROOF,
        speak_in_turn(_commit(_make_too_long), ANOTHERS_PROOF),
    ),
    "has somebody else's proof": (BAD_PROOF, ANOTHERS_PROOF),
    "has no proof": (BAD_PROOF, _store("proof", lambda _: b"trust me")),
    "says more examples than it proves": (
        BAD_PROOF,
        _commit(lambda _, said: replace(said, num_examples=said.num_examples + 1)),
    ),
    "seals garbage": (
        BAD_SHARE,
        _replace_share(1, sealed=lambda log, _: log.blobs.store(b"garbage")),
    ),
    "seals one party's share to another": (
        BAD_SHARE,
        _replace_share(1, sealed=lambda _, said: said.shares[0].sealed),
    ),
    "seals a share that is gone": (BAD_SHARE, _commit(_lose_share)),
    "commits to another share": (
        BAD_SHARE,
        _replace_share(2, commitment=lambda _, said: said.shares[0].commitment),
    ),
    "commits to a share by what is no point": (
        BAD_PROOF,
        _replace_share(0, commitment=lambda *_: b"\xff" * 48),
    ),
    "commits by what are no points": (
        BAD_PROOF,
        _store("commitments", lambda said: b"\xff" * said.commitments.size_bytes),
    ),
    "commits to fewer rows": (
        Reason.WRONG_SHAPE,
        _store("commitments", lambda _: bytes(48)),
    ),
    "commits to far more rows": (
        Reason.OVERSIZED_BLOB,
        _store("commitments", lambda _: bytes(48_000)),
    ),
}

# Parties


def _link(change: Callable[[Any], Any]) -> Speak:
    """Return what changes a party's link of one agent's share."""
    entries = edit(
        entries=lambda entries: tuple(
            filter(None, (change(x) if x.agent_id == LIAR else x for x in entries))
        )
    )
    return say(
        PARTY,
        e.SharesLinked,
        lambda log, said: replace(said, links=log.edit(said.links, entries)),
    )


def _part(change: Callable[[Any], Any], party: str = PARTY) -> Speak:
    """Return what changes a party's part, once."""
    return say(
        party,
        PART,
        lambda log, said: replace(said, partial=log.edit(said.partial, change)),
    )


def _heed_the_projection(log: MpcLogBuilder, said: Any) -> Any:
    """Return a part with a poison, made up for in the masks: no check names it."""
    secret = MpcRound(log.view)
    projection = RoundVerifier(secret, log.blobs.fetch).get_sum_projection(secret)
    poison = np.full(3, 1_000, dtype=np.uint64)

    def add(values: bytes) -> bytes:
        words = np.frombuffer(values, "<u8").copy()
        words[:3] += poison
        return words.tobytes()

    def make_up(masks: bytes) -> bytes:
        words = np.frombuffer(masks, "<u8") - projection.multiply_words(poison)
        return words.tobytes()

    return replace(
        said, partial=log.edit(said.partial, edit(values=add, masks=make_up))
    )


def _no_scalar(_: bytes) -> bytes:
    return SCALAR_ORDER.to_bytes(32, "little")


LINKS: Final = {
    "says other projections": (
        DIFFER,
        _link(edit(projections=lambda words: change_byte(words, 80))),
    ),
    "says another blinding": (DIFFER, _link(edit(blinding=change_byte))),
    "says a blinding that is no scalar": (BAD_SHARE, _link(edit(blinding=_no_scalar))),
    "says fewer projections": (BAD_SHARE, _link(edit(projections=lambda x: x[8:]))),
    "says nothing of a share": (BAD_SHARE, _link(lambda _: None)),
    "has an excuse": (
        BAD_SHARE,
        _link(edit(reason=lambda _: BAD_SHARE, detail=lambda _: "can't open it")),
    ),
}
NO_LINKS: Final = say(
    PARTY,
    e.SharesLinked,
    lambda log, said: replace(said, links=log.blobs.store(b"no links")),
)
OTHER_VALUES: Final = edit(values=lambda values: change_byte(values, 8 * 299))
PARTS: Final = {
    "says other values": (BAD_PART, _part(OTHER_VALUES)),
    "says other masks": (BAD_PART, _part(edit(masks=lambda x: change_byte(x, 8)))),
    "says other blindings": (BAD_PART, _part(edit(row_blindings=change_byte))),
    "says another opening": (BAD_PART, _part(edit(opening=change_byte))),
    "says fewer values": (BAD_PART, _part(edit(values=lambda x: x[8:]))),
    "says an opening that is no scalar": (BAD_PART, _part(edit(opening=_no_scalar))),
    "gives another's part": (
        BAD_PART,
        say(
            PARTY,
            PART,
            lambda log, said: replace(
                said, partial=log.get_said(FIRST, type(said)).partial
            ),
        ),
    ),
}
BOTH_PARTS: Final = speak_in_turn(_part(OTHER_VALUES), _part(OTHER_VALUES, "p2"))
HEEDING: Final = say(PARTY, PART, _heed_the_projection)


def _decline(_log: Any, said: e.SharesLinked) -> e.PartyDeclined:
    return e.PartyDeclined(
        federation_id=said.federation_id,
        round=said.round,
        party=said.party,
        reason="AGENT_SUMMED_BEFORE",
        detail="dora",
    )


def _link_twice(log: MpcLogBuilder, said: e.SharesLinked) -> list[e.Event]:
    return [said, replace(said, links=log.blobs.store(b"other links"))]


def _give_part_of_others(_log: Any, said: e.PartialAggregateSubmitted) -> list[e.Event]:
    return [replace(said, num_contributions=said.num_contributions - 1), said]


def _hurry(log: MpcLogBuilder, claim: e.AggregateSubmitted) -> e.AggregateSubmitted:
    log.say(replace(claim, party=PARTY), make_key(PARTY))
    return claim


WORDS: Final = {
    "gives a part of other updates": (
        COUNTS,
        say(PARTY, PART, _give_part_of_others),
    ),
    "links twice": (COUNTS, say(PARTY, e.SharesLinked, _link_twice)),
    "completes the round too early": (
        COUNTS,
        say(AGGREGATOR, RESULT, _hurry),
    ),
}


def _compare(far: bytes) -> Speak:
    return say(PARTY, e.UpdatesCompared, lambda _, said: [replace(said, far=far), said])


# The aggregator, and who completes a round if it is silent


def _hush(log: MpcLogBuilder, author: str, event: Any) -> list[Any]:
    """Let the aggregator say nothing of a round's parts, nor of its result."""
    return [] if author == AGGREGATOR and log.is_complete else [event]


def _publish(log: MpcLogBuilder) -> None:
    log.say(make_result(log, compute_sum(log)), make_key(AGGREGATOR))
    log.settle()


def _accuse(log: MpcLogBuilder, claim: e.AggregateSubmitted) -> e.Event:
    return check(log, BAD_PART, list_parts(log.view)["p2"], party=claim.party)


def _complete(name: str, change: Any, code: str, kind: type, **more: Any) -> list[Lie]:
    """Return the lie of the party that completes a round."""
    speak = speak_in_turn(_hush, say(FIRST, RESULT, change))
    return _make(
        *("party", About.RESULT),
        rows={f"completes the round and {name}": (COUNTS, speak)},
        afterwards=lambda log: log.pass_deadline(),
        findings=((code, kind),),
        **more,
    )


TOO_FEW: Final = ((e.RoundAbandoned, Reason.NOT_ENOUGH_CONTRIBUTIONS),)
DECLINED: Final = ((e.RoundAbandoned, Reason.PARTY_DECLINED),)
HONEST: Final = {"lies": (COUNTS, speak_honestly)}
SUMS_ANOTHER: Final = speak_in_turn(
    SHARES_A_HUNDRED, say(AGGREGATOR, e.UpdatesChecked, accept_all), _hush
)
FAR: Final = {
    f"says who is far from whom: {far.hex() or 'nothing'}": (COUNTS, _compare(far))
    for far in (b"", bytes(2), bytes([1]), bytes([0b11111100]))
}
ACCEPTED, PUBLISHED = e.ContributionAccepted, e.AggregatePublished
LOST: Final = (
    (e.UpdateCommitted, "commitments", 2, (ACCEPTED, PUBLISHED)),
    (e.UpdateCommitted, "proof", 1, (ACCEPTED,)),
    (e.SharesLinked, "links", 4, (ACCEPTED, PUBLISHED)),
    (PART, "partial", 1, (PUBLISHED,)),
    (e.RoundSealed, "base_model", 1, (e.FederationConfigured, PUBLISHED)),
    (PUBLISHED, "sum", 0, (PUBLISHED,)),
    (PUBLISHED, "model", 0, (PUBLISHED,)),
)
LIES: Final = (
    *_make(
        *("nobody", About.ANSWERS, LIAR),
        rows=HONEST,
        words=(BAD_PROOF, DIFFER, BAD_SHARE, *SPOILT.values()),
    ),
    # Links were perhaps not there when the aggregator looked.
    *_make(
        *("no agent", About.ANSWERS, *AGENTS),
        rows=HONEST,
        words=(BAD_SHARE, BAD_PROOF),
    ),
    *_make(
        *("no party", About.PARTS, "p2"),
        rows=HONEST,
        words=(BAD_PART, Reason.WRONG_SUM, *SPOILT.values()),
    ),
    *make_results(MODE),
    *_make(
        *(AGGREGATOR, About.RESULT),
        rows={"accepts what was not committed to, and sums it": (COUNTS, SUMS_ANOTHER)},
        afterwards=_publish,
        findings=(
            (FindingCode.INVALID_UPDATE, ACCEPTED),
            (FindingCode.NOT_COMPUTABLE, PUBLISHED),
        ),
    ),
    *_make("agent", About.ANSWERS, LIAR, rows=ANSWERS),
    *_break(LIAR, About.ANSWERS, LIAR, kind=e.UpdateCommitted, blob="commitments"),
    *_break(LIAR, About.ANSWERS, LIAR, kind=e.UpdateCommitted, blob="proof"),
    *_make("party", About.ANSWERS, LIAR, rows=LINKS),
    *_make(
        *("party", About.ANSWERS, *AGENTS),
        rows={"says links that nobody can read": (BAD_SHARE, NO_LINKS)},
        facts=TOO_FEW,
    ),
    *_break(
        *(PARTY, About.ANSWERS, *AGENTS),
        kind=e.SharesLinked,
        blob="links",
        reason=BAD_SHARE,
        facts=TOO_FEW,
    ),
    *_make("party", About.PARTS, PARTY, rows=PARTS),
    *_make(
        *("two parties", About.PARTS, "p1", "p2"),
        rows={"say other values": (BAD_PART, BOTH_PARTS)},
    ),
    # Nobody can say whose part is wrong.
    *_make(
        *("party", About.PARTS, *PARTIES),
        rows={"heeds the projection": (Reason.WRONG_SUM, HEEDING)},
    ),
    *_break(PARTY, About.PARTS, PARTY, kind=PART, blob="partial"),
    *_make("party", About.NOTHING, rows=WORDS, facts=UNEXPECTED),
    *_make(
        *("party", About.NOTHING),
        rows={"declines": (COUNTS, say(PARTY, e.SharesLinked, _decline))},
        facts=DECLINED,
    ),
    *_make(
        *("party", About.NOTHING),
        rows=FAR,
        facts=UNEXPECTED,
        options={"far_threshold": 2**62},
    ),
    *make_lost(MODE, LOST),
    *_complete("says another sum", edit_sum, FindingCode.WRONG_SUM, PUBLISHED),
    *_complete(
        *("says another state", edit_state, FindingCode.WRONG_STATE, PUBLISHED),
        options=ADAPTIVE,
    ),
    *_complete(
        "accuses another", _accuse, FindingCode.CLAIM_CONTRADICTED, e.PartialRejected
    ),
)


def tell(name: str, word: str | None = TRUTH) -> MpcLogBuilder:
    """Return the log of a round in which a lie of the table is told.

    Args:
        name: Who tells it, and its name.
        word: What the aggregator says of it.
    """
    (lie,) = (x for x in LIES if f"{x.teller} {x.name}" == name and x.word == word)
    log = lie.tell(start)
    assert isinstance(log, MpcLogBuilder)
    return log
