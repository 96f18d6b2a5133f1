"""What a strategy carries, as a blob that a liar may have written."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.model import compute_max_state_size
from protocol.strategies import STRATEGIES, read_parameters
from protocol.strategies.state import (
    start_moments,
    state_from_blob,
    state_to_blob,
)
from protocol.tensors import MalformedBlobError, tensors_to_blob

ADAM = STRATEGIES["FEDADAM"]
GOOD = {"first_moment": np.array([-1.5, 0.0, 3.0]), "second_moment": np.arange(3.0)}


def test_a_state_comes_back_as_it_was() -> None:
    blob = state_to_blob(ADAM, tuple(GOOD.values()))
    read = state_from_blob(ADAM, blob, 3)
    assert [values.tobytes() for values in read] == [v.tobytes() for v in GOOD.values()]
    assert len(blob) <= compute_max_state_size(ADAM.name, 3)
    assert state_to_blob(ADAM, read) == blob


def test_it_starts_at_zero_and_tau_squared() -> None:
    parameters = read_parameters(ADAM, ())
    first, second = start_moments(ADAM, parameters, 2)
    assert first.tolist() == [0.0, 0.0]
    assert second.tolist() == [0.001 * 0.001] * 2
    assert start_moments(STRATEGIES["FEDAVG"], {}, 2) == ()


def edit(**changes: object) -> bytes:
    tensors = {k: np.asarray(v) for k, v in (GOOD | changes).items() if v is not None}
    return tensors_to_blob(tensors)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"trust me",
        edit()[:-1],
        edit() + b"\0",
        edit(first_moment=None),
        edit(third_moment=np.zeros(3)),
        edit(first_moment=np.zeros(4)),
        edit(first_moment=np.zeros((3, 1))),
        edit(first_moment=np.zeros(3, np.float32)),
        edit(second_moment=np.zeros(3, np.int64)),
        edit(first_moment=[0, np.nan, 0]),
        edit(first_moment=[0, -np.inf, 0]),
        edit(first_moment=[0, -(2.0**64) * 1.01, 0]),
        edit(first_moment=[0, 2.0**64 * 1.01, 0]),
        edit(second_moment=[0, np.nan, 0]),
        edit(second_moment=[0, np.inf, 0]),
        edit(second_moment=[0, -5e-324, 0]),
        edit(second_moment=[0, 2.0**128 * 1.01, 0]),
    ],
)
def test_what_no_round_leads_to_is_refused(blob: bytes) -> None:
    with pytest.raises(MalformedBlobError):
        state_from_blob(ADAM, blob, 3)
