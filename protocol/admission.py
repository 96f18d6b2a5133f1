"""Admission: which records become leaves, and which are refused and why.

The sequencer runs `decide` over what it reads and `evolve` over what it appended; the
audit runs both over the log. They depend on nothing but their arguments.

Rules, in order; the first that fails gives the reason:

- a record read again (its offset is not above the last one) is silently dropped: it is
  not new;
- what the adapter could not unframe is refused with the adapter's reason;
- the event is not too large, is valid, and fits its topic;
- the record's key is its federation;
- the signature verifies, if the author is known: an event in a known author's name but
  signed by somebody else is checked no further;
- its fields make sense (`protocol.validation`);
- a federation exists once, founded by a configuration that its own operator signed;
- the author may say this: an agent speaks for itself, a principal for its role;
- an input is said once; a decider's facts come after their causes, in order;
- a change of the configuration is the next one, touches only what may be changed, and
  loosens nothing that protects agents (`protocol.changes`);
- whatever claims the ledger nodes' consent carries it: a change of the node set, a
  final checkpoint; and evidence proves what it says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from operator import contains
from typing import Final, TypeAlias, TypeGuard, cast

from ledger.attestations import (
    InvalidMessageError,
    NodeSet,
    verify_node_set_change,
)
from ledger.checkpoint import make_log_key, parse_checkpoint, verify_checkpoint
from ledger.equivocation import (
    Contradiction,
    identify_contradiction,
    verify_equivocation,
)
from ledger.note import InvalidNoteError, parse_note
from ledger.policy import Policy, make_bft_policy
from ledger.signing import SIGNATURE_SIZE, InvalidSignatureError
from protocol.changes import apply_change, find_change_problem
from protocol.envelope import (
    choose_genesis,
    compute_fact_id,
    compute_genesis_hash,
    compute_input_id,
    verify_event,
)
from protocol.modes import get_mode, list_kinds
from protocol.modes.mode import Answer
from protocol.persistent import PersistentMap, PersistentSet
from protocol.rules import find_rules_problem
from protocol.validation import (
    find_configuration_problem,
    find_principals_problem,
    find_problem,
)
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason

REMEMBERED_BLOCKS: Final = 256
"""How many blocks back an input's id is remembered. A window is enough: deciders refuse
a second answer to a round themselves; this keeps replays off the ledger."""
MAX_REJECTED_VALUE_BYTES: Final = 4_096

_AUTHOR_ROLE: Final[dict[type[e.Event], str]] = {
    e.FederationConfigured: "OPERATOR",
    e.FederationChanged: "OPERATOR",
    e.AgentAdmitted: "OPERATOR",
    e.AgentRevoked: "OPERATOR",
    e.NodeSetChanged: "OPERATOR",
    e.RoundRequested: "OPERATOR",
    e.RoundAbandonRequested: "OPERATOR",
    e.DeadlineReached: "TIMER",
    e.FinalityRequested: "TIMER",
    e.CheckpointFinalised: "TIMER",
    e.UpdatesChecked: "AGGREGATOR",
    e.AggregateSubmitted: "AGGREGATOR",
    e.ModelExported: "EXPORTER",
    e.EventRejected: "SEQUENCER",
    **{
        fact: "DECIDER" for topic in topics.FACT_TOPICS for fact in topics.EVENTS[topic]
    },
}


Verify = Callable[[bytes, bytes, bytes, bytes], None]
"""`protocol.envelope.verify_event`, or a stand-in that already knows the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A record of an input or fact topic, unframed.

    Attributes:
        topic: Where it was read.
        partition: Its partition.
        offset: Its offset.
        key: Its key; None if it has none.
        value: Its value as read: refusals quote it.
        event: Single-object bytes of the event; None if it could not be unframed.
        signature: The signature header, 64 bytes; None if missing.
        problem: Why it could not be unframed, with a detail; None if it could.
        traceparent: W3C trace context; empty if none.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    event: bytes | None
    signature: bytes | None
    problem: tuple[Reason, str] | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The record becomes a leaf."""

    leaf: e.Leaf
    event: e.LedgerEvent


@dataclass(frozen=True, slots=True)
class Refused:
    """The record does not; goes to the refusals and, if its federation is known, on the
    ledger.
    """

    event: e.EventRejected


@dataclass(frozen=True, slots=True)
class Dropped:
    """The record was read before."""


Verdict = Admitted | Refused | Dropped


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as admitted."""

    public_key: bytes
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionState:
    """What admission knows of one federation: a fold over its leaves.

    Attributes:
        federation_id: Empty before the genesis.
        genesis: Hash of the genesis; empty before it.
        principals: Public key by role.
        config: The configuration as founded and changed.
        change: Number of the last change; 0 if none.
        parties: Public keys of other speakers in its rounds, by name.
        agents: Agents by id.
        keys: Public keys of all agents: a second name for one would be drawn, summed
            and rewarded as another agent.
        offsets: Last offset read, by ``topic/partition``.
        num_leaves: Number of leaves so far.
        last_facts: Place of the last fact, by topic: its cause's leaf index, its output
            index.
        recent_ids: Ids of inputs in each of the last blocks, oldest first.
        node_sets: The ledger nodes of each era, oldest first; empty if the federation
            has none.
        finalised_size: Size of the largest checkpoint known to be final.
        proven: Contradictions on the ledger.
    """

    federation_id: str = ""
    genesis: bytes = b""
    principals: Mapping[str, bytes] = field(default_factory=dict)
    config: e.FederationConfigured | None = None
    change: int = 0
    parties: Mapping[str, bytes] = field(default_factory=dict)
    agents: PersistentMap[str, Agent] = field(default_factory=PersistentMap)
    keys: PersistentSet[bytes] = field(default_factory=PersistentSet)
    offsets: Mapping[str, int] = field(default_factory=dict)
    num_leaves: int = 0
    last_facts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    recent_ids: tuple[frozenset[bytes], ...] = ()
    node_sets: tuple[NodeSet, ...] = ()
    finalised_size: int = 0
    proven: frozenset[Contradiction] = frozenset()


def decide(
    state: AdmissionState,
    batch: Sequence[Received],
    *,
    sequencer_key: bytes | None = None,
) -> list[Verdict]:
    """Return a verdict for each record, in order; earlier ones affect later ones.

    Args:
        state: What admission knows.
        batch: The records read.
        sequencer_key: The key that will sign the block, 32 bytes: a federation naming
            another would begin with a block that its own readers refuse. None skips
            that rule, which readers of a block on the log have already checked.
    """
    scratch = _Scratch(state, sequencer_key)
    return [scratch.judge(received) for received in batch]


def judge_again(
    before: AdmissionState, state: AdmissionState, received: Received
) -> Verdict:
    """Return the verdict on one record of a block, whoever signed it.

    Auditors judge refusals with this. A refusal does not keep the signature, so the
    rules after it must apply too.

    Args:
        before: What admission knew before the block.
        state: What it knew before the record.
        received: The record; its signature is assumed good.
    """
    scratch = _Scratch(state, verify=_believe)
    scratch.begin_block(before)
    return scratch.judge(replace(received, signature=bytes(SIGNATURE_SIZE)))


def _believe(
    _public_key: bytes, _genesis: bytes, _event_bytes: bytes, _signature: bytes
) -> None:
    """Act as `protocol.envelope.verify_event` with a good signature."""


def evolve(
    state: AdmissionState, leaves: Iterable[tuple[e.Leaf, e.LedgerEvent]]
) -> AdmissionState:
    """Fold the leaves of one block; refuses nothing."""
    scratch = _Scratch(state)
    for leaf, event in leaves:
        scratch.absorb(leaf, event)
    return scratch.freeze()


Fault: TypeAlias = tuple[int, Reason, str]
"""A leaf's place in its block, and why it should not have been admitted."""


def find_faults(
    state: AdmissionState,
    leaves: Sequence[tuple[e.Leaf, e.LedgerEvent]],
    *,
    verify: Verify = verify_event,
) -> tuple[list[Fault], AdmissionState]:
    """Return the leaves of a block that should not have been admitted, and why.

    Auditors judge every block with this. A leaf that should not be there has no effect
    on later ones.

    Returns:
        The faults in order, and the state that `evolve` makes of the other leaves.
    """
    scratch = _Scratch(state, verify=verify)
    faults: list[Fault] = []
    for index, (leaf, event) in enumerate(leaves):
        if isinstance(event, e.EventRejected):
            problem = scratch.find_rejection_problem(leaf, event)
        else:
            problem = scratch.find_problem(leaf.event, event, leaf.signature)
            if problem is None and leaf.source_topic != topics.topic_of(event):
                problem = Reason.WRONG_TOPIC, f"read from {leaf.source_topic}"
        if problem is None and scratch.is_redelivered(leaf):
            problem = Reason.DUPLICATE_EVENT, "its source offset was sequenced before"
        if problem is not None:
            faults.append((index, *problem))
        else:
            scratch.absorb(leaf, event)
    return faults, scratch.freeze()


def find_fault(
    state: AdmissionState, leaves: Sequence[tuple[e.Leaf, e.LedgerEvent]]
) -> Fault | None:
    """Return the first fault of `find_faults`; None if the block has none."""
    faults, _ = find_faults(state, leaves)
    return faults[0] if faults else None


def find_author(state: AdmissionState, event: e.LedgerEvent) -> bytes | None:
    """Return the key that must have signed an event; None if unknown, or if nobody may.

    An estimate for verifying ahead: what comes in between may change the answer.
    """
    try:
        if isinstance(event, e.EventRejected):
            return state.principals.get("SEQUENCER")
        return _Scratch(state).find_author_key(event)
    except KeyError:
        return None


def compute_event_id(
    state: AdmissionState, leaf: e.Leaf, event: e.LedgerEvent
) -> bytes:
    """Return the id in an event's header, 32 bytes, from the state after its leaf."""
    if isinstance(event, e.Fact):
        return compute_fact_id(event)
    return compute_input_id(_Scratch(state).find_author_key(event), leaf.event)


def make_policy(state: AdmissionState) -> Policy:
    """Return the policy that makes a checkpoint of this log final.

    Args:
        state: Of a federation with ledger nodes; the present ones count.
    """
    log_key = make_log_key(
        state.federation_id, state.genesis, state.principals["SEQUENCER"]
    )
    nodes = state.node_sets[-1]
    return make_bft_policy(
        log_key.to_vkey(),
        [
            (node.name, key.to_vkey(), node.url)
            for node, key in zip(nodes.nodes, nodes.vkeys(), strict=True)
        ],
    )


def _find_field_problem(event: e.LedgerEvent) -> tuple[Reason, str] | None:
    if isinstance(event, e.FederationConfigured):
        refusal = find_configuration_problem(event)
        if refusal is not None:
            return refusal
        reason = Reason.INVALID_CONFIGURATION
    else:
        reason = Reason.INVALID_FIELD
    problem = find_problem(event)
    return None if problem is None else (reason, problem)


def _find_size_problem(event_bytes: bytes) -> tuple[Reason, str] | None:
    if len(event_bytes) <= codec.MAX_EVENT_SIZE_BYTES:
        return None
    detail = f"{len(event_bytes)} bytes; at most {codec.MAX_EVENT_SIZE_BYTES}"
    return Reason.TOO_LARGE, detail


class _Scratch:
    """An admission state that can be changed in place while a batch is judged."""

    def __init__(
        self,
        state: AdmissionState,
        sequencer_key: bytes | None = None,
        verify: Verify = verify_event,
    ) -> None:
        self._sequencer_key = sequencer_key
        self._verify = verify
        self._federation_id = state.federation_id
        self._genesis = state.genesis
        self._principals = state.principals
        self._config = state.config
        self._change = state.change
        self._parties = state.parties
        self._agents = state.agents
        self._keys = state.keys
        self._offsets = dict(state.offsets)
        self._num_leaves = state.num_leaves
        self._last_facts = dict(state.last_facts)
        self._recent_ids = state.recent_ids
        self._new_ids: set[bytes] = set()
        self._node_sets = state.node_sets
        self._num_node_sets_before = len(state.node_sets)
        self._finalised_size = state.finalised_size
        self._proven = state.proven

    def begin_block(self, before: AdmissionState) -> None:
        """Judge what follows as in a block that began in an earlier state."""
        self._num_node_sets_before = len(before.node_sets)

    def freeze(self) -> AdmissionState:
        return AdmissionState(
            federation_id=self._federation_id,
            genesis=self._genesis,
            principals=self._principals,
            config=self._config,
            change=self._change,
            parties=self._parties,
            agents=self._agents,
            keys=self._keys,
            offsets=self._offsets,
            num_leaves=self._num_leaves,
            last_facts=self._last_facts,
            recent_ids=(*self._recent_ids, frozenset(self._new_ids))[
                -REMEMBERED_BLOCKS:
            ],
            node_sets=self._node_sets,
            finalised_size=self._finalised_size,
            proven=self._proven,
        )

    def judge(self, received: Received) -> Verdict:
        place = f"{received.topic}/{received.partition}"
        if received.offset <= self._offsets.get(place, -1):
            return Dropped()
        verdict = self._judge_new(received)
        if isinstance(verdict, Admitted):
            self.absorb(verdict.leaf, verdict.event)
        elif isinstance(verdict, Refused) and verdict.event.federation_id:
            # Only for leaves: nothing else is known when the next batch is judged.
            self._offsets[place] = received.offset
            self._num_leaves += 1
        return verdict

    def _judge_new(self, received: Received) -> Verdict:
        if received.problem is not None or received.event is None:
            return self._refuse(received, *(received.problem or (Reason.NO_VALUE, "")))
        refusal = _find_size_problem(received.event)
        if refusal is not None:
            return self._refuse(received, *refusal)
        try:
            kind: type = codec.kind_of(received.event)
            if topics.TOPIC_OF.get(kind) != received.topic:
                # Not decoded: blobs and blocks cost more than what belongs here.
                detail = f"{kind.__name__} does not belong on {received.topic}"
                return self._refuse(received, Reason.WRONG_TOPIC, detail)
            event = cast("e.LedgerEvent", codec.decode(received.event))
        except codec.CodecError as error:
            return self._refuse(received, Reason.MALFORMED_EVENT, str(error))
        if received.key != event.federation_id.encode():
            detail = "the record's key must be its federation_id"
            return self._refuse(received, Reason.WRONG_KEY, detail)
        problem = self.find_problem(received.event, event, received.signature)
        if (
            isinstance(event, e.Fact)
            and problem is not None
            and problem[0] is Reason.DUPLICATE_EVENT
        ):
            return Dropped()  # a restarted decider repeats it
        if problem is not None:
            return self._refuse(received, *problem)
        assert received.signature is not None, "find_problem refuses its absence"
        leaf = e.Leaf(
            event=received.event,
            signature=received.signature,
            source_topic=received.topic,
            source_partition=received.partition,
            source_offset=received.offset,
        )
        return Admitted(leaf, event)

    def find_problem(
        self, event_bytes: bytes, event: e.LedgerEvent, signature: bytes | None
    ) -> tuple[Reason, str] | None:
        """Return why an event must not become a leaf now; None if it may."""
        refusal = _find_size_problem(event_bytes)
        if refusal is not None:
            return refusal
        key = self._find_author_key(event)
        refusal = (
            None
            if isinstance(key, tuple)
            else self._find_signature_problem(key, event, event_bytes, signature)
        )
        if refusal is not None:
            return refusal
        refusal = _find_field_problem(event)
        if refusal is not None:
            return refusal
        if isinstance(key, tuple):
            return key
        refusal = self._find_reconfiguration_problem(event)
        if refusal is not None:
            return refusal
        refusal = self._find_consent_problem(event)
        if refusal is not None:
            return refusal
        if isinstance(event, e.Fact):
            if event.cause_leaf_index >= self._num_leaves:
                # It would make every later fact look old.
                return Reason.INVALID_FIELD, "its cause is not on the ledger yet"
            if self._is_old_fact(event):
                return Reason.DUPLICATE_EVENT, "a fact out of the order of its causes"
        if (
            isinstance(event, e.UpdatesChecked)
            and event.results[-1].leaf_index >= self._num_leaves
        ):
            # Once true, its bytes are the same: they must not be known by then.
            return Reason.INVALID_FIELD, "it checks a leaf that is not there yet"
        if isinstance(event, e.FinalityRequested) and event.height >= self._num_leaves:
            # A block has at least one leaf, so its height is below the number of
            # leaves.
            return Reason.INVALID_FIELD, "there is no such block yet"
        if not isinstance(event, e.Fact) and self._is_known(
            compute_input_id(key, event_bytes)
        ):
            return Reason.DUPLICATE_EVENT, "this very event is on the ledger already"
        return None

    def _find_signature_problem(
        self,
        key: bytes,
        event: e.LedgerEvent,
        event_bytes: bytes,
        signature: bytes | None,
    ) -> tuple[Reason, str] | None:
        if signature is None:
            return Reason.MISSING_SIGNATURE, "no moot-signature header of 64 bytes"
        genesis = choose_genesis(event, self._genesis)
        try:
            self._verify(key, genesis, event_bytes, signature)
        except InvalidSignatureError as error:
            # An event signed for another genesis ends up here: name this one.
            detail = f"{error}; it must cover the genesis hash {genesis.hex()}"
            return Reason.BAD_SIGNATURE, detail
        return None

    def find_rejection_problem(
        self, leaf: e.Leaf, event: e.EventRejected
    ) -> tuple[Reason, str] | None:
        """Return what is wrong with a refusal on the ledger; None if nothing."""
        key = self._principals.get("SEQUENCER", b"")
        try:
            self._verify(key, self._genesis, leaf.event, leaf.signature)
        except InvalidSignatureError as error:
            return Reason.BAD_SIGNATURE, str(error)
        source = (event.source_topic, event.source_partition, event.source_offset)
        if source != (leaf.source_topic, leaf.source_partition, leaf.source_offset):
            return Reason.INVALID_FIELD, "the refusal names another source"
        if event.federation_id != self._federation_id:
            return Reason.UNKNOWN_FEDERATION, "the refusal is another federation's"
        if len(event.value) != min(event.value_size_bytes, MAX_REJECTED_VALUE_BYTES):
            return Reason.INVALID_FIELD, "the refusal does not quote what it must"
        if (
            len(event.value) == event.value_size_bytes
            and hashlib.sha256(event.value).digest() != event.value_sha256
        ):
            return Reason.INVALID_FIELD, "the digest is not that of the value quoted"
        return None

    def is_redelivered(self, leaf: e.Leaf) -> bool:
        place = f"{leaf.source_topic}/{leaf.source_partition}"
        return leaf.source_offset <= self._offsets.get(place, -1)

    def absorb(self, leaf: e.Leaf, event: e.LedgerEvent) -> None:
        self._num_leaves += 1
        self._offsets[f"{leaf.source_topic}/{leaf.source_partition}"] = (
            leaf.source_offset
        )
        if isinstance(event, e.EventRejected):
            return
        if isinstance(event, e.Fact):
            place = (event.cause_leaf_index, event.output_index)
            self._last_facts[topics.topic_of(event)] = place
            return
        match event:
            case e.FederationConfigured():
                self._federation_id = event.federation_id
                self._config = event
                self._genesis = compute_genesis_hash(leaf.event)
                self._principals = {p.role: p.public_key for p in event.principals}
                self._parties = dict(get_mode(event).list_speakers(event))
                if event.ledger_nodes is not None:
                    nodes = NodeSet(0, self._genesis, event.ledger_nodes.nodes)
                    self._node_sets = (nodes,)
            case e.FederationChanged():
                changed = apply_change(self._config, self._change, event)
                if changed is not None:
                    self._config, self._change = changed, event.number
            case e.NodeSetChanged():
                nodes = NodeSet(event.era, self._genesis, event.nodes)
                self._node_sets = (*self._node_sets, nodes)
            case e.CheckpointFinalised():
                note = event.checkpoint.encode()
                self._finalised_size = parse_checkpoint(parse_note(note).text).size
            case e.EquivocationProven():
                self._proven |= {identify_contradiction(event)}
            case e.AgentAdmitted():
                agent = Agent(event.public_key)
                self._agents = self._agents.insert(event.agent_id, agent)
                self._keys = self._keys.insert(event.public_key)
            case e.AgentRevoked():
                revoked = Agent(self._agents[event.agent_id].public_key, revoked=True)
                self._agents = self._agents.insert(event.agent_id, revoked)
            case _:
                pass
        key = self.find_author_key(event)
        self._new_ids.add(compute_input_id(key, leaf.event))

    def _find_author_key(self, event: e.LedgerEvent) -> bytes | tuple[Reason, str]:
        """Return the key that must have signed, or why nobody may say this now."""
        unknown = find_rules_problem(event)
        if unknown is not None and self._sequencer_key is not None:
            # Only for its writer: on a log it comes from a newer version.
            return Reason.UNKNOWN_RULES, unknown
        if isinstance(event, e.FederationConfigured):
            if self._federation_id:
                return Reason.FEDERATION_EXISTS, "a federation is founded once"
            problem = find_principals_problem(event)
            if problem is not None:
                return problem
            named = {p.role: p.public_key for p in event.principals}["SEQUENCER"]
            if self._sequencer_key not in {None, named}:
                detail = f"the sequencer here is {self._sequencer_key.hex()}"
                return Reason.INVALID_CONFIGURATION, detail
        elif not self._federation_id or event.federation_id != self._federation_id:
            detail = f"no federation {event.federation_id!r} has been founded"
            return Reason.UNKNOWN_FEDERATION, detail
        speaker = _find_speaker(event)
        match event:
            case _ if _is_agents_word(event):
                agent = self._agents.get(event.agent_id)
                if agent is None:
                    detail = f"agent {event.agent_id!r} has not been admitted"
                    return Reason.UNKNOWN_AGENT, detail
                if agent.revoked:
                    detail = f"agent {event.agent_id!r} has been revoked"
                    return Reason.REVOKED_AGENT, detail
            case e.AgentEnrolmentRequested() | e.AgentAdmitted() if (
                event.agent_id in self._agents
            ):
                detail = f"the name {event.agent_id!r} is taken for good"
                return Reason.AGENT_EXISTS, detail
            case e.AgentEnrolmentRequested() | e.AgentAdmitted() if (
                event.public_key in self._keys
            ):
                return Reason.AGENT_EXISTS, "this key is another agent's, for good"
            case e.AgentRevoked() if event.agent_id not in self._agents:
                detail = f"agent {event.agent_id!r} has not been admitted"
                return Reason.UNKNOWN_AGENT, detail
            case _ if speaker is not None and speaker not in self._parties:
                return Reason.UNKNOWN_PARTY, f"no party {speaker!r} in this federation"
            case e.EquivocationProven(reported_by=key) if not (
                self._node_sets and self._node_sets[-1].find(key)
            ):
                return Reason.UNKNOWN_LEDGER_NODE, "only a ledger node reports this"
            case _:
                role = _AUTHOR_ROLE.get(type(event), "OPERATOR")
                if self._federation_id and role not in self._principals:
                    return Reason.NO_SUCH_PRINCIPAL, f"this federation has no {role}"
        return self.find_author_key(event)

    def _find_reconfiguration_problem(
        self, event: e.LedgerEvent
    ) -> tuple[Reason, str] | None:
        if not isinstance(event, e.FederationChanged):
            return None
        assert self._config is not None, "its federation has been founded"
        return find_change_problem(self._config, self._change, event)

    def _find_consent_problem(self, event: e.LedgerEvent) -> tuple[Reason, str] | None:
        """Return why the ledger nodes did not consent as an event claims."""
        match event:
            case e.NodeSetChanged() | e.CheckpointFinalised() | e.EquivocationProven():
                pass
            case _:
                return None
        if not self._node_sets:
            return Reason.UNKNOWN_LEDGER_NODE, "this federation has no ledger nodes"
        match event:
            case e.NodeSetChanged():
                return self._find_change_problem(event)
            case e.CheckpointFinalised():
                return self._find_checkpoint_problem(event)
            case e.EquivocationProven():
                sequencer_key = self._principals["SEQUENCER"]
                try:
                    verify_equivocation(
                        self._node_sets, self._genesis, sequencer_key, event
                    )
                except InvalidMessageError as error:
                    return Reason.NOT_PROVEN, str(error)
                if identify_contradiction(event) in self._proven:
                    return Reason.DUPLICATE_EVENT, "it has been proven already"
        return None

    def _find_change_problem(
        self, change: e.NodeSetChanged
    ) -> tuple[Reason, str] | None:
        if len(self._node_sets) != self._num_node_sets_before:
            return Reason.NODE_SET_PENDING, "this block changes the node set already"
        try:
            verify_node_set_change(self._node_sets[-1], change)
        except InvalidMessageError as error:
            return Reason.NOT_APPROVED, str(error)
        return None

    def _find_checkpoint_problem(
        self, event: e.CheckpointFinalised
    ) -> tuple[Reason, str] | None:
        nodes = self._node_sets[-1]
        log_key = make_log_key(
            self._federation_id, self._genesis, self._principals["SEQUENCER"]
        )
        try:
            verified = verify_checkpoint(
                event.checkpoint.encode(), log_key, log_key.name, nodes.vkeys()
            )
        except InvalidNoteError as error:
            return Reason.NOT_FINAL, str(error)
        number = len(verified.cosignatures)
        if number < nodes.quorum:
            detail = f"{number} cosignatures by present nodes; it takes {nodes.quorum}"
            return Reason.NOT_FINAL, detail
        size = verified.checkpoint.size
        if not self._finalised_size < size <= self._num_leaves:
            detail = (
                f"size {size} is not above {self._finalised_size}, the last one known"
                if size <= self._finalised_size
                else f"the log has {self._num_leaves} leaves, not {size}"
            )
            return Reason.STALE_CHECKPOINT, detail
        return None

    def find_author_key(self, event: e.LedgerEvent) -> bytes:
        """Return the key that must have signed an event on the ledger."""
        speaker = _find_speaker(event)
        if speaker is not None:
            return self._parties[speaker]
        match event:
            case _ if _is_agents_word(event):
                return self._agents[event.agent_id].public_key
            case e.AgentEnrolmentRequested():
                return event.public_key  # proof that the applicant holds the key
            case e.FederationConfigured():
                return {p.role: p.public_key for p in event.principals}["OPERATOR"]
            case e.EquivocationProven():
                return event.reported_by
            case _:
                return self._principals[_AUTHOR_ROLE[type(event)]]

    def _is_old_fact(self, fact: e.Fact) -> bool:
        last = self._last_facts.get(topics.topic_of(fact), (-1, -1))
        return (fact.cause_leaf_index, fact.output_index) <= last

    def _is_known(self, input_id: bytes) -> bool:
        # map, not a generator: this searches every block of the window.
        return input_id in self._new_ids or any(
            map(contains, self._recent_ids, repeat(input_id))
        )

    def _refuse(self, received: Received, reason: Reason, detail: str) -> Refused:
        value = received.value or b""
        # A key that names no known federation belongs to no ledger: the refusal goes to
        # the refusals topic alone.
        ours = received.key is not None and received.key == self._federation_id.encode()
        return Refused(
            e.EventRejected(
                federation_id=self._federation_id if ours else "",
                reason=reason,
                detail=detail[:500],
                source_topic=received.topic,
                source_partition=received.partition,
                source_offset=received.offset,
                value_sha256=hashlib.sha256(value).digest(),
                value_size_bytes=len(value),
                value=value[:MAX_REJECTED_VALUE_BYTES],
            )
        )


def _is_agents_word(event: e.LedgerEvent) -> TypeGuard[Answer | e.UpdateDeclined]:
    """Return whether an agent says this, under its own name."""
    return type(event) in list_kinds().answers or isinstance(event, e.UpdateDeclined)


def _find_speaker(event: e.LedgerEvent) -> str | None:
    """Return the speaker, if neither an agent nor a principal."""
    get_author = list_kinds().speakers.get(type(event))
    if get_author is not None:
        return get_author(event)
    if isinstance(event, e.UpdatesChecked | e.AggregateSubmitted) and event.party:
        return event.party
    return None
