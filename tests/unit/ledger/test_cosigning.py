"""Cosignatures become a quorum, whatever else arrives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ledger import cosigning
from ledger.checkpoint import (
    Checkpoint,
    cosign_checkpoint,
    sign_checkpoint,
    verify_checkpoint,
)
from ledger.cosigning import CosignatureCollector
from ledger.note import InvalidNoteError, KeyType, Note, VerifierKey, parse_note
from ledger.signing import SigningKey

ORIGIN = "folkmoot/f"
LOG = SigningKey(bytes(32))
LOG_KEY = VerifierKey(ORIGIN, KeyType.ED25519, LOG.public_key)
NODES = [SigningKey(bytes([n]) * 32) for n in range(1, 5)]
NODE_KEYS = [
    VerifierKey(f"node{n}", KeyType.COSIGNATURE_V1, key.public_key)
    for n, key in enumerate(NODES)
]


def note(size: int, node: int, *, root: bytes = b"r" * 32, at: int = 7) -> bytes:
    signed = sign_checkpoint(Checkpoint(ORIGIN, size, root), LOG)
    return cosign_checkpoint(signed, f"node{node}", NODES[node], at)


@pytest.fixture
def collector() -> CosignatureCollector:
    return CosignatureCollector(LOG_KEY, NODE_KEYS, 3)


def test_a_quorum_makes_one_note_that_verifies(collector):
    for node in (2, 0):
        assert collector.add(note(5, node)).size == 5
        assert collector.merge(5) is None
    collector.add(note(5, 3))
    merged = collector.merge(5)
    assert merged is not None
    verified = verify_checkpoint(merged, LOG_KEY, ORIGIN, NODE_KEYS)
    assert [s.key.name for s in verified.cosignatures] == ["node0", "node2", "node3"]
    assert collector.largest() == 5


def test_one_cosigner_counts_once(collector):
    for at in range(3):
        collector.add(note(5, 1, at=at))
    assert collector.merge(5) is None
    assert collector.largest() == 0


def test_merged_notes_can_be_added_again(collector):
    for node in range(3):
        collector.add(note(5, node))
    other = CosignatureCollector(LOG_KEY, NODE_KEYS, 3)
    other.add(collector.merge(5))
    assert other.merge(5) == collector.merge(5)


def test_a_cosigner_that_helps_a_log_sign_two_trees_stands_alone(collector):
    collector.add(note(5, 0, root=b"s" * 32))
    collector.add(note(5, 1))
    collector.add(note(5, 2))
    collector.add(note(5, 0))  # its first word counts
    assert collector.merge(5) is None
    collector.add(note(5, 3))
    verified = verify_checkpoint(collector.merge(5), LOG_KEY, ORIGIN, NODE_KEYS)
    assert verified.checkpoint.root == b"r" * 32
    assert [s.key.name for s in verified.cosignatures] == ["node1", "node2", "node3"]


def test_a_note_without_cosignatures_is_refused(collector):
    with pytest.raises(InvalidNoteError, match="no known cosigner"):
        collector.add(sign_checkpoint(Checkpoint(ORIGIN, 5, b"r" * 32), LOG))


def test_a_bad_cosignature_is_refused(collector):
    stranger = SigningKey(b"x" * 32)
    signed = sign_checkpoint(Checkpoint(ORIGIN, 5, b"r" * 32), stranger)
    with pytest.raises(InvalidNoteError):
        collector.add(cosign_checkpoint(signed, "node0", NODES[0], 7))


def test_strangers_are_left_out_of_what_is_merged(collector):
    for node in range(3):
        signed = note(5, node)
        collector.add(cosign_checkpoint(signed, "stranger", SigningKey(b"x" * 32), 7))
    assert b"stranger" not in collector.merge(5)


def test_what_is_kept_is_bounded(collector, monkeypatch):
    monkeypatch.setattr(cosigning, "MAX_SIZES", 2)
    for size in (1, 2, 3):
        for node in range(3):
            collector.add(note(size, node))
    assert collector.merge(1) is None
    assert collector.merge(2) is not None
    assert collector.largest() == 3


def test_what_the_caller_verified_is_not_verified_again(collector, monkeypatch):
    opened = []
    real = cosigning.verify_checkpoint
    monkeypatch.setattr(
        cosigning, "verify_checkpoint", lambda *a: opened.append(a) or real(*a)
    )
    known = parse_note(sign_checkpoint(Checkpoint(ORIGIN, 5, b"r" * 32), LOG))
    collector.know(known.text, known.signatures[0])
    for node in range(3):
        collector.add(note(5, node))
    assert not opened
    merged = collector.merge(5)
    assert merged is not None
    assert real(merged, LOG_KEY, ORIGIN, NODE_KEYS).checkpoint.size == 5


def test_only_the_very_line_that_was_verified_is_known(collector):
    signed = sign_checkpoint(Checkpoint(ORIGIN, 5, b"r" * 32), LOG)
    other = sign_checkpoint(Checkpoint(ORIGIN, 5, b"r" * 32), NODES[0])
    collector.know(parse_note(signed).text, parse_note(signed).signatures[0])
    forged = parse_note(other).signatures[0]
    line = replace(forged, key_id=parse_note(signed).signatures[0].key_id)
    bad = Note(parse_note(signed).text, (line,)).to_bytes()
    with pytest.raises(InvalidNoteError):
        collector.add(cosign_checkpoint(bad, "node1", NODES[1], 7))


def test_what_is_known_is_bounded(collector, monkeypatch):
    monkeypatch.setattr(cosigning, "MAX_KNOWN", 2)
    for size in range(1, 6):
        signed = sign_checkpoint(Checkpoint(ORIGIN, size, b"r" * 32), LOG)
        collector.know(parse_note(signed).text, parse_note(signed).signatures[0])
    assert len(collector._verified) == 2
