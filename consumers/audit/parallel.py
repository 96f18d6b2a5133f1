"""Verification ahead: other processes check signatures before the audit needs them.

Signatures are most of an audit's work and do not depend on each other. Helpers get the
raw records and the keys known so far, and say which checks passed. The audit asks them
before it checks something itself, so:

- what passed there would have passed here: the same function was called with the same
  bytes (a check is named by a SHA-256 over all of them);
- what did not pass, or was not reached, is checked by the audit itself, which then says
  what is wrong. A helper that dies costs only time.

Deliberately not here: anything that depends on the order of the records.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context, parent_process
from typing import Any, Final, TypeAlias

from adapters import alive
from adapters.kafka import Record
from adapters.log_lines import guard_logs
from consumers.audit.finality import Context, hash_context, verify_record
from ledger.attestations import InvalidMessageError
from ledger.checkpoint import Checkpoint, make_log_key, verify_checkpoint
from ledger.note import InvalidNoteError
from ledger.signing import InvalidSignatureError
from protocol import admission
from protocol.admission import AdmissionState
from protocol.envelope import choose_genesis, verify_event
from schemas import codec
from schemas import events as e

MAX_CHUNK_RECORDS: Final = 64
MAX_CHUNK_BYTES: Final = 2**18
NUM_CHUNKS_AHEAD: Final = 4
"""For each helper: enough that none waits, few enough to save memory."""

Passed: TypeAlias = dict[bytes, Any]
"""Checks that passed, with their results, by name."""
Item: TypeAlias = tuple[bytes, bytes]
"""A record's single-object bytes and its signature header."""


def name_check(kind: bytes, context: bytes, signature: bytes, data: bytes) -> bytes:
    """Return the name of a check of exactly these bytes, 32 bytes."""
    sizes = b"%d %d\n" % (len(context), len(signature))
    return hashlib.sha256(kind + sizes + context + signature + data).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointContext:
    """What it takes to verify a checkpoint's record."""

    federation_id: str
    genesis: bytes
    sequencer_key: bytes

    @property
    def identity(self) -> bytes:
        """Identifies the context in the names of its checks."""
        return self.genesis + self.sequencer_key


def open_checkpoint(
    context: CheckpointContext, data: bytes, signature: bytes
) -> tuple[e.CheckpointSigned, Checkpoint]:
    """Return a checkpoint that the sequencer signed.

    Raises:
        it is not one.
    """
    event = codec.decode_as(e.CheckpointSigned, data)
    verify_event(context.sequencer_key, context.genesis, data, signature)
    key = make_log_key(context.federation_id, context.genesis, context.sequencer_key)
    note = event.checkpoint.encode()
    return event, verify_checkpoint(note, key, key.name).checkpoint


def _check_blocks(state: AdmissionState, items: Sequence[Item]) -> Passed:
    """Check the signatures of blocks and of everything in them."""
    passed: Passed = {}

    def check(key: bytes | None, genesis: bytes, data: bytes, signature: bytes) -> None:
        if key is not None:
            with suppress(InvalidSignatureError):
                verify_event(key, genesis, data, signature)
                passed[name_check(b"event", genesis + key, signature, data)] = None

    for data, signature in items:
        # The audit reports what cannot be read here.
        with suppress(codec.CodecError):
            block = codec.decode_as(e.BlockSequenced, data)
            check(state.principals.get("SEQUENCER"), state.genesis, data, signature)
            for leaf_data in block.leaves:
                leaf = codec.decode_as(e.Leaf, leaf_data)
                event: Any = codec.decode(leaf.event)
                author = admission.find_author(state, event)
                genesis = choose_genesis(event, state.genesis)
                check(author, genesis, leaf.event, leaf.signature)
    return passed


def _check_checkpoints(context: CheckpointContext, items: Sequence[Item]) -> Passed:
    passed: Passed = {}
    for data, signature in items:
        with suppress(codec.CodecError, InvalidSignatureError, InvalidNoteError):
            opened = open_checkpoint(context, data, signature)
            name = name_check(b"checkpoint", context.identity, signature, data)
            passed[name] = opened
    return passed


def _check_attestations(context: Context, items: Sequence[Item]) -> Passed:
    passed: Passed = {}
    name = hash_context(context)
    for data, signature in items:
        with suppress(InvalidMessageError):
            said = verify_record(context, data, signature)
            passed[name_check(b"attestation", name, signature, data)] = said
    return passed


@lru_cache(maxsize=4)
def _load(context: bytes) -> Any:
    return pickle.loads(context)  # noqa: S301  # from our own parent process


def _work(kind: str, context: bytes, items: Sequence[Item]) -> Passed:
    """Run in a helper process."""
    loaded = _load(context)
    match kind:
        case "blocks":
            return _check_blocks(loaded, items)
        case "checkpoints":
            return _check_checkpoints(loaded, items)
        case _:
            return _check_attestations(loaded, items)


def _begin() -> None:
    """Make a helper end with its parent, and not before."""
    guard_logs()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None, "a helper has one"

    def end() -> None:
        parent.join()
        os._exit(1)

    alive.start_thread(end, "end with the parent")


class Helpers:
    """Processes that check ahead; without any, checks run where they are needed."""

    def __init__(self, count: int) -> None:
        self._count = count
        # Not forked: this process has threads, its own and Kafka's.
        self._pool = (
            ProcessPoolExecutor(count, get_context("spawn"), _begin) if count else None
        )
        self._passed: Passed = {}
        self._last_context: tuple[object, bytes] = (None, b"")

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def verify(self, key: bytes, genesis: bytes, data: bytes, signature: bytes) -> None:
        """Do as `protocol.envelope.verify_event`."""
        if (
            not self._passed
            or name_check(b"event", genesis + key, signature, data) not in self._passed
        ):
            verify_event(key, genesis, data, signature)

    def open_checkpoint(
        self, context: CheckpointContext, data: bytes, signature: bytes
    ) -> tuple[e.CheckpointSigned, Checkpoint]:
        """See the function of this name."""
        name = name_check(b"checkpoint", context.identity, signature, data)
        return self._passed.get(name) or open_checkpoint(context, data, signature)

    def verify_record(
        self, context: Context, hashed: bytes, data: bytes, signature: bytes
    ) -> Any:
        """Do as `consumers.audit.finality.verify_record`, given its `hash_context`."""
        name = name_check(b"attestation", hashed, signature, data)
        return self._passed.get(name) or verify_record(context, data, signature)

    def read_ahead(
        self,
        records: Iterable[Record],
        kind: str,
        find_context: Callable[[], object | None],
        open_item: Callable[[Record], Item | None],
    ) -> Iterator[Record]:
        """Yield records in order, checked ahead as far as possible.

        Args:
            records: Records to audit; a few are held in memory.
            kind: "blocks", "checkpoints" or "attestations".
            find_context: Returns what is known of the keys; None if nothing is.
            open_item: Returns what of a record is to be checked; None for nothing.
        """
        if self._pool is None:
            yield from records
            return
        chunks = _split(records)
        # Where signatures are the only work, this process takes its share.
        share = self._count + 1 if kind == "attestations" else 0
        number = 0
        ahead: deque[tuple[list[Record], Future[Passed] | None]] = deque()
        while True:
            while len(ahead) < NUM_CHUNKS_AHEAD * self._count:
                chunk = next(chunks, None)
                if chunk is None:
                    break
                number += 1
                if share and number % share == 0:
                    ahead.append((chunk, None))
                    continue
                items = [item for item in map(open_item, chunk) if item is not None]
                ahead.append((chunk, self._submit(kind, find_context(), items)))
            if not ahead:
                return
            chunk, future = ahead.popleft()
            mine = self._collect(future)
            self._passed.update(mine)
            yield from chunk
            for name in mine:
                self._passed.pop(name, None)

    def _submit(
        self, kind: str, context: object | None, items: list[Item]
    ) -> Future[Passed] | None:
        if self._pool is None or context is None or not items:
            return None
        try:
            return self._pool.submit(_work, kind, self._pickle(context), items)
        except (BrokenExecutor, RuntimeError):
            return None

    def _pickle(self, context: object) -> bytes:
        known, pickled = self._last_context
        if known is not context:
            pickled = pickle.dumps(context)
            self._last_context = (context, pickled)
        return pickled

    @staticmethod
    def _collect(future: Future[Passed] | None) -> Passed:
        # What no helper has begun is done here.
        if future is None or future.cancel():
            return {}
        try:
            return future.result()
        except Exception:  # noqa: BLE001  # nothing passed there: it is checked here
            return {}


def _split(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield records in chunks worth sending."""
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.value or b"")
        if len(chunk) == MAX_CHUNK_RECORDS or size > MAX_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
