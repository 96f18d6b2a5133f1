"""The abstract protocol: four nodes, one of them and the whole network Byzantine.

What `ledger.consensus` should do, once more and as small as possible: sections 2.3 and
2.4 of the ledger specification as a transition relation over the three honest nodes.
`explore` visits every state, `walk` some of a larger space, and `Model.follow` says
whether something that a real node did is a transition.

The adversary has no state. Its node signs everything, so a certificate exists as soon
as two honest nodes attested (`Model.certified`); the network shows each certificate to
whom it likes, when it likes (``learn``), or never; the sequencer offers every block.

    block   0 is the start; the two children of block b are 2b + 1 and 2b + 2
    place   (epoch, block) of an attestation, as a number from 1; 0 stands for the start
    mask    a set of places, one bit each
    node    (epoch asked for or entered, base or None before it is entered, attested
            places, highest certificate, certificate in the request for each epoch)

States that differ only in the nodes' names, or in which child is the first, are one.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import Final, NamedTuple, TypeAlias

NUM_HONEST: Final = 3
NO_REQUEST: Final = -1


class Rules(StrEnum):
    """The rules as they are, or without one."""

    ALL = "all"
    QUORUM_OF_2 = "two of four make a certificate"
    ATTEST_TWICE = "a node may attest twice at one height (no R2)"
    EPOCH_BY_1 = "an epoch needs the request of only one honest node (no R4)"
    NO_PARENT = "a node may attest on what it attested itself (no R1)"
    OLD_EPOCH = "a node goes on attesting in the epoch that it gave up (no R3)"
    ONE_ROUND = "a certified block is final"


class Node(NamedTuple):
    """An honest node."""

    epoch: int
    base: int | None
    attested: int
    high: int
    requests: tuple[int, ...]


Action: TypeAlias = tuple[str | int, ...]
"""("attest", epoch, block), ("learn", place), ("request", epoch, place),
("adopt", epoch, place)."""
State: TypeAlias = tuple[Node, ...]


class Model:
    """The transition relation.

    Args:
        heights: Blocks have heights 1 to this.
        epochs: Epochs are 0 to this.
        rules: Which rules hold.
    """

    def __init__(self, heights: int, epochs: int, rules: Rules = Rules.ALL) -> None:
        self.epochs = epochs
        self.rules = rules
        self.num_blocks = 2 ** (heights + 1) - 2
        self.heights = [(b + 1).bit_length() - 1 for b in range(self.num_blocks + 1)]
        self.max_height = heights
        num_places = (epochs + 1) * self.num_blocks
        # Of each place: its block, and what makes one certificate higher than another.
        self.block_of = [0, *(p % self.num_blocks + 1 for p in range(num_places))]
        self.rank = [
            (-1, 0),
            *(
                (p // self.num_blocks, self.heights[p % self.num_blocks + 1])
                for p in range(num_places)
            ),
        ]
        self.initial: State = (
            Node(0, 0, 0, 0, (NO_REQUEST,) * (epochs + 1)),
        ) * NUM_HONEST
        self.moves = cache(self._moves)
        self.conflict = cache(self._conflict)
        self.places = cache(self._places)

    def place(self, epoch: int, block: int) -> int:
        """Return the number of a place; block 0 stands for the start."""
        return epoch * self.num_blocks + block if block else 0

    def _places(self, mask: int) -> tuple[int, ...]:
        return tuple(p for p in range(1, len(self.rank)) if mask >> p & 1)

    def descends(self, block: int, ancestor: int) -> bool:
        """Return whether a block is another or comes after it."""
        while block > ancestor:
            block = (block - 1) // 2
        return block == ancestor

    def certified(self, state: State) -> int:
        """Return the places that the Byzantine node can complete a certificate for."""
        a, b, c = (node.attested for node in state)
        if self.rules is Rules.QUORUM_OF_2:
            return a | b | c
        return a & b | a & c | b & c

    def _finals(self, mask: int) -> frozenset[int]:
        final = set()
        for place in self.places(mask):
            epoch, block = self.rank[place][0], self.block_of[place]
            parent = (block - 1) // 2
            if self.rules is Rules.ONE_ROUND:
                final.add(block)
            elif parent and mask >> self.place(epoch, parent) & 1:
                final.add(parent)
        return frozenset(final)

    def is_final(self, mask: int, block: int) -> bool:
        """Return whether a block is final, by itself or by one that comes after it."""
        return any(self.descends(final, block) for final in self._finals(mask))

    def _conflict(self, mask: int) -> bool:
        """Return whether two final blocks exclude each other."""
        return any(
            not self.descends(max(pair), min(pair))
            for pair in itertools.combinations(self._finals(mask), 2)
        )

    def _parents(self, node: Node, epoch: int, base: int, certified: int) -> set[int]:
        """Return what a node may build on (R1, R4)."""
        holds = certified | (node.attested if self.rules is Rules.NO_PARENT else 0)
        return {base} | {
            self.block_of[p]
            for p in self.places(holds)
            if self.rank[p][0] == epoch and self.descends(self.block_of[p], base)
        }

    def _attests(self, node: Node, certified: int) -> Iterator[tuple[Action, Node]]:
        epochs = [] if node.base is None else [(node.epoch, node.base)]
        if self.rules is Rules.OLD_EPOCH and node.epoch == 1 and node.base is None:
            epochs.append((0, 0))
        for epoch, base in epochs:
            last = max(
                (
                    self.rank[p][1]
                    for p in self.places(node.attested)
                    if self.rank[p][0] == epoch
                ),
                default=0,
            )
            for parent in self._parents(node, epoch, base, certified):
                height = self.heights[parent] + 1
                if height > self.max_height or (
                    height <= last and self.rules is not Rules.ATTEST_TWICE  # R2
                ):
                    continue
                held = self.place(epoch, parent)
                if not certified >> held & 1:
                    held = 0
                for block in (2 * parent + 1, 2 * parent + 2):
                    bit = 1 << self.place(epoch, block)
                    if not node.attested & bit:
                        yield (
                            ("attest", epoch, block),
                            node._replace(
                                attested=node.attested | bit,
                                high=max(node.high, held, key=self.rank.__getitem__),
                            ),
                        )

    def _learns(self, node: Node, certified: int) -> Iterator[tuple[Action, Node]]:
        for place in self.places(certified):
            if self.rank[node.high] < self.rank[place] < (node.epoch + 1, 0):
                yield ("learn", place), node._replace(high=place)

    def _requests(self, node: Node) -> Iterator[tuple[Action, Node]]:
        for epoch in range(node.epoch + 1, self.epochs + 1):
            if self.rank[node.high][0] < epoch:
                requests = list(node.requests)
                requests[epoch] = node.high
                yield (
                    ("request", epoch, node.high),
                    node._replace(epoch=epoch, base=None, requests=tuple(requests)),
                )

    def _adopts(
        self, node: Node, certified: int, asked: tuple[int, ...]
    ) -> Iterator[tuple[Action, Node]]:
        if node.base is not None:
            return
        enough = 1 if self.rules is Rules.EPOCH_BY_1 else 2
        bases = set()
        for size in range(enough, NUM_HONEST + 1):
            for some in itertools.combinations(asked, size):
                highest = max(some, key=self.rank.__getitem__)
                bases.add(highest)
                if size < NUM_HONEST:  # the fourth may name any other certificate
                    bases |= {
                        p
                        for p in self.places(certified)
                        if self.rank[highest] < self.rank[p] < (node.epoch, 0)
                    }
        for base in bases:
            yield (
                ("adopt", node.epoch, base),
                node._replace(
                    base=self.block_of[base],
                    high=max(node.high, base, key=self.rank.__getitem__),
                ),
            )

    def _moves(
        self, node: Node, certified: int, asked: tuple[int, ...]
    ) -> tuple[tuple[Action, Node], ...]:
        return (
            *self._attests(node, certified),
            *self._learns(node, certified),
            *self._requests(node),
            *self._adopts(node, certified, asked),
        )

    def asked(self, state: State, i: int) -> tuple[int, ...]:
        """Return the certificates in the requests that a node waits for."""
        if state[i].base is not None:
            return ()
        epoch = state[i].epoch
        requests = (node.requests[epoch] for node in state)
        return tuple(sorted(place for place in requests if place != NO_REQUEST))

    def moves_of(self, state: State, i: int) -> tuple[tuple[Action, Node], ...]:
        """Return everything that one node may do, and what it is then."""
        return self.moves(state[i], self.certified(state), self.asked(state, i))

    def follow(self, state: State, i: int, action: Action) -> State | None:
        """Return the state after something that a node did; None if it may not.

        What a node's messages show it to hold, it may have learned on the way.
        """
        kind, *_, place = action
        if kind == "request" and place != state[i].high:
            node, epoch = state[i], self.rank[place][0]
            if epoch > node.epoch:
                # Here a node learns of no epoch before it asks for it. One that asked,
                # and whom nobody heard, is where this one is.
                node = node._replace(epoch=epoch, base=None)
                state = (*state[:i], node, *state[i + 1 :])
            learned = self.follow(state, i, ("learn", place))
            return None if learned is None else self.follow(learned, i, action)
        for move, after in self.moves_of(state, i):
            if move == action:
                # That others certified its base in this epoch as well a node need not
                # have seen when it builds on it: it may have been first.
                on_base = kind == "attest" and (place - 1) // 2 == state[i].base
                node = after._replace(high=state[i].high) if on_base else after
                return (*state[:i], node, *state[i + 1 :])
        return None


class Verdict(NamedTuple):
    """What a search found.

    Attributes:
        safe: Whether no two final blocks exclude each other in any state.
        num_states: How many states were visited.
        depth: Steps to the farthest, or to the conflict.
    """

    safe: bool
    num_states: int
    depth: int


def explore(model: Model, max_depth: int = 1_000) -> Verdict:
    """Visit every state within some steps, breadth first, until there is a conflict.

    Nodes get numbers, so that a state is three of them in one integer.
    """
    numbers: dict[Node, int] = {}
    nodes: list[Node] = []
    mirrored: list[int] = []

    def number(node: Node) -> int:
        if node not in numbers:
            pair = dict.fromkeys((node, _mirror(model, node)))
            first = len(nodes)
            last = first + len(pair) - 1
            numbers.update(zip(pair, (first, last), strict=False))
            nodes.extend(pair)
            mirrored.extend((last, first)[: len(pair)])
        return numbers[node]

    @cache
    def following(n: int, certified: int, asked: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(
            number(node) for _, node in model.moves(nodes[n], certified, asked)
        )

    def pack(a: int, b: int, c: int) -> int:
        x, y, z = sorted((a, b, c))
        p, q, r = sorted((mirrored[a], mirrored[b], mirrored[c]))
        return min(x << 48 | y << 24 | z, p << 48 | q << 24 | r)

    start = number(model.initial[0])
    seen = {pack(start, start, start)}
    frontier = list(seen)
    depth = 0
    while frontier and depth < max_depth:
        found = []
        for packed in frontier:
            numbered = packed >> 48, packed >> 24 & 0xFFFFFF, packed & 0xFFFFFF
            state = tuple([nodes[n] for n in numbered])
            certified = model.certified(state)
            for i, n in enumerate(numbered):
                if i and n == numbered[i - 1]:
                    continue  # the same node under another name
                a, b = numbered[:i] + numbered[i + 1 :]
                for after in following(n, certified, model.asked(state, i)):
                    key = pack(a, b, after)
                    if key in seen:
                        continue
                    seen.add(key)
                    found.append(key)
                    if nodes[after].attested != nodes[n].attested and model.conflict(
                        model.certified((nodes[a], nodes[b], nodes[after]))
                    ):
                        return Verdict(False, len(seen), depth + 1)
        frontier = found
        depth += bool(found)
    return Verdict(True, len(seen), depth)


def _mirror(model: Model, node: Node) -> Node:
    """Return the node in the world where first and second child are exchanged."""

    @cache
    def block(b: int) -> int:
        if b == 0:
            return 0
        parent, second = divmod(b - 1, 2)
        return 2 * block(parent) + 2 - second

    def place(p: int) -> int:
        return p if p <= 0 else model.place(model.rank[p][0], block(model.block_of[p]))

    return Node(
        node.epoch,
        None if node.base is None else block(node.base),
        sum(1 << place(p) for p in model.places(node.attested)),
        place(node.high),
        tuple(map(place, node.requests)),
    )


def walk(model: Model, rng: random.Random, num_walks: int, length: int) -> Verdict:
    """Take random steps from the beginning, again and again, until a conflict."""
    num_steps = 0
    for _ in range(num_walks):
        state = model.initial
        for depth in range(1, length + 1):
            moves = [
                (i, node)
                for i in range(NUM_HONEST)
                for _, node in model.moves_of(state, i)
            ]
            if not moves:
                break
            i, node = rng.choice(moves)
            state = (*state[:i], node, *state[i + 1 :])
            num_steps += 1
            if model.conflict(model.certified(state)):
                return Verdict(safe=False, num_states=num_steps, depth=depth)
    return Verdict(safe=True, num_states=num_steps, depth=length)
