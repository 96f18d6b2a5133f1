"""Ledger nodes on the command line: keys and handovers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from adapters.durable import write_output
from adapters.kafka_log import read_log
from adapters.settings import Settings
from adapters.vote_log import create_identity, load_identity
from cli.federations import make_no_federation
from cli.operate import make_registry, say_as_operator
from cli.show import say, say_json
from cli.stack.processes import StackError, demand_name, read_at_most
from ledger.attestations import InvalidNodeSetError, NodeSet, sign_approval
from protocol.admission import AdmissionState
from protocol.log import fold_admission
from schemas.events import LedgerNode, NodeSetChanged, NodeSignature

MAX_PROPOSAL_SIZE_BYTES: Final = 2**17
"""64 nodes and as many approvals take 40 KB; a URL has 400 characters at most."""


def node_directory(settings: Settings, name: str) -> Path:
    """Return where a ledger node of this machine keeps its key and its memory."""
    return settings.state_directory / "ledger-nodes" / name


def make_node(settings: Settings, name: str, url: str) -> LedgerNode:
    """Return a ledger node of this machine, making its key and vote log if needed.

    Raises:
        StackError: the name is invalid.
        VoteLogError: only one of key and vote log exists.
    """
    demand_name(name, "a ledger node")
    key = create_identity(node_directory(settings, name))
    return LedgerNode(name=name, public_key=key.public_key, url=url)


def parse_ledger_nodes(texts: Iterable[str]) -> tuple[LedgerNode, ...]:
    """Return ledger nodes, each ``NAME=HEX@URL``, in ascending order of name.

    Raises:
        StackError: one is malformed.
    """
    return tuple(sorted(map(_parse_node, texts), key=lambda node: node.name))


def _parse_node(text: str) -> LedgerNode:
    name, _, rest = text.partition("=")
    key, _, url = rest.partition("@")
    try:
        public_key = bytes.fromhex(key)
    except ValueError:
        public_key = b""
    if not name or len(public_key) != 32:  # noqa: PLR2004  # Ed25519
        msg = f"{text!r} is not NAME=HEX@URL"
        raise StackError(msg, "`moot node init NAME --url URL` prints one.")
    return LedgerNode(name=name, public_key=public_key, url=url)


def show_node(node: LedgerNode) -> str:
    """Return a ledger node as `parse_ledger_nodes` reads it."""
    return f"{node.name}={node.public_key.hex()}@{node.url}"


def read_admission(settings: Settings, federation_id: str) -> AdmissionState:
    """Return what admission knows of a federation.

    Raises:
        StackError: there is no such federation.
    """
    state = AdmissionState()
    for read in read_log(settings, make_registry(settings), federation_id):
        state = fold_admission(state, read.leaves)
    if not state.federation_id:
        raise make_no_federation(settings, federation_id)
    return state


def read_node_sets(settings: Settings, federation_id: str) -> tuple[NodeSet, ...]:
    """Return a federation's ledger nodes, era by era.

    Raises:
        StackError: there is no such federation, or it has no ledger nodes.
    """
    node_sets = read_admission(settings, federation_id).node_sets
    if not node_sets:
        msg = f"federation {federation_id!r} has no ledger nodes"
        raise StackError(
            msg, "They are named at its founding: `moot federation create --help`."
        )
    return node_sets


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A proposed node set, passed from node to node as a file."""

    federation_id: str
    chain_id: bytes
    era: int
    nodes: tuple[LedgerNode, ...]
    approvals: tuple[NodeSignature, ...] = ()

    @property
    def node_set(self) -> NodeSet:
        """Return the set that is proposed."""
        return NodeSet(self.era, self.chain_id, self.nodes)

    def store(self, path: Path) -> None:
        """Write it."""
        content = {
            "federation_id": self.federation_id,
            "chain_id": self.chain_id.hex(),
            "era": self.era,
            "nodes": [show_node(node) for node in self.nodes],
            "approvals": {
                a.public_key.hex(): a.signature.hex() for a in self.approvals
            },
        }
        write_output(path, json.dumps(content, indent=2).encode() + b"\n")


def load_proposal(path: Path) -> Proposal:
    """Read a proposal.

    Raises:
        StackError: the file is not one.
    """
    try:
        content: Any = json.loads(_read_proposal(path))
        proposal = Proposal(
            federation_id=str(content["federation_id"]),
            chain_id=bytes.fromhex(content["chain_id"]),
            era=int(content["era"]),
            nodes=parse_ledger_nodes(content["nodes"]),
            approvals=tuple(
                NodeSignature(
                    public_key=bytes.fromhex(key), signature=bytes.fromhex(signature)
                )
                for key, signature in sorted(content["approvals"].items())
            ),
        )
        _ = proposal.node_set  # refuses what could never be a node set
    except Exception as error:
        # Anybody may have written it: no JSON, no hex, bad names or numbers.
        msg = f"{path} is not a proposal: {error}"
        raise StackError(msg, "`moot node propose` writes one.") from None
    return proposal


def _read_proposal(path: Path) -> bytes:
    data = read_at_most(path, MAX_PROPOSAL_SIZE_BYTES)
    if len(data) > MAX_PROPOSAL_SIZE_BYTES:
        raise ValueError(f"more than {MAX_PROPOSAL_SIZE_BYTES} bytes")
    return data


def list_nodes(settings: Settings, federation_id: str, *, as_json: bool) -> None:
    """Print the ledger nodes of each era."""
    node_sets = read_node_sets(settings, federation_id)
    if as_json:
        eras = [
            {
                "era": nodes.era,
                "quorum": nodes.quorum,
                "nodes": [
                    {"name": n.name, "public_key": n.public_key.hex(), "url": n.url}
                    for n in nodes.nodes
                ],
            }
            for nodes in node_sets
        ]
        say_json(eras)
        return
    for nodes in node_sets:
        say(f"era {nodes.era}: {nodes.quorum} of {len(nodes.nodes)}")
        for node in nodes.nodes:
            say(f"  {show_node(node)}")


def propose(
    settings: Settings, federation_id: str, nodes: tuple[LedgerNode, ...], path: Path
) -> None:
    """Write a proposal for the next node set."""
    present = read_node_sets(settings, federation_id)[-1]
    proposal = Proposal(
        federation_id=federation_id,
        chain_id=present.chain_id,
        era=present.era + 1,
        nodes=nodes,
    )
    try:
        _ = proposal.node_set
    except InvalidNodeSetError as error:
        msg = f"these cannot be ledger nodes: {error}"
        raise StackError(msg, "`moot node list` shows the present ones.") from None
    proposal.store(path)
    say(f"wrote {path}: {present.quorum} of the present nodes must approve it")


def approve(settings: Settings, path: Path, name: str) -> None:
    """Sign a proposal with the key of a local node."""
    proposal = load_proposal(path)
    present = read_node_sets(settings, proposal.federation_id)[-1]
    key = load_identity(node_directory(settings, name))
    if present.find(key.public_key) is None:
        msg = f"{name} is not a present ledger node of {proposal.federation_id!r}"
        raise StackError(msg, "`moot node list` shows who is.")
    if (proposal.chain_id, proposal.era) != (present.chain_id, present.era + 1):
        msg = f"{path} belongs to another federation or era"
        raise StackError(msg, "Write a new one with `moot node propose`.")
    approval = sign_approval(
        key, proposal.chain_id, proposal.era, proposal.node_set.hash
    )
    others = [a for a in proposal.approvals if a.public_key != key.public_key]
    approvals = sorted([*others, approval], key=lambda a: a.public_key)
    replace(proposal, approvals=tuple(approvals)).store(path)
    say(f"{name} approves: {len(approvals)} of {present.quorum}")


def change(settings: Settings, path: Path) -> None:
    """Publish an approved proposal, and wait until it is on the ledger."""
    proposal = load_proposal(path)
    changed = NodeSetChanged(
        federation_id=proposal.federation_id,
        era=proposal.era,
        nodes=proposal.nodes,
        approvals=proposal.approvals,
    )
    leaf_index = say_as_operator(settings, changed)
    say(
        f"leaf {leaf_index}: era {proposal.era} begins once its block is final; nodes "
        "that it no longer names may be stopped then"
    )
