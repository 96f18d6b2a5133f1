"""Events as text for people and as JSON for programs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, is_dataclass
from typing import Any

from adapters.wording import counted
from cli.modes import describe as describe_of_mode
from protocol.exchanged_state import Model, StateClass
from schemas import events as e


def describe(event: e.LedgerEvent) -> str:
    """Return an event as one line of text."""
    match event:
        case e.FederationConfigured():
            return (
                f"federation {event.federation_id}: "
                f"{counted(event.num_parameters, 'parameter')}, "
                f"cohorts of {event.min_cohort} to {event.cohort_size}, "
                f"{event.strategy}"
            )
        case e.FederationChanged():
            return f"change {event.number} of the federation, from the next round on"
        case e.AgentEnrolmentRequested():
            return f"{event.agent_id} asks to join"
        case e.AgentAdmitted():
            return f"{event.agent_id} admitted"
        case e.AgentRevoked():
            return f"{event.agent_id} revoked: {event.explanation}"
        case e.RoundRequested():
            return f"round {event.round} requested"
        case e.RoundAbandonRequested():
            return f"round {event.round} given up: {event.explanation}"
        case e.RoundStarted():
            return (
                f"round {event.round} starts from version {event.base_version}: "
                f"{counted(event.num_drawn, 'agent')} drawn"
            )
        case e.RoundRefused() | e.RoundAbandoned() | e.ClaimRejected():
            name = type(event).__name__
            return f"round {event.round} {name}: {event.reason}, {event.detail}"
        case e.UpdateDeclined():
            return f"round {event.round} {event.agent_id} declines: {event.reason}"
        case e.ContributionAccepted():
            return f"round {event.round} accepted {event.agent_id}"
        case e.ContributionRejected():
            return (
                f"round {event.round} rejected {event.agent_id}: {event.reason}, "
                f"{event.detail}"
            )
        case e.AttendanceChanged(num_missed=0):
            return f"round {event.round} {event.agent_id} answers again"
        case e.AttendanceChanged():
            missed = counted(event.num_missed, "round")
            return f"round {event.round} {event.agent_id} missed {missed} in a row"
        case e.RoundSealed():
            return (
                f"round {event.round} sealed with "
                f"{counted(event.num_contributions, 'contribution')}, "
                f"{counted(event.num_examples, 'example')}"
            )
        case e.AggregatePublished():
            return f"round {event.round} model {event.model.sha256.hex()[:16]}"
        case e.ModelVersionRegistered():
            return (
                f"round {event.round} version {event.version}: "
                f"{describe_metrics(event)}"
            )
        case e.NodeSetChanged():
            names = ", ".join(node.name for node in event.nodes)
            return f"era {event.era}: the ledger nodes are {names}"
        case e.FinalityRequested():
            return f"block {event.height} waits to become final"
        case e.CheckpointFinalised():
            size = event.checkpoint.split("\n")[1:2] or ["?"]
            return f"the checkpoint of size {size[0]} is final"
        case e.EquivocationProven():
            return f"{event.public_key.hex()[:16]} proven to contradict itself"
        case e.BalanceChanged():
            return (
                f"{event.account} {event.amount:+} points for {event.basis}: "
                f"{event.balance}"
            )
        case e.EventRejected():
            return f"refused {event.reason} from {event.source_topic}: {event.detail}"
        case e.DeadlineReached():
            return f"round {event.round} deadline"
        case e.UpdatesChecked():
            bad = sum(bool(result.reason) for result in event.results)
            return f"round {event.round} checked {len(event.results)}, {bad} bad"
        case e.AggregateSubmitted() | e.ModelExported():
            return f"round {event.round} {type(event).__name__}"
        case _:
            return describe_of_mode(event)


def describe_metrics(version: e.ModelVersionRegistered) -> str:
    """Return a version's metrics as text, or why there are none."""
    if version.evaluation is None:
        return version.no_evaluation
    return ", ".join(
        f"{metric.name} {metric.value_micros / 1e6:.4f}"
        for metric in version.evaluation.metrics
    )


def describe_training(said: Any) -> str:
    """Return what an agent reports about its training, as text."""
    loss = said.loss_micros
    shown = "" if loss is None else f", loss {loss / 1e6:.3f}"
    lost = said.encoding_loss
    if lost is not None and lost.shrunk_times > 1:
        shown += f", clipped to 1/{lost.shrunk_times}"
    if lost is not None and lost.zeroed_percent:
        shown += f", {lost.zeroed_percent} % of changes sent as zero"
    if said.num_steps is not None:
        shown = f" in {counted(said.num_steps, 'step')}{shown}"
    return f"{counted(said.num_examples, 'example')}{shown}"


def describe_state(model: Model) -> str:
    """Return what a model's updates consist of, and what else it holds, as text."""
    trained = len(model.to_vector())
    said = [counted(trained, "trained value")]
    if model.averaged:
        averaged = len(model.to_averaged())
        said.append(
            f"{model.num_integers - trained} for {counted(averaged, 'value')} averaged "
            "apart"
        )
        if model.num_integers > 2 * trained:
            said.append("unless training leaves them alone and they are made `fixed`")
    others = Counter(
        str(model.get_class(name))
        for name in model.tensors
        if model.get_class(name) in {StateClass.KEPT, StateClass.FIXED}
    )
    text = f"an update has {counted(model.num_integers, 'integer')}: {', '.join(said)}"
    for name, count in sorted(others.items()):
        text += f"; {name}: {counted(count, 'entry', 'entries')}"
    return text


def to_jsonable(value: Any) -> Any:
    """Return an event as JSON types: bytes in hex."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_jsonable(asdict(value))
    if isinstance(value, dict):
        return {name: to_jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value
