"""The update that an agent has said for a base model, the only one it ever will.

A round that ended without a sum is requested again, on the same base model and data. An
agent that trained once more would say something slightly different, and anyone who saw
enough of both would learn from the difference what one alone hides (ADR 0032). So the
update is on disk before anything of it is said, readable by its owner alone, and stays
until a round begins on another base model. The randomness of commitments, shares and
proofs is no part of it: each attempt draws its own.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from adapters.durable import PRIVATE, write_file
from schemas.events import EncodingLoss, RoundStarted

SUFFIX: Final = ".update"
_MAGICS: Final = {
    b"folkmoot/agent-update/v1\n": 3,
    b"folkmoot/agent-update/v2\n": 5,
    b"folkmoot/agent-update/v3\n": 6,
}
"""The first bytes, and how many numbers follow the head; the last is written."""
_MAGIC: Final = max(_MAGICS)
_DIGEST_SIZE: Final = 32
_NUMBER_SIZE: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class KeptUpdate:
    """What an agent says for a base model. **Secret** in some modes.

    Attributes:
        values: The encoded update, shape (d,) int64.
        num_examples: Number of training examples.
        loss_micros: Training loss, in millionths; None if not said.
        encoding_loss: What encoding it lost; None if not said.
        num_steps: Optimiser steps taken, by which the update was divided; None if the
            strategy does not count them.
    """

    values: NDArray[np.int64] = field(repr=False)
    num_examples: int
    loss_micros: int | None
    encoding_loss: EncodingLoss | None = None
    num_steps: int | None = None


class UpdateKeeper:
    """Keeps one update, for one base model."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, started: RoundStarted, *, bound: int) -> KeptUpdate | None:
        """Return what was said for a round's base model; None if nothing was.

        An update that the federation now demands in another encoding cannot be said
        again; nor can one whose file is damaged.
        """
        path = self._path(started)
        if not path.exists():
            return None
        data = path.read_bytes()
        count = next((n for m, n in _MAGICS.items() if data.startswith(m)), 0)
        head = _make_head(started, bound)
        numbers_size = count * _NUMBER_SIZE
        body = data[len(_MAGIC) + len(head) : -_DIGEST_SIZE]
        if (
            not count
            or not data.startswith(head, len(_MAGIC))
            or hashlib.sha256(data[:-_DIGEST_SIZE]).digest() != data[-_DIGEST_SIZE:]
            or len(body) != numbers_size + 4 * started.num_parameters
        ):
            return None
        num_examples, has_loss, loss_micros, *lost = (
            int.from_bytes(body[begin : begin + _NUMBER_SIZE], "big", signed=True)
            for begin in range(0, numbers_size, _NUMBER_SIZE)
        )
        *lost, num_steps = [*lost, *(0, 0, 0)][:3]
        return KeptUpdate(
            values=np.frombuffer(body, "<i4", offset=numbers_size).astype(np.int64),
            num_examples=num_examples,
            loss_micros=loss_micros if has_loss else None,
            encoding_loss=_make_loss(*lost) if any(lost) else None,
            num_steps=num_steps or None,
        )

    def keep(self, started: RoundStarted, update: KeptUpdate, *, bound: int) -> None:
        """Remember what is about to be said for a round's base model, durably."""
        loss_micros = update.loss_micros
        lost = update.encoding_loss
        numbers = (
            *(update.num_examples, loss_micros is not None, loss_micros or 0),
            *((0, 0) if lost is None else (lost.shrunk_times, lost.zeroed_percent)),
            update.num_steps or 0,
        )
        data = b"".join(
            (
                _MAGIC + _make_head(started, bound),
                *(int(n).to_bytes(_NUMBER_SIZE, "big", signed=True) for n in numbers),
                update.values.astype("<i4").tobytes(),
            )
        )
        data += hashlib.sha256(data).digest()
        write_file(self._path(started), data, mode=PRIVATE)

    def forget(self, *, but: RoundStarted) -> None:
        """Delete what was said for other base models than this round's."""
        kept = self._path(but)
        for path in self._directory.glob(f"*{SUFFIX}*"):  # drafts too
            if path != kept:
                path.unlink(missing_ok=True)

    def _path(self, started: RoundStarted) -> Path:
        return self._directory / f"base-{started.base_model.sha256.hex()}{SUFFIX}"


def _make_loss(shrunk_times: int, zeroed_percent: int) -> EncodingLoss:
    return EncodingLoss(shrunk_times=shrunk_times, zeroed_percent=zeroed_percent)


def _make_head(started: RoundStarted, bound: int) -> bytes:
    numbers = (started.fractional_bits, bound)
    return started.base_model.sha256 + b"".join(
        number.to_bytes(_NUMBER_SIZE, "big") for number in numbers
    )
