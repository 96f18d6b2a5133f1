"""Who may say what in a federation with parties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.clipping import compute_min_norm_bound
from protocol.modes.mpc.commitments import choose_row_length
from protocol.modes.mpc.configuration import (
    MAX_FAR_SIZE_BYTES,
    MAX_NORM_BOUND,
    MAX_PARTIES,
    MAX_SECRET_PARAMETERS,
    list_parties,
)
from protocol.modes.mpc.norm_proof import NormStatement
from protocol.validation import find_configuration_problem, find_problem
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    BASE,
    COMPARING_CONFIG,
    CONFIG,
    MPC,
    MPC_CONFIG,
    admitted,
    checked,
    committed,
    compared,
    edit,
    linked,
    make_blob,
    make_key,
    partial,
    revoked,
)
from tests.unit.protocol.test_admission import Desk

GOOD = [
    committed("ana"),
    linked("p0"),
    compared("p1", b"\0"),
    partial("p2", 2, 20),
]
PARTY = MPC.parties[0]
BAD_BLOB = replace(BASE, size_bytes=0)


def founded() -> Desk:
    return Desk(MPC_CONFIG, admitted("ana"), admitted("bea"))


@pytest.mark.parametrize("event", GOOD)
def test_what_its_author_says_becomes_a_leaf(event: e.LedgerEvent) -> None:
    assert founded().say(event) is None


@pytest.mark.parametrize("event", GOOD)
@pytest.mark.parametrize("signer", ["bea", "p3", "AGGREGATOR", "OPERATOR", "DECIDER"])
def test_nobody_speaks_for_another(event: e.LedgerEvent, signer: str) -> None:
    assert founded().say(event, signer=signer) is Reason.BAD_SIGNATURE


@pytest.mark.parametrize(
    "event", [linked("p9"), compared("p9", b"\0"), partial("p9", 2, 20)]
)
def test_an_unknown_party_says_nothing(event: e.LedgerEvent) -> None:
    assert founded().say(event) is Reason.UNKNOWN_PARTY


@pytest.mark.parametrize("event", [committed("eve")])
def test_an_unknown_agent_says_nothing(event: e.LedgerEvent) -> None:
    assert founded().say(event) is Reason.UNKNOWN_AGENT


@pytest.mark.parametrize("event", [committed("ana")])
def test_a_revoked_agent_says_nothing(event: e.LedgerEvent) -> None:
    desk = founded()
    assert desk.say(revoked("ana")) is None
    assert desk.say(event) is Reason.REVOKED_AGENT


def noise(**changes: e.BlobRef) -> e.PartyNoise:
    blob = make_blob("noise")
    good = e.PartyNoise(commitments=blob, proof=blob, blindings=bytes(48))
    return replace(good, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("event", [linked("p0"), partial("p0", 2, 20)])
def test_a_plain_federation_has_no_parties(event: e.LedgerEvent) -> None:
    assert Desk(CONFIG).say(event) is Reason.UNKNOWN_PARTY


def with_share(**changes: Any) -> e.UpdateCommitted:
    event = committed("ana")
    return replace(
        event, shares=(replace(event.shares[0], **changes), *event.shares[1:])
    )


@pytest.mark.parametrize(
    "event",
    [
        committed("ana", num_examples=0),
        committed("ana", commitments=BAD_BLOB),
        committed("ana", shares=committed("ana").shares * 6),
        with_share(sealed=BAD_BLOB),
        committed("ana", proof=BAD_BLOB),
        replace(linked("p0"), links=BAD_BLOB),
        replace(linked("p0"), noise=noise(commitments=BAD_BLOB)),
        replace(linked("p0"), noise=noise(proof=BAD_BLOB)),
        compared("p0", bytes(MAX_FAR_SIZE_BYTES + 1)),
        replace(partial("p0", 2, 20), partial=BAD_BLOB),
        committed("ana", 0),
        committed("", 1),
        checked(1, reason=Reason.REVOKED_AGENT),
    ],
)
def test_fields_must_make_sense(event: e.LedgerEvent) -> None:
    assert find_problem(event) is not None


@pytest.mark.parametrize(
    "reason",
    [
        Reason.INVALID_PROOF,
        Reason.BAD_SHARE,
        Reason.SHARES_DIFFER,
        Reason.WRONG_PARTIAL,
        Reason.MISSING_BLOB,
    ],
)
def test_what_an_aggregator_may_find(reason: Reason) -> None:
    assert find_problem(checked(1, reason=reason)) is None


def parties(number: int) -> tuple[e.Party, ...]:
    return tuple(
        e.Party(
            name=f"p{i:02}",
            public_key=make_key(f"p{i}").public_key,
            sealing_key=i.to_bytes(32, "big"),
        )
        for i in range(number)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_bound": 2},
        {"num_parameters": MAX_SECRET_PARAMETERS},
        {"num_parameters": 100_000, "norm_bound": compute_min_norm_bound(100_000)},
        {"norm_bound": MAX_NORM_BOUND},
        {"parties": parties(2)},
        {"parties": parties(MAX_PARTIES)},
        {
            "parties": (
                replace(PARTY, sealing_key=bytes(1_216)),
                *MPC.parties[1:],
            )
        },
    ],
)
def test_good_configurations(changes: dict[str, Any]) -> None:
    assert find_problem(edit(MPC_CONFIG, **changes)) is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"mpc": None}, "exactly one of plain, mpc"),
        ({"plain": e.Plain()}, "exactly one of plain, mpc"),
        ({"norm_bound": 0}, "norm_bound"),
        ({"norm_bound": compute_min_norm_bound(4) - 1}, "rounding"),
        ({"num_parameters": MAX_SECRET_PARAMETERS + 1}, "num_parameters"),
        ({"norm_bound": MAX_NORM_BOUND + 1}, "norm_bound"),
        ({"min_cohort": 1}, "min_cohort"),
        ({"parties": ()}, "2 to"),
        ({"parties": parties(1)}, "2 to"),
        ({"parties": parties(MAX_PARTIES + 1)}, "2 to"),
        ({"parties": parties(3)[::-1]}, "ascending"),
        ({"parties": (PARTY, PARTY)}, "ascending"),
        ({"parties": (replace(PARTY, name="A"), PARTY)}, "ascending"),
        (
            {"parties": (PARTY, replace(PARTY, name="p1", sealing_key=b"x" * 32))},
            "keys of its own",
        ),
        (
            {"parties": (PARTY, replace(PARTY, name="p1", public_key=b"x" * 32))},
            "keys of its own",
        ),
        (
            {
                "parties": (
                    replace(PARTY, sealing_key=bytes(31)),
                    *MPC.parties[1:],
                )
            },
            "sealing_key",
        ),
    ],
)
def test_bad_configurations(changes: dict[str, Any], word: str) -> None:
    bad = edit(MPC_CONFIG, **changes)
    assert word in (find_problem(bad) or "")
    problem = find_configuration_problem(bad)
    assert problem is not None
    is_mode = {"plain", "mpc"} & changes.keys()
    assert problem[0] == (Reason.NOT_ONE_MODE if is_mode else Reason.INVALID_PARTIES)


def test_a_configuration_that_compares_is_fine() -> None:
    assert find_problem(COMPARING_CONFIG) is None
    assert find_problem(edit(COMPARING_CONFIG, far_threshold=2**62)) is None


FIRST, *OTHERS = list_parties(COMPARING_CONFIG)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"far_threshold": 0}, "far_threshold"),
        ({"far_threshold": -1}, "far_threshold"),
        ({"far_threshold": 2**62 + 1}, "far_threshold"),
        ({"dealer_key": FIRST.public_key}, "a dealer with a key of its own"),
        ({"min_cohort": 2}, "cohorts must be of 3"),
        ({"parties": (replace(FIRST, address=""), *OTHERS)}, "an address of its own"),
        (
            {"parties": (replace(FIRST, address=OTHERS[0].address), *OTHERS)},
            "an address of its own",
        ),
        ({"parties": (replace(FIRST, address="example.org"), *OTHERS)}, "host:port"),
        ({"parties": (replace(FIRST, address="a b:80"), *OTHERS)}, "host:port"),
    ],
)
def test_bad_ways_to_compare(changes: dict[str, Any], word: str) -> None:
    bad = edit(COMPARING_CONFIG, **changes)
    assert word in (find_problem(bad) or "")
    problem = find_configuration_problem(bad)
    assert problem is not None
    assert problem[0] in {Reason.INVALID_PARTIES, Reason.INVALID_COMPARISON}


def test_a_blob_is_named_by_its_digest() -> None:
    blob = replace(make_blob("a"), sha256=make_blob("b").sha256)
    assert find_problem(replace(linked("p0"), links=blob)) is not None


def test_the_largest_model_can_be_proved_about_and_no_larger_one() -> None:
    def make(num_values: int) -> NormStatement:
        return NormStatement(
            context=b"",
            num_values=num_values,
            row_length=choose_row_length(num_values),
            squared_bound=1,
            rows=(),
            squares=b"",
            masks=b"",
        )

    assert make(MAX_SECRET_PARAMETERS).num_rows
    with pytest.raises(ValueError, match="fit"):
        make(MAX_SECRET_PARAMETERS + 1)
