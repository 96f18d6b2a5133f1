"""The memory of a ledger node's key, and what happens when it is gone."""

import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from adapters import vote_log
from adapters.keys import KeyFileError
from adapters.vote_log import (
    KEY_FILE,
    VOTES_FILE,
    VoteLog,
    VoteLogCode,
    VoteLogError,
    create_identity,
    load_identity,
)
from ledger.votes import VoteState
from tests.paths import ROOT

CHAIN = bytes(range(32))
START = (-1, bytes(32))
VOTES = VoteState.begin(0, START)


def refusal(call):
    with pytest.raises(VoteLogError) as caught:
        call()
    assert caught.value.code in str(caught.value)
    return caught.value.code


@pytest.fixture
def directory(tmp_path):
    create_identity(tmp_path / "node")
    return tmp_path / "node"


def test_an_identity_is_made_once(directory):
    key = load_identity(directory)
    assert create_identity(directory) == key
    log = VoteLog(directory)
    assert log.key == key
    assert log.votes is None
    assert (directory / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_votes_survive(directory):
    log = VoteLog(directory)
    log.bind(CHAIN)
    log.store(VOTES)
    later = replace(VOTES, cosigned_size=7, cosigned_root=b"r" * 32)
    log.store(later)
    log.close()
    again = VoteLog(directory)
    assert again.votes == later
    again.bind(CHAIN)
    assert refusal(lambda: again.bind(bytes(31) + b"x")) is (
        VoteLogCode.VOTE_LOG_OTHER_CHAIN
    )


def test_nothing_is_voted_for_no_chain(directory):
    log = VoteLog(directory)
    assert refusal(lambda: log.store(VOTES)) is VoteLogCode.VOTE_LOG_STALE_WRITE


def test_without_an_identity_nobody_signs(tmp_path):
    for call in (VoteLog, load_identity):
        assert refusal(lambda call=call: call(tmp_path)) is VoteLogCode.NO_IDENTITY


def test_a_key_that_lost_its_votes_never_signs_again(directory):
    (directory / VOTES_FILE).unlink()
    for call in (VoteLog, load_identity, create_identity):
        code = refusal(lambda call=call: call(directory))
        assert code is VoteLogCode.VOTE_LOG_LOST


def test_the_votes_of_another_key_are_no_votes(directory, tmp_path):
    create_identity(tmp_path / "other")
    (tmp_path / "other" / VOTES_FILE).rename(directory / VOTES_FILE)
    assert refusal(lambda: VoteLog(directory)) is VoteLogCode.VOTE_LOG_LOST


@pytest.mark.parametrize("is_retired", [False, True])
def test_any_changed_byte_is_found(directory, is_retired):
    log = VoteLog(directory)
    log.bind(CHAIN)
    log.store(VOTES)
    if is_retired:
        log.retire()
    log.close()
    path = directory / VOTES_FILE
    data = path.read_bytes()
    altered = [data[:cut] for cut in range(0, len(data), 7)]
    altered += [data + b"\0"]
    altered += [
        data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :] for i in range(len(data))
    ]
    for bad in altered:
        path.write_bytes(bad)
        assert refusal(lambda: VoteLog(directory)) is VoteLogCode.VOTE_LOG_CORRUPT
    path.write_bytes(data)
    VoteLog(directory)


def test_a_good_digest_over_bad_votes_is_found(directory):
    key = load_identity(directory)
    path = directory / VOTES_FILE

    class Bad:
        def to_bytes(self):
            return b"not votes"

    vote_log._write(path, key.public_key, CHAIN, Bad())
    assert refusal(lambda: VoteLog(directory)) is VoteLogCode.VOTE_LOG_CORRUPT


@pytest.mark.parametrize(
    ("head", "num_bytes"), [(b"v2", 65), (b"v2", 64), (b"v1", 63), (b"v3", 65)]
)
def test_a_good_digest_over_a_bad_head_is_found(directory, head, num_bytes):
    body = b"folkmoot-vote-log/" + head + b"\n" + b"\2" * num_bytes
    path = directory / VOTES_FILE
    path.write_bytes(body + hashlib.sha256(body).digest())
    assert refusal(lambda: VoteLog(directory)) is VoteLogCode.VOTE_LOG_CORRUPT


# A key that others use


def test_a_retired_key_never_signs_again(directory):
    log = VoteLog(directory)
    log.bind(CHAIN)
    log.store(VOTES)
    assert not log.is_retired
    log.retire()
    assert log.is_retired
    later = replace(VOTES, requested_epoch=1)
    assert refusal(lambda: log.store(later)) is VoteLogCode.KEY_RETIRED
    log.close()
    for call in (load_identity, create_identity):
        assert refusal(lambda call=call: call(directory)) is VoteLogCode.KEY_RETIRED
    # Its node goes on observing, and what it signed is not forgotten.
    again = VoteLog(directory)
    assert again.is_retired
    assert again.votes == VOTES
    assert refusal(lambda: again.store(later)) is VoteLogCode.KEY_RETIRED
    again.retire()
    assert again.is_retired


def test_a_key_that_never_voted_can_be_retired_and_bound(directory):
    log = VoteLog(directory)
    log.retire()
    log.bind(CHAIN)
    log.close()
    again = VoteLog(directory)
    assert again.is_retired
    assert again.votes is None
    assert refusal(lambda: again.bind(bytes(32))) is VoteLogCode.VOTE_LOG_OTHER_CHAIN


def test_a_retirement_that_is_not_durable_is_not_believed(directory, monkeypatch):
    log = VoteLog(directory)

    def fail(_):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError):
            log.retire()
    assert not log.is_retired
    log.retire()
    assert log.is_retired


# Files of version 1


def version_1(public_key, chain_id, votes):
    body = b"folkmoot-vote-log/v1\n" + public_key + chain_id
    body += b"" if votes is None else votes.to_bytes()
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("votes", [None, VOTES])
def test_a_file_of_version_1_is_read_and_replaced(directory, votes):
    key, path = load_identity(directory), directory / VOTES_FILE
    old = version_1(key.public_key, CHAIN, votes)
    path.write_bytes(old)
    assert load_identity(directory) == key
    log = VoteLog(directory)
    assert (log.key, log.votes, log.is_retired) == (key, votes, False)
    assert path.read_bytes() == old
    log.store(VOTES)
    assert path.read_bytes().startswith(b"folkmoot-vote-log/v2\n")
    log.retire()
    log.close()
    again = VoteLog(directory)
    assert (again.votes, again.is_retired) == (VOTES, True)
    again.bind(CHAIN)


def test_any_changed_byte_of_a_version_1_file_is_found(directory):
    path = directory / VOTES_FILE
    data = version_1(load_identity(directory).public_key, CHAIN, VOTES)
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 3]) + data[i + 1 :])
        assert refusal(lambda: VoteLog(directory)) is VoteLogCode.VOTE_LOG_CORRUPT
    path.write_bytes(data)
    VoteLog(directory)


# One process, and crashes


def test_one_process_signs_at_a_time(directory):
    first = VoteLog(directory)
    assert refusal(lambda: VoteLog(directory)) is VoteLogCode.VOTE_LOG_IN_USE
    first.close()
    VoteLog(directory).close()


def test_the_lock_is_let_go_when_opening_fails(directory):
    votes = (directory / VOTES_FILE).read_bytes()
    (directory / VOTES_FILE).unlink()
    refusal(lambda: VoteLog(directory))
    (directory / VOTES_FILE).write_bytes(votes)
    VoteLog(directory)


BEFORE = replace(
    VOTES,
    era=1,
    epoch=2,
    attested=(5, b"a" * 32),
    requested_epoch=2,
    cosigned_size=9,
    cosigned_root=b"r" * 32,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"era": 0},
        {"epoch": 1},
        {"attested": (4, b"a" * 32)},
        {"attested": (5, b"b" * 32)},
        {"requested_epoch": 1},
        {"cosigned_size": 8},
        {"cosigned_root": b"q" * 32},
        {"era": 2, "epoch": 0, "requested_epoch": 0, "cosigned_size": 3},
    ],
)
def test_votes_only_grow(directory, changes):
    log = VoteLog(directory)
    log.bind(CHAIN)
    log.store(BEFORE)
    code = refusal(lambda: log.store(replace(BEFORE, **changes)))
    assert code is VoteLogCode.VOTE_LOG_STALE_WRITE
    log.close()
    assert VoteLog(directory).votes == BEFORE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attested": (6, b"b" * 32)},
        {"epoch": 3, "attested": (4, b"b" * 32), "requested_epoch": 3},
        {"era": 2, "epoch": 0, "attested": (5, b"c" * 32), "requested_epoch": 0},
        {"cosigned_size": 10, "cosigned_root": b"s" * 32},
    ],
)
def test_and_they_may_grow(directory, changes):
    log = VoteLog(directory)
    log.bind(CHAIN)
    log.store(BEFORE)
    log.store(replace(BEFORE, **changes))
    assert log.votes == replace(BEFORE, **changes)


def test_votes_without_a_key_are_not_thrown_away(directory):
    log = VoteLog(directory)
    log.bind(CHAIN)
    log.store(VOTES)
    log.close()
    (directory / KEY_FILE).unlink()
    assert refusal(lambda: create_identity(directory)) is VoteLogCode.NO_IDENTITY


def test_a_crash_while_an_identity_is_made_is_repaired(tmp_path, monkeypatch):
    directory = tmp_path / "node"

    def crash(*_):
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(vote_log, "move_file", crash)
        with pytest.raises(OSError):
            create_identity(directory)
    assert not (directory / KEY_FILE).exists()
    with monkeypatch.context() as patch:
        write = vote_log._write

        def write_and_crash(*arguments):
            write(*arguments)
            raise OSError

        patch.setattr(vote_log, "_write", write_and_crash)
        with pytest.raises(OSError):
            create_identity(directory)
    assert not (directory / KEY_FILE).exists()
    key = create_identity(directory)
    assert load_identity(directory) == key
    assert VoteLog(directory).votes is None


def test_a_key_that_others_may_read_is_not_used(directory):
    (directory / KEY_FILE).chmod(0o644)
    with pytest.raises(KeyFileError):
        VoteLog(directory)


WRITER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from adapters import durable
from adapters.vote_log import VoteLog
from ledger.votes import VoteState

log = VoteLog(Path(sys.argv[1]))
log.bind(bytes(range(32)))
votes = log.votes or VoteState.begin(0, (-1, bytes(32)))
point = sys.argv[2]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

log.store(replace(votes, requested_epoch=votes.requested_epoch + 1))
if point == "before fsync":
    os.fsync = die
elif point == "before rename":
    Path.replace = die
elif point == "before the directory is durable":
    durable.sync_directory = die
log.store(replace(votes, requested_epoch=votes.requested_epoch + 2))
die()
"""


@pytest.mark.parametrize(
    ("point", "found"),
    [
        ("before fsync", 1),
        ("before rename", 1),
        ("before the directory is durable", 2),
        ("after", 2),
    ],
)
def test_a_kill_leaves_the_old_votes_or_the_new_ones(directory, point, found):
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(directory), point],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert VoteLog(directory).votes == replace(VOTES, requested_epoch=found)
