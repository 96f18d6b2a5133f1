"""A challenge depends on every message, its label and its length."""

import hashlib

import pytest

from protocol.modes.mpc.commitments import SCALAR_ORDER
from protocol.modes.mpc.transcript import STATE_SIZE, Transcript


def draw(*messages, domain=b"test", label=b"e"):
    transcript = Transcript(domain)
    for name, data in messages:
        transcript.append(name, data)
    return transcript.draw_challenge(label)


def test_the_same_messages_give_the_same_challenge():
    assert draw((b"a", b"1"), (b"b", b"2")) == draw((b"a", b"1"), (b"b", b"2"))


@pytest.mark.parametrize(
    "other",
    [
        draw((b"a", b"1"), (b"b", b"3")),
        draw((b"a", b"1"), (b"c", b"2")),
        draw((b"b", b"2"), (b"a", b"1")),
        draw((b"a", b"1b2")),
        draw((b"a", b"1")),
        draw((b"a1", b""), (b"b", b"2")),
        draw((b"a", b"1"), (b"b", b"2"), domain=b"tess"),
        draw((b"a", b"1"), (b"b", b"2"), label=b"f"),
    ],
)
def test_other_messages_give_another_challenge(other):
    assert draw((b"a", b"1"), (b"b", b"2")) != other


def test_drawing_changes_what_is_drawn_next():
    transcript = Transcript(b"test")

    assert transcript.draw_challenge(b"e") != transcript.draw_challenge(b"e")


def test_the_state_is_the_chain_of_hashes_that_is_described():
    transcript = Transcript(b"test")
    transcript.append(b"a", b"data")
    challenge = transcript.draw_challenge(b"e")

    state = bytes(STATE_SIZE)
    for framed in (
        b"\0" + b"\6" + bytes(7) + b"domain" + b"\4" + bytes(7) + b"test",
        b"\0" + b"\1" + bytes(7) + b"a" + b"\4" + bytes(7) + b"data",
        b"\1" + b"\1" + bytes(7) + b"e",
    ):
        state = hashlib.sha512(state + framed).digest()
    assert transcript.state == state
    assert challenge == int.from_bytes(state, "little") % (SCALAR_ORDER - 1) + 1
