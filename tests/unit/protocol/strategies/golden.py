"""What each strategy makes of a dozen rounds, as digests.

``python -m tests.unit.protocol.strategies.golden`` prints them as JSON. The format is
in `tests/vectors/protocol/README.md`.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from protocol.strategies import STRATEGIES, move, read_parameters
from protocol.strategies.state import start_moments, state_to_blob
from schemas.events import StrategyParameter

SIZE = 1_003
"""Not a multiple of any vector length."""
NUM_ROUNDS = 12
NUM_EXAMPLES = 1_000
NUM_WEIGHTED_STEPS = 7_003
"""Where steps are counted."""
CHOSEN = {
    "FEDAVG": ((), (("learning_rate", 700_000),)),
    "FEDPROX": ((), (("learning_rate", 1_300_000), ("mu", 0))),
    "FEDADAM": ((), (("beta_1", 0), ("beta_2", 333_333), ("tau", 1))),
    "FEDNOVA": ((), (("learning_rate", 999_999),)),
    "FEDYOGI": ((), (("beta_1", 123_457), ("beta_2", 0), ("learning_rate", 3))),
}


def draw_sums(name: str) -> list[np.ndarray]:
    """Return the sum of each round: 40 bits wide, the last value always 0."""
    bits = hashlib.shake_128(name.encode()).digest(NUM_ROUNDS * SIZE * 8)
    sums = np.frombuffer(bits, "<u8").reshape(NUM_ROUNDS, SIZE) >> np.uint64(24)
    moved = sums.astype(np.int64) - 2**39
    moved[:, -1] = 0
    return list(moved)


def compute_digests(name: str, chosen: tuple[tuple[str, int], ...]) -> dict[str, str]:
    """Return the digests of model and state after the last round."""
    strategy = STRATEGIES[name]
    parameters = read_parameters(
        strategy, (StrategyParameter(name=n, value_micros=v) for n, v in chosen)
    )
    model = np.linspace(-1, 1, SIZE, dtype=np.float32)
    moments = start_moments(strategy, parameters, SIZE)
    for total in draw_sums(name):
        model, moments = move(
            strategy,
            model,
            total,
            num_examples=NUM_EXAMPLES,
            fractional_bits=16,
            num_weighted_steps=NUM_WEIGHTED_STEPS if strategy.counts_steps else None,
            parameters=parameters,
            moments=moments,
        )
    found = {"model_sha256": hashlib.sha256(model.astype("<f4").tobytes()).hexdigest()}
    if moments:
        state = state_to_blob(strategy, moments)
        found["state_sha256"] = hashlib.sha256(state).hexdigest()
    return found


def compute_all() -> list[dict[str, object]]:
    """Return the vectors."""
    return [
        {
            "strategy": name,
            "parameters_micros": dict(chosen),
            **compute_digests(name, chosen),
        }
        for name, both in CHOSEN.items()
        for chosen in both
    ]


if __name__ == "__main__":
    print(json.dumps(compute_all(), indent=2))  # its output
