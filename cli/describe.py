"""Events as text for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

from adapters.wording import counted
from cli.modes import describe as describe_of_mode
from schemas import events as e


def describe(event: e.LedgerEvent) -> str:
    """Return an event as one line of text."""
    match event:
        case e.FederationConfigured():
            return (
                f"federation {event.federation_id}: "
                f"{counted(event.num_parameters, 'parameter')}, "
                f"cohorts of {event.min_cohort} to {event.cohort_size}"
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
    return f"{counted(said.num_examples, 'example')}{shown}"


def to_jsonable(value: Any) -> Any:
    """Return an event as JSON types: bytes in hex."""
    if is_dataclass(value) and not isinstance(value, type):
        return to_jsonable(asdict(value))
    if isinstance(value, dict):
        return {name: to_jsonable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(item) for item in value]
    return value.hex() if isinstance(value, bytes) else value
