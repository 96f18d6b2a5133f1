"""`moot bench differences`: what two sums that differ by one agent show of its update.

Real training of the example (breast cancer, six agents), no shares: what parties open
is the exact weighted sum, and that is all that this looks at.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.tensors import flatten, manifest_of, unflatten
from tests.bench.federation import Say
from tests.bench.report import Section, Table

AGENTS: Final = ("ada", "bea", "cleo", "dora", "eve", "finn")
ALPHA: Final = 10.0
"""How evenly the examples are spread over the agents; as in the example."""
ROUNDS: Final = (1, 5, 10)
STEPS: Final = (1e-6, 0.1, 1.0)
"""How far the base model moved, in parts of what the round's own sum moves it."""
WHOLE_BATCH: Final = 10_000

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Update:
    """What an agent's training gave."""

    delta: Vector
    num_examples: int


class Training:
    """Trains the example's agents, on models as flat vectors.

    Args:
        data: Keyword arguments of the data module, beside those of the example.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        from producers.agent.training import initial_tensors  # loads torch

        module, _ = _load()
        self._data = data
        tensors = initial_tensors(module=module, module_config={}, seed=1)
        self._manifest = manifest_of(tensors)
        self.initial = flatten(tensors, self._manifest).astype(np.float64)

    def draw(self, seed: int) -> Vector:
        """Return another initial model."""
        from producers.agent.training import initial_tensors  # loads torch

        tensors = initial_tensors(module=_load()[0], module_config={}, seed=seed)
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


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    rounds = ROUNDS[:1] if quick else ROUNDS
    steps = STEPS[:1] if quick else STEPS
    kinds = {"batches of 8": {}, "one batch": {"batch_size": WHOLE_BATCH}}
    rows: dict[str, list[str]] = {}
    for kind, data in kinds.items():
        training = Training(data)
        base = training.initial
        updates = training.train(base, 1)
        for number in range(1, max(rounds) + 1):
            if number == 1:
                again = training.train(base, 2)
                _add(rows, "the same model, the same bytes", updates, updates)
                _add(rows, "the same model, trained again", updates, again)
                for step in steps:
                    moved = base + step * mean(updates)
                    name = f"moved by {step:g} of the round's own step"
                    _add(rows, name, updates, training.train(moved, 2))
                _add(
                    rows,
                    "another initial model",
                    updates,
                    training.train(training.draw(2), 2),
                )
            base = base + mean(updates)
            following = training.train(base, number + 1)
            say(f"{kind}: round {number}")
            if number in rounds:
                name = f"rounds {number} and {number + 1}, as they are"
                _add(rows, name, updates, following)
            updates = following
    table = Table(
        (
            "the second sum is over",
            *(f"{kind}: {what}" for kind in kinds for what in ("whole", "own")),
        ),
        tuple((name, *found) for name, found in rows.items()),
    )
    return Section(
        "differences",
        "Differences: what two sums show of one agent",
        (
            """The sum of six agents' updates, less that of five of them: how near it is
            to the update of the sixth. Cosines, of which 1 is its direction exactly and
            0 says nothing: of the whole update, and of what is the agent's own in it,
            that is without what the other five's mean shows already. Medians of the six
            agents that can be left out. The example's breast cancer task, one epoch;
            exact sums, each agent weighted by its examples. The parties refuse the
            first two lines; nothing but noise limits the others.""",
            table,
            """Who knows the other updates needs no second sum: with `min_cohort` - 1
            agents of one's own the difference is the update to the last bit (cosine 1,
            whatever the task). So does a party that keeps back its part while the
            others give theirs: it alone knows the sum, as if it were published.""",
        ),
    )


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


def _add(
    rows: dict[str, list[str]],
    name: str,
    first: Mapping[str, Update],
    second: Mapping[str, Update],
) -> None:
    row = rows.setdefault(name, [])
    row += [f"{statistics.median(c):.2f}" for c in compute_cosines(first, second)]


def _load() -> tuple[Any, Any]:
    from producers.examples import breast_cancer  # loads torch

    return breast_cancer.BreastCancerModule, breast_cancer.BreastCancerDataModule
