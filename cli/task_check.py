"""Try out a task on this machine: what an agent, the exporter and a round do with it.

Nothing is published. Each step runs the code that a federation runs, so whatever can
never work fails here, with a sentence and a cure instead of a traceback. Errors of
users' code are of any kind; each says where in that code it was raised.

- The module, and the data module with the task's arguments alone, are made.
- The module's state is classified, a batch is taken, a step trained and validated.
- It is trained for some seconds more, to see how long and how far an agent's training
  goes. From how far follows the clip norm that is suggested: twice the update's norm.
- The update is encoded and answered with as in a round of each mode.
- The model is measured and exported as the exporter does.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import math
import secrets
import sysconfig
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, cast

import numpy as np

from adapters.imports import ImportRefusedError, load_class, running_users_code
from adapters.wording import counted
from cli.extras import demand, find_missing
from cli.modes import make_trials
from cli.options import parse_config
from cli.show import say, say_json
from cli.stack.processes import StackError
from protocol.exchanged_state import Model, RefusedStateError, StateClass, model_to_blob
from protocol.tensors import num_parameters
from schemas import events as e

SUGGESTED_NORMS: Final = 2.0
"""Clip norms are suggested so many times the norm of an update: others' data differ."""
TRIED_VALUES: Final = 2**14
"""Of longer updates so many values are answered with, and the rest is reckoned."""
TRIAL_S: Final = 20.0
_TRIAL_EPOCHS: Final = 2


class Level(StrEnum):
    """How bad a finding is."""

    REFUSED = "REFUSED"
    WARNING = "WARNING"
    NOTE = "NOTE"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that the check found.

    Attributes:
        level: How bad it is; `REFUSED` can never work.
        message: What it is, a sentence.
        cure: What to do about it; empty for nothing.
    """

    level: Level
    message: str
    cure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeTrial:
    """What an agent's part of a round takes in one mode.

    Attributes:
        answer_s: Encoding the update and making the answer.
        sent_bytes: What the agent stores for others.
        is_reckoned: Whether only `TRIED_VALUES` of the update were answered with.
        zeroed_percent: How many of the trained values that changed are sent as zero, if
            that is worth saying.
        problem: Why the mode cannot take the update; empty if it can.
    """

    answer_s: float = 0.0
    sent_bytes: int = 0
    is_reckoned: bool = False
    zeroed_percent: int = 0
    problem: str = ""


@dataclass(slots=True, kw_only=True)
class Report:
    """What a check found out; what it did not reach is None or empty.

    Attributes:
        findings: In the order in which they were found.
        model: The initial model.
        classes: Number of the state's entries, by class.
        num_trained: Parameters that are trained.
        model_bytes: Size of the model's file, which every agent fetches.
        num_examples: Training examples on this machine.
        training_s: How long an agent's training takes here, all local epochs.
        is_reckoned: Whether training was cut short, and the rest is reckoned.
        update_norm: L2 norm of the update after all local epochs.
        clip_norm: The clip norm that is suggested.
        metrics: What versions will say, by name, with value and direction.
        has_onnx: Whether versions will have an ONNX file.
        exporting_s: How long measuring and exporting a version takes here.
        modes: By name.
    """

    findings: list[Finding] = field(default_factory=list)
    model: Model | None = None
    classes: dict[str, int] = field(default_factory=dict)
    num_trained: int | None = None
    model_bytes: int | None = None
    num_examples: int | None = None
    training_s: float | None = None
    is_reckoned: bool = False
    update_norm: float | None = None
    clip_norm: float | None = None
    metrics: dict[str, tuple[float, str]] = field(default_factory=dict)
    has_onnx: bool | None = None
    exporting_s: float | None = None
    modes: dict[str, ModeTrial] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether nothing was found that can never work."""
        return all(finding.level is not Level.REFUSED for finding in self.findings)

    def add(self, level: Level, message: str, cure: str = "") -> None:
        """Add a finding."""
        self.findings.append(Finding(level, message, cure))


class _RefusedError(Exception):
    """The check ends here; the report says why."""


def check_task(
    task: e.Task,
    *,
    allowed_prefixes: tuple[str, ...],
    seed: int = 0,
    state_rules: Sequence[tuple[str, StateClass]] = (),
    agent_data_config: Mapping[str, Any] | None = None,
    clip_norm: float | None = None,
    mode: str | None = None,
    round_duration_s: float | None = None,
    seconds: float = TRIAL_S,
) -> Report:
    """Try out a task.

    Args:
        task: The task.
        allowed_prefixes: Prefixes of the modules that it may use.
        seed: Of the initial model.
        state_rules: Classes of the model's state, by pattern.
        agent_data_config: What an agent would add to the data module's arguments, for
            training; None for nothing.
        clip_norm: The clip norm that is meant; None for the one suggested.
        mode: The mode that is meant, one of `MODES`; None for any.
        round_duration_s: How long agents are given; None if that is not known.
        seconds: About how long training is tried.

    Raises:
        StackError: an extra is missing.
    """
    demand("agent")
    report = Report()
    try:
        loaded = _load(report, task, allowed_prefixes)
        model = _initialise(report, loaded, seed, state_rules)
        # What an agent adds concerns its training alone.
        training = {**loaded, "data_config": {**loaded["data_config"]}}
        training["data_config"].update(agent_data_config or {})
        trained = _train(report, training, model, task.local_epochs, seconds)
        _try_modes(report, task, model, trained, clip_norm, mode)
        _export(report, loaded, trained)
        _judge_time(report, mode, round_duration_s)
    except _RefusedError:
        pass
    return report


def demand_good(report: Report) -> None:
    """Check that a task can work.

    Raises:
        StackError: it cannot; the message says why, the hint what to do.
    """
    bad = [f for f in report.findings if f.level is Level.REFUSED]
    if bad:
        raise StackError(
            f"the task can't work: {bad[0].message}",
            f"{bad[0].cure} (--no-check founds the federation all the same.)".strip(),
        )


def show_warnings(report: Report) -> None:
    """Print what a founder should know, if anything."""
    for finding in report.findings:
        say(f"{finding.level.lower()}: {finding.message}")
        if finding.cure:
            say(f"  {finding.cure}")


def _load(
    report: Report, task: e.Task, allowed_prefixes: tuple[str, ...]
) -> dict[str, Any]:
    """Return what training and export take, after looking at the arguments."""
    loaded: dict[str, Any] = {}
    for name, base in (
        ("module", "LightningModule"),
        ("data_module", "LightningDataModule"),
    ):
        option = f"--{name.replace('_', '-')}"
        config = "--module-config" if name == "module" else "--data-config"
        path, text = getattr(task, name), getattr(task, config[2:].replace("-", "_"))
        try:
            found = load_class(path, allowed_prefixes)
        except ImportRefusedError as error:
            if missing := find_missing(error):
                raise missing from None
            cure = f"{option} is package.module:Class, importable here and allowed by "
            raise _refuse(report, str(error), f"{cure}--allow.") from None
        _demand_lightning(report, option, found, base)
        try:
            arguments = parse_config(config, text)
        except StackError as error:
            raise _refuse(report, error.message, error.hint) from None
        _demand_arguments(report, config, found, arguments)
        loaded[name] = found
        loaded[config[2:].replace("-", "_")] = arguments
    return loaded


def _demand_lightning(report: Report, option: str, found: type, base: str) -> None:
    bases = {c.__module__.split(".")[0] for c in found.__mro__ if c.__name__ == base}
    if "pytorch_lightning" in bases:
        return
    if bases:
        raise _refuse(
            report,
            f"{found.__name__} inherits from {base} of {', '.join(sorted(bases))}, "
            "which is another library to Python",
            f"Import {base} from pytorch_lightning.",
        )
    raise _refuse(
        report,
        f"{option}: {found.__name__} is no {base}",
        f"Inherit from pytorch_lightning.{base}, or name another class.",
    )


def _demand_arguments(
    report: Report, option: str, found: type, arguments: Mapping[str, Any]
) -> None:
    """Check that a constructor takes these arguments, by name alone."""
    signature = inspect.signature(found)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        takes = [
            name
            for name, parameter in signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_POSITIONAL
        ]
        unknown = [name for name in arguments if name not in takes]
        near = [
            other
            for name in unknown
            for other in difflib.get_close_matches(name, takes)
        ]
        meant = f" Was {near[0]!r} meant?" if near else ""
        what = (
            f"doesn't take {', '.join(map(repr, unknown))}" if unknown else str(error)
        )
        raise _refuse(
            report,
            f"{option}: {found.__name__} {what}",
            f"It takes {', '.join(takes) or 'nothing'}.{meant}",
        ) from None


def _initialise(
    report: Report,
    loaded: Mapping[str, Any],
    seed: int,
    state_rules: Sequence[tuple[str, StateClass]],
) -> Model:
    from producers.agent.training import initialise

    cure = (
        "The operator and the exporter make both with the task's arguments alone: "
        "--module-config and --data-config."
    )
    with _trying(report, "the module and its data can't be made", cure):
        model = initialise(**loaded, seed=seed, rules=state_rules)
    report.model = model
    report.num_trained = num_parameters(model.manifest)
    report.model_bytes = len(model_to_blob(model))
    for name in model.tensors:
        state_class = str(model.get_class(name))
        report.classes[state_class] = report.classes.get(state_class, 0) + 1
    return model


@dataclass(frozen=True, slots=True)
class _Trained:
    tensors: Mapping[str, Any]
    num_examples: int


def _train(
    report: Report,
    loaded: Mapping[str, Any],
    model: Model,
    local_epochs: int,
    seconds: float,
) -> _Trained:
    from producers.agent.training import train

    cure = (
        "It is trained with the task's arguments; --agent-data-config gives those that "
        "an agent would add, such as the path of its data."
    )
    task = {**loaded, "base": model.tensors, "seed": 0}
    with _trying(report, "a step can't be trained", cure):
        epochs = min(local_epochs, _TRIAL_EPOCHS)
        train(**task, local_epochs=epochs, max_batches=1)
        begun = time.monotonic()
        result = train(**task, local_epochs=local_epochs, max_time_s=seconds)
        spent_s = time.monotonic() - begun
        model.compute_update(result.tensors)
    if result.loss is not None and not math.isfinite(result.loss):
        raise _refuse(
            report,
            f"training diverges: the loss is {result.loss}",
            "Lower the learning rate, or normalise the inputs.",
        )
    num_batches = result.batches_per_epoch * local_epochs
    part = result.num_batches / num_batches if num_batches else 1.0
    # Early stopping ends training too, and by itself.
    report.is_reckoned = part < 1 and spent_s >= seconds
    scale = 1 / part if report.is_reckoned else 1.0
    report.num_examples = result.num_examples
    report.training_s = spent_s * scale
    norm = _compute_norm(model, result.tensors) * scale
    report.update_norm = norm
    if not math.isfinite(norm):
        raise _refuse(
            report,
            "training diverges: the update is not finite",
            "Lower the learning rate, or normalise the inputs.",
        )
    if norm == 0:
        report.add(
            Level.WARNING,
            "training changes nothing of what is trained",
            "Look at the learning rate, at the optimiser's parameters, and at --state.",
        )
    else:
        report.clip_norm = _round_up(SUGGESTED_NORMS * norm)
    return _Trained(result.tensors, result.num_examples)


def _compute_norm(model: Model, after: Mapping[str, Any]) -> float:
    squares = (
        float(np.square(after[name].astype(np.float64) - before).sum())
        for name, before in model.trained.items()
    )
    return math.sqrt(math.fsum(squares))


def _round_up(value: float) -> float:
    """Return a number rounded up to two digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.2g}")


class _Store:
    """Takes blobs as MinIO would, and counts their bytes."""

    def __init__(self) -> None:
        self.num_bytes = 0

    def store(self, data: bytes) -> e.BlobRef:
        """Return where a blob would be."""
        self.num_bytes += len(data)
        digest = hashlib.sha256(data).digest()
        uri = f"s3://moot/sha256/{digest.hex()}"
        return e.BlobRef(uri=uri, sha256=digest, size_bytes=len(data))


def _try_modes(
    report: Report,
    task: e.Task,
    model: Model,
    trained: _Trained,
    clip_norm: float | None,
    mode: str | None,
) -> None:
    meant = clip_norm or report.clip_norm or 1.0
    for name, parameters in make_trials(meant).items():
        try:
            found = _try_mode(task, model, trained, parameters)
        except Exception as error:
            found = ModeTrial(problem=str(error))
            level = Level.REFUSED if name == mode else Level.WARNING
            report.add(
                level,
                f"{name.upper()} can't take the update: {error}",
                "Another --clip-norm, fewer trained parameters, or another mode may.",
            )
        report.modes[name] = found
        if found.zeroed_percent and mode in {None, name}:
            report.add(
                Level.WARNING,
                f"in {name.upper()}, {found.zeroed_percent} % of the trained values "
                "that changed are sent as zero",
                "A smaller --clip-norm is finer, and so are fewer trained parameters.",
            )
    norm = report.update_norm
    if clip_norm is None or not norm or report.clip_norm is None:
        return
    if norm > clip_norm:
        report.add(
            Level.WARNING,
            f"a clip norm of {clip_norm:g} shortens the update {norm / clip_norm:.1f} "
            f"times: its norm is {norm:.3g}",
            f"--clip-norm {report.clip_norm:g} leaves room.",
        )


def _try_mode(
    task: e.Task, model: Model, trained: _Trained, parameters: Mapping[str, Any]
) -> ModeTrial:
    """Encode and answer as an agent does, without anybody to answer."""
    from producers.agent.kept_update import KeptUpdate
    from producers.control import Parameters, make_configuration
    from producers.modes import make_side
    from producers.modes.side import Site

    store = _Store()
    num_values = model.num_integers
    reference = store.store(b"")
    config = make_configuration(
        "check",
        Parameters(
            task=task,
            cohort_size=1,
            min_cohort=1,
            round_duration_ms=1_000,
            **parameters,
        ),
        principals=(),
        initial_model=reference,
        num_parameters=num_values,
    )
    started = e.RoundStarted(
        federation_id="check",
        round=1,
        cause=bytes(32),
        cause_leaf_index=0,
        output_index=0,
        num_drawn=1,
        cohort_seed=bytes(32),
        last_ticket=bytes(32),
        base_version=0,
        base_model=reference,
        task=task,
        num_parameters=num_values,
        fractional_bits=config.fractional_bits,
        deadline_ms=0,
    )
    site = Site(
        config=config, genesis=bytes(32), agent_id="a", store=cast("Any", store)
    )
    begun = time.monotonic()
    encoded = make_side(site).encode(model.compute_update(trained.tensors), started)
    encoded_s = time.monotonic() - begun
    tried = encoded.values[:TRIED_VALUES]
    scale = len(encoded.values) / len(tried)
    kept = KeptUpdate(tried, trained.num_examples, None)
    started = replace(started, num_parameters=len(tried))
    site = replace(site, config=replace(config, num_parameters=len(tried)))
    begun = time.monotonic()
    make_side(site).answer(kept, started, secrets.token_bytes(32))
    answered_s = time.monotonic() - begun
    return ModeTrial(
        answer_s=encoded_s + answered_s * scale,
        sent_bytes=round(store.num_bytes * scale),
        is_reckoned=scale > 1,
        zeroed_percent=0 if encoded.loss is None else encoded.loss.zeroed_percent,
    )


def _export(report: Report, loaded: Mapping[str, Any], trained: _Trained) -> None:
    """Measure and export as the exporter does, with the task's arguments alone."""
    try:
        demand("exporter")
    except StackError as error:
        report.add(
            Level.NOTE, f"not measured or exported here: {error.message}", error.hint
        )
        return
    from consumers.export.artifacts import export_model
    from consumers.export.metrics import make_evaluation

    begun = time.monotonic()
    cure = "The exporter measures with the task's arguments alone: --data-config."
    with _trying(report, "the exporter can't make the model", cure):
        exported = export_model(**loaded, tensors=trained.tensors)
    report.exporting_s = time.monotonic() - begun
    report.has_onnx = exported.onnx is not None
    if exported.onnx is None:
        report.add(
            Level.WARNING,
            f"versions will have no ONNX file: {exported.no_onnx}",
            "`moot registry get --format safetensors` fetches them all the same.",
        )
    if exported.batch_hooks:
        report.add(
            Level.NOTE,
            f"{' and '.join(exported.batch_hooks)} changes batches before the module: "
            "that is no part of the ONNX file, whose inputs are what comes after it",
        )
    if exported.evaluation is None:
        report.add(
            Level.WARNING,
            f"versions will have no metrics: {exported.no_evaluation}",
            "self.log() in validation_step makes some; val_dataloader gives the data.",
        )
        return
    found = exported.evaluation
    evaluation, left_out = make_evaluation(
        found.metrics, found.directions, found.num_examples
    )
    for name, why in left_out.items():
        report.add(Level.WARNING, f"versions will not carry the metric {name}: {why}")
    for metric in () if evaluation is None else evaluation.metrics:
        report.metrics[metric.name] = (metric.value_micros / 1e6, metric.direction)


def _judge_time(
    report: Report, mode: str | None, round_duration_s: float | None
) -> None:
    if round_duration_s is None or report.training_s is None:
        return
    for name, trial in report.modes.items():
        needed_s = report.training_s + trial.answer_s
        if mode in {None, name} and needed_s > round_duration_s:
            report.add(
                Level.WARNING,
                f"in {name.upper()} an agent like this machine needs {needed_s:.0f} s "
                f"for its part, and a round lasts {round_duration_s:.0f} s",
                "A longer --round-duration-s, or fewer --local-epochs.",
            )


@contextmanager
def _trying(report: Report, what: str, cure: str) -> Iterator[None]:
    """Turn whatever users' code raises into a refusal."""
    try:
        with running_users_code():
            yield
    except RefusedStateError as error:
        cure = "`--state PATTERN=CLASS` puts entries in another class, by name."
        raise _refuse(report, f"{error.reason}: {error}", cure) from None
    except Exception as error:
        if missing := find_missing(error):
            raise missing from None
        text = " ".join(f"{type(error).__name__}: {error}".split())
        message = f"{what}: {text[:500]}{_tell_where(error)}"
        raise _refuse(report, message, cure) from None


def _refuse(report: Report, message: str, cure: str) -> _RefusedError:
    report.add(Level.REFUSED, message, cure)
    return _RefusedError(message)


def _tell_where(error: BaseException) -> str:
    """Return where in users' code an error was raised, as text; empty if nowhere."""
    ours = {"adapters", "cli", "consumers", "producers", "protocol"}
    others = (sysconfig.get_paths()["stdlib"], "<")
    for frame, line in reversed([*traceback.walk_tb(error.__traceback__)]):
        module, path = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
        is_example = module.startswith("producers.examples")
        is_ours = module.partition(".")[0] in ours and not is_example
        if not (is_ours or path.startswith(others) or "site-packages" in path):
            return f" ({module}, line {line}, in {frame.f_code.co_name})"
    return ""


def show_report(report: Report, *, as_json: bool) -> None:
    """Print a report."""
    if as_json:
        say_json(_to_json(report), is_wide=True)
        return
    if report.num_trained is not None:
        classes = ", ".join(f"{n} {name}" for name, n in sorted(report.classes.items()))
        say(
            f"model      {counted(report.num_trained, 'trained parameter')}; "
            f"entries: {classes}; file {_show_bytes(report.model_bytes or 0)}"
        )
    if report.training_s is not None:
        reckoned = ", reckoned from a part of it" if report.is_reckoned else ""
        say(
            f"training   {counted(report.num_examples or 0, 'example')} here, "
            f"{report.training_s:.1f} s{reckoned}; norm of the update "
            f"{report.update_norm:.3g}"
        )
    for name, trial in report.modes.items():
        if trial.problem:
            continue
        about = "about " if trial.is_reckoned else ""
        needed_s = (report.training_s or 0.0) + trial.answer_s
        say(
            f"{name.upper():<10} an agent's round: {about}{needed_s:.1f} s, fetches "
            f"{_show_bytes(report.model_bytes or 0)}, sends {about}"
            f"{_show_bytes(trial.sent_bytes)}"
        )
    for name, (value, direction) in sorted(report.metrics.items()):
        say(f"metric     {name} {value:.4f}, {direction.lower()} is better")
    if report.exporting_s is not None:
        onnx = "with" if report.has_onnx else "without"
        say(f"export     {report.exporting_s:.1f} s, {onnx} an ONNX file")
    if report.clip_norm is not None:
        say(f"clip norm  {report.clip_norm:g} is suggested")
    for finding in report.findings:
        say(f"{finding.level.lower():<10} {finding.message}")
        if finding.cure:
            say(f"           {finding.cure}")
    if report.is_good:
        say("the task works")
    else:
        say("the task can't work")


def _to_json(report: Report) -> dict[str, Any]:
    return {
        "works": report.is_good,
        "findings": [asdict(finding) for finding in report.findings],
        "trained_parameters": report.num_trained,
        "state": report.classes,
        "model_bytes": report.model_bytes,
        "num_examples": report.num_examples,
        "training_s": report.training_s,
        "training_is_reckoned": report.is_reckoned,
        "update_norm": report.update_norm
        if report.update_norm is None or math.isfinite(report.update_norm)
        else None,
        "suggested_clip_norm": report.clip_norm,
        "metrics": [
            {"name": name, "value": value, "direction": direction}
            for name, (value, direction) in sorted(report.metrics.items())
        ],
        "onnx": report.has_onnx,
        "exporting_s": report.exporting_s,
        "modes": {name: asdict(trial) for name, trial in report.modes.items()},
    }


def _show_bytes(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1_000:  # noqa: PLR2004
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1_000
    return f"{value:.1f} GB"
