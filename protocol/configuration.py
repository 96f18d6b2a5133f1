"""The contents of a federation's configuration, section by section.

A missing section is null. Exactly one mode, a way to combine updates, is present
(`protocol.modes`).
"""

from __future__ import annotations

import hashlib
from typing import Final

from schemas import codec
from schemas import events as e

TASK_DOMAIN: Final = b"folkmoot/task/v1\n"


def compute_task_digest(task: e.Task) -> bytes:
    """Return the digest, 32 bytes, that an agent's owner accepts before a task runs.

    It covers import paths and arguments, not the number of epochs, which is no code.
    """
    parts = (task.module, task.module_config, task.data_module, task.data_config)
    encoded = [part.encode() for part in parts]
    return hashlib.sha256(
        TASK_DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    ).digest()


def list_nodes(config: e.FederationConfigured) -> tuple[e.LedgerNode, ...]:
    """Return the ledger nodes that a federation was founded with."""
    return () if config.ledger_nodes is None else config.ledger_nodes.nodes


def get_reward_rule(config: e.FederationConfigured) -> e.RewardRule:
    """Return what contributions earn; all zeros for nothing."""
    return config.reward_rule or e.RewardRule()


def read_configuration(change: e.FederationChanged) -> e.FederationConfigured:
    """Return the configuration that a change puts into force.

    Raises:
        codec.CodecError: it contains none.
    """
    return codec.decode_as(e.FederationConfigured, change.configuration)
