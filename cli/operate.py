"""What operators and observers do from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from adapters.blobs import BlobStore
from adapters.durable import write_output
from adapters.imports import load_class
from adapters.kafka import (
    END,
    Publisher,
    count_partitions,
    find_bounds,
    read_partition,
)
from adapters.kafka_log import ReadBlock, find_genesis, follow_log, read_log
from adapters.keys import key_path, load_key, load_or_create_key
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.settings import Settings
from cli.describe import describe, describe_metrics, describe_state, to_jsonable
from cli.federations import follow_existing, make_no_federation
from cli.names import find_names
from cli.show import say, say_json, show_time
from cli.stack.processes import StackError
from cli.strategies import describe_parameters
from producers.control import (
    InvalidConfigurationError,
    Operator,
    Parameters,
    Position,
    load_principals,
    make_configuration,
)
from protocol.admission import AdmissionState, compute_event_id
from protocol.changes import (
    Difference,
    apply_signed_change,
    find_change_problem,
    list_differences,
    make_change,
)
from protocol.configuration import compute_task_digest
from protocol.decider import step
from protocol.exchanged_state import (
    Model,
    RefusedStateError,
    StateClass,
    model_to_blob,
)
from protocol.log import OpenedLeaf, fold_admission
from protocol.model import MAX_ONNX_SIZE_BYTES, compute_max_model_size
from protocol.modes import get_mode, list_waited_for, name_mode
from protocol.round_state import (
    RoundsState,
    find_drawable_agents,
    find_newest,
    is_drawable,
)
from protocol.rounds import DECIDER
from protocol.rules import find_rules_problem
from protocol.validation import ROLES, find_configuration_problem
from schemas import codec, topics
from schemas import events as e

FORMATS: Final = ("onnx", "safetensors")
NOBODY: Final = "none"
"""In place of an optional principal's key: the federation has no such principal."""
SEQUENCED_WITHIN_S: Final = 30.0
DRAWABLE_WITHIN_S: Final = 10.0
"""How long a request for a round waits for the checkpoint to draw its cohort from;
after that, training goes on with the last one."""
LOOK_FOR_REFUSALS_S: Final = 2.0
LATEST_REFUSALS: Final = 10_000
"""More than were made since the event was published, unless somebody writes junk."""


def make_registry(settings: Settings) -> SchemaRegistry:
    """Return the schema registry of these settings."""
    return SchemaRegistry(settings.schema_registry_url)


def make_operator(settings: Settings, federation_id: str) -> Operator:
    """Return a federation's operator, whose key is in the state directory.

    Raises:
        KeyFileError: there is no key: `moot federation create` makes it.
        StackError: there is no such federation.
        UntrustedFederationError: another operator founded it.
    """
    key = load_key(key_path(settings.state_directory / "keys", "OPERATOR"))
    registry = make_registry(settings)
    found = find_genesis(settings, registry, federation_id, operator_key=key.public_key)
    if found is None:
        raise make_no_federation(settings, federation_id)
    return Operator(key, Publisher(settings, registry), found.hash)


def create_federation(
    settings: Settings,
    federation_id: str,
    parameters: Parameters,
    *,
    seed: int,
    principals: Mapping[str, str],
    allowed_prefixes: tuple[str, ...],
    state_rules: Sequence[tuple[str, StateClass]] = (),
    check: Callable[[], Model] | None = None,
) -> Operator:
    """Found a federation and return its operator.

    Principals without a given key get one in the state directory, for services that run
    on this machine.

    Args:
        settings: Where everything is.
        federation_id: Its name.
        parameters: Its parameters.
        seed: Of the initial model.
        principals: Keys in hex by role, or `NOBODY`.
        allowed_prefixes: Prefixes of the modules that the task may use.
        state_rules: Classes of the model's state, by pattern.
        check: Tries the task out, and returns its initial model; None to make it
            without the data module, and try nothing.

    Raises:
        StackError: the model's state cannot be exchanged.
        InvalidConfigurationError: the parameters contradict each other.
    """
    store = BlobStore(settings)  # before torch: it demands its settings
    keys = settings.state_directory / "keys"
    operator_key = load_or_create_key(key_path(keys, "OPERATOR"))
    all_principals = load_principals(keys, _read_keys(principals))
    model = (
        check()
        if check is not None
        else _make_model(
            parameters.task,
            seed=seed,
            allowed_prefixes=allowed_prefixes,
            state_rules=state_rules,
        )
    )
    store.ensure_bucket()
    operator = Operator(operator_key, Publisher(settings, make_registry(settings)))
    position = operator.found(
        federation_id, parameters, all_principals, model_to_blob(model), store
    )
    await_leaf(settings, federation_id, position)
    say(describe_state(model))
    return operator


def demand_possible(
    federation_id: str, parameters: Parameters, principals: Mapping[str, str]
) -> None:
    """Check what can be checked of a federation before there is a model.

    It needs no service, and makes no key.

    Args:
        federation_id: Its name.
        parameters: Its parameters.
        principals: Keys in hex by role, or `NOBODY`.

    Raises:
        InvalidConfigurationError: the parameters contradict each other.
    """
    # Whoever has no key yet gets one: here any will do.
    keys = dict.fromkeys(ROLES, bytes(32)) | _read_keys(principals)
    some = e.BlobRef(uri=f"s3://moot/sha256/{'0' * 64}", sha256=bytes(32), size_bytes=1)
    config = make_configuration(
        federation_id,
        parameters,
        load_principals(Path(), keys),
        initial_model=some,
        num_parameters=1,
    )
    problem = find_configuration_problem(config)
    if problem is not None:
        raise InvalidConfigurationError(": ".join(problem))


def _read_keys(principals: Mapping[str, str]) -> dict[str, bytes | None]:
    return {
        role: None if key == NOBODY else bytes.fromhex(key)
        for role, key in principals.items()
    }


def _make_model(
    task: e.Task,
    *,
    seed: int,
    allowed_prefixes: tuple[str, ...],
    state_rules: Sequence[tuple[str, StateClass]],
) -> Model:
    module = load_class(task.module, allowed_prefixes)
    module_config = json.loads(task.module_config)
    from producers.agent.training import initialise  # torch, once all else is right

    try:
        return initialise(
            module=module, module_config=module_config, seed=seed, rules=state_rules
        )
    except RefusedStateError as error:
        msg = f"{error.reason}: {error}"
        raise StackError(
            msg, "`--state PATTERN=CLASS` puts entries in another class, by name."
        ) from None


def make_state_rules(texts: Iterable[str]) -> list[tuple[str, StateClass]]:
    """Return the class of a model's state entries, by pattern.

    Args:
        texts: Each ``PATTERN=CLASS``.

    Raises:
        StackError: one is malformed.
    """
    rules = []
    for text in texts:
        pattern, _, name = text.rpartition("=")
        if not pattern or name not in {*StateClass}:
            msg = f"{text!r:.200} is not PATTERN=CLASS"
            raise StackError(msg, f"The classes are {', '.join(StateClass)}.")
        rules.append((pattern, StateClass(name)))
    return rules


def say_as_operator(settings: Settings, event: e.Event) -> int:
    """Sign an event as the operator, and wait until it is a leaf; returns its index."""
    position = make_operator(settings, event.federation_id).say(event)
    return await_leaf(settings, event.federation_id, position)


def propose_change(
    settings: Settings, federation_id: str, changes: Mapping[str, Any]
) -> tuple[e.FederationChanged, list[Difference]]:
    """Return a change of a federation's newest configuration, and its differences.
    Names are dotted within a section or the task, as ``task.local_epochs``.

    Raises:
        StackError: there is no such federation, or this may not be changed.
    """
    config, number = read_newest(settings, federation_id)
    changed = config
    for name, value in changes.items():
        section, _, inner = name.rpartition(".")
        if section:
            part = getattr(changed, section)
            if part is None:
                msg = f"this federation has no {section}"
                raise StackError(msg, f"Leave {name} out.")
            value = replace(part, **{inner: value})  # noqa: PLW2901  # its section
        changed = replace(changed, **{section or name: value})
    change = make_change(changed, number + 1)
    problem = find_change_problem(config, number, change)
    if problem is not None:
        raise StackError(
            ": ".join(problem),
            "docs/howto/change-a-federation.md says what may change.",
        )
    unknown = find_rules_problem(change)
    if unknown is not None:
        # Services would stop at rules they do not know, this program's first.
        raise StackError(unknown, "Nothing was signed.")
    return change, list(list_differences(config, changed))


def read_newest(
    settings: Settings, federation_id: str
) -> tuple[e.FederationConfigured, int]:
    """Return a federation's newest configuration, and the number of its change.

    Every change is verified: a new one restates all parameters, so the operator would
    sign what somebody else slipped in.

    Raises:
        StackError: there is no such federation.
    """
    config: e.FederationConfigured | None = None
    number = 0
    for leaf in read_leaves(settings, federation_id):
        event, genesis = leaf.sequenced.event, leaf.sequenced.genesis
        if isinstance(event, e.FederationConfigured) and config is None:
            config = event
        elif isinstance(event, e.FederationChanged) and config is not None:
            changed = apply_signed_change(config, number, event, leaf.leaf, genesis)
            if changed is not None:
                config, number = changed, event.number
    assert config is not None, "a log begins with a configuration"
    return config, number


def show_change(
    change: e.FederationChanged, differences: Iterable[Difference], *, as_json: bool
) -> None:
    """Print what a change changes."""
    shown = [(d.name, to_jsonable(d.before), to_jsonable(d.after)) for d in differences]
    if as_json:
        say_json(
            {
                "federation": change.federation_id,
                "number": change.number,
                "changes": [
                    {"parameter": name, "before": before, "after": after}
                    for name, before, after in shown
                ],
            }
        )
        return
    say(f"change {change.number} of {change.federation_id}, from the next round on:")
    for name, before, after in shown:
        say(f"  {name}: {before} -> {after}")


def await_leaf(settings: Settings, federation_id: str, position: Position) -> int:
    """Wait until a published event is a leaf; returns its index.

    Raises:
        StackError: it was refused, or not sequenced in time.
    """
    registry = make_registry(settings)
    begun = looked = time.monotonic()
    nexts: dict[int, int] = {}
    for read in follow_log(settings, registry, federation_id):
        now = time.monotonic()
        if isinstance(read, ReadBlock):
            for item in read.leaves:
                leaf, event = item.leaf, item.sequenced.event
                place = (leaf.source_topic, leaf.source_partition, leaf.source_offset)
                if place != position:
                    continue
                if isinstance(event, e.EventRejected):
                    raise _refused(event)
                return item.sequenced.leaf_index
        elif now - looked > LOOK_FOR_REFUSALS_S:
            # Refusals outside any known federation appear there alone.
            looked = now
            _look_for_refusal(settings, registry, position, nexts)
        if now - begun > SEQUENCED_WITHIN_S:
            break
    msg = f"nobody sequenced the event within {SEQUENCED_WITHIN_S:.0f} s"
    raise StackError(msg, "Is `moot serve sequencer` running?")


def _look_for_refusal(
    settings: Settings,
    registry: SchemaRegistry,
    position: Position,
    nexts: dict[int, int],
) -> None:
    """Look at the latest refusals: all are kept, and anybody can cause many. Updates
    `nexts`, which says where to continue in each partition.

    Raises:
        StackError: it was refused, and why.
    """
    for partition in range(count_partitions(settings, topics.REJECTED)):
        if partition not in nexts:
            bounds = find_bounds(settings, topics.REJECTED, partition)
            nexts[partition] = max(bounds.first, bounds.end - LATEST_REFUSALS)
        start = nexts[partition]
        for record in read_partition(settings, topics.REJECTED, partition, start=start):
            nexts[partition] = record.offset + 1
            try:
                event = codec.decode(registry.unframe_trusted(record.value or b""))
            except (FramingError, codec.CodecError):
                continue  # anybody's record, not the sequencer's
            if isinstance(event, e.EventRejected) and position == (
                event.source_topic,
                event.source_partition,
                event.source_offset,
            ):
                raise _refused(event)


def _refused(event: e.EventRejected) -> StackError:
    return StackError(
        f"refused: {event.reason}: {event.detail}",
        "docs/reference/reasons.md says what to do about each reason.",
    )


def read_leaves(settings: Settings, federation_id: str) -> Iterator[OpenedLeaf]:
    """Yield the leaves of a federation's log so far, chain and signatures verified.

    Raises:
        StackError: there is no such federation.
    """
    found = False
    for read in read_log(settings, make_registry(settings), federation_id):
        found = True
        yield from read.leaves
    if not found:
        raise make_no_federation(settings, federation_id)


def read_rounds(settings: Settings, federation_id: str) -> tuple[RoundsState, int]:
    """Return the state of a federation's rounds, and its number of leaves.

    Raises:
        StackError: there is no such federation.
    """
    state: RoundsState = DECIDER.initial
    size = 0
    for leaf in read_leaves(settings, federation_id):
        state, _ = step(DECIDER, state, leaf.sequenced)
        size = leaf.sequenced.leaf_index + 1
    return state, size


def await_drawable(settings: Settings, federation_id: str) -> RoundsState:
    """Return the rounds' state once the next cohort's checkpoint is on the log.

    Waits at most `DRAWABLE_WITHIN_S`: while nothing becomes final, training goes on.

    Raises:
        StackError: there is no such federation.
    """
    state: RoundsState = DECIDER.initial
    begun = time.monotonic()
    is_read = False
    for read in follow_existing(settings, make_registry(settings), federation_id):
        if isinstance(read, ReadBlock):
            for leaf in read.leaves:
                state, _ = step(DECIDER, state, leaf.sequenced)
            continue
        is_read |= read is END
        if not is_read:
            continue
        if is_drawable(state) or time.monotonic() - begun > DRAWABLE_WITHIN_S:
            break
    if not is_drawable(state):
        say(
            f"nothing became final within {DRAWABLE_WITHIN_S:.0f} s: the cohort will "
            "be drawn from an earlier checkpoint",
        )
    return state


def show_federation(settings: Settings, federation_id: str, *, as_json: bool) -> None:
    """Print a federation's parameters and state."""
    state, size = read_rounds(settings, federation_id)
    assert state.config is not None, "a log begins with a configuration"
    current = state.current
    genesis = next(read_leaves(settings, federation_id)).sequenced.genesis
    summary = {
        "federation": federation_id,
        "genesis": genesis.hex(),
        "leaves": size,
        "agents": sorted(state.agents),
        "last_round": state.last_round,
        "round_open": current is not None,
        "waits_for": [] if current is None else list_waited_for(state.config, current),
        "drawable_agents": len(find_drawable_agents(state)),
        "model_version": state.version,
        "model_sha256": state.model.sha256.hex() if state.model else "",
        "change": find_newest(state)[1],
        "num_parameters": state.config.num_parameters,
        "cohort_size": state.config.cohort_size,
        "min_cohort": state.config.min_cohort,
        "aggregation": name_mode(state.config),
        "parties": [*get_mode(state.config).list_speakers(state.config)],
        "strategy": state.config.strategy,
        "strategy_parameters": describe_parameters(state.config),
        "module": state.config.task.module,
        "task": compute_task_digest(state.config.task).hex(),
        "operator_key": next(
            p.public_key.hex() for p in state.config.principals if p.role == "OPERATOR"
        ),
    }
    if as_json:
        say_json(summary)
        return
    for name, value in summary.items():
        say(f"{name:<19} {_show_value(value)}")


def _show_value(value: object) -> object:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return ", ".join(value) if isinstance(value, list) else value


def list_agents(settings: Settings, federation_id: str, *, as_json: bool) -> None:
    """Print who asked to join, who was admitted and who was revoked."""
    names = find_names(settings, federation_id)
    agents: dict[str, dict[str, str]] = {}
    for leaf in read_leaves(settings, federation_id):
        event = leaf.sequenced.event
        if isinstance(event, e.AgentEnrolmentRequested | e.AgentAdmitted):
            # Anyone may ask, under any name and more than once: show each key.
            is_admitted = isinstance(event, e.AgentAdmitted)
            agents[f"{event.agent_id} {event.public_key.hex()}"] = {
                "agent": event.agent_id,
                "public_key": event.public_key.hex(),
                "state": "admitted" if is_admitted else "asked",
            }
        elif isinstance(event, e.AgentRevoked):
            for entry in agents.values():
                if entry["agent"] == event.agent_id and entry["state"] == "admitted":
                    entry["state"] = "revoked"
    for entry in agents.values():
        entry["name"] = names.get(entry["agent"], "")
    if as_json:
        say_json(list(agents.values()))
        return
    for entry in agents.values():
        shown = f"{entry['state']:<9} {entry['public_key']} {entry['agent']}"
        say(f"{shown}  {entry['name']}" if entry["name"] else shown)


def start_round(
    settings: Settings, federation_id: str, *, wait: bool, timeout_s: float
) -> int:
    """Request the next round and print its events; returns an exit code."""
    state = await_drawable(settings, federation_id)
    number = state.last_round + 1
    position = make_operator(settings, federation_id).request_round(
        federation_id, number, after_ms=state.last_requested_at_ms
    )
    asked_at = await_leaf(settings, federation_id, position)
    say(f"round {number} requested")
    if not wait:
        return 0
    deadline = time.monotonic() + timeout_s
    for read in follow_log(settings, make_registry(settings), federation_id):
        if time.monotonic() > deadline:
            msg = f"round {number} did not end within {timeout_s:.0f} s"
            raise StackError(msg, "`moot round watch` keeps watching it.")
        if not isinstance(read, ReadBlock):
            continue
        for leaf in read.leaves:
            event = leaf.sequenced.event
            if (
                leaf.sequenced.leaf_index <= asked_at
                or getattr(event, "round", None) != number
            ):
                continue
            say(describe(event))
            if isinstance(event, e.ModelVersionRegistered):
                return 0
            if isinstance(event, e.RoundAbandoned | e.RoundRefused):
                return 1
    raise AssertionError("a log that is followed does not end")


def abandon_round(settings: Settings, federation_id: str, explanation: str) -> int:
    """Abandon the round in progress; return its number.

    Raises:
        StackError: no round is in progress.
    """
    state, _ = read_rounds(settings, federation_id)
    if state.current is None:
        msg = f"no round of {federation_id!r} is in progress"
        raise StackError(msg, "`moot federation show` shows its state.")
    event = e.RoundAbandonRequested(
        federation_id=federation_id,
        round=state.current.started.round,
        explanation=explanation,
    )
    say_as_operator(settings, event)
    return event.round


def watch(
    settings: Settings, federation_id: str, *, as_json: bool, follow: bool
) -> None:
    """Print a federation's events from the beginning."""
    known = AdmissionState()
    for read in follow_existing(settings, make_registry(settings), federation_id):
        if read is END and not follow:
            return
        if not isinstance(read, ReadBlock):
            continue
        known = fold_admission(known, read.leaves)
        for leaf in read.leaves:
            event = leaf.sequenced.event
            if as_json:
                event_id = compute_event_id(known, leaf.leaf, event)
                line = {
                    "leaf_index": leaf.sequenced.leaf_index,
                    "event_id": event_id.hex(),
                    "event": type(event).__name__,
                    **to_jsonable(event),
                }
                say_json(line)
            else:
                say(f"{leaf.sequenced.leaf_index:>6}  {describe(event)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A model that anybody may fetch.

    Attributes:
        version: Its version; 0 is the initial model.
        round: The round that made it; 0 for the initial model.
        model: Its safetensors file.
        task: What it was trained with.
        registered: Its entry in the model registry; None until there is one.
    """

    version: int
    round: int
    model: e.BlobRef
    task: e.Task
    registered: e.ModelVersionRegistered | None = None


def read_published(settings: Settings, federation_id: str) -> list[Published]:
    """Return a federation's models, by version from 0, registered or not.

    Raises:
        StackError: there is no such federation.
    """
    models: list[Published] = []
    for leaf in read_leaves(settings, federation_id):
        event = leaf.sequenced.event
        if isinstance(event, e.FederationConfigured) and not models:
            models.append(
                Published(
                    version=0, round=0, model=event.initial_model, task=event.task
                )
            )
        elif isinstance(event, e.AggregatePublished):
            models.append(
                Published(
                    version=len(models),
                    round=event.round,
                    model=event.model,
                    task=event.task,
                )
            )
        elif isinstance(event, e.ModelVersionRegistered) and (
            event.version < len(models)
        ):
            models[event.version] = replace(models[event.version], registered=event)
    return models


def find_version(models: Sequence[Published], version: int) -> Published:
    """Return a version of a federation's models.

    Raises:
        StackError: there is no such version.
    """
    if not 0 <= version < len(models):
        msg = f"there is no version {version}; the newest is {len(models) - 1}"
        raise StackError(msg, "`moot registry list` shows them; 0 is the initial one.")
    return models[version]


def fetch_model(settings: Settings, models: Sequence[Published], version: int) -> bytes:
    """Return a version's safetensors file, digest verified.

    Raises:
        StackError: there is no such version.
        BlobError: the file is not there, or is another.
    """
    found = find_version(models, version)
    size = compute_max_model_size(models[0].model)
    return BlobStore(settings).fetch(found.model, max_size_bytes=size)


def list_versions(settings: Settings, federation_id: str, *, as_json: bool) -> None:
    """Print the model registry, and what waits to be registered."""
    _, *models = read_published(settings, federation_id)
    if as_json:
        say_json([_version_to_json(model) for model in models])
        return
    say("version parent round registered            model             metrics")
    for model in models:
        registered = model.registered
        digest = model.model.sha256.hex()[:16]
        if registered is None:
            when, metrics = f"{'not yet':<20}", "waits for the exporter"
        else:
            when = f"{show_time(registered.registered_at_ms / 1000)}Z"
            metrics = describe_metrics(registered)
        say(
            f"{model.version:>7} {model.version - 1:>6} {model.round:>5} "
            f"{when} {digest}  {metrics}"
        )


def _version_to_json(model: Published) -> Any:
    """Return a version's entry; what only its registration says is null before it."""
    if model.registered is not None:
        return to_jsonable(model.registered)
    known = {"version": model.version, "parent_version": model.version - 1}
    known |= {"round": model.round, "model": to_jsonable(model.model)}
    names = (each.name for each in fields(e.ModelVersionRegistered))
    return {name: known.get(name) for name in names}


def demand_format(form: str) -> None:
    """Check the name of a version's format.

    Raises:
        StackError: there is no such format.
    """
    if form not in FORMATS:
        raise StackError(f"no format {form!r}", f"Choose one of {', '.join(FORMATS)}.")


def get_version(
    settings: Settings, federation_id: str, version: int, form: str, output: Path
) -> None:
    """Fetch a version's artifact, digest verified, into a file."""
    settings.demand_minio()
    models = read_published(settings, federation_id)
    if form == "onnx":
        ref = _find_onnx(find_version(models, version))
        data = BlobStore(settings).fetch(ref, max_size_bytes=MAX_ONNX_SIZE_BYTES)
    else:
        data = fetch_model(settings, models, version)
    write_output(output, data)
    say(f"wrote {output}: version {version}, {len(data)} bytes")


def _find_onnx(model: Published) -> e.BlobRef:
    if model.registered is None:
        why = "the exporter has not been there yet" if model.version else "none is made"
    elif model.registered.onnx is None:
        why = model.registered.no_onnx
    else:
        return model.registered.onnx
    msg = f"version {model.version} has no ONNX: {why}"
    raise StackError(msg, "`--format safetensors` gives its parameters.")
