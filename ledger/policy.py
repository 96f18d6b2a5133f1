"""C2SP trust policies: whose signatures make a checkpoint count.

    log <vkey> [<url>]                          may sign checkpoints of its name
    witness <name> <vkey> [<url>]               may cosign them
    group <name> all|any|<k> <name>...          cosigned if k of its members are
    quorum <name>|none                          what must be cosigned; exactly once

Rules (c2sp.org/tlog-policy):

- A log's key name is the origin of its checkpoints, so a policy pins both.
- A line refers to names of the lines before only, and each name is a member of one
  group at most: a witness counts once.
- No key twice among the logs or among the witnesses; one name for one thing.
- Names are octets, compared byte by byte, whatever they look like.

Stricter than the specification in one point: a threshold has no leading zeros.

Deliberately not here: the rest of the trust that an application needs (what a leaf
means, how old a cosignature may be), and anything that uses the URLs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from ledger.checkpoint import (
    InvalidCheckpointError,
    VerifiedCheckpoint,
    parse_checkpoint,
)
from ledger.note import (
    InvalidKeyError,
    InvalidNoteError,
    KeyType,
    VerifierKey,
    open_note,
    parse_note,
    parse_vkey,
)

NO_QUORUM: Final = "none"
"""Names the quorum that asks for no cosignature."""
MAX_POLICY_SIZE_BYTES: Final = 1_000_000
"""Far more than the 32 logs, witnesses and groups that every reader must accept."""
BFT_GROUP: Final = "bft"
"""The name of `make_bft_policy`'s group."""

_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SPACE: Final = re.compile(r"[ \t]+")
_THRESHOLD: Final = re.compile(r"[1-9][0-9]{0,5}")


class InvalidPolicyError(ValueError):
    """The text is not a policy. Bad input; the message names the line."""


class QuorumError(InvalidNoteError):
    """The log signed, but not enough witnesses cosigned. Bad input.

    Attributes:
        signed: Names of the quorum's witnesses that cosigned, as in the policy.
        missing: Names of those that did not.
    """

    def __init__(
        self, quorum: str, signed: tuple[str, ...], missing: tuple[str, ...]
    ) -> None:
        self.signed = signed
        self.missing = missing
        super().__init__(
            f"quorum {quorum} is not reached: cosigned by {_list(signed)}; "
            f"not by {_list(missing)}"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "nobody"


@dataclass(frozen=True, slots=True)
class Log:
    """A log whose checkpoints are accepted.

    Attributes:
        key: Its key, of type Ed25519; the name is its origin.
        url: Its address, by the application's own convention; may be empty.
    """

    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Witness:
    """A witness whose cosignature can count.

    Attributes:
        name: Its name in this policy; may differ from the key's.
        key: Its key, of type cosignature/v1.
        url: Its submission prefix; may be empty.
    """

    name: str
    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Witnesses or groups that count together.

    Attributes:
        name: Its name in this policy.
        threshold: How many members must have cosigned, 1 to their number.
        members: Names of witnesses and of earlier groups; at least one.
    """

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """Whom to trust; made by `parse_policy` or `make_bft_policy`.

    Attributes:
        logs: Accepted logs; may be empty.
        witnesses: All who can cosign.
        groups: Ordered so that members come before their group.
        quorum: Name of the witness or group that must have cosigned, or `NO_QUORUM`.
    """

    logs: tuple[Log, ...]
    witnesses: tuple[Witness, ...]
    groups: tuple[Group, ...]
    quorum: str

    def to_text(self) -> str:
        """Return the policy as a file, in one canonical spelling.

        Octets of names that are not UTF-8 are surrogates in the text, as
        ``decode("utf-8", "surrogateescape")`` makes them.
        """
        lines = [
            *(["log", log.key.to_vkey(), log.url] for log in self.logs),
            *(["witness", w.name, w.key.to_vkey(), w.url] for w in self.witnesses),
            *(["group", g.name, str(g.threshold), *g.members] for g in self.groups),
            ["quorum", self.quorum],
        ]
        return "".join(" ".join(filter(None, line)) + "\n" for line in lines)

    def is_satisfied(self, cosigner_keys: Iterable[VerifierKey]) -> bool:
        """Return whether cosignatures of these keys reach the quorum.

        Args:
            cosigner_keys: Whose cosignatures are good; unknown keys count for nothing.
        """
        keys = set(cosigner_keys)
        cosigned = {NO_QUORUM, *(w.name for w in self.witnesses if w.key in keys)}
        for group in self.groups:
            if len(cosigned.intersection(group.members)) >= group.threshold:
                cosigned.add(group.name)
        return self.quorum in cosigned

    def verify(
        self, signed_note: bytes, origin: str | None = None
    ) -> VerifiedCheckpoint:
        """Return a checkpoint that this policy accepts.

        Args:
            signed_note: The checkpoint as received.
            origin: The expected log; by default any of the policy's.

        Raises:
            QuorumError: too few cosigned; says who did and who did not.
            InvalidCheckpointError: no checkpoint, of another log than expected, or of
                none in the policy.
            InvalidNoteError: not a note, not signed by the log, or a bad signature by a
                key of the policy.
        """
        checkpoint = parse_checkpoint(parse_note(signed_note).text)
        if origin is not None and checkpoint.origin != origin:
            msg = f"a checkpoint of {checkpoint.origin!r}, not of {origin!r}"
            raise InvalidCheckpointError(msg)
        log_keys = [log.key for log in self.logs if log.key.name == checkpoint.origin]
        if not log_keys:
            raise InvalidCheckpointError(f"the policy has no log {checkpoint.origin!r}")
        keys = (*log_keys, *(witness.key for witness in self.witnesses))
        signatures = open_note(signed_note, keys).signatures
        if not any(signature.key in log_keys for signature in signatures):
            msg = f"no key of log {checkpoint.origin!r} signed the checkpoint"
            raise InvalidNoteError(msg)
        cosignatures = tuple(s for s in signatures if s.key not in log_keys)
        signers = {signature.key for signature in cosignatures}
        if not self.is_satisfied(signers):
            asked = self._quorum_witnesses()
            raise QuorumError(
                self.quorum,
                tuple(w.name for w in asked if w.key in signers),
                tuple(w.name for w in asked if w.key not in signers),
            )
        return VerifiedCheckpoint(checkpoint, cosignatures)

    def _quorum_witnesses(self) -> tuple[Witness, ...]:
        """Return the witnesses whose cosignature can help to reach the quorum."""
        names = {self.quorum}
        for group in reversed(self.groups):
            if group.name in names:
                names.update(group.members)
        return tuple(w for w in self.witnesses if w.name in names)


@dataclass(slots=True)
class _Parser:
    """What the lines so far have defined."""

    logs: list[Log] = field(default_factory=list)
    witnesses: list[Witness] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    quorum: str | None = None
    free: dict[str, bool] = field(default_factory=dict)  # name: in no group yet
    # What each type has already: public keys; names with key IDs.
    known: set[tuple[KeyType, object]] = field(default_factory=set)

    def take_line(self, line: str) -> None:
        if _FORBIDDEN.search(line):
            raise InvalidPolicyError("a control character")
        keyword, *words = _SPACE.split(line.strip(" \t"))
        if not keyword or keyword.startswith("#"):
            return
        match keyword, words:
            case "log", [vkey, *url] if len(url) <= 1:
                self._take_log(vkey, *url)
            case "witness", [name, vkey, *url] if len(url) <= 1:
                self._take_witness(name, vkey, *url)
            case "group", [name, threshold, *members] if members:
                self._take_group(name, threshold, members)
            case "quorum", [name]:
                self._take_quorum(name)
            case (("log" | "witness" | "group" | "quorum"), _):
                raise InvalidPolicyError(f"a {keyword} line has other words")
            case _:
                raise InvalidPolicyError(f"no keyword {keyword[:80]!r}")

    def _take_log(self, vkey: str, url: str = "") -> None:
        key = self._parse_key(vkey, KeyType.ED25519)
        self.logs.append(Log(key, url))

    def _take_witness(self, name: str, vkey: str, url: str = "") -> None:
        key = self._parse_key(vkey, KeyType.COSIGNATURE_V1)
        self._define(name)
        self.witnesses.append(Witness(name, key, url))

    def _take_group(self, name: str, threshold: str, members: list[str]) -> None:
        for member in members:
            if not self._look_up(member):
                raise InvalidPolicyError(f"{member!r} is a member already")
            self.free[member] = False
        num_members = len(members)
        count = {"any": 1, "all": num_members}.get(threshold)
        if count is None:
            if not _THRESHOLD.fullmatch(threshold) or int(threshold) > num_members:
                raise InvalidPolicyError(
                    f"a threshold is any, all or 1 to {num_members}, the number of "
                    f"members, not {threshold[:80]!r}"
                )
            count = int(threshold)
        self._define(name)
        self.groups.append(Group(name, count, tuple(members)))

    def _take_quorum(self, name: str) -> None:
        if self.quorum is not None:
            raise InvalidPolicyError("a second quorum")
        if name != NO_QUORUM:
            self._look_up(name)
        self.quorum = name

    def _define(self, name: str) -> None:
        if name == NO_QUORUM or name in self.free:
            raise InvalidPolicyError(f"the name {name!r} is taken")
        self.free[name] = True

    def _look_up(self, name: str) -> bool:
        if name not in self.free:
            raise InvalidPolicyError(f"no line before defines {name!r}")
        return self.free[name]

    def _parse_key(self, vkey: str, key_type: KeyType) -> VerifierKey:
        try:
            key = parse_vkey(vkey)
        except InvalidKeyError as error:
            raise InvalidPolicyError(str(error)) from error
        if key.key_type is not key_type:
            raise InvalidPolicyError(f"{vkey} is not of type {key_type.name}")
        if (key_type, key.public_key) in self.known:
            raise InvalidPolicyError(f"the key of {vkey} is there already")
        # A signature line could not tell which of the two it means.
        if (key_type, (key.name, key.key_id)) in self.known:
            raise InvalidPolicyError(f"another key is called like {vkey}")
        self.known |= {
            (key_type, key.public_key),
            (key_type, (key.name, key.key_id)),
        }
        return key


def parse_policy(data: bytes) -> Policy:
    """Return the policy in a file.

    Args:
        data: The file, at most 1,000,000 bytes.

    Raises:
        InvalidPolicyError: it is no policy; names the line and the fault.
    """
    if len(data) > MAX_POLICY_SIZE_BYTES:
        msg = f"a policy of {len(data)} bytes; at most {MAX_POLICY_SIZE_BYTES}"
        raise InvalidPolicyError(msg)
    # Octets with the high bit set are opaque: no byte may be lost, none is refused.
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if lines.pop():
        raise InvalidPolicyError(f"line {len(lines) + 1}: does not end in a newline")
    parser = _Parser()
    for number, line in enumerate(lines, start=1):
        try:
            parser.take_line(line)
        except InvalidPolicyError as error:
            raise InvalidPolicyError(f"line {number}: {error}") from error
    if parser.quorum is None:
        raise InvalidPolicyError(f"line {len(lines) + 1}: the quorum is missing")
    return Policy(
        tuple(parser.logs),
        tuple(parser.witnesses),
        tuple(parser.groups),
        parser.quorum,
    )


def make_bft_policy(log_vkey: str, witnesses: Iterable[tuple[str, str, str]]) -> Policy:
    """Return the policy of n ledger nodes, fewer than a third of which may lie.

    The quorum is n - floor((n-1)/3): 2f+1 of 3f+1. Any two quorums share an honest
    node, and the honest ones alone are a quorum.

    Args:
        log_vkey: The log's key; its name is the log's origin.
        witnesses: Name, vkey and URL (may be empty) of every node; at least one.

    Raises:
        InvalidPolicyError: a name or key is invalid, or appears twice. Bad input if
            they were read from somewhere.
    """
    nodes = tuple(witnesses)
    names = [name for name, _, _ in nodes]
    quorum = len(nodes) - (len(nodes) - 1) // 3
    lines = [
        ["log", log_vkey],
        *(["witness", name, vkey, *filter(None, [url])] for name, vkey, url in nodes),
        ["group", BFT_GROUP, str(quorum), *names],
        ["quorum", BFT_GROUP],
    ]
    for word in (word for line in lines for word in line):
        if not word or re.search(r"\s", word) or word.startswith("#"):
            raise InvalidPolicyError(f"not one word: {word!r}")
    text = "".join(" ".join(line) + "\n" for line in lines)
    return parse_policy(text.encode("utf-8", "surrogateescape"))
