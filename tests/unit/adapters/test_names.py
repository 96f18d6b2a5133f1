"""Names are kept off the log, under a key that can be destroyed."""

import re

import pytest
from typer.testing import CliRunner

from adapters import kafka
from adapters.names import MAX_NAME_LENGTH, NameBook, NamesError
from adapters.settings import Settings
from cli import names, operate
from cli.main import app
from cli.stack.processes import StackError
from schemas import codec
from tests.builders import build_log, unframe
from tests.unit.consumers.audit.test_auditor import audit

NAME = "Dr. Žofie Nováková, Aster clinic"


@pytest.fixture
def book(tmp_path):
    book = NameBook(tmp_path / "names", "clinics")
    book.write("ada", NAME)
    return book


def files_of(tmp_path):
    return {path.name: path.read_bytes() for path in (tmp_path / "names").iterdir()}


def test_names_are_kept_and_come_back(tmp_path, book):
    book.write("bea", "Bea")
    book.write("cleo", "Cleo")
    book.write("cleo", "")
    again = NameBook(tmp_path / "names", "clinics")
    assert again.read() == {"ada": NAME, "bea": "Bea"}


def test_a_file_says_nothing_without_its_key(tmp_path, book):
    files = files_of(tmp_path)
    assert sorted(files) == ["clinics.key", "clinics.names"]
    for data in files.values():
        for word in ("ada", "Aster", "Nov"):
            assert word.encode() not in data
    for path in (tmp_path / "names").iterdir():
        assert path.stat().st_mode & 0o077 == 0


def test_each_writing_has_a_nonce_of_its_own(tmp_path, book):
    before = files_of(tmp_path)["clinics.names"]
    book.write("ada", NAME)
    after = files_of(tmp_path)["clinics.names"]
    assert before[:12] != after[:12]
    assert before[12:] != after[12:]


def test_a_changed_file_or_another_federations_is_refused(tmp_path, book):
    path = tmp_path / "names" / "clinics.names"
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(NamesError):
            book.read()
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(NamesError):
            book.read()
    path.write_bytes(good)
    for suffix in ("names", "key"):
        data = (tmp_path / "names" / f"clinics.{suffix}").read_bytes()
        other = tmp_path / "names" / f"banks.{suffix}"
        other.write_bytes(data)
        other.chmod(0o600)
    with pytest.raises(NamesError):
        NameBook(tmp_path / "names", "banks").read()


def test_a_destroyed_key_takes_the_names_with_it_and_the_log_stays_sound(
    tmp_path, book
):
    """What the law asks for and what the ledger promises, both."""
    log = build_log()
    before = audit(log)
    assert before.is_sound
    copy = files_of(tmp_path)["clinics.names"]
    key_path = tmp_path / "names" / "clinics.key"
    with key_path.open("rb") as opened:
        assert book.destroy()
        assert set(opened.read()) == {0}  # and not only a name taken out
    assert not key_path.exists()
    assert book.read() == {}
    assert files_of(tmp_path) == {"clinics.names": copy}
    assert not book.destroy()
    with pytest.raises(NamesError, match="was destroyed"):
        book.write("ada", NAME)
    # A new key does not open an old copy.
    (tmp_path / "names" / "clinics.names").unlink()
    book.write("bea", "Bea")
    (tmp_path / "names" / "clinics.names").write_bytes(copy)
    with pytest.raises(NamesError):
        book.read()
    after = audit(log)
    assert after.is_sound
    assert after == before


def test_no_name_is_on_a_log():
    """No field of an event is there for one."""
    log = build_log()
    for record in log.records:
        assert NAME.encode() not in unframe(record.value)
    fields = {
        found
        for name in codec.CLASSES
        for found in re.findall(r'"name": "(\w*name\w*)"', codec.schema_text(name))
    }
    # Parties, ledger nodes and metrics have names: operators choose those.
    assert fields == {"name"}


def test_a_name_that_is_too_long_is_refused(book):
    book.write("bea", "x" * MAX_NAME_LENGTH)
    with pytest.raises(NamesError):
        book.write("bea", "x" * (MAX_NAME_LENGTH + 1))


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("MOOT_BOOTSTRAP_SERVERS", "localhost:1")
    monkeypatch.setenv("MOOT_SCHEMA_REGISTRY_URL", "http://localhost:1")
    monkeypatch.setenv("MOOT_STATE_DIRECTORY", str(tmp_path))
    return CliRunner()


def say(state, *words):
    done = state.invoke(app, [*words, "-f", "clinics"])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_misspelt_federation_is_named_with_those_that_have_names(state):
    say(state, "names", "set", "ada", NAME)
    said = state.invoke(app, ["names", "set", "ada", NAME, "-f", "clinisc"]).output
    assert "the first name of clinisc; names are known of clinics" in said
    for words in (["list"], ["destroy-key"]):
        done = state.invoke(app, ["names", *words, "-f", "cilnics"])
        assert isinstance(done.exception, StackError)
        assert "clinics" in done.exception.hint


def test_a_task_is_accepted_only_for_an_agent_that_has_run_here(state, tmp_path):
    words = ["agent", "accept-task", "ada", "-f", "clinics", "--task", "ab" * 32]
    done = state.invoke(app, words)
    assert isinstance(done.exception, StackError)
    assert "'clinics' has run here" in done.exception.message
    assert not (tmp_path / "agents").exists()
    (tmp_path / "agents" / "clinics" / "ada").mkdir(parents=True)
    assert state.invoke(app, words).exit_code == 0


def test_commands_show_names_while_there_is_a_key(state, tmp_path, monkeypatch):
    log = build_log()
    leaves = [
        type("Leaf", (), {"sequenced": type("S", (), {"event": event})})
        for event in log.leaves
    ]
    monkeypatch.setattr(operate, "read_leaves", lambda *_: leaves)
    monkeypatch.setattr(kafka, "demand_listener", lambda _: None)
    say(state, "names", "set", "ada", NAME)
    assert NAME in say(state, "names", "list")
    assert NAME in say(state, "agent", "list")
    assert names.find_names(Settings(), "clinics") == {"ada": NAME}
    assert "nobody can read" in say(state, "names", "destroy-key")
    shown = say(state, "agent", "list")
    assert "ada" in shown
    assert NAME not in shown
    assert say(state, "names", "list").strip() == ""
    assert "there is no key" in say(state, "names", "destroy-key")
