"""An agent's receipts: which it asks for, when, and what it keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest

import producers.agent.receipts
import tests.builders
from adapters.kafka import END, KafkaUnavailableError, Pause
from adapters.kafka_log import ReadBlock, UntrustedFederationError
from adapters.settings import Settings
from adapters.tile_store import TileStore
from ledger.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from ledger.merkle import leaf_hash
from ledger.proof_file import FILE_EXTENSION, verify_receipt
from producers.agent.receipts import ASK_EVERY_S, ReceiptKeeper
from protocol.admission import make_policy
from protocol.log import LogError, OpenedLeaf
from schemas import codec
from schemas import events as e
from tests.builders import LogBuilder, make_key, read_blocks
from tests.serving import serving

NAMES = ("node0", "node1", "node2", "node3")
SETTINGS = Settings(
    bootstrap_servers="127.0.0.1:1",
    schema_registry_url="http://127.0.0.1:1",
    minio_endpoint="127.0.0.1:1",
    minio_access_key="x",  # type: ignore[arg-type]  # pydantic makes it one
    minio_secret_key="x",  # type: ignore[arg-type]  # pydantic makes it one
)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class Node:
    """A ledger node's log server over a real store."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        self._store = TileStore(directory, sync=False)

    def publish(self, log: LogBuilder, *, cosigners: int = 3) -> None:
        leaves = [leaf for read in read_blocks(log) for leaf in read.block.leaves]
        new = leaves[self._store.size :]
        self._store.append(new, list(map(leaf_hash, new)))
        head = Checkpoint(log.origin, self._store.size, self._store.tree().root())
        note = sign_checkpoint(head, make_key("SEQUENCER"))
        for name in NAMES[:cosigners]:
            note = cosign_checkpoint(note, name, make_key(name), 1_760_000_000)
        self._store.publish(note)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    directory = tmp_path / "log"
    with serving(partial(Handler, directory=str(directory))) as url:
        yield Node(directory, url)


@pytest.fixture
def log(node: Node, monkeypatch: pytest.MonkeyPatch) -> LogBuilder:
    """A federation whose first node serves the log; a round that three answered."""
    make_nodes = tests.builders.make_nodes

    def with_url(names: object) -> tuple[e.LedgerNode, ...]:
        return tuple(
            e.LedgerNode(
                name=n.name,
                public_key=n.public_key,
                url=node.url if n.name == "node0" else "",
            )
            for n in make_nodes(names)  # type: ignore[arg-type]  # names, all of them
        )

    monkeypatch.setattr(tests.builders, "make_nodes", with_url)
    log = LogBuilder(ledger_nodes=NAMES)
    log.found()
    log.admit("ada", "bea", "cleo")
    log.request_round()
    log.submit("ada")
    log.submit("bea")
    log.decline("cleo")
    log.settle()
    return log


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(producers.agent.receipts.time, "monotonic", clock)
    return clock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "receipts"
    folder.mkdir()
    return folder


def make_keeper(
    folder: Path,
    agent: str = "ada",
    *,
    log: LogBuilder,
    **options: Callable[[OpenedLeaf], None],
) -> ReceiptKeeper:
    return ReceiptKeeper(
        SETTINGS,
        "clinics",
        operator_key=make_key("OPERATOR").public_key,
        genesis=log.genesis,
        public_key=make_key(agent).public_key,
        directory=folder,
        **options,
    )


def learn(keeper: ReceiptKeeper, log: LogBuilder) -> None:
    first = keeper._admission.num_leaves
    for read in read_blocks(log):
        if read.block.first_leaf_index >= first:
            keeper._learn(read)


def fetch(keeper: ReceiptKeeper, clock: Clock) -> None:
    """Ask, a while after it asked last."""
    clock.now_s += ASK_EVERY_S
    keeper._fetch()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leaf_of(log: LogBuilder, agent: str) -> int:
    return next(
        index
        for index, event in enumerate(log.leaves)
        if isinstance(event, e.UpdateSubmitted | e.UpdateDeclined)
        and event.agent_id == agent
    )


@pytest.mark.parametrize("agent", ["ada", "bea", "cleo"])
def test_an_agent_keeps_a_receipt_of_what_it_said(
    node: Node, log: LogBuilder, folder: Path, clock: Clock, agent: str
) -> None:
    keeper = make_keeper(folder, agent, log=log)
    learn(keeper, log)
    node.publish(log)
    fetch(keeper, clock)
    leaf_index = leaf_of(log, agent)
    [path] = folder.iterdir()
    assert path.name == f"round-1-leaf-{leaf_index}{FILE_EXTENSION}"
    verified = verify_receipt(
        path.read_bytes(), make_policy(log.state.admission), log.origin
    )
    assert verified.leaf_index == leaf_index
    leaf = codec.decode_as(e.Leaf, verified.leaf)
    assert codec.decode(leaf.event) == log.leaves[leaf_index]
    assert keeper._waiting == {}


def test_whoever_wants_to_know_is_told_of_every_answer(
    log: LogBuilder, folder: Path
) -> None:
    told: list[OpenedLeaf] = []
    keeper = make_keeper(folder, log=log, on_answer=told.append)
    learn(keeper, log)
    assert [leaf.sequenced.leaf_index for leaf in told] == [leaf_of(log, "ada")]


def test_an_agent_that_said_nothing_has_none(
    node: Node, log: LogBuilder, folder: Path, clock: Clock
) -> None:
    for stranger in ("dora", "OPERATOR", "node0"):
        keeper = make_keeper(folder, stranger, log=log)
        learn(keeper, log)
        node.publish(log)
        fetch(keeper, clock)
    assert names_in(folder) == []


def test_what_was_refused_has_no_receipt(
    node: Node, log: LogBuilder, folder: Path, clock: Clock
) -> None:
    """The leaf is the sequencer's, and the update is nobody's."""
    log.revoke("ada")
    log.submit("ada", blob=b"too late")
    log.settle()
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    node.publish(log)
    fetch(keeper, clock)
    assert len(names_in(folder)) == 1  # from before


def test_a_receipt_waits_until_its_leaf_is_final(
    node: Node, log: LogBuilder, folder: Path, clock: Clock
) -> None:
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    early = LogBuilder(ledger_nodes=NAMES)
    early.found()
    node.publish(early)
    fetch(keeper, clock)
    assert names_in(folder) == []
    assert len(keeper._waiting) == 1
    node.publish(log)
    fetch(keeper, clock)
    assert len(names_in(folder)) == 1


def test_a_receipt_waits_for_a_quorum(
    node: Node,
    log: LogBuilder,
    folder: Path,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    node.publish(log, cosigners=2)
    with caplog.at_level(logging.WARNING):
        fetch(keeper, clock)
    assert names_in(folder) == []
    assert f"no receipt for leaf {leaf_of(log, 'ada')} yet" in caplog.text
    node.publish(log)
    fetch(keeper, clock)
    assert len(names_in(folder)) == 1


def test_it_asks_now_and_then_not_all_the_time(
    node: Node, log: LogBuilder, folder: Path, clock: Clock
) -> None:
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    fetch(keeper, clock)  # there is no log yet
    node.publish(log)
    clock.now_s += ASK_EVERY_S * 0.9
    keeper._fetch()
    assert names_in(folder) == []
    clock.now_s += ASK_EVERY_S * 0.2
    keeper._fetch()
    assert len(names_in(folder)) == 1


def test_what_is_kept_is_not_fetched_again(
    node: Node, log: LogBuilder, folder: Path, clock: Clock
) -> None:
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    node.publish(log)
    fetch(keeper, clock)
    [path] = folder.iterdir()
    path.write_bytes(b"mine")
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    assert keeper._waiting == {}
    fetch(keeper, clock)
    assert path.read_bytes() == b"mine"
    # But what was lost is.
    path.unlink()
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    fetch(keeper, clock)
    assert path.exists()


def test_a_draft_is_no_receipt(
    node: Node, log: LogBuilder, folder: Path, clock: Clock
) -> None:
    """A crash while it was written leaves one."""
    leaf_index = leaf_of(log, "ada")
    name = f"round-1-leaf-{leaf_index}{FILE_EXTENSION}"
    draft = folder / f".{name}.0123abcd.draft"
    draft.write_bytes(b"half")
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    node.publish(log)
    fetch(keeper, clock)
    assert names_in(folder) == [draft.name, name]


def test_every_round_has_its_own(
    node: Node, log: LogBuilder, folder: Path, clock: Clock
) -> None:
    log.check()
    log.aggregate()
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    log.request_round()
    log.submit("ada")
    log.submit("ada", blob=b"a second answer")
    log.settle()
    learn(keeper, log)
    assert len(keeper._waiting) == 3
    node.publish(log)
    fetch(keeper, clock)
    assert [name.split("-leaf-")[0] for name in names_in(folder)] == [
        "round-1",
        "round-2",
        "round-2",
    ]


def test_without_ledger_nodes_nothing_is_asked_for(folder: Path, clock: Clock) -> None:
    log = LogBuilder(ledger_nodes=())
    log.found()
    log.admit("ada", "bea")
    log.request_round()
    log.submit("ada")
    log.settle()
    keeper = make_keeper(folder, log=log)
    learn(keeper, log)
    fetch(keeper, clock)
    assert names_in(folder) == []


# As a whole


def follow(
    keeper: ReceiptKeeper, monkeypatch: pytest.MonkeyPatch, *lives: object
) -> None:
    """Run the keeper; each life is a log that it reads, or how reading it ends."""
    left = list(lives)
    slept: list[float] = []

    def follow_log(
        *_: object, operator_key: bytes, genesis: bytes
    ) -> Iterator[ReadBlock | Pause]:
        assert operator_key == make_key("OPERATOR").public_key
        life = left.pop(0)
        if isinstance(life, Exception):
            raise life
        assert isinstance(life, LogBuilder)
        yield from read_blocks(life)
        yield END

    monkeypatch.setattr(producers.agent.receipts, "follow_log", follow_log)
    # The keeper's alone: threads of other tests may be asleep.
    clock = SimpleNamespace(sleep=slept.append, monotonic=time.monotonic)
    monkeypatch.setattr(producers.agent.receipts, "time", clock)
    keeper.run(lambda: not left)
    assert len(slept) == sum(isinstance(life, Exception) for life in lives)


def test_it_makes_its_folder_and_survives_whatever_happens(
    node: Node, log: LogBuilder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.publish(log)
    folder = tmp_path / "new" / "receipts"
    ended = LogBuilder(ledger_nodes=NAMES)
    ended.found()
    follow(
        make_keeper(folder, log=log),
        monkeypatch,
        KafkaUnavailableError("gone"),
        LogError("broken"),
        UntrustedFederationError("somebody else's"),
        OSError("the schema registry is away"),
        log,
        ended,  # where it is told to stop
    )
    assert len(names_in(folder)) == 1


def test_it_stops_when_told(
    log: LogBuilder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = make_keeper(folder, log=log)
    keeper.run(lambda: True)
    follow(keeper, monkeypatch, log)
    assert keeper._admission.num_leaves == 0
    assert names_in(folder) == []
