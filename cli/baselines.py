"""What the demo compares the federation with: each alone, and all data in one place.

A program of the demo's, `python -m cli.baselines`: it trains in the time that the
federation leaves over.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli.examples import EXAMPLES, ORGANISATIONS, Example

CENTRALISED = "centralised"
LOWEST_PRIORITY = 19


def list_baselines(example: Example) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each by its name, with the arguments of its data module."""
    for index, name in enumerate(ORGANISATIONS):
        yield f"{name} alone", {**example.data_config, "organisation": index}
    yield CENTRALISED, {**example.data_config, "num_organisations": 1}


def measure(example: Example, data_config: dict[str, Any], epochs: int) -> float:
    """Return the accuracy that training reaches by itself, 0 to 1.

    Args:
        example: The task.
        data_config: Arguments of its data module.
        epochs: Passes over the data.
    """
    from adapters.imports import load_class
    from cli.options import DEFAULT_ALLOWED
    from producers.agent.training import evaluate, initial_tensors, train

    module = load_class(example.module, DEFAULT_ALLOWED)
    common: dict[str, Any] = {
        "module": module,
        "module_config": {},
        "data_module": load_class(example.data_module, DEFAULT_ALLOWED),
        "data_config": data_config,
    }
    base = initial_tensors(module=module, module_config={}, seed=0)
    result = train(**common, base=base, local_epochs=epochs, seed=0)
    return evaluate(**common, tensors=result.tensors).accuracy


def read(path: Path) -> dict[str, float]:
    """Return the accuracies so far, by name, in order."""
    if not path.exists():
        return {}
    *lines, _unfinished = path.read_text(encoding="utf-8").split("\n")
    return dict(json.loads(line) for line in lines)


def main() -> None:
    """Write an accuracy after the other, each a line of JSON: its name, and itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=EXAMPLES)
    parser.add_argument("epochs", type=int)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    os.nice(LOWEST_PRIORITY)
    example = EXAMPLES[arguments.task]
    with arguments.output.open("w", encoding="utf-8") as output:
        for name, data_config in list_baselines(example):
            accuracy = measure(example, data_config, arguments.epochs)
            output.write(f"{json.dumps([name, accuracy])}\n")
            output.flush()


if __name__ == "__main__":
    main()
