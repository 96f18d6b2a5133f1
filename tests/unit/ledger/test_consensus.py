"""The rules of an honest node, one by one."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from ledger import consensus as module
from ledger.attestations import Header, InvalidMessageError
from ledger.consensus import (
    MAX_REMEMBERED,
    Consensus,
    CosignRefusedError,
    Effects,
    InvalidBlockError,
)
from ledger.equivocation import Offence, verify_equivocation
from ledger.finality import verify_finality
from ledger.votes import VoteState
from schemas import events as e
from tests.endings import verify_last_block
from tests.unit.ledger.nodes import (
    BEGIN,
    FEDERATION,
    KEYS,
    NODES,
    STRANGER,
    attest,
    certify,
    make_chain,
    make_header,
    make_key,
    make_nodes,
    request,
)

CHAIN = make_chain(8)
FORK = make_chain(8, "fork")
ME, *OTHERS = KEYS


def make_node(
    *blocks: Header, key=ME, votes: VoteState | None = None, **options
) -> Consensus:
    node = Consensus(NODES, FEDERATION, BEGIN, key=key, votes=votes, **options)
    for block in blocks:
        node.add_block(block)
    return node


def restart(node: Consensus, *blocks: Header, **options: Any) -> Consensus:
    """Return the node after a crash: all it has left is what it stored."""
    votes = VoteState.from_bytes(node.votes.to_bytes())
    return make_node(*blocks, votes=votes, **options)


def attested(effects: Effects) -> list[tuple[int, int, bytes]]:
    return [
        (m.epoch, m.height, m.block_id)
        for m in effects.messages
        if isinstance(m, e.BlockAttested)
    ]


def requested(effects: Effects) -> list[tuple[int, int, int]]:
    return [
        (m.epoch, m.high.epoch, m.high.height)
        for m in effects.messages
        if isinstance(m, e.EpochRequested)
    ]


def receive_all(node: Consensus, *messages) -> Effects:
    """Deliver, and return what the last message led to."""
    effects = Effects()
    for message in messages:
        effects = node.receive(message)
    return effects


def enter(node: Consensus, epoch: int, high=None, keys=OTHERS) -> Effects:
    """Bring a node into an epoch by the requests of others."""
    return receive_all(node, *(request(key, epoch, high) for key in keys))


# Attesting: R1, R2.


def test_a_node_attests_what_it_read_first_and_nothing_else_at_that_height():
    node = make_node()
    assert attested(node.add_block(CHAIN[0])) == [(0, 0, CHAIN[0].id)]
    assert attested(node.add_block(FORK[0])) == []
    assert node.receive(certify(FORK[0], keys=OTHERS)).messages == ()


def test_a_node_attests_a_child_only_once_it_holds_the_parents_certificate():
    node = make_node(CHAIN[0])
    assert attested(node.add_block(CHAIN[1])) == []
    assert attested(node.receive(attest(OTHERS[0], CHAIN[0]))) == []
    assert attested(node.receive(attest(OTHERS[1], CHAIN[0]))) == [(0, 1, CHAIN[1].id)]
    assert node.votes.high == node.high == certify(CHAIN[0])


def test_a_certificate_of_another_epoch_is_not_the_parents():
    node = make_node(*CHAIN[:2])
    assert attested(node.receive(certify(CHAIN[0], epoch=1, keys=OTHERS))) == []


def test_a_node_that_lags_attests_only_the_top():
    node = make_node()
    for header in CHAIN[:3]:
        node.receive(certify(header, keys=OTHERS))
    effects = [node.add_block(header) for header in CHAIN[:4]]
    assert [attested(x) for x in effects] == [[], [], [], [(0, 3, CHAIN[3].id)]]


def test_nothing_happens_twice():
    node = make_node(CHAIN[0])
    message, asked = attest(OTHERS[0], CHAIN[0]), request(OTHERS[0])
    certificate = certify(CHAIN[0])
    for again in (message, asked, certificate):
        node.receive(again)
        before = node.votes, node.certificates()
        assert node.receive(again) == Effects()
        assert (node.votes, node.certificates()) == before
    assert node.add_block(CHAIN[0]) == Effects()


def test_the_votes_are_stored_with_what_is_sent():
    node = make_node()
    effects = node.add_block(CHAIN[0])
    assert effects.votes == node.votes
    assert effects.votes.last_attestation == effects.messages[0]
    assert effects.votes.attested == (0, CHAIN[0].id)
    assert node.receive(attest(OTHERS[0], CHAIN[0])).votes is None


# Finality.


def settle(node: Consensus, *headers: Header, epoch: int = 0) -> Effects:
    return receive_all(node, *(certify(h, epoch, OTHERS) for h in headers))


@pytest.mark.parametrize("key", [None, ME])
def test_a_block_is_final_once_it_and_its_child_are_certified(key):
    node = make_node(*CHAIN[:2], key=key)
    assert settle(node, CHAIN[0]).finalised == ()
    (block,) = settle(node, CHAIN[1]).finalised
    assert block.header == CHAIN[0]
    verify_finality(NODES, block.proof, BEGIN)
    assert (node.final_height, node.final_id) == (0, CHAIN[0].id)
    assert node.pending == (CHAIN[1],)


def test_certificates_of_two_epochs_make_nothing_final():
    node = make_node(*CHAIN[:3], key=None)
    settle(node, CHAIN[0])
    assert settle(node, CHAIN[1], epoch=1).finalised == ()
    finalised = settle(node, CHAIN[2], epoch=1).finalised
    assert [block.header for block in finalised] == CHAIN[:2]
    assert {block.proof.header for block in finalised} == {CHAIN[1]}


def test_certificates_may_come_in_any_order_and_before_the_blocks():
    node = make_node(key=None)
    settle(node, CHAIN[4], CHAIN[3])
    assert node.receive(certify(CHAIN[4])).missing == (
        (3, CHAIN[3].id),
        (4, CHAIN[4].id),
    )
    for header in CHAIN[:4]:
        assert node.add_block(header).finalised == ()
    effects = node.add_block(CHAIN[4])
    assert [block.header for block in effects.finalised] == CHAIN[:4]
    assert effects.missing == ()


def test_a_fork_is_forgotten_when_the_other_branch_is_final():
    node = make_node(*CHAIN[:3], *FORK[:3], key=None)
    settle(node, FORK[0], FORK[1])
    assert node.pending == (FORK[1], FORK[2])
    assert node._blocks.get(CHAIN[1].id) is None
    assert node._blocks.get(FORK[0].id) == FORK[0]
    with pytest.raises(
        InvalidBlockError, match=r"the parent of block 3, .*, is unknown"
    ):
        node.add_block(CHAIN[3])
    assert node.add_block(CHAIN[0]) == Effects()


def test_old_certificates_are_forgotten():
    node = make_node(*CHAIN[:4], key=None)
    settle(node, *CHAIN[:4])
    assert [c.height for c in node.certificates()] == [2, 3]
    settle(node, CHAIN[0])
    assert [c.height for c in node.certificates()] == [2, 3]


# Blocks.


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (CHAIN[2], "is unknown"),
        (make_header(CHAIN[0], height=2), "block 2 cannot follow block 0"),
        (make_header(height=1), "block 1 cannot follow block -1"),
        (make_header(CHAIN[0], era=1), "another log, era or node set"),
        (make_header(CHAIN[0], node_set_hash=bytes(32)), "another log, era"),
    ],
)
def test_a_block_that_cannot_follow_is_refused(header, says):
    node = make_node(CHAIN[0])
    with pytest.raises(InvalidBlockError, match=says):
        node.add_block(header)


def test_a_block_that_is_refused_and_what_follows_it_is_not_attested():
    node = make_node(CHAIN[0])
    node.add_block(CHAIN[1], is_refused=True)
    node.add_block(CHAIN[2])
    assert node.receive(certify(CHAIN[0], keys=OTHERS)).messages == ()
    assert [node.is_refused(block) for block in CHAIN[:3]] == [False, True, True]
    # Attesting the child would make it final.
    assert node.receive(certify(CHAIN[1], keys=OTHERS)).messages == ()
    assert node.votes.attested == (0, CHAIN[0].id)


def test_another_child_is_attested_instead_of_one_that_is_refused():
    node = make_node(CHAIN[0])
    node.add_block(CHAIN[1], is_refused=True)
    sibling = make_header(CHAIN[0], "fork")
    node.receive(certify(CHAIN[0], keys=OTHERS))
    assert attested(node.add_block(sibling)) == [(0, 1, sibling.id)]


def test_a_refused_block_that_others_make_final_is_final():
    node = make_node(CHAIN[0])
    node.add_block(CHAIN[1], is_refused=True)
    for block in CHAIN[2:4]:
        node.add_block(block)
    certified = [certify(header, keys=OTHERS) for header in CHAIN[:3]]
    effects = receive_all(node, *certified)
    assert [found.header for found in effects.finalised] == [CHAIN[1]]
    assert attested(effects) == [(0, 3, CHAIN[3].id)]
    assert not node.is_refused(CHAIN[2])


# Giving up: R3, R7.


def test_a_node_that_gave_up_attests_no_more_in_this_epoch():
    node = make_node(CHAIN[0])
    assert requested(node.give_up()) == [(1, 0, -1)]
    assert node.add_block(CHAIN[1]).messages == ()
    assert node.receive(certify(CHAIN[0], keys=OTHERS)).messages == ()
    node = make_node()
    node.give_up()
    assert node.add_block(CHAIN[0]).messages == ()


def test_giving_up_again_gives_the_same_bytes():
    node = make_node(*CHAIN[:2])
    first = node.give_up()
    node.receive(certify(CHAIN[0], keys=OTHERS))
    again = node.give_up()
    assert again.messages == first.messages
    assert again.votes is None
    assert first.votes.last_request == first.messages[0]


def test_a_request_names_the_highest_certificate_that_is_known():
    node = make_node(CHAIN[0])
    node.receive(certify(CHAIN[1], keys=OTHERS))
    effects = node.give_up()
    assert requested(effects) == [(1, 0, 1)]
    assert effects.votes.high.height == 1


def test_a_request_names_no_certificate_of_an_epoch_to_come():
    node = make_node(CHAIN[0])
    node.receive(certify(CHAIN[0], epoch=1, keys=OTHERS))
    assert node.high.epoch == 1
    assert requested(node.give_up()) == [(1, 0, -1)]
    assert node.votes.high.height == -1


def test_a_node_joins_one_more_than_may_be_faulty():
    node = make_node()
    assert node.receive(request(OTHERS[0])).messages == ()
    assert requested(node.receive(request(OTHERS[1]))) == [(1, 0, -1)]


def test_a_node_joins_the_highest_epoch_that_an_honest_one_asked_for():
    node = make_node()
    node.receive(request(OTHERS[0], 9))
    assert requested(node.receive(request(OTHERS[1], 5))) == [(5, 0, -1)]
    assert node.receive(request(OTHERS[2], 4)).messages == ()
    assert requested(node.receive(request(OTHERS[2], 7))) == [(7, 0, -1)]


def test_ones_own_request_does_not_count_among_the_others():
    node = make_node()
    node.give_up()
    assert node.receive(request(OTHERS[0], 2)).messages == ()


def split(node: Consensus, *headers: Header, epoch: int = 0) -> Effects:
    """Let the others attest one block each."""
    pairs = zip(OTHERS, headers, strict=False)
    return receive_all(node, *(attest(key, header, epoch) for key, header in pairs))


THIRD = make_header(label="third")


def test_a_split_that_nothing_can_heal_is_given_up_at_once():
    node = make_node(CHAIN[0])
    assert requested(split(node, CHAIN[0], FORK[0])) == []
    effects = node.receive(attest(OTHERS[2], FORK[0]))
    assert requested(effects) == [(1, 0, -1)]
    assert effects.votes == node.votes
    assert effects.votes.last_request == effects.messages[-1]
    # R3: and nothing more is attested in this epoch.
    assert node.receive(certify(CHAIN[0])).messages == ()


def test_three_against_one_is_no_split():
    node = make_node(CHAIN[0])
    assert attested(split(node, FORK[0], CHAIN[0])) == []
    assert node.receive(attest(OTHERS[2], CHAIN[0])).messages == ()
    assert node.high.block_id == CHAIN[0].id
    outvoted = make_node(CHAIN[0])
    assert split(outvoted, FORK[0], FORK[0], FORK[0]).messages == ()
    assert outvoted.high.block_id == FORK[0].id


def test_no_one_node_alone_can_make_a_split():
    """While who was not heard could make a quorum, it is waited for."""
    for node in (make_node(CHAIN[0]), make_node()):
        assert requested(split(node, FORK[0], CHAIN[0])) == []
        node.receive(attest(OTHERS[0], THIRD))
        assert node.votes.requested_epoch == 0


def test_ones_own_attestation_may_be_what_splits():
    node = make_node()
    split(node, CHAIN[0], FORK[0], FORK[0])
    effects = node.add_block(CHAIN[0])
    assert attested(effects) == [(0, 0, CHAIN[0].id)]
    assert requested(effects) == [(1, 0, -1)]


def test_three_blocks_are_a_split_whatever_the_fourth_node_says():
    node = make_node(CHAIN[0])
    assert requested(split(node, FORK[0], THIRD)) == [(1, 0, -1)]


def test_a_split_is_one_right_above_what_is_certified():
    node = make_node(*CHAIN[:2])
    node.receive(certify(CHAIN[0], keys=OTHERS))
    effects = split(node, CHAIN[1], FORK[1], FORK[1])
    assert requested(effects) == [(1, 0, 0)]


def test_a_split_elsewhere_does_not_count():
    node = make_node(CHAIN[0])
    assert requested(split(node, CHAIN[2], FORK[2], THIRD)) == []
    assert requested(split(node, CHAIN[0], FORK[0], FORK[0], epoch=2)) == []


def test_what_is_certified_is_not_split_whatever_was_heard():
    """A node that said one thing here and another elsewhere counts for the first."""
    node = make_node(CHAIN[0])
    split(node, CHAIN[0])
    effects = node.receive(certify(FORK[0], keys=OTHERS))
    assert requested(effects) == []
    assert effects.missing == ((0, FORK[0].id),)


def test_a_leader_who_splits_the_others_costs_no_time_either():
    node = make_node(CHAIN[0], FORK[0])
    enter(node, 1)
    leader, second, third = OTHERS
    node.receive(attest(second, CHAIN[0], 1))
    node.receive(attest(third, CHAIN[0], 1))
    effects = node.receive(attest(leader, FORK[0], 1))
    assert attested(effects) == [(1, 0, FORK[0].id)]
    assert requested(effects) == [(2, 0, -1)]


def test_a_split_of_the_epoch_that_is_entered_is_seen_at_once():
    node = make_node(CHAIN[0])
    split(node, CHAIN[0], FORK[0], THIRD, epoch=1)
    effects = enter(node, 1, keys=OTHERS[:2])
    assert effects.started_epoch == 1
    assert requested(effects) == [(1, 0, -1), (2, 0, -1)]
    assert attested(effects) == [(1, 0, CHAIN[0].id)]
    assert effects.votes.last_request.epoch == 2


def test_a_node_that_gave_up_does_not_give_up_again_for_a_split():
    node = make_node(CHAIN[0])
    node.give_up()
    assert split(node, FORK[0], THIRD).messages == ()


def test_an_observer_gives_nothing_up():
    node = make_node(CHAIN[0], key=None)
    assert split(node, CHAIN[0], FORK[0], THIRD).messages == ()
    assert node.votes.requested_epoch == 0


def test_two_nodes_are_split_as_soon_as_they_differ():
    nodes = make_nodes("a", "b")
    node = Consensus(nodes, FEDERATION, BEGIN, key=make_key("a"))
    header, other = (make_header(label=label, nodes=nodes) for label in ("", "other"))
    node.add_block(header)
    effects = node.receive(attest(make_key("b"), other, nodes=nodes))
    assert requested(effects) == [(1, 0, -1)]


# Epochs: R4.


def test_a_quorum_of_requests_begins_an_epoch():
    node = make_node(CHAIN[0])
    node.receive(request(OTHERS[0]))
    effects = node.receive(request(OTHERS[1], 1, certify(CHAIN[0])))
    # Its own request is the third.
    assert effects.started_epoch == node.epoch == 1
    assert [m.epoch for m in effects.messages] == [1]
    votes = effects.votes
    assert votes.base == votes.high == certify(CHAIN[0])
    assert votes.attested == (0, CHAIN[0].id)
    assert votes.requested_epoch == 1
    assert {m.public_key for m in votes.entered} == {
        k.public_key for k in (ME, *OTHERS[:2])
    }


def test_less_than_a_quorum_does_not():
    node = make_node()
    node.give_up()
    assert node.receive(request(OTHERS[0])).started_epoch is None
    assert node.receive(request(OTHERS[1])).started_epoch == 1


def test_requests_for_different_epochs_do_not_add_up():
    node = make_node()
    node.give_up()
    node.receive(request(OTHERS[0]))
    assert node.receive(request(OTHERS[1], 2)).started_epoch is None
    assert node.epoch == 0


def test_an_epoch_before_the_one_asked_for_is_never_entered():
    node = make_node()
    enter(node, 5, keys=OTHERS[:2])
    assert node.epoch == 5
    node.give_up()
    assert enter(node, 3).started_epoch is None
    assert node.epoch == 5


def test_epochs_may_be_skipped():
    node = make_node(CHAIN[0])
    assert enter(node, 7, certify(CHAIN[0], 2, OTHERS), OTHERS[:2]).started_epoch == 7


def test_only_descendants_of_the_base_are_attested():
    # n1 leads epoch 1 and wants to go on with the fork; n2 leads epoch 2.
    node = make_node(CHAIN[0], FORK[0], FORK[1], CHAIN[1])
    enter(node, 1, certify(CHAIN[0]))
    assert node.receive(attest(OTHERS[0], FORK[1], 1)).messages == ()
    node.receive(certify(FORK[0], 1, OTHERS))
    assert node.receive(certify(FORK[1], 1, OTHERS)).messages == ()


def test_a_base_need_not_be_known_yet():
    node = make_node()
    high = certify(CHAIN[1], 3, OTHERS)
    wanted = ((1, CHAIN[1].id),)
    assert enter(node, 4, high).missing == node.missing == wanted
    assert node.receive(high) == Effects(missing=wanted)  # the whole list, every time
    assert node.leader == NODES.nodes[0]
    node.add_block(CHAIN[0])
    node.add_block(CHAIN[1])
    assert attested(node.add_block(CHAIN[2])) == [(4, 2, CHAIN[2].id)]
    assert node.missing == ()


def test_a_base_below_the_last_final_block_supports_nothing():
    """It takes more than f liars; still nothing is attested against finality."""
    node = make_node(*CHAIN[:3], FORK[0])
    settle(node, *CHAIN[:2])
    enter(node, 4, certify(FORK[0], 2, OTHERS))
    assert node.epoch == 4
    assert node.add_block(make_header(CHAIN[2])).messages == ()
    assert node.receive(certify(CHAIN[2], 4, OTHERS)).messages == ()


# Leaders.


def test_nobody_leads_the_first_epoch_and_then_the_nodes_take_turns():
    node = make_node()
    assert node.leader is None
    for epoch in (1, 2, 3, 4, 5):
        enter(node, epoch)
        assert node.leader == NODES.nodes[epoch % 4]


def test_the_others_attest_what_the_leader_attests():
    node = make_node(CHAIN[0], FORK[0])
    assert enter(node, 1).messages == ()
    effects = node.receive(attest(OTHERS[0], FORK[0], 1))
    assert attested(effects) == [(1, 0, FORK[0].id)]


def test_what_the_leader_attests_may_be_missing():
    node = make_node(CHAIN[0])
    enter(node, 1)
    effects = node.receive(attest(OTHERS[0], FORK[0], 1))
    assert effects.messages == ()
    assert effects.missing == ((0, FORK[0].id),)
    assert attested(node.add_block(FORK[0])) == [(1, 0, FORK[0].id)]


def test_a_leader_cannot_make_others_look_for_more_than_one_block():
    node = make_node(CHAIN[0])
    enter(node, 1)
    for header in FORK:
        effects = node.receive(attest(OTHERS[0], header, 1))
    assert effects.missing == ((0, FORK[0].id),)


def test_without_a_leader_what_anybody_attests_may_be_missing():
    """Kafka may show a block to fewer nodes than could bring the others along."""
    node = make_node()
    effects = node.receive(attest(OTHERS[0], CHAIN[0]))
    assert effects.missing == node.missing == ((0, CHAIN[0].id),)
    assert attested(node.add_block(CHAIN[0])) == [(0, 0, CHAIN[0].id)]
    assert node.missing == ()


def test_a_node_that_attested_looks_for_nothing_else_at_that_height():
    node = make_node(CHAIN[0])
    assert node.receive(attest(OTHERS[0], FORK[0])).missing == ()
    # Nor does who may attest no more in this epoch.
    node = make_node()
    node.give_up()
    assert node.receive(attest(OTHERS[0], CHAIN[0])).missing == ()


def test_a_liar_cannot_make_others_look_for_more_than_one_block():
    node = make_node()
    for header in (*FORK, CHAIN[0]):
        node.receive(attest(OTHERS[0], header))
        node.receive(attest(OTHERS[0], header, epoch=1))
    assert node.missing == ((0, FORK[0].id),)
    receive_all(node, attest(OTHERS[1], CHAIN[0]), attest(OTHERS[2], CHAIN[0]))
    assert node.missing == tuple(sorted([(0, CHAIN[0].id), (0, FORK[0].id)]))


def test_only_blocks_right_above_what_is_certified_are_looked_for():
    node = make_node(CHAIN[0])
    assert node.receive(attest(OTHERS[0], CHAIN[1])).missing == ()
    node.receive(certify(CHAIN[0], keys=OTHERS))
    assert node.missing == ((1, CHAIN[1].id),)


def test_attesters_are_counted_in_the_present_epoch_alone():
    node = make_node(*CHAIN, key=None)
    assert node.count_attesters(0) == 0
    receive_all(node, *(attest(key, CHAIN[0]) for key in OTHERS[:2]))
    assert (node.count_attesters(0), node.count_attesters(1)) == (2, 0)
    enter(node, 1)
    assert node.count_attesters(0) == 0


def test_others_do_not_lead():
    node = make_node(CHAIN[0])
    enter(node, 1)
    assert node.receive(attest(OTHERS[1], CHAIN[0], 1)).messages == ()
    assert node.receive(attest(OTHERS[0], CHAIN[0], 0)).messages == ()


def test_the_leader_attests_what_it_read():
    node = make_node(CHAIN[0], FORK[0])
    assert attested(enter(node, 4, keys=OTHERS[:2])) == [(4, 0, CHAIN[0].id)]


def test_an_observer_looks_only_for_what_is_certified():
    node = make_node(key=None)
    assert node.receive(attest(OTHERS[0], FORK[0])).missing == ()
    enter(node, 1)
    assert node.epoch == 1
    assert node.receive(attest(OTHERS[0], FORK[0], 1)).missing == ()


# Memory: R6.


def test_a_node_that_restarts_attests_nothing_twice_and_sends_the_same_bytes():
    node = make_node(CHAIN[0])
    (sent,) = node.resend()
    again = restart(node)
    assert again.resend() == (sent,)
    assert again.add_block(FORK[0]).messages == ()
    assert again.add_block(CHAIN[0]).messages == ()
    again.give_up()
    assert again.resend() == (sent, again.votes.last_request)
    third = restart(again, *CHAIN[:2])
    assert third.resend() == again.resend()
    assert third.give_up().messages == (again.votes.last_request,)


def test_ones_own_attestation_counts_after_a_restart():
    node = restart(make_node(CHAIN[0]), *CHAIN[:2])
    node.receive(attest(OTHERS[0], CHAIN[0]))
    effects = node.receive(attest(OTHERS[1], CHAIN[0]))
    assert attested(effects) == [(0, 1, CHAIN[1].id)]


def test_ones_own_request_counts_after_a_restart():
    node = make_node()
    node.give_up()
    node = restart(node)
    node.receive(request(OTHERS[0]))
    assert node.receive(request(OTHERS[1])).started_epoch == 1


def test_a_certificate_that_was_acted_on_is_not_forgotten():
    node = make_node(*CHAIN[:2])
    node.receive(certify(CHAIN[0], keys=OTHERS))
    node = restart(node)
    assert node.high == certify(CHAIN[0], keys=OTHERS)
    assert requested(node.give_up()) == [(1, 0, 0)]


def test_a_restart_within_an_epoch_goes_on_where_it_was():
    node = make_node(*CHAIN[:3])
    enter(node, 4)
    node.receive(certify(CHAIN[0], 4, OTHERS))
    assert node.votes.attested == (1, CHAIN[1].id)
    again = restart(node, *CHAIN[:3])
    assert again.epoch == 4
    assert again.votes == node.votes
    assert set(again.resend()) == {*node.votes.entered, node.votes.last_attestation}
    effects = again.receive(certify(CHAIN[1], 4, OTHERS))
    assert attested(effects) == [(4, 2, CHAIN[2].id)]
    assert [b.header for b in effects.finalised] == [CHAIN[0]]


def test_a_restart_may_begin_at_a_final_block():
    node = make_node(*CHAIN[:4])
    settle(node, *CHAIN[:3])
    assert node.final_height == 1
    again = restart(node, final=CHAIN[1])
    assert (again.final_height, again.final_id) == (1, CHAIN[1].id)
    for header in CHAIN[2:5]:
        assert again.add_block(header).messages == ()
    assert again.add_block(CHAIN[0]) == Effects()
    effects = again.receive(certify(CHAIN[3], keys=OTHERS))
    assert attested(effects) == [(0, 4, CHAIN[4].id)]
    assert [b.header for b in effects.finalised] == [CHAIN[2]]


def test_a_final_block_above_what_was_attested_is_on_the_same_branch():
    node = make_node(CHAIN[0])
    again = restart(node, final=CHAIN[3])
    again.add_block(CHAIN[4])
    again.add_block(CHAIN[5])
    effects = again.receive(certify(CHAIN[4], keys=OTHERS))
    assert attested(effects) == [(0, 5, CHAIN[5].id)]


def test_but_not_if_the_base_is_of_another_epoch():
    node = make_node(CHAIN[0])
    enter(node, 4, certify(CHAIN[0]), OTHERS[:2])
    again = restart(node, final=CHAIN[3])
    again.add_block(CHAIN[4])
    again.add_block(CHAIN[5])
    assert again.receive(certify(CHAIN[4], 4, OTHERS)).messages == ()


@pytest.mark.parametrize(
    "base", [None, certify(CHAIN[0]), certify(CHAIN[2], keys=OTHERS)]
)
def test_a_node_that_enters_an_epoch_after_its_blocks_became_final_takes_part(base):
    node = make_node(*CHAIN[:6])
    settle(node, *CHAIN[:5], epoch=4)
    assert node.final_height == 3
    effects = enter(node, 4, base, OTHERS[:2])
    assert attested(effects) == [(4, 5, CHAIN[5].id)]
    assert effects.votes.base == certify(CHAIN[4], 4, OTHERS)


def test_but_not_if_the_base_is_not_before_them():
    """R4: it attests only what descends from its base, whatever others do."""
    node = make_node(*CHAIN[:6])
    settle(node, *CHAIN[:5], epoch=4)
    effects = enter(node, 4, certify(FORK[1], keys=OTHERS), OTHERS[:2])
    assert node.epoch == 4
    assert attested(effects) == []


def test_nor_if_it_is_too_long_ago_to_tell(monkeypatch):
    monkeypatch.setattr(module, "MAX_FINAL", 2)
    for base, heights in ((CHAIN[2], [5]), (CHAIN[1], [])):
        node = make_node(*CHAIN[:6])
        settle(node, *CHAIN[:5], epoch=4)
        effects = enter(node, 4, certify(base, keys=OTHERS), OTHERS[:2])
        assert [height for _, height, _ in attested(effects)] == heights


def test_nobody_looks_for_a_block_below_the_last_final_one():
    node = make_node(*CHAIN[:6])
    settle(node, *CHAIN[:5], epoch=1)
    leader = KEYS[1]
    enter(node, 1, certify(FORK[1], keys=OTHERS), OTHERS[:2])
    assert node.leader.public_key == leader.public_key
    effects = node.receive(attest(leader, FORK[2], 1))
    assert effects.missing == node.missing == ()


@pytest.mark.parametrize(
    "message",
    [
        attest(ME, CHAIN[1]),
        attest(ME, CHAIN[0], 1),
        attest(ME, FORK[0]),
        request(ME),
        certify(CHAIN[1]),
    ],
)
def test_a_key_that_signs_elsewhere_never_signs_here_again(message):
    node = make_node(CHAIN[0])
    assert not node.key_used_elsewhere
    node.receive(message)
    assert node.key_used_elsewhere
    assert node.give_up().messages == ()
    node.add_block(CHAIN[1])
    assert receive_all(node, certify(CHAIN[0], keys=OTHERS)).messages == ()
    assert enter(node, 2).messages == ()
    # It still follows.
    assert node.epoch == 2
    settle(node, CHAIN[0], CHAIN[1])
    assert node.final_height == 0
    with pytest.raises(CosignRefusedError, match="cosigns nothing"):
        node.mark_cosigned(CHAIN[0].tree_size, CHAIN[0].tree_root)


def test_ones_own_old_messages_are_nothing_new():
    node = make_node(CHAIN[0])
    old = node.votes.last_attestation
    enter(node, 4)
    node = restart(node)
    node.receive(old)
    node.receive(attest(ME, CHAIN[0]))
    node.receive(request(ME, 4))
    assert not node.key_used_elsewhere


# Catching up.


def test_a_node_that_missed_an_epochs_beginning_gets_in_by_what_others_send_again():
    first = make_node(key=OTHERS[0])
    enter(first, 1, keys=OTHERS[1:])
    first.give_up()
    late = make_node()
    late.give_up()
    # n1 is ahead already, and n3 told only n1.
    receive_all(late, request(OTHERS[0], 2), request(OTHERS[1]))
    assert (late.epoch, first.epoch) == (0, 1)
    receive_all(late, *restart(first, key=OTHERS[0]).resend())
    assert late.epoch == 1


def test_requests_are_kept_for_the_epoch_that_is_asked_for():
    """Else whoever asks for more and more would keep others from an epoch."""
    node = make_node()
    node.give_up()
    for epoch in range(1, 40):
        node.receive(request(OTHERS[0], epoch))
    assert node.receive(request(OTHERS[1])).started_epoch == 1


# Bounded memory.


def test_memory_is_bounded_whatever_a_node_sends():
    node = make_node(CHAIN[0], key=None)
    header = CHAIN[0]
    for epoch in range(MAX_REMEMBERED + 10):
        node.receive(attest(OTHERS[0], header, epoch))
        node.receive(request(OTHERS[0], epoch + 1))
    said = node._attestations[OTHERS[0].public_key]
    assert len(said) == MAX_REMEMBERED
    assert min(said) == (10, 0)
    assert len(node._requests[OTHERS[0].public_key]) == 1
    # Too old to be kept; nothing breaks.
    node.receive(attest(OTHERS[0], header, 0))
    assert min(said) == (10, 0)


# Contradictions.


def accusations(*messages, key=ME) -> list[Offence]:
    node = make_node(key=key)
    found = []
    for message in messages:
        for proven in node.receive(message).contradictions:
            assert proven.reported_by == ME.public_key
            verdict = verify_equivocation(
                [NODES], NODES.chain_id, STRANGER.public_key, proven
            )
            assert verdict.public_key == proven.public_key == OTHERS[0].public_key
            found.append(verdict.offence)
    return found


LIAR = OTHERS[0]
LIES = [
    (attest(LIAR, CHAIN[1], 2), attest(LIAR, FORK[1], 2)),
    (request(LIAR, 4, certify(CHAIN[1], 2)), request(LIAR, 4)),
    (attest(LIAR, CHAIN[2], 2), attest(LIAR, CHAIN[3], 2), request(LIAR, 3)),
    (attest(LIAR, CHAIN[2]), request(LIAR)),
]
OFFENCES = [
    Offence.TWO_BLOCKS,
    Offence.TWO_REQUESTS,
    Offence.HIDDEN_CERTIFICATE,
    Offence.HIDDEN_CERTIFICATE,
]


@pytest.mark.parametrize(
    ("messages", "offence"), list(zip(LIES, OFFENCES, strict=True))
)
def test_lies_are_found_whatever_comes_first(messages, offence):
    assert accusations(*messages) == [offence]
    assert accusations(*messages[::-1]) == [offence]
    assert accusations(*messages[1:], messages[0]) == [offence]


def test_one_accusation_is_enough():
    assert accusations(*LIES[0], *LIES[1], *LIES[2]) == [Offence.TWO_BLOCKS]


def test_an_observer_accuses_nobody():
    assert accusations(*LIES[0], key=None) == []


def test_certificates_convict_too():
    keys = (LIAR, *OTHERS[1:])
    assert accusations(certify(CHAIN[1], 2, keys), LIES[0][1]) == [Offence.TWO_BLOCKS]
    assert accusations(LIES[0][1], certify(CHAIN[1], 2, keys)) == [Offence.TWO_BLOCKS]
    high = request(OTHERS[1], 4, certify(CHAIN[1], 2, keys))
    assert accusations(LIES[0][1], high) == [Offence.TWO_BLOCKS]


def test_two_certificates_for_one_place_convict_all_who_signed_both():
    node = make_node()
    node.receive(certify(CHAIN[0], keys=OTHERS))
    accused = node.receive(certify(FORK[0], keys=OTHERS)).contradictions
    assert {p.public_key for p in accused} == {k.public_key for k in OTHERS}
    assert node.certificates() == (certify(CHAIN[0], keys=OTHERS),)


# Messages that are refused.


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (replace(attest(LIAR, CHAIN[0]), federation_id="others"), "of 'others'"),
        (replace(request(LIAR), federation_id="others"), "of 'others'"),
        (replace(attest(LIAR, CHAIN[0]), era=1), "of era 1"),
        (replace(request(LIAR), era=1), "of era 1"),
        (replace(certify(CHAIN[0]), era=1), "of era 1"),
        (attest(STRANGER, CHAIN[0]), "is not a node"),
        (request(STRANGER), "is not a node"),
        (certify(CHAIN[0], keys=OTHERS[:2]), "2 signatures"),
        (request(LIAR, 1, certify(CHAIN[0], keys=OTHERS[:2])), "2 signatures"),
    ],
)
def test_an_invalid_message_changes_nothing(message, says):
    node = make_node(CHAIN[0])
    before = node.votes
    with pytest.raises(InvalidMessageError, match=says):
        node.receive(message)
    assert node.votes == before
    assert not node.certificates()
    assert LIAR.public_key not in node._attestations
    assert LIAR.public_key not in node._requests


def test_a_message_about_an_earlier_era_is_refused():
    nodes = make_nodes("n0", "n1", "n2", "n3", era=1)
    node = Consensus(nodes, FEDERATION, (0, CHAIN[0].id), key=ME)
    with pytest.raises(InvalidMessageError, match="of an earlier era"):
        node.receive(attest(LIAR, CHAIN[0], nodes=nodes))


def test_what_no_caller_may_do():
    with pytest.raises(ValueError, match="is not a node of era 0"):
        make_node(key=STRANGER)
    with pytest.raises(ValueError, match="votes of era 1, not 0"):
        make_node(votes=VoteState.begin(1, BEGIN))


# Cosigning: R5.


def test_only_final_sizes_are_cosigned_and_only_growing():
    node = make_node(*CHAIN[:5])
    with pytest.raises(CosignRefusedError, match="no block known to be final"):
        node.mark_cosigned(CHAIN[0].tree_size, CHAIN[0].tree_root)
    settle(node, *CHAIN[:4])
    second, third = CHAIN[1], CHAIN[2]
    votes = node.mark_cosigned(second.tree_size, second.tree_root)
    assert votes == node.votes
    assert (votes.cosigned_size, votes.cosigned_root) == (6, second.tree_root)
    assert node.mark_cosigned(second.tree_size, second.tree_root) == votes
    for size, root, says in (
        (second.tree_size, third.tree_root, "size 6 after size 6"),
        (CHAIN[0].tree_size, CHAIN[0].tree_root, "size 3 after size 6"),
        (third.tree_size, second.tree_root, "no block known to be final"),
        (third.tree_size + 1, third.tree_root, "no block known"),
        (CHAIN[3].tree_size, CHAIN[3].tree_root, "no block known"),
    ):
        with pytest.raises(CosignRefusedError, match=says):
            node.mark_cosigned(size, root)
    assert node.votes == votes
    again = restart(node, final=third)
    assert again.mark_cosigned(second.tree_size, second.tree_root) == votes
    assert again.mark_cosigned(third.tree_size, third.tree_root).cosigned_size == 9


def test_an_observer_cosigns_nothing():
    node = make_node(*CHAIN[:2], key=None)
    settle(node, *CHAIN[:2])
    with pytest.raises(CosignRefusedError, match="cosigns nothing"):
        node.mark_cosigned(CHAIN[0].tree_size, CHAIN[0].tree_root)


def test_sizes_that_wait_for_too_long_go_without(monkeypatch):
    monkeypatch.setattr(module, "MAX_COSIGNABLE", 2)
    node = make_node(*CHAIN[:5])
    settle(node, *CHAIN[:4])
    with pytest.raises(CosignRefusedError, match="no block known"):
        node.mark_cosigned(CHAIN[0].tree_size, CHAIN[0].tree_root)
    node.mark_cosigned(CHAIN[1].tree_size, CHAIN[1].tree_root)
    node.mark_cosigned(CHAIN[2].tree_size, CHAIN[2].tree_root)


# The end of an era.

LAST = CHAIN[1]
CLOSING = [LAST.closing_child()]
CLOSING += [CLOSING[0].closing_child()]
CLOSING += [CLOSING[1].closing_child()]


def make_ending(key=ME) -> Consensus:
    node = make_node(CHAIN[0], key=key)
    node.add_block(LAST, changes_nodes=True)
    return node


def test_closing_children_make_an_eras_last_block_final():
    node = make_ending()
    assert attested(settle(node, CHAIN[0])) == [(0, 1, LAST.id)]
    assert attested(settle(node, LAST)) == [(0, 2, CLOSING[0].id)]
    assert node.ended is None
    effects = settle(node, CLOSING[0])
    (block,) = effects.finalised
    assert block == node.ended
    assert (block.header, effects.messages) == (LAST, ())
    verify_last_block(NODES, LAST, block.proof, BEGIN)


def test_an_era_may_end_by_a_closing_child_of_a_closing_child():
    node = make_ending()
    settle(node, CHAIN[0])
    enter(node, 4, certify(LAST))
    assert node.votes.attested == (2, CLOSING[0].id)
    effects = node.receive(certify(CLOSING[0], 4, OTHERS))
    assert attested(effects) == [(4, 3, CLOSING[1].id)]
    effects = node.receive(certify(CLOSING[1], 4, OTHERS))
    assert [b.header for b in effects.finalised] == [LAST]
    assert node.ended.header == LAST
    assert node.ended.proof.header == CLOSING[0]
    assert (node.final_height, node.final_id) == (1, LAST.id)
    verify_last_block(NODES, LAST, node.ended.proof, BEGIN)


def test_closing_children_are_made_as_high_as_they_are_certified():
    late = make_node(key=None)
    settle(late, CLOSING[2], CLOSING[1], epoch=7)
    late.add_block(CHAIN[0])
    effects = late.add_block(LAST, changes_nodes=True)
    assert late.ended.header == LAST
    assert effects.missing == ()


def test_nothing_else_follows_the_last_block():
    node = make_ending()
    for parent in (LAST, CLOSING[0]):
        with pytest.raises(
            InvalidBlockError, match="follows the last block of the era"
        ):
            node.add_block(make_header(parent))
    assert node.add_block(CLOSING[0]).messages == ()


def test_nothing_is_signed_after_the_end_but_the_last_cosignature():
    node = make_ending()
    settle(node, CHAIN[0], LAST, CLOSING[0])
    votes = node.votes
    assert node.give_up() == Effects()
    assert enter(node, 1, certify(CLOSING[0], keys=OTHERS)) == Effects()
    assert node.add_block(CHAIN[2]) == Effects()
    assert settle(node, CLOSING[1]) == Effects()
    assert node.votes == votes
    assert node.mark_cosigned(LAST.tree_size, LAST.tree_root).cosigned_size == 6


def test_a_last_block_on_a_branch_that_is_not_final_ends_nothing():
    node = make_ending()
    for header in FORK[:3]:
        node.add_block(header)
    settle(node, *FORK[:2])
    assert node.ended is None
    assert node.final_id == FORK[0].id
    assert {b.id for b in node.pending} == {FORK[1].id, FORK[2].id}
    settle(node, FORK[2])
    assert node.final_id == FORK[1].id


def test_the_next_era_goes_on_where_the_last_ended():
    node = make_ending()
    settle(node, CHAIN[0], LAST, CLOSING[0])
    node.mark_cosigned(LAST.tree_size, LAST.tree_root)
    following = make_nodes("n0", "n7", era=1)
    start = (LAST.height, LAST.id)
    votes = VoteState.begin(
        1,
        start,
        cosigned_size=node.votes.cosigned_size,
        cosigned_root=node.votes.cosigned_root,
    )
    after = Consensus(following, FEDERATION, start, key=ME, votes=votes, final=LAST)
    header = make_header(LAST, nodes=following)
    child = make_header(header, nodes=following)
    assert attested(after.add_block(header)) == [(0, 2, header.id)]
    after.add_block(child)
    seventh = make_key("n7")
    after.receive(attest(seventh, header, nodes=following))
    effects = after.receive(attest(seventh, child, nodes=following))
    assert [b.header for b in effects.finalised] == [header]
    verify_finality(following, effects.finalised[0].proof, start)
    with pytest.raises(CosignRefusedError, match="size 3 after size 6"):
        after.mark_cosigned(CHAIN[0].tree_size, CHAIN[0].tree_root)
    assert after.mark_cosigned(header.tree_size, header.tree_root).era == 1


# All together.


def run(nodes: list[Consensus], outbox: deque) -> None:
    while outbox:
        message = outbox.popleft()
        for node in nodes:
            outbox.extend(node.receive(message).messages)


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c", "d", "e")])
def test_node_sets_of_any_size_agree(names):
    node_set = make_nodes(*names)
    nodes = [
        Consensus(node_set, FEDERATION, BEGIN, key=make_key(name)) for name in names
    ]
    chain, parent = [], None
    for _ in range(4):
        parent = make_header(parent, nodes=node_set)
        chain.append(parent)
    outbox: deque = deque()
    for header in chain[:2]:
        for node in nodes:
            outbox.extend(node.add_block(header).messages)
    run(nodes, outbox)
    assert {node.final_height for node in nodes} == {0}
    for node in nodes:
        outbox.extend(node.give_up().messages)
    run(nodes, outbox)
    assert {node.epoch for node in nodes} == {1}
    for header in chain[2:]:
        for node in nodes:
            outbox.extend(node.add_block(header).messages)
    run(nodes, outbox)
    assert {node.final_height for node in nodes} == {2}
