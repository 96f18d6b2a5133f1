"""`moot bench finality`: how soon a block is final, and what that costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from adapters.kafka import (
    END,
    Record,
    follow_partition,
    make_headers,
)
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
from ledger.signing import SigningKey
from schemas import codec, topics
from schemas import events as e
from schemas.events import LedgerNode
from tests.bench import node as bench_node
from tests.bench.federation import (
    BenchStack,
    FastProducer,
    admit,
    audit_ledger,
    bench_stack,
    make_agent_keys,
    make_update_event,
)
from tests.bench.node import Cost
from tests.bench.report import Section, Table, measure_rate, show, show_target
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

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finality:
    """What was measured with one number of nodes.

    Attributes:
        num_nodes: Number of nodes.
        waits_s: From a block on `moot.ledger` to its quorum of cosignatures.
        num_leaves: Of the load.
        leaves_per_s: Leaves of it that became final in a second.
        leaves_per_cpu_s: Leaves of it that one node verified in a second of its own
            processor time; None if unknown.
        audited_per_cpu_s: Likewise, an audit of the very same log.
    """

    num_nodes: int
    waits_s: tuple[float, ...]
    num_leaves: int
    leaves_per_s: float
    leaves_per_cpu_s: float | None
    audited_per_cpu_s: float

    @property
    def cost(self) -> float | None:
        """Return a node's processor time for a leaf, in that of an audit."""
        per_cpu_s = self.leaves_per_cpu_s
        return None if per_cpu_s is None else self.audited_per_cpu_s / per_cpu_s


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    # First, as nothing that ran before may be in its way.
    costs = bench_node.measure(say, quick=quick)
    loads = {4: 2_000} if quick else NUM_LEAVES
    found = [_measure(say, *load, quick=quick) for load in loads.items()]
    say("receipts")
    return report(found, costs, 1_000 if quick else RECEIPT_LEAVES)


def _measure(say: Say, num_nodes: int, count: int, *, quick: bool) -> Finality:
    with bench_stack(say) as stack:
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
        waits = _measure_latency(stack, watch, agents, 5 if quick else NUM_BLOCKS)
        say(f"{num_nodes} nodes: {count:,} leaves at once")
        rate, per_cpu_s = _measure_throughput(stack, watch, agents, count)
        say(f"{num_nodes} nodes: auditing the same log")
        audited = _measure_audit(stack)
    return Finality(num_nodes, waits, count, rate, per_cpu_s, audited)


class _Watch:
    """When blocks that say something came, and when they had their quorum."""

    def __init__(self, stack: BenchStack, nodes: tuple[LedgerNode, ...]) -> None:
        self._stack = stack
        self._collector = CosignatureCollector(
            make_log_key(FEDERATION, stack.genesis, stack.key("SEQUENCER").public_key),
            [
                VerifierKey(node.name, KeyType.COSIGNATURE_V1, node.public_key)
                for node in nodes
            ],
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
                    if not isinstance(record, Record):
                        if record is END:
                            continue
                        break
                    self._learn(record)
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
) -> tuple[float, ...]:
    producer = FastProducer(stack.settings, stack.registry, stack.genesis)
    name, key = next(iter(agents.items()))
    first = watch.size
    for number in range(count):
        due = time.monotonic() + BLOCK_EVERY_S
        producer.send(make_update_event(FEDERATION, name, number), key)
        producer.flush()
        watch.until(lambda due=due: time.monotonic() >= due)  # type: ignore[misc]  # a default argument
    last = watch.size
    watch.until(lambda: watch.final >= last)
    return tuple(
        sorted(
            watch.finals[size] - at
            for size, at in watch.blocks.items()
            if first < size <= last and size in watch.finals
        )
    )


def _measure_throughput(
    stack: BenchStack, watch: _Watch, agents: dict[str, SigningKey], count: int
) -> tuple[float, float | None]:
    before = watch.size
    producer = FastProducer(stack.settings, stack.registry, stack.genesis)
    names = list(agents)
    load = []
    # Signed before the time is taken: the first is on the log before the last is sent.
    for number in range(count):
        name = names[number % len(names)]
        event = make_update_event(FEDERATION, name, 1_000_000 + number)
        data, value = stack.registry.frame(event)
        load.append((value, make_headers(event, data, agents[name], stack.genesis, "")))
    cpu_before = stack.cpu_s("node-node0")
    began = time.perf_counter()
    for value, headers in load:
        producer.send_raw(topics.UPDATES, FEDERATION.encode(), value, headers)
    producer.flush()
    watch.until(lambda: watch.final >= before + count)
    elapsed = time.perf_counter() - began
    cpu_after = stack.cpu_s("node-node0")
    per_cpu_s = None
    if cpu_before is not None and cpu_after is not None:
        per_cpu_s = count / max(cpu_after - cpu_before, 1e-9)
    return count / elapsed, per_cpu_s


def _measure_audit(stack: BenchStack) -> float:
    """Return leaves in a second of processor time: without blobs, checkpoints included,
    in one thread of this process.
    """
    began = time.process_time()
    found = audit_ledger(stack, FEDERATION, stack.key("OPERATOR").public_key)
    return found.num_leaves / (time.process_time() - began)


def report(found: list[Finality], costs: tuple[Cost, Cost], num_leaves: int) -> Section:
    """Say what was found, with receipts made and verified in this process."""
    rows = tuple(
        (
            f"{item.num_nodes} nodes",
            f"{median(item.waits_s):.2f}",
            f"{max(item.waits_s):.2f}",
            f"{item.num_leaves:,}",
            show(item.leaves_per_s),
            show(item.leaves_per_cpu_s) if item.leaves_per_cpu_s else "",
            show(item.audited_per_cpu_s),
            f"{item.cost:.2f}×" if item.cost else "",
        )
        for item in found
    )
    size, per_s, verify = _measure_receipt(num_leaves)
    parts: list[str | Table] = [
        f"""\
Sequencer, timer and ledger nodes, each a process of its own, share a machine with
Kafka. First one update a second, so one block a second ({len(found[0].waits_s)}
blocks): from the moment a consumer sees the block until a quorum has cosigned its
checkpoint. Finality takes the next block, so most of it is waiting for that. Then a
load of updates at once: leaves that became final in a second, all processes sharing the
machine's cores, and what one node got through in a second of its own processor time.
Everything that its process did meanwhile is in that: besides verifying, Kafka's client,
polling and answering the other nodes over HTTP, and time-outs, if the machine is too
slow for so many nodes. Beside it an audit of the very same log without blobs and
without what ledger nodes say.""",
        Table.under(
            " | p50 s | longest, s | load, leaves | "
            "final leaves/s | node, leaves/s, per core | "
            "audit, leaves/s, per core | node / audit",
            rows,
        ),
        show_target(median(found[0].waits_s), TARGET_P50_S, "s"),
        *bench_node.report(*costs),
        f"""\
A receipt of a leaf of 500 bytes in a log of {num_leaves:,} leaves, cosigned by three of
four nodes, has {size:,} bytes. Verifying one offline (parsing, four Ed25519 signatures,
the inclusion proof) takes {1e6 / per_s:.0f} µs; four signatures alone take
{4e6 / verify:.0f} µs.""",
    ]
    return Section(
        "finality", "Finality: from a block to a quorum's word", tuple(parts)
    )


def _measure_receipt(num_leaves: int) -> tuple[int, float, float]:
    """Return a receipt's size, its verifications and Ed25519's a second."""
    log_key = SigningKey(bytes(32))
    origin = compute_origin(FEDERATION, bytes(32))
    leaf = bytes(500)
    hashes = [leaf_hash(n.to_bytes(8, "big")) for n in range(num_leaves)]
    index = num_leaves // 3
    hashes[index] = leaf_hash(leaf)
    note = sign_checkpoint(Checkpoint(origin, num_leaves, root(hashes)), log_key)
    nodes = [SigningKey(bytes([n]) * 32) for n in range(1, 5)]
    for number, key in enumerate(nodes[:3]):
        note = cosign_checkpoint(note, f"node{number}", key, 1_760_000_000)
    policy = make_bft_policy(
        make_log_key(FEDERATION, bytes(32), log_key.public_key).to_vkey(),
        [
            (
                f"node{n}",
                VerifierKey(
                    f"node{n}", KeyType.COSIGNATURE_V1, key.public_key
                ).to_vkey(),
                "",
            )
            for n, key in enumerate(nodes)
        ],
    )
    receipt = make_receipt(leaf, index, inclusion_proof(index, hashes), note)
    signature = log_key.sign(leaf)

    def verify_many() -> None:
        for _ in range(200):
            verify_receipt(receipt, policy, origin)

    def verify_signatures() -> None:
        from ledger.signing import verify_signature

        for _ in range(200):
            verify_signature(log_key.public_key, leaf, signature)

    return (
        len(receipt),
        measure_rate(verify_many, 200),
        measure_rate(verify_signatures, 200),
    )
