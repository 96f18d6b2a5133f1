"""`moot bench rounds`: whole rounds through Kafka, MinIO and every service.

Agents here train nothing: each stores an update of random integers and submits it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cli.stack.processes import StackError
from protocol.encoding import parse_update, update_to_blob
from schemas import events as e
from tests.bench.federation import (
    BenchStack,
    FastProducer,
    Say,
    admit,
    bench_stack,
    make_agent_keys,
)
from tests.bench.report import Section, Table, median, show

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ledger.signing import SigningKey

NUM_UPLOADERS: Final = 4
"""Agents that store their update at the same time."""
SIZES: Final = ((10, 100_000), (10, 1_000_000), (100, 100_000), (100, 1_000_000))
QUICK_SIZES: Final = ((3, 1_000), (10, 1_000))
NUM_ROUNDS: Final = 5
WARM_UP_ROUNDS: Final = 1
NUM_LIMIT_PASSES: Final = 3
SERVICES: Final = ("sequencer", "rounds", "aggregator")
MEGA: Final = 1e6
STEPS: Final = (e.UpdateSubmitted, e.RoundSealed, e.AggregatePublished)
"""What ends the phases of a `Timeline`."""

Answer = Callable[[e.RoundStarted, bytes], Sequence[Future[Any]]]
"""Lets all agents answer a round, of which it gets the leaf's hash as well."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """When a round's steps were seen on the ledger, seconds after its start."""

    submitted_s: float
    sealed_s: float
    published_s: float


@dataclass(frozen=True, slots=True)
class Limit:
    """What one client needs for the same bytes with nothing around them, seconds."""

    write_s: float
    read_s: float
    sum_s: float

    @property
    def total_s(self) -> float:
        """All of it, one after the other."""
        return self.write_s + self.read_s + self.sum_s


@dataclass(frozen=True, slots=True)
class Found:
    """What one size came to."""

    num_agents: int
    num_parameters: int
    rounds: tuple[Timeline, ...]
    limit: Limit
    cpu_s: dict[str, float]

    @property
    def round_s(self) -> float:
        """Median time of a round."""
        return median(timeline.published_s for timeline in self.rounds)

    @property
    def update_bytes(self) -> int:
        """Bytes of a round's updates."""
        return 4 * self.num_agents * self.num_parameters


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    with bench_stack(say) as stack:
        stack.serve(*SERVICES)
        return report(
            [
                _measure(stack, size, 2 if quick else NUM_ROUNDS, say)
                for size in (QUICK_SIZES if quick else SIZES)
            ]
        )


def _measure(
    stack: BenchStack, size: tuple[int, int], num_rounds: int, say: Say
) -> Found:
    num_agents, num_parameters = size
    say(f"{num_agents} agents, {num_parameters:,} parameters")
    return Load(stack, num_agents, num_parameters).measure(num_rounds, say)


class Federation:
    """One federation, whose agents are keys of this process.

    Args:
        stack: Where.
        federation_id: Its name.
        num_agents: Its agents; all are in every cohort.
        num_parameters: The size of its model.
        parties: Who adds up shares; none: nobody.
    """

    def __init__(
        self,
        stack: BenchStack,
        federation_id: str,
        num_agents: int,
        num_parameters: int,
        parties: tuple[e.Party, ...] = (),
    ) -> None:
        self._stack = stack
        self._num_parameters = num_parameters
        self._federation_id = federation_id
        self._parties = parties
        self._agents: dict[str, SigningKey] = make_agent_keys(num_agents)
        self._producer = FastProducer(stack.settings, stack.registry)

    def _run(
        self, num_rounds: int, say: Say, answer: Answer, num_warm_up: int
    ) -> tuple[list[dict[type, float]], dict[str, float]]:
        """Run rounds, some of which do not count.

        Returns:
            When each kind of event was seen last, seconds after each round's start;
            and the processor time of a round, by who took it.
        """
        operator = self._stack.found(
            self._federation_id,
            self._num_parameters,
            len(self._agents),
            parties=self._parties,
        )
        offset = admit(self._stack, operator, self._federation_id, self._agents)
        _, config = next(self._stack.follow_leaves(self._federation_id))
        assert isinstance(config, e.FederationConfigured), "it begins with one"
        self._config = config
        leaves = self._stack.follow_leaves(self._federation_id, offset)
        found: list[dict[type, float]] = []
        before = self._cpu_s()
        for number in range(1, num_warm_up + num_rounds + 1):
            if number == num_warm_up + 1:
                found, before = [], self._cpu_s()
            operator.request_round(self._federation_id, number)
            found.append(self._run_round(leaves, answer))
            say(f"round {number}: {found[-1][e.AggregatePublished]:.2f} s")
        after = self._cpu_s()
        return found, {n: (after[n] - used) / num_rounds for n, used in before.items()}

    def _run_round(
        self, leaves: Iterator[tuple[bytes, e.LedgerEvent]], answer: Answer
    ) -> dict[type, float]:
        seen: dict[type, float] = {}
        sent: Sequence[Future[Any]] = ()
        began = 0.0
        for leaf, event in leaves:
            now = time.perf_counter()
            seen[type(event)] = now - began
            match event:
                case e.RoundStarted():
                    began = now
                    sent = answer(event, leaf)
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
            # They are on different topics: either may be on the ledger first.
            if {e.RoundSealed, e.AggregatePublished} <= seen.keys():
                break
        for future in sent:
            future.result()
        self._producer.flush()
        return seen

    def _cpu_s(self) -> dict[str, float]:
        used = {name: self._stack.cpu_s(name) for name in SERVICES}
        return {name: value for name, value in used.items() if value is not None}


class Load(Federation):
    """One with aggregation PLAIN, whose agents submit random integers.

    Args:
        stack: Where.
        num_agents: Its agents; all are in every cohort.
        num_parameters: The size of its model.
    """

    def __init__(self, stack: BenchStack, num_agents: int, num_parameters: int) -> None:
        name = f"bench-{num_agents}-{num_parameters}"
        super().__init__(stack, name, num_agents, num_parameters)
        self._values: NDArray[np.int32] = np.random.default_rng(0).integers(
            -(2**20), 2**20, num_parameters, np.int32
        )
        self._counter = itertools.count(1)

    def measure(self, num_rounds: int, say: Say) -> Found:
        """Run rounds, then move the same bytes without anything around them."""
        with ThreadPoolExecutor(NUM_UPLOADERS, "agent") as pool:

            def answer(event: e.RoundStarted, _leaf: bytes) -> list[Future[None]]:
                return [
                    pool.submit(self._answer, event, name, key)
                    for name, key in self._agents.items()
                ]

            seen, cpu_s = self._run(num_rounds, say, answer, WARM_UP_ROUNDS)
        return Found(
            len(self._agents),
            self._num_parameters,
            tuple(Timeline(*(one[step] for step in STEPS)) for one in seen),
            self._measure_limit(),
            cpu_s,
        )

    def _make_blob(self) -> bytes:
        """Return an update that was never there before."""
        values = self._values.copy()
        values[0] = next(self._counter)
        return update_to_blob(values)

    def _answer(self, started: e.RoundStarted, name: str, key: SigningKey) -> None:
        update = self._stack.store.store(self._make_blob())
        submitted = e.UpdateSubmitted(
            federation_id=started.federation_id,
            round=started.round,
            agent_id=name,
            base_model_sha256=started.base_model.sha256,
            update=update,
            num_examples=100,
            loss_micros=500_000,
        )
        self._producer.genesis = self._stack.genesis
        self._producer.send(submitted, key)

    def _measure_limit(self) -> Limit:
        passes = [self._move_bytes() for _ in range(NUM_LIMIT_PASSES)]
        return Limit(
            median(item.write_s for item in passes),
            median(item.read_s for item in passes),
            median(item.sum_s for item in passes),
        )

    def _move_bytes(self) -> Limit:
        blobs = [self._make_blob() for _ in self._agents]
        store, size = self._stack.store, self._num_parameters
        with ThreadPoolExecutor(NUM_UPLOADERS) as pool:
            began = time.perf_counter()
            refs = list(pool.map(store.store, blobs))
            written = time.perf_counter()
            for _ in pool.map(
                lambda ref: len(store.fetch(ref, max_size_bytes=ref.size_bytes)), refs
            ):
                pass
            read = time.perf_counter()
        total = np.zeros(size, np.int64)
        for blob in blobs:
            total += parse_update(blob, num_parameters=size)
        return Limit(written - began, read - written, time.perf_counter() - read)


def report(found: list[Found]) -> Section:
    """Say what was found."""
    rates = [
        (
            f"{item.num_agents} × {item.num_parameters:,}",
            show(item.num_agents / item.round_s),
            show(item.update_bytes / MEGA / item.round_s),
            show(item.round_s),
            show(item.limit.total_s),
            f"{item.round_s / item.limit.total_s:.1f}×",
        )
        for item in found
    ]
    phases = [
        (
            f"{item.num_agents} × {item.num_parameters:,}",
            *(
                show(median(values))
                for values in zip(*map(_phases, item.rounds), strict=True)
            ),
            *(show(item.cpu_s.get(name, 0.0)) for name in SERVICES),
        )
        for item in found
    ]
    limits = [
        (
            f"{item.num_agents} × {item.num_parameters:,}",
            *(
                show(item.update_bytes / MEGA / seconds)
                for seconds in (
                    item.limit.write_s,
                    item.limit.read_s,
                    item.limit.sum_s,
                )
            ),
        )
        for item in found
    ]
    largest = max(found, key=lambda item: item.update_bytes)
    smallest = min(found, key=lambda item: item.update_bytes)
    names = (
        "storing and submitting", "checking and sealing", "adding up and publishing",
    )  # fmt: skip
    shares = [
        median(values) / largest.round_s
        for values in zip(*map(_phases, largest.rounds), strict=True)
    ]
    slowest = names[shares.index(max(shares))]
    return Section(
        "rounds",
        "Rounds: updates a second, end to end",
        (
            f"""\
Real Kafka, MinIO, sequencer, rounds decider and aggregator. The agents are keys in one
process, {NUM_UPLOADERS} at a time: they train nothing, but store an update of random
int32 in MinIO and submit it. Measured on the ledger, from `RoundStarted` to
`AggregatePublished`; medians of {len(found[0].rounds)} rounds after a warm-up. MB are
the updates' own bytes, 4 a parameter.""",
            Table.under(
                "agents × parameters | updates/s | MB/s | "
                "s per round | limit, s | round / limit",
                rates,
            ),
            f"""\
**Limit**: one client with as many threads stores the same bytes in the same MinIO,
fetches each blob once with its digest verified, and adds them up with numpy, one step
after the other (a round fetches while others still store); medians of
{NUM_LIMIT_PASSES} passes. In MB/s:""",
            Table(("agents × parameters", "store", "fetch", "add"), tuple(limits)),
            """\
Where the time of a round goes, in seconds: until the last update is on the ledger,
from there until the last is checked and the round sealed, until the aggregate is on the
ledger; then the services' processor time for a round:""",
            Table(
                ("agents × parameters", *names, *SERVICES),
                tuple(phases),
            ),
            f"""\
**Hot spot**: for {largest.num_agents} × {largest.num_parameters:,} it is {slowest},
{max(shares):.0%} of the round. The smallest rounds
({smallest.num_agents} × {smallest.num_parameters:,}) are bound by hops between
processors: an update, its check, its acceptance, the seal, the claim and the aggregate
each take a Kafka transaction on the way to the ledger, and one on the way from it.""",
            """\
**Next**: the aggregator fetches every update twice, once to check it and once to add it
up; an update that is added while it is checked would spare the second. After that,
several aggregators that share a cohort: their partial sums are exact in any order.""",
        ),
    )


def _phases(timeline: Timeline) -> tuple[float, float, float]:
    return (
        timeline.submitted_s,
        timeline.sealed_s - timeline.submitted_s,
        timeline.published_s - timeline.sealed_s,
    )
