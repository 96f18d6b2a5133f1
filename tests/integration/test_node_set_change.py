"""Ledger nodes hand over to others, as processes on a real Kafka.

The change comes at the worst of times: two of four nodes are away, a round has ended
and its checkpoint is not final, the node that joins knows nothing, and the node that
leaves is gone before anybody can ask it.
"""

import json
import time
from pathlib import Path

from adapters.vote_log import KEY_FILE
from cli.node import make_node, node_directory, read_node_sets
from cli.stack.processes import find_free_ports
from ledger.attestations import START
from ledger.checkpoint import parse_checkpoint
from ledger.finality import FinalityProof, verify_finality
from ledger.note import parse_note
from protocol.cohort import compute_checkpoint_entropy, compute_cohort_seed
from schemas import events as e
from schemas import topics
from tests.integration.harness import Puppet, World, wait_until
from tests.integration.test_ledger_nodes import Nodes, check_attestations, get

NAME = "handover"
A, B, C, D, E = (f"node-{letter}" for letter in "abcde")
OLD, NEW = (A, B, C, D), (B, C, D, E)
UNDECIDED_S = 5.0
"""How long to watch what must not happen: longer than nodes take to give up."""


def moot(world: World, *arguments: str) -> str:
    finished = world.moot(*arguments)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def take_receipt(nodes: Nodes, path: Path, *running: str) -> None:
    """Say something, and get a receipt of it from the nodes that run."""
    nodes.wait_final(nodes.say(), *running, timeout_s=150)
    leaf_index = str(nodes.federation.leaves[-1].sequenced.leaf_index)
    moot(nodes.world, "receipt", leaf_index, "-f", NAME, "-o", str(path))


def eras_heard(world: World) -> set[int]:
    """Return the eras that anybody attested to anything of."""
    events = [world.decode(r) for r in world.records(topics.ATTESTATIONS, NAME)]
    return {m.era for m in events if isinstance(m, e.BlockAttested | e.EpochRequested)}


def hand_over(nodes: Nodes, new_line: str, path: Path) -> e.NodeSetChanged:
    """Propose, approve and publish, as the documentation says it."""
    world = nodes.world
    lines = moot(world, "node", "list", "-f", NAME).split()
    stay = [x for x in lines if x.partition("=")[0] in NEW]
    named = [word for line in (*stay, new_line) for word in ("--node", line)]
    moot(world, "node", "propose", "-f", NAME, *named, "-o", str(path))
    for name in (A, B, C):
        moot(world, "node", "approve", str(path), "--name", name)
    moot(world, "node", "change", str(path))
    return nodes.federation.wait(e.NodeSetChanged, era=1)


def height_of(nodes: Nodes, event: object) -> tuple[int, int]:
    """Return the height of the block that holds an event, and its tree size."""
    leaf_index, size = nodes.federation.place_of(event), 0
    for block in nodes.federation.blocks:
        size += len(block.leaves)
        if size > leaf_index:
            return block.height, size
    raise AssertionError


def test_the_nodes_change(world: World, tmp_path: Path) -> None:
    ports = find_free_ports(len(OLD) + 2)
    urls = {
        name: f"http://127.0.0.1:{port}"
        for name, port in zip((*OLD, E), ports, strict=False)
    }
    members = tuple(make_node(world.settings, name, urls[name]) for name in OLD)
    federation = world.found(NAME, ledger_nodes=members)
    federation.wait(e.FederationConfigured)
    world.start_timer(NAME)
    nodes = Nodes(world, federation, urls, f"http://127.0.0.1:{ports[-1]}")
    running = [*OLD, "handover-log", f"timer-{NAME}"]
    for name in OLD:
        nodes.start(name)
    world.services.start(
        "handover-log", "serve", "log", "--federation", NAME, "--port", str(ports[-1])
    )
    try:
        hand_over_at_the_worst_of_times(nodes, tmp_path, running)
    finally:
        world.services.stop(*running)


def hand_over_at_the_worst_of_times(
    nodes: Nodes, tmp_path: Path, running: list[str]
) -> None:
    world, federation = nodes.world, nodes.federation

    def stop(name: str) -> None:
        world.services.stop(name)
        running.remove(name)

    def start(name: str) -> None:
        nodes.start(name)
        running.append(name)

    nodes.wait_final(nodes.say(), *OLD)
    federation.wait(e.CheckpointFinalised)
    stop(D)
    before = tmp_path / "before.tlog-proof"
    take_receipt(nodes, before, A, B, C)
    old_policy = moot(world, "node", "policy", "-f", NAME)

    # A round ends when nothing becomes final any more, and the nodes change.
    stop(C)
    puppet = Puppet(world, NAME, "puppet")
    federation.admit(puppet)
    federation.request_round()
    federation.wait(e.RoundStarted, round=1)
    why = "to see where the next is drawn"
    federation.operator.say(
        e.RoundAbandonRequested(federation_id=NAME, round=1, explanation=why)
    )
    federation.wait(e.RoundAbandoned, round=1)
    new_line = moot(world, "node", "init", E, "--url", nodes.urls[E]).strip()
    changed = hand_over(nodes, new_line, tmp_path / "era-1.json")
    last, last_size = height_of(nodes, changed)

    # What is ordered and not final begins no era.
    time.sleep(UNDECIDED_S)
    for name in (A, B):
        assert nodes.status(name)["era"] == 0
        assert nodes.status(name)["final_height"] < last
        assert nodes.status(name)["pending_height"] >= last
    assert eras_heard(world) == {0}

    # The old nodes make their last block final, and the new era begins by that proof.
    start(C)
    wait_until(
        lambda: {nodes.status(name).get("era") for name in (A, B, C)} == {1},
        "the old era ends",
        150,
    )
    first_set, second_set = read_node_sets(world.settings, NAME)
    for name in (A, B, C):
        proof = FinalityProof.from_bytes(get(nodes.urls[name], "finality/0"))
        verify_finality(first_set, proof, (-1, START))
        assert proof.header.height >= last
        assert nodes.status(name)["final_height"] == last
    assert [node.name for node in second_set.nodes] == list(NEW)
    assert not nodes.status(A)["signs"]
    assert not nodes.status(A)["name"]

    # Two of the new nodes are not enough; a third one that knows nothing is.
    stop(A)
    (node_directory(world.settings, A) / KEY_FILE).unlink()
    height = nodes.say()
    time.sleep(UNDECIDED_S)
    assert nodes.final_heights(B, C) == [last, last]
    assert not (node_directory(world.settings, E) / "blocks.sqlite").exists()
    start(E)
    nodes.wait_final(height, B, C, E, timeout_s=150)
    assert nodes.status(E)["signs"]
    assert nodes.status(E)["name"] == E
    assert get(nodes.urls[E], "blocks/0") == get(nodes.urls[B], "blocks/0")
    after = tmp_path / "after.tlog-proof"
    take_receipt(nodes, after, B, C, E)

    # The next round is drawn from what both node sets cosigned.
    drawn = federation.wait(
        e.CheckpointFinalised,
        where=lambda event: head_of(event.checkpoint).size == last_size,
    )
    federation.request_round()
    started = federation.wait(e.RoundStarted, round=2)
    entropy = compute_checkpoint_entropy(head_of(drawn.checkpoint))
    assert started.cohort_seed == compute_cohort_seed(entropy, NAME, 2)

    # One that was away all the while finds its way, and is needed.
    start(D)
    nodes.wait_final(nodes.height(), D, timeout_s=150)
    stop(C)
    nodes.wait_final(nodes.say(), B, D, E, timeout_s=150)
    assert nodes.status(D)["era"] == 1
    for name in (B, D, E):
        assert not nodes.status(name)["alerts"]
    size = nodes.status(B)["final_size"]
    wait_until(
        lambda: nodes.checkpoint(nodes.log_url).checkpoint.size >= size,
        "the log server publishes what the new nodes cosigned",
    )

    check_receipts(nodes, tmp_path, before, after, old_policy)
    check_attestations(world, NAME)
    finality = federation.audit()["finality"]
    assert [(x["era"], x["first_height"], x["nodes"]) for x in finality["eras"]] == [
        (0, 0, list(OLD)),
        (1, last + 1, list(NEW)),
    ]
    present = {x["name"]: x["is_present"] for x in finality["nodes"]}
    assert present == {name: name != A for name in (*OLD, E)}
    assert finality["final_height"] > last


def head_of(checkpoint: str):
    return parse_checkpoint(parse_note(checkpoint.encode()).text)


def check_receipts(
    nodes: Nodes, tmp_path: Path, before: Path, after: Path, old_policy: str
) -> None:
    """Receipts verify by the policy of their era and no other."""
    world = nodes.world
    policies = [tmp_path / "era-0.policy", tmp_path / "era-1.policy"]
    for era, path in enumerate(policies):
        path.write_text(moot(world, "node", "policy", "-f", NAME, "--era", str(era)))
        assert path.read_text().startswith(f"# {NAME}, era {era}: the present one")
    assert policies[0].read_text().partition("\n")[2] == old_policy.partition("\n")[2]
    for receipt, good, cosigners in ((before, 0, {A, B, C}), (after, 1, {B, C, E})):
        for era, path in enumerate(policies):
            finished = world.moot(
                "verify-receipt", str(receipt), "--policy", str(path), "--json"
            )
            verdict = json.loads(finished.stdout)
            assert verdict["is_valid"] == (era == good), verdict
            assert (finished.returncode == 0) == (era == good)
            if era == good:
                assert set(verdict["cosignatures"]) == cosigners
