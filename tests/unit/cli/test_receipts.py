"""`moot receipt` and `moot verify-receipt`: good receipts and all others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cli.node
import cli.receipts
from adapters.kafka_log import ReadBlock
from adapters.log_client import LogClient, LogUnavailableError
from adapters.settings import Settings
from cli.receipts import check_receipt, get_receipt, show_policy
from cli.stack.processes import StackError
from ledger.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from ledger.merkle import leaf_hash, root
from ledger.proof_file import make_receipt, parse_proof_file
from protocol.admission import make_policy
from protocol.envelope import SIGNATURE_HEADER, compute_input_id
from protocol.log import LogState, open_block
from schemas import codec
from schemas import events as e
from tests.builders import LogBuilder, make_key, unframe
from tests.trees import inclusion_proof

NOW_S = 1_760_000_000  # 2025-10-09 08:53:20 UTC
NAMES = ("node0", "node1", "node2", "node3")


def founded() -> LogBuilder:
    log = LogBuilder(ledger_nodes=NAMES)
    log.found()
    log.admit("ada", "bea")
    log.request_round()
    log.submit("ada")
    log.settle()
    return log


LOG = founded()
ORIGIN = LOG.origin


def read_blocks() -> Iterator[ReadBlock]:
    state = LogState()
    for record in LOG.records:
        data, signature = unframe(record.value or b""), record.header(SIGNATURE_HEADER)
        state, block, leaves = open_block(state, data, signature)
        yield ReadBlock(record.offset, block, leaves, state)


LEAVES = [leaf for read in read_blocks() for leaf in read.block.leaves]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
UPDATE = next(
    i for i, event in enumerate(LOG.leaves) if isinstance(event, e.UpdateSubmitted)
)


def make_note(hashes: list[bytes] = HASHES, *, cosigners: int = 3) -> bytes:
    checkpoint = Checkpoint(ORIGIN, len(hashes), root(hashes))
    note = sign_checkpoint(checkpoint, make_key("SEQUENCER"))
    for name in NAMES[:cosigners]:
        note = cosign_checkpoint(note, name, make_key(name), NOW_S)
    return note


def receipt_of(leaf_index: int = UPDATE, *, cosigners: int = 3) -> bytes:
    proof = inclusion_proof(leaf_index, HASHES)
    return make_receipt(
        LEAVES[leaf_index], leaf_index, proof, make_note(cosigners=cosigners)
    )


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy"
    path.write_text(make_policy(LOG.state.admission).to_text())
    return path


@pytest.fixture
def receipt(tmp_path: Path) -> Path:
    path = tmp_path / "ada.tlog-proof"
    path.write_bytes(receipt_of())
    return path


def test_a_good_receipt_says_what_it_proves(
    receipt: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_receipt(receipt, policy, as_json=False) == 0
    valid, says, head, *cosigned = capsys.readouterr().out.splitlines()
    assert valid == f"valid: leaf {UPDATE} of {ORIGIN}"
    assert "ada" in says
    assert f"size {len(LEAVES)}, root {root(HASHES).hex()}" in head
    assert cosigned == [
        f"  cosigned by  {name} at 2025-10-09 08:53:20Z" for name in NAMES[:3]
    ]


def test_a_good_receipt_as_json(
    receipt: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_receipt(receipt, policy, as_json=True) == 0
    content = json.loads(capsys.readouterr().out)
    update = LOG.leaves[UPDATE]
    assert isinstance(update, e.UpdateSubmitted)
    assert content == {
        "is_valid": True,
        "origin": ORIGIN,
        "leaf_index": UPDATE,
        "tree_size": len(LEAVES),
        "root": root(HASHES).hex(),
        "cosignatures": dict.fromkeys(NAMES[:3], NOW_S),
        "event": "UpdateSubmitted",
        "federation_id": "clinics",
        "round": 1,
        "agent_id": "ada",
        "base_model_sha256": update.base_model_sha256.hex(),
        "update": {
            "uri": update.update.uri,
            "sha256": update.update.sha256.hex(),
            "size_bytes": update.update.size_bytes,
        },
        "num_examples": update.num_examples,
        "loss_micros": update.loss_micros,
        "encoding_loss": None,
        "num_steps": None,
    }


@pytest.mark.parametrize("leaf_index", range(len(LEAVES)))
def test_every_leaf_can_have_one(
    policy: Path, tmp_path: Path, leaf_index: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "receipt"
    path.write_bytes(receipt_of(leaf_index))
    assert check_receipt(path, policy, as_json=False) == 0
    assert f"leaf {leaf_index} " in capsys.readouterr().out
    assert check_receipt(path, policy, as_json=True) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["event"] == type(LOG.leaves[leaf_index]).__name__


def altered() -> dict[str, bytes]:
    """Receipts in which one thing is not as it was."""
    good = receipt_of()
    file = parse_proof_file(good)
    wrong_hash = (bytes(32), *file.hashes[1:])
    other_leaf = LEAVES[UPDATE - 1]
    other_tree = [*HASHES[:-1], leaf_hash(b"another history")]
    return {
        "another leaf": make_receipt(other_leaf, UPDATE, file.hashes, file.checkpoint),
        "another place": make_receipt(
            LEAVES[UPDATE], UPDATE - 1, file.hashes, file.checkpoint
        ),
        "another proof": make_receipt(
            LEAVES[UPDATE], UPDATE, wrong_hash, file.checkpoint
        ),
        "no proof": make_receipt(LEAVES[UPDATE], UPDATE, (), file.checkpoint),
        "another tree": make_receipt(
            LEAVES[UPDATE], UPDATE, file.hashes, make_note(other_tree)
        ),
        "too few cosignatures": receipt_of(cosigners=2),
        "a forged size": good.replace(
            f"{ORIGIN}\n{len(LEAVES)}\n".encode(),
            f"{ORIGIN}\n{len(LEAVES) + 1}\n".encode(),
        ),
        "cut off": good[:-10],
        "empty": b"",
        "not text": b"\xff\x00" * 100,
        "without a leaf": b"\n".join(
            line for line in good.split(b"\n") if not line.startswith(b"extra")
        ),
    }


@pytest.mark.parametrize("what", altered())
def test_an_altered_receipt_is_not_valid(
    receipt: Path, policy: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = altered()[what]
    assert data != receipt.read_bytes()
    receipt.write_bytes(data)
    assert check_receipt(receipt, policy, as_json=False) == 1
    assert capsys.readouterr().out.startswith("NOT VALID: ")
    assert check_receipt(receipt, policy, as_json=True) == 1
    content = json.loads(capsys.readouterr().out)
    assert set(content) == {"is_valid", "problem"}
    assert content["is_valid"] is False
    assert content["problem"]


def test_no_byte_of_a_receipt_can_change_unnoticed(
    receipt: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does any of them end in a traceback. A sample: every thirteenth."""
    good = receipt.read_bytes()
    node3 = good.find(b"node3")
    assert node3 == -1  # every signature there is counts
    for place in range(0, len(good), 13):
        data = bytearray(good)
        data[place] ^= 1
        receipt.write_bytes(data)
        assert check_receipt(receipt, policy, as_json=True) == 1, place
        assert json.loads(capsys.readouterr().out)["is_valid"] is False


@pytest.mark.parametrize("entry", [b"not a leaf", codec.encode(LOG.leaves[0])])
def test_an_entry_other_than_a_leaf_is_not_valid(
    receipt: Path, policy: Path, entry: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = [leaf_hash(entry)]
    receipt.write_bytes(make_receipt(entry, 0, (), make_note(hashes)))
    assert check_receipt(receipt, policy, as_json=False) == 1
    assert capsys.readouterr().out.startswith("NOT VALID: ")


def test_another_federations_policy_believes_nobody_here(
    receipt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = LogBuilder(federation_id="banks", ledger_nodes=NAMES)
    other.found()
    path = tmp_path / "policy"
    path.write_text(make_policy(other.state.admission).to_text())
    assert check_receipt(receipt, path, as_json=False) == 1
    assert ORIGIN in capsys.readouterr().out


def test_a_policy_of_other_nodes_wants_their_word(
    receipt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = LogBuilder(ledger_nodes=("node0", "node7", "node8", "node9"))
    other.found()
    path = tmp_path / "policy"
    state = replace(LOG.state.admission, node_sets=other.state.admission.node_sets)
    path.write_text(make_policy(state).to_text())
    assert check_receipt(receipt, path, as_json=False) == 1
    assert "node7, node8, node9" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "quorum nobody\n", "\x00", "log x\n"])
def test_a_file_that_is_not_a_policy_is_named(
    receipt: Path, policy: Path, text: str
) -> None:
    policy.write_text(text)
    with pytest.raises(StackError, match="is not a policy") as caught:
        check_receipt(receipt, policy, as_json=False)
    assert str(policy) in caught.value.message
    assert "moot node policy" in caught.value.hint


def test_a_missing_file_is_named(receipt: Path, policy: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    for paths in ((nothing, policy), (receipt, nothing)):
        with pytest.raises(StackError, match="cannot read") as caught:
            check_receipt(*paths, as_json=True)
        assert str(nothing) in caught.value.message
        assert "--policy" in caught.value.hint


# Fetching one, and the policy; Kafka and the log's server are stood in for


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    def read_log(
        settings: Settings, registry: object, federation_id: str
    ) -> Iterator[ReadBlock]:
        if federation_id == LOG.federation_id:
            yield from read_blocks()

    monkeypatch.setattr(cli.receipts, "read_log", read_log)
    monkeypatch.setattr(cli.node, "read_log", read_log)
    monkeypatch.setattr(cli.receipts, "WAIT_S", -1.0)
    return Settings(
        bootstrap_servers="127.0.0.1:1",
        schema_registry_url="http://127.0.0.1:1",
        minio_endpoint="127.0.0.1:1",
        minio_access_key="x",  # type: ignore[arg-type]  # pydantic makes it one
        minio_secret_key="x",  # type: ignore[arg-type]  # pydantic makes it one
    )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What the log's server has, by path."""
    tiles = {"tile/0/000.p/" + str(len(HASHES)): b"".join(HASHES)}
    files = {"checkpoint": make_note(), **tiles}

    def fetch(client: LogClient, path: str, max_size_bytes: int) -> bytes:
        if path not in files:
            msg = "404"
            raise LogUnavailableError(msg)
        return files[path]

    monkeypatch.setattr(LogClient, "fetch", fetch)
    return files


def test_the_policy_that_is_shown_is_the_one_that_counts(
    settings: Settings, receipt: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shown"
    path.write_text(show_policy(settings, "clinics"))
    assert check_receipt(receipt, path, as_json=True) == 0
    with pytest.raises(StackError, match="no federation 'banks'"):
        show_policy(settings, "banks")


@pytest.mark.usefixtures("server")
def test_a_receipt_is_had_by_leaf_index_or_event_id(settings: Settings) -> None:
    update = codec.encode(LOG.leaves[UPDATE])
    event_id = compute_input_id(make_key("ada").public_key, update).hex()
    for name in (str(UPDATE), event_id):
        found = get_receipt(settings, "clinics", name, ("http://log",))
        assert found == (UPDATE, receipt_of())


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("name", ["", "-1", "00", "ff" * 32, str(len(LEAVES))])
def test_no_such_event_has_no_receipt(settings: Settings, name: str) -> None:
    with pytest.raises(StackError, match="has no event") as caught:
        get_receipt(settings, "clinics", name, ("http://log",))
    assert "moot round watch" in caught.value.hint


def test_a_receipt_that_cannot_be_had_says_why(
    settings: Settings, server: dict[str, bytes]
) -> None:
    with pytest.raises(StackError, match="no server of the log is known"):
        get_receipt(settings, "clinics", "0", ())  # the nodes have no url
    server["checkpoint"] = make_note(HASHES[:UPDATE])
    with pytest.raises(StackError, match="is not final") as caught:
        get_receipt(settings, "clinics", str(UPDATE), ("http://log",))
    assert "ledger nodes must be up" in caught.value.hint
    del server["checkpoint"]
    with pytest.raises(StackError, match="404") as caught:
        get_receipt(settings, "clinics", str(UPDATE), ("http://log",))
    assert "--url" in caught.value.hint
