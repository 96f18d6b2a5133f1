"""What ledger nodes sign: bytes, bounds, and everything that must be refused."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from ledger.attestations import (
    CLOSING_HASH,
    MAX_NODES,
    START,
    ByteReader,
    Header,
    InvalidMessageError,
    InvalidNodeSetError,
    NodeSet,
    check_header,
    encode_certificate,
    encode_number,
    order,
    read_certificate,
    sign_approval,
    start_certificate,
    verify_attestation,
    verify_certificate,
    verify_epoch_request,
    verify_node_set_change,
)
from ledger.note import KeyType
from ledger.signing import verify_signature
from schemas import events as e
from tests.unit.ledger.nodes import (
    BEGIN,
    CHAIN,
    FEDERATION,
    KEYS,
    NODES,
    STRANGER,
    attest,
    certify,
    make_chain,
    make_header,
    make_key,
    make_nodes,
    request,
)

FIRST, SECOND, *_ = make_chain(2)


def u64(number: int) -> bytes:
    return (number % 2**64).to_bytes(8, "big")


@pytest.mark.parametrize(
    ("num_nodes", "quorum", "max_faulty"),
    [(1, 1, 0), (3, 3, 0), (4, 3, 1), (5, 4, 1), (6, 5, 1), (7, 5, 2), (64, 43, 21)],
)
def test_two_quorums_share_an_honest_node(num_nodes, quorum, max_faulty):
    nodes = make_nodes(*(f"n{i:02}" for i in range(num_nodes)))
    assert (nodes.quorum, nodes.max_faulty) == (quorum, max_faulty)
    assert 2 * quorum - num_nodes >= max_faulty + 1
    assert quorum <= num_nodes - max_faulty


def test_the_hash_of_a_node_set_is_over_era_and_nodes():
    nodes = make_nodes("a", era=3)
    key = make_key("a").public_key
    assert (
        nodes.hash
        == hashlib.sha256(
            b"folkmoot-nodeset/v1\n"
            + u64(3)
            + (u64(1) + b"a" + u64(32) + key + u64(8) + b"http://a")
        ).digest()
    )
    assert nodes.hash != make_nodes("a", era=2).hash
    moved = NodeSet(3, CHAIN, (replace(nodes.nodes[0], url="http://b"),))
    assert moved.hash != nodes.hash


def test_nodes_are_found_by_key_and_cosign_under_their_names():
    assert NODES.find(KEYS[2].public_key) == NODES.nodes[2]
    assert NODES.find(STRANGER.public_key) is None
    vkeys = NODES.vkeys()
    assert [(k.name, k.public_key, k.key_type) for k in vkeys] == [
        (n.name, n.public_key, KeyType.COSIGNATURE_V1) for n in NODES.nodes
    ]


A, B = make_nodes("a", "b").nodes


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ((), "1 to 64 nodes, not 0"),
        ((B, A), "ascending order"),
        ((A, A), "ascending order"),
        ((A, replace(B, public_key=A.public_key)), "two nodes have one key"),
        ((replace(A, public_key=b"short"),), "not 32 bytes"),
        *(
            ((replace(A, name=name),), "1 to 64 of")
            for name in ("", "A", "a b", "a\n", "n" * 65)
        ),
    ],
)
def test_what_cannot_be_a_node_set(nodes, says):
    with pytest.raises(InvalidNodeSetError, match=says):
        NodeSet(0, CHAIN, nodes)


def test_the_bounds_of_a_node_set():
    names = [f"n{i:02}" for i in range(MAX_NODES + 1)]
    assert len(make_nodes(*names[:-1]).nodes) == MAX_NODES
    with pytest.raises(InvalidNodeSetError, match="not 65"):
        make_nodes(*names)
    with pytest.raises(InvalidNodeSetError, match="an era is 0 or more"):
        NodeSet(-1, CHAIN, (A,))
    with pytest.raises(InvalidNodeSetError, match="an era is 0 or more"):
        NodeSet(0, CHAIN[1:], (A,))
    assert NodeSet(0, CHAIN, (replace(A, name="n" * 64),))


def test_a_header_is_216_bytes_and_its_id_their_hash():
    data = SECOND.to_bytes()
    assert data == (
        CHAIN
        + u64(0)
        + u64(1)
        + FIRST.id
        + SECOND.block_hash
        + u64(6)
        + SECOND.tree_root
        + SECOND.state_root
        + NODES.hash
    )
    assert len(data) == 216
    assert SECOND.id == hashlib.sha256(b"folkmoot-header/v1\n" + data).digest()
    reader = ByteReader(data)
    assert Header.read(reader) == SECOND
    reader.finish()
    with pytest.raises(InvalidMessageError, match="end before byte"):
        Header.read(ByteReader(data[:-1]))


@pytest.mark.parametrize("changed", ["era", "height", "tree_size"])
def test_a_header_has_no_negative_numbers(changed):
    with pytest.raises(InvalidMessageError, match="0 or more"):
        make_header(**{changed: -1})


@pytest.mark.parametrize(
    "changed",
    [
        "chain_id",
        "previous_id",
        "block_hash",
        "tree_root",
        "state_root",
        "node_set_hash",
    ],
)
@pytest.mark.parametrize("size", [31, 33])
def test_a_header_has_no_hash_of_another_size(changed, size):
    with pytest.raises(InvalidMessageError, match="32 bytes each"):
        make_header(**{changed: bytes(size)})


def test_a_closing_child_adds_nothing():
    closing = SECOND.closing_child()
    assert closing == replace(
        SECOND, height=2, previous_id=SECOND.id, block_hash=CLOSING_HASH
    )
    assert closing.id not in {SECOND.id, closing.closing_child().id}


@pytest.mark.parametrize(
    "other", [{"chain_id": bytes(32)}, {"era": 1}, {"node_set_hash": bytes(32)}]
)
def test_a_header_of_elsewhere_is_refused(other):
    check_header(NODES, FIRST)
    with pytest.raises(InvalidMessageError, match="another log, era or node set"):
        check_header(NODES, replace(FIRST, **other))


def test_an_attestation_signs_these_bytes():
    message = attest(KEYS[0], SECOND, epoch=5)
    signed = b"folkmoot-attest/v1\n" + CHAIN + u64(0) + u64(5) + u64(1) + SECOND.id
    verify_signature(KEYS[0].public_key, signed, message.signature)
    assert message == e.BlockAttested(
        federation_id=FEDERATION,
        era=0,
        epoch=5,
        height=1,
        block_id=SECOND.id,
        public_key=KEYS[0].public_key,
        signature=message.signature,
    )
    verify_attestation(NODES, message)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"era": 1}, "a message of era 1, not 0"),
        ({"epoch": 6}, "not a signature"),
        ({"height": 2}, "not a signature"),
        ({"epoch": -1}, "no block has epoch -1"),
        ({"height": -1}, "no block has epoch 5 and height -1"),
        ({"block_id": bytes(32)}, "not a signature"),
        ({"public_key": KEYS[1].public_key}, "not a signature"),
        ({"public_key": STRANGER.public_key}, "is not a node of era 0"),
        ({"signature": bytes(64)}, "not a signature"),
        ({"signature": b""}, "64 bytes"),
    ],
)
def test_an_altered_attestation_is_refused(change, says):
    message = attest(KEYS[0], SECOND, epoch=5)
    with pytest.raises(InvalidMessageError, match=says):
        verify_attestation(NODES, replace(message, **change))


def test_an_attestation_of_another_chain_is_refused():
    elsewhere = NodeSet(0, bytes(32), NODES.nodes)
    with pytest.raises(InvalidMessageError, match="not a signature"):
        verify_attestation(elsewhere, attest(KEYS[0], FIRST))


def test_a_request_signs_these_bytes():
    message = request(KEYS[0], 1)
    signed = (
        b"folkmoot-newepoch/v1\n"
        + CHAIN
        + u64(0)
        + u64(1)
        + (u64(0) + u64(0) + u64(-1) + START)
    )
    verify_signature(KEYS[0].public_key, signed, message.signature)
    verify_epoch_request(NODES, message, BEGIN)
    verify_epoch_request(NODES, request(KEYS[0], 4, certify(SECOND, 3)), BEGIN)


HIGH = certify(SECOND, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"era": 1}, "a message of era 1"),
        ({"epoch": 5}, "not a signature"),
        ({"epoch": 3}, "epoch 3 cannot follow one of 3"),
        ({"high": replace(HIGH, epoch=-1)}, "cannot follow one of -1"),
        ({"high": replace(HIGH, era=1)}, "not a signature"),
        ({"high": replace(HIGH, epoch=2)}, "not a signature"),
        ({"high": replace(HIGH, height=2)}, "not a signature"),
        ({"high": replace(HIGH, block_id=bytes(32))}, "not a signature"),
        ({"high": replace(HIGH, signatures=HIGH.signatures[:2])}, "2 signatures"),
        ({"high": replace(HIGH, signatures=())}, "needs no signatures"),
        ({"public_key": STRANGER.public_key}, "is not a node"),
        ({"public_key": KEYS[1].public_key}, "not a signature"),
    ],
)
def test_an_altered_request_is_refused(change, says):
    message = request(KEYS[0], 4, HIGH)
    with pytest.raises(InvalidMessageError, match=says):
        verify_epoch_request(NODES, replace(message, **change), BEGIN)


def test_a_certificate_that_is_known_need_not_be_verified_again():
    bad = replace(HIGH, signatures=HIGH.signatures[:1])
    message = request(KEYS[0], 4, bad)
    verify_epoch_request(NODES, message, BEGIN, known=[bad])
    with pytest.raises(InvalidMessageError, match="1 signatures"):
        verify_epoch_request(NODES, message, BEGIN)


def test_a_start_stands_for_a_certificate():
    start = start_certificate(0, BEGIN)
    verify_certificate(NODES, start, BEGIN)
    assert order(start) == (0, -1) < order(certify(FIRST)) < order(certify(FIRST, 1))
    for other in (
        replace(start, epoch=1),
        replace(start, height=0),
        replace(start, block_id=FIRST.id),
    ):
        with pytest.raises(InvalidMessageError, match="only the start of era 0"):
            verify_certificate(NODES, other, BEGIN)
    with pytest.raises(InvalidMessageError, match="of era 1"):
        verify_certificate(NODES, replace(start, era=1), BEGIN)


def test_a_certificate_is_a_quorum_of_distinct_nodes():
    certificate = certify(SECOND, 3)
    verify_certificate(NODES, certificate, BEGIN)
    verify_certificate(NODES, certify(SECOND, keys=KEYS), BEGIN)
    a, b, c = certificate.signatures
    stranger = certify(SECOND, 3, (*KEYS[:2], STRANGER))
    for bad, says in (
        (replace(certificate, signatures=(a, b)), "2 signatures of the 3"),
        (replace(certificate, signatures=(a, b, b)), "each key once"),
        (replace(certificate, signatures=(b, a, c)), "ascending order"),
        (stranger, "is not a node"),
        (replace(certificate, epoch=4), "not a signature"),
        (replace(certificate, height=2), "not a signature"),
        (replace(certificate, block_id=FIRST.id), "not a signature"),
        (replace(certificate, era=1), "of era 1"),
        (replace(certificate, epoch=-1), "has epoch -1"),
    ):
        with pytest.raises(InvalidMessageError, match=says):
            verify_certificate(NODES, bad, BEGIN)
    with pytest.raises(InvalidMessageError, match="no block of era 0"):
        verify_certificate(NODES, certificate, (1, SECOND.id))


def test_every_signature_in_a_certificate_is_verified():
    certificate = certify(SECOND, keys=KEYS)
    for i, signature in enumerate(certificate.signatures):
        flipped = bytes([signature.signature[0] ^ 1]) + signature.signature[1:]
        bad = list(certificate.signatures)
        bad[i] = replace(signature, signature=flipped)
        with pytest.raises(InvalidMessageError, match="not a signature"):
            verify_certificate(
                NODES, replace(certificate, signatures=tuple(bad)), BEGIN
            )


def test_a_certificate_survives_its_bytes():
    for certificate in (start_certificate(0, BEGIN), certify(SECOND, 7)):
        data = encode_certificate(certificate)
        reader = ByteReader(data)
        assert read_certificate(reader) == certificate
        reader.finish()
        for end in range(len(data)):
            with pytest.raises(InvalidMessageError, match="end before byte"):
                read_certificate(ByteReader(data[:end]))


@pytest.mark.parametrize("count", [-1, MAX_NODES + 1])
def test_a_certificate_names_no_more_nodes_than_there_are(count):
    data = encode_number(0) * 3 + bytes(32) + encode_number(count)
    with pytest.raises(InvalidMessageError, match=f"a certificate of {count}"):
        read_certificate(ByteReader(data))


def test_bytes_are_read_strictly():
    reader = ByteReader(b"ab" + u64(-5))
    with pytest.raises(InvalidMessageError, match="do not start with"):
        ByteReader(b"ab").expect(b"ac")
    reader.expect(b"ab")
    with pytest.raises(InvalidMessageError, match="8 bytes too many"):
        reader.finish()
    with pytest.raises(InvalidMessageError, match="end before"):
        reader.take(-1)
    assert reader.number() == -5
    reader.finish()


NEXT = make_nodes("m0", "m1", era=1)


def make_change(approvers=KEYS[:3], nodes=NEXT, changed=None) -> e.NodeSetChanged:
    approvals = [sign_approval(k, CHAIN, nodes.era, nodes.hash) for k in approvers]
    return e.NodeSetChanged(
        federation_id=FEDERATION,
        era=nodes.era,
        nodes=nodes.nodes if changed is None else changed,
        approvals=tuple(sorted(approvals, key=lambda a: a.public_key)),
    )


def test_an_approval_signs_these_bytes():
    approval = sign_approval(KEYS[0], CHAIN, 1, NEXT.hash)
    signed = b"folkmoot-nodeset/v1\n" + CHAIN + u64(1) + NEXT.hash
    verify_signature(KEYS[0].public_key, signed, approval.signature)


def test_a_quorum_of_present_nodes_may_change_the_nodes():
    assert verify_node_set_change(NODES, make_change()) == NEXT
    assert verify_node_set_change(NODES, make_change(KEYS)) == NEXT


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (make_change(KEYS[:2]), "2 approvals of the 3"),
        (make_change((*KEYS[:2], STRANGER)), "is not a node of era 0"),
        (make_change((*KEYS[:2], make_key("m0"))), "is not a node of era 0"),
        (make_change((*KEYS[:2], KEYS[1])), "each key once"),
        (make_change(nodes=make_nodes("m0", era=2)), "era 2 does not follow era 0"),
        (make_change(nodes=make_nodes("m0", era=0)), "era 0 does not follow era 0"),
        (make_change(changed=NEXT.nodes[:1]), "not a signature"),
    ],
)
def test_a_change_without_consent_is_refused(change, says):
    with pytest.raises(InvalidMessageError, match=says):
        verify_node_set_change(NODES, change)


def test_a_change_to_impossible_nodes_is_refused():
    with pytest.raises(InvalidNodeSetError, match="ascending order"):
        verify_node_set_change(NODES, make_change(changed=NEXT.nodes[::-1]))
