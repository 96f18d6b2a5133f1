"""`moot node`: how nodes are written, and how a proposal is passed on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cli.node
import cli.operate
from adapters import vote_log
from adapters.kafka import END, Pause
from adapters.kafka_log import Genesis, ReadBlock
from adapters.keys import key_path
from adapters.settings import Settings
from adapters.vote_log import VoteLogCode, VoteLogError
from cli.node import (
    Proposal,
    approve,
    change,
    list_nodes,
    load_proposal,
    make_node,
    node_directory,
    parse_ledger_nodes,
    propose,
    read_admission,
    read_node_sets,
    show_node,
)
from cli.receipts import show_policy
from cli.stack.processes import StackError
from ledger.attestations import sign_approval, verify_node_set_change
from ledger.policy import parse_policy
from ledger.signing import SigningKey
from schemas import events as e
from schemas import topics
from tests.builders import LogBuilder, make_key, make_nodes, read_blocks

NAMES = ("node0", "node1", "node2", "node3")
HEX = make_key("a").public_key.hex()
NEW = make_nodes(["node0", "node5"])


class Kafka:
    """What the commands would read and write."""

    def __init__(self, log: LogBuilder) -> None:
        self.log = log

    def read_log(
        self, settings: Settings, registry: object, federation_id: str
    ) -> Iterator[ReadBlock]:
        if federation_id == self.log.federation_id:
            yield from read_blocks(self.log)

    def follow_log(
        self, settings: Settings, registry: object, federation_id: str
    ) -> Iterator[ReadBlock | Pause]:
        yield from self.read_log(settings, registry, federation_id)
        yield END

    def find_genesis(
        self, settings: Settings, registry: object, federation_id: str, **_: object
    ) -> Genesis | None:
        for read in self.read_log(settings, registry, federation_id):
            config = read.leaves[0].sequenced.event
            assert isinstance(config, e.FederationConfigured)
            return Genesis(config, read.state.genesis)
        return None

    def publish_all(
        self,
        events: Iterable[e.Event],
        key: SigningKey,
        genesis: bytes,
        *,
        traceparent: str = "",
    ) -> list[tuple[int, int]]:
        assert genesis == self.log.genesis
        places = []
        for event in events:
            self.log.say(event, key)
            places.append((0, self.log._offsets[topics.topic_of(event)] - 1))
        self.log.settle()
        return places


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        bootstrap_servers="127.0.0.1:1",
        schema_registry_url="http://127.0.0.1:1",
        minio_endpoint="127.0.0.1:1",
        minio_access_key="x",  # type: ignore[arg-type]  # pydantic makes it one
        minio_secret_key="x",  # type: ignore[arg-type]  # pydantic makes it one
        state_directory=tmp_path / "state",
    )


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    log = LogBuilder(ledger_nodes=NAMES)
    log.found()
    kafka = Kafka(log)
    monkeypatch.setattr(cli.node, "read_log", kafka.read_log)
    monkeypatch.setattr(cli.operate, "follow_log", kafka.follow_log)
    monkeypatch.setattr(cli.operate, "find_genesis", kafka.find_genesis)
    monkeypatch.setattr(cli.operate, "Publisher", lambda *_: kafka)
    return kafka


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "proposal.json"


def write_key(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(hashlib.sha256(b"key of " + name.encode()).hexdigest())
    path.chmod(0o600)


def settle_node(settings: Settings, name: str) -> None:
    """Let this machine have the key of a ledger node, by its name."""
    directory = node_directory(settings, name)
    write_key(directory / vote_log.KEY_FILE, name)
    public_key = make_key(name).public_key
    vote_log._write(directory / vote_log.VOTES_FILE, public_key, bytes(32), None)


# How nodes are written


def test_nodes_are_read_as_they_are_shown() -> None:
    nodes = (
        e.LedgerNode(name="a", public_key=bytes(32), url=""),
        e.LedgerNode(name="b", public_key=b"\xab" * 32, url="http://u@h:1/x=y"),
    )
    assert parse_ledger_nodes(map(show_node, reversed(nodes))) == nodes
    assert show_node(nodes[0]) == f"a={'0' * 64}@"


def test_a_node_may_have_no_url() -> None:
    [node] = parse_ledger_nodes([f"a={HEX}"])
    assert node == e.LedgerNode(name="a", public_key=bytes.fromhex(HEX), url="")
    assert parse_ledger_nodes([]) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "=",
        "a=",
        f"={HEX}@http://a",
        f"a={HEX[2:]}@http://a",
        f"a={HEX}00@http://a",
        f"a={HEX[:-1]}g@http://a",
        f"a@{HEX}",
    ],
)
def test_a_malformed_node_is_refused(text: str) -> None:
    with pytest.raises(StackError, match="is not NAME=HEX@URL") as caught:
        parse_ledger_nodes([f"b={HEX}@", text])
    assert "moot node init" in caught.value.hint


# A proposal is a file


def make_proposal(*approved_by: str) -> Proposal:
    proposal = Proposal(
        federation_id="clinics", chain_id=b"\x07" * 32, era=3, nodes=NEW
    )
    approvals = [
        sign_approval(
            make_key(name), proposal.chain_id, proposal.era, proposal.node_set.hash
        )
        for name in approved_by
    ]
    return replace(
        proposal, approvals=tuple(sorted(approvals, key=lambda a: a.public_key))
    )


@pytest.mark.parametrize("approved_by", [(), ("node0",), NAMES])
def test_a_proposal_is_read_as_it_was_written(
    path: Path, approved_by: tuple[str, ...]
) -> None:
    proposal = make_proposal(*approved_by)
    proposal.store(path)
    assert load_proposal(path) == proposal
    content = json.loads(path.read_text())
    assert content["nodes"] == [show_node(node) for node in NEW]
    assert set(content["approvals"]) == {
        make_key(name).public_key.hex() for name in approved_by
    }


def test_the_set_that_is_proposed_has_a_hash() -> None:
    proposal = make_proposal()
    assert proposal.node_set.nodes == NEW
    other = replace(proposal, era=4)
    assert other.node_set.hash != proposal.node_set.hash


@pytest.mark.parametrize("content", ["", "x", "[]", "null", "1", '"text"', "{}"])
def test_a_file_that_is_no_proposal_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(StackError, match="is not a proposal") as caught:
        load_proposal(path)
    assert "moot node propose" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chain_id", None),
        ("chain_id", "xyz"),
        ("chain_id", "00"),
        ("chain_id", 7),
        ("era", "one"),
        ("era", None),
        ("era", -1),
        ("nodes", None),
        ("nodes", []),
        ("nodes", [show_node(NEW[0])] * 2),
        ("nodes", [show_node(replace(NEW[0], name="A"))]),
        ("approvals", []),
        ("approvals", {"xyz": "00"}),
        ("approvals", {"00": None}),
    ],
)
def test_a_proposal_with_a_bad_value_is_refused(
    path: Path, name: str, value: object
) -> None:
    make_proposal("node0").store(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, name: value}))
    with pytest.raises(StackError, match="is not a proposal"):
        load_proposal(path)
    del content[name]
    path.write_text(json.dumps(content))
    with pytest.raises(StackError, match="is not a proposal"):
        load_proposal(path)


def test_a_proposal_with_a_bad_node_says_which(path: Path) -> None:
    make_proposal().store(path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "nodes": ["a=00@"]}))
    with pytest.raises(StackError, match="'a=00@' is not NAME=HEX@URL"):
        load_proposal(path)


def test_no_file_is_no_proposal(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StackError, match="is not a proposal"):
            load_proposal(path)


# What is read from the log


def test_the_nodes_of_each_era(
    settings: Settings, kafka: Kafka, capsys: pytest.CaptureFixture[str]
) -> None:
    kafka.log.change_nodes("node0", "node5")
    admission = kafka.log.state.admission
    assert read_admission(settings, "clinics") == admission
    assert read_node_sets(settings, "clinics") == admission.node_sets
    list_nodes(settings, "clinics", as_json=True)
    eras = json.loads(capsys.readouterr().out)
    assert [(era["era"], era["quorum"], len(era["nodes"])) for era in eras] == [
        (0, 3, 4),
        (1, 2, 2),
    ]
    assert eras[1]["nodes"][1] == {
        "name": "node5",
        "public_key": make_key("node5").public_key.hex(),
        "url": "",
    }
    list_nodes(settings, "clinics", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "era 0: 3 of 4"
    assert lines[5] == "era 1: 2 of 2"
    # What is shown can be given back.
    assert parse_ledger_nodes(line.strip() for line in lines[6:]) == NEW


def test_the_policy_of_each_era(settings: Settings, kafka: Kafka) -> None:
    first = show_policy(settings, "clinics")
    assert first.startswith("# clinics, era 0: the present one\nlog ")
    kafka.log.change_nodes("node0", "node5")
    kafka.log.change_nodes("node5")
    for era, names in enumerate((NAMES, ("node0", "node5"), ("node5",))):
        text = show_policy(settings, "clinics", era)
        policy = parse_policy(text.encode())
        assert tuple(witness.name for witness in policy.witnesses) == names
        when = "the present one" + ("" if era == 2 else " is 2")
        assert text.startswith(f"# clinics, era {era}: {when}\n")
    assert show_policy(settings, "clinics") == show_policy(settings, "clinics", 2)
    # What was printed in its time is what is printed now, but for what is present.
    assert first.partition("\n")[2] in show_policy(settings, "clinics", 0)


@pytest.mark.parametrize("era", [-1, 1])
def test_an_era_that_does_not_exist_has_no_policy(
    settings: Settings, kafka: Kafka, era: int
) -> None:
    with pytest.raises(StackError, match=f"has no era {era}: the present one is 0"):
        show_policy(settings, "clinics", era)


def test_no_federation_and_no_nodes(
    settings: Settings, kafka: Kafka, path: Path
) -> None:
    with pytest.raises(StackError, match="there is no federation 'banks'"):
        read_node_sets(settings, "banks")
    kafka.log = LogBuilder(ledger_nodes=())
    kafka.log.found()
    with pytest.raises(StackError, match="has no ledger nodes"):
        list_nodes(settings, "clinics", as_json=True)
    with pytest.raises(StackError, match="has no ledger nodes"):
        propose(settings, "clinics", NEW, path)
    assert not path.exists()


# From proposal to change


def test_a_quorum_approves_and_the_nodes_change(
    settings: Settings, kafka: Kafka, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_key(key_path(settings.state_directory / "keys", "OPERATOR"), "OPERATOR")
    [present] = kafka.log.state.admission.node_sets
    propose(settings, "clinics", NEW, path)
    assert "3 of the present nodes" in capsys.readouterr().out
    for number, name in enumerate(("node2", "node0", "node1"), start=1):
        settle_node(settings, name)
        approve(settings, path, name)
        assert f"{name} approves: {number} of 3" in capsys.readouterr().out
    proposal = load_proposal(path)
    event = e.NodeSetChanged(
        federation_id="clinics",
        era=1,
        nodes=proposal.nodes,
        approvals=proposal.approvals,
    )
    assert verify_node_set_change(present, event) == proposal.node_set
    change(settings, path)
    assert capsys.readouterr().out.startswith("leaf 1: era 1 begins")
    assert kafka.log.leaves[-1] == event
    assert read_node_sets(settings, "clinics")[-1] == proposal.node_set


def test_a_node_that_approves_twice_counts_once(
    settings: Settings, kafka: Kafka, path: Path
) -> None:
    propose(settings, "clinics", NEW, path)
    settle_node(settings, "node0")
    approve(settings, path, "node0")
    once = path.read_bytes()
    approve(settings, path, "node0")
    assert path.read_bytes() == once


def test_too_few_approvals_are_refused_and_the_reason_is_shown(
    settings: Settings, kafka: Kafka, path: Path
) -> None:
    write_key(key_path(settings.state_directory / "keys", "OPERATOR"), "OPERATOR")
    propose(settings, "clinics", NEW, path)
    settle_node(settings, "node0")
    approve(settings, path, "node0")
    with pytest.raises(StackError, match="1 approvals of the 3"):
        change(settings, path)
    assert len(read_node_sets(settings, "clinics")) == 1


def test_only_present_nodes_can_approve(
    settings: Settings, kafka: Kafka, path: Path
) -> None:
    propose(settings, "clinics", NEW, path)
    settle_node(settings, "node5")
    with pytest.raises(StackError, match="not a present ledger node"):
        approve(settings, path, "node5")
    with pytest.raises(VoteLogError) as caught:
        approve(settings, path, "node0")  # whose key is on another machine
    assert caught.value.code == VoteLogCode.NO_IDENTITY
    assert load_proposal(path).approvals == ()


def test_a_key_that_lost_its_votes_approves_nothing(
    settings: Settings, kafka: Kafka, path: Path
) -> None:
    propose(settings, "clinics", NEW, path)
    settle_node(settings, "node0")
    (node_directory(settings, "node0") / vote_log.VOTES_FILE).unlink()
    with pytest.raises(VoteLogError) as caught:
        approve(settings, path, "node0")
    assert caught.value.code == VoteLogCode.VOTE_LOG_LOST


def test_a_retired_key_approves_nothing_and_is_not_made_again(
    settings: Settings, kafka: Kafka, path: Path
) -> None:
    propose(settings, "clinics", NEW, path)
    settle_node(settings, "node0")
    directory = node_directory(settings, "node0")
    votes = vote_log.VoteLog(directory)
    votes.retire()
    votes.close()
    for call in (
        lambda: approve(settings, path, "node0"),
        lambda: make_node(settings, "node0", ""),
    ):
        with pytest.raises(VoteLogError) as caught:
            call()
        assert caught.value.code == VoteLogCode.KEY_RETIRED
    assert load_proposal(path).approvals == ()


@pytest.mark.parametrize("changes", [{"era": 2}, {"era": 0}, {"chain_id": bytes(32)}])
def test_a_proposal_of_another_time_or_place_is_not_approved(
    settings: Settings, kafka: Kafka, path: Path, changes: dict[str, object]
) -> None:
    propose(settings, "clinics", NEW, path)
    replace(load_proposal(path), **changes).store(path)  # type: ignore[arg-type]  # for brevity
    settle_node(settings, "node0")
    with pytest.raises(StackError, match="another federation or era"):
        approve(settings, path, "node0")


@pytest.mark.parametrize("nodes", [(), NEW + NEW, (replace(NEW[0], name="A b"),)])
def test_what_cannot_be_a_node_set_is_not_proposed(
    settings: Settings, kafka: Kafka, path: Path, nodes: tuple[e.LedgerNode, ...]
) -> None:
    with pytest.raises(StackError, match="cannot be ledger nodes"):
        propose(settings, "clinics", nodes, path)
    assert not path.exists()


def test_without_the_operators_key_nothing_is_published(
    settings: Settings, kafka: Kafka, path: Path
) -> None:
    propose(settings, "clinics", NEW, path)
    before = len(kafka.log.records)
    with pytest.raises(Exception, match="cannot read the key file"):
        change(settings, path)
    assert len(kafka.log.records) == before
