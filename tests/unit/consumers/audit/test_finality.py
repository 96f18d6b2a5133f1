"""What the ledger nodes' attestations make final, and what they give away."""

import random
from dataclasses import replace

import pytest

from adapters.kafka import Record, make_headers
from cli.audit_show import render
from consumers.audit import finality as audit_finality
from consumers.audit.auditor import run_audit
from consumers.audit.finality import Context, verify_record
from consumers.audit.report import FindingCode
from consumers.audit.state import load_state, save_state
from ledger.attestations import InvalidMessageError
from ledger.checkpoint import Checkpoint, sign_checkpoint
from ledger.policy import parse_policy
from protocol.admission import find_faults, make_policy
from schemas import codec, topics
from schemas import events as e
from tests.attesting import NOW_S, Nodes, attest_all, renumbered
from tests.builders import LogBuilder, build_log, make_header, make_key, unframe


@pytest.fixture(scope="module")
def log():
    return build_log()


@pytest.fixture(scope="module")
def honest(log):
    """All that honest nodes say of the log."""
    return attest_all(log)


def audit(log, attestations, **options):
    return run_audit(
        log.records,
        federation_id=log.federation_id,
        unframe=unframe,
        checkpoints=log.checkpoints,
        attestations=attestations,
        **options,
    ).report


def codes(report):
    return [finding.code for finding in report.findings]


def faults(report):
    """Return what is wrong with nodes; the log has nothing to do with it."""
    assert report.is_sound, report.findings
    return [fault.code for fault in report.node_faults]


def noise(report):
    """Return what was passed over, by code."""
    assert report.is_sound, report.findings
    return {item.code: item.count for item in report.noise}


def event_of(record):
    return codec.decode(unframe(record.value))


# Honest nodes


def test_every_block_but_the_last_is_final_and_the_report_says_by_what(log, honest):
    report = audit(log, honest)
    assert report.is_sound, report.findings
    finality = report.finality
    last = len(log.records) - 1
    assert finality.final_height == last - 1
    assert finality.num_certified == last
    assert finality.num_by_descendant == 0
    assert finality.num_not_final == 1
    assert finality.final_size == finality.cosigned_size < report.num_leaves
    assert finality.cosigned_at_s == NOW_S
    assert report.num_attestations == len(honest)
    assert any(
        "Not final yet" in note and "1 block at the end" in note
        for note in report.notes
    )
    assert any("after the last block" in note for note in report.notes)


def test_node_sets_and_nodes_have_their_history(log, honest):
    finality = audit(log, honest).finality
    change = next(
        record.offset // 2
        for record in log.records
        for leaf in event_of(record).leaves
        if isinstance(
            codec.decode(codec.decode_as(e.Leaf, leaf).event), e.NodeSetChanged
        )
    )
    assert [(era.era, era.first_height, era.quorum) for era in finality.eras] == [
        (0, 0, 3),
        (1, change + 1, 3),
    ]
    assert finality.eras[1].nodes == ("node0", "node1", "node2", "node4")
    nodes = {node.name: node for node in finality.nodes}
    assert not nodes["node3"].is_present
    assert nodes["node3"].last_height == change
    assert nodes["node0"].num_blocks_behind == 0
    assert nodes["node0"].num_cosignatures == len(log.records) - 1
    assert finality.num_epochs == 2
    text = render(audit(log, honest), 1.0)
    assert "Node sets:" in text
    assert "quorum 3 of 4" in text
    assert "former" in text


def test_the_order_of_attestations_does_not_matter(log, honest):
    shuffled = [*honest]
    random.Random(1).shuffle(shuffled)
    report = audit(log, renumbered(shuffled))
    assert report.finality == audit(log, honest).finality
    assert report.is_sound


def test_what_is_sent_again_counts_once(log, honest):
    again = renumbered([*honest, *honest])
    report = audit(log, again)
    assert report.is_sound
    assert report.finality == audit(log, honest).finality


def test_one_silent_node_of_four_does_not_matter_and_two_do(log):
    for num_silent, is_final in ((1, True), (2, False)):
        nodes = Nodes(log)
        nodes.attest_all(num_silent=num_silent)
        report = audit(log, nodes.records)
        assert report.is_sound
        assert (report.finality.final_height >= 0) is is_final
        assert bool(report.finality.cosigned_size) is is_final
    assert any("was cosigned by a quorum" in note for note in report.notes)
    assert "no block" in render(report, 1.0)


def test_a_block_without_certificates_of_its_own_is_final_by_a_descendant(log):
    nodes = Nodes(log)
    for block in nodes.blocks[:20]:
        if block.header.height not in {7, 8}:
            for name in ("node0", "node1", "node2"):
                nodes.attest(block, name)
    finality = audit(log, nodes.records).finality
    assert finality.final_height == 18
    # 6 has no certified child, 7 and 8 no certificate.
    assert finality.num_by_descendant == 3
    assert finality.num_certified == 16


def test_certificates_of_two_epochs_make_nothing_final(log):
    nodes = Nodes(log)
    for epoch, block in enumerate(nodes.blocks[:2]):
        for name in ("node0", "node1", "node2"):
            nodes.attest(block, name, epoch=epoch)
    finality = audit(log, nodes.records).finality
    assert finality.final_height == -1
    assert finality.num_epochs == 2
    for name in ("node0", "node1", "node2"):
        nodes.attest(nodes.blocks[0], name, epoch=1)
    assert audit(log, nodes.records).finality.final_height == 0


def test_closing_children_make_the_last_block_of_an_era_final(log):
    nodes = Nodes(log)
    names = ("node0", "node1", "node2")
    for block in nodes.closing:
        for name in names:
            nodes.attest(block, name)
    report = audit(log, nodes.records)
    assert report.is_sound
    era = report.finality.eras[1]
    assert report.finality.final_height == era.first_height - 1
    far = nodes.closing[-1].header
    for _ in range(audit_finality.MAX_CLOSING):
        far = far.closing_child()
    nodes.attest(nodes.closing[0], "node0", header=far)
    assert faults(audit(log, nodes.records)) == [FindingCode.ATTESTATION_DIFFERS]


def test_old_attestations_are_forgotten_and_finality_is_not(log, honest, monkeypatch):
    monkeypatch.setattr(audit_finality, "MAX_REMEMBERED", 4)
    monkeypatch.setattr(audit_finality, "MAX_COSIGNED", 4)
    report = audit(log, honest)
    assert report.is_sound
    assert report.finality == audit(log, honest).finality
    assert report.finality.num_certified == len(log.records) - 1


def test_attestations_may_be_left_out_and_the_report_says_so(log):
    report = audit(log, None)
    assert report.is_sound
    assert report.finality is None
    assert any("Attestations were left out" in note for note in report.notes)


# Another log than this one


def other_header(block, name=b"other"):
    return make_header(block.node_set, name, height=block.header.height)


def test_one_node_that_attests_another_block_is_named_and_the_log_is_sound(log):
    nodes = Nodes(log)
    block = nodes.blocks[3]
    nodes.attest(block, "node1", header=other_header(block))
    report = audit(log, nodes.records)
    assert faults(report) == [FindingCode.ATTESTATION_DIFFERS]
    fault = report.node_faults[0]
    assert "node1" in fault.message
    assert fault.expected == block.header.id.hex()
    assert fault.place.topic == topics.ATTESTATIONS
    assert report.num_node_faults == {FindingCode.ATTESTATION_DIFFERS: 1}
    assert "counts for nothing" in render(report, 1.0)


def test_more_nodes_than_may_lie_are_a_finding_whatever_they_attest(log):
    """One of them is honest: the sequencer signed a second block."""
    nodes = Nodes(log)
    block = nodes.blocks[3]
    nodes.attest(block, "node1", header=other_header(block, b"one"))
    nodes.attest(block, "node1", header=other_header(block, b"other"), epoch=2)
    nodes.attest(nodes.blocks[4], "node2", header=other_header(nodes.blocks[4]))
    assert set(faults(audit(log, nodes.records))) == {FindingCode.ATTESTATION_DIFFERS}
    nodes.attest(block, "node2", header=other_header(block, b"third"), epoch=1)
    report = audit(log, nodes.records)
    assert codes(report) == [FindingCode.ATTESTATION_DIFFERS]
    assert "2 ledger nodes" in report.findings[0].message
    # What counts is nobody's fault any more; what does not still is.
    assert [fault.expected for fault in report.node_faults] == [
        nodes.blocks[4].header.id.hex()
    ]


@pytest.mark.parametrize("num_nodes", [1, 2, 3])
def test_where_no_node_may_lie_the_word_of_one_counts(num_nodes):
    log = LogBuilder(ledger_nodes=tuple(f"node{i}" for i in range(num_nodes)))
    log.found()
    nodes = Nodes(log)
    nodes.attest(nodes.blocks[0], "node0", header=other_header(nodes.blocks[0]))
    (code,) = codes(audit(log, nodes.records))
    assert code == (
        FindingCode.FINAL_BLOCK_DIFFERS
        if num_nodes == 1
        else FindingCode.ATTESTATION_DIFFERS
    )


def test_a_quorum_for_another_block_is_the_strongest_finding(log):
    nodes = Nodes(log)
    block = nodes.blocks[3]
    for name in ("node0", "node1", "node2"):
        nodes.attest(block, name, header=other_header(block))
    report = audit(log, nodes.records)
    assert codes(report) == [
        FindingCode.ATTESTATION_DIFFERS,
        FindingCode.FINAL_BLOCK_DIFFERS,
    ]
    assert not report.node_faults
    assert not report.num_node_faults
    assert len(report.findings[-1].evidence) == 3
    assert report.to_json()["findings"][-1]["evidence"]


def test_a_log_that_was_cut_is_contradicted_by_its_nodes(log, honest):
    """Ledger and checkpoints were cut alike; the attestations remember."""
    report = run_audit(
        log.records[:20],
        federation_id="clinics",
        unframe=unframe,
        checkpoints=log.checkpoints[:20],
        attestations=[
            record
            for record in honest
            if isinstance(event_of(record), e.BlockAttested)
            and event_of(record).era == 0
        ],
        max_findings=9,
    ).report
    assert set(codes(report)) == {
        FindingCode.ATTESTATION_DIFFERS,
        FindingCode.FINAL_BLOCK_DIFFERS,
    }
    assert "does not have" in report.findings[0].message


def test_a_cosigned_checkpoint_of_another_log_is_found(log):
    nodes = Nodes(log)
    key = make_key("SEQUENCER")
    for size, height in ((1, 3), (1, -1), (10**6, 10_000)):
        other = Checkpoint(log.origin, size, bytes(32))
        nodes.cosign(height, "node0", note=sign_checkpoint(other, key))
    report = audit(log, nodes.records)
    assert codes(report) == [FindingCode.COSIGNATURE_DIFFERS] * 3
    assert ["no such block" in finding.expected for finding in report.findings] == [
        False,
        False,
        True,
    ]


def test_a_true_checkpoint_that_a_node_gives_another_height_is_its_own_fault(log):
    """Only the height is the node's word: no log was forked."""
    nodes = Nodes(log)
    for height in (3, -1, 10_000):
        value = unframe(log.checkpoints[5].value)
        note = codec.decode_as(e.CheckpointSigned, value).checkpoint.encode()
        nodes.cosign(height, "node0", note=note)
    report = audit(log, nodes.records)
    assert faults(report) == [FindingCode.COSIGNATURE_MISPLACED] * 3
    assert report.node_faults[0].expected == "block 5"
    assert report.finality.nodes[0].num_cosignatures == 0


# Contradictions


def proves(log, finding):
    """Whether a finding's evidence is what the ledger would take as proof."""
    messages = tuple(map(bytes.fromhex, finding.evidence))
    reporter = make_key("node0")
    accused = codec.decode(messages[0]).public_key
    proven = e.EquivocationProven(
        federation_id=log.federation_id,
        public_key=accused,
        messages=messages,
        reported_by=reporter.public_key,
    )
    leaf = log.copy().make_leaf(proven, reporter)
    faults, _ = find_faults(log.state.admission, [(leaf, proven)])
    return not faults


@pytest.fixture
def young():
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    return log


def test_two_blocks_at_one_place_are_proven_whatever_comes_first(young):
    for turn in (False, True):
        nodes = Nodes(young)
        block = nodes.blocks[2]
        for header in (None, other_header(block))[:: -1 if turn else 1]:
            nodes.attest(block, "node2", header=header)
        report = audit(young, nodes.records)
        assert sorted(faults(report)) == [
            FindingCode.ATTESTATION_DIFFERS,
            FindingCode.EQUIVOCATION,
        ]
        found = {fault.code: fault for fault in report.node_faults}
        assert proves(young, found[FindingCode.EQUIVOCATION])
        assert "node2" in found[FindingCode.EQUIVOCATION].message


def test_two_other_blocks_at_one_place_are_proven_too(young):
    nodes = Nodes(young)
    block = nodes.blocks[2]
    for name in (b"one", b"other"):
        nodes.attest(block, "node2", header=other_header(block, name))
    report = audit(young, nodes.records)
    # Of one node and height the first is listed.
    assert faults(report).count(FindingCode.ATTESTATION_DIFFERS) == 1
    (finding,) = [f for f in report.node_faults if f.code == FindingCode.EQUIVOCATION]
    assert proves(young, finding)


def test_two_requests_for_one_epoch_are_proven(young):
    nodes = Nodes(young)
    nodes.request(0, "node1", 1)
    nodes.request(0, "node1", 1)  # again: no contradiction
    assert audit(young, nodes.records).is_sound
    nodes.request(0, "node1", 1, nodes.certify(nodes.blocks[1]))
    report = audit(young, nodes.records)
    assert faults(report) == [FindingCode.EQUIVOCATION]
    assert "TWO_REQUESTS" in report.node_faults[0].message
    assert proves(young, report.node_faults[0])
    assert report.num_node_faults == {FindingCode.EQUIVOCATION: 1}


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("request_first", [False, True])
def test_a_hidden_certificate_is_proven(young, epoch, request_first):
    nodes = Nodes(young)

    def attest():
        for block in nodes.blocks[1:3]:
            nodes.attest(block, "node1", epoch=epoch)

    if not request_first:
        attest()
    nodes.request(0, "node1", epoch + 1)
    if request_first:
        attest()
    report = audit(young, nodes.records)
    assert set(faults(report)) == {FindingCode.EQUIVOCATION}
    for finding in report.node_faults:
        assert "HIDDEN_CERTIFICATE" in finding.message
        assert proves(young, finding)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_request_that_hides_nothing_is_no_contradiction(young, epoch):
    nodes = Nodes(young)
    for block in nodes.blocks[1:3]:
        nodes.attest(block, "node1", epoch=epoch)
    high = nodes.certify(nodes.blocks[1], epoch=epoch)
    nodes.request(0, "node1", epoch + 1, high)
    nodes.attest(nodes.blocks[2], "node1", epoch=epoch + 1)
    nodes.request(0, "node1", epoch + 2, high)
    assert audit(young, nodes.records).is_sound


def test_requests_are_forgotten_but_the_latest(young, monkeypatch):
    monkeypatch.setattr(audit_finality, "MAX_REQUESTS", 2)
    nodes = Nodes(young)
    for epoch in (1, 2, 3):
        nodes.request(0, "node1", epoch)
    nodes.request(0, "node1", 1, nodes.certify(nodes.blocks[1]))
    assert audit(young, nodes.records).is_sound


def test_a_contradiction_that_the_ledger_has_is_no_finding(log):
    """node3 was caught with two attestations of height 1 in epoch 0."""
    proven = next(x for x in log.leaves if isinstance(x, e.EquivocationProven))
    nodes = Nodes(log)
    for data in proven.messages:
        nodes.say(codec.decode(data), make_key("node3"))
    report = audit(log, nodes.records)
    assert set(faults(report)) == {FindingCode.ATTESTATION_DIFFERS}


# Records


def test_an_attestation_by_a_stranger_is_counted_and_changes_nothing(log, honest):
    nodes = Nodes(log)
    stranger = make_key("mallory")
    nodes.attest(nodes.blocks[0], "node0")
    event = event_of(nodes.records[0])
    nodes.say(event, stranger)  # a node's word in a stranger's record
    nodes.say(replace(event, public_key=stranger.public_key), stranger)
    nodes.say(replace(event, era=7), make_key("node0"))
    nodes.say(replace(event, height=-1), make_key("node0"))
    nodes.say(replace(event, federation_id="banks"), make_key("node0"))
    nodes.cosign(0, "mallory")
    note = Checkpoint(log.origin, 1, bytes(32))
    nodes.cosign(0, "node0", note=sign_checkpoint(note, stranger))
    bad = [
        replace(record, offset=10_000 + i, key=b"clinics")
        for i, record in enumerate(nodes.records[1:])
    ]
    report = audit(log, [*honest, *bad])
    assert noise(report) == {FindingCode.ATTESTATION_INVALID: 7}
    assert report.finality == audit(log, honest).finality
    assert any("moot.attestations, where" in note for note in report.notes)
    assert any("7 records not by" in note for note in report.notes)
    assert "7 ATTESTATION_INVALID on moot.attestations" in render(report, 1.0)
    assert report.noise[0].first.offset == 10_000


def test_an_attestation_of_an_earlier_eras_block_is_invalid(log):
    nodes = Nodes(log)
    block = nodes.blocks[-1]
    nodes.attest(block, "node0", header=replace(block.header, height=3))
    assert noise(audit(log, nodes.records)) == {FindingCode.ATTESTATION_INVALID: 1}


def test_another_event_or_nothing_is_noise(log, honest):
    other = replace(honest[0], value=log.checkpoints[0].value)
    empty = replace(honest[0], value=None)
    for record in (other, empty):
        report = audit(log, [record, *honest[1:]])
        assert noise(report) == {FindingCode.ATTESTATION_INVALID: 1}


def test_records_of_others_do_not_matter_and_ours_under_another_key_are_noise(
    log, honest
):
    other = replace(honest[0], key=b"banks", value=b"whatever")
    assert noise(audit(log, [other, *honest])) == {}
    moved = replace(honest[0], key=b"banks")
    report = audit(log, [moved, *honest[1:]])
    assert noise(report) == {FindingCode.WRONG_KEY: 1}
    assert report.num_attestations == len(honest) - 1


def test_a_nodes_record_that_anybody_sent_again_with_other_headers_counts_once(
    log, honest
):
    signature, event_id, trace = honest[0].headers
    sent_again = [
        (signature, event_id, trace, ("x", b"y")),
        (signature, event_id),
        (event_id, trace, signature),
        (signature,),
        (signature, signature, event_id, trace),
    ]
    again = [
        replace(honest[0], headers=headers, offset=10_000 + i)
        for i, headers in enumerate(sent_again)
    ]
    report = audit(log, [*honest, *again])
    assert noise(report) == {FindingCode.WRONG_HEADERS: len(again)}
    assert report.finality == audit(log, honest).finality


def junk(number, **fields):
    return Record(
        **{
            "topic": topics.ATTESTATIONS,
            "partition": 0,
            "offset": number,
            "key": b"clinics",
            "value": b"\0\0\0\0\7junk",
            "headers": (),
            **fields,
        }
    )


def test_no_amount_of_noise_hides_another_log():
    """The reader is shown one log; the nodes certified another."""

    def make(*agents):
        log = LogBuilder()
        log.found()
        log.admit(*agents)
        for _ in range(3):
            log.request_finality()
        return log

    shown, final = make("ada", "bea"), make("cleo", "dora")
    said = attest_all(final)
    expected = audit(shown, said)
    assert FindingCode.FINAL_BLOCK_DIFFERS in codes(expected)
    rubbish = [junk(number) for number in range(300)]
    for records in ([*rubbish, *said], [*said, *rubbish]):
        report = audit(shown, renumbered(records))
        assert report.num_findings == expected.num_findings
        assert report.noise[0].count == 300


def test_what_noise_costs_to_remember_does_not_grow(log, honest):
    def size_after(count):
        audited = run_audit(
            log.records,
            federation_id="clinics",
            unframe=unframe,
            attestations=[*honest, *(junk(10_000 + i) for i in range(count))],
        )
        assert noise(audited.report) == {FindingCode.ATTESTATION_INVALID: count}
        return len(save_state(audited.state)), len(str(audited.report))

    # As long as the numbers have as many digits.
    assert size_after(9_999) == size_after(1_000)


def test_one_node_cannot_make_the_audit_forget_what_others_said(log, monkeypatch):
    """Its own word is all that a node can push out of memory."""
    monkeypatch.setattr(audit_finality, "MAX_REMEMBERED", 8)
    monkeypatch.setattr(audit_finality, "MAX_COSIGNED", 2)
    monkeypatch.setattr(audit_finality, "MAX_OTHERS", 8)
    names = ("node0", "node1", "node2")
    expected = audit_young_of(log, names)
    # The fourth says much between any two words of the others.
    report = audit_young_of(log, names, liar="node3")
    assert report.is_sound, report.findings
    assert report.finality.final_height == expected.finality.final_height > 0
    assert report.finality.cosigned_size == expected.finality.cosigned_size > 0
    state = report.node_faults
    assert 0 < len(state) <= 2 * audit_finality.MAX_FAULTS


def audit_young_of(log, names, *, liar=None):
    """Let nodes attest the blocks of the first era, and one lie in between."""
    nodes = Nodes(log)
    blocks = [block for block in nodes.blocks if block.header.era == 0]
    for block in blocks:
        for name in names:
            nodes.attest(block, name)
            if liar is not None:
                for epoch in range(4):
                    for other in blocks[:: len(blocks) // 4]:
                        nodes.attest(other, liar, epoch=epoch)
                        nodes.attest(
                            other, liar, epoch=epoch, header=other_header(other)
                        )
    for height in range(4):
        for name in names:
            nodes.cosign(height, name)
    if liar is not None:
        for height in range(len(blocks)):
            nodes.cosign(height, liar)
    return audit(log, nodes.records)


def test_the_time_of_a_cosigned_checkpoint_is_not_one_nodes_word(log):
    nodes = Nodes(log)
    for name in ("node0", "node1", "node2"):
        nodes.cosign(0, name)
    nodes.cosign(0, "node3", at_s=NOW_S + 10**9)
    assert audit(log, nodes.records).finality.cosigned_at_s == NOW_S


def test_an_accused_node_is_still_accused_by_the_next_audit(young):
    nodes = Nodes(young)
    nodes.request(0, "node1", 1)
    nodes.request(0, "node1", 1, nodes.certify(nodes.blocks[1]))
    first = run_audit(
        young.records,
        federation_id="clinics",
        unframe=unframe,
        attestations=[*nodes.records, junk(10_000)],
    )
    assert faults(first.report) == [FindingCode.EQUIVOCATION]
    state = load_state(save_state(first.state))
    second = run_audit(
        young.records[-1:],
        federation_id="clinics",
        unframe=unframe,
        attestations=[junk(10_000), junk(10_001)],
        start=state,
    ).report
    assert second.node_faults == first.report.node_faults
    assert noise(second) == {FindingCode.ATTESTATION_INVALID: 2}


@pytest.mark.parametrize("trace", [b"", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"])
def test_any_trace_context_will_do_if_it_is_one(log, honest, trace):
    def with_trace(value):
        return replace(
            honest[0], headers=(*honest[0].headers[:2], ("traceparent", value))
        )

    assert audit(log, [with_trace(trace), *honest[1:]]).is_sound
    report = audit(log, [with_trace(trace + b"x"), *honest[1:]])
    assert noise(report) == {FindingCode.WRONG_HEADERS: 1}


def test_a_cosignature_by_a_stranger_or_by_two_nodes_is_refused(log):
    nodes = Nodes(log)
    nodes.cosign(0, "node0")
    one = event_of(nodes.records[0]).checkpoint
    nodes.cosign(0, "node1", note=one.encode())
    context = Context(
        federation_id="clinics",
        genesis=log.genesis,
        sequencer_key=make_key("SEQUENCER").public_key,
        eras=((nodes.blocks[0].node_set, (-1, bytes(32))),),
    )
    record = nodes.records[0]
    said = verify_record(
        context, unframe(record.value), record.header("moot-signature")
    )
    assert said.public_key == make_key("node0").public_key
    assert said.num_signatures == 3
    event = event_of(nodes.records[1])
    data = codec.encode(event)
    headers = dict(make_headers(event, data, make_key("node1"), log.genesis, ""))
    with pytest.raises(InvalidMessageError, match="2 cosignatures"):
        verify_record(context, data, headers["moot-signature"])


# The reader's policy


def test_a_policy_says_which_checkpoint_is_accepted(log, honest):
    policy = make_policy(log.state.admission)
    report = audit(log, honest, policy=policy)
    assert report.is_sound
    assert report.finality.policy_size == report.finality.cosigned_size
    assert "as your policy demands" in render(report, 1.0)


def test_a_policy_that_nothing_satisfies_is_a_finding(log, honest):
    text = make_policy(log.state.admission).to_text()
    other_log = build_log(federation_id="banks")
    of_others = make_policy(other_log.state.admission)
    demanding = parse_policy(
        text.replace(
            "group bft 3 node0 node1 node2 node4", "group bft 4 node0 node1 node2 node4"
        ).encode()
    )
    for policy in (of_others, demanding):
        nodes = Nodes(log)
        nodes.attest_all(num_silent=1)
        report = audit(log, nodes.records, policy=policy)
        assert codes(report) == [FindingCode.POLICY_NOT_MET]
        assert report.finality.policy_size == 0
