"""What a ledger node's re-verification costs, beside an audit of the same log.

One node in this process, with its real stores on a real disk, reads a made log's
records as `moot serve ledger-node` does, minus Kafka's client and HTTP; then the audit
reads the same records. What both take is processor time, so it does not matter what
else the machine does.
"""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from adapters.block_store import BlockStore
from adapters.tile_store import TileStore
from adapters.vote_log import VoteLog
from cli.stack.processes import StackError
from consumers.audit.auditor import run_audit
from consumers.node.kafka import KafkaIntake
from consumers.node.ledger_node import LedgerNode
from consumers.node.loop import NodeLoop
from consumers.node.service import BLOCKS_FILE, TICK_S, TILES_DIRECTORY
from tests.bench.federation import Say, demand_sound
from tests.bench.log import LogMaker
from tests.bench.report import make_table, show_target
from tests.builders import make_key, unframe
from tests.identities import make_identity

FEDERATION: Final = "cost"
NUM_NODES: Final = 4
SIZES: Final = {100: 6_000, 1: 500}
"""Leaves by agents in a round: large blocks, and the smallest."""
QUICK_SIZES: Final = {100: 1_000, 1: 50}
ROUNDS: Final = 3
"""Each is measured so often, in turn; the best counts."""
TARGET: Final = 2.0
NODE: Final = "node00"
BLOCK_INTERVAL_MS: Final = 100
_UNUSED: Final = "unused"

Cost = Mapping[str, float]
"""Leaves and blocks, and processor seconds of a node, of an audit (finality included),
and of an audit that leaves the ledger nodes out."""


class MadeLog:
    """A log with ledger nodes, made and kept as Kafka would have it.

    Args:
        num_agents: How many agents take part in each round.
        num_leaves: At least so many leaves.
        directory: An empty one: the node's are made in it.
    """

    def __init__(self, num_agents: int, num_leaves: int, directory: Path) -> None:
        self._directory = directory
        self._key = make_key(NODE)
        make_identity(directory / _UNUSED, NODE)
        self._maker = LogMaker(FEDERATION, num_agents, 8, num_nodes=NUM_NODES)
        self._steps = list(self._maker.make(num_leaves))

    def measure_node(self) -> float:
        """Return the processor time that one of its nodes takes, seconds.

        Raises:
            StackError: not everything became final, or was cosigned.
        """
        directory = self._directory / "used"
        # Its memory of votes is empty again, each time.
        shutil.copytree(self._directory / _UNUSED, directory)
        votes = VoteLog(directory)
        blocks = BlockStore(directory / BLOCKS_FILE)
        try:
            began = time.process_time()
            node = LedgerNode(
                FEDERATION,
                votes=votes,
                blocks=blocks,
                tiles=TileStore(directory / TILES_DIRECTORY),
                unframe=unframe,
                clock=time.time,
                operator_key=make_key("OPERATOR").public_key,
            )
            asyncio.run(self._play(node))
            elapsed = time.process_time() - began
        finally:
            blocks.close()
            votes.close()
            shutil.rmtree(directory)
        # The last block waits for a child, and the checkpoint of the one before for
        # the last tick.
        if node.tree.final_height != len(self._steps) - 2 or node.alerts.all():
            msg = f"the node says {node.describe()}"
            raise StackError(msg, "A bug of the benchmark or worse.")
        return elapsed

    async def _play(self, node: LedgerNode) -> None:
        """Let a node read, hear and say everything; time passes as on the log."""
        loop = NodeLoop(node)
        registry: Any = SimpleNamespace(unframe_trusted=unframe)
        intake = KafkaIntake(registry, loop)
        due_s = 0.0
        for number, step in enumerate(self._steps):
            while due_s <= number * BLOCK_INTERVAL_MS / 1_000:
                loop.step(lambda at=due_s: node.tick(at))  # type: ignore[misc]  # a default argument
                due_s += TICK_S
            await intake.take(step.ledger)
            await intake.take(step.checkpoint)
            for author, record in step.said:
                if author != self._key.public_key:
                    await intake.take(record)
            # What it says goes to Kafka, and comes back like all else.
            said = list(node.outbox)
            node.outbox.clear()
            for event in said:
                await intake.take(self._maker.record(event, self._key))
        loop.step(lambda: node.tick(due_s))

    def measure_audit(self, *, with_nodes: bool) -> float:
        """Return the processor time that an audit takes, seconds.

        Raises:
            StackError: it found something.
        """
        said = [record for step in self._steps for _, record in step.said]
        began = time.process_time()
        found = run_audit(
            [step.ledger for step in self._steps],
            federation_id=FEDERATION,
            unframe=unframe,
            checkpoints=[step.checkpoint for step in self._steps],
            attestations=said if with_nodes else None,
            operator_key=make_key("OPERATOR").public_key,
        ).report
        elapsed = time.process_time() - began
        demand_sound(found, self._maker.num_leaves)
        return elapsed

    def measure(self) -> Cost:
        """Measure all, in turn, several times; the best of each counts."""
        # Neither would have the log in memory, so neither is to look through it.
        gc.collect()
        gc.freeze()
        nodes, audits, plain = zip(
            *(
                (
                    self.measure_node(),
                    self.measure_audit(with_nodes=True),
                    self.measure_audit(with_nodes=False),
                )
                for _ in range(ROUNDS)
            ),
            strict=True,
        )
        gc.unfreeze()
        return {
            "leaves": self._maker.num_leaves,
            "blocks": len(self._steps),
            "node_s": min(nodes),
            "audit_s": min(audits),
            "plain_audit_s": min(plain),
        }


def measure(say: Say, *, quick: bool) -> dict[int, Cost]:
    """Return what a log with large blocks takes, and one with the smallest."""
    costs = {}
    for num_agents, num_leaves in (QUICK_SIZES if quick else SIZES).items():
        say(f"one node and the audit, {num_agents} agents: {num_leaves:,} leaves")
        with tempfile.TemporaryDirectory(prefix="moot-bench-") as folder:
            made = MadeLog(num_agents, num_leaves, Path(folder))
            costs[num_agents] = made.measure()
    return costs


def report(costs: Mapping[int, Cost]) -> Sequence[str]:
    """Say what was found, by agents in a round: the target is for large blocks."""
    large = costs[max(costs)]
    return (
        show_target(large["node_s"] / large["audit_s"], TARGET, "audits"),
        make_table(
            {
                "rounds of": f"{agents} agent{'s' * (agents > 1)}",
                "blocks": int(cost["blocks"]),
                "leaves per block": cost["leaves"] / cost["blocks"],
                "node, leaves/s": cost["leaves"] / cost["node_s"],
                "node, ms per block": 1e3 * cost["node_s"] / cost["blocks"],
                "audit, leaves/s": cost["leaves"] / cost["audit_s"],
                "audit, ms per block": 1e3 * cost["audit_s"] / cost["blocks"],
                "**node / audit**": f"{cost['node_s'] / cost['audit_s']:.2f}×",
                "node / audit without nodes": (
                    f"{cost['node_s'] / cost['plain_audit_s']:.2f}×"
                ),
                "of a core, at a block a second": (
                    f"{cost['node_s'] / cost['blocks']:.2%}"
                ),
            }
            for agents, cost in costs.items()
        ),
    )
