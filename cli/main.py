"""`moot`: the command line. Commands import what they need when they run."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import Any, Final, cast

import typer
from typer.core import TyperGroup

from cli.commands import (
    agent,
    audit,
    bench,
    demo,
    federation,
    model,
    names,
    node,
    receipt,
    registry,
    rewards,
    schemas,
    serve,
    stack,
    task,
    topics,
)
from cli.commands import round as round_
from cli.extras import find_missing
from cli.interrupts import EXIT_INTERRUPTED
from cli.modes import COMMANDS
from cli.options import EXIT_CANNOT
from cli.show import prepare, say, say_error
from cli.stack.processes import StackError

OUR_PACKAGES: Final = (
    "adapters", "cli", "consumers", "ledger", "producers", "protocol", "schemas",
)  # fmt: skip


class UnwrittenError(Exception):
    """The output could not be written."""


class _Commands(TyperGroup):
    """The commands, with one place that handles their failures."""

    answer: int | None = None
    """The exit code that a command chose."""

    def invoke(self, ctx: Any) -> Any:
        """Run one; typer would exit with 1 on a broken pipe."""
        try:
            return super().invoke(ctx)
        except typer.Exit as end:
            self.answer = end.exit_code
            raise
        except (OSError, EOFError) as error:
            _explain(error)
            raise typer.Exit(EXIT_CANNOT) from None


app = typer.Typer(
    cls=_Commands,
    help="Federated learning on the Kafka you already run, replayable bit for bit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    stack.up,
    stack.down,
    stack.status,
    demo.demo,
    serve.serve,
    audit.audit,
    bench.bench,
    receipt.receipt,
    receipt.verify_receipt,
    rewards.rewards,
):
    app.command()(command)
for name, group in {
    "topics": topics.app,
    "schemas": schemas.app,
    "task": task.app,
    "federation": federation.app,
    "round": round_.app,
    "agent": agent.app,
    "names": names.app,
    "registry": registry.app,
    "model": model.app,
    "node": node.app,
    **COMMANDS,
}.items():
    app.add_typer(group, name=name)


def main() -> None:
    """Run a command; every failure becomes a sentence.

    Exit code 1 is a command's own answer (a wrong log, an invalid receipt) and nothing
    else.
    """
    prepare()
    sys.exit(_finish(_run()))


def _run() -> int:
    commands = cast("_Commands", typer.main.get_command(app))
    try:
        commands()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        # Libraries exit with 1 too: rich does on a broken pipe.
        is_answer = isinstance(code, int) and (code != 1 or commands.answer == 1)
        return int(code) if is_answer else EXIT_CANNOT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # the last resort
        _explain(error)
    return EXIT_CANNOT


def _explain(error: Exception) -> None:
    """Print what went wrong; our own errors are sentences already."""
    with suppress(OSError):  # nobody reads it
        if os.environ.get("MOOT_DEBUG"):
            say_error("".join(traceback.format_exception(error)).rstrip("\n"))
            return
        error = find_missing(error) or error
        if isinstance(error, StackError):
            say_error(error.message)
            say(error.hint, is_error=True)
        elif isinstance(error, OSError) and error.strerror:
            where = f"{error.filename}: " if error.filename else ""
            say_error(f"{where}{error.strerror}")
        elif type(error).__module__.split(".", 1)[0] in OUR_PACKAGES:
            say_error(error)
        else:
            say_error(f"{type(error).__name__}: {error}")
            say("Set MOOT_DEBUG=1 to see where it comes from.", is_error=True)


def _finish(code: int) -> int:
    """Flush the output; an answer that cannot be written is no answer."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        _explain(UnwrittenError(f"the output could not be written: {error}"))
        # Otherwise the interpreter tries again and exits with its own code.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CANNOT
    return code


if __name__ == "__main__":
    main()
