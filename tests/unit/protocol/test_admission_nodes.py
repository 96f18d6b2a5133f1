"""What claims the ledger nodes' consent, and what is said with their help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest

from adapters.kafka import make_headers
from ledger.attestations import NodeSet, sign_approval, sign_attestation
from ledger.checkpoint import (
    Checkpoint,
    cosign_checkpoint,
    parse_checkpoint,
    sign_checkpoint,
)
from ledger.equivocation import Offence, prove_equivocation
from ledger.note import parse_note
from ledger.policy import QuorumError, parse_policy
from ledger.signing import InvalidSignatureError, SigningKey
from protocol import admission
from protocol.admission import compute_event_id, find_faults, make_policy
from protocol.envelope import (
    EVENT_ID_HEADER,
    SIGNATURE_HEADER,
    choose_genesis,
    verify_event,
)
from protocol.log import LogState, open_block
from protocol.validation import (
    MAX_CHECKPOINT_SIZE_BYTES,
    MAX_EVIDENCE_SIZE_BYTES,
    MAX_LEDGER_NODES,
    MAX_POINTS,
    ROLES,
    find_problem,
)
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import (
    LogBuilder,
    build_log,
    make_header,
    make_key,
    make_nodes,
    unframe,
)
from tests.simulation.federation import CONFIG

FEDERATION = "clinics"
NAMES = ("node0", "node1", "node2", "node3")
NOW_S = 1_760_000_000


@pytest.fixture
def log() -> LogBuilder:
    log = LogBuilder(ledger_nodes=NAMES)
    log.found()
    log.admit("ada", "bea")
    return log


def say(log: LogBuilder, event: e.Event, signer: str) -> Reason | str | None:
    """Let somebody say something; return why it was refused, None if it was not."""
    before = len(log.refused)
    log.say(event, make_key(signer))
    log.settle()
    refused = log.refused[before:]
    return refused[0].reason if refused else None


# Other nodes


def change(
    log: LogBuilder,
    names: Sequence[str] = ("node0", "node9"),
    *,
    approved_by: Sequence[str] = ("node0", "node1", "node2"),
    era: int = 1,
    approved_era: int | None = None,
    approved_names: Sequence[str] | None = None,
    chain_id: bytes | None = None,
) -> e.NodeSetChanged:
    present = log.state.admission.node_sets[-1]
    chain_id = present.chain_id if chain_id is None else chain_id
    signed = NodeSet(
        era if approved_era is None else approved_era,
        chain_id,
        make_nodes(names if approved_names is None else approved_names),
    )
    approvals = (
        sign_approval(make_key(name), chain_id, signed.era, signed.hash)
        for name in approved_by
    )
    return e.NodeSetChanged(
        federation_id=FEDERATION,
        era=era,
        nodes=make_nodes(names),
        approvals=tuple(sorted(approvals, key=lambda a: a.public_key)),
    )


def test_a_quorum_hands_over(log: LogBuilder) -> None:
    [first] = log.state.admission.node_sets
    assert say(log, change(log), "OPERATOR") is None
    assert log.state.admission.node_sets == (
        first,
        NodeSet(1, first.chain_id, make_nodes(["node0", "node9"])),
    )


def test_all_may_approve_and_the_new_ones_hand_over_next(log: LogBuilder) -> None:
    assert say(log, change(log, approved_by=NAMES), "OPERATOR") is None
    by_old = change(log, ["node5"], era=2, approved_by=NAMES[:3])
    assert say(log, by_old, "OPERATOR") == Reason.NOT_APPROVED
    by_new = change(log, ["node5"], era=2, approved_by=["node0", "node9"])
    assert say(log, by_new, "OPERATOR") is None
    assert [nodes.era for nodes in log.state.admission.node_sets] == [0, 1, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"era": 2},
        {"approved_by": ()},
        {"approved_by": ("node0", "node1")},
        {"approved_by": ("node0", "node1", "node1")},
        {"approved_by": ("node0", "node1", "mallory")},
        {"approved_by": ("node0", "node1", "node2", "mallory")},
        {"approved_by": ("node0", "node1", "node9")},
        {"approved_by": ("node0", "node1", "OPERATOR")},
        {"approved_era": 2},
        {"approved_names": ("node0", "node8")},
        {"chain_id": bytes(32)},
    ],
)
def test_without_a_quorums_consent_nothing_changes(
    log: LogBuilder, options: dict[str, object]
) -> None:
    before = log.state.admission.node_sets
    event = change(log, **options)  # type: ignore[arg-type]  # for brevity
    assert say(log, event, "OPERATOR") == Reason.NOT_APPROVED
    assert log.state.admission.node_sets == before


def test_approvals_are_in_order(log: LogBuilder) -> None:
    event = change(log)
    event = replace(event, approvals=event.approvals[::-1])
    assert say(log, event, "OPERATOR") == Reason.NOT_APPROVED


def test_one_change_for_each_block(log: LogBuilder) -> None:
    """The era that the first begins starts with the next block."""
    event = change(log)
    log.say(event, make_key("OPERATOR"))
    follow = log.copy()
    follow.settle()
    second = change(follow, ["node5"], era=2, approved_by=["node0", "node9"])
    log.say(second, make_key("OPERATOR"))
    log.settle()
    assert [refusal.reason for refusal in log.refused] == [Reason.NODE_SET_PENDING]
    assert say(log, second, "OPERATOR") is None


def test_readers_hold_the_sequencer_to_one_change_for_each_block(
    log: LogBuilder,
) -> None:
    first = change(log)
    follow = log.copy()
    assert say(follow, first, "OPERATOR") is None
    second = change(follow, ["node5"], era=2, approved_by=["node0", "node9"])
    pairs = [
        (log.make_leaf(event, make_key("OPERATOR")), event) for event in (first, second)
    ]
    faults, after = find_faults(log.state.admission, pairs)
    assert [(place, reason) for place, reason, _ in faults] == [
        (1, Reason.NODE_SET_PENDING)
    ]
    assert [nodes.era for nodes in after.node_sets] == [0, 1]


@pytest.mark.parametrize("signer", ["node0", "TIMER", "SEQUENCER", "mallory"])
def test_only_the_operator_changes_nodes(log: LogBuilder, signer: str) -> None:
    assert say(log, change(log), signer) == Reason.BAD_SIGNATURE


# A final checkpoint


def checkpoint(
    log: LogBuilder,
    *cosigners: str,
    size: int | None = None,
    origin: str = "",
    signer: str = "SEQUENCER",
) -> e.CheckpointFinalised:
    """Return a checkpoint of the log's present size, cosigned."""
    chain = log.state.log.chain
    head = Checkpoint(
        origin=origin or log.origin,
        size=chain.size if size is None else size,
        root=chain.tree.root(),
    )
    note = sign_checkpoint(head, make_key(signer))
    for name in cosigners:
        note = cosign_checkpoint(note, name, make_key(name), NOW_S)
    return e.CheckpointFinalised(federation_id=FEDERATION, checkpoint=note.decode())


@pytest.mark.parametrize("cosigners", [NAMES[:3], NAMES[1:], NAMES])
def test_a_quorum_makes_a_checkpoint_final(
    log: LogBuilder, cosigners: Sequence[str]
) -> None:
    size = log.state.log.chain.size
    assert log.state.admission.finalised_size == 0
    assert say(log, checkpoint(log, *cosigners), "TIMER") is None
    assert log.state.admission.finalised_size == size


@pytest.mark.parametrize(
    "cosigners",
    [
        (),
        NAMES[:2],
        ("node0", "node1", "node1"),
        ("node0", "node1", "mallory"),
        ("node0", "node1", "OPERATOR"),
    ],
)
def test_fewer_do_not(log: LogBuilder, cosigners: Sequence[str]) -> None:
    assert say(log, checkpoint(log, *cosigners), "TIMER") == Reason.NOT_FINAL
    assert log.state.admission.finalised_size == 0


def test_a_node_that_another_imitates_does_not_count(log: LogBuilder) -> None:
    event = checkpoint(log, "node0", "node1")
    note = cosign_checkpoint(
        event.checkpoint.encode(), "node2", make_key("mallory"), NOW_S
    )
    event = replace(event, checkpoint=note.decode())
    assert say(log, event, "TIMER") == Reason.NOT_FINAL


@pytest.mark.parametrize(
    "options", [{"origin": "folkmoot/banks"}, {"signer": "mallory"}]
)
def test_it_is_the_sequencers_checkpoint_of_this_log(
    log: LogBuilder, options: dict[str, str]
) -> None:
    event = checkpoint(log, *NAMES, **options)  # type: ignore[arg-type]  # for brevity
    assert say(log, event, "TIMER") == Reason.NOT_FINAL


@pytest.mark.parametrize("text", ["", "x", "a\n\nb", "— x"])
def test_bytes_other_than_a_note_are_not_final(log: LogBuilder, text: str) -> None:
    event = e.CheckpointFinalised(federation_id=FEDERATION, checkpoint=text)
    assert say(log, event, "TIMER") == Reason.NOT_FINAL


def test_an_altered_checkpoint_is_not_final(log: LogBuilder) -> None:
    event = checkpoint(log, *NAMES)
    size = log.state.log.chain.size
    text = event.checkpoint.replace(f"\n{size}\n", f"\n{size - 1}\n")
    assert text != event.checkpoint
    altered = replace(event, checkpoint=text)
    assert say(log, altered, "TIMER") == Reason.NOT_FINAL


def test_sizes_only_grow_and_do_not_run_ahead(log: LogBuilder) -> None:
    # Each refusal is a leaf too: the log has one more after it.
    size = log.state.log.chain.size
    ahead = checkpoint(log, *NAMES, size=size + 1)
    assert say(log, ahead, "TIMER") == Reason.STALE_CHECKPOINT
    exact = checkpoint(log, *NAMES, size=size + 1)
    assert say(log, exact, "TIMER") is None
    for stale in (exact, checkpoint(log, *NAMES, size=size)):
        assert say(log, stale, "TIMER") == Reason.STALE_CHECKPOINT
    assert log.state.admission.finalised_size == size + 1
    assert say(log, checkpoint(log, *NAMES, size=size + 2), "TIMER") is None


def test_the_empty_tree_is_stale(log: LogBuilder) -> None:
    empty = Checkpoint(log.origin, 0, parse_empty_root())
    note = sign_checkpoint(empty, make_key("SEQUENCER"))
    for name in NAMES:
        note = cosign_checkpoint(note, name, make_key(name), NOW_S)
    event = e.CheckpointFinalised(federation_id=FEDERATION, checkpoint=note.decode())
    assert say(log, event, "TIMER") == Reason.STALE_CHECKPOINT


def parse_empty_root() -> bytes:
    return bytes.fromhex(
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


def test_after_a_change_the_new_nodes_count(log: LogBuilder) -> None:
    log.change_nodes("node0", "node5", "node6", "node7")
    assert say(log, checkpoint(log, *NAMES), "TIMER") == Reason.NOT_FINAL
    event = checkpoint(log, "node0", "node5", "node6")
    assert say(log, event, "TIMER") is None


@pytest.mark.parametrize("signer", ["OPERATOR", "node0", "SEQUENCER", "mallory"])
def test_only_the_timer_says_what_is_final(log: LogBuilder, signer: str) -> None:
    assert say(log, checkpoint(log, *NAMES), signer) == Reason.BAD_SIGNATURE


# A child for the last block


def test_a_block_that_exists_may_get_a_child(log: LogBuilder) -> None:
    num_leaves = log.state.log.chain.size
    event = e.FinalityRequested(federation_id=FEDERATION, height=num_leaves - 1)
    assert say(log, event, "TIMER") is None
    assert say(log, event, "TIMER") == Reason.DUPLICATE_EVENT
    num_leaves = log.state.log.chain.size
    event = replace(event, height=num_leaves)
    assert say(log, event, "TIMER") == Reason.INVALID_FIELD
    event = replace(event, height=-1)
    assert say(log, event, "TIMER") == Reason.INVALID_FIELD


@pytest.mark.parametrize("signer", ["OPERATOR", "node0", "SEQUENCER", "mallory"])
def test_only_the_timer_asks_for_it(log: LogBuilder, signer: str) -> None:
    event = e.FinalityRequested(federation_id=FEDERATION, height=0)
    assert say(log, event, signer) == Reason.BAD_SIGNATURE


# A contradiction


def evidence(
    log: LogBuilder,
    name: str = "node3",
    *,
    reported_by: str = "node0",
    blocks: tuple[bytes, bytes] = (b"one", b"other"),
    era: int = -1,
    signer: str | None = None,
    height: int = 1,
) -> e.EquivocationProven:
    nodes = log.state.admission.node_sets[era]
    messages = tuple(
        sign_attestation(
            make_key(signer or name),
            nodes,
            FEDERATION,
            0,
            make_header(nodes, data, height=height),
        )
        for data in blocks
    )
    reporter = make_key(reported_by).public_key
    event = prove_equivocation(FEDERATION, messages, reporter)
    return replace(event, public_key=make_key(name).public_key)


def test_a_contradiction_is_proven_once(log: LogBuilder) -> None:
    assert say(log, evidence(log), "node0") is None
    [proven] = log.state.admission.proven
    assert proven.public_key == make_key("node3").public_key
    assert (proven.offence, proven.position) == (Offence.TWO_BLOCKS, 1)
    # Again, whoever reports it and with whatever evidence.
    for again, reporter in (
        (evidence(log), "node0"),
        (evidence(log, reported_by="node1"), "node1"),
        (evidence(log, blocks=(b"one", b"a third")), "node0"),
    ):
        assert say(log, again, reporter) == Reason.DUPLICATE_EVENT
    # Another deed is another matter.
    assert say(log, evidence(log, height=2), "node0") is None
    assert say(log, evidence(log, "node2"), "node0") is None
    assert len(log.state.admission.proven) == 3


def test_it_is_proven_once_within_a_block_too(log: LogBuilder) -> None:
    for reporter in ("node0", "node1"):
        log.say(evidence(log, reported_by=reporter), make_key(reporter))
    log.settle()
    assert [refusal.reason for refusal in log.refused] == [Reason.DUPLICATE_EVENT]


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": (b"one", b"one")},
        {"signer": "mallory"},
        {"name": "mallory"},
        {"name": "OPERATOR"},
    ],
)
def test_what_proves_nothing_is_refused(
    log: LogBuilder, options: dict[str, object]
) -> None:
    event = evidence(log, **options)  # type: ignore[arg-type]  # for brevity
    assert say(log, event, "node0") == Reason.NOT_PROVEN
    assert log.state.admission.proven == frozenset()


def test_the_sequencer_is_caught_with_two_trees_of_one_size(log: LogBuilder) -> None:
    messages = tuple(
        codec.encode(
            e.CheckpointSigned(
                federation_id=FEDERATION,
                height=1,
                checkpoint=sign_checkpoint(
                    Checkpoint(log.origin, 2, root * 32), make_key("SEQUENCER")
                ).decode(),
            )
        )
        for root in (b"\x01", b"\x02")
    )
    event = e.EquivocationProven(
        federation_id=FEDERATION,
        public_key=make_key("SEQUENCER").public_key,
        messages=messages,
        reported_by=make_key("node1").public_key,
    )
    assert say(log, event, "node1") is None
    [proven] = log.state.admission.proven
    assert (proven.offence, proven.position) == (Offence.TWO_TREES, 2)


def test_only_a_present_node_reports_in_its_own_name(log: LogBuilder) -> None:
    for stranger in ("mallory", "OPERATOR", "node9"):
        event = evidence(log, reported_by=stranger)
        assert say(log, event, stranger) == Reason.UNKNOWN_LEDGER_NODE
    assert say(log, evidence(log), "node1") == Reason.BAD_SIGNATURE


def test_a_node_that_left_may_be_accused_but_not_accuse(log: LogBuilder) -> None:
    log.change_nodes("node0", "node5")
    event = evidence(log, "node3", era=0, reported_by="node1")
    assert say(log, event, "node1") == Reason.UNKNOWN_LEDGER_NODE
    event = evidence(log, "node3", era=0, reported_by="node5")
    assert say(log, event, "node5") is None


# Without ledger nodes


def test_without_ledger_nodes_nobody_can_consent(
    log: LogBuilder,
) -> None:
    alone = LogBuilder(ledger_nodes=())
    alone.found()
    alone.admit("ada", "bea")
    assert alone.state.admission.node_sets == ()
    for event, signer in (
        (change(log), "OPERATOR"),
        (checkpoint(log, *NAMES), "TIMER"),
        (evidence(log), "node0"),
    ):
        assert say(alone, event, signer) == Reason.UNKNOWN_LEDGER_NODE


# Fields


def nodes_of(*names: str, **changes: str) -> tuple[e.LedgerNode, ...]:
    return tuple(
        e.LedgerNode(
            name=name,
            public_key=make_key(name).public_key,
            url=changes.get("url", "http://127.0.0.1:8000/log"),
        )
        for name in names
    )


GOOD_CHANGE = e.NodeSetChanged(
    federation_id=FEDERATION, era=1, nodes=nodes_of("a", "b"), approvals=()
)
ONE = nodes_of("a")


def with_nodes(nodes: tuple[e.LedgerNode, ...]) -> e.FederationConfigured:
    return replace(CONFIG, ledger_nodes=e.LedgerNodes(nodes=nodes))


@pytest.mark.parametrize(
    "nodes",
    [
        nodes_of("a"),
        nodes_of("a", "b"),
        nodes_of("a", url=""),
        nodes_of("a", url="https://[::1]:80"),
        nodes_of("a", url="https://a.example/x/y_z"),
        tuple(make_nodes([f"n{i:02}" for i in range(MAX_LEDGER_NODES)])),
    ],
)
def test_good_nodes(nodes: tuple[e.LedgerNode, ...]) -> None:
    assert find_problem(replace(GOOD_CHANGE, nodes=nodes)) is None
    assert find_problem(with_nodes(nodes)) is None


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        (nodes_of("b", "a"), "ascending"),
        (nodes_of("a", "a"), "ascending"),
        ((*ONE, replace(ONE[0], name="b")), "unique"),
        (nodes_of("A"), "name must be"),
        (nodes_of(""), "name must be"),
        (nodes_of("a+b"), "name must be"),
        (nodes_of("a" * 65), "name must be"),
        (nodes_of("bft"), "not bft or none"),
        (nodes_of("none"), "not bft or none"),
        (nodes_of("a", url="ftp://a"), "http://"),
        (nodes_of("a", url="http://"), "http://"),
        (nodes_of("a", url="http://a/?q"), "http://"),
        (nodes_of("a", url="http://u:p@a/"), "http://"),
        (nodes_of("a", url="http://a b"), "http://"),
        (nodes_of("a", url="http://a/\n"), "http://"),
        # What is a letter must not depend on whose Python asks.
        (nodes_of("a", url="http://a/é"), "http://"),
        (
            tuple(make_nodes([f"n{i:02}" for i in range(MAX_LEDGER_NODES + 1)])),
            "at most 64",
        ),
    ],
)
def test_bad_nodes(nodes: tuple[e.LedgerNode, ...], problem: str) -> None:
    for event in (
        replace(GOOD_CHANGE, nodes=nodes),
        with_nodes(nodes),
    ):
        assert problem in (find_problem(event) or "")


def test_a_federation_with_nodes_keeps_some() -> None:
    assert "keeps some" in (find_problem(replace(GOOD_CHANGE, nodes=())) or "")
    assert "be null" in (find_problem(with_nodes(())) or "")
    assert find_problem(replace(CONFIG, ledger_nodes=None)) is None


def test_the_first_era_is_the_genesis() -> None:
    assert "era must be" in (find_problem(replace(GOOD_CHANGE, era=0)) or "")


@pytest.mark.parametrize("name", e.RewardRule.__slots__)
def test_the_reward_rule_has_bounds(name: str) -> None:
    for points in (0, MAX_POINTS):
        rule = replace(e.RewardRule(), **{name: points})
        assert find_problem(replace(CONFIG, reward_rule=rule)) is None
    for points in (-1, MAX_POINTS + 1):
        rule = replace(e.RewardRule(), **{name: points})
        problem = find_problem(replace(CONFIG, reward_rule=rule))
        assert "reward_rule" in (problem or "")


def test_a_checkpoint_has_a_size() -> None:
    fits = "é" * (MAX_CHECKPOINT_SIZE_BYTES // 2)  # bytes, not characters
    event = e.CheckpointFinalised(federation_id=FEDERATION, checkpoint=fits)
    assert find_problem(event) is None
    longer = replace(event, checkpoint=fits + "x")
    assert str(MAX_CHECKPOINT_SIZE_BYTES) in (find_problem(longer) or "")


@pytest.mark.parametrize(
    ("messages", "is_good"),
    [
        ((), False),
        ((b"x",), False),
        ((b"x",) * 2, True),
        ((b"x",) * 3, True),
        ((b"x",) * 4, False),
        ((b"x" * MAX_EVIDENCE_SIZE_BYTES,) * 2, True),
        ((b"x", b"x" * (MAX_EVIDENCE_SIZE_BYTES + 1)), False),
    ],
)
def test_evidence_is_two_or_three_messages(
    messages: tuple[bytes, ...], is_good: bool
) -> None:
    event = e.EquivocationProven(
        federation_id=FEDERATION,
        public_key=bytes(32),
        messages=messages,
        reported_by=bytes(32),
    )
    assert (find_problem(event) is None) == is_good


# What others make of the state


def test_the_policy_is_the_present_nodes(log: LogBuilder) -> None:
    policy = make_policy(log.state.admission)
    assert parse_policy(policy.to_text().encode()) == policy
    assert [entry.key.name for entry in policy.logs] == [log.origin]
    assert [witness.name for witness in policy.witnesses] == list(NAMES)
    event = checkpoint(log, *NAMES[:3])
    verified = policy.verify(event.checkpoint.encode(), log.origin)
    assert verified.checkpoint.size == log.state.log.chain.size
    with pytest.raises(QuorumError):
        policy.verify(checkpoint(log, *NAMES[:2]).checkpoint.encode(), log.origin)
    log.change_nodes("node5")
    policy = make_policy(log.state.admission)
    assert [witness.name for witness in policy.witnesses] == ["node5"]
    policy.verify(checkpoint(log, "node5").checkpoint.encode(), log.origin)


def test_the_policy_says_where_the_nodes_are() -> None:
    url = "http://127.0.0.1:8000"
    log = LogBuilder()
    log.found()
    state = log.state.admission
    [nodes] = state.node_sets
    moved = NodeSet(0, nodes.chain_id, tuple(replace(n, url=url) for n in nodes.nodes))
    policy = make_policy(replace(state, node_sets=(moved,)))
    assert {witness.url for witness in policy.witnesses} == {url}


SAYERS: Sequence[str] = (
    *ROLES,
    *("ada", "bea", "cleo", "dora", "eve"),
    *NAMES,
    "node4",
)


def find_signer(leaf: e.Leaf, event: e.LedgerEvent, genesis: bytes) -> SigningKey:
    def is_by(key: SigningKey) -> bool:
        try:
            verify_event(
                key.public_key,
                choose_genesis(event, genesis),
                leaf.event,
                leaf.signature,
            )
        except InvalidSignatureError:
            return False
        return True

    [key] = [key for key in map(make_key, SAYERS) if is_by(key)]
    return key


def test_an_events_id_is_that_of_its_records_header() -> None:
    log = build_log()
    reader, state, ids = LogState(), admission.AdmissionState(), []
    for record in log.records:
        reader, _, opened = open_block(
            reader, unframe(record.value or b""), record.header(SIGNATURE_HEADER)
        )
        pairs = [(item.leaf, item.sequenced.event) for item in opened]
        state = admission.evolve(state, pairs)
        for leaf, event in pairs:
            headers = dict(
                make_headers(
                    event,
                    leaf.event,
                    find_signer(leaf, event, log.genesis),
                    log.genesis,
                    "",
                )
            )
            ids.append(compute_event_id(state, leaf, event))
            assert ids[-1] == headers[EVENT_ID_HEADER]
    assert len(set(ids)) == len(ids) == log.state.log.chain.size
    kinds = {type(event) for event in log.leaves}
    assert {e.EventRejected, e.EquivocationProven, e.UpdateDeclined} <= kinds


def test_sizes_on_the_log_only_grow() -> None:
    """What `build_log` lets the timer say, so that the above is about something."""
    sizes = [
        parse_checkpoint(parse_note(event.checkpoint.encode()).text).size
        for event in build_log().leaves
        if isinstance(event, e.CheckpointFinalised)
    ]
    assert len(sizes) >= 2
    assert all(a < b for a, b in pairwise(sizes))
