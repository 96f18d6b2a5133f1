"""Every parser of bytes, or text, that strangers may have written: one table.

`tests/architecture/test_parsers.py` demands that whatever in the tree takes such bytes
apart is reached from here. `python -m tests.fuzz` feeds the table, `tests/unit/
test_fuzz.py` replays what is kept, `tests/unit/test_parser_cost.py` measures how work
grows.
"""

from __future__ import annotations

import asyncio
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Final, Self
from urllib.parse import quote_from_bytes

import numpy as np
from aiohttp import StreamReader as HttpReader
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import Request
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

from adapters import telemetry, vote_log
from adapters.block_store import BlockStore
from adapters.heartbeats import HeartbeatReader
from adapters.imports import ImportRefusedError, load_class
from adapters.kafka import Record
from adapters.kafka_log import Genesis, PassingOverForeign
from adapters.kafka_log import _read as read_log_record
from adapters.keys import KeyFileError, load_seed
from adapters.modes.mpc import link as party_link
from adapters.modes.mpc import memory as party_log
from adapters.modes.mpc.link import LinkError, PartyLink
from adapters.modes.mpc.memory import PartyLog, PartyLogError
from adapters.peers import Peer, PeerError, parse_feed
from adapters.raw_records import Batches, PartitionRecords
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.tile_store import TileStore
from adapters.vote_log import VoteLogError
from cli.audit import CannotAuditError, _load_policy, _load_state, _parse_key
from cli.modes.mpc import parse_parties
from cli.node import load_proposal, parse_ledger_nodes
from cli.receipts import check_receipt
from cli.rewards import parse_reward_rule
from cli.stack.processes import StackError
from consumers.audit.auditor import run_audit
from consumers.audit.bundle import (
    Bundle,
    BundleError,
    BundleWriter,
    Manifest,
    decode_record,
    encode_record,
)
from consumers.audit.finality import Context, verify_record
from consumers.audit.modes.second_opinion import find_row_problem
from consumers.audit.parallel import CheckpointContext, _check_blocks, open_checkpoint
from consumers.audit.state import save_state
from consumers.node.http import NodeServer, _head_size
from consumers.node.kafka import KafkaIntake
from consumers.node.ledger_node import LedgerNode
from consumers.node.loop import NodeLoop
from ledger import checkpoint as ledger_checkpoint
from ledger import note as ledger_note
from ledger.attestations import (
    START,
    InvalidMessageError,
    InvalidNodeSetError,
    NodeSet,
    verify_attestation,
    verify_certificate,
    verify_epoch_request,
    verify_node_set_change,
)
from ledger.checkpoint import (
    Checkpoint,
    InvalidCheckpointError,
    cosign_checkpoint,
    make_log_key,
    parse_checkpoint,
    parse_origin,
    sign_checkpoint,
)
from ledger.cosigning import CosignatureCollector
from ledger.equivocation import prove_equivocation, verify_equivocation
from ledger.finality import FinalityProof, verify_finality
from ledger.merkle import (
    HASH_SIZE,
    CompactRange,
    InvalidProofError,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from ledger.note import (
    InvalidKeyError,
    InvalidNoteError,
    parse_note,
    parse_vkey,
)
from ledger.policy import InvalidPolicyError, make_bft_policy, parse_policy
from ledger.proof_file import InvalidProofFileError, make_receipt, verify_receipt
from ledger.signing import InvalidSignatureError, verify_signature
from ledger.tiles import (
    InvalidTileError,
    encode_entries,
    inclusion_proof,
    parse_entries,
    parse_path,
    parse_tile,
)
from ledger.votes import VotesLostError, VoteState
from ledger.witness import InvalidRequestError, judge, parse_request
from producers.agent.agent import Agent
from producers.timer import Timer
from protocol import admission, validation
from protocol.admission import AdmissionState, Received
from protocol.aggregation import sum_from_blob, sum_to_blob
from protocol.changes import apply_change, find_change_problem
from protocol.encoding import UpdateRefusedError, parse_update, update_to_blob
from protocol.envelope import NO_GENESIS, SIGNATURE_HEADER, sign_event
from protocol.exchanged_state import model_from_blob
from protocol.log import LogError, LogState, fold_admission, open_block
from protocol.modes.mpc.checker import MpcShape, parse_links, parse_partial, parse_proof
from protocol.modes.mpc.commitments import (
    InvalidEncodingError,
    parse_points,
    parse_scalars,
)
from protocol.modes.mpc.far_pairs import MalformedBitsError, parse_far
from protocol.modes.mpc.norm_proof import NormStatement, verify_norm_proofs
from protocol.modes.mpc.sealing import (
    InvalidSealingKeyError,
    SealedPlace,
    SealError,
    SealingKey,
    SealingSecretKey,
    open_share,
    seal_share,
)
from protocol.modes.mpc.share_link import (
    Link,
    SharesDifferError,
    WrongPartialError,
    WrongSumError,
)
from protocol.modes.mpc.shares import ShareRefusedError, ShareShape, parse_share
from protocol.modes.problem import RoundError
from protocol.replay import DeciderError, ReplayState, replay_block
from protocol.rounds import DECIDER
from protocol.strategies import STRATEGIES
from protocol.strategies.state import state_from_blob, state_to_blob
from protocol.tensors import MalformedBlobError, tensors_to_blob
from schemas import codec, topics
from schemas import events as e
from tests.attesting import attest_all
from tests.builders import LogBuilder, frame, make_key, unframe
from tests.fuzz.mutations import mutate, mutate_event
from tests.hostile.batches import Codec, RawBatch, RawRecord, bomb, many_records
from tests.mpc_builder import MpcLogBuilder
from tests.paths import VECTORS
from tests.simulation.federation import CONFIG
from tests.trees import consistency_proof as prove_consistency
from tests.trees import inclusion_proof as prove_inclusion
from tests.unit.ledger import nodes as made
from tests.unit.protocol.modes.mpc import test_party_vectors as party_vectors
from tests.witnessing import format_request

Parse = Callable[[bytes], object]
FEDERATION: Final = "clinics"
NOW_S: Final = 1_760_000_000
SEQUENCER: Final = make_key("SEQUENCER")


def _found() -> LogBuilder:
    builder = LogBuilder()
    builder.found()
    return builder


GENESIS: Final = _found().genesis
LOG_KEY: Final = make_log_key(FEDERATION, GENESIS, SEQUENCER.public_key)
NODE_NAMES: Final = ("node0", "node1", "node2", "node3")
BLOCK_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser.

    Attributes:
        name: What it is called here.
        parse: The parser; what it returns does not matter.
        errors: What its documentation says that it raises.
        seeds: Good inputs, made by the real encoders.
        shapes: By name, a function from a size to an input of about that size that is
            as bad as can be: for measuring how work grows.
        repair: Makes checksums right, so that mutations get past them.
        change: Another way to mutate, which keeps the form.
        max_bytes: The most that a stranger can have it read.
        max_seconds: Processor time that an input may take, and more than it takes by
            far: a parser that is slower by a constant is no finding.
        max_memory_mb: Memory that an input may take at its peak, likewise.
    """

    name: str
    parse: Parse
    errors: tuple[type[BaseException], ...]
    seeds: Callable[[], Iterable[bytes]]
    shapes: Mapping[str, Callable[[int], bytes]] = field(default_factory=dict)
    repair: Callable[[bytes], bytes] | None = None
    change: Callable[[bytes, Random], bytes] | None = None
    max_bytes: int = 2**16
    max_seconds: float = 1.0
    max_memory_mb: int = 64


def as_text(parse: Callable[[str], object]) -> Parse:
    """Return a parser of the text that bytes are, whatever they are."""
    return lambda data: parse(data.decode("utf-8", "replace"))


def in_file(parse: Callable[[Path], object]) -> Parse:
    """Return a parser of a file's content."""

    def parse_file(data: bytes) -> None:
        path = _scratch() / "input"
        path.write_bytes(data)
        path.chmod(0o600)
        parse(path)

    return parse_file


def as_event(check: Callable[[Any], object]) -> Parse:
    """Return a check of events of any kind, as readers come to it."""

    def parse(data: bytes) -> None:
        with suppress(codec.CodecError):
            check(codec.decode(data))

    return parse


def chunks(data: bytes, size: int = HASH_SIZE) -> list[bytes]:
    """Return pieces of equal size and what is left over."""
    return [data[start : start + size] for start in range(0, len(data), size)]


@cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="folkmoot-fuzz-")
    _kept.append(folder)
    return Path(folder.name)


_kept: Final[list[Any]] = []


# What the real encoders make


@cache
def golden_events() -> Mapping[str, tuple[bytes, ...]]:
    """Return messages of every schema ever released."""
    return {
        path.stem: tuple(
            bytes.fromhex(form["hex"])
            for message in json.loads(path.read_text()).values()
            # Last, that with every part that may be left out.
            for form in (*filter(None, [message.get("without")]), message)
        )
        for path in sorted((VECTORS / "schemas").glob("*.json"))
    }


def all_events() -> list[bytes]:
    """Return a golden message of every kind."""
    return [messages[-1] for messages in golden_events().values()]


@cache
def log() -> LogBuilder:
    """Return a short log of a federation with ledger nodes."""
    built = LogBuilder(federation_id=FEDERATION)
    built.found()
    built.admit("ada", "bea", "cleo", "dora")
    built.request_round(7)  # refused
    built.run_round()
    revoked = e.AgentRevoked(
        federation_id=FEDERATION, agent_id="dora", explanation="she asked for it"
    )
    built.say(revoked, make_key("mallory"))  # likewise
    built.settle()
    built.request_finality()
    return built


def events_of_log() -> list[bytes]:
    """Return one event of each kind that is on the log."""
    return [*{type(x): codec.encode(x) for x in log().leaves}.values()]


def events_of_parties() -> list[bytes]:
    """Return what only a federation with parties has, and is well formed."""
    declined = e.PartyDeclined(
        federation_id=FEDERATION, round=1, party="p0", reason="NOT_LINKED", detail="no"
    )
    config = MpcLogBuilder(federation_id=FEDERATION).configure(CONFIG.initial_model)
    return [codec.encode(event) for event in (config, declined)]


@cache
def said_by_nodes() -> tuple[Record, ...]:
    """Return what ledger nodes said of the log."""
    return attest_all(log())


def attestations() -> list[bytes]:
    """Return one message of each kind that ledger nodes send, and two of some."""
    said = [unframe(record.value or b"") for record in said_by_nodes()]
    by_kind = {codec.decode(data).__class__: data for data in said}
    return [*by_kind.values(), *said[:4], codec.encode(_epoch_request())]


def _epoch_request() -> e.EpochRequested:
    return made.request(make_key("node0"), nodes=node_set())


@cache
def node_set() -> NodeSet:
    """Return the log's first node set."""
    return admitted().node_sets[0]


@cache
def admitted() -> AdmissionState:
    """Return what admission knows after the log."""
    return fold_admission(AdmissionState(), log().opened)


@cache
def checkpoint() -> bytes:
    """Return a checkpoint that all nodes cosigned."""
    root = CompactRange().extend(leaf_hashes()).root()
    head = Checkpoint(LOG_KEY.name, len(leaf_hashes()), root)
    note = sign_checkpoint(head, SEQUENCER)
    for name in NODE_NAMES:
        note = cosign_checkpoint(note, name, make_key(name), NOW_S)
    return note


@cache
def leaves() -> tuple[bytes, ...]:
    """Return leaves of a log."""
    return tuple(f"leaf {number}".encode() for number in range(300))


@cache
def leaf_hashes() -> tuple[bytes, ...]:
    """Return their hashes."""
    return tuple(map(leaf_hash, leaves()))


@cache
def policy() -> bytes:
    """Return the policy of the log's nodes."""
    witnesses = [
        (key.name, key.to_vkey(), f"https://{key.name}.example/")
        for key in node_set().vkeys()
    ]
    return make_bft_policy(LOG_KEY.to_vkey(), witnesses).to_text().encode()


def receipts() -> list[bytes]:
    """Return receipts of leaves."""
    return [
        make_receipt(leaves()[at], at, prove_inclusion(at, leaf_hashes()), checkpoint())
        for at in (0, 255, 299)
    ]


def vectors(name: str) -> Any:
    """Return a file of golden vectors."""
    return json.loads((VECTORS / name).read_text())


def blob_of(words: Sequence[int], kind: str = "update") -> bytes:
    """Return a vector as a blob."""
    if kind == "sum":
        return sum_to_blob(np.array(words, dtype=np.int64))
    return update_to_blob(np.array(words, dtype=np.int32))


def model_blob() -> bytes:
    """Return a model of a few tensors."""
    return tensors_to_blob(
        {
            "layer.weight": np.ones((3, 4), np.float32),
            "layer.bias": np.zeros(4, np.float64),
            "counter": np.array(7, np.int64),
            "mask": np.array([True, False]),
            "empty": np.zeros((0, 5), np.uint8),
            "mean": np.array([-1.0, 2.0], np.float16),
            "variance": np.array(3.0, np.float64),
        },
        metadata={
            "format": "pt",
            "folkmoot/state/layer.bias": "fixed",
            "folkmoot/state/counter": "kept",
            "folkmoot/state/mask": "fixed",
            "folkmoot/state/empty": "kept",
            "folkmoot/state/mean": "averaged-apart",
            "folkmoot/state/variance": "averaged-apart-unsigned",
            "folkmoot/tied/head.weight": "layer.weight",
        },
    )


def header_blob(text: bytes, data: bytes = b"") -> bytes:
    """Return a safetensors file with this header."""
    return len(text).to_bytes(8, "little") + text + data


def many_tensors(n: int) -> bytes:
    """Return a model of many empty tensors."""
    entry = b'"%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    entries = b",".join(entry % number for number in range(n // len(entry)))
    return header_blob(b"{" + entries + b"}")


def many_classes(n: int) -> bytes:
    """Return a model that gives many entries a class, and has none of them."""
    stated = b'"folkmoot/state/%07d":"fixed"'
    texts = b",".join(stated % number for number in range(n // len(stated)))
    return header_blob(b'{"__metadata__":{' + texts + b"}}")


def many_ties(n: int) -> bytes:
    """Return a model that gives one entry many names."""
    stated = b'"folkmoot/tied/%07d":"w"'
    texts = b",".join(stated % number for number in range(n // len(stated)))
    entry = b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    return header_blob(b'{"__metadata__":{' + texts + b"}," + entry + b"}", bytes(4))


# Kafka's record batches


def _read_batches(data: bytes) -> None:
    for topic in (topics.CONTROL, topics.LEDGER):
        records = PartitionRecords(
            TopicPartition(topic, 0), Batches(data), [], 0, None, None, True, 1
        )
        for _ in records:
            pass


def _repair_batches(data: bytes) -> bytes:
    """Make the length and the checksum of each batch right."""
    fixed, at = bytearray(data), 0
    while len(fixed) - at > 61:
        (length,) = struct.unpack_from(">i", fixed, at + 8)
        end = at + 12 + length
        if not at + 61 <= end <= len(fixed):
            end = len(fixed)
            struct.pack_into(">i", fixed, at + 8, end - at - 12)
        fixed[at + 16] = 2
        struct.pack_into(">I", fixed, at + 17, calc_crc32c(bytes(fixed[at + 21 : end])))
        at = end
    return bytes(fixed)


def batches() -> list[bytes]:
    """Return batches of every codec, bombs, lies and transactions."""
    records = (
        RawRecord(
            key=b"clinics", value=b"v" * 90, headers=[(b"a", b"b"), (b"c", None)]
        ),
        RawRecord(key=None, value=None),
    )
    plain = [
        RawBatch(records, codec=kind, first_timestamp=1).encode() for kind in Codec
    ]
    abort = RawBatch(
        [RawRecord(key=bytes(4), value=bytes(6))], flags=0x30, producer_id=7
    )
    return [
        *plain,
        plain[0] + RawBatch(records, base_offset=2).encode(),
        replace(abort, first_timestamp=1).encode(),
        RawBatch([replace(records[0], length=3)], first_timestamp=1).encode(),
        RawBatch([RawRecord(headers=[(b"\xff", b"")])], first_timestamp=1).encode(),
        *(bomb(kind, 2**20).encode() for kind in (Codec.GZIP, Codec.ZSTD)),
    ]


def many_batches(n: int) -> bytes:
    """Return as many batches without a record as fit."""
    one = RawBatch(first_timestamp=0, count=0, last_offset_delta=0).encode()
    return one * (n // len(one))


def many_headers(n: int) -> bytes:
    """Return records with as many headers as are allowed, and one more."""
    record = RawRecord(headers=[(b"", b"")] * 65)
    return RawBatch([record] * (n // 140), first_timestamp=0).encode()


# What lies in files and on the wire


def _loop() -> asyncio.AbstractEventLoop:
    if not _loops:
        _loops.append(asyncio.new_event_loop())
    return _loops[0]


_loops: Final[list[asyncio.AbstractEventLoop]] = []


def _receive_frame(data: bytes) -> None:
    async def receive() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        link = PartyLink.__new__(PartyLink)
        link._connections = {1: party_link._Connection(reader, None)}  # type: ignore[arg-type]
        link._timeout_s = 60.0
        for _ in range(1_000):
            await link._receive(1, None, BLOCK_BYTES)

    _loop().run_until_complete(receive())


def _frames() -> list[bytes]:
    arrays = (
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.zeros(0, np.uint8),
        np.array(1, np.uint64),
    )
    return [
        b"".join(party_link.ArrayKind.of(a).encode() + a.tobytes() for a in arrays),
        party_link.ArrayKind.of(arrays[0]).encode() + arrays[0].tobytes(),
    ]


def _unframe_by_schema(data: bytes) -> None:
    """Ask a registry that answers with these bytes about an id that nobody knows."""
    registry = _registry()
    registry._unknown.clear()
    registry._headers.clear()
    codec.compute_fingerprint.cache_clear()
    answer = SimpleNamespace(schema_str=data.decode("utf-8", "replace"))
    registry._client = SimpleNamespace(get_schema=lambda _: answer)  # type: ignore[assignment]
    registry.unframe(b"\0\0\0\0\x09body")


@cache
def _registry() -> SchemaRegistry:
    return SchemaRegistry("http://127.0.0.1:1")


def _unframe(data: bytes) -> None:
    registry = _registry()
    registry._learn(e.UpdateSubmitted, 1)
    registry._client = SimpleNamespace(  # type: ignore[assignment]
        get_schema=lambda _: SimpleNamespace(schema_str="")
    )
    with suppress(codec.CodecError):
        codec.decode(registry.unframe(data))
    with suppress(codec.CodecError):
        codec.decode(registry.unframe_trusted(data))


def _read_page(data: bytes) -> None:
    """Read a feed's page: three lines of headers, then the body."""
    head, _, body = data.partition(b"\n\n")
    values = head.decode("latin-1").split("\n")
    names = ("moot-final-height", "moot-era", "moot-tip")
    parse_feed(body, dict(zip(names, values, strict=False)), 0)


def _feed_page(number: int = 3) -> bytes:
    lines = (
        json.dumps({"number": n, "event": "wwEAAAAAAAAAAA=="}) for n in range(number)
    )
    head = f"7\n0\n8 {'ab' * 32}\n\n"
    return (head + "\n".join(lines) + "\n").encode()


class _Stub:
    """A connection's far end that has these bytes to say."""

    def __init__(self, data: bytes, headers: Mapping[str, str]) -> None:
        self.status, self.headers = 200, headers
        self.content = HttpReader(_Protocol(), 2**16, loop=_loop())  # type: ignore[arg-type]
        self.content.feed_data(data)
        self.content.feed_eof()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class _Protocol:
    _reading_paused = False

    def pause_reading(self, **_: object) -> None:
        pass

    resume_reading = pause_reading


def _read_peer(data: bytes) -> None:
    session = SimpleNamespace(get=lambda *_, **__: _Stub(data, {}))

    async def ask() -> None:
        peer = Peer(session, "http://peer.example")  # type: ignore[arg-type]
        with suppress(PeerError):
            await peer.read_feed(0)
        await peer.fetch_block(7)
        await peer.fetch_proof(0, 7)

    _loop().run_until_complete(ask())


@cache
def _node() -> LedgerNode:
    """Return a ledger node that has the log; it keeps what it is told."""
    folder = _scratch() / "node"
    folder.mkdir()
    node = LedgerNode(
        FEDERATION,
        votes=None,
        blocks=BlockStore(folder / "blocks.sqlite"),
        tiles=TileStore(folder / "tiles", sync=False),
        unframe=_unframe_refused,
        clock=lambda: float(NOW_S),
    )
    for record in log().records:
        data, signature = unframe(record.value or b""), record.header(SIGNATURE_HEADER)
        node.add_block(data, signature or b"")
    for data in attestations():
        with suppress(InvalidMessageError, InvalidNoteError):
            node.hear(data)
    return node


def _unframe_refused(value: bytes) -> Any:
    try:
        return unframe(value)
    except FramingError as error:
        return error.reason


async def _nothing_comes() -> None:
    raise TimeoutError


def _serve(data: bytes) -> None:
    """Ask a node's HTTP server for a path and a query, as it gets them."""
    server = NodeServer(
        _node(), step=lambda call: call(), changed=_nothing_comes, describe=dict
    )
    path, _, query = data[:8_000].partition(b"?")
    target = "/" + quote_from_bytes(path, safe="/%.:@!$&'()*+,;=~-_")
    if query:
        target += "?" + quote_from_bytes(query, safe="/%.:@!$&'()*+,;=~-_?")

    async def answer(request: Request) -> None:
        _head_size(request)
        if request.path == "/attestations":
            await server._await_news(request)
        server._find_answer(request, b"")

    for method in ("GET", "POST"):
        try:
            request = make_mocked_request(method, target)
        except ValueError:  # aiohttp answers 400 before we are asked
            return
        _loop().run_until_complete(answer(request))


def _paths() -> list[bytes]:
    return [
        *(b"checkpoint", b"policy", b"evidence", b"status", b"finality", b"blocks/3"),
        *(b"blocks/" + b"ab" * 32, b"tile/0/000", b"tile/entries/000.p/7"),
        *(b"tile/0/x001/234.p/5", b"finality?era=0&height=3", b"finality/0"),
        b"attestations?after=0&wait=0",
    ]


def _witness(data: bytes) -> None:
    request = parse_request(data)
    judge(request, origin=LOG_KEY.name, log_key=LOG_KEY, stored_size=100)


def _proof_from_tiles(data: bytes) -> None:
    """Make a proof of the tiles that a server gives, as it pleases."""
    tiles = chunks(data, 256 * HASH_SIZE) or [b""]
    inclusion_proof(lambda level, index, _: tiles[(level + index) % len(tiles)], 7, 300)


def _verify_proofs(data: bytes) -> None:
    """Verify proofs of hashes, with numbers before them."""
    numbers = [int.from_bytes(part, "big") >> 1 for part in chunks(data[:32], 8)]
    index, _, end, size = (numbers + [0] * 4)[:4]
    first, second, *proof = (*chunks(data[32:]), b"", b"")
    for check in (
        lambda: verify_inclusion(
            proof, leaf_hash=first, leaf_index=index, tree_size=size, root=second
        ),
        lambda: verify_consistency(
            proof, old_size=end, old_root=first, new_size=size, new_root=second
        ),
    ):
        with suppress(InvalidProofError, ValueError):
            check()


def _hash_lists() -> list[bytes]:
    hashes = leaf_hashes()
    root = CompactRange().extend(hashes).root()
    old = CompactRange().extend(hashes[:100]).root()
    return [
        struct.pack(">4Q", 14, 0, 200, 600)
        + b"".join((hashes[7], root, *prove_inclusion(7, hashes))),
        struct.pack(">4Q", 0, 0, 200, 600)
        + b"".join((old, root, *prove_consistency(100, hashes))),
    ]


def _check_signature(data: bytes) -> None:
    verify_signature(data[:32], data[96:], data[32:96])
    verify_signature(data[: len(data) // 2], b"", data[len(data) // 2 :])


def _cosign(data: bytes) -> None:
    collector = CosignatureCollector(LOG_KEY, node_set().vkeys(), 3)
    collector.add(data)
    collector.add(data)


def _final(data: bytes) -> None:
    proof = FinalityProof.from_bytes(data)
    verify_finality(made.NODES, proof, made.BEGIN)


def _finality_proofs() -> list[bytes]:
    chain = made.make_chain(2)
    return [
        FinalityProof(
            chain[0], made.certify(chain[0]), chain[1], made.certify(chain[1])
        ).to_bytes()
    ]


def _votes() -> list[bytes]:
    chain = made.make_chain(2)
    begun = VoteState.begin(0, made.BEGIN)
    said = replace(
        begun,
        attested=(1, chain[1].id),
        high=made.certify(chain[0]),
        entered=(made.request(made.KEYS[0]),),
        last_attestation=made.attest(made.KEYS[0], chain[1]),
        last_request=made.request(made.KEYS[0]),
    )
    return [begun.to_bytes(), said.to_bytes()]


def _hashed(data: bytes) -> bytes:
    """Make right the SHA-256 at an end."""
    import hashlib

    body = data[:-32]
    return body + hashlib.sha256(body).digest()


def _vote_files() -> list[bytes]:
    path = _scratch() / "written"
    vote_log._write(path, bytes(32), bytes(32), None)
    written = [path.read_bytes()]
    vote_log._write(path, bytes(32), bytes(32), VoteState.from_bytes(_votes()[1]))
    return [*written, path.read_bytes()]


def _check_said(event: Any) -> None:
    """Verify whatever ledger nodes sign, in an event."""
    nodes = made.NODES
    checks: list[Callable[[], object]] = []
    match event:
        case e.BlockAttested():
            checks = [lambda: verify_attestation(nodes, event)]
        case e.EpochRequested():
            checks = [
                lambda: verify_epoch_request(nodes, event, made.BEGIN),
                lambda: verify_certificate(nodes, event.high, made.BEGIN),
            ]
        case e.NodeSetChanged():
            checks = [lambda: verify_node_set_change(nodes, event)]
        case e.EquivocationProven():
            key = made.make_key("sequencer").public_key
            checks = [lambda: verify_equivocation([nodes], nodes.chain_id, key, event)]
    for check in checks:
        with suppress(InvalidMessageError, InvalidNodeSetError):
            check()


def _said() -> list[bytes]:
    chain, fork = made.make_chain(3), made.make_chain(3, "fork")
    liar = made.KEYS[3]
    messages = (made.attest(liar, chain[1], 2), made.attest(liar, fork[1], 2))
    proven = prove_equivocation(FEDERATION, messages, made.KEYS[0].public_key)
    key = made.make_key("sequencer")
    heads = (
        sign_checkpoint(
            Checkpoint(LOG_KEY.name, 7, root * HASH_SIZE), key, LOG_KEY.name
        )
        for root in (b"a", b"b")
    )
    signed = sorted(
        codec.encode(
            e.CheckpointSigned(
                federation_id=FEDERATION, height=0, checkpoint=note.decode()
            )
        )
        for note in heads
    )
    forked = replace(proven, public_key=key.public_key, messages=tuple(signed))
    events = [
        messages[0],
        forked,
        made.request(liar, 4, made.certify(chain[1], 2)),
        proven,
    ]
    return [*map(codec.encode, events), *golden_events()["NodeSetChanged"]]


# Deciders and readers of the log


def _judge(data: bytes) -> None:
    """Let the sequencer judge an event, whoever signs it."""
    for role in ("OPERATOR", "ada", "mallory"):
        received = Received(
            topic=topics.CONTROL,
            partition=0,
            offset=10**6,
            key=FEDERATION.encode(),
            value=data,
            event=data,
            signature=sign_event(make_key(role), GENESIS, data),
        )
        for state in (AdmissionState(), admitted()):
            admission.decide(state, [received])
            admission.judge_again(state, state, received)


def _change(data: bytes) -> None:
    change = e.FederationChanged(
        federation_id=CONFIG.federation_id, number=1, configuration=data
    )
    find_change_problem(CONFIG, 0, change)
    apply_change(CONFIG, 0, change)


def _find_problem(event: Any) -> None:
    # What is not for the sequencer is not looked at.
    if isinstance(event, e.FederationConfigured):
        validation.find_configuration_problem(event)
        validation.find_principals_problem(event)
    elif isinstance(event, e.LedgerEvent):
        validation.find_problem(event)


def _replay(data: bytes) -> None:
    """Replay a block that a lying sequencer signed."""
    state = _replayed()
    signature = sign_event(SEQUENCER, GENESIS, data)
    for check in (
        lambda: open_block(state.log, data, signature),
        lambda: replay_block(state, data, signature, unframe=_unframe_refused),
    ):
        with suppress(LogError, DeciderError):
            check()


@cache
def _replayed() -> ReplayState:
    state = ReplayState()
    for record in log().records[:-1]:
        data, signature = unframe(record.value or b""), record.header(SIGNATURE_HEADER)
        state = replay_block(state, data, signature, unframe=_unframe_refused).state
    return state


def _blocks() -> list[bytes]:
    last = log().records[-1].value or b""
    return [unframe(last), unframe(log().records[0].value or b"")]


def change_block(data: bytes, random: Random) -> bytes:
    """Mutate a block, a leaf of it, or the event in a leaf."""
    try:
        block = codec.decode_as(e.BlockSequenced, data)
        at = random.randrange(len(block.leaves))
        leaf = codec.decode_as(e.Leaf, block.leaves[at])
        inner = codec.encode(replace(leaf, event=mutate_event(leaf.event, random)))
        changed = inner if random.random() < 0.5 else mutate_event(inner, random)
        several = (*block.leaves[:at], changed, *block.leaves[at + 1 :])
        if random.random() < 0.6:
            return codec.encode(replace(block, leaves=several))
    except (codec.CodecError, ValueError):
        pass
    return mutate_event(data, random)


def many_leaves(n: int) -> bytes:
    """Return a block of many leaves, of no more than decode at sizes that are timed."""
    (block,) = (codec.decode_as(e.BlockSequenced, x) for x in _blocks()[:1])
    several = replace(
        block, leaves=(bytes(30),) * (n // 32), traceparents=("",) * (n // 32)
    )
    return codec.encode(several)


_TOPICS: Final = (topics.LEDGER, topics.CHECKPOINTS, topics.ATTESTATIONS)


def _pack_records(records: Iterable[Record]) -> bytes:
    return b"".join(
        bytes([_TOPICS.index(record.topic)]) + encode_record(record)
        for record in records
    )


def _unpack_records(data: bytes) -> list[Record]:
    """Return as many records as there are whole ones."""
    found, at = [], 0
    with suppress(BundleError, IndexError, struct.error):
        while at < len(data):
            (length,) = struct.unpack_from(">I", data, at + 1)
            body = data[at + 5 : at + 5 + length]
            found.append(decode_record(_TOPICS[data[at]], body))
            at += 5 + length
    return found


def _audit(data: bytes) -> None:
    """Audit the records of three topics, as anybody could write them."""
    records = _unpack_records(data)
    run_audit(
        [x for x in records if x.topic == topics.LEDGER],
        federation_id=FEDERATION,
        unframe=unframe,
        fetch_blob=log().blobs.fetch,
        checkpoints=[x for x in records if x.topic == topics.CHECKPOINTS],
        attestations=[x for x in records if x.topic == topics.ATTESTATIONS],
        operator_key=make_key("OPERATOR").public_key,
        jobs=1,
    )


def _logs() -> list[bytes]:
    made_log = log()
    short = [*made_log.records[:3], *made_log.checkpoints[:3], *said_by_nodes()[:12]]
    marked = replace(short[1], headers=(*short[1].headers, ("x", b"\xff")))
    return [
        _pack_records(short),
        _pack_records([short[0], marked, *short[2:]]),
        _pack_records([*made_log.records, *made_log.checkpoints, *said_by_nodes()]),
    ]


def change_log(data: bytes, random: Random) -> bytes:
    """Mutate a record of a log, and have it signed by whoever may write it."""
    records = _unpack_records(data)
    if not records or random.random() < 0.1:
        return mutate(data, random)
    at = random.randrange(len(records))
    record = records[at]
    value = record.value or b""
    try:
        event = change_block(unframe(value), random)
        signer = SEQUENCER if at % 3 else make_key(random.choice(NODE_NAMES))
        headers = tuple(
            (
                name,
                sign_event(signer, GENESIS, event)
                if name == SIGNATURE_HEADER
                else content,
            )
            for name, content in record.headers
        )
        changed = replace(
            record, value=value[:5] + event[codec.HEADER_SIZE :], headers=headers
        )
    except FramingError:
        changed = replace(record, value=mutate(value, random))
    several = random.choice(((), (changed,), (changed,), (changed,), (record, changed)))
    with suppress(BundleError):
        return _pack_records([*records[:at], *several, *records[at + 1 :]])
    return data


def _read_bundle(path: Path) -> None:
    with Bundle(path) as bundle:
        for topic in _TOPICS:
            for record in bundle.records(topic):
                with suppress(FramingError):
                    bundle.unframe(record.value or b"")


@cache
def _bundles() -> tuple[bytes, ...]:
    path = _scratch() / "made.bundle"
    built, kept = log(), []
    for blobs in (False, True):
        with BundleWriter(path) as writer:
            for record in (*built.records[:2], *built.checkpoints[:2]):
                writer.keep(record)
                writer.unframe(unframe)(record.value or b"")
            if blobs:
                for digest, data in [*built.blobs.items()][:2]:
                    ref = e.BlobRef(uri="", sha256=digest, size_bytes=len(data))
                    writer.fetch(built.blobs.fetch)(ref, max_size_bytes=2**20)
            writer.write(FEDERATION, b"{}\n", policy=policy(), settled_offset=None)
        kept.append(path.read_bytes())
    return tuple(kept)


def _manifest() -> bytes:
    schemas = {b"\0\0\0\0\x01": codec.encode(log().leaves[0])[:10]}
    return Manifest(
        federation_id=FEDERATION, schemas=schemas, has_blobs=True, settled_offset=7
    ).to_bytes()


def _repair_tar(data: bytes) -> bytes:
    """Make the checksum of each member's header right, as far as sizes lead."""
    fixed, at = bytearray(data), 0
    while at + 512 <= len(fixed) and any(fixed[at : at + 512]):
        fixed[at + 148 : at + 156] = b" " * 8
        total = sum(fixed[at : at + 512])
        fixed[at + 148 : at + 156] = b"%06o\0 " % total
        digits = bytes(fixed[at + 124 : at + 136]).strip(b" \0")
        size = int(digits, 8) if digits and not digits.strip(b"01234567") else 0
        at += 512 + size + -size % 512
    return bytes(fixed)


def many_members(n: int) -> bytes:
    """Return a tar of as many empty blobs as fit."""
    import hashlib
    import io
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(n // 512):
            name = hashlib.sha256(number.to_bytes(8, "big")).hexdigest()
            tar.addfile(tarfile.TarInfo(f"blobs/{name}"))
    return file.getvalue()


@cache
def _states() -> tuple[bytes, ...]:
    audited = run_audit(
        log().records[:3],
        federation_id=FEDERATION,
        unframe=unframe,
        fetch_blob=None,
        checkpoints=log().checkpoints[:3],
        attestations=[],
        operator_key=None,
        jobs=1,
    )
    return (save_state(audited.state),)


def _verify_record(data: bytes) -> None:
    eras = ((node_set(), (-1, START)),)
    context = Context(
        federation_id=FEDERATION,
        genesis=GENESIS,
        sequencer_key=SEQUENCER.public_key,
        eras=eras,
    )
    for name in NODE_NAMES[:2]:
        with suppress(InvalidMessageError):
            verify_record(context, data, sign_event(make_key(name), GENESIS, data))
    sequencer = CheckpointContext(
        federation_id=FEDERATION,
        genesis=GENESIS,
        sequencer_key=SEQUENCER.public_key,
    )
    with suppress(InvalidSignatureError, InvalidNoteError, codec.CodecError):
        open_checkpoint(sequencer, data, sign_event(SEQUENCER, GENESIS, data))
    _check_blocks(admitted(), [(data, sign_event(SEQUENCER, GENESIS, data))])


# Privacy


@cache
def _statement() -> NormStatement:
    found = vectors("norm_proof/norm_proof.json")
    *rows, squares, masks = map(bytes.fromhex, found["commitments"])
    return NormStatement(
        context=bytes.fromhex(found["context"]),
        num_values=found["num_values"],
        row_length=found["row_length"],
        squared_bound=int(found["squared_bound"]),
        rows=tuple(rows),
        squares=squares,
        masks=masks,
    )


def _verify_norm(data: bytes) -> None:
    verify_norm_proofs([(_statement(), parse_proof(data))])


def _verify_statement(data: bytes) -> None:
    *rows, squares, masks = (b"", b"", *chunks(data, 48))
    statement = replace(
        _statement(), rows=tuple(rows[2:]), squares=squares, masks=masks
    )
    proof = parse_proof(bytes.fromhex(vectors("norm_proof/norm_proof.json")["proof"]))
    verify_norm_proofs([(statement, proof)])


SHAPE: Final = MpcShape(600, 512, 2)
_SECRET: Final = SealingSecretKey(bytes(range(32)))
_HYBRID: Final = SealingSecretKey(bytes(range(32)), is_hybrid=True)
_PLACE: Final = SealedPlace(
    genesis=GENESIS,
    federation_id=FEDERATION,
    round=7,
    agent_id="ada",
    party="cairn",
    statement_digest=bytes(32),
)


def _open_sealed(data: bytes) -> None:
    for key in (_SECRET, _HYBRID):
        with suppress(SealError):
            open_share(data, key, _PLACE)


def _sealed() -> list[bytes]:
    plain = b"folkmoot-share/v1\n" + bytes(64)
    return [seal_share(plain, key.public_key, _PLACE) for key in (_SECRET, _HYBRID)]


def _read_share(data: bytes) -> None:
    found = vectors("shares/shares.json")
    shape = ShareShape(found["num_values"], found["num_rows"])
    commitment = bytes.fromhex(found["good"][0]["commitment"])
    for promised in (None, commitment):
        with suppress(ShareRefusedError):
            parse_share(data, shape=shape, commitment=promised)


def _read_far(data: bytes) -> None:
    for count in (1, 2, 7, 100):
        with suppress(MalformedBitsError):
            parse_far(data, num_agents=count)


def many_links(n: int) -> bytes:
    """Return links of as many agents as fit, each an excuse."""
    excuse = dict.fromkeys(("projections", "blinding", "sum_projections"), b"")
    entries = tuple(
        e.ShareLink(agent_id=f"{number:08}", detail="", reason="x", **excuse)
        for number in range(n // 15)
    )
    return codec.encode(e.ShareLinks(entries=entries))


def _verify_party_sum(data: bytes) -> None:
    """Verify a party's part of the sum, and open it with those of the others."""
    party_sum = parse_partial(data, SHAPE)
    with suppress(WrongPartialError):
        party_vectors.verify_sum("cairn", party_sum)
    with suppress(WrongSumError):
        party_vectors.open_sums({"cairn": data})


def _verify_links(data: bytes) -> None:
    """Verify a party's links with those of the others."""
    if isinstance(parse_links(data).get("ann"), Link):
        with suppress(SharesDifferError):
            party_vectors.verify_links("ann", {"cairn": data})


# What comes from Kafka, as each process reads it


class _KnownSchemas:
    """A schema registry that knows ours, and whose answers are at hand."""

    unframe = staticmethod(unframe)
    unframe_trusted = staticmethod(unframe)


def _take_record(data: bytes) -> None:
    """Let every process that reads one record of a topic do so."""
    name = SIGNATURE_HEADER
    for topic in _TOPICS:
        for signer in (SEQUENCER, make_key("DECIDER")):
            with suppress(FramingError):
                signature = sign_event(signer, GENESIS, unframe(data))
                _read_record(Record(
                    topic=topic, partition=0, offset=7, key=FEDERATION.encode(),
                    value=data, headers=((name, signature),),
                ))  # fmt: skip
        for headers in ((), ((name, data), (name, b""))):
            _read_record(Record(
                topic=topic, partition=0, offset=7, key=FEDERATION.encode(),
                value=data, headers=headers,
            ))  # fmt: skip


def _read_record(record: Record) -> None:
    intake, timer, agent = _readers()
    _loop().run_until_complete(intake.take(record))
    if record.topic == topics.ATTESTATIONS:
        timer._collect(iter([record]))
    agent._believe(record)
    if record.topic == topics.LEDGER:
        for state in (LogState(), _replayed().log):
            with suppress(LogError, FramingError), PassingOverForeign(record.offset):
                read_log_record(state, record, _KnownSchemas())  # type: ignore[arg-type]


@cache
def _readers() -> tuple[KafkaIntake, Timer, Agent]:
    registry: Any = _KnownSchemas()
    timer, agent = Timer.__new__(Timer), Agent.__new__(Agent)
    timer._federation_id, timer._registry = FEDERATION, registry
    timer._admission, timer._rounds = admitted(), DECIDER.initial
    timer._open_size = timer._nodes = timer._cosigned = None
    timer._num_passed_over = 0
    config: Any = log().leaves[0]
    agent._registry, agent._genesis = registry, Genesis(config, GENESIS)
    agent._terms = SimpleNamespace(config=config)  # type: ignore[assignment]
    return KafkaIntake(registry, NodeLoop(_node())), timer, agent


def _hear(data: bytes) -> None:
    """Hear a heartbeat, signed by whom it names or not."""
    reader = HeartbeatReader.__new__(HeartbeatReader)
    reader._registry, reader._heard = _KnownSchemas(), {}  # type: ignore[assignment]
    headers: list[tuple[tuple[str, bytes], ...]] = [(), ((SIGNATURE_HEADER, data),)]
    with suppress(FramingError):
        signature = sign_event(make_key("ada"), NO_GENESIS, unframe(data))
        headers.append(((SIGNATURE_HEADER, signature),))
    reader._learn(
        Record(topics.HEARTBEATS, 0, 7, data, data, header) for header in headers
    )


def _heartbeat() -> bytes:
    return frame(
        e.Heartbeat(
            federation_id=FEDERATION,
            kind="agent",
            name="ada",
            public_key=make_key("ada").public_key,
            version="0.1.0",
            started_at_ms=1,
            doing="waiting for a round",
            doing_since_ms=2,
            said_at_ms=3,
            next_within_ms=10_000,
        )
    )


def _framed() -> list[bytes]:
    records = (*log().records[:2], *log().checkpoints[:1], *said_by_nodes()[:9])
    return [record.value or b"" for record in records]


def change_framed(data: bytes, random: Random) -> bytes:
    """Mutate an event within its framing."""
    try:
        return data[:5] + change_block(unframe(data), random)[codec.HEADER_SIZE :]
    except FramingError:
        return mutate(data, random)


def _greet(data: bytes) -> None:
    """Listen to what a party says before it is linked."""

    async def listen() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        desk = party_link._Connecting.__new__(party_link._Connecting)
        desk._greeting, desk._ready = party_link.LINK_MAGIC + bytes(32), set()
        desk._plan = SimpleNamespace(connect_timeout_s=60.0)  # type: ignore[assignment]
        writer: Any = SimpleNamespace(write=lambda _: None)
        desk._connections = {1: party_link._Connection(reader, writer)}
        with party_link._naming(1, 60.0):
            await desk._greet(reader, writer, 1)
        await desk._wait_until_ready(1)

    _loop().run_until_complete(listen())


def _check_receipt(path: Path) -> None:
    policy_path = _scratch() / "policy"
    policy_path.write_bytes(policy())
    with redirect_stdout(io.StringIO()):
        for as_json in (False, True):
            check_receipt(path, policy_path, as_json=as_json)


def _leaf_receipts() -> list[bytes]:
    """Return receipts of the log's leaves."""
    entries = [codec.encode(item.leaf) for item in log().opened]
    hashes = [*map(leaf_hash, entries)]
    root = CompactRange().extend(hashes).root()
    note = sign_checkpoint(Checkpoint(LOG_KEY.name, len(hashes), root), SEQUENCER)
    for name in NODE_NAMES:
        note = cosign_checkpoint(note, name, make_key(name), NOW_S)
    return [
        make_receipt(entries[at], at, prove_inclusion(at, hashes), note)
        for at in (0, 3, len(hashes) - 1)
    ]


# Text


def _said_lines() -> list[bytes]:
    from protocol.modes.mpc.party_memory import Compared, Linked, Summed

    digest = bytes(32)
    about: dict[str, Any] = {"federation_id": FEDERATION, "base_model": digest}
    things = (
        Linked(**about, updates=(("ana", digest, digest),)),
        Compared(**about, updates=(digest,), far_threshold=7, attempt=1),
        Summed(**about, round=1, cause=digest, updates=(("ana", digest, 3),)),
    )
    return [party_log._write_line("", said)[0] for said in things]


def _party_log(data: bytes) -> PartyLog:
    folder = _scratch() / "party"
    folder.mkdir(exist_ok=True)
    (folder / party_log.SAID_FILE).write_bytes(data)
    return PartyLog(folder)


def _proposal() -> bytes:
    from cli.node import Proposal

    path = _scratch() / "proposal"
    nodes = made.NODES.nodes
    signature = e.NodeSignature(public_key=nodes[0].public_key, signature=bytes(64))
    Proposal(
        federation_id=FEDERATION,
        chain_id=bytes(32),
        era=1,
        nodes=nodes,
        approvals=(signature,),
    ).store(path)
    return path.read_bytes()


def _json_text(data: bytes) -> None:
    validation._is_json_object(data.decode("utf-8", "replace"))


def _fresh(parse: Parse) -> Parse:
    """Return a parser that remembers nothing of the last time."""

    def parse_again(data: bytes) -> None:
        ledger_note._parse_again.cache_clear()
        ledger_checkpoint._parse_again.cache_clear()
        parse(data)

    return parse_again


def many_signatures(n: int) -> bytes:
    """Return a note with as many signature lines as fit."""
    text, _, lines = checkpoint().partition(b"\n\n")
    line = lines.splitlines(keepends=True)[0]
    return text + b"\n\n" + line * (n // len(line))


def many_keys(n: int, *, only_ids: bool = False) -> bytes:
    """Return a policy of as many witnesses as fit, in one group."""
    names = [f"w{number}" for number in range(n // 130)]
    lines = [f"log {LOG_KEY.to_vkey()}"]
    for name in names:
        key = ledger_note.VerifierKey(
            name, ledger_note.KeyType.COSIGNATURE_V1, make_key(name).public_key
        )
        lines.append(f"witness {name} {key.to_vkey()}")
    lines += [f"group g {len(names) or 1} {' '.join(names)}", "quorum g"]
    return ("\n".join(lines) + "\n").encode()


def many_fields(name: str, n: int) -> bytes:
    """Return an event whose every array has as many items as fit."""
    event: Any = codec.decode(golden_events()[name][-1])
    return codec.encode(_longer(event, n))


def _longer(value: Any, n: int) -> Any:
    if is_dataclass(value):
        parts = {part.name: getattr(value, part.name) for part in fields(value)}
        longer = {name: _longer(part, n) for name, part in parts.items()}
        return replace(value, **longer)  # type: ignore[type-var]
    if isinstance(value, tuple) and value:
        size = 8 + len(repr(value[0])) // 4
        return value[:1] * (n // size)
    return value


def configuration(n: int) -> bytes:
    """Return a configuration with a text of this size in it."""
    (data,) = golden_events()["FederationConfigured"][-1:]
    event = codec.decode_as(e.FederationConfigured, data)
    task = replace(event.task, module_config='"\\' * (min(n, 60_000) // 2))
    return codec.encode(replace(event, task=task))


_NOTE_ERRORS: Final = (InvalidNoteError,)

TARGETS: Final[tuple[Target, ...]] = (
    # schemas
    Target(
        name="event",
        parse=codec.decode,
        errors=(codec.CodecError,),
        seeds=lambda: [
            data for several in golden_events().values() for data in several
        ],
        shapes={
            "leaves": many_leaves,
            "links": many_links,
            "text": configuration,
            "signatures": lambda n: many_fields("EpochRequested", n),
            "agents": lambda n: many_fields("RoundSealed", n),
        },
        change=mutate_event,
        max_bytes=2**21,
        max_memory_mb=512,
    ),
    # ledger
    Target(
        name="note",
        parse=_fresh(parse_note),
        errors=_NOTE_ERRORS,
        seeds=lambda: [checkpoint()],
        shapes={"signatures": many_signatures},
        max_bytes=10**6,
    ),
    Target(
        name="checkpoint",
        parse=_fresh(as_text(parse_checkpoint)),
        errors=_NOTE_ERRORS,
        seeds=lambda: [checkpoint().partition(b"\n\n")[0] + b"\n"],
        max_bytes=10**6,
    ),
    Target(
        name="checkpoint-by-policy",
        parse=_fresh(lambda data: parse_policy(policy()).verify(data)),
        errors=_NOTE_ERRORS,
        seeds=lambda: [checkpoint()],
        shapes={"signatures": many_signatures},
        max_bytes=10**6,
    ),
    Target(
        name="cosignatures",
        parse=_fresh(_cosign),
        errors=_NOTE_ERRORS,
        seeds=lambda: [checkpoint()],
        shapes={"signatures": many_signatures},
        max_bytes=10**6,
    ),
    Target(
        name="origin",
        parse=as_text(parse_origin),
        errors=(InvalidCheckpointError,),
        seeds=lambda: [LOG_KEY.name.encode()],
    ),
    Target(
        name="vkey",
        parse=as_text(parse_vkey),
        errors=(InvalidKeyError,),
        seeds=lambda: [LOG_KEY.to_vkey().encode()],
    ),
    Target(
        name="policy",
        parse=parse_policy,
        errors=(InvalidPolicyError,),
        seeds=lambda: [policy()],
        shapes={"keys": many_keys},
        max_bytes=10**6,
    ),
    Target(
        name="receipt",
        parse=_fresh(lambda data: verify_receipt(data, parse_policy(policy()))),
        errors=(InvalidProofFileError, InvalidNoteError, InvalidProofError),
        seeds=receipts,
        max_bytes=10**6,
    ),
    Target(
        name="witness-request",
        parse=_fresh(_witness),
        errors=(InvalidRequestError,),
        seeds=lambda: [
            format_request(100, prove_consistency(100, leaf_hashes()), checkpoint())
        ],
        max_bytes=10**6,
    ),
    Target(
        name="tile-path",
        parse=as_text(parse_path),
        errors=(InvalidTileError,),
        seeds=lambda: [b"tile/0/x001/067.p/5", b"tile/entries/000", b"tile/7/000"],
    ),
    Target(
        name="entries",
        parse=lambda data: parse_entries(data, 3),
        errors=(InvalidTileError,),
        seeds=lambda: [encode_entries(leaves()[:3])],
        max_bytes=2**24,
    ),
    Target(
        name="tile",
        parse=lambda data: parse_tile(data, 3),
        errors=(InvalidTileError,),
        seeds=lambda: [b"".join(leaf_hashes()[:3]), b"".join(leaf_hashes()[:256])],
    ),
    Target(
        name="proof-from-tiles",
        parse=_proof_from_tiles,
        errors=(InvalidTileError,),
        seeds=lambda: [b"".join(leaf_hashes()[:256]), b"".join(leaf_hashes()[:44])],
    ),
    Target(
        name="proofs",
        parse=_verify_proofs,
        errors=(),
        seeds=_hash_lists,
    ),
    Target(
        name="compact-range",
        parse=CompactRange.from_bytes,
        errors=(ValueError,),
        seeds=lambda: [CompactRange().extend(leaf_hashes()).to_bytes()],
    ),
    Target(
        name="signature",
        parse=_check_signature,
        errors=(InvalidSignatureError,),
        seeds=lambda: [SEQUENCER.public_key + SEQUENCER.sign(b"text") + b"text"],
        max_bytes=2**21,
    ),
    Target(
        name="finality-proof",
        parse=_final,
        errors=(InvalidMessageError,),
        seeds=_finality_proofs,
    ),
    Target(
        name="votes",
        parse=VoteState.from_bytes,
        errors=(VotesLostError,),
        seeds=_votes,
        repair=_hashed,
    ),
    Target(
        name="node-message",
        parse=as_event(_check_said),
        errors=(),
        seeds=_said,
        change=mutate_event,
    ),
    # protocol
    Target(
        name="model",
        parse=model_from_blob,
        errors=(MalformedBlobError,),
        seeds=lambda: [model_blob()],
        shapes={
            "quotes": lambda n: header_blob(b"{" + b'"\\' * (n // 2)),
            "tensors": many_tensors,
            "depth": lambda n: header_blob(b'{"a":' + b"[" * n),
            "digits": lambda n: header_blob(b'{"a":' + b"9" * n + b"}"),
            "escapes": lambda n: header_blob(b'{"' + b"\\u0041" * (n // 6) + b'":1}'),
            "classes": many_classes,
            "ties": many_ties,
        },
        max_bytes=2**20,
    ),
    Target(
        name="update",
        parse=lambda data: parse_update(data, num_parameters=6),
        errors=(UpdateRefusedError,),
        seeds=lambda: [blob_of([1, -2, 3, 4, 5, 6])],
        shapes={"quotes": lambda n: header_blob(b"{" + b'"\\' * (n // 2))},
        max_bytes=2**22,
    ),
    Target(
        name="sum",
        parse=lambda data: sum_from_blob(data, num_parameters=6),
        errors=(MalformedBlobError,),
        seeds=lambda: [blob_of([1, -2, 3, 4, 5, 6], "sum")],
        max_bytes=2**22,
    ),
    Target(
        name="strategy-state",
        parse=lambda data: state_from_blob(STRATEGIES["FEDADAM"], data, 6),
        errors=(MalformedBlobError,),
        seeds=lambda: [
            state_to_blob(STRATEGIES["FEDADAM"], (np.arange(-3.0, 3.0), np.arange(6.0)))
        ],
        max_bytes=2**22,
    ),
    Target(
        name="configuration-json",
        parse=_json_text,
        errors=(),
        seeds=lambda: [b'{"a": [1, 2.5, {"b": null}], "c": "\\u00e4"}'],
        shapes={"quotes": lambda n: b"{" + b'"\\' * (n // 2 - 1)},
        max_bytes=validation.MAX_CONFIG_SIZE_BYTES,
    ),
    Target(
        name="event-rules",
        parse=as_event(_find_problem),
        errors=(),
        seeds=lambda: [*events_of_log(), *events_of_parties(), *all_events()],
        shapes={"text": configuration},
        change=mutate_event,
    ),
    Target(
        name="changed-configuration",
        parse=_change,
        errors=(),
        seeds=lambda: [
            codec.encode(replace(CONFIG, cohort_size=5)),
            *golden_events()["FederationConfigured"],
        ],
        shapes={"text": configuration},
        change=mutate_event,
    ),
    Target(
        name="admission",
        parse=_judge,
        errors=(),
        seeds=lambda: [*events_of_log(), *all_events()],
        shapes={"text": configuration},
        change=mutate_event,
    ),
    Target(
        name="block",
        parse=_replay,
        errors=(),
        seeds=_blocks,
        shapes={"leaves": many_leaves},
        change=change_block,
        max_bytes=2**21,
        max_memory_mb=512,
    ),
    Target(
        name="norm-proof",
        parse=_verify_norm,
        errors=(RoundError,),
        seeds=lambda: [
            bytes.fromhex(vectors("norm_proof/norm_proof.json")["proof"]),
            *golden_events()["NormProof"],
        ],
        change=mutate_event,
    ),
    Target(
        name="commitments",
        parse=_verify_statement,
        errors=(ValueError,),
        seeds=lambda: [b"".join(_statement().commitments)],
    ),
    Target(
        name="links",
        parse=parse_links,
        errors=(RoundError,),
        seeds=lambda: [
            bytes.fromhex(party["blob"])
            for party in vectors("parties/links.json")["parties"].values()
        ],
        shapes={"excuses": many_links},
        change=mutate_event,
        max_bytes=2**19,
        max_memory_mb=256,
    ),
    Target(
        name="partial-sum",
        parse=lambda data: parse_partial(data, SHAPE),
        errors=(RoundError,),
        seeds=lambda: [
            bytes.fromhex(party["blob"])
            for party in vectors("parties/partial.json")["parties"].values()
        ],
        change=mutate_event,
        max_bytes=2**19,
    ),
    Target(
        name="links-of-round",
        parse=_verify_links,
        errors=(RoundError,),
        seeds=lambda: [
            bytes.fromhex(vectors("parties/links.json")["parties"]["cairn"]["blob"])
        ],
        change=mutate_event,
        max_bytes=2**19,
        max_memory_mb=256,
    ),
    Target(
        name="sum-of-round",
        parse=_verify_party_sum,
        errors=(RoundError,),
        seeds=lambda: [
            bytes.fromhex(vectors("parties/partial.json")["parties"]["cairn"]["blob"])
        ],
        change=mutate_event,
        max_bytes=2**19,
    ),
    Target(
        name="scalars",
        parse=parse_scalars,
        errors=(InvalidEncodingError,),
        seeds=lambda: [bytes(32), (2**254).to_bytes(32, "little") * 2],
    ),
    Target(
        name="points",
        parse=lambda data: parse_points(chunks(data, 48)),
        errors=(InvalidEncodingError,),
        seeds=lambda: [
            b"".join(_statement().commitments),
            *(
                bytes.fromhex(bad["point"])
                for bad in vectors("norm_proof/commitments.json")["bad_points"]
            ),
        ],
    ),
    Target(
        name="point-by-another-library",
        parse=lambda data: find_row_problem([data], [3], [1, -2], 5),
        errors=(),
        seeds=lambda: [
            _statement().commitments[0],
            *(
                bytes.fromhex(bad["point"])
                for bad in vectors("norm_proof/commitments.json")["bad_points"]
            ),
        ],
        max_seconds=5.0,  # it is slow, by a constant
    ),
    Target(
        name="sealed-share",
        parse=_open_sealed,
        errors=(),
        seeds=_sealed,
    ),
    Target(
        name="share",
        parse=_read_share,
        errors=(),
        seeds=lambda: [
            bytes.fromhex(share["plaintext"])
            for share in vectors("shares/shares.json")["good"]
        ],
    ),
    Target(
        name="sealing-key",
        parse=SealingKey,
        errors=(InvalidSealingKeyError,),
        seeds=lambda: [key.public_key.public_key for key in (_SECRET, _HYBRID)],
    ),
    Target(
        name="far-pairs",
        parse=_read_far,
        errors=(),
        seeds=lambda: [b"", b"\0", bytes(3), bytes(619)],
    ),
    # adapters
    Target(
        name="record-batches",
        parse=_read_batches,
        errors=(),
        seeds=batches,
        shapes={
            "records": lambda n: many_records(Codec.NONE, n // 8).encode(),
            "packed records": lambda n: many_records(Codec.ZSTD, n // 8).encode(),
            "batches": many_batches,
            "headers": many_headers,
        },
        repair=_repair_batches,
        max_bytes=2**20,
        max_memory_mb=256,
        max_seconds=3.0,
    ),
    Target(
        name="framing",
        parse=_unframe,
        errors=(FramingError,),
        seeds=lambda: [
            b"\0\0\0\0\x01" + golden_events()["UpdateSubmitted"][0][10:],
            b"\0\0\0\0\x07",
        ],
        max_bytes=2**21,
    ),
    Target(
        name="registered-schema",
        parse=_unframe_by_schema,
        errors=(FramingError,),
        seeds=lambda: [
            codec.schema_text(name).encode()
            for name in ("UpdateSubmitted", "FederationConfigured")
        ],
    ),
    Target(
        name="feed",
        parse=_read_page,
        errors=(ValueError,),
        seeds=lambda: [_feed_page()],
        shapes={"events": lambda n: _feed_page(n // 48)},
        max_bytes=2**22,
    ),
    Target(
        name="peer-answer",
        parse=_read_peer,
        errors=(PeerError,),
        seeds=lambda: [_feed_page().partition(b"\n\n")[2], b"", bytes(64) + b"block"],
        max_bytes=2**16,
    ),
    Target(
        name="traceparent",
        parse=lambda data: telemetry._context(telemetry.clean(data)),
        errors=(),
        seeds=lambda: [b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"],
    ),
    Target(
        name="party-frames",
        parse=_receive_frame,
        errors=(LinkError,),
        seeds=_frames,
    ),
    Target(
        name="party-greeting",
        parse=_greet,
        errors=(LinkError,),
        seeds=lambda: [party_link.LINK_MAGIC + bytes(32) + party_link.READY],
    ),
    Target(
        name="party-log",
        parse=lambda data: _party_log(data).close(),
        errors=(PartyLogError,),
        seeds=_said_lines,
    ),
    Target(
        name="vote-log",
        parse=in_file(vote_log._read),
        errors=(VoteLogError,),
        seeds=_vote_files,
        repair=_hashed,
    ),
    Target(
        name="key-file",
        parse=in_file(load_seed),
        errors=(KeyFileError,),
        seeds=lambda: [bytes(32).hex().encode() + b"\n"],
    ),
    Target(
        name="import-path",
        parse=as_text(lambda text: load_class(text, ["producers.examples.none"])),
        errors=(ImportRefusedError,),
        seeds=lambda: [b"producers.examples.digits:Digits", b"a.b:C"],
    ),
    # consumers
    Target(
        name="bundle-record",
        parse=lambda data: decode_record(topics.LEDGER, data),
        errors=(BundleError,),
        seeds=lambda: [encode_record(log().records[0])[4:]],
        max_bytes=2**23,
    ),
    Target(
        name="manifest",
        parse=Manifest.from_bytes,
        errors=(BundleError,),
        seeds=lambda: [_manifest()],
        max_bytes=2**20,
    ),
    Target(
        name="bundle",
        parse=in_file(_read_bundle),
        errors=(BundleError,),
        seeds=lambda: [*_bundles()],
        shapes={"members": many_members},
        repair=_repair_tar,
        max_bytes=2**20,
    ),
    Target(
        name="audit-state",
        parse=in_file(lambda path: _load_state(path, FEDERATION)),
        errors=(CannotAuditError,),
        seeds=lambda: [*_states()],
    ),
    Target(
        name="audited-log",
        parse=_audit,
        errors=(),
        seeds=_logs,
        change=change_log,
        max_bytes=2**18,
        max_seconds=5.0,
        max_memory_mb=128,
    ),
    Target(
        name="attestation-record",
        parse=_verify_record,
        errors=(),
        seeds=lambda: [
            *attestations(),
            unframe(log().checkpoints[0].value or b""),
            *_blocks(),
        ],
        change=change_block,
    ),
    Target(
        name="kafka-record",
        parse=_take_record,
        errors=(),
        seeds=_framed,
        change=change_framed,
        max_bytes=2**14,
        max_seconds=3.0,
    ),
    Target(
        name="heartbeat",
        parse=_hear,
        errors=(),
        seeds=lambda: [_heartbeat()],
        change=change_framed,
        max_bytes=2**14,
    ),
    Target(
        name="node-hears",
        parse=lambda data: _node().hear(data),
        errors=(codec.CodecError, InvalidMessageError, InvalidNoteError),
        seeds=attestations,
        change=mutate_event,
    ),
    Target(
        name="node-block",
        parse=lambda data: _node().add_block(
            data, sign_event(SEQUENCER, GENESIS, data)
        ),
        errors=(),
        seeds=_blocks,
        change=change_block,
    ),
    Target(
        name="node-witness",
        parse=lambda data: _node().add_checkpoint(data),
        errors=(),
        seeds=lambda: [format_request(0, (), checkpoint())],
        max_bytes=10**6,
    ),
    Target(
        name="node-http",
        parse=_serve,
        errors=(),
        seeds=_paths,
        max_bytes=2**13,  # aiohttp's line, as it is
    ),
    # producers and the command line
    Target(
        name="proposal",
        parse=in_file(load_proposal),
        errors=(StackError,),
        seeds=lambda: [_proposal()],
        max_bytes=2**17,
    ),
    Target(
        name="node-text",
        parse=as_text(lambda text: parse_ledger_nodes([text])),
        errors=(StackError,),
        seeds=lambda: [b"node0=" + b"ab" * 32 + b"@http://node0"],
    ),
    Target(
        name="party-text",
        parse=as_text(lambda text: parse_parties([text])),
        errors=(StackError,),
        seeds=lambda: [
            b"cairn="
            + b"ab" * 32
            + b":"
            + _SECRET.public_key.public_key.hex().encode()
            + b"@host:9000"
        ],
    ),
    Target(
        name="reward-rule",
        parse=as_text(lambda text: parse_reward_rule([text])),
        errors=(StackError,),
        seeds=lambda: [b"accepted=7", b"none=0"],
    ),
    Target(
        name="receipt-command",
        parse=_fresh(in_file(_check_receipt)),
        errors=(StackError,),
        seeds=_leaf_receipts,
        max_bytes=10**6,
    ),
    Target(
        name="audit-policy",
        parse=in_file(_load_policy),
        errors=(CannotAuditError,),
        seeds=lambda: [policy()],
        max_bytes=10**6,
    ),
    Target(
        name="key-text",
        parse=as_text(_parse_key),
        errors=(CannotAuditError,),
        seeds=lambda: [b"ab" * 32],
    ),
)

BY_NAME: Final = {target.name: target for target in TARGETS}
