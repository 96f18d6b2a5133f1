"""The program evolves, and every older log stays what it was.

Every event gets another field, a state another field, the list of deciders another one,
the rules another version; each is patched into the running code. Then logs that were
written before, all recorded ones among them, are replayed and audited.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, make_dataclass, replace
from functools import cache
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest

from cli import audit as audit_command
from cli.audit_show import render
from consumers.audit.auditor import run_audit
from consumers.node.feed import AlertCode
from protocol import admission, replay, rounds, rules, state_root
from protocol.decider import Decider, step
from protocol.deciders import DECIDERS
from protocol.envelope import SIGNATURE_HEADER
from protocol.log import SequencerState, read_block
from protocol.modes import list_kinds
from protocol.replay import FaultCode, ReplayState, replay_block
from protocol.rules import UnknownRulesError, choose
from protocol.state_root import StateHasher
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import LogBuilder, build_log, make_key, unframe
from tests.mpc_builder import build_mpc_log
from tests.unit.cli.test_exit_codes import moot
from tests.unit.consumers.audit.test_bundle import write
from tests.unit.consumers.node.test_parts import make_tree, pairs
from tests.unit.test_recorded_logs import PATHS, Recording

NODES = ("node0", "node1", "node2", "node3")
NEWER = 3
"""A version of the rules that this program does not know."""


@cache
def written(name: str) -> Any:
    """A log that was written before anything evolved, and its state roots."""
    if name == "plain":
        log = build_log()
    elif name == "nodes":
        log = build_log(ledger_nodes=NODES)
    elif name == "secret":
        log = build_mpc_log()
    else:
        [path] = [path for path in PATHS if path.stem == name]
        recording = Recording(path)
        log = SimpleNamespace(
            federation_id=recording.federation_id,
            records=recording.ledger,
            checkpoints=recording.checkpoints,
            blobs=recording.blobs,
            unframe=recording.unframe,
        )
    log.unframe = getattr(log, "unframe", unframe)
    return log, run(log)[0]


LOGS = ["plain", "nodes", "secret", *(path.stem for path in PATHS)]


def run(log: Any) -> tuple[list[bytes], list[replay.Fault], ReplayState]:
    """Replay a log; returns its state roots and its faults."""
    state, hasher, roots, faults = ReplayState(), StateHasher(), [], []
    for record in log.records:
        data, signature = log.unframe(record.value), record.header(SIGNATURE_HEADER)
        replayed = replay_block(state, data, signature, unframe=log.unframe)
        state = replayed.state
        roots.append(hasher.compute_root(state))
        faults += replayed.faults
    return roots, faults, state


def forget() -> None:
    for module in (codec, state_root):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def find_tables(kind: type) -> list[dict[Any, Any]]:
    """Return all tables of ours that have a row for a class."""
    modules = [
        module
        for name, module in sys.modules.items()
        if name.split(".")[0] in {"schemas", "protocol", "consumers"}
    ]
    values = chain(*(vars(module).values() for module in modules), list_kinds())
    return [value for value in values if isinstance(value, dict) and kind in value]


MORE: list[tuple[dict[str, Any], Any, Any]] = [
    ({"name": "more", "type": ["null", "string"], "default": None}, str | None, None),
    ({"name": "more", "type": "bytes", "default": "\xff"}, bytes, b"\xff"),
    ({"name": "more", "type": "int", "default": 7}, int, 7),
]
FRAMES = {"Leaf", "BlockSequenced"}  # they never change


@pytest.fixture
def evolved(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every event and every blob has another field."""
    for name in LOGS:
        written(name)
    avro = tmp_path / "avro"
    (avro / "released").mkdir(parents=True)
    lock = {name: list(known) for name, known in codec.lock().items()}
    kinds, texts = {}, {}
    for number, name in enumerate(sorted(codec.CLASSES)):
        text = codec.schema_text(name)
        for fingerprint in codec.lock()[name]:
            kept = avro / "released" / f"{name}-{fingerprint}.avsc"
            kept.write_text(codec.released_schema_text(name, fingerprint))
        if name not in FRAMES:
            which = 0 if name == "RoundStarted" else number
            schema, kind, default = MORE[which % len(MORE)]
            plain = json.loads(text)
            plain["fields"].append(schema)
            text = json.dumps(plain)
            lock[name].append(codec.compute_fingerprint(text).hex())
            old = codec.CLASSES[name]
            kinds[name] = make_dataclass(
                name,
                [("more", kind, field(default=default))],
                bases=(old,),
                frozen=True,
                slots=True,
                kw_only=True,
            )
        texts[name] = text
    for name, text in texts.items():
        (avro / f"{name}.avsc").write_text(text)
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    monkeypatch.setattr(codec, "_ROOT", tmp_path)
    for name, kind in kinds.items():
        old = codec.CLASSES[name]
        monkeypatch.setitem(codec.CLASSES, name, kind)
        monkeypatch.setattr(e, name, kind)
        for table in find_tables(old):
            monkeypatch.setitem(table, kind, table[old])
    forget()
    yield kinds
    monkeypatch.undo()
    forget()


# An event


@pytest.mark.parametrize("name", LOGS)
def test_logs_of_before_every_event_evolved_are_sound(name: str, evolved: Any) -> None:
    log, before = written(name)
    roots, faults, state = run(log)
    assert faults == []
    assert roots == before
    # And it was really read with other classes, which are written otherwise.
    assert type(state.rounds.config) is evolved["FederationConfigured"]
    data = log.unframe(log.records[1].value)
    block = codec.decode_as(e.BlockSequenced, data)
    event = codec.decode_as(e.Leaf, block.leaves[0]).event
    assert codec.encode(codec.decode(event)) != event


@pytest.mark.usefixtures("evolved")
@pytest.mark.parametrize("name", LOGS)
def test_blobs_and_proofs_of_before_are_still_good(name: str) -> None:
    log, _ = written(name)
    audited = run_audit(
        log.records,
        checkpoints=log.checkpoints,
        federation_id=log.federation_id,
        unframe=log.unframe,
        fetch_blob=log.blobs.fetch,
    )
    assert audited.report.is_sound, audited.report.findings
    assert audited.report.num_leaves == run(log)[2].log.chain.size


@pytest.mark.usefixtures("evolved")
def test_what_the_writer_did_not_know_must_be_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, _ = written("plain")

    def decide(state: Any, leaf: Any) -> Any:
        return [
            replace(fact, more="much") if isinstance(fact, e.RoundStarted) else fact
            for fact in rounds.decide(state, leaf)
        ]

    monkeypatch.setitem(DECIDERS, "rounds", replace(DECIDERS["rounds"], decide=decide))
    _, faults, _ = run(log)
    assert {fault.code for fault in faults} == {FaultCode.FACT_DIFFERS}
    assert {(fault.expected, fault.found) for fault in faults} == {
        ("more='much'", "more=None")
    }


# A state, a decider


@dataclass(frozen=True, slots=True, kw_only=True)
class WiserRounds(rounds.RoundsState):
    """Of another name, too."""

    a_first_field: tuple[str, ...] = ()
    seen: int = 0


@pytest.mark.parametrize("name", LOGS)
def test_a_field_of_a_state_changes_no_root_until_it_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, before = written(name)
    decider = replace(rounds.DECIDER, initial=WiserRounds())
    monkeypatch.setitem(DECIDERS, "rounds", decider)
    roots, faults, state = run(log)
    assert (roots, faults) == (before, [])
    assert isinstance(state.rounds, WiserRounds)

    def evolve(state: Any, leaf: Any, facts: Any) -> Any:
        after = rounds.evolve(state, leaf, facts)
        is_update = isinstance(leaf.event, e.UpdateSubmitted | e.UpdateCommitted)
        return replace(after, seen=after.seen + is_update)

    monkeypatch.setitem(DECIDERS, "rounds", replace(decider, evolve=evolve))
    roots, _, state = run(log)
    assert state.states["rounds"].seen > 0
    used = next(i for i, root in enumerate(roots) if root != before[i])
    assert roots[:used] == before[:used]
    assert not set(roots[used:]) & set(before)


@dataclass(frozen=True, slots=True)
class Counted:
    """What one more decider knows."""

    revoked: int = 0


def test_a_decider_changes_no_root_until_it_knows_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, before = written("plain")

    def evolve(state: Counted, leaf: Any, _facts: Any) -> Counted:
        return Counted(state.revoked + isinstance(leaf.event, e.AgentRevoked))

    decider: Any = Decider(initial=Counted(), decide=lambda *_: [], evolve=evolve)
    monkeypatch.setitem(DECIDERS, "counting", decider)
    roots, faults, state = run(log)
    assert faults == []
    assert state.states["counting"].revoked > 0
    assert roots[0] == before[0]
    assert roots[-1] != before[-1]
    same = sum(one == other for one, other in zip(roots, before, strict=True))
    assert 1 < same < len(roots)


# A rule


def better(state: Any, leaf: Any) -> Any:
    """Rules of version 3: who asks for a round must say it with an even number."""
    return [
        replace(fact, detail=f"{fact.detail}, by rules that are better")
        if isinstance(fact, e.RoundRefused)
        else fact
        for fact in rounds.decide(state, leaf)
    ]


VARIANTS = {1: rounds.decide, NEWER: better}


@pytest.fixture
def wiser(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A version of the program that knows one more version of the rules."""

    def decide(state: Any, leaf: Any) -> Any:
        config = state.config or leaf.event
        return choose(VARIANTS, config.rules_version)(state, leaf)

    monkeypatch.setattr(rules, "KNOWN_VERSIONS", range(1, NEWER + 1))
    monkeypatch.setitem(DECIDERS, "rounds", replace(rounds.DECIDER, decide=decide))
    return monkeypatch


class WiserLog(LogBuilder):
    """A log under newer rules, from its founding on."""

    def configure(self, initial_model: e.BlobRef) -> e.FederationConfigured:
        return replace(super().configure(initial_model), rules_version=NEWER)


def build_wiser_log() -> WiserLog:
    log = WiserLog()
    log.found()
    log.request_round()
    return log


def test_a_rule_has_the_variant_of_its_version() -> None:
    variants = {1: "first", 4: "fourth"}
    found = [choose(variants, version) for version in (1, 2, 3, 4, 9)]
    assert found == ["first", "first", "first", "fourth", "fourth"]


@pytest.mark.usefixtures("wiser")
@pytest.mark.parametrize("name", LOGS)
def test_logs_of_before_a_rule_evolved_follow_the_one_of_then(name: str) -> None:
    log, before = written(name)
    assert run(log)[:2] == (before, [])


def test_a_log_of_newer_rules_is_judged_by_them_or_not_at_all(
    wiser: pytest.MonkeyPatch,
) -> None:
    log = build_wiser_log()
    log.unframe = unframe
    refused = [x for x in log.leaves if isinstance(x, e.RoundRefused)]
    assert "by rules that are better" in refused[0].detail
    assert run(log)[1] == []
    wiser.undo()
    with pytest.raises(UnknownRulesError, match="version 3 of the rules is not known"):
        run(log)


def test_an_audit_of_newer_rules_says_that_it_cannot_judge(
    wiser: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = build_wiser_log()
    wiser.undo()
    report = run_audit(
        log.records,
        checkpoints=None,
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=log.blobs.fetch,
    ).report
    assert report.is_unknown
    assert not report.is_sound
    assert report.findings == []
    assert "version 3 of the rules is not known here" in report.unjudged
    assert report.to_json()["is_sound"] is None
    text = render(report, 1.0)
    assert text.startswith("UNKNOWN: ")
    assert "SOUND" not in text
    assert "WRONG" not in text
    with pytest.raises(audit_command.CannotAuditError, match="newer version"):
        audit_command._demand_judged(report)


def test_a_sequencer_refuses_rules_that_it_does_not_know() -> None:
    log = WiserLog()
    model = e.BlobRef(
        uri=f"s3://moot/sha256/{'0' * 64}", sha256=bytes(32), size_bytes=1
    )
    log.say(log.configure(model), make_key("OPERATOR"))
    [received] = log._waiting
    [verdict] = admission.decide(
        admission.AdmissionState(),
        [received],
        sequencer_key=make_key("SEQUENCER").public_key,
    )
    assert isinstance(verdict, admission.Refused)
    assert verdict.event.reason == Reason.UNKNOWN_RULES
    assert Reason.UNKNOWN_RULES in replay.UNSEEN_REASONS


@pytest.fixture
def raised(wiser: pytest.MonkeyPatch) -> LogBuilder:
    """A log whose operator raised the rules' version, as an older program sees it."""
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo")
    log.run_round()
    config = log.leaves[0]
    assert isinstance(config, e.FederationConfigured)
    changed = codec.encode(replace(config, rules_version=NEWER))
    change = e.FederationChanged(
        federation_id=log.federation_id, number=1, configuration=changed
    )
    log.say(change, make_key("OPERATOR"))
    log.settle()
    log.request_round()
    assert log.leaves.count(change) == 1
    wiser.undo()
    return log


def find_raise(log: LogBuilder) -> int:
    """Return the height of the block that raises the version."""
    for height, record in enumerate(log.records):
        block = codec.decode_as(e.BlockSequenced, unframe(record.value or b""))
        for leaf in block.leaves:
            event = codec.decode(codec.decode_as(e.Leaf, leaf).event)
            if isinstance(event, e.FederationChanged):
                return height
    raise AssertionError


def test_a_node_attests_nothing_from_newer_rules_on(raised: LogBuilder) -> None:
    tree, found = make_tree(raised)
    for pair in pairs(raised):
        tree.add(*pair)
    assert tree.height == find_raise(raised) - 1
    [alert] = found.all()
    assert alert.code is AlertCode.RULES_UNKNOWN
    assert "run a newer version" in alert.detail


def test_deciders_and_a_sequencer_stop_at_newer_rules(raised: LogBuilder) -> None:
    [leaf] = [
        item.sequenced
        for item in raised.opened
        if isinstance(item.sequenced.event, e.FederationChanged)
    ]
    for decider in DECIDERS.values():
        with pytest.raises(UnknownRulesError, match=f"leaf {leaf.leaf_index}: "):
            step(decider, decider.initial, leaf)
    state, blocks, height = SequencerState(), pairs(raised), find_raise(raised)
    for block in blocks[:height]:
        state = read_block(state, *block)
    with pytest.raises(UnknownRulesError, match="run a newer version"):
        read_block(state, *blocks[height])


@pytest.mark.parametrize("is_wrong", [False, True])
def test_an_audit_of_newer_rules_has_an_exit_code_of_its_own(
    raised: LogBuilder,
    is_wrong: bool,  # a case
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "clinics.tar"
    if is_wrong:
        # What is wrong before counts, whatever comes after.
        [published] = [x for x in raised.leaves if isinstance(x, e.AggregatePublished)]
        raised.blobs[published.sum.sha256] += b"x"
    write(path, raised, [])
    assert moot(monkeypatch, "audit", path) == (1 if is_wrong else 3)
