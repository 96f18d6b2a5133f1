"""A party's keys and its memory: made together, and used only together."""

import stat

import pytest

from adapters.keys import KeyFileError
from adapters.modes.mpc.identity import (
    SEALING_FILE,
    SIGNING_FILE,
    create_party,
    load_party,
)
from adapters.modes.mpc.memory import SAID_FILE, PartyLog, PartyLogError

FILES = (SAID_FILE, SEALING_FILE, SIGNING_FILE)


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "parties" / "p0"


def keys_of(identity):
    return (
        identity.key.public_key,
        identity.sealing_key.public_key.public_key,
        identity.sealing_key.secret,
    )


def test_a_party_has_two_keys_and_a_memory_that_nobody_else_reads(directory):
    identity = create_party(directory)
    assert sorted(file.name for file in directory.iterdir()) == sorted(FILES)
    for file in directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert identity.key.public_key != identity.sealing_key.public_key.public_key
    PartyLog(directory).close()


def test_it_is_made_once(directory):
    first = create_party(directory)
    assert keys_of(create_party(directory)) == keys_of(first)
    assert keys_of(load_party(directory)) == keys_of(first)
    assert keys_of(create_party(directory.with_name("p1"))) != keys_of(first)


def test_printing_it_shows_no_key(directory):
    identity = create_party(directory)
    shown = repr(identity) + str(identity)
    for name in (SIGNING_FILE, SEALING_FILE):
        assert (directory / name).read_text().strip() not in shown


@pytest.mark.parametrize("num_made", [1, 2])
def test_one_that_was_killed_while_it_was_made_is_finished(directory, num_made):
    whole = create_party(directory)
    # In the order in which they are made: the memory comes first.
    for name in (SIGNING_FILE, SEALING_FILE)[num_made - 1 :]:
        (directory / name).unlink()
    with pytest.raises(KeyFileError):
        load_party(directory)
    finished = create_party(directory)
    PartyLog(directory).close()
    assert keys_of(load_party(directory)) == keys_of(finished)
    if num_made == 2:
        assert finished.key.public_key == whole.key.public_key


@pytest.mark.parametrize("left", [SIGNING_FILE, SEALING_FILE])
def test_keys_whose_memory_is_gone_get_no_new_one(directory, left):
    create_party(directory)
    for name in FILES:
        if name != left:
            (directory / name).unlink()
    create_party(directory)
    with pytest.raises(PartyLogError, match="must not be used again"):
        PartyLog(directory)


def test_nothing_is_loaded_from_nowhere(directory):
    with pytest.raises(KeyFileError, match=SIGNING_FILE):
        load_party(directory)
    assert not directory.exists()


@pytest.mark.parametrize("name", [SIGNING_FILE, SEALING_FILE])
@pytest.mark.parametrize("how", ["mode", "content", "gone"])
def test_a_key_file_that_cannot_be_used_is_refused(directory, name, how):
    create_party(directory)
    path = directory / name
    if how == "mode":
        path.chmod(0o640)
    elif how == "content":
        path.write_text("no key")
    else:
        path.unlink()
    with pytest.raises(KeyFileError, match=name):
        load_party(directory)
    if how != "gone":
        with pytest.raises(KeyFileError, match=name):
            create_party(directory)
