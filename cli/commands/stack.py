"""The local stack: `moot up`, `moot down`, `moot status`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import AsJson, StackDirectory, Watch, make_failure
from cli.show import say


def up(directory: StackDirectory = None) -> None:
    """Start Kafka, the schema registry and MinIO, and leave them running."""
    from cli.stack.stack import LocalStack, default_directory

    stack = LocalStack(directory or default_directory(), detached=True)
    stack.start(_say)
    say(f"up: {stack.endpoints.bootstrap_servers}; `moot down` stops it")


def down(directory: StackDirectory = None) -> None:
    """Stop the stack that `moot up` started; its data stays."""
    from cli.stack.stack import default_directory, stop_detached

    running = stop_detached(directory or default_directory())
    say("stopped" if running else "nothing was running")


def status(
    directory: StackDirectory = None,
    env: Annotated[
        bool, typer.Option("--env", help="Print the settings as shell exports.")
    ] = False,
    watch: Watch = False,
    as_json: AsJson = False,
) -> None:
    """Show the stack that `moot up` started, and what runs on it.

    Where MOOT_BOOTSTRAP_SERVERS names another Kafka, show what runs there.
    """
    from cli.stack.stack import StackState, default_directory, read_status

    found = read_status(directory or default_directory())
    if env:
        if found.endpoints is None:
            raise make_failure("nothing is running: `moot up` starts it")
        for name, value in found.endpoints.environment().items():
            say(f"export {name}='{value}'")
        state = (directory or default_directory()) / "services"
        say(f"export MOOT_STATE_DIRECTORY='{state}'")
    else:
        from cli.status import show_around

        found = show_around(
            directory or default_directory(), as_json=as_json, is_watched=watch
        )
    if found.state not in {StackState.RUNNING, StackState.STOPPED}:
        raise typer.Exit(1)


def _say(service: str, message: str) -> None:
    say(f"{service:>16}  {message}", is_error=True)
