"""What an operator says: federations, agents admitted and revoked, rounds."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from adapters.blobs import BlobStore
from adapters.kafka import Publisher
from adapters.keys import key_path, load_or_create_key
from ledger.signing import SigningKey
from protocol.envelope import NO_GENESIS, compute_genesis_hash
from protocol.exchanged_state import (
    RefusedStateError,
    model_from_blob,
    model_to_blob,
)
from protocol.modes import DEFAULT_SECTIONS
from protocol.rewards import RECOMMENDED_RULE
from protocol.rules import LATEST_VERSION
from protocol.tensors import MalformedBlobError
from protocol.validation import (
    MAX_WEIGHT,
    ROLES,
    find_configuration_problem,
)
from schemas import codec, topics
from schemas.events import (
    AgentAdmitted,
    BlobRef,
    Event,
    FederationConfigured,
    LedgerNode,
    LedgerNodes,
    Principal,
    RewardRule,
    RoundRequested,
    StrategyParameter,
    Task,
)

NONCE_SIZE: Final = 32


class InvalidConfigurationError(Exception):
    """A federation cannot be founded like this; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What an operator chooses for a federation; its schema gives units and ranges.

    Attributes:
        sections: Its modes' sections of the configuration, by name.
    """

    task: Task
    cohort_size: int
    min_cohort: int
    round_duration_ms: int
    fractional_bits: int = 20
    max_num_examples: int = 2**22
    ledger_nodes: tuple[LedgerNode, ...] = ()
    reward_rule: RewardRule | None = RECOMMENDED_RULE
    strategy: str = "FEDAVG"
    strategy_parameters: tuple[StrategyParameter, ...] = ()
    sections: Mapping[str, Any] = field(default_factory=DEFAULT_SECTIONS.copy)


class Position(NamedTuple):
    """Where a published event is, to find out what became of it."""

    topic: str
    partition: int
    offset: int


def load_principals(
    keys: Path, given: Mapping[str, bytes | None] = MappingProxyType({})
) -> tuple[Principal, ...]:
    """Return all principals, making missing keys.

    Args:
        keys: The directory of keys.
        given: Public keys by role, 32 bytes each, of services that keep their own; None
            for a role that stays empty.
    """
    return tuple(
        Principal(
            role=role,
            public_key=given.get(role)
            or load_or_create_key(key_path(keys, role)).public_key,
        )
        for role in ROLES
        if given.get(role, b"") is not None
    )


def make_configuration(
    federation_id: str,
    parameters: Parameters,
    principals: tuple[Principal, ...],
    *,
    initial_model: BlobRef,
    num_parameters: int,
) -> FederationConfigured:
    """Return a configuration with a nonce of its own; nothing is checked.

    Args:
        federation_id: The federation's name.
        parameters: Its parameters.
        principals: Who may sign what.
        initial_model: Version 0.
        num_parameters: Length of its updates.
    """
    return FederationConfigured(
        federation_id=federation_id,
        nonce=secrets.token_bytes(NONCE_SIZE),
        rules_version=LATEST_VERSION,
        principals=principals,
        task=parameters.task,
        initial_model=initial_model,
        num_parameters=num_parameters,
        fractional_bits=parameters.fractional_bits,
        max_num_examples=min(
            parameters.max_num_examples, MAX_WEIGHT // parameters.cohort_size
        ),
        cohort_size=parameters.cohort_size,
        min_cohort=parameters.min_cohort,
        round_duration_ms=parameters.round_duration_ms,
        strategy=parameters.strategy,
        strategy_parameters=parameters.strategy_parameters,
        **parameters.sections,
        ledger_nodes=LedgerNodes(nodes=parameters.ledger_nodes)
        if parameters.ledger_nodes
        else None,
        reward_rule=parameters.reward_rule,
    )


class Operator:
    """Signs as the operator of federations; founding needs no genesis."""

    def __init__(
        self, key: SigningKey, publisher: Publisher, genesis: bytes = NO_GENESIS
    ) -> None:
        self._key = key
        self._publisher = publisher
        self._genesis = genesis

    @property
    def genesis(self) -> bytes:
        """The genesis hash that agents and auditors pin, 32 bytes; after `found`, the
        new federation's.
        """
        return self._genesis

    @property
    def public_key(self) -> bytes:
        """The key that agents and auditors pin, 32 bytes."""
        return self._key.public_key

    def found(
        self,
        federation_id: str,
        parameters: Parameters,
        principals: tuple[Principal, ...],
        initial_model: bytes,
        store: BlobStore,
    ) -> Position:
        """Found a federation: store its initial model, publish its genesis.

        Args:
            federation_id: Its name.
            parameters: Its parameters.
            principals: Who may sign what.
            initial_model: Version 0, a safetensors file; stored in canonical form.
            store: Where the model is stored.

        Raises:
            InvalidConfigurationError: the parameters contradict each other, or the
                model's state cannot be exchanged.
        """
        try:
            model = model_from_blob(initial_model)
        except RefusedStateError as error:
            raise InvalidConfigurationError(f"{error.reason}: {error}") from None
        except MalformedBlobError as error:
            raise InvalidConfigurationError(f"the initial model: {error}") from None
        config = make_configuration(
            federation_id,
            parameters,
            principals,
            initial_model=store.store(model_to_blob(model)),
            num_parameters=model.num_integers,
        )
        problem = find_configuration_problem(config)
        if problem is not None:
            raise InvalidConfigurationError(": ".join(problem))
        position = self.say(config)
        self._genesis = compute_genesis_hash(codec.encode(config))
        return position

    def say(self, event: Event) -> Position:
        """Sign and publish an event."""
        return self._say(event)[0]

    def admit(self, federation_id: str, agents: Mapping[str, bytes]) -> list[Position]:
        """Bind agents, by name, to their keys, 32 bytes each."""
        return self._say(
            *(
                AgentAdmitted(
                    federation_id=federation_id, agent_id=agent_id, public_key=key
                )
                for agent_id, key in agents.items()
            )
        )

    def request_round(
        self, federation_id: str, round_number: int, *, after_ms: int = -1
    ) -> Position:
        """Request the next round; its trace begins here.

        Args:
            federation_id: The federation.
            round_number: One more than the last round's.
            after_ms: Time of the last request on the ledger; this one's is later, even
                if this machine's clock is behind.
        """
        event = RoundRequested(
            federation_id=federation_id,
            round=round_number,
            requested_at_ms=max(time.time_ns() // 1_000_000, after_ms + 1),
        )
        return self.say(event)

    def _say(self, *events: Event) -> list[Position]:
        published = self._publisher.publish_all(events, self._key, self._genesis)
        return [
            Position(topics.topic_of(event), *place)
            for event, place in zip(events, published, strict=True)
        ]
