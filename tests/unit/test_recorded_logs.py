"""Logs that were recorded once must be sound for ever.

A fact's bytes hold every word of its detail, so a sentence that is reworded in a
decider makes every older log look forged. The same goes for what ledger nodes sign: a
header that is computed otherwise makes every older attestation one of another block.
When this test fails, the change is a new protocol version, not a new recording.
``python -m tests.unit.test_recorded_logs VERSION`` adds a recording of every kind; it
replaces none.
"""

import hashlib
import json
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.block_store import BlockStore
from adapters.kafka import Record, make_headers
from adapters.schema_registry import FramingError
from adapters.tile_store import TileStore
from consumers.audit.auditor import run_audit
from consumers.node.ledger_node import LedgerNode
from ledger.finality import FinalityProof
from ledger.note import InvalidNoteError
from ledger.votes import VoteState
from protocol.envelope import SIGNATURE_HEADER
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict, LogBuilder, build_log, frame, make_key
from tests.builders import unframe as builders_unframe
from tests.mpc_builder import build_mpc_log, lie_once, start_mpc_log
from tests.paths import VECTORS
from tests.unit.consumers.node.test_ledger_node import NAMES, NOW_S, Bus

FOLDER = VECTORS / "log"
SUMS = FOLDER / "SHA256SUMS"
"""As `sha256sum --check` reads it. It only grows."""
PREFIX_SIZE = 5


def record_to_json(record):
    return {
        "offset": record.offset,
        "key": record.key.hex(),
        "value": record.value.hex(),
        "headers": [[name, value.hex()] for name, value in record.headers],
    }


def record_from_json(topic, plain):
    return Record(
        topic=topic,
        partition=0,
        offset=plain["offset"],
        key=bytes.fromhex(plain["key"]),
        value=bytes.fromhex(plain["value"]),
        headers=tuple((name, bytes.fromhex(v)) for name, v in plain["headers"]),
    )


def run_nodes(log, directory):
    """Let ledger nodes live through a log: a stall, another epoch, another node set."""
    bus = Bus(directory, log, (*NAMES, "node4"))
    thirds = len(log.records) // 3
    for start in range(0, len(log.records), thirds):
        part = slice(start, start + thirds)
        bus.cut = {"node2", "node3"} if start == thirds else set()
        bus.show(records=log.records[part], checkpoints=log.checkpoints[part])
        bus.settle()
        bus.wait(5)
        bus.cut = set()
        for member in bus.members.values():
            bus.pull(member)
        bus.wait(10)
    assert {member.node.nodes.era for member in bus.members.values()} == {1}
    assert bus.sent(e.EpochRequested)
    return bus


def to_record(offset, genesis, name, event):
    return Record(
        topic=topics.ATTESTATIONS,
        partition=0,
        offset=offset,
        key=event.federation_id.encode(),
        value=frame(event),
        headers=tuple(
            make_headers(event, codec.encode(event), make_key(name), genesis, "")
        ),
    )


def build_plain():
    return build_log(ledger_nodes=())


def build_nodes():
    log = build_log()
    log.finalise()  # by the new nodes
    log.run_round()
    log.request_finality()
    return log


def build_secret():
    return build_mpc_log(num_parameters=SMALL)


def build_compared():
    """One agent is far from the others, and a party gives a wrong part first."""
    agents = ("ada", "bea", "cleo", "dora")
    far = 2 * 10**9 * SMALL // 300  # of 300 parameters 2 * 10**9
    log = start_mpc_log(*agents, cohort_size=4, far_threshold=far, num_parameters=SMALL)
    log.speak = lie_once("p1")
    log.request_round()
    for agent in agents[:-1]:
        log.commit(agent)
    log.commit("dora", values=-3 * log.make_values("dora"))
    log.settle()
    log.export()
    kinds = {type(event) for event in log.leaves}
    assert {e.ComparisonStarted, e.PartialRejected, e.AggregatePublished} <= kinds
    reasons = {getattr(event, "reason", "") for event in log.leaves}
    assert Reason.FAR_FROM_OTHERS in reasons
    return log


def build_changed():
    """The operator changes the federation, and so do its rewards and its cohorts."""
    log = LogBuilder(ledger_nodes=())
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.run_round()
    config = log.leaves[0]
    changed = replace(
        config,
        cohort_size=config.min_cohort,
        round_duration_ms=config.round_duration_ms + 1,
        reward_rule=e.RewardRule(per_contribution=7),
    )
    change = e.FederationChanged(
        federation_id=log.federation_id, number=1, configuration=codec.encode(changed)
    )
    log.say(change, make_key("OPERATOR"))
    log.settle()
    log.run_round()
    assert log.leaves.count(change) == 1
    started = [event for event in log.leaves if isinstance(event, e.RoundStarted)]
    durations = {config.round_duration_ms, changed.round_duration_ms}
    stamps = {item.sequenced.leaf_hash: item.sequenced for item in log.opened}
    found = {x.deadline_ms - stamps[x.cause].sequenced_at_ms for x in started}
    assert found == durations
    return log


SMALL = 24
"""Parameters of a model whose proofs a recording holds."""
KINDS = {
    "plain": build_plain,
    "nodes": build_nodes,
    "mpc": build_secret,
    "compared": build_compared,
    "changed": build_changed,
}


def write(version):
    """Record a log of every kind, as this version writes it."""
    for kind, build in KINDS.items():
        write_one(f"{version}-{kind}", build())


def write_one(name, log):
    path = FOLDER / f"{name}.json"
    assert not path.exists(), "a recording is never replaced"
    nodes = None
    if log.ledger_nodes:
        with tempfile.TemporaryDirectory() as directory:
            nodes = record_nodes(run_nodes(log, Path(directory)))
    # Every framing that a record, or a refusal's quotation in one, may need.
    schemas = {}
    for schema_id in range(1, 2 * len(codec.CLASSES)):
        prefix = b"\0" + schema_id.to_bytes(4, "big")
        try:
            header = builders_unframe(prefix + b"")[: codec.HEADER_SIZE]
        except FramingError:
            continue
        schemas[prefix.hex()] = header.hex()
    plain = {
        "federation_id": log.federation_id,
        "schemas": schemas,
        "ledger": [record_to_json(record) for record in log.records],
        "checkpoints": [record_to_json(record) for record in log.checkpoints],
        "blobs": {digest.hex(): blob.hex() for digest, blob in log.blobs.items()},
        "size": log.state.log.chain.size,
        "tree_root": log.state.log.chain.tree.root().hex(),
        "balances": audit_records(
            log.records,
            log.checkpoints,
            federation_id=log.federation_id,
            unframe=builders_unframe,
            fetch_blob=log.blobs.fetch,
        ).balances,
    }
    if nodes is not None:
        plain["nodes"] = nodes
    FOLDER.mkdir(exist_ok=True)
    path.write_text(json.dumps(plain, indent=1) + "\n")
    with SUMS.open("a") as sums:
        sums.write(f"{hash_file(path)}  {path.name}\n")
    print(f"{path.name}: {len(log.records)} blocks, {path.stat().st_size} bytes")


def record_nodes(bus):
    said = [(n, x) for n, x in bus.said if isinstance(x, e.Attestation)]
    node = bus["node0"].node
    return {
        "attestations": [
            record_to_json(to_record(i, bus.log.genesis, *item))
            for i, item in enumerate(said)
        ],
        "proofs": [node.blocks.last_proof(era).hex() for era in (0, 1)],
        "votes": {
            name: member.votes.votes.to_bytes().hex()
            for name, member in bus.members.items()
        },
        "final_id": node.tree.final.header.id.hex(),
        "final_height": node.tree.final_height,
    }


def hash_file(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def audit_records(ledger, checkpoints, attestations=None, **options):
    return run_audit(
        ledger, checkpoints=checkpoints, attestations=attestations, **options
    ).report


class Recording:
    """A recording, and what it takes to read it."""

    def __init__(self, path):
        plain = json.loads(path.read_text())
        self.federation_id = plain["federation_id"]
        self.size, self.tree_root = plain["size"], plain["tree_root"]
        self.balances = plain.get("balances")
        self.nodes = plain.get("nodes")
        self._headers = {
            bytes.fromhex(p): bytes.fromhex(h) for p, h in plain["schemas"].items()
        }
        self.ledger = [record_from_json(topics.LEDGER, r) for r in plain["ledger"]]
        self.checkpoints = [
            record_from_json(topics.CHECKPOINTS, r) for r in plain["checkpoints"]
        ]
        self.attestations = self.nodes and [
            record_from_json(topics.ATTESTATIONS, r) for r in self.nodes["attestations"]
        ]
        self.blobs = BlobDict()
        for digest, blob in plain["blobs"].items():
            self.blobs[bytes.fromhex(digest)] = bytes.fromhex(blob)

    def unframe(self, value):
        if value[:PREFIX_SIZE] not in self._headers:
            raise FramingError(Reason.NOT_FRAMED, "not in the recording")
        return self._headers[value[:PREFIX_SIZE]] + value[PREFIX_SIZE:]

    def event(self, record):
        return codec.decode(self.unframe(record.value))

    def observe(self, directory):
        """Return an observer that knows the blocks, and nothing that nodes said."""

        def unframe_refused(value):
            try:
                return self.unframe(value)
            except FramingError as error:
                return error.reason

        observer = LedgerNode(
            self.federation_id,
            votes=None,
            blocks=BlockStore(directory / "blocks.sqlite"),
            tiles=TileStore(directory / "tiles", sync=False),
            unframe=unframe_refused,
            clock=lambda: NOW_S,
        )
        for record in self.ledger:
            signature = record.header(SIGNATURE_HEADER)
            observer.add_block(self.unframe(record.value), signature)
        for record in self.checkpoints:
            observer.receive(self.event(record))
        return observer


PATHS = sorted(FOLDER.glob("*.json"))
WITH_NODES = [path for path in PATHS if '"nodes"' in path.read_text()]


def stems(paths):
    return [path.stem for path in paths]


@pytest.mark.parametrize("path", PATHS, ids=stems(PATHS))
def test_a_recorded_log_is_still_sound(path):
    recording = Recording(path)
    report = audit_records(
        recording.ledger,
        recording.checkpoints,
        recording.attestations,
        federation_id=recording.federation_id,
        unframe=recording.unframe,
        fetch_blob=recording.blobs.fetch,
    )
    assert report.is_sound, report.findings
    assert report.num_leaves == recording.size
    assert report.tree_root == recording.tree_root
    if recording.balances is not None:
        assert report.balances == recording.balances
    if recording.nodes is not None:
        assert report.finality.final_height == recording.nodes["final_height"]
        assert report.finality.num_epochs > len(report.finality.eras) == 2
        assert report.equivocations


@pytest.mark.parametrize("path", WITH_NODES, ids=stems(WITH_NODES))
def test_what_recorded_nodes_said_still_makes_their_blocks_final(path, tmp_path):
    recording = Recording(path)
    observer = recording.observe(tmp_path)
    assert observer.tree.final_height == -1
    for record in recording.attestations:
        # A cosignature of the era before is no use any more.
        with suppress(InvalidNoteError):
            observer.receive(recording.event(record))
    check_final(observer, recording)
    # Cosigned, too: the checkpoint that is published has a quorum.
    assert observer.tiles.published_size == observer.tree.final.header.tree_size


@pytest.mark.parametrize("path", WITH_NODES, ids=stems(WITH_NODES))
def test_recorded_proofs_still_prove(path, tmp_path):
    recording = Recording(path)
    observer = recording.observe(tmp_path)
    for data in map(bytes.fromhex, recording.nodes["proofs"]):
        proof = FinalityProof.from_bytes(data)
        assert proof.to_bytes() == data
        observer.add_proof(proof)
    check_final(observer, recording)


def check_final(observer, recording):
    assert observer.tree.final_height == recording.nodes["final_height"]
    assert observer.tree.final.header.id.hex() == recording.nodes["final_id"]
    assert observer.nodes.era == 1
    assert not observer.alerts.all()


@pytest.mark.parametrize("path", WITH_NODES, ids=stems(WITH_NODES))
def test_recorded_votes_are_still_read(path):
    votes = Recording(path).nodes["votes"]
    assert len(votes) == len(NAMES) + 1
    for data in map(bytes.fromhex, votes.values()):
        state = VoteState.from_bytes(data)
        assert state.to_bytes() == data
        assert state.last_attestation.height == state.attested[0]
        assert state.last_attestation.block_id == state.attested[1]
        assert state.cosigned_size


def test_there_are_recordings():
    kinds = {path.stem.rpartition("-")[2] for path in PATHS}
    assert kinds == set(KINDS)
    assert WITH_NODES


def test_no_recording_ever_changes_or_goes():
    """When this fails, put the recording back: no version may need another one."""
    listed = [line.split("  ") for line in SUMS.read_text().splitlines()]
    assert len({name for _, name in listed}) == len(listed)
    found = {path.name: hash_file(path) for path in PATHS}
    assert {name: digest for digest, name in listed} == found


if __name__ == "__main__":
    write(sys.argv[1])
