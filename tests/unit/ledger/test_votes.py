"""What a node remembers is exactly what it stored, or nothing."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from ledger.attestations import start_certificate
from ledger.merkle import EMPTY_ROOT
from ledger.votes import VotesLostError, VoteState
from tests.unit.ledger.nodes import BEGIN, KEYS, attest, certify, make_chain, request

CHAIN = make_chain(4)
FIRST = VoteState.begin(0, BEGIN)
FULL = VoteState(
    era=0,
    epoch=3,
    attested=(3, CHAIN[3].id),
    base=certify(CHAIN[2], 3),
    high=certify(CHAIN[2], 3),
    requested_epoch=4,
    entered=tuple(request(key, 3, certify(CHAIN[1])) for key in KEYS[:3]),
    last_attestation=attest(KEYS[0], CHAIN[3], 3),
    last_request=request(KEYS[0], 4, certify(CHAIN[2], 3)),
    cosigned_size=6,
    cosigned_root=CHAIN[1].tree_root,
)


def test_an_era_begins_at_its_start_with_nothing_signed():
    start = start_certificate(0, BEGIN)
    assert (
        VoteState(
            era=0,
            epoch=0,
            attested=BEGIN,
            base=start,
            high=start,
            requested_epoch=0,
            entered=(),
            last_attestation=None,
            last_request=None,
            cosigned_size=0,
            cosigned_root=EMPTY_ROOT,
        )
        == FIRST
    )


def test_what_was_cosigned_outlives_an_era():
    start = (7, CHAIN[0].id)
    votes = VoteState.begin(2, start, cosigned_size=9, cosigned_root=bytes(32))
    assert (votes.cosigned_size, votes.cosigned_root) == (9, bytes(32))
    assert (votes.era, votes.attested) == (2, start)


@pytest.mark.parametrize("votes", [FIRST, FULL])
def test_votes_survive_their_bytes(votes):
    data = votes.to_bytes()
    assert data.startswith(b"folkmoot-votes/v1\n")
    assert VoteState.from_bytes(data) == votes
    assert VoteState.from_bytes(data).to_bytes() == data


def test_no_damage_goes_unnoticed():
    data = FULL.to_bytes()
    for i in range(len(data)):
        with pytest.raises(VotesLostError):
            VoteState.from_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
    for end in (0, 1, 32, 50, len(data) - 1):
        with pytest.raises(VotesLostError, match="not as they were written"):
            VoteState.from_bytes(data[:end])
    with pytest.raises(VotesLostError):
        VoteState.from_bytes(data + b"\0")


def seal(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "bytes end"),
        (b"folkmoot-votes/v2\n", "do not start"),
        (FULL.to_bytes()[:-40], "bytes end"),
        (FULL.to_bytes()[:-32] + b"\0", "1 bytes too many"),
        (
            replace(FIRST, last_request=FULL.last_request)
            .to_bytes()[:-32]
            .replace(b"\xc3\x01", b"\xc3\x02"),
            "not an Avro",
        ),
    ],
)
def test_what_is_not_votes_is_refused_even_under_a_good_digest(body, says):
    with pytest.raises(VotesLostError, match=says):
        VoteState.from_bytes(seal(body))
