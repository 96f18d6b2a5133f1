"""`moot agent`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import find_kafka, find_settings
from cli.options import (
    DEFAULT_ALLOWED,
    AgentId,
    AsJson,
    Federation,
    GenesisHash,
    parse_key,
)
from cli.show import say
from cli.stack.processes import StackError

app = typer.Typer(help="Run, admit and revoke agents.", no_args_is_help=True)


@app.command("run")
def run(
    agent_id: AgentId,
    federation: Federation,
    operator_key: Annotated[
        str, typer.Option(help="Public key of the operator you trust, hex.")
    ],
    genesis: GenesisHash = None,
    directory: Annotated[
        Path | None, typer.Option(help="Directory of the agent's key and state.")
    ] = None,
    data_config: Annotated[
        str, typer.Option(help="Its own arguments for the data module, JSON.")
    ] = "{}",
    allow: Annotated[
        list[str] | None, typer.Option(help="Module prefix that a task may use.")
    ] = None,
    min_cohort: Annotated[
        int | None,
        typer.Option(min=1, help="Decline rounds that may sum fewer contributions."),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="Decline any other mode of aggregation: plain or mpc."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Digest of the task to accept on first start, hex; by default the "
            "one it finds."
        ),
    ] = None,
) -> None:
    """Run a training agent until it is told to stop."""
    from cli.stack.services import run_agent

    trusted = parse_key(operator_key)
    expected = None if genesis is None else parse_key(genesis)
    accepted = None if task is None else parse_key(task)
    run_agent(
        find_settings(),
        federation=federation,
        agent_id=agent_id,
        operator_key=trusted,
        genesis=expected,
        directory=directory,
        data_config=data_config,
        allowed_prefixes=tuple(allow or ()) or DEFAULT_ALLOWED,
        min_cohort=min_cohort,
        modes=tuple(mode or ()),
        task=accepted,
    )


@app.command("accept-task")
def accept_task(
    agent_id: AgentId,
    federation: Federation,
    task: Annotated[str, typer.Option(help="Digest of the task, hex.")],
    directory: Annotated[
        Path | None, typer.Option(help="The agent's directory, if not the default.")
    ] = None,
) -> None:
    """Let an agent on this machine run a task that the operator has changed."""
    from cli.stack.services import agent_directory
    from producers.agent.terms import accept_task

    digest = parse_key(task)
    if directory is None:
        directory = agent_directory(find_settings(), federation, agent_id)
    if not directory.is_dir():
        raise StackError(
            f"no agent {agent_id!r} of a federation {federation!r} has run here",
            f"Its directory would be {directory}. Before its first start: "
            "`moot agent run --task`.",
        )
    accept_task(directory, digest)
    say(f"{agent_id} accepts the task {task}")


@app.command("list")
def list_(federation: Federation, as_json: AsJson = False) -> None:
    """Show who asked to join, who was admitted, who was revoked."""
    from cli.operate import list_agents

    list_agents(find_kafka(), federation, as_json=as_json)


@app.command("admit")
def admit(
    agent_id: AgentId,
    federation: Federation,
    public_key: Annotated[
        str,
        typer.Option(
            help="The key its organisation gave you, hex; compare it with `moot agent "
            "list` before you admit the agent."
        ),
    ],
) -> None:
    """Bind an agent to its key; from then on its events count."""
    from cli.operate import say_as_operator
    from schemas.events import AgentAdmitted

    event = AgentAdmitted(
        federation_id=federation, agent_id=agent_id, public_key=parse_key(public_key)
    )
    say_as_operator(find_kafka(), event)
    say(f"admitted {agent_id}")


@app.command("revoke")
def revoke(
    agent_id: AgentId,
    federation: Federation,
    explanation: Annotated[
        str, typer.Option("--because", help="The reason, for the log.")
    ],
) -> None:
    """End an agent's membership, for good."""
    from cli.operate import say_as_operator
    from schemas.events import AgentRevoked

    event = AgentRevoked(
        federation_id=federation, agent_id=agent_id, explanation=explanation
    )
    say_as_operator(find_kafka(), event)
    say(f"revoked {agent_id}")
