"""The protocol is safe, no rule can be spared, and the real nodes follow it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

import pytest

from ledger.attestations import Header, InvalidMessageError, order
from ledger.consensus import Consensus, Effects
from ledger.votes import VoteState
from schemas import events as e
from tests.simulation.broken_nodes import (
    WithoutBranch,
    WithoutR1,
    WithoutR2,
    WithoutR3,
    WithoutR4,
)
from tests.simulation.consensus_model import (
    Action,
    Model,
    Rules,
    State,
    Verdict,
    explore,
    walk,
)
from tests.simulation.ledger_world import (
    BrokenWorldError,
    Member,
    World,
    make_nodes,
    use_fake_signatures,
)

# Section 2.8 of the ledger specification has the same 190,522 states from a checker
# that was written apart from this one; it counts the layer after the last, too.
EXHAUSTIVE: Final = [
    ((2, 1), Verdict(safe=True, num_states=190_522, depth=19)),
    pytest.param(
        (3, 1),
        Verdict(safe=True, num_states=3_848_222, depth=22),
        marks=pytest.mark.full,
    ),
]


@pytest.mark.parametrize(("size", "verdict"), EXHAUSTIVE)
def test_no_two_final_blocks_exclude_each_other_in_any_state(size, verdict):
    heights, epochs = size
    assert explore(Model(heights, epochs)) == verdict


def test_nor_in_three_epochs_within_twelve_steps():
    verdict = explore(Model(2, 2), max_depth=12)
    assert verdict == Verdict(safe=True, num_states=458_556, depth=12)


def test_nor_on_long_random_walks_through_more_of_everything():
    verdict = walk(Model(3, 2), random.Random(7), num_walks=10_000, length=40)
    assert verdict.safe
    assert verdict.num_states > 200_000


@pytest.mark.parametrize(
    ("rules", "depth"),
    [
        (Rules.QUORUM_OF_2, 4),
        (Rules.ATTEST_TWICE, 8),
        (Rules.ONE_ROUND, 8),
        (Rules.EPOCH_BY_1, 12),
        (Rules.NO_PARENT, 12),
        (Rules.OLD_EPOCH, 12),
    ],
)
def test_without_any_one_rule_the_protocol_is_unsafe(rules, depth):
    verdict = explore(Model(2, 1, rules))
    assert (verdict.safe, verdict.depth) == (False, depth)


# Trace validation: what real nodes do is what the model may do.

HEIGHTS: Final = 3
EPOCHS: Final = 4
MODEL: Final = Model(HEIGHTS, EPOCHS)


class NotInModelError(AssertionError):
    """A node did what no honest node does."""


class TooLongError(Exception):
    """The scenario goes beyond the model's last epoch."""


@dataclass
class Follower:
    """Takes every step of the honest nodes in the model, too."""

    state: State = MODEL.initial
    actions: list[Action] = field(default_factory=list)
    world: World | None = None

    def block(self, block_id: bytes) -> int:
        """Return the model's name of a block."""
        assert self.world is not None
        block = self.world.pool.get(block_id)
        if block is None:
            return 0
        parent = self.block(block.header.previous_id)
        first = self.world.make_block(block.header.previous_id, 0)
        return 2 * parent + (1 if block is first else 2)

    def place(self, certificate: e.QuorumCertificate) -> int:
        return MODEL.place(certificate.epoch, self.block(certificate.block_id))

    def follow(self, member: Member, effects: Effects) -> None:
        votes = effects.votes
        if votes is not None and votes.requested_epoch > EPOCHS:
            raise TooLongError
        # In the order in which they were said: who attests, or enters an epoch, and so
        # sees a split asks for the next epoch in the same step.
        started = effects.started_epoch
        for message in effects.messages:
            asks = isinstance(message, e.EpochRequested)
            if started is not None and message.epoch >= started + asks:
                self.adopt(member, started, votes)
                started = None
            if isinstance(message, e.BlockAttested):
                block = self.block(message.block_id)
                self.take(member, ("attest", message.epoch, block))
            elif votes is not None:  # else it is said again
                place = self.place(message.high)
                self.take(member, ("request", message.epoch, place))
        if started is not None:
            self.adopt(member, started, votes)
        for finalised in effects.finalised:
            self.check_final(finalised.header)

    def adopt(self, member: Member, epoch: int, votes: VoteState | None) -> None:
        assert votes is not None, "an epoch that began is remembered"
        base = max((m.high for m in votes.entered), key=order)
        self.take(member, ("adopt", epoch, self.place(base)))
        # Once something is attested in the epoch its base has moved up.
        if votes.attested[0] <= base.height and votes.base != base:
            raise NotInModelError(f"the base is {votes.base}, not {base}")

    def take(self, member: Member, action: Action) -> None:
        assert self.world is not None
        i = self.world.honest.index(member)
        after = MODEL.follow(self.state, i, action)
        self.actions.append(action)
        if after is None:
            raise NotInModelError(f"node {i} may not {action} in {self.state}")
        self.state = after

    def check_final(self, header: Header) -> None:
        if not MODEL.is_final(MODEL.certified(self.state), self.block(header.id)):
            raise NotInModelError(f"block {header.height} is not final")


def validate(seed: int, kind: type[Consensus] = Consensus) -> Follower | None:
    """Run one scenario; None if it goes too far."""
    follower = Follower()
    nodes = make_nodes("abcd")
    liar = "abcd"[seed % 4]
    options = {"twins": liar} if seed % 3 == 0 else {"forger": liar}
    follower.world = World(
        seed,
        nodes,
        kind=kind,
        watch=follower.follow,
        max_height=HEIGHTS,
        **options,
    )
    try:
        follower.world.live(60)
    except TooLongError:
        return None
    return follower


def test_real_nodes_do_only_what_the_model_may_do(monkeypatch):
    use_fake_signatures(monkeypatch)
    actions: list[Action] = []
    num_followed = 0
    for seed in range(1_500):
        try:
            follower = validate(seed)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
        if follower is not None:
            num_followed += 1
            actions += follower.actions
    assert num_followed > 1_000
    # They did everything: each kind of step in each epoch.
    steps = {(kind, epoch) for kind, epoch, _ in actions}
    assert steps == {
        *(("attest", epoch) for epoch in range(EPOCHS + 1)),
        *(
            (kind, epoch + 1)
            for kind in ("request", "adopt")
            for epoch in range(EPOCHS)
        ),
    }


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (WithoutR1, 0),
        (WithoutR2, 0),
        (WithoutR3, 0),
        (WithoutR4, 0),
        (WithoutBranch, 6_400),  # bases of one epoch seldom exclude each other
    ],
)
def test_a_node_that_breaks_a_rule_is_found_out(monkeypatch, kind, first):
    use_fake_signatures(monkeypatch)
    for seed in range(first, first + 8_000):
        try:
            validate(seed, kind)
        except NotInModelError:
            return
        except (BrokenWorldError, InvalidMessageError):
            continue  # the other nodes noticed first
    pytest.fail("nobody noticed")
