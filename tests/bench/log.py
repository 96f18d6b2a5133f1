"""A long log, made by the sequencer's and the deciders' own functions, without Kafka.

It is what the real services would have written, block by block, only faster: nothing
waits for transactions.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from ledger.attestations import START, Header, sign_attestation
from ledger.checkpoint import (
    Checkpoint,
    compute_origin,
    cosign_checkpoint,
    sign_checkpoint,
)
from ledger.signing import SigningKey
from protocol.admission import Received
from protocol.contributions import Contribution
from protocol.deciders import compute_initial_states, step_all
from protocol.encoding import update_to_blob
from protocol.envelope import (
    NO_GENESIS,
    choose_genesis,
    compute_genesis_hash,
    sign_event,
)
from protocol.log import LogState, NewBlock, SequencerState, open_block, sequence
from protocol.model import compute_result
from protocol.replay import ReplayState
from protocol.rewards import RECOMMENDED_RULE
from protocol.round_state import RoundsState
from protocol.rules import LATEST_VERSION
from protocol.state_root import StateHasher
from protocol.validation import MAX_CHECKS, ROLES
from schemas import codec, topics
from schemas import events as e
from tests.bench.federation import TASK, make_agent_keys, make_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

Store = Callable[[bytes], e.BlobRef]
"""`adapters.blobs.BlobStore.store`, or something that forgets the bytes."""

BLOCK_INTERVAL_MS: Final = 100
NUM_EXAMPLES: Final = 100
METRICS: Final = (e.Metric(name="accuracy", value_micros=900_000, direction="HIGHER"),)
TRACEPARENT: Final = f"00-{'5' * 32}-{'7' * 16}-01"


def forget(data: bytes) -> e.BlobRef:
    """Return a reference to bytes that nobody keeps."""
    digest = hashlib.sha256(data)
    return e.BlobRef(
        uri=f"s3://moot/sha256/{digest.hexdigest()}",
        sha256=digest.digest(),
        size_bytes=len(data),
    )


class LogMaker:
    """Plays a whole federation, round after round.

    Args:
        federation_id: Its name.
        num_agents: Its agents; all are in every cohort.
        num_parameters: The size of its model.
        store: Where blobs go.
        is_summed: Whether sums are computed; without blobs nobody can tell.
        num_nodes: Its ledger nodes. Each attests every block, and cosigns every
            checkpoint once its block is final.
        node_key: The first node's key; None makes one, as for the others.
    """

    def __init__(
        self,
        federation_id: str,
        num_agents: int,
        num_parameters: int,
        store: Store,
        *,
        is_summed: bool,
        num_nodes: int = 0,
        node_key: SigningKey | None = None,
    ) -> None:
        self.federation_id = federation_id
        self.nodes = {
            f"node{number:02d}": SigningKey(
                hashlib.sha256(b"bench node %d" % number).digest()
            )
            for number in range(num_nodes)
        }
        if node_key is not None:
            self.nodes["node00"] = node_key
        self._said: list[tuple[e.Attestation, SigningKey]] = []
        self._hasher = StateHasher()
        self._header: Header | None = None
        self._note = b""
        self.num_leaves = 0
        self.keys: Mapping[str, SigningKey] = {
            role: SigningKey(hashlib.sha256(b"bench " + role.encode()).digest())
            for role in ROLES
        }
        self._agents = make_agent_keys(num_agents)
        self._num_parameters = num_parameters
        self._store = store
        self._is_summed = is_summed
        self._values: NDArray[np.int32] = np.random.default_rng(0).integers(
            -(2**20), 2**20, num_parameters, np.int32
        )
        self._model = make_model(num_parameters)
        self._state = SequencerState()
        self._reader = LogState()
        self._states = compute_initial_states()
        self.genesis = NO_GENESIS
        self._waiting: list[Received] = []
        self._offsets: Counter[str] = Counter()
        self._counter = 0
        self._now_ms = 1_700_000_000_000

    def make(self, num_leaves: int) -> Iterator[tuple[NewBlock, e.CheckpointSigned]]:
        """Yield blocks and their checkpoints until there are so many leaves."""
        yield from self._found()
        number = 0
        while self.num_leaves < num_leaves:
            number += 1
            yield from self._run_round(number)

    def _found(self) -> Iterator[tuple[NewBlock, e.CheckpointSigned]]:
        nodes = tuple(
            e.LedgerNode(name=name, public_key=key.public_key, url="")
            for name, key in self.nodes.items()
        )
        config = e.FederationConfigured(
            federation_id=self.federation_id,
            nonce=b"n" * 32,
            rules_version=LATEST_VERSION,
            principals=tuple(
                e.Principal(role=role, public_key=key.public_key)
                for role, key in self.keys.items()
            ),
            task=TASK,
            initial_model=self._store(self._model),
            num_parameters=self._num_parameters,
            fractional_bits=20,
            max_num_examples=NUM_EXAMPLES,
            cohort_size=len(self._agents),
            min_cohort=len(self._agents),
            round_duration_ms=60_000,
            strategy="FEDAVG",
            plain=e.Plain(),
            ledger_nodes=e.LedgerNodes(nodes=nodes) if nodes else None,
            reward_rule=RECOMMENDED_RULE,
        )
        self._say(config, "OPERATOR")
        for name, key in self._agents.items():
            admitted = e.AgentAdmitted(
                federation_id=self.federation_id,
                agent_id=name,
                public_key=key.public_key,
            )
            self._say(admitted, "OPERATOR")
        yield from self._settle()

    def _run_round(self, number: int) -> Iterator[tuple[NewBlock, e.CheckpointSigned]]:
        requested = e.RoundRequested(
            federation_id=self.federation_id, round=number, requested_at_ms=self._now_ms
        )
        self._say(requested, "OPERATOR")
        yield from self._settle()
        current = self._rounds.current
        assert current is not None, "nothing keeps a round from starting"
        blobs: dict[str, bytes] = {}
        for name, key in self._agents.items():
            blobs[name] = self._make_update()
            update = e.UpdateSubmitted(
                federation_id=self.federation_id,
                round=number,
                agent_id=name,
                base_model_sha256=current.started.base_model.sha256,
                update=self._store(blobs[name]),
                num_examples=NUM_EXAMPLES,
                loss_micros=500_000,
            )
            self._say(update, key)
        yield from self._settle()
        current = self._rounds.current
        assert current is not None, "the round is open"
        waiting = sorted(current.pending)
        for start in range(0, len(waiting), MAX_CHECKS):
            results = tuple(
                e.UpdateCheck(leaf_index=index, reason="", detail="")
                for index in waiting[start : start + MAX_CHECKS]
            )
            checked = e.UpdatesChecked(
                federation_id=self.federation_id, round=number, results=results
            )
            self._say(checked, "AGGREGATOR")
        yield from self._settle()
        current = self._rounds.current
        assert current is not None
        assert current.sealed is not None, "everybody answered"
        self._say(self._add_up(current.sealed, current.ordered, blobs), "AGGREGATOR")
        yield from self._settle()
        assert self._rounds.model is not None
        exported = e.ModelExported(
            federation_id=self.federation_id,
            round=number,
            model_sha256=self._rounds.model.sha256,
            onnx=self._store(b"not really ONNX, round %d" % number),
            no_onnx="",
            evaluation=e.Evaluation(num_examples=NUM_EXAMPLES, metrics=METRICS),
            no_evaluation="",
        )
        self._say(exported, "EXPORTER")
        yield from self._settle()

    def _make_update(self) -> bytes:
        self._counter += 1
        self._values[0] = self._counter
        return update_to_blob(self._values)

    def _add_up(
        self,
        sealed: e.RoundSealed,
        contributions: Sequence[Contribution],
        blobs: Mapping[str, bytes],
    ) -> e.AggregateSubmitted:
        if self._is_summed:
            ordered = [blobs[item.agent_id] for item in contributions]
            weights = [item.num_examples for item in contributions]
            result = compute_result("FEDAVG", sealed, weights, self._model, ordered)
            total, self._model = result.sum_blob, result.model_blob
        else:
            total, self._model = b"sum %d" % sealed.round, b"model %d" % sealed.round
        return e.AggregateSubmitted(
            federation_id=self.federation_id,
            round=sealed.round,
            base_model_sha256=sealed.base_model.sha256,
            num_contributions=sealed.num_contributions,
            num_examples=sealed.num_examples,
            sum=self._store(total),
            model=self._store(self._model),
        )

    def _say(self, event: e.Event, author: str | SigningKey) -> None:
        key = self.keys[author] if isinstance(author, str) else author
        data = codec.encode(event)
        if isinstance(event, e.FederationConfigured):
            self.genesis = compute_genesis_hash(data)
        topic = topics.topic_of(event)
        self._waiting.append(
            Received(
                topic=topic,
                partition=0,
                offset=self._offsets[topic],
                key=self.federation_id.encode(),
                value=data,
                event=data,
                signature=sign_event(key, choose_genesis(event, self.genesis), data),
                traceparent=TRACEPARENT,
            )
        )
        self._offsets[topic] += 1

    def _settle(self) -> Iterator[tuple[NewBlock, e.CheckpointSigned]]:
        """Yield blocks until nobody has anything more to say."""
        while self._waiting:
            batch, self._waiting = self._waiting, []
            self._now_ms += BLOCK_INTERVAL_MS
            key = self.keys["SEQUENCER"]
            self._state, block, refused = sequence(
                self._state, batch, key=key, now_ms=self._now_ms
            )
            assert block is not None
            assert not refused, "the benchmark's load is admissible"
            chain = self._state.log.chain
            checkpoint = Checkpoint(
                origin=compute_origin(self.federation_id, self.genesis),
                size=chain.size,
                root=chain.tree.root(),
            )
            self.num_leaves = chain.size
            self._follow(block)
            note = sign_checkpoint(checkpoint, key)
            if self.nodes:
                self._attest(note)
            yield (
                block,
                e.CheckpointSigned(
                    federation_id=self.federation_id,
                    height=block.event.height,
                    checkpoint=note.decode(),
                ),
            )

    def take_attestations(self) -> list[tuple[e.Attestation, SigningKey]]:
        """Return what the ledger nodes said since the last call, and their keys."""
        said, self._said = self._said, []
        return said

    def _attest(self, note: bytes) -> None:
        """Let the nodes attest the last block, which makes the one before it final."""
        state = ReplayState(
            log=self._state.log,
            admission=self._state.admission,
            states=self._states,
        )
        nodes, chain = state.admission.node_sets[-1], state.log.chain
        header = Header(
            chain_id=nodes.chain_id,
            era=nodes.era,
            height=chain.height - 1,
            previous_id=START if self._header is None else self._header.id,
            block_hash=chain.previous_block_hash,
            tree_size=chain.size,
            tree_root=chain.tree.root(),
            state_root=self._hasher.compute_root(state),
            node_set_hash=nodes.hash,
        )
        self._said += [
            (sign_attestation(key, nodes, self.federation_id, 0, header), key)
            for key in self.nodes.values()
        ]
        if self._header is not None:
            for name, key in self.nodes.items():
                cosigned = e.CheckpointCosigned(
                    federation_id=self.federation_id,
                    height=self._header.height,
                    checkpoint=cosign_checkpoint(
                        self._note, name, key, self._now_ms // 1_000
                    ).decode(),
                )
                self._said.append((cosigned, key))
        self._header, self._note = header, note

    @property
    def _rounds(self) -> RoundsState:
        return self._states["rounds"]  # type: ignore[no-any-return]  # its own

    def _follow(self, block: NewBlock) -> None:
        self._reader, _, opened = open_block(self._reader, block.data, block.signature)
        for leaf in opened:
            self._states, facts = step_all(self._states, leaf.sequenced)
            for fact in facts:
                self._say(fact, "DECIDER")
