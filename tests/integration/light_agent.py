"""`moot`, but its agent trains without torch, in no time: for tests of all else.

    python -m tests.integration.light_agent agent run NAME ...

It loads, says and keeps what any agent does; only its update comes out of a generator.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np

from cli import main as moot
from producers.agent import agent
from protocol.exchanged_state import Update
from protocol.model import compute_max_model_size
from schemas import events as e

NUM_EXAMPLES = 8
LOSS_MICROS = 700_000


def _train(self: agent.Agent, started: e.RoundStarted) -> tuple[Update, int, int]:
    """Return an update for a round: always the same for one."""
    size = compute_max_model_size(self._federation.initial_model)
    self._store.fetch(started.base_model, max_size_bytes=size)
    seed = agent._compute_seed(self._options.agent_id, started.round)
    update = np.random.default_rng(seed).normal(0, 0.01, started.num_parameters)
    return Update(update), NUM_EXAMPLES, LOSS_MICROS


def main() -> None:
    """Run `moot` with it."""
    # Who would import it loads torch.
    sys.modules["producers.agent.training"] = ModuleType("producers.agent.training")
    agent.Agent._train = _train
    moot.main()


if __name__ == "__main__":
    main()
