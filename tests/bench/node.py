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
from collections.abc import Callable
from dataclasses import dataclass
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
from tests.bench.federation import demand_sound
from tests.bench.log import LogMaker
from tests.bench.report import Table, show, show_target
from tests.builders import make_key, unframe
from tests.identities import make_identity

Say = Callable[[str], None]

FEDERATION: Final = "cost"
NUM_NODES: Final = 4
NUM_AGENTS: Final = 100
NUM_LEAVES: Final = 6_000
NUM_LEAVES_IN_SMALL_BLOCKS: Final = 500
ROUNDS: Final = 3
"""Each is measured so often, in turn; the best counts."""
TARGET: Final = 2.0
NODE: Final = "node00"
BLOCK_INTERVAL_MS: Final = 100
_UNUSED: Final = "unused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a log took.

    Attributes:
        num_leaves: Its leaves.
        num_blocks: Its blocks.
        node_s: Processor time of one node.
        audit_s: That of the audit, finality included.
        plain_audit_s: That of an audit that leaves the ledger nodes out.
    """

    num_leaves: int
    num_blocks: int
    node_s: float
    audit_s: float
    plain_audit_s: float

    @property
    def leaves_per_block(self) -> float:
        """How large its blocks are on average."""
        return self.num_leaves / self.num_blocks

    @property
    def ratio(self) -> float:
        """What a leaf costs a node, in audits."""
        return self.node_s / self.audit_s

    @property
    def plain_ratio(self) -> float:
        """Likewise, in audits that leave the ledger nodes out."""
        return self.node_s / self.plain_audit_s


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
        self.maker = LogMaker(FEDERATION, num_agents, 8, num_nodes=NUM_NODES)
        self._steps = list(self.maker.make(num_leaves))

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self._steps)

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
        if node.tree.final_height != self.num_blocks - 2 or node.alerts.all():
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
            now_s = number * BLOCK_INTERVAL_MS / 1_000
            while due_s <= now_s:
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
                await intake.take(self.maker.record(event, self._key))
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
        demand_sound(found, self.maker.num_leaves)
        return elapsed

    def measure(self) -> Cost:
        """Measure both, in turn, several times; the best of each counts."""
        nodes, audits, plain = [], [], []
        # Neither would have the log in memory, so neither is to look through it.
        gc.collect()
        gc.freeze()
        for _ in range(ROUNDS):
            nodes.append(self.measure_node())
            audits.append(self.measure_audit(with_nodes=True))
            plain.append(self.measure_audit(with_nodes=False))
        gc.unfreeze()
        return Cost(
            num_leaves=self.maker.num_leaves,
            num_blocks=self.num_blocks,
            node_s=min(nodes),
            audit_s=min(audits),
            plain_audit_s=min(plain),
        )


def measure(say: Say, *, quick: bool) -> tuple[Cost, Cost]:
    """Return what a log with large blocks takes, and one with the smallest."""
    costs = []
    for num_agents, num_leaves in (
        (NUM_AGENTS, 1_000 if quick else NUM_LEAVES),
        (1, 50 if quick else NUM_LEAVES_IN_SMALL_BLOCKS),
    ):
        say(f"one node and the audit, {num_agents} agents: {num_leaves:,} leaves")
        with tempfile.TemporaryDirectory(prefix="moot-bench-") as folder:
            costs.append(MadeLog(num_agents, num_leaves, Path(folder)).measure())
    large, small = costs
    return large, small


def report(large: Cost, small: Cost) -> tuple[str | Table, ...]:
    """Say what was found, for the section of `tests.bench.finality`."""
    return (
        f"""\
**What a node's re-verification costs beside the audit**, without Kafka's client, HTTP
and a machine that others use: one of {NUM_NODES} nodes in one process reads a made log
(as in [audit](#audit-and-restart-leaves-a-second)), its checkpoints and what the other
nodes say, and the audit then reads the very same records. The node verifies every
signature, hash, rule, fact, attestation and cosignature, computes state roots, attests,
cosigns, and syncs blocks, votes and tiles to the disk; its time passes as on the log,
{1_000 // BLOCK_INTERVAL_MS} blocks a second. The audit is `moot audit` without blobs;
beside it one that leaves the ledger nodes out. Processor time, the kernel's included;
best of {ROUNDS}.""",
        show_target(large.ratio, TARGET, "audits"),
        Table.under(
            " | blocks | leaves per block | node, leaves/s | "
            "node, ms per block | audit, leaves/s | audit, ms per block | "
            "**node / audit** | node / audit without nodes",
            (
                (
                    name,
                    f"{cost.num_blocks:,}",
                    f"{cost.leaves_per_block:.1f}",
                    show(cost.num_leaves / cost.node_s),
                    f"{1e3 * cost.node_s / cost.num_blocks:.2f}",
                    show(cost.num_leaves / cost.audit_s),
                    f"{1e3 * cost.audit_s / cost.num_blocks:.2f}",
                    f"{cost.ratio:.2f}×",
                    f"{cost.plain_ratio:.2f}×",
                )
                for name, cost in (
                    (f"rounds of {NUM_AGENTS} agents", large),
                    ("rounds of 1 agent", small),
                )
            ),
        ),
        f"""\
A block costs a node something however few leaves it has: it stores and syncs the block,
two votes and its tiles, and signs and verifies what {NUM_NODES} nodes say of it. With
blocks of hardly more than a leaf that is nearly all there is, and the target is not for
them: it grows with blocks, not with leaves, and at one such block a second it is
{small.node_s / small.num_blocks:.2%} of a core.""",
    )
