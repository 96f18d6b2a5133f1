"""A small federation for tests: its keys, its events, and leaves made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Generic, TypeVar

from ledger.merkle import leaf_hash
from ledger.signing import SigningKey
from protocol.admission import Received
from protocol.decider import Decider, Sequenced, step
from protocol.envelope import (
    NO_GENESIS,
    choose_genesis,
    compute_genesis_hash,
    sign_event,
)
from protocol.modes.mpc.configuration import get_comparison
from protocol.validation import ROLES
from schemas import codec, topics
from schemas import events as e

FEDERATION: Final = "clinics"
NOW_MS: Final = 1_700_000_000_000
"""When tests begin."""
DURATION_MS: Final = 60_000
AGENTS: Final = ("ana", "bea", "cem", "dan")


def make_key(name: str) -> SigningKey:
    """Return the key of somebody by name, always the same."""
    return SigningKey(hashlib.sha256(name.encode()).digest())


def make_blob(content: str | bytes) -> e.BlobRef:
    """Return a reference to a blob with this content."""
    data = content.encode() if isinstance(content, str) else content
    digest = hashlib.sha256(data)
    return e.BlobRef(
        uri=f"s3://moot/sha256/{digest.hexdigest()}",
        sha256=digest.digest(),
        size_bytes=max(1, len(data)),
    )


BASE: Final = make_blob("the initial model")

CONFIG: Final = e.FederationConfigured(
    federation_id=FEDERATION,
    nonce=b"n" * 32,
    rules_version=1,
    principals=tuple(
        e.Principal(role=role, public_key=make_key(role).public_key) for role in ROLES
    ),
    task=e.Task(
        module="package.module:Module",
        module_config="{}",
        data_module="package.module:Data",
        data_config="{}",
        local_epochs=1,
    ),
    initial_model=BASE,
    num_parameters=4,
    fractional_bits=16,
    max_num_examples=1_000,
    cohort_size=4,
    min_cohort=2,
    round_duration_ms=DURATION_MS,
    strategy="FEDAVG",
    plain=e.Plain(),
)
GENESIS: Final = compute_genesis_hash(codec.encode(CONFIG))


PARTIES: Final = ("p0", "p1", "p2")

MPC: Final = e.Mpc(
    parties=tuple(
        e.Party(
            name=name,
            public_key=make_key(name).public_key,
            sealing_key=hashlib.sha256(b"sealing " + name.encode()).digest(),
        )
        for name in PARTIES
    ),
    norm_bound=100_000,
)
COMPARISON: Final = e.Comparison(
    far_threshold=10**10, dealer_key=make_key("dealer").public_key
)
MPC_CONFIG: Final = replace(CONFIG, plain=None, mpc=MPC)
COMPARING_CONFIG: Final = replace(
    MPC_CONFIG,
    mpc=replace(
        MPC,
        parties=tuple(
            replace(party, address=f"{party.name}.example.org:7500")
            for party in MPC.parties
        ),
        comparison=COMPARISON,
    ),
    min_cohort=3,
)
"""Whose parties compare updates before they are sealed."""


def edit(config: e.FederationConfigured, **changes: Any) -> e.FederationConfigured:
    """Return a configuration with other values, also in its section of the parties."""

    def take(section: Any) -> dict[str, Any]:
        names = () if section is None else section.__slots__
        return {name: changes.pop(name) for name in names if name in changes}

    if config.mpc is not None:
        comparison = get_comparison(config)
        if compared := take(comparison):
            assert comparison is not None, "taken from it"
            changes["comparison"] = replace(comparison, **compared)
        if shared := take(config.mpc):
            changes["mpc"] = replace(config.mpc, **shared)
    return replace(config, **changes)


def admitted(agent_id: str) -> e.AgentAdmitted:
    """Return an agent's admission, with the key of its name."""
    return e.AgentAdmitted(
        federation_id=FEDERATION,
        agent_id=agent_id,
        public_key=make_key(agent_id).public_key,
    )


def enrolment(agent_id: str) -> e.AgentEnrolmentRequested:
    """Return an agent's request to join."""
    return e.AgentEnrolmentRequested(
        federation_id=FEDERATION,
        agent_id=agent_id,
        public_key=make_key(agent_id).public_key,
    )


def revoked(agent_id: str) -> e.AgentRevoked:
    """Return the end of an agent's membership."""
    return e.AgentRevoked(
        federation_id=FEDERATION, agent_id=agent_id, explanation="it left"
    )


def request(number: int, requested_at_ms: int = NOW_MS) -> e.RoundRequested:
    """Return the operator's request for a round."""
    return e.RoundRequested(
        federation_id=FEDERATION, round=number, requested_at_ms=requested_at_ms
    )


def deadline(number: int, observed_at_ms: int = NOW_MS) -> e.DeadlineReached:
    """Return the timer's announcement."""
    return e.DeadlineReached(
        federation_id=FEDERATION, round=number, observed_at_ms=observed_at_ms
    )


def update(agent_id: str, number: int = 1, **changes: Any) -> e.UpdateSubmitted:
    """Return an agent's good update for a round of the initial model."""
    event = e.UpdateSubmitted(
        federation_id=FEDERATION,
        round=number,
        agent_id=agent_id,
        base_model_sha256=BASE.sha256,
        update=make_blob(f"update of {agent_id} for {number}"),
        num_examples=10,
        loss_micros=500_000,
    )
    return replace(event, **changes)


def committed(agent_id: str, number: int = 1, **changes: Any) -> e.UpdateCommitted:
    """Return all that an agent says in an MPC round of the initial model."""
    event = e.UpdateCommitted(
        federation_id=FEDERATION,
        round=number,
        agent_id=agent_id,
        base_model_sha256=BASE.sha256,
        commitments=make_blob(f"commitments of {agent_id} for {number}"),
        shares=tuple(
            e.SealedShare(
                party=party,
                sealed=make_blob(f"share of {agent_id} for {party} in {number}"),
                commitment=bytes(48),
            )
            for party in PARTIES
        ),
        proof=make_blob(f"proof of {agent_id} for {number}"),
        num_examples=10,
        loss_micros=500_000,
    )
    return replace(event, **changes)


def linked(party: str, number: int = 1) -> e.SharesLinked:
    """Return what a party says of the shares that it opened."""
    return e.SharesLinked(
        federation_id=FEDERATION,
        round=number,
        party=party,
        links=make_blob(f"links of {party} for {number}"),
    )


def compared(party: str, far: bytes, number: int = 1) -> e.UpdatesCompared:
    """Return a party's word on who is far from whom."""
    return e.UpdatesCompared(
        federation_id=FEDERATION, round=number, party=party, far=far
    )


def partial(
    party: str, num_contributions: int, num_examples: int, number: int = 1
) -> e.PartialAggregateSubmitted:
    """Return a party's part of a sum."""
    return e.PartialAggregateSubmitted(
        federation_id=FEDERATION,
        round=number,
        party=party,
        num_contributions=num_contributions,
        num_examples=num_examples,
        partial=make_blob(f"partial of {party} for {number}"),
    )


def declined(agent_id: str, number: int = 1, **changes: Any) -> e.UpdateDeclined:
    """Return an agent's refusal to contribute."""
    event = e.UpdateDeclined(
        federation_id=FEDERATION,
        round=number,
        agent_id=agent_id,
        reason="TRAINING_FAILED",
        detail="OSError",
    )
    return replace(event, **changes)


def checked(
    *leaf_indexes: int, number: int = 1, reason: str = "", detail: str = ""
) -> e.UpdatesChecked:
    """Return the aggregator's claim that these updates are all good, or all not."""
    return e.UpdatesChecked(
        federation_id=FEDERATION,
        round=number,
        results=tuple(
            e.UpdateCheck(leaf_index=index, reason=reason, detail=detail)
            for index in leaf_indexes
        ),
    )


def aggregate(
    num_contributions: int, num_examples: int, number: int = 1, **changes: Any
) -> e.AggregateSubmitted:
    """Return the aggregator's claim about a round of the initial model."""
    event = e.AggregateSubmitted(
        federation_id=FEDERATION,
        round=number,
        base_model_sha256=BASE.sha256,
        num_contributions=num_contributions,
        num_examples=num_examples,
        sum=make_blob(f"sum {number}"),
        model=make_blob(f"model {number}"),
    )
    return replace(event, **changes)


def evaluation(
    accuracy_micros: int = 900_000, *, num_examples: int = 100
) -> e.Evaluation:
    """Return how good a model is."""
    found = (("accuracy", accuracy_micros, "HIGHER"), ("loss", 300_000, "LOWER"))
    metrics = tuple(
        e.Metric(name=name, value_micros=value, direction=direction)
        for name, value, direction in found
    )
    return e.Evaluation(num_examples=num_examples, metrics=metrics)


def exported(number: int, model: e.BlobRef, **changes: Any) -> e.ModelExported:
    """Return the exporter's claim about a model."""
    event = e.ModelExported(
        federation_id=FEDERATION,
        round=number,
        model_sha256=model.sha256,
        onnx=make_blob(f"onnx {number}"),
        no_onnx="",
        evaluation=evaluation(),
        no_evaluation="",
    )
    return replace(event, **changes)


StateT = TypeVar("StateT")
FactT = TypeVar("FactT", bound=e.Fact)


@dataclass(kw_only=True)
class Run(Generic[StateT, FactT]):
    """A decider on its way through a log: given these leaves, when this, then that.

    Attributes:
        decider: Whose rules.
        state: Where it stands.
        leaves: What it was given.
        facts: What it concluded, by leaf.
        now_ms: Stamp of the next leaf.
    """

    decider: Decider[StateT, FactT]
    state: StateT
    leaves: list[Sequenced] = field(default_factory=list)
    facts: list[Sequence[FactT]] = field(default_factory=list)
    now_ms: int = NOW_MS

    def when(self, event: e.LedgerEvent, *, at_ms: int | None = None) -> list[FactT]:
        """Sequence one more event and return the facts that follow from it."""
        if at_ms is not None:
            assert at_ms >= self.now_ms, "a log's time does not go back"
            self.now_ms = at_ms
        leaf = Sequenced(
            event=event,
            leaf_hash=leaf_hash(codec.encode(event)),
            leaf_index=len(self.leaves),
            sequenced_at_ms=self.now_ms,
            previous_block_hash=hashlib.sha256(b"%d" % len(self.leaves)).digest(),
            tree_size=len(self.leaves) + 1,
            genesis=GENESIS,
        )
        self.leaves.append(leaf)
        self.state, facts = step(self.decider, self.state, leaf)
        self.facts.append(facts)
        return list(facts)

    def given(self, *events: e.LedgerEvent) -> Run[StateT, FactT]:
        """Sequence several events; what follows from them is not looked at."""
        for event in events:
            self.when(event)
        return self

    @property
    def next_index(self) -> int:
        """Leaf index of the next event."""
        return len(self.leaves)


def start(decider: Decider[StateT, FactT]) -> Run[StateT, FactT]:
    """Return a decider before the first leaf."""
    return Run(decider=decider, state=decider.initial)


def find_author(event: e.LedgerEvent) -> str:
    """Return the name of the key that should sign an event."""
    match event:
        case (
            e.UpdateSubmitted()
            | e.UpdateCommitted()
            | e.UpdateDeclined()
            | e.AgentEnrolmentRequested()
        ):
            return event.agent_id
        case e.SharesLinked() | e.UpdatesCompared() | e.PartialAggregateSubmitted():
            return event.party
        case e.DeadlineReached():
            return "TIMER"
        case e.UpdatesChecked() | e.AggregateSubmitted():
            return "AGGREGATOR"
        case e.ModelExported():
            return "EXPORTER"
        case e.EventRejected():
            return "SEQUENCER"
        case _ if isinstance(event, e.Fact):
            return "DECIDER"
        case _:
            return "OPERATOR"


@dataclass
class Records:
    """Makes records as the sequencer reads them, with offsets by topic."""

    partition: int = 0
    offsets: dict[str, int] = field(default_factory=dict)
    genesis: bytes = NO_GENESIS

    def record(
        self, event: e.LedgerEvent, /, *, signer: str | None = None, **changes: Any
    ) -> Received:
        """Return the next record of the event's topic, signed by its author."""
        data = codec.encode(event)
        if isinstance(event, e.FederationConfigured) and self.genesis == NO_GENESIS:
            self.genesis = compute_genesis_hash(data)
        key = make_key(signer or find_author(event))
        topic = str(changes.pop("topic", None) or topics.topic_of(event))
        offset = self.offsets.get(topic, 0)
        self.offsets[topic] = offset + 1
        received = Received(
            topic=topic,
            partition=self.partition,
            offset=offset,
            key=event.federation_id.encode(),
            value=b"\0\0\0\0\1" + data[codec.HEADER_SIZE :],
            event=data,
            signature=sign_event(key, choose_genesis(event, self.genesis), data),
        )
        return replace(received, **changes)

    def records(self, events: Iterable[e.LedgerEvent]) -> list[Received]:
        """Return the records of several events."""
        return [self.record(event) for event in events]
