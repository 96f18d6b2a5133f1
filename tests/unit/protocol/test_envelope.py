"""Signatures and ids of events."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from ledger.signing import InvalidSignatureError
from protocol.envelope import (
    compute_fact_id,
    compute_input_id,
    sign_event,
    verify_event,
)
from schemas import codec
from schemas import events as e
from tests.simulation.federation import make_key, update

ANA = make_key("ana")
DATA = codec.encode(update("ana"))
FACT = e.RoundAbandoned(
    federation_id="f",
    round=1,
    cause=bytes(32),
    cause_leaf_index=3,
    output_index=2,
    reason="r",
    detail="d",
)


GENESIS = b"g" * 32


def test_a_signature_is_over_the_domain_and_the_bytes() -> None:
    assert sign_event(ANA, GENESIS, DATA) == ANA.sign(
        b"folkmoot/event/v1\n" + GENESIS + DATA
    )
    verify_event(ANA.public_key, GENESIS, DATA, sign_event(ANA, GENESIS, DATA))


def test_a_signature_without_the_domain_does_not_count() -> None:
    with pytest.raises(InvalidSignatureError):
        verify_event(ANA.public_key, GENESIS, DATA, ANA.sign(DATA))


def test_every_bit_and_the_author_are_signed() -> None:
    signature = sign_event(ANA, GENESIS, DATA)
    with pytest.raises(InvalidSignatureError):
        verify_event(make_key("bea").public_key, GENESIS, DATA, signature)
    for index in range(len(DATA)):
        flipped = bytearray(DATA)
        flipped[index] ^= 1
        with pytest.raises(InvalidSignatureError):
            verify_event(ANA.public_key, GENESIS, bytes(flipped), signature)


def test_an_inputs_id_is_over_its_author_and_its_bytes() -> None:
    expected = hashlib.sha256(b"folkmoot/input/v1\n" + ANA.public_key + DATA).digest()
    assert compute_input_id(ANA.public_key, DATA) == expected
    assert compute_input_id(make_key("bea").public_key, DATA) != expected


def test_a_facts_id_is_over_its_kind_its_cause_and_its_place() -> None:
    expected = hashlib.sha256(
        b"folkmoot/fact/v1\nRoundAbandoned\n" + bytes(32) + b"\0\0\0\2"
    ).digest()
    assert compute_fact_id(FACT) == expected
    assert compute_fact_id(replace(FACT, detail="other words")) == expected
    assert compute_fact_id(replace(FACT, output_index=1)) != expected
    assert compute_fact_id(replace(FACT, cause=b"\1" * 32)) != expected
