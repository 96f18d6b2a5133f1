"""Signatures of one founding of a federation count in no other.

Two federations of one name, with the same keys and parameters: founded anew, or staging
beside production. Whoever reads the one and may write to the other says everything
again, with the signatures that it has.

The lists are complete by construction: kinds of events come from `schemas.events`, and
places that sign from the source.
"""

from __future__ import annotations

import ast
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pytest

from adapters.genesis import OtherGenesisError, remember_genesis
from consumers.audit.auditor import run_audit
from consumers.audit.finality import Context, verify_record
from consumers.node.feed import AlertCode
from ledger.attestations import START, InvalidMessageError, NodeSet, sign_approval
from ledger.checkpoint import InvalidCheckpointError, cosign_checkpoint
from ledger.equivocation import verify_equivocation
from ledger.merkle import leaf_hash
from ledger.note import InvalidNoteError
from ledger.proof_file import make_receipt, verify_receipt
from protocol import admission
from protocol.admission import Received, Refused, find_author, make_policy
from protocol.encoding import update_to_blob
from protocol.envelope import (
    SIGNATURE_HEADER,
    choose_genesis,
    compute_genesis_hash,
    sign_event,
)
from protocol.log import ForeignRecordError, LogState, open_block
from protocol.modes.mpc.checker import compute_context, make_place
from protocol.modes.mpc.configuration import list_parties
from protocol.modes.mpc.sealing import SealError, open_share, seal_share
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from streams.mpc.comparing import make_link_plan
from tests.architecture.golden import make_example
from tests.architecture.parsers import PACKAGES
from tests.attesting import Nodes
from tests.builders import LogBuilder, frame, make_key, make_nodes, unframe
from tests.mpc_builder import MpcLogBuilder, make_sealing_key
from tests.paths import ROOT
from tests.simulation import federation
from tests.simulation.federation import COMPARING_CONFIG, edit
from tests.trees import inclusion_proof
from tests.unit.consumers.node.test_ledger_node import Bus, last_height, short_log

NAMES: Final = ("node0", "node1", "node2", "node3")
KEYS: Final = {
    make_key(name).public_key: make_key(name)
    for name in (
        *("OPERATOR", "SEQUENCER", "DECIDER", "AGGREGATOR", "EXPORTER", "TIMER"),
        *("ada", "bea", "cleo", "mallory", "p0", "p1", "p2"),
        *NAMES,
    )
}
LEAVES: Final = [
    kind
    for kind in get_args(e.LedgerEvent)
    if kind is not e.FederationConfigured  # the founding itself
]
SAID_OF_THE_LOG: Final = (
    set(get_args(e.Event)) - set(get_args(e.LedgerEvent)) - {e.Heartbeat}
)
"""A heartbeat is of a process, and says nothing of any log."""


def found(nonce: bytes) -> MpcLogBuilder:
    """Found a federation that has all that events can be signed by."""
    log = MpcLogBuilder(ledger_nodes=NAMES, nonce=nonce)
    log.found()
    log.admit("ada", "bea", "cleo")
    return log


@pytest.fixture(scope="module")
def old() -> MpcLogBuilder:
    return found(b"a" * 32)


@pytest.fixture(scope="module")
def new() -> MpcLogBuilder:
    return found(b"b" * 32)


def make_event(kind: type, log: LogBuilder) -> e.LedgerEvent:
    """Return an event of a kind, by somebody whom the federation knows."""
    event: Any = make_example(kind.__name__)
    known = {
        "federation_id": log.federation_id,
        "agent_id": "zoe" if kind in JOINING else "ada",
        "public_key": make_key("mallory").public_key,
        "party": "p0",
        "reported_by": make_key("node0").public_key,
    }
    names = {part.name for part in fields(event)}
    found: e.LedgerEvent = replace(
        event, **{name: value for name, value in known.items() if name in names}
    )
    return found


JOINING: Final = {e.AgentEnrolmentRequested, e.AgentAdmitted}


def judge(log: LogBuilder, event: e.LedgerEvent, genesis: bytes) -> str:
    """Return why a log refuses what its author signed in a founding; or nothing."""
    data = codec.encode(event)
    author = find_author(log.state.admission, event)
    assert author is not None, f"the test knows no author of a {type(event).__name__}"
    signature = sign_event(KEYS[author], choose_genesis(event, genesis), data)
    leaf = e.Leaf(
        event=data,
        signature=signature,
        source_topic=topics.TOPIC_OF[type(event)],
        source_partition=7,
        source_offset=0,
    )
    # As the audit and every node judge what is on the log.
    faults, _ = admission.find_faults(log.state.admission, [(leaf, event)])
    judged = "".join(reason for _, reason, _ in faults)
    if isinstance(event, e.EventRejected):
        return judged
    # And as the sequencer does.
    received = Received(
        topic=topics.TOPIC_OF[type(event)],
        partition=7,
        offset=0,
        key=log.federation_id.encode(),
        value=b"",
        event=data,
        signature=signature,
    )
    [verdict] = admission.decide(log.state.admission, [received])
    if isinstance(verdict, Refused):
        assert verdict.event.reason == judged
        if judged == Reason.BAD_SIGNATURE:
            assert log.genesis.hex() in verdict.event.detail
    return judged


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_what_was_said_in_one_founding_is_refused_in_another(
    kind: type, old: MpcLogBuilder, new: MpcLogBuilder
) -> None:
    event = make_event(kind, new)
    assert judge(new, event, old.genesis) == Reason.BAD_SIGNATURE
    # It is that alone: signed in this one, it is looked at more closely.
    assert judge(new, event, new.genesis) != Reason.BAD_SIGNATURE


def test_foundings_differ_even_with_equal_parameters(
    old: MpcLogBuilder, new: MpcLogBuilder
) -> None:
    one, other = (log.leaves[0] for log in (old, new))
    assert isinstance(one, e.FederationConfigured)
    assert replace(one, nonce=other.nonce) == other  # type: ignore[union-attr]
    assert old.genesis != new.genesis
    for log in (old, new):
        genesis = compute_genesis_hash(log.opened[0].leaf.event)
        assert log.genesis == genesis == log.state.admission.genesis
        assert {item.sequenced.genesis for item in log.opened} == {genesis}
        assert log.origin == f"folkmoot/clinics/{genesis.hex()}"


def test_a_founding_is_no_founding_of_another_federation(new: MpcLogBuilder) -> None:
    """Signed outside of any log, it names its federation itself."""
    config = new.leaves[0]
    assert judge(new, config, new.genesis) == Reason.FEDERATION_EXISTS


def test_what_was_said_outside_of_any_log_counts_in_none(new: MpcLogBuilder) -> None:
    event = make_event(e.RoundRequested, new)
    assert judge(new, event, bytes(32)) == Reason.BAD_SIGNATURE


def replay(event: e.LedgerEvent, old: LogBuilder, new: LogBuilder) -> str:
    """Say something from the one log in the other, by a stranger."""
    leaf = next(item.leaf for item in old.opened if item.sequenced.event == event)
    topic = topics.topic_of(event)
    offset = new._offsets[topic]
    new._offsets[topic] += 1
    new._waiting.append(
        Received(
            topic=topic,
            partition=0,
            offset=offset,
            key=b"clinics",
            value=frame(event),
            event=leaf.event,
            signature=leaf.signature,
        )
    )
    before = len(new.refused)
    new.settle()
    return new.refused[-1].reason if len(new.refused) > before else "ADMITTED"


def test_an_old_log_said_again_changes_nothing() -> None:
    """A revoked agent is not admitted, no round starts, no old update counts."""
    old = LogBuilder(nonce=b"a" * 32)
    old.found()
    old.admit("ada", "bea", "cleo", "mallory")
    for agent in old.request_round():
        old.submit(agent)
    old.settle()
    old.check()
    old.aggregate()
    old.revoke("mallory")
    new = LogBuilder(nonce=b"b" * 32, ledger_nodes=("node0",))
    new.found()
    new.admit("ada", "bea", "cleo")
    kinds = set()
    for event in list(old.leaves):
        if isinstance(event, e.EventRejected):
            continue  # on no topic of inputs
        verdict = replay(event, old, new)
        kinds.add(type(event))
        if isinstance(event, e.FederationConfigured):
            assert verdict == Reason.FEDERATION_EXISTS
        else:
            # What is taken is refused for that before anybody's signature is looked at.
            assert verdict in {Reason.BAD_SIGNATURE, Reason.AGENT_EXISTS} | (
                {Reason.UNKNOWN_AGENT}
            ), event
    assert {e.UpdateSubmitted, e.RoundRequested, e.RoundStarted} <= kinds
    assert "mallory" not in new.state.admission.agents
    assert new._rounds.last_round == 0
    # Whoever is really there answers, and that counts.
    new.finalise()
    new.request_round()
    new.submit("ada", blob=update_to_blob(np.arange(6, dtype=np.int32)))
    new.settle()
    assert new.refused[-1].reason != Reason.DUPLICATE_EVENT
    assert "ada" in {p.agent_id for p in new._rounds.current.pending.values()}  # type: ignore[union-attr]
    report = run_audit(
        new.records,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=new.checkpoints,
        operator_key=make_key("OPERATOR").public_key,
    ).report
    assert [finding.code for finding in report.findings] == []


# Blocks, checkpoints, attestations


def test_everything_that_is_said_of_a_log_is_here() -> None:
    assert {
        e.BlockSequenced,
        e.CheckpointSigned,
        *get_args(e.Attestation),
    } == SAID_OF_THE_LOG


def test_a_block_of_one_founding_is_foreign_in_another(
    old: MpcLogBuilder, new: MpcLogBuilder
) -> None:
    for records in (new.records[:1], new.records):
        state = LogState()
        for record in records:
            signature = record.header(SIGNATURE_HEADER)
            state, _, _ = open_block(state, unframe(record.value or b""), signature)
        for record in old.records:
            signature = record.header(SIGNATURE_HEADER)
            with pytest.raises(ForeignRecordError):
                open_block(state, unframe(record.value or b""), signature)


def test_nodes_believe_no_message_of_another_founding(tmp_path: Path) -> None:
    """Blocks, checkpoints, attestations, requests, cosignatures: none of them."""
    old, new = short_log(nonce=b"a" * 32), short_log(nonce=b"b" * 32)
    bus = Bus(tmp_path / "new", new)
    bus.run()
    before = {name: member.node.describe() for name, member in bus.members.items()}
    nodes = Nodes(old)
    nodes.attest_all()
    nodes.request(0, "node1", 1)
    said = [unframe(r.value or b"") for r in (*old.checkpoints, *nodes.records)]
    assert {codec.kind_of(data) for data in said} == SAID_OF_THE_LOG - {
        e.BlockSequenced
    }
    for member in bus.members.values():
        for record in old.records:
            data, signature = unframe(record.value or b""), record.headers[0][1]
            member.node.add_block(data, signature)
        for data in said:
            with pytest.raises((InvalidMessageError, InvalidNoteError)):
                member.node.receive(codec.decode(data))  # type: ignore[arg-type]
        assert member.node.describe() == before[member.name]
        assert member.final_height == last_height(new) - 1
        assert not member.node.evidence


def test_the_audit_passes_over_attestations_of_another_founding() -> None:
    old, new = short_log(nonce=b"a" * 32), short_log(nonce=b"b" * 32)
    nodes = Nodes(old)
    nodes.attest_all()
    nodes.request(0, "node1", 1)
    context = Context(
        federation_id="clinics",
        genesis=new.genesis,
        sequencer_key=make_key("SEQUENCER").public_key,
        eras=((new.state.admission.node_sets[0], (-1, START)),),
    )
    kinds = set()
    for record in nodes.records:
        data = unframe(record.value or b"")
        kinds.add(codec.kind_of(data))
        with pytest.raises(InvalidMessageError):
            verify_record(context, data, record.header(SIGNATURE_HEADER) or b"")
    assert kinds == set(get_args(e.Attestation))
    report = run_audit(
        new.records,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=new.checkpoints,
        attestations=nodes.records,
        operator_key=make_key("OPERATOR").public_key,
    ).report
    assert report.is_sound
    assert report.num_attestations == 0
    assert sum(noise.count for noise in report.noise) == len(nodes.records)


# What is signed inside of events, and beside them


def test_every_place_that_signs_is_here() -> None:
    """Who signs something new must say here why it counts in one log alone."""
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "sign"
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "np")
    }
    assert found == {
        "protocol/envelope.py",  # events: the tests above
        "ledger/attestations.py",  # attestations, requests, approvals: by chain id
        "ledger/note.py",  # checkpoints and cosignatures: by origin
        "adapters/modes/mpc/link.py",  # a certificate: its greeting says for what
    }


def signed_note(log: LogBuilder, height: int = -1) -> bytes:
    value = unframe(log.checkpoints[height].value or b"")
    return codec.decode_as(e.CheckpointSigned, value).checkpoint.encode()


def cosigned_note(log: LogBuilder) -> bytes:
    note = signed_note(log)
    for name in NAMES:
        note = cosign_checkpoint(note, name, make_key(name), 1_760_000_000)
    return note


def say(log: LogBuilder, event: e.Event, name: str) -> str:
    """Say something in a log, by its right author; returns why it is refused."""
    before = len(log.refused)
    log.say(event, make_key(name))
    log.settle()
    return log.refused[-1].reason if len(log.refused) > before else ""


def test_a_final_checkpoint_is_final_in_one_founding() -> None:
    old, new = short_log(nonce=b"a" * 32), short_log(nonce=b"b" * 32)
    for log, expected in ((old, Reason.NOT_FINAL), (new, "")):
        event = e.CheckpointFinalised(
            federation_id="clinics", checkpoint=cosigned_note(log).decode()
        )
        assert say(new, event, "TIMER") == expected


def test_a_receipt_is_of_one_founding() -> None:
    old, new = short_log(nonce=b"a" * 32), short_log(nonce=b"b" * 32)
    leaves = [codec.encode(item.leaf) for item in old.opened]
    proof = inclusion_proof(2, [leaf_hash(leaf) for leaf in leaves])
    receipt = make_receipt(leaves[2], 2, proof, cosigned_note(old))
    assert verify_receipt(receipt, make_policy(old.state.admission)).leaf == leaves[2]
    with pytest.raises(InvalidCheckpointError, match="no log"):
        verify_receipt(receipt, make_policy(new.state.admission))


def test_trees_of_two_foundings_are_no_evidence() -> None:
    """One sequencer signs both logs, and is honest."""
    old, new = short_log(nonce=b"a" * 32), short_log(nonce=b"b" * 32)
    messages = sorted(
        codec.encode(
            e.CheckpointSigned(
                federation_id="clinics",
                height=0,
                checkpoint=signed_note(log).decode(),
            )
        )
        for log in (old, new)
    )
    proven = e.EquivocationProven(
        federation_id="clinics",
        public_key=make_key("SEQUENCER").public_key,
        messages=tuple(messages),
        reported_by=make_key("node0").public_key,
    )
    assert say(new, proven, "node0") == Reason.NOT_PROVEN
    state = new.state.admission
    with pytest.raises(InvalidMessageError):
        verify_equivocation(
            state.node_sets, state.genesis, state.principals["SEQUENCER"], proven
        )


def test_consent_to_other_nodes_is_for_one_founding() -> None:
    old, new = short_log(nonce=b"a" * 32), short_log(nonce=b"b" * 32)
    nodes = make_nodes(("node0", "node1"))
    for log, expected in ((old, Reason.NOT_APPROVED), (new, "")):
        present = log.state.admission.node_sets[-1]
        assert present.chain_id == log.genesis
        changed = NodeSet(1, present.chain_id, nodes)
        approvals = [
            sign_approval(make_key(name), present.chain_id, 1, changed.hash)
            for name in NAMES[:3]
        ]
        event = e.NodeSetChanged(
            federation_id="clinics",
            era=1,
            nodes=nodes,
            approvals=tuple(sorted(approvals, key=lambda a: a.public_key)),
        )
        assert say(new, event, "OPERATOR") == expected


def test_secrets_and_proofs_are_for_one_founding(
    old: MpcLogBuilder, new: MpcLogBuilder
) -> None:
    update = make_event(e.UpdateCommitted, old)
    assert isinstance(update, e.UpdateCommitted)
    update = replace(update, round=1, num_examples=1)
    config = edit(old.config, parties=list_parties(old.config)[:2])
    contexts = {
        compute_context(log.genesis, config, update, bytes(32)) for log in (old, new)
    }
    assert len(contexts) == 2
    key, commitment = make_sealing_key("p0"), bytes(48)
    place = make_place(old.genesis, update, "p0", commitment)
    sealed = seal_share(b"a share", key.public_key, place)
    assert open_share(sealed, key, place) == b"a share"
    with pytest.raises(SealError):
        open_share(sealed, key, make_place(new.genesis, update, "p0", commitment))


def test_a_link_is_for_one_founding(old: MpcLogBuilder, new: MpcLogBuilder) -> None:
    config = COMPARING_CONFIG
    key = federation.make_key("p0")
    one, other = (
        make_link_plan(config, log.genesis, key.public_key, key.seed)
        for log in (old, new)
    )
    assert one is not None
    assert other is not None
    assert one.peers == other.peers
    assert one.digest != other.digest


# Who has seen one founding


def test_a_directory_takes_part_in_one_founding(tmp_path: Path) -> None:
    remember_genesis(tmp_path, "clinics", b"a" * 32)
    remember_genesis(tmp_path, "clinics", b"a" * 32)
    remember_genesis(tmp_path, "banks", b"b" * 32)
    with pytest.raises(OtherGenesisError, match=(b"a" * 32).hex()) as caught:
        remember_genesis(tmp_path, "clinics", b"b" * 32)
    assert (b"b" * 32).hex() in str(caught.value)
    assert "founded anew" in str(caught.value)
    remember_genesis(tmp_path, "clinics", b"a" * 32)


@pytest.mark.parametrize("name", ["..", "a/../../b", "", "x" * 5_000, "\0", "ä"])
def test_no_name_leads_out_of_the_directory(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "inner"
    remember_genesis(directory, name, b"a" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    with pytest.raises(OtherGenesisError):
        remember_genesis(directory, name, b"b" * 32)


@pytest.mark.parametrize("content", [b"", b"\xff" * 65, b"a" * 64, b"a" * 10_000])
def test_a_damaged_memory_is_no_memory(content: bytes, tmp_path: Path) -> None:
    remember_genesis(tmp_path, "clinics", b"a" * 32)
    [path] = (tmp_path / "genesis").iterdir()
    path.write_bytes(content)
    with pytest.raises(OtherGenesisError):
        remember_genesis(tmp_path, "clinics", b"a" * 32)


def test_a_node_that_pins_a_founding_follows_no_other(tmp_path: Path) -> None:
    old, new = short_log(nonce=b"a" * 32), short_log(nonce=b"b" * 32)
    bus = Bus(tmp_path, new, genesis=old.genesis)
    for member in bus.members.values():
        for record in new.records:
            data = unframe(record.value or b"")
            member.node.add_block(data, record.header(SIGNATURE_HEADER))
        assert member.node.tree.height == -1
        codes = {alert.code for alert in member.node.alerts.all()}
        assert codes == {AlertCode.OTHER_GENESIS}
