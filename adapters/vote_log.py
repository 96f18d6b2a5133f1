"""A ledger node's identity: its key, and the memory without which the key may not sign.

    <directory>/votes       what was voted last, and whether the key is retired; one
                            file, replaced as a whole
    <directory>/node.key    the key; made after the votes
    <directory>/lock        held by the one process that may sign

Rules (ledger specification, R6):

- What is stored is durable before `VoteLog.store` returns; a node stores everything
  before it sends it.
- Votes only grow: the file is never replaced by earlier votes, nor by another vote at
  the same place. This is checked here once more, at the last moment before a signature
  leaves the process.
- The votes are made first and the key last. So a key without votes has lost them, and
  never signs again: it cannot know what it signed. Its owner makes a new key and has
  the node set changed.
- Anything unexpected in the file means the same. The file is replaced by a rename, so a
  crash leaves the old one or the new one; there is no torn record to be told from a
  damaged one.
- A key that somebody else signs with is retired for ever. Only this file remembers it:
  what can be deleted and refilled must not bring a key back.
- Votes are for one log: they are bound to its chain id before the first is stored.

Files of version 1, which knew no retirement, are read and replaced at the next write.

Restoring the directory from a copy defeats all this; other nodes then see the key
contradict itself.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import IO, Final

from adapters.descriptors import SPARES
from adapters.durable import (
    describe_holder,
    lock_file,
    move_file,
    unlock_file,
    write_file,
)
from adapters.keys import load_key, load_or_create_key
from ledger.signing import PUBLIC_KEY_SIZE, SigningKey
from ledger.votes import VotesLostError, VoteState

KEY_FILE: Final = "node.key"
VOTES_FILE: Final = "votes"
LOCK_FILE: Final = "lock"

_MAGIC_V1: Final = b"folkmoot-vote-log/v1\n"
_MAGIC: Final = b"folkmoot-vote-log/v2\n"
_CHAIN_ID_SIZE: Final = 32
_UNBOUND: Final = bytes(_CHAIN_ID_SIZE)
_FLAGS: Final = {b"\0": False, b"\1": True}
_DIGEST_SIZE: Final = hashlib.sha256().digest_size
_NEW_KEY: Final = (
    "This key must never sign again: make a new one (`moot node init` with another "
    "name) and have the node set changed (`moot node propose`). No older copy of the "
    "votes may take their place: docs/howto/what-may-never-be-restored.md."
)


class VoteLogCode(StrEnum):
    """Why a key may not sign."""

    VOTE_LOG_LOST = "VOTE_LOG_LOST"
    VOTE_LOG_CORRUPT = "VOTE_LOG_CORRUPT"
    VOTE_LOG_IN_USE = "VOTE_LOG_IN_USE"
    VOTE_LOG_OTHER_CHAIN = "VOTE_LOG_OTHER_CHAIN"
    VOTE_LOG_STALE_WRITE = "VOTE_LOG_STALE_WRITE"
    KEY_RETIRED = "KEY_RETIRED"
    NO_IDENTITY = "NO_IDENTITY"


class VoteLogError(Exception):
    """The key may not sign; the message says why and what to do."""

    def __init__(self, code: VoteLogCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


def create_identity(directory: Path) -> SigningKey:
    """Make a key and its empty vote log, if missing.

    Raises:
        VoteLogError: only one of them exists, the vote log is another key's, or the key
            is retired.
        KeyFileError: an existing key file cannot be used.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    key_path, votes_path = directory / KEY_FILE, directory / VOTES_FILE
    if key_path.exists():
        return load_identity(directory)
    if votes_path.exists() and _read(votes_path)[-1] is not None:
        raise VoteLogError(
            VoteLogCode.NO_IDENTITY,
            f"{votes_path} remembers the votes of a key that is missing. Put the "
            f"key back as {key_path}, or make an identity under another name.",
        )
    # The key is drawn in a hidden file; votes are made for it; only then does it get
    # its name. A crash in between leaves an empty vote log and no key.
    draft = directory / f".{KEY_FILE}"
    draft.unlink(missing_ok=True)
    key = load_or_create_key(draft)
    _write(votes_path, key.public_key, _UNBOUND, None)
    move_file(draft, key_path)
    return key


def load_identity(directory: Path) -> SigningKey:
    """Return the key, whose vote log exists and which may sign.

    Raises:
        VoteLogError: there is no identity, the key lost its vote log, or it is retired.
        KeyFileError: the key file cannot be used.
    """
    key, _, is_retired, _ = _load(directory)
    if is_retired:
        raise _retired(directory / VOTES_FILE)
    return key


class VoteLog:
    """The votes of one key, open for one process at a time.

    A retired key's can be opened: its node keeps observing.

    Raises:
        VoteLogError: the key may not sign.
        KeyFileError: the key file cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / VOTES_FILE
        self._lock = _lock(directory)
        try:
            self._key, self._chain_id, self._is_retired, self._votes = _load(directory)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process sign."""
        unlock_file(self._lock)

    @property
    def key(self) -> SigningKey:
        """The key."""
        return self._key

    @property
    def votes(self) -> VoteState | None:
        """What was stored last; None if nothing ever was."""
        return self._votes

    @property
    def is_retired(self) -> bool:
        """Whether the key must never sign again."""
        return self._is_retired

    def bind(self, chain_id: bytes) -> None:
        """Record which log the key signs for. Durable; once and for all.

        Args:
            chain_id: `ledger.attestations.compute_chain_id`, 32 bytes.

        Raises:
            VoteLogError: it signs for another log.
        """
        if self._chain_id == _UNBOUND:
            self._write(chain_id=chain_id)
        elif self._chain_id != chain_id:
            raise VoteLogError(
                VoteLogCode.VOTE_LOG_OTHER_CHAIN,
                f"the key signs for chain {self._chain_id.hex()}, and this is "
                f"{chain_id.hex()}. Was the federation founded anew? Its node needs a "
                "key of its own.",
            )

    def store(self, votes: VoteState) -> None:
        """Remember votes for ever. Durable once it returns.

        Raises:
            VoteLogError: they would forget or contradict what is stored, or the key is
                retired. A bug; nothing was written.
            OSError: they could not be written; nothing may be sent.
        """
        if self._is_retired:
            raise _retired(self._path)
        if self._chain_id == _UNBOUND:
            raise VoteLogError(
                VoteLogCode.VOTE_LOG_STALE_WRITE, "votes for no chain at all"
            )
        if self._votes is not None:
            _check_growth(self._votes, votes)
        self._write(votes=votes)

    def retire(self) -> None:
        """Remember that the key must never sign again. Durable once it returns.

        Raises:
            OSError: it could not be written; the node must stop.
        """
        self._write(is_retired=True)

    def _write(
        self,
        *,
        chain_id: bytes | None = None,
        votes: VoteState | None = None,
        is_retired: bool = False,
    ) -> None:
        """Replace what is given. Only what is durable is remembered."""
        chain_id = chain_id or self._chain_id
        votes = votes or self._votes
        is_retired = is_retired or self._is_retired
        public_key = self._key.public_key
        # Without a descriptor the node would have to stop.
        SPARES.call(
            lambda: _write(
                self._path, public_key, chain_id, votes, is_retired=is_retired
            )
        )
        self._chain_id, self._votes, self._is_retired = chain_id, votes, is_retired


def _check_growth(before: VoteState, after: VoteState) -> None:
    """Check that nothing signed is forgotten."""
    same_epoch = (before.era, before.epoch) == (after.era, after.epoch)
    problem = ""
    if (after.era, after.epoch) < (before.era, before.epoch):
        problem = "an earlier epoch"
    elif same_epoch and after.attested[0] < before.attested[0]:
        problem = "a lower block"
    elif (
        same_epoch
        and after.attested[0] == before.attested[0]
        and after.attested != before.attested
    ):
        problem = "another block at the same height"
    elif after.era == before.era and after.requested_epoch < before.requested_epoch:
        problem = "an earlier request"
    elif (after.cosigned_size, after.cosigned_root) != (
        before.cosigned_size,
        before.cosigned_root,
    ) and after.cosigned_size <= before.cosigned_size:
        problem = "another or a smaller tree"
    if problem:
        raise VoteLogError(
            VoteLogCode.VOTE_LOG_STALE_WRITE, f"votes for {problem} after those stored"
        )


def _lock(directory: Path) -> IO[bytes]:
    if not (directory / KEY_FILE).exists():
        raise _no_identity(directory)
    try:
        return lock_file(directory / LOCK_FILE)
    except BlockingIOError as error:
        raise VoteLogError(
            VoteLogCode.VOTE_LOG_IN_USE,
            f"{describe_holder(directory / LOCK_FILE)} signs with the key in "
            f"{directory}; stop it first",
        ) from error


def _no_identity(directory: Path) -> VoteLogError:
    return VoteLogError(
        VoteLogCode.NO_IDENTITY,
        f"there is no {directory / KEY_FILE}: `moot node init` makes it",
    )


def _retired(path: Path) -> VoteLogError:
    return VoteLogError(
        VoteLogCode.KEY_RETIRED, f"{path} says that others use its key. {_NEW_KEY}"
    )


def _load(directory: Path) -> tuple[SigningKey, bytes, bool, VoteState | None]:
    votes_path = directory / VOTES_FILE
    if not (directory / KEY_FILE).exists():
        raise _no_identity(directory)
    key = load_key(directory / KEY_FILE)
    if not votes_path.exists():
        raise VoteLogError(
            VoteLogCode.VOTE_LOG_LOST, f"{votes_path} is missing. {_NEW_KEY}"
        )
    public_key, chain_id, is_retired, votes = _read(votes_path)
    if public_key != key.public_key:
        raise VoteLogError(
            VoteLogCode.VOTE_LOG_LOST,
            f"{votes_path} belongs to another key. {_NEW_KEY}",
        )
    return key, chain_id, is_retired, votes


def _read(path: Path) -> tuple[bytes, bytes, bool, VoteState | None]:
    data = path.read_bytes()
    body, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    magic, rest = body[: len(_MAGIC)], body[len(_MAGIC) :]
    public_key, rest = rest[:PUBLIC_KEY_SIZE], rest[PUBLIC_KEY_SIZE:]
    chain_id, rest = rest[:_CHAIN_ID_SIZE], rest[_CHAIN_ID_SIZE:]
    flag = b"\0"
    if magic == _MAGIC:
        flag, rest = rest[:1], rest[1:]
    if (
        hashlib.sha256(body).digest() != digest
        or magic not in {_MAGIC, _MAGIC_V1}
        or len(chain_id) != _CHAIN_ID_SIZE
        or flag not in _FLAGS
    ):
        raise VoteLogError(
            VoteLogCode.VOTE_LOG_CORRUPT, f"{path} is damaged. {_NEW_KEY}"
        )
    try:
        votes = VoteState.from_bytes(rest) if rest else None
    except VotesLostError as error:
        raise VoteLogError(
            VoteLogCode.VOTE_LOG_CORRUPT, f"{path}: {error}. {_NEW_KEY}"
        ) from error
    return public_key, chain_id, _FLAGS[flag], votes


def _write(
    path: Path,
    public_key: bytes,
    chain_id: bytes,
    votes: VoteState | None,
    *,
    is_retired: bool = False,
) -> None:
    body = b"".join(
        (
            _MAGIC,
            public_key,
            chain_id,
            b"\1" if is_retired else b"\0",
            b"" if votes is None else votes.to_bytes(),
        )
    )
    write_file(path, body + hashlib.sha256(body).digest())
