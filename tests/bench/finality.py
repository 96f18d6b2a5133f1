"""`moot bench finality`: how soon a block is final, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from adapters.kafka import END, Record, follow_partition
from adapters.kafka_log import find_partition
from cli.stack.processes import StackError
from ledger.checkpoint import (
    Checkpoint,
    compute_origin,
    cosign_checkpoint,
    make_log_key,
    sign_checkpoint,
)
from ledger.cosigning import CosignatureCollector
from ledger.merkle import leaf_hash, root
from ledger.note import KeyType, VerifierKey
from ledger.policy import make_bft_policy
from ledger.proof_file import make_receipt, verify_receipt
from ledger.signing import SigningKey, verify_signature
from schemas import codec, topics
from schemas import events as e
from tests.bench import node as bench_node
from tests.bench.federation import (
    BenchStack,
    Say,
    admit,
    audit_ledger,
    bench_stack,
    make_agent_keys,
    make_update_event,
)
from tests.bench.report import MEGA, make_table, measure_rate, median, show_target
from tests.trees import inclusion_proof

FEDERATION: Final = "bench"
NUM_AGENTS: Final = 10
NUM_LEAVES: Final = {4: 20_000, 7: 5_000}
"""By number of nodes; on few cores more nodes verify fewer leaves in the same time."""
NUM_BLOCKS: Final = 40
BLOCK_EVERY_S: Final = 1.0
TIMEOUT_S: Final = 300.0
TARGET_P50_S: Final = 2.0
RECEIPT_LEAVES: Final = 1_000_000
RECEIPT_LEAF: Final = bytes(500)
NUM_VERIFIED: Final = 200


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    # First, as nothing that ran before may be in its way.
    costs = bench_node.measure(say, quick=quick)
    loads = {4: 2_000} if quick else NUM_LEAVES
    num_blocks = 5 if quick else NUM_BLOCKS
    found = []
    for load in loads.items():
        with bench_stack(say) as stack:
            found.append(_measure(stack, say, *load, num_blocks))
    p50_s, rows = zip(*found, strict=True)
    say("receipts")
    receipt = measure_receipt(1_000 if quick else RECEIPT_LEAVES)
    return (
        show_target(p50_s[0], TARGET_P50_S, "s"),
        make_table(rows),
        "**A node's re-verification beside the audit**, in one process:",
        *bench_node.report(costs),
        "**A receipt**, verified offline:",
        make_table([receipt]),
    )


def _measure(
    stack: BenchStack, say: Say, num_nodes: int, count: int, num_blocks: int
) -> tuple[float, dict[str, object]]:
    """Return the median time until a block is final, and the row of it all."""
    names = [f"node{index}" for index in range(num_nodes)]
    nodes = stack.supervisor.start_nodes(stack.settings, FEDERATION, names)
    operator = stack.found(FEDERATION, 10, NUM_AGENTS, ledger_nodes=nodes)
    stack.serve("sequencer")
    stack.supervisor.start("timer", "serve", "timer", "--federation", FEDERATION)
    agents = make_agent_keys(NUM_AGENTS)
    admit(stack, operator, FEDERATION, agents)
    watch = _Watch(stack, nodes)
    watch.until(lambda: watch.final >= 1 + NUM_AGENTS)
    say(f"{num_nodes} nodes: one block a second")
    waits = _measure_latency(stack, watch, agents, num_blocks)
    say(f"{num_nodes} nodes: {count:,} leaves at once")
    per_s, per_cpu_s = _measure_throughput(stack, watch, agents, count)
    say(f"{num_nodes} nodes: auditing the same log")
    began = time.process_time()
    report = audit_ledger(stack, FEDERATION, stack.key("OPERATOR").public_key)
    audited = report.num_leaves / (time.process_time() - began)
    return median(waits), {
        "": f"{num_nodes} nodes",
        "p50, s": f"{median(waits):.2f}",
        "longest, s": f"{max(waits):.2f}",
        "load, leaves": count,
        "final leaves/s": per_s,
        "node, leaves/s, per core": per_cpu_s,
        "audit, leaves/s, per core": audited,
        "node / audit": per_cpu_s and f"{audited / per_cpu_s:.2f}×",
    }


class _Watch:
    """When blocks that say something came, and when they had their quorum."""

    def __init__(self, stack: BenchStack, nodes: tuple[e.LedgerNode, ...]) -> None:
        self._stack = stack
        sequencer = stack.key("SEQUENCER").public_key
        self._collector = CosignatureCollector(
            make_log_key(FEDERATION, stack.producer.genesis, sequencer),
            [_make_verifier(node.name, node.public_key) for node in nodes],
            len(nodes) - (len(nodes) - 1) // 3,
        )
        self._readers = [
            follow_partition(
                stack.settings, topic, find_partition(stack.settings, topic, FEDERATION)
            )
            for topic in (topics.LEDGER, topics.ATTESTATIONS)
        ]
        self.blocks: dict[int, float] = {}
        self.finals: dict[int, float] = {}
        self.size = 0
        self.final = 0

    def until(self, done: Callable[[], bool]) -> None:
        """Read until something is so.

        Raises:
            StackError: it does not become so.
        """
        began = time.monotonic()
        while not done():
            for reader in self._readers:
                for record in reader:
                    if isinstance(record, Record):
                        self._learn(record)
                    elif record is not END:
                        break
            self._stack.check()
            if time.monotonic() - began > TIMEOUT_S:
                msg = f"{self.final} of {self.size} leaves are final, and no more"
                raise StackError(msg, f"The logs are in {self._stack.supervisor.logs}.")

    def _learn(self, record: Record) -> None:
        now = time.perf_counter()
        event = codec.decode(self._stack.registry.unframe_trusted(record.value or b""))
        if isinstance(event, e.BlockSequenced):
            if _is_only_a_child(event):
                return
            self.size = event.first_leaf_index + len(event.leaves)
            self.blocks[self.size] = now
        elif isinstance(event, e.CheckpointCosigned):
            size = self._collector.add(event.checkpoint.encode()).size
            if size not in self.finals and self._collector.merge(size) is not None:
                self.finals[size] = now
                self.final = max(self.final, size)


def _is_only_a_child(block: e.BlockSequenced) -> bool:
    """Return whether a block is only there so that the one before becomes final."""
    if len(block.leaves) > 1:
        return False
    leaf = codec.decode_as(e.Leaf, block.leaves[0])
    return isinstance(codec.decode(leaf.event), e.FinalityRequested)


def _measure_latency(
    stack: BenchStack, watch: _Watch, agents: dict[str, SigningKey], count: int
) -> list[float]:
    """Return how long blocks waited for their quorum of cosignatures, seconds."""
    name, key = next(iter(agents.items()))
    first = watch.size
    for number in range(count):
        due = time.monotonic() + BLOCK_EVERY_S
        stack.producer.send(make_update_event(FEDERATION, name, number), key)
        stack.producer.flush()
        watch.until(lambda due=due: time.monotonic() >= due)  # type: ignore[misc]  # a default argument
    last = watch.size
    watch.until(lambda: watch.final >= last)
    return [
        watch.finals[size] - at
        for size, at in watch.blocks.items()
        if first < size <= last and size in watch.finals
    ]


def _measure_throughput(
    stack: BenchStack, watch: _Watch, agents: dict[str, SigningKey], count: int
) -> tuple[float, float | None]:
    """Return leaves of a load that became final in a second, and that one node verified
    in a second of its own processor time; None if that is unknown.
    """
    before = watch.size
    names = list(agents)
    # Signed before the time is taken: the first is on the log before the last is sent.
    load = []
    for number in range(count):
        name = names[number % len(names)]
        event = make_update_event(FEDERATION, name, 1_000_000 + number)
        load.append(stack.producer.sign(event, agents[name]))
    cpu_before = stack.cpu_s("node-node0")
    began = time.perf_counter()
    for signed in load:
        stack.producer.send_raw(*signed)
    stack.producer.flush()
    watch.until(lambda: watch.final >= before + count)
    elapsed = time.perf_counter() - began
    cpu_after = stack.cpu_s("node-node0")
    per_cpu_s = None
    if cpu_before is not None and cpu_after is not None:
        per_cpu_s = count / max(cpu_after - cpu_before, 1e-9)
    return count / elapsed, per_cpu_s


def _make_verifier(name: str, public_key: bytes) -> VerifierKey:
    return VerifierKey(name, KeyType.COSIGNATURE_V1, public_key)


def measure_receipt(num_leaves: int) -> dict[str, object]:
    """Measure a receipt of a log with four nodes, three of which cosigned."""
    log_key = SigningKey(bytes(32))
    origin = compute_origin(FEDERATION, bytes(32))
    hashes = [leaf_hash(n.to_bytes(8, "big")) for n in range(num_leaves)]
    index = num_leaves // 3
    hashes[index] = leaf_hash(RECEIPT_LEAF)
    note = sign_checkpoint(Checkpoint(origin, num_leaves, root(hashes)), log_key)
    nodes = {f"node{n}": SigningKey(bytes([1 + n]) * 32) for n in range(4)}
    for name in list(nodes)[:3]:
        note = cosign_checkpoint(note, name, nodes[name], 1_760_000_000)
    policy = make_bft_policy(
        make_log_key(FEDERATION, bytes(32), log_key.public_key).to_vkey(),
        [
            (name, _make_verifier(name, key.public_key).to_vkey(), "")
            for name, key in nodes.items()
        ],
    )
    receipt = make_receipt(RECEIPT_LEAF, index, inclusion_proof(index, hashes), note)
    signature = log_key.sign(RECEIPT_LEAF)

    def verify_many() -> None:
        for _ in range(NUM_VERIFIED):
            verify_receipt(receipt, policy, origin)

    def verify_signatures() -> None:
        for _ in range(NUM_VERIFIED):
            verify_signature(log_key.public_key, RECEIPT_LEAF, signature)

    return {
        "leaves of its log": f"{num_leaves:,}",
        "bytes": len(receipt),
        "µs to verify": MEGA / measure_rate(verify_many, NUM_VERIFIED),
        "limit: four signatures, µs": (
            4 * MEGA / measure_rate(verify_signatures, NUM_VERIFIED)
        ),
    }
