"""A federation's log, built in memory by the real sequencer and the real deciders.

`LogBuilder` plays every part of a federation with keys derived from names, so the same
calls give the same bytes. It keeps what Kafka and MinIO would hold: framed records of
the ledger and its checkpoints, and blobs by digest.

Tests of attacks use the same class: ``send_fact`` and ``result`` are what a lying
decider or aggregator would change, and `LogBuilder.append` lets the sequencer collude.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from adapters.blobs import BlobError
from adapters.kafka import Record, make_headers
from adapters.kafka_log import ReadBlock
from adapters.schema_registry import FramingError
from ledger.attestations import (
    Header,
    NodeSet,
    sign_approval,
    sign_attestation,
)
from ledger.blocks import plan_block
from ledger.checkpoint import (
    Checkpoint,
    compute_origin,
    cosign_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from ledger.equivocation import prove_equivocation
from ledger.note import parse_note
from ledger.signing import SigningKey
from protocol.admission import Received
from protocol.deciders import compute_initial_states, step_all
from protocol.encoding import UpdateRefusedError, parse_update, update_to_blob
from protocol.envelope import (
    NO_GENESIS,
    SIGNATURE_HEADER,
    choose_genesis,
    compute_genesis_hash,
    sign_event,
)
from protocol.log import (
    LogState,
    NewBlock,
    OpenedLeaf,
    SequencerState,
    open_block,
    sequence,
)
from protocol.model import RoundResult, compute_max_update_size, compute_result
from protocol.rewards import RECOMMENDED_RULE
from protocol.round_state import RoundsState
from protocol.rules import LATEST_VERSION
from protocol.strategies import counts_steps
from protocol.tensors import tensors_to_blob
from protocol.validation import ROLES
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason

PREFIX_SIZE: Final = 5
FRACTIONAL_BITS: Final = 20
START_MS: Final = 1_760_000_000_000
ROUND_DURATION_MS: Final = 60_000
TASK: Final = e.Task(
    module="examples.tiny:Module",
    module_config="{}",
    data_module="examples.tiny:DataModule",
    data_config="{}",
    local_epochs=1,
)
_SCHEMA_IDS: Final = {event: i for i, event in enumerate(topics.TOPIC_OF, start=1)}
_HEADERS: Final = {
    b"\x00" + schema_id.to_bytes(4, "big"): codec.MARKER
    + codec.compute_fingerprint(codec.schema_text(event.__name__))
    for event, schema_id in _SCHEMA_IDS.items()
}


def make_key(name: str) -> SigningKey:
    """Return the key that a name always has."""
    return SigningKey(hashlib.sha256(b"key of " + name.encode()).digest())


def make_nodes(names: Iterable[str]) -> tuple[e.LedgerNode, ...]:
    """Return ledger nodes with the keys of their names."""
    return tuple(
        e.LedgerNode(name=name, public_key=make_key(name).public_key, url="")
        for name in sorted(names)
    )


def make_header(nodes: NodeSet, data: bytes, *, height: int = 1) -> Header:
    """Return the header of some block that stands on nothing known."""
    digest = hashlib.sha256(data).digest()
    return Header(
        chain_id=nodes.chain_id,
        era=nodes.era,
        height=height,
        previous_id=digest,
        block_hash=digest,
        tree_size=height + 1,
        tree_root=digest,
        state_root=digest,
        node_set_hash=nodes.hash,
    )


def make_traceparent(number: int) -> str:
    """Return a well-formed trace context."""
    digest = hashlib.sha256(number.to_bytes(8, "big")).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01"


def frame(event: e.Event) -> bytes:
    """Return an event as it goes on the wire."""
    prefix = b"\x00" + _SCHEMA_IDS[type(event)].to_bytes(4, "big")
    return prefix + codec.encode(event)[codec.HEADER_SIZE :]


def unframe(value: bytes) -> bytes:
    """Do as `adapters.schema_registry.SchemaRegistry.unframe_trusted`."""
    header = _HEADERS.get(value[:PREFIX_SIZE])
    if header is None:
        raise FramingError(Reason.UNKNOWN_SCHEMA, f"prefix {value[:PREFIX_SIZE]!r}")
    return header + value[PREFIX_SIZE:]


class BlobDict(dict[bytes, bytes]):
    """Blobs by the digest they were stored under."""

    def store(self, data: bytes) -> e.BlobRef:
        """Do as `adapters.blobs.BlobStore.store`."""
        digest = hashlib.sha256(data)
        self[digest.digest()] = data
        return e.BlobRef(
            uri=f"s3://moot/sha256/{digest.hexdigest()}",
            sha256=digest.digest(),
            size_bytes=len(data),
        )

    def fetch(self, ref: e.BlobRef, *, max_size_bytes: int) -> bytes:
        """Do as `adapters.blobs.BlobStore.fetch`."""
        if ref.size_bytes > max_size_bytes:
            raise BlobError(Reason.OVERSIZED_BLOB, "more than allowed")
        data = self.get(ref.sha256)
        if data is None:
            raise BlobError(Reason.MISSING_BLOB, f"no blob {ref.sha256.hex()}")
        if len(data) > ref.size_bytes:
            raise BlobError(Reason.OVERSIZED_BLOB, "more than promised")
        if hashlib.sha256(data).digest() != ref.sha256:
            raise BlobError(Reason.CORRUPT_BLOB, "another digest")
        return data


def _as_said(fact: e.Fact) -> Sequence[e.Fact]:
    return [fact]


def _as_computed(result: RoundResult) -> RoundResult:
    return result


@dataclass(kw_only=True)
class LogBuilder:
    """One federation, all its principals and agents, and what they left behind.

    Args:
        federation_id: Its name.
        nonce: What tells this founding from others of the same parameters.
        num_parameters: Size of its models.
        cohort_size: Agents drawn for a round.
        min_cohort: Fewest contributions of a round.
        ledger_nodes: Names of its ledger nodes.
        reward_rule: What contributions earn.
        strategy: How sums become models.
        strategy_parameters: Its parameters.
        send_fact: What the decider sends for a fact that it concluded.
        result: What the aggregator stores for a round that it computed.
    """

    federation_id: str = "clinics"
    nonce: bytes = b"n" * 32
    num_parameters: int = 6
    cohort_size: int = 4
    min_cohort: int = 2
    ledger_nodes: Sequence[str] = ("node0", "node1", "node2", "node3")
    reward_rule: e.RewardRule | None = RECOMMENDED_RULE
    strategy: str = "FEDAVG"
    strategy_parameters: tuple[e.StrategyParameter, ...] = ()
    send_fact: Callable[[e.Fact], Sequence[e.Fact]] = _as_said
    result: Callable[[RoundResult], RoundResult] = _as_computed
    records: list[Record] = field(default_factory=list)
    checkpoints: list[Record] = field(default_factory=list)
    refused: list[e.EventRejected] = field(default_factory=list)
    blobs: BlobDict = field(default_factory=BlobDict)
    now_ms: int = START_MS

    def __post_init__(self) -> None:
        """Start with an empty log."""
        self.state = SequencerState()
        self.genesis = NO_GENESIS
        self.leaves: list[e.LedgerEvent] = []
        self.opened: list[OpenedLeaf] = []
        self._reader = LogState()
        self._states = compute_initial_states()
        self._waiting: list[Received] = []
        self._offsets: Counter[str] = Counter()
        self._updates: dict[int, e.UpdateSubmitted] = {}
        self._sealed: e.RoundSealed | None = None

    # What is said

    def key(self, role: str) -> SigningKey:
        """Return the key of a principal, or of an agent by its name."""
        return make_key(role)

    def say(
        self,
        event: e.Event,
        key: SigningKey,
        *,
        traceparent: str | None = None,
        topic: str | None = None,
    ) -> None:
        """Put a signed event on its topic."""
        topic = topic or topics.topic_of(event)
        data = codec.encode(event)
        offset = self._offsets[topic]
        self._offsets[topic] += 1
        number = sum(self._offsets.values())
        self._waiting.append(
            Received(
                topic=topic,
                partition=0,
                offset=offset,
                key=event.federation_id.encode(),
                value=frame(event) if type(event) in _SCHEMA_IDS else data,
                event=data,
                signature=self.sign(event, data, key),
                traceparent=make_traceparent(number)
                if traceparent is None
                else traceparent,
            )
        )

    def take_waiting(self) -> list[Received]:
        """Return what was said and not sequenced, and forget it."""
        batch, self._waiting = self._waiting, []
        return batch

    def sign(self, event: e.Event, data: bytes, key: SigningKey) -> bytes:
        """Return the signature of an event that is said in this log, or founds it."""
        if isinstance(event, e.FederationConfigured) and self.genesis == NO_GENESIS:
            self.genesis = compute_genesis_hash(data)
        return sign_event(key, choose_genesis(event, self.genesis), data)

    @property
    def origin(self) -> str:
        """The log's origin."""
        return compute_origin(self.federation_id, self.genesis)

    def found(self) -> None:
        """Found the federation."""
        model = tensors_to_blob(
            {
                "bias": np.zeros(1, np.float32),
                "weight": np.arange(self.num_parameters - 1, dtype=np.float32) / 8,
            }
        )
        config = self.configure(self.blobs.store(model))
        self.say(config, make_key("OPERATOR"))
        self.settle()

    def configure(self, initial_model: e.BlobRef) -> e.FederationConfigured:
        """Return what the federation is founded with."""
        return e.FederationConfigured(
            federation_id=self.federation_id,
            nonce=self.nonce,
            rules_version=LATEST_VERSION,
            principals=tuple(
                e.Principal(role=role, public_key=make_key(role).public_key)
                for role in ROLES
            ),
            task=TASK,
            initial_model=initial_model,
            num_parameters=self.num_parameters,
            fractional_bits=FRACTIONAL_BITS,
            max_num_examples=1_000,
            cohort_size=self.cohort_size,
            min_cohort=self.min_cohort,
            round_duration_ms=ROUND_DURATION_MS,
            strategy=self.strategy,
            strategy_parameters=self.strategy_parameters,
            plain=e.Plain(),
            ledger_nodes=e.LedgerNodes(nodes=make_nodes(self.ledger_nodes))
            if self.ledger_nodes
            else None,
            reward_rule=self.reward_rule,
        )

    def admit(self, *agents: str) -> None:
        """Let agents ask to join, and admit them."""
        for agent in agents:
            self.say(
                e.AgentEnrolmentRequested(
                    federation_id=self.federation_id,
                    agent_id=agent,
                    public_key=make_key(agent).public_key,
                ),
                make_key(agent),
            )
        self.settle()
        for agent in agents:
            self.say(
                e.AgentAdmitted(
                    federation_id=self.federation_id,
                    agent_id=agent,
                    public_key=make_key(agent).public_key,
                ),
                make_key("OPERATOR"),
            )
        self.settle()

    def revoke(self, agent: str) -> None:
        """End an agent's membership."""
        self.say(
            e.AgentRevoked(
                federation_id=self.federation_id, agent_id=agent, explanation="left"
            ),
            make_key("OPERATOR"),
        )
        self.settle()

    def request_round(self, number: int | None = None) -> tuple[str, ...]:
        """Ask for a round; returns its cohort, nobody if it did not start."""
        before = self._rounds.last_round
        number = before + 1 if number is None else number
        self.say(
            e.RoundRequested(
                federation_id=self.federation_id,
                round=number,
                requested_at_ms=self.now_ms,
            ),
            make_key("OPERATOR"),
        )
        self.settle()
        current = self._rounds.current
        if current is None or self._rounds.last_round == before:
            return ()
        return tuple(sorted(current.cohort))

    def make_update(
        self, agent: str, *, blob: bytes | None = None
    ) -> e.UpdateSubmitted:
        """Return an agent's update for the current round; its blob is stored."""
        current = self._rounds.current
        assert current is not None, "no round is open"
        number = current.started.round
        seed = hashlib.sha256(f"{agent} {number}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(seed[:8], "big"))
        values = generator.integers(
            -(2**FRACTIONAL_BITS), 2**FRACTIONAL_BITS, self.num_parameters
        )
        data = update_to_blob(values.astype(np.int32)) if blob is None else blob
        return e.UpdateSubmitted(
            federation_id=self.federation_id,
            round=number,
            agent_id=agent,
            base_model_sha256=current.started.base_model.sha256,
            update=self.blobs.store(data),
            num_examples=1 + seed[9],
            loss_micros=500_000,
            num_steps=1 + seed[10] if counts_steps(self._rounds.config) else None,
        )

    def submit(self, agent: str, *, blob: bytes | None = None) -> None:
        """Let an agent submit its update for the current round."""
        self.say(self.make_update(agent, blob=blob), make_key(agent))

    def decline(self, agent: str) -> None:
        """Let an agent decline the current round."""
        current = self._rounds.current
        assert current is not None, "no round is open"
        self.say(
            e.UpdateDeclined(
                federation_id=self.federation_id,
                round=current.started.round,
                agent_id=agent,
                reason=Reason.TRAINING_FAILED,
                detail="out of memory",
            ),
            make_key(agent),
        )

    def check(self) -> None:
        """Let the aggregator check what waits for it."""
        current = self._rounds.current
        assert current is not None, "no round is open"
        results = tuple(self._check_one(index) for index in sorted(current.pending))
        claim = e.UpdatesChecked(
            federation_id=self.federation_id,
            round=current.started.round,
            results=results,
        )
        self.say(claim, make_key("AGGREGATOR"))
        self.settle()

    def _check_one(self, leaf_index: int) -> e.UpdateCheck:
        reason = ""
        try:
            blob = self.blobs.fetch(
                self._updates[leaf_index].update,
                max_size_bytes=compute_max_update_size(self.num_parameters),
            )
            parse_update(blob, num_parameters=self.num_parameters)
        except (BlobError, UpdateRefusedError) as error:
            reason = error.reason
        return e.UpdateCheck(leaf_index=leaf_index, reason=reason, detail="")

    def pass_deadline(self) -> None:
        """Let the round's time run out."""
        current = self._rounds.current
        assert current is not None, "no round is open"
        self.now_ms = (current.deadline_ms or current.started.deadline_ms) + 1
        self.say(
            e.DeadlineReached(
                federation_id=self.federation_id,
                round=current.started.round,
                observed_at_ms=self.now_ms,
            ),
            make_key("TIMER"),
        )
        self.settle()

    def aggregate(self) -> None:
        """Let the aggregator publish the sealed round's result."""
        sealed = self._sealed
        assert sealed is not None, "no round is sealed"
        refs = {u.update.sha256: u.update for u in self._updates.values()}
        config, current = self._rounds.config, self._rounds.current
        assert config is not None, "no round is open"
        assert current is not None, "no round is open"
        result = self.result(
            compute_result(
                config.strategy,
                sealed,
                [c.num_examples for c in current.ordered],
                self.blobs[sealed.base_model.sha256],
                (self.blobs[refs[c.update_sha256].sha256] for c in current.ordered),
                parameters=config.strategy_parameters,
                state_blob=None
                if sealed.base_state is None
                else self.blobs[sealed.base_state.sha256],
            )
        )
        claim = e.AggregateSubmitted(
            federation_id=self.federation_id,
            round=sealed.round,
            base_model_sha256=sealed.base_model.sha256,
            num_contributions=sealed.num_contributions,
            num_examples=sealed.num_examples,
            sum=self.blobs.store(result.sum_blob),
            model=self.blobs.store(result.model_blob),
            state=None
            if result.state_blob is None
            else self.blobs.store(result.state_blob),
        )
        self.say(claim, make_key("AGGREGATOR"))
        self.settle()

    def export(self) -> None:
        """Let the exporter export the current model."""
        model = self._rounds.model
        assert model is not None, "not founded"
        claim = e.ModelExported(
            federation_id=self.federation_id,
            round=self._rounds.last_round,
            model_sha256=model.sha256,
            onnx=self.blobs.store(b"onnx of " + model.sha256),
            no_onnx="",
            evaluation=e.Evaluation(
                num_examples=100,
                metrics=(
                    e.Metric(name="accuracy", value_micros=900_000, direction="HIGHER"),
                ),
            ),
            no_evaluation="",
        )
        self.say(claim, make_key("EXPORTER"))
        self.settle()

    def finalise(self) -> None:
        """Let the timer say that the next draw's checkpoint is final, if it is due."""
        size = self._rounds.draw_size
        if size <= self.state.admission.finalised_size:
            return
        note = next(
            note for note in map(self._signed_note, self.checkpoints) if note[0] == size
        )[1]
        nodes = self.state.admission.node_sets[-1]
        for node in nodes.nodes[: nodes.quorum]:
            note = cosign_checkpoint(
                note, node.name, make_key(node.name), 1_760_000_000
            )
        event = e.CheckpointFinalised(
            federation_id=self.federation_id, checkpoint=note.decode()
        )
        self.say(event, make_key("TIMER"))
        self.settle()

    @staticmethod
    def _signed_note(record: Record) -> tuple[int, bytes]:
        event = codec.decode_as(e.CheckpointSigned, unframe(record.value or b""))
        return parse_checkpoint(
            parse_note(event.checkpoint.encode()).text
        ).size, event.checkpoint.encode()

    def request_finality(self) -> None:
        """Let the timer give the last block a child."""
        event = e.FinalityRequested(
            federation_id=self.federation_id, height=self.state.log.chain.height - 1
        )
        self.say(event, make_key("TIMER"))
        self.settle()

    def change_nodes(self, *names: str) -> None:
        """Hand over to other ledger nodes."""
        present = self.state.admission.node_sets[-1]
        nodes = make_nodes(names)
        era = present.era + 1
        new = NodeSet(era, present.chain_id, nodes)
        approvals = [
            sign_approval(make_key(node.name), present.chain_id, era, new.hash)
            for node in present.nodes[: present.quorum]
        ]
        event = e.NodeSetChanged(
            federation_id=self.federation_id,
            era=era,
            nodes=nodes,
            approvals=tuple(sorted(approvals, key=lambda a: a.public_key)),
        )
        self.say(event, make_key("OPERATOR"))
        self.settle()

    def equivocate(self, name: str, *, reported_by: str) -> None:
        """Let a ledger node be caught attesting to two blocks of one height."""
        nodes = self.state.admission.node_sets[-1]
        messages = tuple(
            sign_attestation(
                make_key(name), nodes, self.federation_id, 0, make_header(nodes, data)
            )
            for data in (b"one", b"other")
        )
        reporter = make_key(reported_by)
        event = prove_equivocation(self.federation_id, messages, reporter.public_key)
        self.say(event, reporter)
        self.settle()

    def run_round(self, *, num_declining: int = 0) -> None:
        """Run a whole round; the last of the cohort decline."""
        cohort = self.request_round()
        assert cohort, "the round did not start"
        for place, agent in enumerate(cohort):
            if place < len(cohort) - num_declining:
                self.submit(agent)
            else:
                self.decline(agent)
        self.settle()
        self.check()
        self.aggregate()
        self.export()

    # What becomes of it

    def settle(self) -> None:
        """Sequence blocks until nothing waits any more."""
        while self.sequence_block():
            pass

    def sequence_block(self) -> bool:
        """Sequence what waits; returns whether there was anything."""
        batch = self.take_waiting()
        if not batch:
            return False
        self.now_ms += 10
        key = make_key("SEQUENCER")
        self.state, block, refused = sequence(
            self.state, batch, key=key, now_ms=self.now_ms
        )
        self.refused += refused
        if block is not None:
            self._publish(block)
        return True

    def append(
        self,
        leaves: Iterable[tuple[e.Leaf, e.LedgerEvent]],
        *,
        is_followed: bool = True,
    ) -> None:
        """Append leaves that admission would have refused: the sequencer colludes.

        Args:
            leaves: Leaves and what they hold.
            is_followed: Whether the deciders read them; they may be unreadable.
        """
        pairs = list(leaves)
        chain = self.state.log.chain
        encoded = tuple(codec.encode(leaf) for leaf, _ in pairs)
        self.now_ms += 10
        plan = plan_block(chain, encoded, max(self.now_ms, chain.sequenced_at_ms))
        event = e.BlockSequenced(
            federation_id=self.federation_id,
            height=plan.header.height,
            previous_block_hash=plan.header.previous_block_hash,
            first_leaf_index=plan.header.first_leaf_index,
            leaves=encoded,
            tree_root=plan.header.tree_root,
            sequenced_at_ms=plan.header.sequenced_at_ms,
            traceparents=("",) * len(encoded),
        )
        data = codec.encode(event)
        key = make_key("SEQUENCER")
        self.state = SequencerState(
            log=LogState(
                chain=plan.seal(data),
                sequencer_key=key.public_key,
                genesis=self.genesis,
            ),
            admission=self.state.admission,
        )
        self._publish(
            NewBlock(event, data, self.sign(event, data, key)), is_followed=is_followed
        )

    def copy(self) -> LogBuilder:
        """Return a log that goes on from here by itself."""
        other = copy(self)
        for name in (
            "records",
            "checkpoints",
            "refused",
            "leaves",
            "opened",
            "_waiting",
        ):
            setattr(other, name, [*getattr(self, name)])
        other.blobs = BlobDict(self.blobs)
        other._offsets = Counter(self._offsets)
        other._updates = dict(self._updates)
        return other

    def make_leaf(
        self, event: e.Event, key: SigningKey, *, topic: str | None = None
    ) -> e.Leaf:
        """Return a leaf as the sequencer would write it."""
        topic = topic or topics.topic_of(event)
        data = codec.encode(event)
        offset = self._offsets[topic]
        self._offsets[topic] += 1
        return e.Leaf(
            event=data,
            signature=self.sign(event, data, key),
            source_topic=topic,
            source_partition=0,
            source_offset=offset,
        )

    def _publish(self, block: NewBlock, *, is_followed: bool = True) -> None:
        key = make_key("SEQUENCER")
        chain = self.state.log.chain
        traceparent = next(filter(None, block.event.traceparents), "")
        checkpoint = Checkpoint(
            origin=self.origin,
            size=chain.size,
            root=chain.tree.root(),
        )
        signed = e.CheckpointSigned(
            federation_id=self.federation_id,
            height=block.event.height,
            checkpoint=sign_checkpoint(checkpoint, key).decode(),
        )
        self._store(self.records, block.event, traceparent)
        self._store(self.checkpoints, signed, traceparent)
        if is_followed:
            self._follow(block)

    def _store(self, log: list[Record], event: e.Event, traceparent: str) -> None:
        data = codec.encode(event)
        headers = make_headers(
            event, data, make_key("SEQUENCER"), self.genesis, traceparent
        )
        log.append(
            Record(
                topic=topics.topic_of(event),
                partition=0,
                # With gaps, as the markers of Kafka's transactions leave them.
                offset=2 * len(log),
                key=self.federation_id.encode(),
                value=frame(event),
                headers=tuple(headers),
            )
        )

    @property
    def _rounds(self) -> RoundsState:
        return self._states["rounds"]

    def _follow(self, block: NewBlock) -> None:
        """Let the deciders conclude, and put their facts on their topics."""
        self._reader, _, opened = open_block(self._reader, block.data, block.signature)
        for leaf in opened:
            event = leaf.sequenced.event
            self.leaves.append(event)
            self.opened.append(leaf)
            if isinstance(event, e.UpdateSubmitted):
                self._updates[leaf.sequenced.leaf_index] = event
            self._states, facts = step_all(self._states, leaf.sequenced)
            for fact in facts:
                if isinstance(fact, e.RoundSealed):
                    self._sealed = fact
                for sent in self.send_fact(fact):
                    self.say(sent, make_key("DECIDER"), traceparent=leaf.traceparent)
                    self._hear(sent)
            self._notice(leaf)

    def _hear(self, fact: e.Fact) -> None:
        """Let agents act on what the decider says."""

    def _notice(self, leaf: OpenedLeaf) -> None:
        """Let others act on a leaf."""


def read_blocks(log: LogBuilder) -> Iterator[ReadBlock]:
    """Do as `adapters.kafka_log.read_log`, of what Kafka would hold."""
    state = LogState()
    for record in log.records:
        data, signature = unframe(record.value or b""), record.header(SIGNATURE_HEADER)
        state, block, leaves = open_block(state, data, signature)
        yield ReadBlock(record.offset, block, leaves, state)


def build_log(**options: object) -> LogBuilder:
    """Return a log in which everything happened that can.

    Three rounds and one abandoned; a revoked agent, declined, rejected and late
    updates, refused events, a round refused, a claim rejected; final checkpoints, a
    ledger node that contradicts itself, and other ledger nodes at the end.

    Args:
        **options: As `LogBuilder` takes them.
    """
    log = LogBuilder(**options)  # type: ignore[arg-type]  # for brevity
    agents = ("ada", "bea", "cleo", "dora", "eve")
    log.found()
    log.request_round()  # refused: nobody is there
    log.admit(*agents)
    if log.ledger_nodes:
        log.request_finality()
        log.finalise()
    log.run_round(num_declining=1)
    if log.ledger_nodes:
        log.finalise()
        log.equivocate("node3", reported_by="node0")
    log.revoke("eve")
    _run_round_with_trouble(log)
    _run_abandoned_round(log)
    log.run_round()
    if log.ledger_nodes:
        log.change_nodes("node0", "node1", "node2", "node4")
        log.request_finality()
    return log


def _run_round_with_trouble(log: LogBuilder) -> None:
    cohort = log.request_round()
    log.request_round()  # refused: one is open
    # Refused by the sequencer: eve has been revoked, and somebody forges.
    log.say(log.make_update("eve"), make_key("eve"))
    log.say(log.make_update(cohort[0]), make_key("mallory"), traceparent="")
    log.settle()
    *good, bad = cohort
    for agent in good:
        log.submit(agent)
    log.submit(bad, blob=b"not an update at all")
    log.submit(good[0], blob=b"a second answer")  # rejected: a duplicate
    log.settle()
    log.check()
    log.say(
        e.UpdatesChecked(
            federation_id=log.federation_id,
            round=2,
            results=(e.UpdateCheck(leaf_index=1, reason="", detail=""),),
        ),
        make_key("AGGREGATOR"),
    )  # a claim about nothing
    log.settle()
    late = log.make_update(good[0], blob=b"late")
    log.aggregate()
    log.say(late, make_key(good[0]))
    log.settle()
    log.export()


def _run_abandoned_round(log: LogBuilder) -> None:
    first, second, *_ = log.request_round()
    log.submit(first)
    log.submit(second)
    log.settle()
    # The store lost one before it was checked.
    current = log.make_update(second)
    del log.blobs[current.update.sha256]
    log.check()
    log.pass_deadline()
