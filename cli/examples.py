"""What the demo trains, and who takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

ORGANISATIONS: Final = ("aster", "birch", "cedar", "dogwood", "elm")


@dataclass(frozen=True, slots=True)
class Example:
    """A built-in task."""

    module: str
    data_module: str
    alpha: float
    seed: int
    local_epochs: int = 2

    @property
    def data_config(self) -> Mapping[str, Any]:
        """Arguments of its data module that all organisations have."""
        return {
            "num_organisations": len(ORGANISATIONS),
            "alpha": self.alpha,
            "seed": self.seed,
        }


EXAMPLES: Final = {
    "digits": Example(
        "producers.examples.digits:DigitsModule",
        "producers.examples.digits:DigitsDataModule",
        alpha=0.3,
        seed=0,
    ),
    "breast-cancer": Example(
        "producers.examples.breast_cancer:BreastCancerModule",
        "producers.examples.breast_cancer:BreastCancerDataModule",
        alpha=0.3,
        seed=2,
    ),
}
