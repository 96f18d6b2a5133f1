"""What each step of aggregation MPC costs: no I/O, one thread, no services.

BLAS decides how many threads it has when it is imported, so the steps are measured in a
process of their own that is told before. `Found.one_thread` says whether it listened.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Final, TypeVar
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from py_arkworks_bls12381 import G1Point, Scalar

from protocol.clipping import clip_and_encode
from protocol.encoding import update_to_blob
from protocol.modes.mpc.checker import encode_links, encode_partial, encode_proof
from protocol.modes.mpc.commitments import (
    SCALAR_SIZE,
    combine_rows,
    get_blinding_generator,
    get_generators,
    get_scalar_generator,
    parse_points,
    to_scalar,
)
from protocol.modes.mpc.norm_proof import (
    Challenges,
    NormProof,
    compute_blinding_challenges,
    compute_challenges,
    expand_projection,
    verify_norm_proofs,
)
from protocol.modes.mpc.norm_prover import ProverState, commit_update, prove_norm
from protocol.modes.mpc.projections import NUM_PROJECTIONS, Projection, expand_stream
from protocol.modes.mpc.sealing import (
    SealedPlace,
    SealingSecretKey,
    open_share,
    seal_share,
)
from protocol.modes.mpc.share_link import (
    NUM_SUM_PROJECTIONS,
    Link,
    PartySum,
    SumMasks,
    compute_link,
    compute_party_sum,
    expand_sum_projection,
    open_aggregate,
    verify_link,
    verify_party_sum,
)
from protocol.modes.mpc.shares import (
    DealtShare,
    Share,
    ShareShape,
    parse_share,
    split_update,
)
from tests.bench.report import NUM_REPEATS, median

NUM_PARTIES: Final = 3
COHORTS: Final = (10, 100)
"""Agents whose shares are added up, and whose sum is opened."""
NORM_BOUND: Final = 2**19 - 1
SIGMA: Final = 2**9
"""Of the encoded values, normally distributed: as long as the bound allows for a
million, and as in the specification's own figures."""
NUM_EXAMPLES: Final = 100
SEED_PARTY: Final = 0
FULL_PARTY: Final = NUM_PARTIES - 1

# Names of steps
ENCODE: Final = "clip and encode"
COMMIT: Final = "commit"
EXPAND: Final = "expand the sum's projection, once a round"
PROVE: Final = "prove"
SHARE: Final = "share"
SEAL: Final = "seal all shares"
VERIFY: Final = "verify one proof"
VERIFY_BATCH: Final = "verify, of a batch"
LINK_SEED: Final = "open and link a seed share"
LINK_FULL: Final = "open and link the full share"
VERIFY_LINKS: Final = "verify an agent's links"

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS",
)  # fmt: skip
WORD_SIZE: Final = 8
_SUM_SEED: Final = bytes(32)
_WORD_HALVES: Final = 2
"""Words of 64 bits are multiplied in halves, which floats hold exactly."""

T = TypeVar("T")


SUM_SEEDS: Final = "sum the seed shares of {} agents"
SUM_FULL: Final = "sum the full shares of {} agents"
VERIFY_SUMS: Final = "verify all parties' sums, {} agents"
COMBINE: Final = "combine the commitments of {} agents"
OPEN_SUM: Final = "open the sum of {} agents"


@dataclass(frozen=True, slots=True)
class Found:
    """What one size came to.

    Attributes:
        num_values: Length of an update.
        num_agents: Agents that really committed, proved and shared.
        seconds: Processor time of each step, median.
        limits: What a step can't do without, alone.
        sizes: Bytes of what travels, by name.
        add_s: What numpy takes to add the largest cohort's arrays, and nothing else.
        one_thread: The part of the process's time that its one thread took.
    """

    num_values: int
    num_agents: int
    seconds: dict[str, float]
    limits: dict[str, float]
    sizes: dict[str, int]
    add_s: float
    one_thread: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Make processes that are started meanwhile compute in one thread each."""
    with patch.dict(os.environ, dict.fromkeys(THREAD_VARIABLES, "1")):
        yield


def measure_alone(num_values: int, num_agents: int) -> Found:
    """Measure in a new process that has one thread."""
    spawn = multiprocessing.get_context("spawn")
    with one_thread(), ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(measure, num_values, num_agents).result()


@dataclass(slots=True)
class _Clock:
    """Processor time of steps, and of the one thread that should take all of it."""

    seconds: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    process_s: float = 0.0
    thread_s: float = 0.0

    def time(
        self, name: str, works: Sequence[Callable[[], T]], *, divide: int = 1
    ) -> list[T]:
        """Measure the median of several works; returns their results."""
        results: list[T] = []
        seconds = median([self._measure(work, results) for work in works])
        self.seconds[name] = seconds / divide
        return results

    def repeat(self, name: str, work: Callable[[], T], *, divide: int = 1) -> T:
        """Measure the median of one work, several times; returns its result."""
        return self.time(name, [work] * NUM_REPEATS, divide=divide)[0]

    def limit(self, name: str, work: Callable[[], object], *, divide: int = 1) -> None:
        """Measure what a step can't do without."""
        self.limits[name] = self.measure(work) / divide

    def measure(self, work: Callable[[], object]) -> float:
        """Return the median time of a work."""
        return median(self._measure(work, []) for _ in range(NUM_REPEATS))

    def _measure(self, work: Callable[[], T], results: list[T]) -> float:
        process, thread = time.process_time(), time.thread_time()
        results.append(work())
        seconds = time.process_time() - process
        self.thread_s += time.thread_time() - thread
        self.process_s += seconds
        return seconds


@dataclass(frozen=True, slots=True, eq=False)
class _Agent:
    """What one agent made, and what the parties' links say of it."""

    name: str
    state: ProverState
    proof: NormProof
    dealt: tuple[DealtShare, ...]
    sealed: tuple[bytes, ...]
    challenges: Challenges
    links: list[Link] = field(default_factory=list)


def measure(num_values: int, num_agents: int) -> Found:
    """Measure every step, in this process.

    Args:
        num_values: Length of an update.
        num_agents: Agents that really commit, prove and share; larger cohorts take
            theirs several times.
    """
    clock = _Clock()
    seats = _Seats()
    agents = _measure_agents(clock, num_values, num_agents, seats)
    _measure_proofs(clock, agents)
    projection = _measure_sum_projection(clock, agents[0])
    _measure_links(clock, agents, projection, seats)
    add_s = 0.0
    for count in COHORTS:
        cohort = [agents[index % num_agents] for index in range(count)]
        sums = _measure_sums(clock, cohort, seats)
        add_s = _limit_sums(clock, cohort, seats)
        _measure_opening(clock, cohort, sums, projection)
    return Found(
        num_values=num_values,
        num_agents=num_agents,
        seconds=clock.seconds,
        limits=clock.limits,
        sizes=_measure_sizes(agents[0], sums[FULL_PARTY], num_values),
        add_s=add_s,
        one_thread=min(1.0, clock.thread_s / clock.process_s),
    )


def _get_shape(agent: _Agent) -> ShareShape:
    statement = agent.state.statement
    return ShareShape(statement.num_values, statement.num_rows)


class _Seats:
    """The parties' keys, and what is sealed to them where."""

    def __init__(self) -> None:
        self.keys = [
            SealingSecretKey(secrets.token_bytes(32)) for _ in range(NUM_PARTIES)
        ]
        self._masks = [SumMasks(key.derive_mask_key(), _SUM_SEED) for key in self.keys]

    def seal(self, agent_id: str, dealt: Sequence[DealtShare]) -> tuple[bytes, ...]:
        return tuple(
            seal_share(share.plaintext, key.public_key, self._place(agent_id, index))
            for index, (share, key) in enumerate(zip(dealt, self.keys, strict=True))
        )

    def open(self, agent: _Agent, party: int, *, was_linked: bool) -> Share:
        return parse_share(
            self.decrypt(agent, party),
            shape=_get_shape(agent),
            commitment=None if was_linked else agent.dealt[party].commitment,
        )

    def expand_masks(self, agent: _Agent, party: int) -> NDArray[np.uint64]:
        return self._masks[party].expand(agent.challenges.seed)

    def link(self, agent: _Agent, party: int, sum_projection: Projection) -> Link:
        statement, challenges = agent.state.statement, agent.challenges
        return compute_link(
            self.open(agent, party, was_linked=False),
            projection=expand_projection(statement, challenges.seed),
            challenges=compute_blinding_challenges(statement, challenges),
            sum_projection=sum_projection,
            masks=self.expand_masks(agent, party),
        )

    def decrypt(self, agent: _Agent, party: int) -> bytes:
        place = self._place(agent.name, party)
        return open_share(agent.sealed[party], self.keys[party], place)

    def _place(self, agent_id: str, party: int) -> SealedPlace:
        return SealedPlace(
            genesis=bytes(32),
            federation_id="bench",
            round=1,
            agent_id=agent_id,
            party=f"party-{party}",
            statement_digest=bytes(32),
        )


def _measure_agents(
    clock: _Clock, num_values: int, num_agents: int, seats: _Seats
) -> list[_Agent]:
    names = [f"agent-{number:04d}" for number in range(num_agents)]
    generator = np.random.default_rng(0)
    encode = [
        partial(
            clip_and_encode,
            generator.normal(0, SIGMA, num_values),
            fractional_bits=0,
            norm_bound=NORM_BOUND,
            entropy=secrets.token_bytes,
        )
        for _ in names
    ]
    updates = [clipped.values for clipped in clock.time(ENCODE, encode)]
    commit = [
        partial(
            commit_update,
            values,
            squared_bound=NORM_BOUND**2,
            entropy=secrets.token_bytes,
        )
        for values in updates
    ]
    commit[0]()  # the generators, once for each process
    committed = clock.time(COMMIT, commit)
    states = [s.bind(name.encode()) for name, s in zip(names, committed, strict=True)]
    proofs = clock.time(PROVE, [partial(prove_norm, s) for s in states])
    dealt = clock.time(
        SHARE,
        [partial(split_update, s, NUM_PARTIES, secrets.token_bytes) for s in states],
    )
    sealed = clock.time(
        SEAL,
        [partial(seats.seal, n, d) for n, d in zip(names, dealt, strict=True)],
    )
    _limit_agents(clock, states[0], dealt[0])
    challenges = [
        compute_challenges(state.statement, proof)
        for state, proof in zip(states, proofs, strict=True)
    ]
    made = zip(names, states, proofs, dealt, sealed, challenges, strict=True)
    return [_Agent(*parts) for parts in made]


def _limit_agents(
    clock: _Clock, state: ProverState, dealt: tuple[DealtShare, ...]
) -> None:
    statement = state.statement
    length, num_rows = statement.row_length, statement.num_rows
    rows = list(get_generators(length)) * num_rows
    points = rows[: statement.num_values]
    shift = int(np.abs(state.values).max()) + 1
    short = [to_scalar(value + shift) for value in state.values.tolist()]
    clock.limit(COMMIT, lambda: G1Point.multiexp_unchecked(points, short))
    generators = list(get_generators(length))
    long = _make_scalars(length)
    matrix = np.ones((num_rows, length))
    bits = np.ones((length, NUM_PROJECTIONS))

    def prove_limit() -> None:
        for _ in range(2):
            G1Point.multiexp_unchecked(generators, long)
        np.matmul(matrix, bits)

    clock.limit(PROVE, prove_limit)
    size = WORD_SIZE * statement.num_values
    clock.limit(
        SHARE,
        lambda: [expand_stream(bytes(32), size) for _ in range(NUM_PARTIES - 1)],
    )
    cipher = AESGCM(bytes(32))
    clock.limit(
        SEAL, lambda: [cipher.encrypt(bytes(12), s.plaintext, None) for s in dealt]
    )


def _measure_proofs(clock: _Clock, agents: Sequence[_Agent]) -> None:
    items = [(agent.state.statement, agent.proof) for agent in agents]
    verdicts = clock.time(
        VERIFY, [partial(verify_norm_proofs, [item]) for item in items]
    )
    batch = partial(verify_norm_proofs, items)
    verdicts.append(clock.repeat(VERIFY_BATCH, batch, divide=len(items)))
    assert not any(error for found in verdicts for error in found), "honest proofs"
    length = agents[0].state.statement.row_length
    fixed = [*get_generators(length), get_blinding_generator(), get_scalar_generator()]
    received = [
        [*statement.commitments, proof.z_mask, proof.z_prime_mask, *proof.coefficients]
        for statement, proof in items
    ]
    scalars = _make_scalars(len(fixed) + sum(map(len, received)))

    def multiply(encoded: Sequence[Sequence[bytes]]) -> None:
        points = [*fixed, *chain.from_iterable(map(parse_points, encoded))]
        G1Point.multiexp_unchecked(points, scalars[: len(points)])

    clock.limit(VERIFY, lambda: multiply(received[:1]))
    clock.limit(VERIFY_BATCH, lambda: multiply(received), divide=len(items))


def _make_scalars(count: int, size: int = SCALAR_SIZE) -> list[Scalar]:
    stream = bytes(expand_stream(bytes(32), size * count))
    pieces = (stream[i : i + size] for i in range(0, len(stream), size))
    return [to_scalar(int.from_bytes(piece, "little")) for piece in pieces]


def _measure_sum_projection(clock: _Clock, agent: _Agent) -> Projection:
    statement = agent.state.statement
    expand = partial(
        expand_sum_projection,
        _SUM_SEED,
        num_rows=statement.num_rows,
        row_length=statement.row_length,
    )
    return clock.repeat(EXPAND, expand)


def _measure_links(
    clock: _Clock, agents: Sequence[_Agent], projection: Projection, seats: _Seats
) -> None:
    for party in range(NUM_PARTIES):
        links = [partial(seats.link, agent, party, projection) for agent in agents]
        name = {SEED_PARTY: LINK_SEED, FULL_PARTY: LINK_FULL}.get(party)
        found = clock.time(name, links) if name else [compute() for compute in links]
        for agent, link in zip(agents, found, strict=True):
            agent.links.append(link)
        if name:
            clock.limit(name, _make_product(agents[0], NUM_PROJECTIONS))
    clock.time(VERIFY_LINKS, [partial(_verify_links, agent) for agent in agents])


def _verify_links(agent: _Agent) -> None:
    verify_link(
        agent.links,
        projections=agent.proof.projection_values,
        blinding=int.from_bytes(agent.proof.z_blinding, "little"),
    )


def _make_product(agent: _Agent, num_projections: int) -> Callable[[], None]:
    """Return the multiplication of a projection with a share, without its reading."""
    statement = agent.state.statement
    bits = np.ones((statement.row_length, num_projections))
    rows = np.ones((statement.num_rows, statement.row_length))

    def multiply() -> None:
        for _ in range(_WORD_HALVES):
            np.matmul(rows, bits)

    return multiply


def _measure_sums(
    clock: _Clock, cohort: Sequence[_Agent], seats: _Seats
) -> list[PartySum]:
    def add(party: int) -> PartySum:
        opened = (
            (
                seats.open(agent, party, was_linked=True),
                seats.expand_masks(agent, party),
                NUM_EXAMPLES,
            )
            for agent in cohort
        )
        return compute_party_sum(opened, shape=_get_shape(cohort[0]))

    count = len(cohort)
    names = {SEED_PARTY: SUM_SEEDS.format(count), FULL_PARTY: SUM_FULL.format(count)}
    return [
        clock.repeat(names[party], partial(add, party))
        if party in names
        else add(party)
        for party in range(NUM_PARTIES)
    ]


def _limit_sums(clock: _Clock, cohort: Sequence[_Agent], seats: _Seats) -> float:
    """Measure cipher and numpy alone; returns what numpy takes."""
    count = len(cohort)
    num_values = cohort[0].state.statement.num_values
    different = {agent.name: agent.state.values.view(np.uint64) for agent in cohort}
    arrays = [different[agent.name] for agent in cohort]
    total: NDArray[np.uint64] = np.zeros(num_values, dtype=np.uint64)

    def add() -> None:
        for array in arrays:
            np.add(total, array, out=total)

    def expand() -> None:
        for _ in cohort:
            expand_stream(bytes(32), WORD_SIZE * num_values)

    def decrypt() -> None:
        for agent in cohort:
            seats.decrypt(agent, FULL_PARTY)

    add_s = clock.measure(add)
    for name, cipher in (
        (SUM_SEEDS.format(count), expand),
        (SUM_FULL.format(count), decrypt),
    ):
        clock.limits[name] = clock.measure(cipher) + add_s
    return add_s


def _measure_opening(
    clock: _Clock,
    cohort: Sequence[_Agent],
    sums: Sequence[PartySum],
    projection: Projection,
) -> None:
    count = len(cohort)
    weights = [NUM_EXAMPLES] * count

    def verify() -> None:
        for party, party_sum in enumerate(sums):
            verify_party_sum(
                party_sum,
                commitments=[agent.dealt[party].commitment for agent in cohort],
                links=[agent.links[party] for agent in cohort],
                weights=weights,
                shape=_get_shape(cohort[0]),
                sum_projection=projection,
            )

    clock.repeat(VERIFY_SUMS.format(count), verify)
    product = _make_product(cohort[0], NUM_SUM_PROJECTIONS)
    clock.limit(VERIFY_SUMS.format(count), lambda: [product() for _ in sums])
    rows = [agent.state.statement.rows for agent in cohort]
    (combined,) = clock.time(
        COMBINE.format(count), [lambda: combine_rows(rows, weights)]
    )
    short = [to_scalar(NUM_EXAMPLES)] * count
    clock.limit(
        COMBINE.format(count),
        lambda: [
            G1Point.multiexp_unchecked(parse_points(column), short)
            for column in zip(*rows, strict=True)
        ],
    )
    (total,) = clock.time(
        OPEN_SUM.format(count), [lambda: open_aggregate(sums, combined)]
    )
    want = sum(agent.state.values for agent in cohort) * NUM_EXAMPLES
    assert np.array_equal(total, want), "the sum is exact"
    generators = list(get_generators(cohort[0].state.statement.row_length))
    long = _make_scalars(len(generators))
    weights_of_rows = _make_scalars(len(combined), SCALAR_SIZE // 2)

    def multiply() -> None:
        G1Point.multiexp_unchecked(generators, long)
        G1Point.multiexp_unchecked(parse_points(combined), weights_of_rows)

    clock.limit(OPEN_SUM.format(count), multiply)


def _measure_sizes(
    agent: _Agent, party_sum: PartySum, num_values: int
) -> dict[str, int]:
    return {
        "commitments": len(agent.state.statement.to_blob()),
        "norm proof": len(encode_proof(agent.proof)),
        "sealed seed share": len(agent.sealed[SEED_PARTY]),
        "sealed full share": len(agent.sealed[FULL_PARTY]),
        "links of an agent, a party": len(encode_links({agent.name: agent.links[0]})),
        "sum of a party": len(encode_partial(party_sum)),
        "update of PLAIN": len(update_to_blob(np.zeros(num_values, np.int32))),
    }
