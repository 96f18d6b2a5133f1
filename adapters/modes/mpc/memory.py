"""A party's memory of what it has said, on its disk.

One line of JSON for each set of links, each comparison and each sum, appended and made
durable before they leave the process. A party without its memory could be made to
reveal differences of sums: so a directory with keys but no memory is refused, and so is
a changed line.

The file is never rewritten: tidying is how memories get lost. In memory is only what
the rules still need: of base models left behind, a digest.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapters.durable import (
    append,
    create_file,
    describe_holder,
    lock_file,
    unlock_file,
)
from protocol.modes.mpc.party_memory import (
    Compared,
    Known,
    Linked,
    RefusalCode,
    Said,
    Summed,
    demand_comparable,
    demand_harmless,
    find_unlinkable,
    remember,
)

SAID_FILE: Final = "said.jsonl"
_NEW_PARTY: Final = (
    "Its keys must not be used again, and no older copy of the file may take its "
    "place: make another party (docs/howto/what-may-never-be-restored.md)."
)
_START: Final = hashlib.sha256(b"folkmoot/party-log/v1\n").hexdigest()


class PartyLogError(Exception):
    """The memory cannot be used; the message says why and what to do."""


def create_party_log(directory: Path) -> None:
    """Make an empty memory, unless there is one.

    Comes before the keys: keys without a memory have lost it.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    create_file(directory / SAID_FILE, b"")


class PartyLog:
    """The memory of one party, open for one process at a time; threads may share it.

    Raises:
        PartyLogError: it is gone, damaged, or used by another process.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / SAID_FILE
        self._lock = threading.Lock()
        self._is_torn = False
        try:
            self._file = lock_file(self._path, create=False)
        except FileNotFoundError:
            raise PartyLogError(
                f"{self._path} is gone: this party cannot know what it has said. "
                f"{_NEW_PARTY}"
            ) from None
        except BlockingIOError:
            holder = describe_holder(self._path)
            msg = f"{holder} uses {directory}: stop it first"
            raise PartyLogError(msg) from None
        try:
            self._known, self._last = self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process use it."""
        unlock_file(self._file)

    @property
    def known(self) -> tuple[Known, ...]:
        """What the rules still need of what was said, oldest first."""
        return tuple(self._known)

    def permit_links(self, asked: Linked) -> Mapping[int, tuple[RefusalCode, str]]:
        """Return which of these links may not be said, by their places, and why.

        The others are the first for their updates, and are remembered.

        Raises:
            PartyRefusesError: none of them may.
        """
        with self._lock:
            refused = find_unlinkable(asked, self._known)
            permitted = asked.without(refused)
            if permitted.updates:
                self._remember(permitted)
            return refused

    def permit_comparison(self, asked: Compared, *, min_cohort: int) -> None:
        """Return once these updates may be compared again, whatever the attempt asked
        for, and that is remembered.

        Raises:
            PartyRefusesError: they may not.
        """
        with self._lock:
            self._remember(demand_comparable(asked, self._known, min_cohort=min_cohort))

    def permit_sum(self, asked: Summed, *, min_cohort: int) -> None:
        """Return once this sum may be said and is remembered: it is harmless
        (`protocol.modes.mpc.party_memory`).

        Raises:
            PartyRefusesError: it may not.
        """
        with self._lock:
            demand_harmless(asked, self._known, min_cohort=min_cohort)
            self._remember(asked)

    def _remember(self, asked: Said) -> None:
        if asked in self._known:
            return
        line, last = _write_line(self._last, asked)
        if self._is_torn:
            msg = f"{self._path} could not be written: start the party again"
            raise PartyLogError(msg)
        # An error may leave part of a line on disk and the rest in a buffer. The next
        # start removes it; a line behind it would invalidate everything.
        self._is_torn = True
        append(self._file, line)
        self._is_torn = False
        self._known = remember(self._known, asked)
        self._last = last

    def _read(self) -> tuple[list[Known], str]:
        known: list[Known] = []
        last, good_size = _START, 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                # A crash while writing it: it has not left the process.
                self._file.truncate(good_size)
                break
            try:
                item, last = _read_line(last, line)
            except (ValueError, KeyError, TypeError, RecursionError):
                raise PartyLogError(
                    f"{self._path}, line {number}: not what was written there, so this "
                    f"party cannot know what it has said. {_NEW_PARTY}"
                ) from None
            known = remember(known, item)
            good_size += len(line)
        return known, last


def _write_line(last: str, said: Said) -> tuple[bytes, str]:
    """Return a line and its digest, which the next line builds on."""
    content: dict[str, Any] = {
        "federation_id": said.federation_id,
        "base_model": said.base_model.hex(),
    }
    if isinstance(said, Linked):
        content |= {
            "linked": [
                [agent_id, digest.hex(), proven.hex()]
                for agent_id, digest, proven in said.updates
            ],
        }
    elif isinstance(said, Compared):
        content |= {
            "compared": [digest.hex() for digest in said.updates],
            "far_threshold": said.far_threshold,
            "attempt": said.attempt,
        }
    else:
        content |= {
            "round": said.round,
            "cause": said.cause.hex(),
            "summed": [
                [agent_id, digest.hex(), weight]
                for agent_id, digest, weight in said.updates
            ],
        }
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    digest = hashlib.sha256(f"{last}{text}".encode()).hexdigest()
    return f'{{"sha256":"{digest}","said":{text}}}\n'.encode(), digest


def _read_line(last: str, line: bytes) -> tuple[Said, str]:
    content: Any = json.loads(line)["said"]
    about = {
        "federation_id": content["federation_id"],
        "base_model": bytes.fromhex(content["base_model"]),
    }
    said: Said
    if "linked" in content:
        said = Linked(
            **about,
            updates=tuple(
                (agent_id, bytes.fromhex(digest), bytes.fromhex(proven))
                for agent_id, digest, proven in content["linked"]
            ),
        )
    elif "compared" in content:
        said = Compared(
            **about,
            updates=tuple(bytes.fromhex(digest) for digest in content["compared"]),
            far_threshold=content["far_threshold"],
            attempt=content["attempt"],
        )
    else:
        said = Summed(
            **about,
            round=content["round"],
            cause=bytes.fromhex(content["cause"]),
            updates=tuple(
                (agent_id, bytes.fromhex(digest), weight)
                for agent_id, digest, weight in content["summed"]
            ),
        )
    expected, digest = _write_line(last, said)
    if line != expected:
        raise ValueError("the line is not the one that was written")
    return said, digest
