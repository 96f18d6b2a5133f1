"""Contradictions are found, proven and verified; nobody honest is framed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ledger.attestations import InvalidMessageError, start_certificate
from ledger.checkpoint import (
    Checkpoint,
    compute_origin,
    cosign_checkpoint,
    sign_checkpoint,
)
from ledger.equivocation import (
    Contradiction,
    Offence,
    find_contradiction,
    identify_contradiction,
    prove_equivocation,
    verify_equivocation,
)
from schemas import codec
from schemas import events as e
from tests.unit.ledger.nodes import (
    BEGIN,
    FEDERATION,
    KEYS,
    NODES,
    STRANGER,
    attest,
    certify,
    make_chain,
    make_key,
    make_nodes,
    request,
)

SEQUENCER = make_key("sequencer")
LIAR, HONEST = KEYS[3], KEYS[0]
CHAIN = make_chain(5)
GENESIS = NODES.chain_id
FORK = make_chain(5, "fork")
START = start_certificate(0, BEGIN)

TWO_BLOCKS = (attest(LIAR, CHAIN[1], 2), attest(LIAR, FORK[1], 2))
TWO_REQUESTS = (request(LIAR, 4, certify(CHAIN[1], 2)), request(LIAR, 4, START))
HIDDEN = (
    attest(LIAR, CHAIN[2], 2),
    attest(LIAR, CHAIN[3], 2),
    request(LIAR, 3, certify(CHAIN[4], 1)),
)
HIDDEN_AT_FIRST = (attest(LIAR, CHAIN[2]), request(LIAR, 1, certify(CHAIN[0])))


def deed(offence: Offence, epoch: int, position: int) -> Contradiction:
    return Contradiction(LIAR.public_key, offence, 0, epoch, position)


GUILTY = [
    (TWO_BLOCKS, deed(Offence.TWO_BLOCKS, 2, 1)),
    (TWO_BLOCKS[::-1], deed(Offence.TWO_BLOCKS, 2, 1)),
    (TWO_REQUESTS, deed(Offence.TWO_REQUESTS, 4, -1)),
    (HIDDEN, deed(Offence.HIDDEN_CERTIFICATE, 2, 2)),
    (HIDDEN_AT_FIRST, deed(Offence.HIDDEN_CERTIFICATE, 0, 1)),
    # From its first certificate on: nothing but the start is below height 0.
    ((attest(LIAR, CHAIN[1]), request(LIAR)), deed(Offence.HIDDEN_CERTIFICATE, 0, 0)),
    (
        (attest(LIAR, CHAIN[1]), request(LIAR, 9)),
        deed(Offence.HIDDEN_CERTIFICATE, 0, 0),
    ),
]


@pytest.mark.parametrize(("messages", "contradiction"), GUILTY)
def test_a_contradiction_is_found_proven_and_verified(messages, contradiction):
    assert find_contradiction(messages) == contradiction
    proven = prove_equivocation(FEDERATION, messages, HONEST.public_key)
    assert (proven.public_key, proven.reported_by) == (
        LIAR.public_key,
        HONEST.public_key,
    )
    assert identify_contradiction(proven) == contradiction
    verdict = verify_equivocation([NODES], GENESIS, SEQUENCER.public_key, proven)
    assert verdict == contradiction


INNOCENT = [
    (TWO_BLOCKS[0], TWO_BLOCKS[0]),
    (attest(HONEST, CHAIN[1], 2), attest(HONEST, FORK[1], 3)),
    (attest(HONEST, CHAIN[1], 2), attest(HONEST, FORK[2], 2)),
    (request(HONEST, 4, START), request(HONEST, 5, certify(CHAIN[1], 2))),
    # Only what was signed counts.
    (
        request(HONEST, 4, certify(CHAIN[1], 2, KEYS[:3])),
        request(HONEST, 4, certify(CHAIN[1], 2, KEYS[1:])),
    ),
    # The block stood on the base of its epoch.
    (attest(HONEST, CHAIN[3], 2), request(HONEST, 3, certify(CHAIN[2], 1))),
    (attest(HONEST, CHAIN[0]), request(HONEST)),
    # Its certificate is as high as it must be.
    (
        attest(HONEST, CHAIN[2], 2),
        attest(HONEST, CHAIN[3], 2),
        request(HONEST, 3, certify(CHAIN[2], 2)),
    ),
    (attest(HONEST, CHAIN[2]), request(HONEST, 1, certify(CHAIN[1]))),
    # Asked for before: who has asked for epoch 1 may well attest in it later.
    (attest(HONEST, CHAIN[2], 1), attest(HONEST, CHAIN[3], 1), request(HONEST)),
    # Not one after the other, or of two epochs.
    (attest(HONEST, CHAIN[1], 2), attest(HONEST, CHAIN[3], 2), request(HONEST, 3)),
    (attest(HONEST, CHAIN[2], 1), attest(HONEST, CHAIN[3], 2), request(HONEST, 3)),
    (attest(HONEST, CHAIN[3], 2), attest(HONEST, CHAIN[2], 2), request(HONEST, 3)),
    # Of two nodes.
    (attest(HONEST, CHAIN[1], 2), attest(LIAR, FORK[1], 2)),
    (request(HONEST, 4, certify(CHAIN[1], 2)), request(LIAR, 4, START)),
    # Nonsense.
    (attest(LIAR, CHAIN[1]),),
    (request(LIAR), attest(LIAR, CHAIN[1])),
    (),
]


@pytest.mark.parametrize("messages", INNOCENT)
def test_honest_messages_do_not_contradict_each_other(messages):
    assert find_contradiction(messages) is None
    if not messages:
        return
    proven = prove_equivocation(FEDERATION, messages, LIAR.public_key)
    with pytest.raises(InvalidMessageError):
        identify_contradiction(proven)
    with pytest.raises(InvalidMessageError):
        verify_equivocation([NODES], GENESIS, SEQUENCER.public_key, proven)


def test_eras_are_told_apart():
    later = make_nodes("n0", "n3", era=1)
    header = replace(CHAIN[1], era=1, node_set_hash=later.hash)
    there = attest(LIAR, header, 2, later)
    assert find_contradiction((TWO_BLOCKS[0], there)) is None
    # Where era 1 starts is not known here: two messages prove nothing.
    pair = attest(LIAR, header, 0, later), request(LIAR, nodes=later)
    assert find_contradiction(pair) is None
    other = attest(LIAR, replace(header, tree_size=9), 2, later)
    proven = prove_equivocation(FEDERATION, (there, other), HONEST.public_key)
    verdict = verify_equivocation([NODES, later], GENESIS, SEQUENCER.public_key, proven)
    assert verdict.era == 1
    with pytest.raises(InvalidMessageError, match="era 1 is not known"):
        verify_equivocation([NODES], GENESIS, SEQUENCER.public_key, proven)


PROVEN = prove_equivocation(FEDERATION, TWO_BLOCKS, HONEST.public_key)


def forge(*messages: e.Event, **changes) -> e.EquivocationProven:
    return replace(PROVEN, messages=tuple(map(codec.encode, messages)), **changes)


@pytest.mark.parametrize(
    ("proven", "says"),
    [
        (replace(PROVEN, messages=()), "do not contradict"),
        (replace(PROVEN, messages=(b"?", b"!")), "not an Avro"),
        (replace(PROVEN, public_key=HONEST.public_key), "of another key"),
        (replace(PROVEN, federation_id="others"), "of another key or federation"),
        (
            forge(TWO_BLOCKS[0], replace(TWO_BLOCKS[1], federation_id="others")),
            "of another key or federation",
        ),
        (forge(*TWO_BLOCKS, PROVEN), "evidence is attestations and requests"),
        (
            forge(TWO_BLOCKS[0], replace(TWO_BLOCKS[1], signature=bytes(64))),
            "not a signature",
        ),
        (
            forge(replace(TWO_BLOCKS[0], signature=bytes(64)), TWO_BLOCKS[1]),
            "not a signature",
        ),
        (
            forge(TWO_REQUESTS[0], replace(TWO_REQUESTS[1], signature=bytes(64))),
            "not a signature",
        ),
        (
            forge(
                *(
                    attest(STRANGER, chain[1], 2, make_nodes("stranger"))
                    for chain in (CHAIN, FORK)
                ),
                public_key=STRANGER.public_key,
            ),
            "is not a node of era 0",
        ),
    ],
)
def test_what_proves_nothing(proven, says):
    with pytest.raises(InvalidMessageError, match=says):
        verify_equivocation([NODES], GENESIS, SEQUENCER.public_key, proven)


ORIGIN = compute_origin(FEDERATION, GENESIS)


def sign_tree(size: int, root: int, key=SEQUENCER, origin=ORIGIN) -> e.CheckpointSigned:
    note = sign_checkpoint(Checkpoint(origin, size, bytes([root]) * 32), key)
    return e.CheckpointSigned(
        federation_id=FEDERATION, height=0, checkpoint=note.decode()
    )


def accuse(*checkpoints: e.CheckpointSigned, key=SEQUENCER) -> e.EquivocationProven:
    return forge(*checkpoints, public_key=key.public_key)


def test_two_trees_of_one_size_convict_the_sequencer():
    cosigned = cosign_checkpoint(
        sign_tree(7, 2).checkpoint.encode(), "n0", HONEST, 1_700_000_000
    )
    for other in (
        sign_tree(7, 2),
        replace(sign_tree(7, 2), checkpoint=cosigned.decode()),
    ):
        proven = accuse(sign_tree(7, 1), other)
        expected = Contradiction(SEQUENCER.public_key, Offence.TWO_TREES, 0, 0, 7)
        assert identify_contradiction(proven) == expected
        assert (
            verify_equivocation([], GENESIS, SEQUENCER.public_key, proven) == expected
        )


@pytest.mark.parametrize(
    ("proven", "says"),
    [
        (accuse(sign_tree(7, 1), sign_tree(7, 1)), "do not contradict"),
        (accuse(sign_tree(7, 1), sign_tree(8, 2)), "do not contradict"),
        (accuse(sign_tree(7, 1), sign_tree(7, 2, LIAR)), "no known key"),
        (accuse(sign_tree(7, 1, LIAR), sign_tree(7, 2)), "no known key"),
        (accuse(sign_tree(7, 1), sign_tree(7, 2), key=LIAR), "signs no checkpoints"),
        (
            accuse(*(sign_tree(7, r, origin="folkmoot/others") for r in (1, 2))),
            "no known key",
        ),
        (accuse(sign_tree(7, 1), sign_tree(7, 2), sign_tree(7, 3)), "evidence is"),
        (accuse(sign_tree(7, 1)), "evidence is"),
        (
            accuse(sign_tree(7, 1), replace(sign_tree(7, 2), checkpoint="?")),
            "an empty line",
        ),
        (
            replace(accuse(sign_tree(7, 1), sign_tree(7, 2)), federation_id="a b"),
            "a key name",
        ),
    ],
)
def test_checkpoints_that_prove_nothing(proven, says):
    with pytest.raises(InvalidMessageError, match=says):
        verify_equivocation([NODES], GENESIS, SEQUENCER.public_key, proven)


def test_evidence_leaves_out_what_it_does_not_need():
    proven = prove_equivocation(FEDERATION, TWO_REQUESTS, HONEST.public_key)
    first = codec.decode_as(e.EpochRequested, proven.messages[0])
    assert first.high.signatures == ()
    assert first == replace(
        TWO_REQUESTS[0], high=replace(TWO_REQUESTS[0].high, signatures=())
    )
