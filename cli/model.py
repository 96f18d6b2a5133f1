"""Measure published models on one's own data."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from adapters.durable import write_output
from adapters.imports import ImportRefusedError, load_class, running_users_code
from adapters.models import StateMismatchError
from adapters.settings import Settings
from adapters.wording import counted
from cli.curves import draw_curves
from cli.extras import demand, find_missing
from cli.operate import Published, fetch_model, find_version, read_published
from cli.options import parse_config
from cli.show import say, say_json
from cli.stack.processes import StackError
from protocol.exchanged_state import model_from_blob
from protocol.tensors import MalformedBlobError

PLOT_SUFFIX: Final = ".svg"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnData:
    """What models are measured on.

    Attributes:
        data_module: Its import path; None for each version's own task's.
        data_config: Arguments, beside those of the version's task, which they override;
            alone if there is a `data_module`.
        allowed_prefixes: Prefixes of the modules that may be loaded.
    """

    data_module: str | None
    data_config: Mapping[str, Any]
    allowed_prefixes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How good one version is.

    Attributes:
        version: The version.
        round: The round that made it.
        metrics: By the names that the module logs, ascending.
        num_examples: Size of the data set.
        step: The module's step that logged them.
        directions: As the module states them.
    """

    version: int
    round: int
    metrics: Mapping[str, float]
    num_examples: int
    step: str
    directions: Any


def evaluate_versions(
    settings: Settings,
    federation_id: str,
    versions: Sequence[int],
    data: OwnData,
    *,
    is_all: bool = False,
) -> list[Measured]:
    """Measure versions of a federation's model by the module's own test step.

    Args:
        settings: Where the log and the models are.
        federation_id: The federation.
        versions: Which; none for the newest.
        data: What they are measured on.
        is_all: Whether to measure every version instead, the initial one too.

    Raises:
        StackError: there is no such version, a class may not be loaded, or the task's
            code fails.
    """
    demand("agent")
    settings.demand_minio()
    models = read_published(settings, federation_id)
    if is_all:
        versions = range(len(models))
    chosen = [find_version(models, v) for v in versions or [len(models) - 1]]
    return [
        _measure(each, fetch_model(settings, models, each.version), data)
        for each in chosen
    ]


def _measure(published: Published, blob: bytes, data: OwnData) -> Measured:
    from adapters.lightning import evaluate, prepare

    task = published.task
    own = parse_config("the task's data configuration", task.data_config)
    config = (
        {**own, **data.data_config} if data.data_module is None else data.data_config
    )
    try:
        module = load_class(task.module, data.allowed_prefixes)
        data_module = load_class(
            data.data_module or task.data_module, data.allowed_prefixes
        )
    except ImportRefusedError as error:
        if missing := find_missing(error):
            raise missing from None
        raise StackError(
            str(error), "--allow names modules that you trust to run here."
        ) from None
    try:
        tensors = model_from_blob(blob).tensors
    except MalformedBlobError as error:
        msg = f"version {published.version} is no model: {error}"
        raise StackError(msg, "`moot audit` says who is at fault.") from None
    try:
        with (
            running_users_code(),
            prepare(
                module=module,
                module_config=parse_config(
                    "the module's configuration", task.module_config
                ),
                data_module=data_module,
                data_config=config,
                tensors=tensors,
            ) as prepared,
        ):
            found = evaluate(prepared, prefer_test=True)
    except StateMismatchError as error:
        msg = f"version {published.version} is no model of {task.module}: {error}"
        raise StackError(msg, "Is your copy of its code the federation's?") from None
    except Exception as error:
        if missing := find_missing(error):
            raise missing from None
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise StackError(
            f"version {published.version} can't be measured: {text}",
            "--data-config names your own data; MOOT_DEBUG=1 shows where it fails.",
        ) from error
    return Measured(
        version=published.version,
        round=published.round,
        metrics=found.metrics,
        num_examples=found.num_examples,
        step=found.step,
        directions=found.directions,
    )


def demand_plot(path: Path | None) -> None:
    """Check where a picture shall go.

    Raises:
        StackError: its name does not end in .svg.
    """
    if path is not None and path.suffix.lower() != PLOT_SUFFIX:
        msg = f"--plot writes SVG, and {path.name!r:.100} is something else"
        raise StackError(msg, f"For example: --plot curves{PLOT_SUFFIX}")


def show_measured(measured: Sequence[Measured], *, as_json: bool) -> None:
    """Print a table of versions and metrics."""
    from consumers.export.metrics import find_direction

    if as_json:
        say_json([_to_json(each) for each in measured])
        return
    names = list_metrics(measured)
    widths = [max(len(name), 10) for name in names]
    titles = " ".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True))
    say(f"version round {titles}")
    for each in measured:
        values = " ".join(
            f"{_show(each.metrics.get(name)):>{width}}"
            for name, width in zip(names, widths, strict=True)
        )
        say(f"{each.version:>7} {each.round:>5} {values}")
    last = measured[-1]
    stated = last.directions if isinstance(last.directions, Mapping) else {}
    for name in names:
        direction = find_direction(name, stated)
        if direction is not None:
            say(f"{name}: {direction.lower()} is better")
    say(f"by {last.step}, on {counted(last.num_examples, 'example')}")


def list_metrics(measured: Sequence[Measured]) -> list[str]:
    """Return the names of all metrics, ascending."""
    return sorted({name for each in measured for name in each.metrics})


def write_csv(measured: Sequence[Measured], path: Path) -> None:
    """Write a line for each version; what was not logged is empty.

    Raises:
        OSError: it could not be written.
    """
    names = list_metrics(measured)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["version", "round", "num_examples", *names])
    for each in measured:
        values = [each.metrics.get(name, "") for name in names]
        writer.writerow([each.version, each.round, each.num_examples, *values])
    write_output(path, text.getvalue().encode())


def write_plot(measured: Sequence[Measured], path: Path) -> None:
    """Write a picture with a curve for each metric, over versions.

    Raises:
        OSError: it could not be written.
    """
    curves = {
        name: [(m.version, m.metrics[name]) for m in measured if name in m.metrics]
        for name in list_metrics(measured)
    }
    write_output(path, draw_curves(curves).encode())


def _to_json(each: Measured) -> dict[str, Any]:
    return {
        "version": each.version,
        "round": each.round,
        "num_examples": each.num_examples,
        "step": each.step,
        "metrics": {
            name: value if math.isfinite(value) else None
            for name, value in each.metrics.items()
        },
    }


def _show(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
