"""Every command of `moot`: how it is called, and what it needs.

For tests of what is said when something is wrong or missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import typer

from cli.main import app

KEY: Final = "ab" * 32
WHERE: Final = ("--federation", "{federation}")
NODE: Final = f"--node=a={KEY}@http://127.0.0.1:1"
BAD_KEY: Final = "64 hex digits"


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        arguments: A call of it; ``{federation}`` and ``{proposal}`` are put in.
        wrong: Another with an argument that cannot be, and what is said of it.
        needs: What it cannot do without.
        stays: Whether it runs until it is told to stop, and waits for what is away.
    """

    arguments: tuple[str, ...]
    wrong: tuple[tuple[str, ...], str] | None = None
    needs: frozenset[str] = frozenset()
    stays: bool = False


def call(*arguments: str, **options: Any) -> Command:
    """Return a command by its call."""
    needs = frozenset(options.pop("needs", "").split())
    return Command(arguments, needs=needs, **options)


READS: Final = "settings kafka registry federation"
"""What whoever reads a federation's log needs."""

COMMANDS: Final = {
    "serve": call("serve", "sequencer", needs="settings",
                  wrong=(("serve", "nothing"), "no service 'nothing'")),
    "serve timer": call("serve", "timer", *WHERE, needs="settings", stays=True,
                        wrong=(("serve", "timer"), "serves one federation")),
    "serve exporter": call("serve", "exporter", *WHERE, needs="settings minio",
                           stays=True,
                           wrong=(("serve", "exporter"), "serves one federation")),
    "serve ledger-node": call("serve", "ledger-node", *WHERE, "--name", "a",
                              needs="settings", stays=True,
                              wrong=(("serve", "ledger-node", "-f", "x"),
                                     "needs a name")),
    "serve party": call("serve", "party", "--name", "a", needs="settings minio",
                        stays=True,
                        wrong=(("serve", "party"), "needs a name")),
    "audit": call("audit", *WHERE, "--no-blobs", needs=READS,
                  wrong=(("audit", *WHERE, "--operator-key", "x"), BAD_KEY)),
    "receipt": call("receipt", "0", *WHERE, needs=READS),
    "rewards": call("rewards", *WHERE, needs=READS),
    "topics create": call("topics", "create", needs="settings kafka"),
    "topics check": call("topics", "check", needs="settings kafka"),
    "schemas register": call("schemas", "register", needs="settings registry"),
    "schemas show": call("schemas", "show", "RoundStarted",
                         wrong=(("schemas", "show", "Nothing"), "no event Nothing")),
    "federation create": call(
        "federation", "create", *WHERE, "--module", "a:B", "--data-module", "a:B",
        needs="settings kafka minio",
        wrong=(("federation", "create", *WHERE, "--module", "a:B", "--data-module",
                "a:B", "--principal", "TIMER=zz"), BAD_KEY)),
    "federation key": call("federation", "key", "TIMER", needs="settings",
                           wrong=(("federation", "key", "X"), "no role 'X'")),
    "federation show": call("federation", "show", *WHERE, needs=READS),
    "federation status": call("federation", "status", *WHERE, needs=READS),
    "federation change": call(
        "federation", "change", *WHERE, "--cohort-size", "9", "--json", needs=READS,
        wrong=(("federation", "change", *WHERE, "--reward", "x"), "NAME=POINTS")),
    "round start": call("round", "start", *WHERE, needs=READS),
    "round abandon": call("round", "abandon", *WHERE, "--because", "x", needs=READS),
    "round watch": call("round", "watch", *WHERE, needs=READS),
    "agent run": call(
        "agent", "run", "a", *WHERE, "--operator-key", KEY, needs="settings minio",
        stays=True,
        wrong=(("agent", "run", "a", *WHERE, "--operator-key", "x"), BAD_KEY)),
    "agent accept-task": call(
        "agent", "accept-task", "a", *WHERE, "--task", KEY, needs="settings",
        wrong=(("agent", "accept-task", "a", *WHERE, "--task", "x"), BAD_KEY)),
    "agent list": call("agent", "list", *WHERE, needs=READS),
    "agent admit": call(
        "agent", "admit", "a", *WHERE, "--public-key", KEY, needs=READS,
        wrong=(("agent", "admit", "a", *WHERE, "--public-key", "x"), BAD_KEY)),
    "agent revoke": call("agent", "revoke", "a", *WHERE, "--because", "x", needs=READS),
    "names set": call("names", "set", "a", "Ann", *WHERE, needs="settings"),
    "names list": call("names", "list", *WHERE, needs="settings"),
    "names destroy-key": call("names", "destroy-key", *WHERE, needs="settings"),
    "registry list": call("registry", "list", *WHERE, needs=READS),
    "registry get": call(
        "registry", "get", "1", *WHERE, "-o", "{proposal}.out", needs=f"{READS} minio",
        wrong=(("registry", "get", "1", *WHERE, "-o", "x", "--format", "pickle"),
               "no format 'pickle'")),
    "model evaluate": call(
        "model", "evaluate", *WHERE, needs=f"{READS} minio",
        wrong=(("model", "evaluate", *WHERE, "--plot", "curves.png"),
               "--plot writes SVG")),
    "node init": call("node", "init", "a", needs="settings",
                      wrong=(("node", "init", "A!"), "cannot be a ledger node's name")),
    "node list": call("node", "list", *WHERE, needs=READS),
    "node policy": call("node", "policy", *WHERE, needs=READS),
    "node propose": call(
        "node", "propose", *WHERE, NODE, "-o", "{proposal}.out", needs=READS,
        wrong=(("node", "propose", *WHERE, "--node", "x", "-o", "x"),
               "is not NAME=HEX@URL")),
    "node approve": call(
        "node", "approve", "{proposal}", "--name", "a", needs=READS,
        wrong=(("node", "approve", "/nothing", "--name", "a"), "is not a proposal")),
    "node change": call("node", "change", "{proposal}", needs=READS,
                        wrong=(("node", "change", "/nothing"), "is not a proposal")),
    "party init": call("party", "init", "a", needs="settings",
                       wrong=(("party", "init", "A!"), "cannot be a party's name")),
    "dealer init": call("dealer", "init", "a", needs="settings",
                        wrong=(("dealer", "init", "A!"), "cannot be a dealer's name")),
}  # fmt: skip
"""By name; a service of `moot serve` has a line of its own."""

EXEMPT: Final = {
    "up": "starts what others need",
    "down": "tests/integration/test_stack.py",
    "status": "tests/integration/test_stack.py",
    "demo": "brings all it needs",
    "bench": "brings all it needs",
    "verify-receipt": "works offline; tests/unit/cli/test_receipts.py",
    "task check": "tries a task out here, without any service",
    "topics list": "prints what is known without Kafka",
}
"""Commands that are tested elsewhere, or that can lack nothing."""


def list_names() -> Iterator[str]:
    """Yield the name of every command that `moot` has."""

    def walk(command: Any, path: tuple[str, ...]) -> Iterator[str]:
        if not hasattr(command, "commands"):
            yield " ".join(path)
            return
        for name, part in command.commands.items():
            yield from walk(part, (*path, name))

    yield from walk(typer.main.get_command(app), ())
