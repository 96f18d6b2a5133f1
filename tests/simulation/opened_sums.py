"""Histories of MPC rounds, and an attacker who solves for updates.

Everybody but one party may lie: the others, whoever runs the log, aggregator and timer.
The log is the rounds decider's own; the honest party follows it as the real one does
and asks its memory. Whoever runs the log may take it back to any point and let it go on
otherwise, found the federation anew, or publish what it likes.

A part that the honest party gives opens the sum, as the others may work together: so
each is a row of a linear system, weights of agents over one base model. Agents say the
same update for the same base model, whatever it is committed to with. `find_known`
tells exactly what the system gives away.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from protocol.modes.mpc.party_memory import (
    Known,
    Linked,
    PartyRefusesError,
    Summed,
    demand_harmless,
    find_unlinkable,
    remember,
)
from protocol.modes.mpc.phases import has_all_partials
from protocol.modes.mpc.round import MpcRound
from protocol.round_state import RoundsState, find_newest
from protocol.rounds import DECIDER
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.mpc_rounds import follow, has_all_links
from tests.simulation.federation import (
    MPC_CONFIG,
    NOW_MS,
    PARTIES,
    Run,
    admitted,
    aggregate,
    checked,
    committed,
    deadline,
    linked,
    make_blob,
    partial,
    request,
    revoked,
    start,
)

HONEST: Final = PARTIES[0]
PRIME: Final = 2**61 - 1
Row = Mapping[str, int]


def compute_rank(rows: Sequence[Row], columns: Sequence[str]) -> int:
    """Return the rank of some columns of a matrix, modulo a prime.

    It is that over the rationals unless the prime divides a minor; a smaller one would
    show less known, never more.
    """
    matrix = [[row.get(name, 0) % PRIME for name in columns] for row in rows]
    rank = 0
    for column in range(len(columns)):
        pivot = next((i for i in range(rank, len(matrix)) if matrix[i][column]), None)
        if pivot is None:
            continue
        matrix[rank], matrix[pivot] = matrix[pivot], matrix[rank]
        inverse = pow(matrix[rank][column], -1, PRIME)
        for other in matrix[rank + 1 :]:
            factor = other[column] * inverse % PRIME
            for place in range(column, len(columns)):
                other[place] = (other[place] - factor * matrix[rank][place]) % PRIME
        rank += 1
    return rank


def find_known(rows: Sequence[Row], *, fewer_than: int) -> tuple[str, ...] | None:
    """Return a few agents of whose updates a combination is known; None if none is.

    A combination of the rows that is zero everywhere else exists if, and only if,
    leaving these columns out costs rank.
    """
    agents = sorted({name for row in rows for name in row})
    whole = compute_rank(rows, agents)
    for few in itertools.combinations(agents, min(len(agents), fewer_than - 1)):
        others = [name for name in agents if name not in few]
        if compute_rank(rows, others) < whole:
            return few
    return None


class Memory:
    """The memory of a party by the rules; its process may be killed at any time.

    Attributes:
        known: What it remembers.
        founding: Which founding of the federation it is shown. By the rules that is
            nothing to it.
    """

    def __init__(self) -> None:
        """Know nothing."""
        self.known: list[Known] = []
        self.founding = 0

    def permit_links(self, asked: Linked) -> Mapping[int, Any]:
        """Do as `adapters.modes.mpc.memory.PartyLog`."""
        refused = find_unlinkable(asked, self.known)
        permitted = asked.without(refused)
        if permitted.updates and permitted not in self.known:
            self.known = remember(self.known, permitted)
        return refused

    def permit_sum(self, asked: Summed, *, min_cohort: int) -> None:
        """Do as `adapters.modes.mpc.memory.PartyLog`."""
        demand_harmless(asked, self.known, min_cohort=min_cohort)
        if asked not in self.known:
            self.known = remember(self.known, asked)

    def restart(self) -> None:
        """Begin again with what is on the disk: everything."""


@dataclass
class Log:
    """A log as somebody shows it, and where it is."""

    run: Run[RoundsState, e.RoundFact]
    secret: MpcRound | None = None
    founding: int = 0

    def when(self, event: e.LedgerEvent, *, at_ms: int | None = None) -> list[Any]:
        """Sequence one more event and return the facts that follow from it."""
        facts = self.run.when(event, at_ms=at_ms)
        self.secret = follow(self.secret, self.run.state, self.run.leaves[-1])
        return facts

    def copy(self) -> Log:
        """Return a log that begins like this one."""
        run = replace(
            self.run, leaves=list(self.run.leaves), facts=list(self.run.facts)
        )
        return Log(run, self.secret, self.founding)


@dataclass
class History:
    """One history, from a seed.

    Attributes:
        seed: Of everything that is random in it.
        make_memory: The honest party's.
        is_hostile: Whether anybody lies; if not, all that happens is mishaps.
        opened: Rows that the honest party opened, by base model.
        declined: What the honest party declined, and whom it left out, by reason.
        num_published: Rounds that ended with a model.
        endings: How rounds ended all of whose parts were there.
        happened: How often each thing happened that rules are there for.
    """

    seed: int
    make_memory: Callable[[], Memory] = Memory
    is_hostile: bool = True
    opened: dict[bytes, list[Row]] = field(default_factory=dict)
    declined: list[str] = field(default_factory=list)
    num_published: int = 0
    endings: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Found the federation."""
        self.chance = chance = random.Random(self.seed)  # a test
        self.memory = self.make_memory()
        self.clock = itertools.count(NOW_MS)
        self.attempts = itertools.count()
        num_agents = chance.randint(4, 8)
        self.min_cohort = chance.randint(2, min(4, num_agents // 2))
        self.names = [f"agent{i}" for i in range(num_agents)]
        self.weights = {name: chance.randint(1, 1_000) for name in self.names}
        log = Log(start(DECIDER))
        config = replace(
            MPC_CONFIG,
            min_cohort=self.min_cohort,
            cohort_size=chance.randint(self.min_cohort, num_agents),
        )
        for event in (config, *map(admitted, self.names)):
            log.when(event)
        self.log = log
        self.snapshots = [log.copy()]
        self.foundings = itertools.count(1)

    def happens(self, probability: float) -> bool:
        """Return whether something happens that may."""
        return self.chance.random() < probability

    def play(self, num_stages: int) -> History:
        """Let so many things happen."""
        for _ in range(num_stages):
            if self.happens(0.1):
                self.memory.restart()
                self.happened["restart"] += 1
            if self.is_hostile:
                self.mislead()
            if self.happens(0.05):
                self.log.when(revoked(self.chance.choice(self.names)))
                self.happened["revoked"] += 1
            if self.happens(0.05):
                self.join()
            if self.happens(0.05):
                self.change()
            self.advance()
            if self.is_hostile:
                self.snapshots.append(self.log.copy())
            if self.happens(0.1):
                self.abandon()
        return self

    def mislead(self) -> None:
        """Show the party another log: an older one, or one that was founded anew."""
        if self.happens(0.15):
            self.log = self.chance.choice(self.snapshots).copy()
            self.happened["older log"] += 1
        elif self.happens(0.03):
            # The same agents, the same first model.
            self.log = self.snapshots[0].copy()
            self.log.founding = next(self.foundings)
            self.happened["founded anew"] += 1
        self.memory.founding = self.log.founding

    def join(self) -> None:
        """Admit somebody new."""
        name = f"agent{len(self.names)}"
        self.names.append(name)
        self.weights[name] = self.chance.randint(1, 1_000)
        self.log.when(admitted(name))

    def change(self) -> None:
        """Let the operator change the federation: other cohorts, or longer rounds."""
        config, number = find_newest(self.log.run.state)
        assert config is not None, "it is founded"
        changed = replace(
            config,
            cohort_size=self.chance.randint(config.min_cohort, len(self.names)),
            round_duration_ms=config.round_duration_ms + 1,
        )
        self.log.when(
            e.FederationChanged(
                federation_id="clinics",
                number=number + 1,
                configuration=codec.encode(changed),
            )
        )
        if find_newest(self.log.run.state)[1] == number + 1:
            self.happened["changed"] += 1

    def abandon(self) -> None:
        """Let the operator try to give up the round."""
        state = self.log.run.state
        if state.current is None:
            return
        had_all = state.current.sealed is not None and has_all_partials(state)
        number = state.current.started.round
        facts = self.log.when(
            e.RoundAbandonRequested(
                federation_id="clinics", round=number, explanation="mishap"
            )
        )
        is_over = any(isinstance(fact, e.RoundAbandoned) for fact in facts)
        if had_all and is_over:
            self.endings.append("abandoned")
        phase = "open" if state.current.sealed is None else "sealed"
        self.happened[f"{phase}, {'abandoned' if is_over else 'kept'}"] += 1

    def advance(self) -> None:
        """Let the next thing of the round happen that is due."""
        state = self.log.run.state
        current, secret = state.current, self.log.secret
        if current is None:
            number = state.last_round + 1
            facts = self.log.when(request(number, next(self.clock)))
            self.happened[type(facts[0]).__name__] += 1
            if state.summed:
                self.happened["asked again after a seal"] += 1
        elif "closed" not in current.begun:
            self.commit(current.started, sorted(current.cohort))
        elif secret is None:
            raise AssertionError(secret)
        elif current.sealed is not None:
            if has_all_partials(state):
                self.publish(current.sealed)
            else:
                self.give_parts(secret, current.sealed)
        elif not has_all_links(state):
            self.link(secret)
        else:
            self.check(secret)

    def pass_deadline(self) -> None:
        """Let time pass until the timer has something to say."""
        current = self.log.run.state.current
        if current is not None and current.deadline_ms is not None:
            late_ms = max(self.log.run.now_ms, current.deadline_ms + 1)
            self.log.when(deadline(current.started.round), at_ms=late_ms)

    def commit(self, started: e.RoundStarted, cohort: Sequence[str]) -> None:
        """Let those of the cohort commit who are there."""
        for name in cohort:
            if not self.happens(0.85):
                self.happened["absent"] += 1
            else:
                self.log.when(
                    committed(
                        name,
                        started.round,
                        base_model_sha256=started.base_model.sha256,
                        commitments=make_blob(f"attempt {next(self.attempts)}"),
                        num_examples=self.weights[name],
                    )
                )
        self.pass_deadline()

    def link(self, secret: MpcRound) -> None:
        """Let the parties link; the honest one only what its memory permits."""
        number = secret.started.round
        agents = sorted(secret.waiting)
        asked = Linked(
            federation_id="clinics",
            base_model=secret.started.base_model.sha256,
            updates=tuple(
                (name, digest, hashlib.sha256(secret.identity + digest).digest())
                for name in agents
                for digest in [secret.get_committed(name).event.commitments.sha256]
            ),
        )
        try:
            refused = self.memory.permit_links(asked)
        except PartyRefusesError as error:
            self.decline(number, error)
            return
        self.left_out = frozenset(agents[place] for place in refused)
        self.declined += [str(code) for code, _ in refused.values()]
        for party in PARTIES:
            self.log.when(linked(party, number))

    def check(self, secret: MpcRound) -> None:
        """Say which commitments count: a liar says it of any."""
        bad = getattr(self, "left_out", frozenset())
        checks = []
        for name in sorted(secret.waiting):
            is_bad = name in bad if not self.is_hostile else self.happens(0.2)
            reason = Reason.BAD_SHARE if is_bad else ""
            index = secret.get_committed(name).leaf_index
            checks.append(e.UpdateCheck(leaf_index=index, reason=reason, detail=""))
        checks.sort(key=lambda check: check.leaf_index)
        event = replace(checked(0, number=secret.started.round), results=tuple(checks))
        self.log.when(event)

    def give_parts(self, secret: MpcRound, sealed: e.RoundSealed) -> None:
        """Let the parties give their parts; some do not, or give wrong ones."""
        for party in PARTIES:
            current = self.log.run.state.current
            if (
                current is None
                or party in current.said.get("partials", {})
                or self.happens(0.25)
            ):
                continue
            if party == HONEST and not self.give_part(secret, sealed):
                return
            if party == HONEST and self.is_hostile and self.happens(0.2):
                self.happened["part kept off the log"] += 1
                continue
            part = partial(
                party, sealed.num_contributions, sealed.num_examples, sealed.round
            )
            place = self.log.run.next_index
            self.log.when(part)
            if party != HONEST and self.is_hostile and self.happens(0.1):
                wrong = checked(place, number=sealed.round, reason=Reason.WRONG_PARTIAL)
                self.log.when(wrong)
                self.happened["part rejected"] += 1

    def give_part(self, secret: MpcRound, sealed: e.RoundSealed) -> bool:
        """Let the honest party give its part, if its memory permits it."""
        try:
            self.memory.permit_sum(
                Summed.of(sealed, secret.contributions),
                min_cohort=secret.config.min_cohort,
            )
        except PartyRefusesError as error:
            self.decline(sealed.round, error)
            return False
        rows = self.opened.setdefault(sealed.base_model.sha256, [])
        rows.append({c.agent_id: c.num_examples for c in secret.contributions})
        return True

    def decline(self, number: int, error: PartyRefusesError) -> None:
        """Let the honest party say that it will not."""
        self.declined.append(error.code)
        self.log.when(
            e.PartyDeclined(
                federation_id="clinics",
                round=number,
                party=HONEST,
                reason=error.code,
                detail=error.detail,
            )
        )

    def publish(self, sealed: e.RoundSealed) -> None:
        """Complete the round, whoever is there; what it comes to may be a lie."""
        if self.happens(0.3):
            self.abandon()
        if self.log.run.state.current is None:
            return
        party = ""
        if self.happens(0.3):  # the aggregator is gone
            self.pass_deadline()
            party = self.chance.choice(PARTIES)
        base = sealed.base_model
        model = make_blob(f"from {base.sha256.hex()} at {next(self.attempts)}")
        if self.is_hostile and self.happens(0.2):
            model = base
            self.happened["model that did not move"] += 1
        claim = aggregate(
            sealed.num_contributions,
            sealed.num_examples,
            sealed.round,
            base_model_sha256=base.sha256,
            model=model,
            party=party,
        )
        facts = self.log.when(claim)
        if [type(fact) for fact in facts] == [e.AggregatePublished]:
            self.num_published += 1
            self.endings.append("published")
            self.happened[f"published by {'a party' if party else 'aggregator'}"] += 1

    def find_leak(self) -> tuple[str, ...] | None:
        """Return agents, too few, of whose updates the attacker knows something."""
        for rows in self.opened.values():
            known = find_known(rows, fewer_than=self.min_cohort)
            if known is not None:
                return known
        return None
