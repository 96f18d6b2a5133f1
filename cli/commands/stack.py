"""The local stack: `moot up`, `moot down`, `moot status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.options import AsJson, StackDirectory, Watch, make_failure
from cli.show import say


def up(
    directory: StackDirectory = None,
    services: Annotated[
        bool,
        typer.Option(
            "--services",
            help="Also create topics, register schemas and run `moot serve all`.",
        ),
    ] = False,
) -> None:
    """Start Kafka, the schema registry and MinIO, and leave them running."""
    from cli.stack.stack import LocalStack, StackState, default_directory, read_status

    where = directory or default_directory()
    endpoints = None
    if services:
        found = read_status(where)
        endpoints = found.endpoints if found.state is StackState.RUNNING else None
    if endpoints is None:
        endpoints = LocalStack(where, detached=True).start(_say)
    if services:
        _start_services(where, endpoints.environment())
    say(f"up: {endpoints.bootstrap_servers}; `moot down` stops it")


def _start_services(directory: Path, environment: dict[str, str]) -> None:
    """Make topics, register schemas, and run the services in the background."""
    import os

    os.environ.update(environment)
    os.environ["MOOT_STATE_DIRECTORY"] = str(directory / "services")
    from adapters.kafka import create_topics
    from adapters.schema_registry import SchemaRegistry
    from cli.environment import find_settings
    from cli.stack.supervise import start_services

    settings = find_settings()
    create_topics(settings)
    SchemaRegistry(settings.schema_registry_url).register_all()
    start_services(directory, dict(os.environ), _say)


def down(directory: StackDirectory = None) -> None:
    """Stop what `moot up` started; its data stays."""
    from cli.stack.stack import default_directory, stop_detached
    from cli.stack.supervise import stop_services

    # They would report that Kafka is away.
    stop_services(directory or default_directory())
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

    If MOOT_BOOTSTRAP_SERVERS names another Kafka, show what runs on that one.
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
