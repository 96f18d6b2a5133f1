"""A federation with aggregation MPC, built in memory like the one in the clear.

Agents, parties and the aggregator are the real ones: they commit, prove, share, seal,
link and sum with the functions that their processes run, and keys derived from names.
Sealing is never twice the same, so neither are these logs.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapters.modes.mpc.identity import PartyIdentity
from producers.modes import mpc
from protocol.log import OpenedLeaf
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.far_pairs import MIN_COMPARED, encode_far, make_symmetric
from protocol.modes.mpc.norm_prover import ProverState, commit_update
from protocol.modes.mpc.party_memory import (
    Known,
    Linked,
    RefusalCode,
    Summed,
    demand_harmless,
    find_unlinkable,
    remember,
)
from protocol.modes.mpc.round import MpcRound, see
from protocol.modes.mpc.sealing import SealingSecretKey
from protocol.modes.mpc.sketches import Sketch
from protocol.round_view import WatchedRounds
from protocol.strategies import counts_steps
from schemas import codec
from schemas import events as e
from streams.mpc.party import Party, make_step
from tests.builders import LogBuilder, make_key
from tests.speaking import Speak, SpeakingLog

NORM_BOUND = 2**17
"""Of length in steps; the updates here are shorter."""
AGENTS = ("ada", "bea", "cleo", "dora", "eve")


def make_sealing_key(name: str) -> SealingSecretKey:
    """Return the sealing key that a name always has."""
    return SealingSecretKey(hashlib.sha256(b"sealing key of " + name.encode()).digest())


def make_identity(name: str) -> PartyIdentity:
    """Return the keys that a party's name always has."""
    return PartyIdentity(make_key(name), make_sealing_key(name))


def make_party(name: str) -> e.Party:
    """Return a party as a federation names it."""
    return e.Party(
        name=name,
        public_key=make_key(name).public_key,
        sealing_key=make_sealing_key(name).public_key.public_key,
    )


class Memory:
    """Does as `adapters.modes.mpc.memory.PartyLog`, without a disk."""

    def __init__(self) -> None:
        self.known: list[Known] = []

    def permit_links(self, asked: Linked) -> Mapping[int, tuple[RefusalCode, str]]:
        refused = find_unlinkable(asked, self.known)
        self.known = remember(self.known, asked.without(refused))
        return refused

    def permit_sum(self, asked: Summed, *, min_cohort: int) -> None:
        demand_harmless(asked, self.known, min_cohort=min_cohort)
        self.known = remember(self.known, asked)


@dataclass(kw_only=True)
class MpcLogBuilder(SpeakingLog):
    """One federation whose updates nobody sees, and what it left behind.

    Args:
        parties: Names of its parties.
        norm_bound: Largest length of an update, in steps.
        far_threshold: Squared distance above which updates are far; 0: not compared.
    """

    num_parameters: int = 300
    cohort_size: int = 5
    ledger_nodes: Sequence[str] = ()
    parties: Sequence[str] = ("p0", "p1", "p2")
    norm_bound: int = NORM_BOUND
    far_threshold: int = 0
    silent: set[str] = field(default_factory=set)
    """Parties that say nothing."""

    def __post_init__(self) -> None:
        """Start with an empty log and parties that have said nothing."""
        super().__post_init__()
        self.states: dict[str, ProverState] = {}
        self.hands = {name: self.make_hands(name) for name in self.parties}
        self.following = dict.fromkeys(self.parties, WatchedRounds())

    def make_hands(self, name: str, memory: Any = None) -> Party:
        """Return the one who acts for a party."""
        return Party(
            name,
            make_identity(name),
            Memory() if memory is None else memory,
            self.blobs,  # type: ignore[arg-type]  # it promises the same
            min_cohort=2,
        )

    def configure(self, initial_model: e.BlobRef) -> e.FederationConfigured:
        """Return what the federation is founded with."""
        config = replace(
            super().configure(initial_model),
            plain=None,
            mpc=e.Mpc(
                parties=tuple(map(make_party, self.parties)),
                norm_bound=self.norm_bound,
            ),
        )
        if not self.far_threshold:
            return config
        mpc = get_mpc(config)
        return replace(
            config,
            mpc=replace(
                mpc,
                parties=tuple(
                    replace(party, address=f"{party.name}:7500")
                    for party in mpc.parties
                ),
                comparison=e.Comparison(
                    far_threshold=self.far_threshold,
                    dealer_key=make_key("dealer").public_key,
                ),
            ),
            min_cohort=max(MIN_COMPARED, config.min_cohort),
        )

    @property
    def started(self) -> e.RoundStarted:
        """The fact that opened the round in progress."""
        assert self._rounds.current is not None, "no round is open"
        return self._rounds.current.started

    @property
    def started_leaf_hash(self) -> bytes:
        """Of the leaf with the fact that opened the last round."""
        return next(
            leaf.sequenced.leaf_hash
            for leaf in reversed(self.opened)
            if isinstance(leaf.sequenced.event, e.RoundStarted)
        )

    # Agents

    def make_values(self, agent: str, *, largest: int = 2_000) -> NDArray[np.int64]:
        """Return an agent's update for the current round."""
        generator = np.random.default_rng(int.from_bytes(self._draw(agent)[:8], "big"))
        return generator.integers(-largest, largest + 1, self.num_parameters)

    def _draw(self, agent: str) -> bytes:
        return hashlib.sha256(f"{agent} {self.started.round}".encode()).digest()

    def answer(self, agent: str) -> None:
        """Let an agent answer the round."""
        self.commit(agent)

    def commit(self, agent: str, **how: Any) -> None:
        """Let an agent commit to an update, share and prove it; see `make_answer`."""
        self.tell(agent, self.make_answer(agent, **how))

    def make_answer(
        self,
        agent: str,
        *,
        values: NDArray[np.int64] | None = None,
        norm_bound: int | None = None,
        share: Callable[[ProverState], ProverState] = lambda state: state,
    ) -> e.UpdateCommitted:
        """Return what an agent says that commits to an update, shares and proves it.

        Args:
            agent: Who.
            values: Its update.
            norm_bound: What it commits to and proves under, in its own opinion.
            share: What it shares, given what it committed to.
        """
        if values is None:
            values = self.make_values(agent)
        bound = norm_bound or get_mpc(self.config).norm_bound
        state = commit_update(values, squared_bound=bound**2, entropy=os.urandom)
        update = mpc.share(
            share(state),
            self.started,
            self.config,
            self.genesis,
            self.blobs,  # type: ignore[arg-type]  # it promises the same
            os.urandom,
            agent_id=agent,
            num_examples=1 + self._draw(agent)[9],
            loss_micros=500_000,
        )
        self.states[agent] = state
        self.values[self.started.round, agent] = values
        if counts_steps(self.config):
            update = replace(update, num_steps=1 + self._draw(agent)[10])
        return self.prove(update)

    def prove(self, update: e.UpdateCommitted) -> e.UpdateCommitted:
        """Return an update with the proof of what it says now, from its own agent."""
        return mpc.prove(
            self.states[update.agent_id],
            update,
            self.config,
            self.genesis,
            self.blobs,  # type: ignore[arg-type]  # it promises the same
            started_leaf_hash=self.started_leaf_hash,
        )

    # Parties and the aggregator

    def _notice(self, leaf: OpenedLeaf) -> None:
        for name, hands in self.hands.items():
            before = see(self.following[name].view)
            state, work = make_step(name)(self.following[name], leaf)
            self.following[name] = state
            if name in self.silent:
                continue
            secret = see(state.view)
            if (
                secret is not None
                and secret.is_comparing
                and not (before and before.is_comparing)
            ):
                compared = e.UpdatesCompared(
                    federation_id=self.federation_id,
                    round=secret.started.round,
                    party=name,
                    far=self.compare(secret),
                )
                self.tell(name, compared)
            for event, _ in hands.do(work):
                self.tell(name, event)
        super()._notice(leaf)

    def compare(self, secret: MpcRound) -> bytes:
        """Return who is far from whom, as parties would find it: from the sketches."""
        assert secret.comparison is not None, "it is about one"
        sketch = Sketch.expand(
            secret.compute_sketch_seed(), num_values=self.num_parameters
        )
        number, comparison = secret.started.round, secret.comparison
        sketches = [
            sketch.compute(self.values[number, agent].astype(np.uint64)).astype(
                np.int64
            )
            for agent in comparison.agent_ids
        ]
        far = [
            sum(int(x) ** 2 for x in one - other) > comparison.far_threshold
            for one, other in itertools.combinations(sketches, 2)
        ]
        return encode_far(
            make_symmetric(np.array(far, dtype=np.bool_), num_agents=len(sketches))
        )

    # What becomes of it

    def run_round(
        self, *, num_declining: int = 0, num_silent: int = 0, **commits: dict[str, Any]
    ) -> None:
        """Run a whole round, as far as it goes.

        Args:
            num_declining: The last of the cohort decline.
            num_silent: The last of the others say nothing.
            **commits: How agents commit, by name; the others do so honestly.
        """
        cohort = self.request_round()
        assert cohort, "the round did not start"
        for place, agent in enumerate(cohort):
            if place >= len(cohort) - num_declining:
                self.decline(agent)
            elif place < len(cohort) - num_declining - num_silent:
                self.commit(agent, **commits.get(agent, {}))
        self.settle()
        if self._rounds.current is None and self._sealed is not None:
            self.export()

    def edit(self, ref: e.BlobRef, change: Callable[[Any], Any]) -> e.BlobRef:
        """Return a blob of ours with something in it changed."""
        record = codec.decode(self.blobs[ref.sha256])
        return self.blobs.store(codec.encode(change(record)))

    def copy(self) -> LogBuilder:
        """Do not: its agents and parties remember."""
        raise NotImplementedError


def start_mpc_log(*agents: str, **options: Any) -> MpcLogBuilder:
    """Return a federation with these agents, before its first round."""
    log = MpcLogBuilder(**options)
    log.found()
    log.admit(*(agents or AGENTS))
    return log


def change_byte(data: bytes, place: int = 0) -> bytes:
    """Return bytes of our integers with one of them off by one."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def change_values(part: e.PartialSum) -> e.PartialSum:
    """Return a party's part of a sum with one value off by one."""
    return replace(part, values=change_byte(part.values))


def lie_once(party: str) -> Speak:
    """Let a party give a wrong part of the sum, once."""
    left = [1]

    def speak(log: MpcLogBuilder, author: str, event: e.Event) -> Iterable[e.Event]:
        if author == party and isinstance(event, e.PartialAggregateSubmitted) and left:
            left.clear()
            return [replace(event, partial=log.edit(event.partial, change_values))]
        return [event]

    return speak


def build_mpc_log(**options: Any) -> MpcLogBuilder:
    """Return a log in which everything happened that can in MPC rounds.

    One round in which all is well but for an agent that declines; one in which an agent
    shares what it did not commit to, another says nothing, and a party gives a wrong
    part first; one that is abandoned, as too few say anything.

    Args:
        **options: As `MpcLogBuilder` takes them.
    """
    log = start_mpc_log(**options)
    log.run_round(num_declining=1)
    log.speak = lie_once("p1")
    differs = {"share": lambda state: replace(state, values=state.values + 1)}
    log.run_round(num_silent=1, dora=differs)
    log.pass_deadline()
    log.export()
    log.run_round(num_silent=len(AGENTS) - 1)
    log.pass_deadline()
    return log
