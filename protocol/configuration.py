"""What a federation's configuration says, section by section.

A section that is not there is null. Of the modes, ways to combine updates, exactly one
is there; so whoever is asked for the parties of a federation without any gets none.
"""

from __future__ import annotations

import hashlib
from typing import Final

from schemas import codec
from schemas import events as e

MODES: Final = ("plain", "mpc")
"""Sections of the configuration, of which exactly one is there."""


TASK_DOMAIN: Final = b"folkmoot/task/v1\n"


def compute_task_digest(task: e.Task) -> bytes:
    """Return what the owner of an agent accepts before it runs, 32 bytes.

    Import paths and arguments; not how many epochs, which is no code.
    """
    parts = (task.module, task.module_config, task.data_module, task.data_config)
    encoded = [part.encode() for part in parts]
    return hashlib.sha256(
        TASK_DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    ).digest()


def list_modes(config: e.FederationConfigured) -> list[str]:
    """Return the modes that a configuration has a section for."""
    return [mode for mode in MODES if getattr(config, mode) is not None]


def name_mode(config: e.FederationConfigured) -> str:
    """Return how a federation combines updates, as people write it: PLAIN or MPC."""
    (mode,) = list_modes(config)
    return mode.upper()


def get_mpc(config: e.FederationConfigured) -> e.Mpc:
    """Return the section of a federation whose updates nobody sees."""
    assert config.mpc is not None, "an MPC round is of a federation with parties"
    return config.mpc


def list_parties(config: e.FederationConfigured) -> tuple[e.Party, ...]:
    """Return a federation's parties; none if it has no secret shares."""
    return () if config.mpc is None else config.mpc.parties


def get_comparison(config: e.FederationConfigured) -> e.Comparison | None:
    """Return how a federation's parties compare updates; None if they don't."""
    return None if config.mpc is None else config.mpc.comparison


def list_nodes(config: e.FederationConfigured) -> tuple[e.LedgerNode, ...]:
    """Return the ledger nodes that a federation was founded with."""
    return () if config.ledger_nodes is None else config.ledger_nodes.nodes


def get_reward_rule(config: e.FederationConfigured) -> e.RewardRule:
    """Return what contributions earn; all zeros if nothing."""
    return config.reward_rule or e.RewardRule()


def read_configuration(change: e.FederationChanged) -> e.FederationConfigured:
    """Return the configuration that a change puts into force.

    Raises:
        codec.CodecError: it has none.
    """
    return codec.decode_as(e.FederationConfigured, change.configuration)
