"""`moot bench differences`: what two sums that differ by one agent show of its update.

Real training of the example (breast cancer, six agents), no shares: what parties open
is the exact weighted sum, and that is all that this looks at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.tensors import flatten, manifest_of, unflatten
from tests.bench.federation import Say
from tests.bench.report import make_table, median

AGENTS: Final = ("ada", "bea", "cleo", "dora", "eve", "finn")
ALPHA: Final = 10.0
"""How evenly the examples are spread over the agents; as in the example."""
ROUNDS: Final = (1, 5, 10)
STEPS: Final = (1e-6, 0.1, 1.0)
"""How far the base model moved, in parts of what the round's own sum moves it."""
KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "batches of 8": {},
    "one batch": {"batch_size": 10_000},
}
"""Keyword arguments of the data module, beside those of the example."""

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Update:
    """What an agent's training gave."""

    delta: Vector
    num_examples: int


class Training:
    """Trains the example's agents, on models as flat vectors."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data

    def draw(self, seed: int) -> Vector:
        """Return an initial model."""
        from producers.agent.training import initial_tensors  # loads torch

        tensors = initial_tensors(module=_load()[0], module_config={}, seed=seed)
        self._manifest = manifest_of(tensors)
        return flatten(tensors, self._manifest).astype(np.float64)

    def train(self, base: Vector, number: int) -> dict[str, Update]:
        """Return every agent's update of a base model in a round of this number."""
        from producers.agent.agent import _compute_seed  # loads the agent
        from producers.agent.training import train  # loads torch

        module, data_module = _load()
        tensors = unflatten(base.astype(np.float32), self._manifest)
        updates = {}
        for place, agent_id in enumerate(AGENTS):
            result = train(
                module=module,
                module_config={},
                data_module=data_module,
                data_config={
                    "organisation": place,
                    "num_organisations": len(AGENTS),
                    "alpha": ALPHA,
                    **self._data,
                },
                base=tensors,
                local_epochs=1,
                seed=_compute_seed(agent_id, number),
            )
            after = flatten(result.tensors, self._manifest).astype(np.float64)
            updates[agent_id] = Update(
                after - base.astype(np.float32), result.num_examples
            )
        return updates


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    rounds = ROUNDS[:1] if quick else ROUNDS
    steps = STEPS[:1] if quick else STEPS
    rows: dict[str, dict[str, object]] = {}
    for kind, data in KINDS.items():
        training = Training(data)
        base = training.draw(1)
        updates = training.train(base, 1)
        seconds = {
            "the same model, the same bytes": updates,
            "the same model, trained again": training.train(base, 2),
        }
        for step in steps:
            name = f"moved by {step:g} of the round's own step"
            seconds[name] = training.train(base + step * mean(updates), 2)
        seconds["another initial model"] = training.train(training.draw(2), 2)
        found = {name: compute_cosines(updates, two) for name, two in seconds.items()}
        for number in range(1, max(rounds) + 1):
            base = base + mean(updates)
            following = training.train(base, number + 1)
            say(f"{kind}: round {number}")
            if number in rounds:
                name = f"rounds {number} and {number + 1}, as they are"
                found[name] = compute_cosines(updates, following)
            updates = following
        for name, (whole, own) in found.items():
            row = rows.setdefault(name, {"the second sum is over": name})
            row[f"{kind}: whole"] = f"{median(whole):.2f}"
            row[f"{kind}: own"] = f"{median(own):.2f}"
    return [make_table(rows.values())]


def mean(updates: Mapping[str, Update]) -> Vector:
    """Return what the round's sum moves the model by: FedAvg."""
    return _sum(updates, list(updates)) / sum(u.num_examples for u in updates.values())


def compute_cosines(
    first: Mapping[str, Update], second: Mapping[str, Update]
) -> tuple[list[float], list[float]]:
    """Return for each agent how near the difference of two sums is to its update.

    Args:
        first: Updates in the first sum, which is over all.
        second: Those in the second, which is over all but that agent.

    Returns:
        Cosines with the update, and with what of it the others' mean does not show.
    """
    whole, own = [], []
    for agent_id, update in first.items():
        others = [name for name in first if name != agent_id]
        common = _sum(first, others)
        difference = _sum(first, list(first)) - _sum(second, others)
        whole.append(_cosine(difference, update.delta))
        own.append(
            _cosine(_without(difference, common), _without(update.delta, common))
        )
    return whole, own


def _without(vector: Vector, direction: Vector) -> Vector:
    return vector - direction * (vector @ direction) / (direction @ direction)


def _sum(updates: Mapping[str, Update], agents: Sequence[str]) -> Vector:
    terms = (updates[name].delta * updates[name].num_examples for name in agents)
    return np.asarray(np.sum(list(terms), axis=0))


def _cosine(one: Vector, other: Vector) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _load() -> tuple[Any, Any]:
    from producers.examples import breast_cancer  # loads torch

    return breast_cancer.BreastCancerModule, breast_cancer.BreastCancerDataModule
