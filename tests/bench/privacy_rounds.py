"""Whole rounds of aggregation MPC, and where their processor time goes."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import numpy as np

from adapters.blobs import BlobStore
from adapters.settings import load_settings
from cli.modes.mpc import start_parties
from producers.modes.mpc import commit, encode_within_bound
from protocol.exchanged_state import Update
from protocol.modes.mpc.commitments import choose_row_length, get_generators
from schemas import events as e
from tests.bench.federation import BenchStack, Say, bench_stack
from tests.bench.privacy_steps import NUM_PARTIES, one_thread
from tests.bench.report import count_cores
from tests.bench.rounds import SERVICES, Federation, Load, Timeline, find_round_s

COMMIT: Final = "agents: commit, share, seal, prove"
PARTIES: Final = "parties"
PARTY_NAMES: Final = tuple(f"party-{number}" for number in range(NUM_PARTIES))


@dataclass(frozen=True, slots=True)
class Size:
    """What is run.

    Attributes:
        num_agents: Agents; all are in every cohort.
        num_values: Size of the model.
        num_rounds: Rounds of MPC that are measured.
        is_warm: Whether a round that does not count comes first.
    """

    num_agents: int
    num_values: int
    num_rounds: int
    is_warm: bool = True


@dataclass(frozen=True, slots=True)
class Rounds:
    """What rounds of one size came to.

    Attributes:
        size: What was run.
        plain_s: Median time of a round of PLAIN.
        mpc_s: Median time of a round of MPC.
        cpu_s: Processor time of a round of MPC by what took it, Kafka and MinIO left
            out; nothing where it is unknown.
    """

    size: Size
    plain_s: float
    mpc_s: float
    cpu_s: dict[str, float]


def measure_rounds(sizes: Sequence[Size], say: Say) -> list[Rounds]:
    """Run rounds of PLAIN, then of MPC, on a stack of their own."""
    with bench_stack(say) as stack:
        stack.serve(*SERVICES)
        plain = []
        for size in sizes:
            say(f"PLAIN: {size.num_agents} agents, {size.num_values:,} parameters")
            load = Load(stack, size.num_agents, size.num_values)
            plain.append(find_round_s(load.measure(max(2, size.num_rounds), say)[0]))
        # Parties that wait take a little time too: plain rounds are over by now.
        parties = start_parties(stack.supervisor, stack.settings, PARTY_NAMES)
        found = []
        for size, plain_s in zip(sizes, plain, strict=True):
            say(f"MPC: {size.num_agents} agents, {size.num_values:,} parameters")
            seen, cpu_s = SecretLoad(stack, size, parties).measure(say)
            found.append(Rounds(size, plain_s, find_round_s(seen), cpu_s))
    return found


_STORE: BlobStore | None = None


def _start_worker(num_values: int) -> None:
    global _STORE  # noqa: PLW0603  # one connection for each process
    _STORE = BlobStore(load_settings())
    get_generators(choose_row_length(num_values))  # an agent makes them once


def _commit(
    config: e.FederationConfigured,
    genesis: bytes,
    started: e.RoundStarted,
    started_leaf_hash: bytes,
    agent_id: str,
) -> tuple[e.UpdateCommitted, float]:
    """Do what an agent does once it has trained; returns the processor time too."""
    assert _STORE is not None, "in a worker"
    delta = np.random.default_rng().normal(0, 0.01, started.num_parameters)
    began = time.process_time()
    update = commit(
        encode_within_bound(Update(delta), config).values,
        started,
        config,
        genesis,
        _STORE,
        started_leaf_hash=started_leaf_hash,
        agent_id=agent_id,
        num_examples=100,
        loss_micros=500_000,
    )
    return update, time.process_time() - began


class SecretLoad(Federation):
    """A federation of aggregation MPC whose agents train nothing."""

    def __init__(
        self, stack: BenchStack, size: Size, parties: tuple[e.Party, ...]
    ) -> None:
        name = f"secret-{size.num_agents}-{size.num_values}"
        super().__init__(stack, name, size.num_agents, size.num_values, parties)
        self._size = size
        self._lock = threading.Lock()
        self._agents_s = 0.0

    def measure(self, say: Say) -> tuple[list[Timeline], dict[str, float]]:
        """Run rounds; see `Federation._run`."""
        size = self._size
        with ExitStack() as exits:
            workers = _start_workers(size.num_values, exits)

            def answer(started: e.RoundStarted, leaf: bytes) -> list[Future[Any]]:
                about = self._config, self._stack.producer.genesis, started, leaf
                sent = []
                for worker, name in zip(cycle(workers), self._agents, strict=False):
                    sent.append(worker.submit(_commit, *about, name))
                    sent[-1].add_done_callback(self._send)
                return sent

            return self._run(size.num_rounds, say, answer, size.is_warm)

    def _cpu_s(self) -> dict[str, float]:
        used = {COMMIT: self._agents_s}
        parties = [self._stack.cpu_s(f"party-{name}") for name in PARTY_NAMES]
        known = [seconds for seconds in parties if seconds is not None]
        if len(known) == len(parties):
            used[PARTIES] = sum(known)
        return used | super()._cpu_s()

    def _send(self, future: Future[Any]) -> None:
        event, seconds = future.result()
        with self._lock:
            self._agents_s += seconds
        self._stack.producer.send(event, self._agents[event.agent_id])
        self._stack.producer.flush()


def _start_workers(num_values: int, exits: ExitStack) -> list[ProcessPoolExecutor]:
    """Start a process for each core; agents take turns in them."""
    spawn = multiprocessing.get_context("spawn")
    workers = []
    with one_thread():
        for _ in range(count_cores()):
            worker = ProcessPoolExecutor(1, spawn, _start_worker, (num_values,))
            exits.callback(worker.shutdown, cancel_futures=True)
            workers.append(worker)
        for started in [worker.submit(os.getpid) for worker in workers]:
            started.result()
    return workers
