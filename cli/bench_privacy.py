"""`moot bench privacy`: what it costs that nobody sees an update."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapters.blobs import BlobStore
from cli.bench_federation import (
    BenchStack,
    FastProducer,
    Say,
    admit,
    bench_stack,
    make_agent_keys,
)
from cli.bench_report import Section, Table, median, show, show_target
from cli.bench_rounds import Load
from cli.processes import StackError
from producers.secret_update import Secret, prove, submit_commitment
from protocol.clipping import clip_and_encode
from protocol.commitments import combine_rows
from protocol.mpc import encode_links, encode_partial, encode_proof
from protocol.norm_proof import Projection, verify_norm_proofs
from protocol.norm_prover import ProverState, commit_update, prove_norm
from protocol.sealing import SealedPlace, SealingSecretKey, open_share, seal_share
from protocol.share_link import (
    SharedProjection,
    compute_links,
    compute_party_sum,
    open_aggregate,
    verify_party_sum,
)
from protocol.shares import ShareShape, parse_share, split_update
from schemas import events as e

if TYPE_CHECKING:
    from ledger.signing import SigningKey

NUM_PARTIES: Final = 3
NUM_TOGETHER: Final = 10
"""Proofs that are verified, and shares that are linked, together."""
NORM_BOUND: Final = 2**19 - 1
SIZES: Final = (100_000, 1_000_000)
QUICK_SIZES: Final = (1_000,)
NUM_SUMMED: Final = 100
ROUND_SIZE: Final = (10, 100_000)
QUICK_ROUND_SIZE: Final = (3, 1_000)
NUM_ROUNDS: Final = 3
TARGETS: Final = {
    100_000: {"commit": 0.75, "prove": 0.5, "verify": 0.13, "verify, batched": 0.085},
    1_000_000: {"commit": 5.5, "prove": 3.3, "verify": 0.9, "party sum": 1.0},
}
"""Processor seconds, one thread."""
MAX_RATIO: Final = 1.5


@dataclass(frozen=True, slots=True)
class Found:
    """What one size came to.

    Attributes:
        num_values: Length of an update.
        seconds: Processor time of each step, for one agent unless its name says else.
        sizes: Bytes of what travels, by name, for one agent.
    """

    num_values: int
    seconds: dict[str, float]
    sizes: dict[str, int]


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    found = []
    for num_values in QUICK_SIZES if quick else SIZES:
        say(f"{num_values:,} parameters")
        found.append(_measure(num_values, say))
    with bench_stack(say) as stack:
        plain_s, mpc_s = _measure_rounds(stack, say, quick=quick)
    return report(found, plain_s, mpc_s, QUICK_ROUND_SIZE if quick else ROUND_SIZE)


class _Clock:
    """Processor time of steps, by name: all threads of this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any], *, divide: int = 1) -> Any:
        began = time.process_time()
        result = work()
        self.seconds[name] = (time.process_time() - began) / divide
        return result


def _measure(num_values: int, say: Say) -> Found:
    clock = _Clock()
    delta = np.random.default_rng(0).normal(0, 0.01, num_values)
    bits = 10
    values = clock.time(
        "clip and encode",
        lambda: clip_and_encode(
            delta,
            fractional_bits=bits,
            norm_bound=NORM_BOUND,
            entropy=secrets.token_bytes,
        ),
    )

    def commit() -> Any:
        return commit_update(
            values,
            context=b"bench",
            squared_bound=NORM_BOUND**2,
            entropy=secrets.token_bytes,
        )

    commit()  # the generators, once for each process
    state = clock.time("commit", commit)
    say("committed")
    statement = state.statement
    projection = clock.time(
        "expand the projection (once a round)",
        lambda: Projection.expand(
            secrets.token_bytes(32),
            num_rows=statement.num_rows,
            row_length=statement.row_length,
        ),
    )
    proof = clock.time("prove", lambda: prove_norm(state, projection))
    say("proved")
    clock.time("verify", lambda: verify_norm_proofs([(statement, proof)], projection))
    batch = [(statement, proof)] * NUM_TOGETHER
    clock.time(
        "verify, batched",
        lambda: verify_norm_proofs(batch, projection),
        divide=NUM_TOGETHER,
    )
    say("verified")
    dealt = clock.time(
        "share", lambda: split_update(state, NUM_PARTIES, secrets.token_bytes)
    )
    key = SealingSecretKey(secrets.token_bytes(32))
    place = SealedPlace(
        federation_id="bench",
        round=1,
        agent_id="agent",
        party="party",
        statement_digest=bytes(32),
    )
    sealed = clock.time(
        "seal all shares",
        lambda: [seal_share(share.plaintext, key.public_key, place) for share in dealt],
    )
    shape = ShareShape(num_values, statement.num_rows)

    def open_one(index: int, *, was_linked: bool = False) -> Any:
        return parse_share(
            open_share(sealed[index], key, place),
            shape=shape,
            commitment=None if was_linked else dealt[index].commitment,
        )

    shares = [open_one(index) for index in range(NUM_PARTIES)]
    seen = SharedProjection.of(projection, num_values=num_values)
    challenges = [(1,) * (statement.num_rows + 2)] * NUM_TOGETHER
    links = clock.time(
        "open and link, a party",
        lambda: compute_links(
            [open_one(0) for _ in range(NUM_TOGETHER)], challenges, seen
        ),
        divide=NUM_TOGETHER,
    )
    clock.time(
        "party sum",
        lambda: compute_party_sum(
            ((open_one(0, was_linked=True), 1) for _ in range(NUM_SUMMED)),
            shape=shape,
            projection=seen,
        ),
    )
    say("summed")
    sums = [
        compute_party_sum([(share, 1)], shape=shape, projection=seen)
        for share in shares
    ]
    own = compute_links([shares[0]], challenges[:1], seen)
    clock.time(
        "verify a party's sum",
        lambda: verify_party_sum(
            sums[0],
            commitments=[dealt[0].commitment],
            links=own,
            weights=[1],
            projection=seen,
        ),
    )
    rows = combine_rows([statement.rows], [1])
    clock.time("open the sum", lambda: open_aggregate(sums, rows))
    sizes = {
        "commitments": len(statement.to_blob()),
        "norm proof": len(encode_proof(proof)),
        "sealed seed share": len(sealed[0]),
        "sealed full share": len(sealed[-1]),
        "links, a party": len(encode_links({"agent-0000": links[0]})),
        "partial sum, a party": len(encode_partial(sums[0])),
        "update of plain": 4 * num_values,
    }
    return Found(num_values, clock.seconds, sizes)


# Whole rounds


def _measure_rounds(stack: BenchStack, say: Say, *, quick: bool) -> tuple[float, float]:
    """Return the median time of a round of plain, and of one of mpc."""
    num_agents, num_values = QUICK_ROUND_SIZE if quick else ROUND_SIZE
    stack.serve("sequencer", "rounds", "aggregator")
    say("rounds of plain")
    plain = Load(stack, num_agents, num_values).measure(NUM_ROUNDS, say)
    names = [f"party-{number}" for number in range(NUM_PARTIES)]
    parties = stack.supervisor.start_parties(stack.settings, names)
    say("rounds of mpc")
    load = SecretLoad(stack, num_agents, num_values, parties)
    return plain.round_s, median(load.measure(NUM_ROUNDS, say))


_STORE: BlobStore | None = None
_STATES: Final[dict[str, ProverState]] = {}


def _start_worker() -> None:
    global _STORE  # noqa: PLW0603  # one connection for each process
    from adapters.settings import load_settings

    _STORE = BlobStore(load_settings())


def _commit(
    config: e.FederationConfigured, started: e.RoundStarted, agent_id: str
) -> e.UpdateCommitted:
    """Do what an agent does once it has trained."""
    assert _STORE is not None, "in a worker"
    delta = np.random.default_rng().normal(0, 0.01, started.num_parameters)
    state = Secret.make(delta, config).commit(config)
    _STATES[agent_id] = state
    return submit_commitment(
        state,
        started,
        config,
        _STORE,
        agent_id=agent_id,
        num_examples=100,
        loss_micros=500_000,
    )


def _prove(
    config: e.FederationConfigured,
    update: e.UpdateCommitted,
    closed: e.CommitmentsClosed,
) -> e.NormProofSubmitted:
    """Do what an agent does once the set is closed."""
    assert _STORE is not None, "in a worker"
    blob = prove(_STATES.pop(update.agent_id), update, closed, config)
    return e.NormProofSubmitted(
        federation_id=update.federation_id,
        round=update.round,
        agent_id=update.agent_id,
        proof=_STORE.store(blob),
    )


class SecretLoad:
    """A federation of aggregation MPC whose agents train nothing.

    Args:
        stack: Where.
        num_agents: Its agents; all are in every cohort.
        num_values: The size of its model.
        parties: Who adds up.
    """

    def __init__(
        self,
        stack: BenchStack,
        num_agents: int,
        num_values: int,
        parties: tuple[e.Party, ...],
    ) -> None:
        self._stack = stack
        self._num_values = num_values
        self._parties = parties
        self._federation_id = f"secret-{num_agents}-{num_values}"
        self._agents: dict[str, SigningKey] = make_agent_keys(num_agents)
        self._producer = FastProducer(stack.settings, stack.registry)
        self._updates: dict[str, e.UpdateCommitted] = {}

    def measure(self, num_rounds: int, say: Say) -> list[float]:
        """Return how long each round took on the ledger, after a warm-up."""
        operator = self._stack.found(
            self._federation_id,
            self._num_values,
            len(self._agents),
            parties=self._parties,
        )
        offset = admit(self._stack, operator, self._federation_id, self._agents)
        config = self._read_config()
        events = self._stack.follow_events(self._federation_id, offset)
        spawn = multiprocessing.get_context("spawn")
        # An agent is one process from commitment to proof: it need not commit twice.
        workers = [
            ProcessPoolExecutor(1, spawn, _start_worker)
            for _ in range(os.cpu_count() or 1)
        ]
        seconds = []
        try:
            for number in range(1, num_rounds + 2):
                operator.request_round(self._federation_id, number)
                seconds.append(self._run_round(config, events, workers))
                say(f"round {number}: {seconds[-1]:.2f} s")
        finally:
            for worker in workers:
                worker.shutdown(cancel_futures=True)
        return seconds[1:]

    def _read_config(self) -> e.FederationConfigured:
        for event in self._stack.follow_events(self._federation_id):
            if isinstance(event, e.FederationConfigured):
                return event
        raise StackError("the federation has no genesis", "A bug.")

    def _run_round(
        self,
        config: e.FederationConfigured,
        events: Iterator[e.LedgerEvent],
        workers: Sequence[ProcessPoolExecutor],
    ) -> float:
        began = 0.0
        future: Future[Any]
        for event in events:
            match event:
                case e.RoundStarted():
                    self._updates.clear()
                    began = time.perf_counter()
                    for index, name in enumerate(self._agents):
                        worker = workers[index % len(workers)]
                        future = worker.submit(_commit, config, event, name)
                        future.add_done_callback(self._send)
                case e.CommitmentsClosed():
                    for index, name in enumerate(self._agents):
                        worker = workers[index % len(workers)]
                        update = self._updates[name]
                        future = worker.submit(_prove, config, update, event)
                        future.add_done_callback(self._send)
                case e.UpdateCommitted():
                    self._updates[event.agent_id] = event
                case e.AggregatePublished():
                    return time.perf_counter() - began
                case (
                    e.EventRejected()
                    | e.ContributionRejected()
                    | e.PartialRejected()
                    | e.RoundAbandoned()
                    | e.ClaimRejected()
                ):
                    raise StackError(f"{event.reason}: {event.detail}", "A bug.")
                case _:
                    pass
        raise StackError("the ledger ended", "A bug.")

    def _send(self, future: Future[Any]) -> None:
        event = future.result()
        self._producer.send(event, self._agents[event.agent_id])
        self._producer.flush()


def report(
    found: Sequence[Found], plain_s: float, mpc_s: float, size: tuple[int, int]
) -> Section:
    """Say what was found."""
    names = list(found[0].seconds)
    steps = tuple((name, *(_show_step(item, name) for item in found)) for name in names)
    sizes = tuple(
        (name, *(f"{item.sizes[name]:,}" for item in found)) for name in found[0].sizes
    )
    headings = ("", *(f"{item.num_values:,} parameters" for item in found))
    num_agents, num_values = size
    return Section(
        "privacy",
        "Privacy: what it costs that nobody sees an update",
        (
            f"""\
Aggregation MPC with {NUM_PARTIES} parties, step by step, in one process and without
I/O: milliseconds of processor time of all its threads, for one agent unless a name says
else (*batched* and *link*: per agent, of {NUM_TOGETHER} together; *party sum*: of
{NUM_SUMMED} agents, opening their shares included). In brackets the target.""",
            Table(headings, steps),
            "What travels, in bytes, for one agent:",
            Table(headings, sizes),
            f"""\
Whole rounds with {num_agents} agents and {num_values:,} parameters, on the ledger from
`RoundStarted` to `AggregatePublished`, training excluded, committing and proving
included: {show(mpc_s)} s, and {show(plain_s)} s with aggregation PLAIN on the same
stack in the same run. All agents, parties, services, Kafka and MinIO share
{os.cpu_count()} cores here, while agents and parties of a real federation have their
own.""",
            show_target(
                value=mpc_s / plain_s,
                target=MAX_RATIO,
                unit="times a round of PLAIN",
                at_least=False,
            ),
            """\
**Limit**: committing and proving are multiplications of points of BLS12-381, in the
library; a verifier's work is one such sum for each proof and the expansion of its
challenges. Agents commit and prove at the same time, each on its own machine.""",
            """\
**Next**: an agent can commit to row after row while it still uploads; a party can keep
opened shares in memory between links and sum.""",
        ),
    )


def _show_step(item: Found, name: str) -> str:
    target = TARGETS.get(item.num_values, {}).get(name)
    shown = show(1_000 * item.seconds[name])
    return shown if target is None else f"{shown} ({1_000 * target:,.0f})"
