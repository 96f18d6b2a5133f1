"""A long log, made by the tests' builder, block by block: only what grows is let go.

It is what the real services would have written, only faster: nothing waits for
transactions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from adapters.kafka import Record, make_headers
from ledger.attestations import START, Header, sign_attestation
from ledger.checkpoint import cosign_checkpoint
from ledger.signing import SigningKey
from protocol.log import NewBlock
from protocol.replay import ReplayState
from protocol.state_root import StateHasher
from protocol.validation import MAX_CHECKS
from schemas import codec, topics
from schemas import events as e
from tests.builders import BlobDict, LogBuilder, frame, make_key, unframe

Store = Callable[[bytes], e.BlobRef]
"""`adapters.blobs.BlobStore.store`."""


@dataclass(frozen=True, slots=True)
class Step:
    """A block's record, its checkpoint's, and what the ledger nodes say then."""

    ledger: Record
    checkpoint: Record
    said: tuple[tuple[bytes, Record], ...]


class _Blobs(BlobDict):
    """Keeps blobs, and stores them elsewhere too."""

    def __init__(self, store: Store | None) -> None:
        super().__init__()
        self._store = store

    def store(self, data: bytes) -> e.BlobRef:
        ref = super().store(data)
        return ref if self._store is None else self._store(data)


class LogMaker(LogBuilder):
    """Plays a whole federation, round after round.

    Args:
        federation_id: Its name.
        num_agents: Its agents; all are in every cohort.
        num_parameters: The size of its model.
        store: Where blobs go, besides; None for nowhere.
        num_nodes: Its ledger nodes. Each attests every block, and cosigns every
            checkpoint once its block is final.
    """

    def __init__(
        self,
        federation_id: str,
        num_agents: int,
        num_parameters: int,
        store: Store | None = None,
        *,
        num_nodes: int = 0,
    ) -> None:
        super().__init__(
            federation_id=federation_id,
            num_parameters=num_parameters,
            cohort_size=num_agents,
            min_cohort=num_agents,
            ledger_nodes=[f"node{number:02d}" for number in range(num_nodes)],
            blobs=_Blobs(store),
        )
        assert num_agents <= MAX_CHECKS, "one claim checks all"
        self._agents = [f"agent-{number:04d}" for number in range(num_agents)]
        self._hasher = StateHasher()
        self._header: Header | None = None
        self._note = b""
        self._made: list[Record] = []
        self._steps: list[Step] = []
        self._published: Counter[str] = Counter()

    @property
    def num_leaves(self) -> int:
        """How many leaves there are by now."""
        return self.state.log.chain.size

    def make(self, num_leaves: int) -> Iterator[Step]:
        """Yield what is on Kafka by and by, until there are so many leaves."""
        self.found()
        self.admit(*self._agents)
        while self.num_leaves < num_leaves:
            yield from self._take_steps()
            self.run_round()
        yield from self._take_steps()

    def _take_steps(self) -> list[Step]:
        steps, self._steps = self._steps, []
        model = self._rounds.model
        for digest in self.blobs.keys() - {model.sha256 if model else b""}:
            del self.blobs[digest]
        for grown in (self.leaves, self.opened, self._updates):
            grown.clear()
        return steps

    def record(self, event: e.Event, key: SigningKey, traceparent: str = "") -> Record:
        """Return an event as a publisher and Kafka would make a record of it."""
        topic, data = topics.topic_of(event), codec.encode(event)
        headers = make_headers(event, data, key, self.genesis, traceparent)
        self._published[topic] += 1
        return Record(
            topic=topic,
            partition=0,
            offset=self._published[topic] - 1,
            key=self.federation_id.encode(),
            value=frame(event),
            headers=tuple(headers),
        )

    def _store(self, _log: list[Record], event: e.Event, traceparent: str) -> None:
        self._made.append(self.record(event, make_key("SEQUENCER"), traceparent))

    def _publish(self, block: NewBlock, *, is_followed: bool = True) -> None:
        super()._publish(block, is_followed=is_followed)
        (ledger, checkpoint), self._made = self._made, []
        said = tuple(self._attest(checkpoint)) if self.ledger_nodes else ()
        self._steps.append(Step(ledger, checkpoint, said))

    def _attest(self, checkpoint: Record) -> Iterator[tuple[bytes, Record]]:
        """Let the nodes attest the last block, which makes the one before it final."""
        state = ReplayState(
            log=self.state.log, admission=self.state.admission, states=self._states
        )
        nodes, chain = state.admission.node_sets[-1], state.log.chain
        before = self._header
        self._header = Header(
            chain_id=nodes.chain_id,
            era=nodes.era,
            height=chain.height - 1,
            previous_id=START if before is None else before.id,
            block_hash=chain.previous_block_hash,
            tree_size=chain.size,
            tree_root=chain.tree.root(),
            state_root=self._hasher.compute_root(state),
            node_set_hash=nodes.hash,
        )
        for name in self.ledger_nodes:
            key = make_key(name)
            event = sign_attestation(key, nodes, self.federation_id, 0, self._header)
            yield key.public_key, self.record(event, key)
        for name in self.ledger_nodes if before is not None else ():
            assert before is not None
            key = make_key(name)
            note = cosign_checkpoint(self._note, name, key, self.now_ms // 1_000)
            cosigned = e.CheckpointCosigned(
                federation_id=self.federation_id,
                height=before.height,
                checkpoint=note.decode(),
            )
            yield key.public_key, self.record(cosigned, key)
        signed = codec.decode_as(e.CheckpointSigned, unframe(checkpoint.value or b""))
        self._note = signed.checkpoint.encode()
