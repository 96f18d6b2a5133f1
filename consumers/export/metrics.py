"""From what a module logs to the metrics of a model version.

- A metric keeps the name that the module logs it by. Two have a name of their own on
  the ledger, which rewards know: `val_accuracy` is `accuracy`, `val_loss` is `loss`.
- Which values are better is stated by the module's ``metric_directions``, or else
  follows from the words of its name. If neither says it, the metric is left out.
- Nothing is left out silently: the reasons are returned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapters.numbers import BadNumberError, read_micros
from protocol.encoding import MILLION
from protocol.validation import (
    ACCURACY,
    MAX_METRICS,
    METRIC_NAME,
    Direction,
)
from schemas.events import Evaluation, Metric

RENAMED: Final[Mapping[str, str]] = {"val_accuracy": ACCURACY, "val_loss": "loss"}

# fmt: off
_LOWER: Final = frozenset(
    {
        "loss", "error", "err", "mae", "mse", "rmse", "msle", "rmsle", "mape",
        "smape", "nll", "bce", "ce", "kl", "l1", "l2", "hinge", "brier", "ece",
        "perplexity", "ppl", "wer", "cer", "ter", "fid", "distance", "deviance",
        "regret"
    }
)
_HIGHER: Final = frozenset(
    {
        "accuracy", "acc", "auc", "auroc", "auprc", "roc", "ap", "map", "f1", "f2",
        "fbeta", "fscore", "precision", "recall", "sensitivity", "specificity",
        "iou", "miou", "jaccard", "dice", "kappa", "mcc", "r2", "pearson",
        "spearman", "correlation", "corr", "bleu", "rouge", "meteor", "psnr",
        "ssim", "ndcg", "mrr", "hits"
    }
)
# fmt: on
_WORD: Final = re.compile(r"[a-z]+\d*")


@dataclass(frozen=True, slots=True)
class NamedMetrics:
    """What of a module's metrics a version carries.

    Attributes:
        metrics: Those that it carries, in ascending order of name.
        left_out: Why others are left out, by the names the module logged.
    """

    metrics: tuple[Metric, ...]
    left_out: Mapping[str, str]


def name_metrics(logged: Mapping[str, Any], directions: Any) -> NamedMetrics:
    """Return the metrics of a version.

    Args:
        logged: Values by the names that the module logged.
        directions: ``HIGHER`` or ``LOWER`` by those names, as the module states them;
            anything, if its author erred.
    """
    stated = directions if isinstance(directions, Mapping) else {}
    metrics: dict[str, Metric] = {}
    left_out: dict[str, str] = {}
    for logged_name, value in sorted(logged.items()):
        name = RENAMED.get(logged_name, logged_name)
        direction = find_direction(logged_name, stated)
        try:
            micros = read_micros(value, "its value")
        except BadNumberError as error:
            left_out[logged_name] = str(error)
            continue
        if METRIC_NAME.fullmatch(name) is None:
            why = "its name must be 1 to 64 of A-Z a-z 0-9 . _ / -"
        elif direction is None:
            why = (
                "nothing says which values are better: state it in the module, "
                f'metric_directions = {{"{logged_name}": "HIGHER"}} or "LOWER"'
            )
        elif micros is None:
            why = f"its value is {value}"
        elif name == ACCURACY and not _is_fraction(micros, direction):
            why = (
                f"{ACCURACY} must be 0 to 1 and HIGHER, and is {value} and {direction}"
            )
        elif name in metrics:
            why = f"the module logs {name} as well"
        elif len(metrics) == MAX_METRICS:
            why = f"a version carries {MAX_METRICS} metrics"
        else:
            metrics[name] = Metric(name=name, value_micros=micros, direction=direction)
            continue
        left_out[logged_name] = why
    ordered = tuple(metrics[name] for name in sorted(metrics))
    return NamedMetrics(ordered, left_out)


def find_direction(name: str, stated: Mapping[Any, Any]) -> Direction | None:
    """Return which values of a metric are better; None if nothing says it.

    Args:
        name: As the module logs it.
        stated: What the module states, by name.
    """
    if name in stated:
        return next((d for d in Direction if d == stated[name]), None)
    words = {*_WORD.findall(name.lower())}
    words |= {word.rstrip("0123456789") for word in words}  # map50, acc1
    lower, higher = words & _LOWER, words & _HIGHER
    if bool(lower) == bool(higher):
        return None
    return Direction.LOWER if lower else Direction.HIGHER


def _is_fraction(micros: int, direction: Direction) -> bool:
    return direction is Direction.HIGHER and 0 <= micros <= MILLION


def make_evaluation(
    logged: Mapping[str, Any], directions: Any, num_examples: int
) -> tuple[Evaluation | None, Mapping[str, str]]:
    """Return what a version carries of an evaluation; None if no metric is left.

    Args:
        logged: Values by the names that the module logged.
        directions: As for `name_metrics`.
        num_examples: Size of the data set, at least 1.

    Returns:
        The evaluation, and why metrics are left out, by the names that were logged.
    """
    named = name_metrics(logged, directions)
    if not named.metrics:
        return None, named.left_out
    found = Evaluation(num_examples=num_examples, metrics=named.metrics)
    return found, named.left_out
