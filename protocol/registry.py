"""The registry decider: a published aggregate and its export become a model version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from protocol.decider import Decider, Sequenced
from schemas import events as e


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedModel:
    """A model awaiting its export."""

    version: int
    round: int
    model: e.BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryState:
    """What the registry decider knows of a federation.

    Attributes:
        last_version: Version of the last published model; 0 is the initial one.
        waiting: Published models that nobody has exported yet, by round.
    """

    last_version: int = 0
    waiting: Mapping[int, PublishedModel] = field(default_factory=dict)


def decide(state: RegistryState, leaf: Sequenced) -> Sequence[e.RegistryFact]:
    """Register a model once its export arrives; any other export is void."""
    match leaf.event:
        case e.ModelExported() as exported:
            published = state.waiting.get(exported.round)
            if published is None or published.model.sha256 != exported.model_sha256:
                return []
            return [
                e.ModelVersionRegistered(
                    federation_id=exported.federation_id,
                    round=published.round,
                    cause=leaf.leaf_hash,
                    cause_leaf_index=leaf.leaf_index,
                    output_index=0,
                    version=published.version,
                    # One round at a time: a model's parent is the version before it.
                    parent_version=published.version - 1,
                    model=published.model,
                    onnx=exported.onnx,
                    no_onnx=exported.no_onnx,
                    evaluation=exported.evaluation,
                    no_evaluation=exported.no_evaluation,
                    registered_at_ms=leaf.sequenced_at_ms,
                )
            ]
        case _:
            return []


def evolve(
    state: RegistryState, leaf: Sequenced, facts: Sequence[e.RegistryFact]
) -> RegistryState:
    """Fold a leaf and what followed from it; knows no rule."""
    for fact in facts:
        waiting = {k: v for k, v in state.waiting.items() if k != fact.round}
        state = replace(state, waiting=waiting)
    match leaf.event:
        case e.AggregatePublished() as published:
            version = state.last_version + 1
            model = PublishedModel(
                version=version, round=published.round, model=published.model
            )
            waiting = {**state.waiting, published.round: model}
            return replace(state, last_version=version, waiting=waiting)
        case _:
            return state


DECIDER = Decider(initial=RegistryState(), decide=decide, evolve=evolve)
