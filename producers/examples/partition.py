"""Dividing a data set among organisations, unevenly as in the real world.

For each label, the examples are dealt out in proportions drawn from a Dirichlet
distribution: a small alpha gives each organisation a few labels and very different
amounts; a large alpha gives all of them the same mixture.

Source: Hsu, Qi, Brown 2019 (arXiv:1909.06335), section 3.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def divide_by_label(
    labels: NDArray[Any],
    *,
    num_organisations: int,
    alpha: float,
    seed: int,
    min_examples: int,
) -> list[NDArray[np.intp]]:
    """Divide examples among organisations.

    Args:
        labels: shape (n,): a label per example.
        num_organisations: At least 1.
        alpha: Evenness, above 0.
        seed: Every organisation must use the same, or their divisions differ.
        min_examples: Fewest examples of any organisation; the largest gives some up.

    Returns:
        The sorted indices of each organisation's examples. Each example belongs to
        exactly one.

    Raises:
        ValueError: Too few examples for so many organisations.
    """
    if num_organisations * min_examples > len(labels):
        raise ValueError(f"{len(labels)} examples are too few for {num_organisations}")
    random = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(num_organisations)]
    for label in np.unique(labels):
        examples = random.permutation(np.flatnonzero(labels == label))
        proportions = random.dirichlet(np.full(num_organisations, alpha))
        ends = np.rint(np.cumsum(proportions)[:-1] * len(examples)).astype(np.intp)
        for part, chunk in zip(parts, np.split(examples, ends), strict=True):
            part.extend(chunk.tolist())
    for part in parts:
        random.shuffle(part)
    for part in parts:
        while len(part) < min_examples:
            part.append(max(parts, key=len).pop())
    return [np.sort(np.array(part, dtype=np.intp)) for part in parts]
