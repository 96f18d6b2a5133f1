"""The terms an agent takes part under: its own floors, and the tasks that it accepted.

    <directory>/tasks        digests of the tasks that its owner accepted, in hex

Rules (ADR 0034):

- A round's configuration is the one that the trusted operator founded the federation
  with, or changed it to (`protocol.changes`); the decider's word alone changes nothing,
  and never brings back an earlier one.
- Whatever the configuration, an agent declines below its own floors: the fewest
  contributions in a sum, and the modes that it agrees to.
- It runs a task once its owner has accepted the digest of the code's import paths and
  arguments. A first start accepts the task that it finds, unless told which one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters.durable import append_file
from adapters.kafka_log import Genesis
from protocol.changes import apply_signed_change
from protocol.configuration import compute_task_digest
from protocol.log import OpenedLeaf
from protocol.modes import MODES, list_modes
from schemas import events as e
from schemas.reasons import Reason

TASKS_FILE: Final = "tasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """What an agent demands of every configuration.

    Attributes:
        min_cohort: The smallest ``min_cohort`` that it agrees to, at least 1.
        modes: The modes that it agrees to, of `MODES`.
    """

    min_cohort: int = 1
    modes: tuple[str, ...] = tuple(MODES)


def accept_task(directory: Path, digest: bytes) -> None:
    """Let a directory's agent run the task with this `compute_task_digest`."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    append_file(directory / TASKS_FILE, digest.hex().encode() + b"\n")


class Terms:
    """The terms of one agent in one federation.

    Args:
        directory: The agent's.
        floors: What the agent demands.
        genesis: The federation's genesis, by the trusted operator.
        agent_id: The agent's name in it.

    Attributes:
        is_member: Whether the log, as far as it was read, has the agent admitted and
            not revoked.
    """

    def __init__(
        self, directory: Path, floors: Floors, genesis: Genesis, agent_id: str
    ) -> None:
        self.is_member = False
        self._agent_id = agent_id
        self._directory = directory
        self._floors = floors
        self._genesis = genesis.hash
        self._configs = [genesis.config]
        self._change = 0

    @property
    def config(self) -> e.FederationConfigured:
        """Return the configuration of the last round that began."""
        return self._configs[self._change]

    def learn(self, leaf: OpenedLeaf) -> None:
        """Take the next leaf of the log; repeating one changes nothing."""
        event = leaf.sequenced.event
        if isinstance(event, e.AgentAdmitted | e.AgentRevoked):
            if event.agent_id == self._agent_id:
                self.is_member = isinstance(event, e.AgentAdmitted)
            return
        if isinstance(event, e.RoundStarted) and event.change < len(self._configs):
            self._change = max(self._change, event.change)
        if not isinstance(event, e.FederationChanged):
            return
        changed = apply_signed_change(
            self._configs[-1], len(self._configs) - 1, event, leaf.leaf, self._genesis
        )
        if changed is not None:
            self._configs.append(changed)

    def accept_first(self, task: bytes | None) -> None:
        """Accept the named task, or else the newest, if none was accepted yet.

        Args:
            task: Digest of the only task that a first start accepts, 32 bytes; None for
                the one that it finds.
        """
        if not (self._directory / TASKS_FILE).exists():
            accept_task(
                self._directory, task or compute_task_digest(self._configs[-1].task)
            )

    def knows(self, started: e.RoundStarted) -> bool:
        """Return whether a round's configuration is known."""
        return started.change < len(self._configs)

    def find_problem(self, started: e.RoundStarted) -> tuple[Reason, str] | None:
        """Return why the agent declines a round, for the ledger; None if it does not.

        From then on `config` is this round's.
        """
        if not self._change <= started.change < len(self._configs):
            detail = "the operator signed no such configuration, or a newer one began"
            return Reason.UNKNOWN_CONFIGURATION, detail
        config = self._configs[started.change]
        if (started.task, started.num_parameters, started.fractional_bits) != (
            config.task,
            config.num_parameters,
            config.fractional_bits,
        ):
            detail = "the round is not as the operator configured the federation"
            return Reason.UNKNOWN_CONFIGURATION, detail
        self._change = started.change
        if config.min_cohort < self._floors.min_cohort:
            detail = (
                f"min_cohort is {config.min_cohort}; this agent takes part from "
                f"{self._floors.min_cohort} on"
            )
            return Reason.COHORT_TOO_SMALL, detail
        if not set(list_modes(config)) <= set(self._floors.modes):
            detail = f"this agent takes part in {', '.join(self._floors.modes)} alone"
            return Reason.MODE_NOT_ALLOWED, detail
        digest = compute_task_digest(config.task).hex()
        if digest not in self._read_accepted():
            detail = (
                f"this agent's owner has not accepted the task {digest}: "
                "moot agent accept-task"
            )
            return Reason.TASK_NOT_ACCEPTED, detail
        return None

    def _read_accepted(self) -> set[str]:
        path = self._directory / TASKS_FILE
        text = path.read_text(encoding="ascii", errors="replace")
        return set(text.split())
