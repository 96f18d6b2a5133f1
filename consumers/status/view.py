"""The status of a federation: from its log, its processes' heartbeats, and now.

The log says who is needed, with whose keys, and what for; heartbeats say who is there.
Nothing here decides anything: a federation goes on whatever the screen says.

Rules:

- A process counts as one of the federation's only if its heartbeat is signed with the
  key that the log names for it. All others are listed apart, as what they claim to be.
- A service is there if one of its instances is.
- What the round waits for is what `protocol.modes.list_debtors` says, what the deciders
  owe the log, what its models wait for, and the announcement of a deadline.
- Everything that waits has a cure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from adapters.heartbeats import Heard
from consumers.status.watched import DECIDER_OF, Stamped, WatchedLog
from protocol.deciders import DECIDERS
from protocol.modes import list_debtors, list_helpers, name_speakers
from protocol.modes.mode import AGENT, AGGREGATOR
from protocol.round_state import describe_few, find_drawable_agents
from schemas import events as e

SILENT_FACTOR: Final = 3
"""A process that was silent for so many of its intervals is away: two heartbeats may be
late, or lost."""
GRACE_MS: Final = 2_000
"""Clocks of machines that keep time differ by less."""
OVERDUE_MS: Final = 5_000
"""What a service that is there says at once, it has said by then."""
SEQUENCER: Final = "sequencer"
TIMER: Final = "timer"
EXPORTER: Final = "exporter"
NODE: Final = "ledger-node"
_ROLES: Final = {
    SEQUENCER: "SEQUENCER",
    **dict.fromkeys(DECIDERS, "DECIDER"),
    AGGREGATOR: "AGGREGATOR",
    TIMER: "TIMER",
    EXPORTER: "EXPORTER",
}
"""The services of a federation, and the principal whose key each signs with."""


class Presence(StrEnum):
    """Whether a process is there."""

    HERE = "here"
    DOUBTFUL = "doubtful"
    """Its heartbeats arrive, but are old by its own clock: that is slow, or a stranger
    repeats them."""
    AWAY = "away"
    ENDED = "ended"
    UNHEARD = "never heard"


_BY_LIFE: Final = (
    Presence.HERE,
    Presence.DOUBTFUL,
    Presence.AWAY,
    Presence.ENDED,
    Presence.UNHEARD,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A process, as needed or as heard.

    Attributes:
        kind: Its kind: `Heartbeat.kind`.
        name: Which one of its kind; empty for a service that nobody heard.
        presence: Whether it is there.
        doing: What it does, or how it ended; empty if it was never heard.
        since_ms: Since when it does that; if it is not there, when it was last heard; 0
            if never.
        version: The version that it runs.
        num_instances: How many of it are there.
    """

    kind: str
    name: str
    presence: Presence
    doing: str = ""
    since_ms: int = 0
    version: str = ""
    num_instances: int = 0

    @property
    def is_there(self) -> bool:
        """Whether it may be there."""
        return self.presence in {Presence.HERE, Presence.DOUBTFUL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Something that the federation waits for.

    Attributes:
        who: Whom it waits for; None if for the operator.
        what: What it waits for, as text.
        since_ms: Since when.
        until_ms: When it goes on without; None if never.
        cure: What to do about it; empty if nothing but to wait.
    """

    who: Member | None
    what: str
    since_ms: int
    until_ms: int | None = None
    cure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStatus:
    """The round in progress.

    Attributes:
        number: Its number.
        phase: The name of its phase.
        began_ms: When it began.
        phase_began_ms: When its phase began.
        until_ms: When its phase ends without those who are late; None if never.
        num_drawn: How many agents were drawn.
        num_answered: How many of them have answered, or may no longer.
    """

    number: int
    phase: str
    began_ms: int
    phase_began_ms: int
    until_ms: int | None
    num_drawn: int
    num_answered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalityStatus:
    """How far the log is final.

    Attributes:
        size: How many leaves are.
        behind_since_ms: Since when a block waits to become final; None if none does.
        num_there: How many of the ledger nodes are there.
        num_nodes: How many there are to be.
        quorum: How many it takes.
    """

    size: int
    behind_since_ms: int | None
    num_there: int
    num_nodes: int
    quorum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationStatus:
    """All of it.

    Attributes:
        federation_id: The federation.
        now_ms: When this holds, by the reader's clock.
        num_leaves: Size of the log.
        block_at_ms: Stamp of its last block.
        round: The round in progress; None if there is none.
        last_round: Number of the last round that started; 0 if none.
        ended: How the last round ended.
        waits: What the federation waits for.
        members: Who is needed, and whether they are there.
        others: Who says that it serves this federation, with a key that the log does
            not name.
        finality: How far the log is final; None without ledger nodes.
        version: The last registered version, with its metrics.
        missed: How many rounds that it was drawn for an agent has missed in a row.
        refusals: The last refusals.
        num_refusals: How many there were.
    """

    federation_id: str
    now_ms: int
    num_leaves: int
    block_at_ms: int
    round: RoundStatus | None
    last_round: int
    ended: Stamped | None
    waits: tuple[Wait, ...]
    members: tuple[Member, ...]
    others: tuple[Member, ...]
    finality: FinalityStatus | None
    version: e.ModelVersionRegistered | None
    missed: Mapping[str, int]
    refusals: tuple[Stamped, ...]
    num_refusals: int

    @property
    def needs_attention(self) -> bool:
        """Whether somebody should do something: an agent may come and go.

        Who is doubtful may be gone, too.
        """
        return any(
            member.kind != AGENT and member.presence is not Presence.HERE
            for member in self.members
        ) or any(
            wait.who is not None and wait.until_ms is None and not wait.who.is_there
            for wait in self.waits
        )


def judge(heard: Heard, now_ms: int) -> Presence:
    """Return whether a process is there.

    Args:
        heard: Its last heartbeat.
        now_ms: Now, by the reader's clock.
    """
    if heard.heartbeat.next_within_ms == 0:
        return Presence.ENDED
    silent_ms = SILENT_FACTOR * heard.heartbeat.next_within_ms + GRACE_MS
    if now_ms - heard.appended_at_ms > silent_ms:
        return Presence.AWAY
    if now_ms - heard.at_ms > silent_ms:
        return Presence.DOUBTFUL
    return Presence.HERE


def describe_process(heard: Heard, now_ms: int) -> Member:
    """Return a process as it presents itself."""
    said, presence = heard.heartbeat, judge(heard, now_ms)
    is_there = presence in {Presence.HERE, Presence.DOUBTFUL}
    return Member(
        kind=said.kind,
        name=said.name,
        presence=presence,
        doing=said.doing,
        # What it did before it went away lasts no longer than its last word.
        since_ms=said.doing_since_ms if is_there else heard.at_ms,
        version=said.version,
        num_instances=int(is_there),
    )


def compute_status(
    log: WatchedLog, heard: Iterable[Heard], now_ms: int, *, final_size: int = 0
) -> FederationStatus:
    """Return a federation's status.

    Args:
        log: Its log so far, at least the first block.
        heard: The last heartbeat of every process; of other federations too.
        now_ms: Now, by the reader's clock, in ms since 1970 UTC.
        final_size: Size of the largest checkpoint that a quorum of ledger nodes has
            cosigned, as far as is known.
    """
    return _Status(log, heard, now_ms, final_size).compute()


class _Status:
    """One computation."""

    def __init__(
        self, log: WatchedLog, heard: Iterable[Heard], now_ms: int, final_size: int
    ) -> None:
        self._log = log
        self._now_ms = now_ms
        self._final_size = max(final_size, log.admission.finalised_size)
        name = log.admission.federation_id
        self._heard = [
            item
            for item in heard
            if item.heartbeat.federation_id == name
            or (
                not item.heartbeat.federation_id
                and item.heartbeat.public_key in self._list_keys()
            )
        ]
        self._used: set[int] = set()
        self._members = {(m.kind, m.name): m for m in self._find_members()}

    def _list_keys(self) -> set[bytes]:
        admission = self._log.admission
        helpers = {} if admission.config is None else list_helpers(admission.config)
        named = (admission.principals, admission.parties, helpers)
        return {key for keys in named for key in keys.values()}

    def compute(self) -> FederationStatus:
        log, rounds = self._log, self._log.rounds
        current = rounds.current
        known = None
        if current is not None and log.phase is not None:
            known = RoundStatus(
                number=log.phase[0],
                phase=log.phase[1],
                began_ms=log.round_at_ms,
                phase_began_ms=log.phase_at_ms,
                until_ms=current.deadline_ms,
                num_drawn=len(current.cohort),
                num_answered=len(current.cohort) - len(current.owing),
            )
        return FederationStatus(
            federation_id=log.admission.federation_id,
            now_ms=self._now_ms,
            num_leaves=log.size,
            block_at_ms=log.block_at_ms,
            round=known,
            last_round=rounds.last_round,
            ended=log.ended,
            waits=tuple(self._find_waits()),
            members=tuple(self._members.values()),
            others=tuple(self._find_others()),
            finality=self._find_finality(),
            version=log.version,
            missed=dict(rounds.missed),
            refusals=log.refusals,
            num_refusals=log.num_refusals,
        )

    # Who is there

    def _find_members(self) -> Iterator[Member]:
        admission = self._log.admission
        for kind, role in _ROLES.items():
            if role in admission.principals:
                yield self._find_member(kind, admission.principals[role])
        for node in admission.node_sets[-1].nodes if admission.node_sets else ():
            yield self._find_member(NODE, node.public_key, node.name)
        if admission.config is not None and admission.parties:
            kind = name_speakers(admission.config)
            for name, key in sorted(admission.parties.items()):
                yield self._find_member(kind, key, name)
            for kind, key in list_helpers(admission.config).items():
                yield self._find_member(kind, key)
        for name, agent in sorted(admission.agents.items()):
            if not agent.revoked:
                yield self._find_member(AGENT, agent.public_key, name)

    def _find_member(self, kind: str, key: bytes, name: str = "") -> Member:
        """Return the process that the log means: the liveliest of its instances."""
        found = []
        for index, item in enumerate(self._heard):
            said = item.heartbeat
            is_it = (said.kind, said.public_key) == (kind, key)
            if is_it and (not name or said.name == name):
                self._used.add(index)
                found.append(describe_process(item, self._now_ms))
        if not found:
            return Member(kind=kind, name=name, presence=Presence.UNHEARD)
        best = min(found, key=lambda m: (_BY_LIFE.index(m.presence), -m.since_ms))
        return Member(
            kind=kind,
            name=name or best.name,
            presence=best.presence,
            doing=best.doing,
            since_ms=best.since_ms,
            version=best.version,
            num_instances=sum(member.num_instances for member in found),
        )

    def _find_others(self) -> Iterator[Member]:
        for index, item in enumerate(self._heard):
            if index not in self._used:
                yield describe_process(item, self._now_ms)

    def _get_member(self, kind: str, name: str = "") -> Member:
        for member in self._members.values():
            if member.kind == kind and name in {"", member.name}:
                return member
        # A revoked agent, or a principal that the federation does not have.
        return Member(kind=kind, name=name, presence=Presence.UNHEARD)

    # What it waits for

    def _find_waits(self) -> Iterator[Wait]:
        sequencer = self._get_member(SEQUENCER)
        if not sequencer.is_there:
            since_ms = sequencer.since_ms or self._log.block_at_ms
            yield self._wait(SEQUENCER, "to put on the log what is said", since_ms)
        owed = dict(self._find_owed())
        for kind, since_ms in owed.items():
            yield self._wait(kind, "to conclude what follows from the log", since_ms)
        rounds = self._log.rounds
        if "rounds" not in owed:
            if rounds.current is None:
                yield from self._find_idle()
            else:
                yield from self._find_in_round()
        for number, since_ms in sorted(self._log.published_at_ms.items()):
            if EXPORTER.upper() in self._log.admission.principals:
                yield self._wait(
                    EXPORTER, f"to export the model of round {number}", since_ms
                )
        yield from self._find_waits_for_nodes()

    def _find_waits_for_nodes(self) -> Iterator[Wait]:
        finality = self._find_finality()
        if finality is None or finality.num_there >= finality.quorum:
            return
        for member in self._members.values():
            if member.kind == NODE and not member.is_there:
                since_ms = finality.behind_since_ms or member.since_ms
                yield self._wait(NODE, "to attest", since_ms, name=member.name)

    def _find_owed(self) -> Iterator[tuple[str, int]]:
        """Yield deciders that owe facts for longer than they need, and since when."""
        oldest: dict[str, int] = {}
        for turn, since_ms in self._log.owed.items():
            kind = DECIDER_OF[turn.topic]
            oldest[kind] = min(since_ms, oldest.get(kind, since_ms))
        for kind, since_ms in sorted(oldest.items()):
            # Unless it cannot be heard by the log.
            is_late = self._now_ms - since_ms > OVERDUE_MS
            if is_late or not self._get_member(kind).is_there:
                yield kind, since_ms

    def _find_idle(self) -> Iterator[Wait]:
        log, rounds = self._log, self._log.rounds
        config = rounds.config
        assert config is not None, "a log begins with a configuration"
        since_ms = log.round_at_ms
        if len(find_drawable_agents(rounds)) < config.min_cohort:
            yield Wait(
                who=None,
                what=f"for agents: {describe_few(rounds, config)}",
                since_ms=since_ms,
                cure="`moot agent list` shows who asks, `moot agent admit` admits",
            )
        else:
            yield Wait(
                who=None,
                what="for the operator to request a round",
                since_ms=since_ms,
                cure=f"`moot round start -f {config.federation_id}`",
            )

    def _find_in_round(self) -> Iterator[Wait]:
        rounds = self._log.rounds
        config, current = rounds.config, rounds.current
        assert config is not None, "it has a round"
        assert current is not None, "it has a round"
        until_ms = current.deadline_ms
        is_over = until_ms is not None and self._now_ms > until_ms + OVERDUE_MS
        if is_over and (current.owing or current.sealed is not None):
            assert until_ms is not None, "it is over"
            yield self._wait(TIMER, "to say that the deadline has passed", until_ms)
        since_ms = self._log.phase_at_ms
        for kind, name in list_debtors(config, current):
            if kind == AGENT:
                yield self._wait(
                    kind, "to answer", since_ms, name=name, until_ms=until_ms
                )
            elif kind == AGGREGATOR:
                yield self._wait(kind, "to check answers or publish the sum", since_ms)
            else:
                yield self._wait(
                    kind, "to say its part", since_ms, name=name, gives_up=True
                )

    def _wait(
        self,
        kind: str,
        what: str,
        since_ms: int,
        *,
        name: str = "",
        until_ms: int | None = None,
        gives_up: bool = False,
    ) -> Wait:
        who = self._get_member(kind, name)
        cure = "" if who.is_there else self._find_cure(who)
        sequencer = self._get_member(SEQUENCER)
        if not cure and not sequencer.is_there and kind != SEQUENCER:
            # Whatever it says, nobody puts it on the log.
            cure = self._find_cure(sequencer)
        if cure and gives_up:
            cure += ", or `moot round abandon` gives the round up"
        return Wait(who=who, what=what, since_ms=since_ms, until_ms=until_ms, cure=cure)

    def _find_cure(self, who: Member) -> str:
        federation = self._log.admission.federation_id
        if who.kind == AGENT:
            return f"its site starts it again: `moot agent run {who.name}`"
        if who.kind == NODE:
            start = f"moot serve {NODE} --name {who.name} -f {federation}"
        elif who.kind in {TIMER, EXPORTER}:
            start = f"moot serve {who.kind} -f {federation}"
        elif who.kind in _ROLES:
            start = f"moot serve {who.kind}"
        else:
            start = f"moot serve {who.kind} --name {who.name}"
        return f"start it again: `{start}`"

    # How far it is final

    def _find_finality(self) -> FinalityStatus | None:
        log = self._log
        if not log.admission.node_sets:
            return None
        nodes = log.admission.node_sets[-1]
        behind = [block.at_ms for block in log.blocks if block.size > self._final_size]
        there = [
            member
            for member in self._members.values()
            if member.kind == NODE and member.is_there
        ]
        return FinalityStatus(
            size=self._final_size,
            behind_since_ms=min(behind, default=None),
            num_there=len(there),
            num_nodes=len(nodes.nodes),
            quorum=nodes.quorum,
        )
