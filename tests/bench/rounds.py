"""`moot bench rounds`: whole rounds through Kafka, MinIO and every service.

Agents here train nothing: each stores an update of random integers and submits it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cli.stack.processes import StackError
from protocol.encoding import parse_update, update_to_blob
from schemas import events as e
from tests.bench.federation import BenchStack, Say, admit, bench_stack, make_agent_keys
from tests.bench.report import MEGA, make_table, median, name_size

if TYPE_CHECKING:
    from ledger.signing import SigningKey

NUM_UPLOADERS: Final = 4
"""Agents that store their update at the same time."""
SIZES: Final = ((10, 100_000), (10, 1_000_000), (100, 100_000), (100, 1_000_000))
QUICK_SIZES: Final = ((3, 1_000), (10, 1_000))
NUM_ROUNDS: Final = 5
WARM_UP_ROUNDS: Final = 1
NUM_LIMIT_PASSES: Final = 3
SERVICES: Final = ("sequencer", "rounds", "aggregator")

Answer = Callable[[e.RoundStarted, bytes], Sequence[Future[Any]]]
"""Lets all agents answer a round, of which it gets the leaf's hash as well."""
Timeline = dict[type, float]
"""When each kind of event was seen last, seconds after its round's start."""


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    tables: tuple[list[dict[str, object]], ...] = ([], [], [])
    with bench_stack(say) as stack:
        stack.serve(*SERVICES)
        for size in QUICK_SIZES if quick else SIZES:
            say("{} agents, {:,} parameters".format(*size))
            load = Load(stack, *size)
            seen, cpu_s = load.measure(2 if quick else NUM_ROUNDS, say)
            limits = [load.move_bytes() for _ in range(NUM_LIMIT_PASSES)]
            for table, row in zip(
                tables, report(*size, seen, limits, cpu_s), strict=True
            ):
                table.append(name_size(*size) | row)
    updates, limit, phases = map(make_table, tables)
    return updates, "**Limit**, MB/s:", limit, "Where a round's time goes, s:", phases


def report(
    num_agents: int,
    num_parameters: int,
    seen: Sequence[Timeline],
    limits: Sequence[dict[str, float]],
    cpu_s: dict[str, float],
) -> tuple[dict[str, object], ...]:
    """Return what a size has in each of the tables."""
    limit = {step: median(one[step] for one in limits) for step in limits[0]}
    limit_s, round_s = sum(limit.values()), find_round_s(seen)
    mega = 4 * num_agents * num_parameters / MEGA
    submitted, sealed, published = (
        [one[kind] for one in seen]
        for kind in (e.UpdateSubmitted, e.RoundSealed, e.AggregatePublished)
    )

    def between(ends: list[float], begins: list[float]) -> float:
        return median(b - a for a, b in zip(begins, ends, strict=True))

    return (
        {
            "updates/s": num_agents / round_s,
            "MB/s": mega / round_s,
            "s per round": round_s,
            "limit, s": limit_s,
            "round / limit": f"{round_s / limit_s:.1f}×",
        },
        {step: mega / seconds for step, seconds in limit.items()},
        {
            "storing and submitting": median(submitted),
            "checking and sealing": between(sealed, submitted),
            "adding up and publishing": between(published, sealed),
            **{f"{name}, processor": cpu_s.get(name) for name in SERVICES},
        },
    )


def find_round_s(seen: Sequence[Timeline]) -> float:
    """Return the median time of a round."""
    return median(one[e.AggregatePublished] for one in seen)


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

    def _run(
        self, num_rounds: int, say: Say, answer: Answer, num_warm_up: int
    ) -> tuple[list[Timeline], dict[str, float]]:
        """Run rounds, some of which do not count.

        Returns:
            Each round's timeline, and the processor time of one by who took it.
        """
        stack, name = self._stack, self._federation_id
        operator = stack.found(
            name, self._num_parameters, len(self._agents), parties=self._parties
        )
        offset = admit(stack, operator, name, self._agents)
        _, config = next(stack.follow_leaves(name))
        assert isinstance(config, e.FederationConfigured), "it begins with one"
        self._config = config
        leaves = stack.follow_leaves(name, offset)
        found: list[Timeline] = []
        before = self._cpu_s()
        for number in range(1, num_warm_up + num_rounds + 1):
            if number == num_warm_up + 1:
                found, before = [], self._cpu_s()
            operator.request_round(name, number)
            found.append(self._run_round(leaves, answer))
            say(f"round {number}: {found[-1][e.AggregatePublished]:.2f} s")
        after = self._cpu_s()
        return found, {n: (after[n] - used) / num_rounds for n, used in before.items()}

    def _run_round(
        self, leaves: Iterator[tuple[bytes, e.LedgerEvent]], answer: Answer
    ) -> Timeline:
        seen: Timeline = {}
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
        self._stack.producer.flush()
        return seen

    def _cpu_s(self) -> dict[str, float]:
        used = {name: self._stack.cpu_s(name) for name in SERVICES}
        return {name: value for name, value in used.items() if value is not None}


class Load(Federation):
    """One with aggregation PLAIN, whose agents submit random integers."""

    def __init__(self, stack: BenchStack, num_agents: int, num_parameters: int) -> None:
        name = f"bench-{num_agents}-{num_parameters}"
        super().__init__(stack, name, num_agents, num_parameters)
        self._values = np.random.default_rng(0).integers(
            -(2**20), 2**20, num_parameters, np.int32
        )
        self._counter = itertools.count(1)

    def measure(
        self, num_rounds: int, say: Say
    ) -> tuple[list[Timeline], dict[str, float]]:
        """Run rounds after one to warm up; see `Federation._run`."""
        with ThreadPoolExecutor(NUM_UPLOADERS, "agent") as pool:

            def answer(event: e.RoundStarted, _leaf: bytes) -> list[Future[None]]:
                return [
                    pool.submit(self._answer, event, name, key)
                    for name, key in self._agents.items()
                ]

            return self._run(num_rounds, say, answer, WARM_UP_ROUNDS)

    def _make_blob(self) -> bytes:
        """Return an update that was never there before."""
        values = self._values.copy()
        values[0] = next(self._counter)
        return update_to_blob(values)

    def _answer(self, started: e.RoundStarted, name: str, key: SigningKey) -> None:
        submitted = e.UpdateSubmitted(
            federation_id=started.federation_id,
            round=started.round,
            agent_id=name,
            base_model_sha256=started.base_model.sha256,
            update=self._stack.store.store(self._make_blob()),
            num_examples=100,
            loss_micros=500_000,
        )
        self._stack.producer.send(submitted, key)

    def move_bytes(self) -> dict[str, float]:
        """Return what one client needs for the same bytes, nothing around them."""
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
        return {
            "store": written - began,
            "fetch": read - written,
            "add": time.perf_counter() - read,
        }
