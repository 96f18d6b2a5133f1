"""Contradictions: what no honest signer signs, and evidence that somebody did.

An honest signer never signs any of these four, whatever restarts it goes through
(ledger specification, sections 2.5 and 2.6):

- `Offence.TWO_BLOCKS`: two blocks at one height in one epoch;
- `Offence.TWO_REQUESTS`: two requests for one epoch with different certificates;
- `Offence.HIDDEN_CERTIFICATE`: a request that hides a certificate which its sender must
  have held. A node that attested heights h and h+1 in epoch e stood on a certificate of
  h, so it never again asks for an epoch with less than (e, h). Height h+1 alone proves
  nothing, as it may stand on the block that the epoch starts from; only in epoch 0 of
  era 0 every node starts below height 0, and two messages are enough.
- `Offence.TWO_TREES`: the sequencer signed two checkpoints of one size.

A contradiction is judged only by what was signed. Nobody signs the signatures inside a
certificate, nor the federation's name: a relay may alter them without making the sender
look like a liar.

Deliberately not here: the consequences.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from ledger.attestations import (
    InvalidMessageError,
    Message,
    NodeSet,
    check_signature,
    order,
    request_bytes,
    verify_attestation,
)
from ledger.checkpoint import (
    Checkpoint,
    make_log_key,
    parse_checkpoint,
    verify_checkpoint,
)
from ledger.note import InvalidNoteError, parse_note
from schemas import codec
from schemas import events as e


class Offence(StrEnum):
    """How messages contradict each other."""

    TWO_BLOCKS = "TWO_BLOCKS"
    TWO_REQUESTS = "TWO_REQUESTS"
    HIDDEN_CERTIFICATE = "HIDDEN_CERTIFICATE"
    TWO_TREES = "TWO_TREES"


@dataclass(frozen=True, slots=True)
class Contradiction:
    """What somebody did. All evidence of one deed identifies the same.

    Attributes:
        public_key: The offender's key, 32 bytes.
        offence: The kind of contradiction.
        era: The node set; 0 for the sequencer.
        epoch: The epoch attested in or asked for; 0 for the sequencer.
        position: Height of the block, -1 for two requests; for the sequencer the
            checkpoints' size.
    """

    public_key: bytes
    offence: Offence
    era: int
    epoch: int
    position: int


def find_contradiction(messages: tuple[Message, ...]) -> Contradiction | None:
    """Return how a node's messages contradict each other, if they do.

    The only judge of nodes: accuser and verifier cannot disagree. It does not check
    signatures.

    Args:
        messages: Two or three: attestations in ascending order of height, then a
            request.
    """
    if len({(message.era, message.public_key) for message in messages}) != 1:
        return None
    found: tuple[Offence, int, int] | None = None
    match messages:
        case (e.BlockAttested() as a, e.BlockAttested() as b):
            if (a.epoch, a.height) == (b.epoch, b.height) and a.block_id != b.block_id:
                found = Offence.TWO_BLOCKS, a.epoch, a.height
        case (e.EpochRequested() as c, e.EpochRequested() as d):
            # By content: anybody may exchange the signatures in a certificate.
            if c.epoch == d.epoch and _content(c.high) != _content(d.high):
                found = Offence.TWO_REQUESTS, c.epoch, -1
        case (e.BlockAttested() as upper, e.EpochRequested() as request):
            below = upper.height - 1
            if upper.era == upper.epoch == 0 <= below and _hides(request, 0, below):
                found = Offence.HIDDEN_CERTIFICATE, 0, below
        case (
            e.BlockAttested() as lower,
            e.BlockAttested() as upper,
            e.EpochRequested() as request,
        ):
            place = lower.epoch, lower.height
            follows = (upper.epoch, upper.height - 1) == place
            if follows and _hides(request, *place):
                found = Offence.HIDDEN_CERTIFICATE, *place
        case _:
            pass
    if found is None:
        return None
    offence, epoch, position = found
    first = messages[0]
    return Contradiction(first.public_key, offence, first.era, epoch, position)


def _content(certificate: e.QuorumCertificate) -> tuple[int, int, int, bytes]:
    return certificate.era, *order(certificate), certificate.block_id


def _hides(request: e.EpochRequested, epoch: int, height: int) -> bool:
    return request.epoch > epoch and order(request.high) < (epoch, height)


def prove_equivocation(
    federation_id: str, messages: tuple[Message, ...], reported_by: bytes
) -> e.EquivocationProven:
    """Return evidence from messages in which `find_contradiction` found something.

    The signatures inside certificates are left out: they prove nothing here.

    Args:
        federation_id: Whose log.
        messages: As for `find_contradiction`.
        reported_by: The key that will sign the event, 32 bytes.
    """
    bare = (
        replace(message, high=replace(message.high, signatures=()))
        if isinstance(message, e.EpochRequested)
        else message
        for message in messages
    )
    return e.EquivocationProven(
        federation_id=federation_id,
        public_key=messages[0].public_key,
        messages=tuple(map(codec.encode, bare)),
        reported_by=reported_by,
    )


def identify_contradiction(proven: e.EquivocationProven) -> Contradiction:
    """Return what the accused would have done, *without verifying signatures*.

    Raises:
        InvalidMessageError: the messages do not contradict each other, or are not the
            accused's.
    """
    contradiction, _ = _open(proven)
    return contradiction


def verify_equivocation(
    node_sets: Iterable[NodeSet],
    genesis: bytes,
    sequencer_key: bytes,
    proven: e.EquivocationProven,
) -> Contradiction:
    """Return what the accused did, if the messages prove it.

    Args:
        node_sets: Those of all eras so far.
        genesis: Hash of the log's genesis, 32 bytes.
        sequencer_key: The key that signs checkpoints, 32 bytes.
        proven: The accusation.

    Raises:
        InvalidMessageError: it proves nothing; says why.
    """
    contradiction, messages = _open(proven)
    if contradiction.offence is Offence.TWO_TREES:
        _verify_checkpoints(genesis, sequencer_key, proven)
        return contradiction
    for node_set in node_sets:
        if node_set.era == contradiction.era:
            for message in messages:
                _verify_said(node_set, message)
            return contradiction
    raise InvalidMessageError(f"era {contradiction.era} is not known")


def _decode(proven: e.EquivocationProven) -> list[codec.Record]:
    try:
        return list(map(codec.decode, proven.messages))
    except codec.CodecError as error:
        raise InvalidMessageError(str(error)) from None


def _open(
    proven: e.EquivocationProven,
) -> tuple[Contradiction, tuple[Message, ...]]:
    events = _decode(proven)
    checkpoints = [m for m in events if isinstance(m, e.CheckpointSigned)]
    if len(checkpoints) == len(events) == 2:  # noqa: PLR2004  # one against another
        return _compare_checkpoints(proven, *checkpoints), ()
    messages = tuple(
        m for m in events if isinstance(m, e.BlockAttested | e.EpochRequested)
    )
    if len(messages) != len(events):
        msg = "evidence is attestations and requests, or two checkpoints"
        raise InvalidMessageError(msg)
    accused = proven.public_key, proven.federation_id
    if any((m.public_key, m.federation_id) != accused for m in messages):
        msg = "a message is of another key or federation than the accusation"
        raise InvalidMessageError(msg)
    contradiction = find_contradiction(messages)
    if contradiction is None:
        raise InvalidMessageError("the messages do not contradict each other")
    return contradiction, messages


def _verify_said(node_set: NodeSet, message: Message) -> None:
    """Check that a node signed something, sensible or not."""
    if isinstance(message, e.BlockAttested):
        verify_attestation(node_set, message)
        return
    signed = request_bytes(node_set.chain_id, message.era, message.epoch, message.high)
    check_signature(node_set, message.public_key, signed, message.signature)


def _parse_checkpoint(message: e.CheckpointSigned) -> Checkpoint:
    try:
        return parse_checkpoint(parse_note(message.checkpoint.encode()).text)
    except InvalidNoteError as error:
        raise InvalidMessageError(str(error)) from None


def _compare_checkpoints(
    proven: e.EquivocationProven,
    first: e.CheckpointSigned,
    second: e.CheckpointSigned,
) -> Contradiction:
    one, other = _parse_checkpoint(first), _parse_checkpoint(second)
    if one.size != other.size or one.root == other.root:
        raise InvalidMessageError("the checkpoints do not contradict each other")
    return Contradiction(proven.public_key, Offence.TWO_TREES, 0, 0, one.size)


def _verify_checkpoints(
    genesis: bytes, sequencer_key: bytes, proven: e.EquivocationProven
) -> None:
    if proven.public_key != sequencer_key:
        raise InvalidMessageError(f"{proven.public_key.hex()} signs no checkpoints")
    for data in proven.messages:
        note = codec.decode_as(e.CheckpointSigned, data).checkpoint.encode()
        try:
            key = make_log_key(proven.federation_id, genesis, sequencer_key)
            verify_checkpoint(note, key, key.name)
        except ValueError as error:  # not a key's name, or not that key's signature
            raise InvalidMessageError(str(error)) from None
