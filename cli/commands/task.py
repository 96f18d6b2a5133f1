"""`moot task`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import DEFAULT_ALLOWED, AsJson, parse_config

app = typer.Typer(
    help="Try out a task before you found a federation.", no_args_is_help=True
)


@app.command("check")
def check(
    module: Annotated[str, typer.Option(help="LightningModule, package.module:Class.")],
    data_module: Annotated[
        str, typer.Option(help="LightningDataModule, package.module:Class.")
    ],
    module_config: Annotated[str, typer.Option(help="Its arguments, JSON.")] = "{}",
    data_config: Annotated[str, typer.Option(help="Its arguments, JSON.")] = "{}",
    agent_data_config: Annotated[
        str,
        typer.Option(help="Arguments that an agent would add for its training, JSON."),
    ] = "{}",
    local_epochs: Annotated[
        int, typer.Option(min=1, help="Passes over an agent's data per round.")
    ] = 1,
    round_duration_s: Annotated[
        int, typer.Option(min=1, help="Seconds that agents have to answer.")
    ] = 120,
    seed: Annotated[int, typer.Option(help="Seed of the initial model.")] = 0,
    clip_norm: Annotated[
        float | None,
        typer.Option(min=0.001, help="The clip norm you intend to use, if any."),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN=CLASS, as in `federation create`."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=1.0, help="About how many seconds to try training for.")
    ] = 20.0,
    allow: Annotated[
        list[str] | None, typer.Option(help="Module prefix that may be loaded.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try out a task here: train, encode, measure, export; publish nothing.

    Exit code 1: the task can never work.
    """
    from cli.operate import make_state_rules
    from cli.task_check import check_task, show_report
    from schemas.events import Task

    report = check_task(
        Task(
            module=module,
            module_config=module_config,
            data_module=data_module,
            data_config=data_config,
            local_epochs=local_epochs,
        ),
        allowed_prefixes=tuple(allow or ()) or DEFAULT_ALLOWED,
        seed=seed,
        state_rules=make_state_rules(state or ()),
        agent_data_config=parse_config("--agent-data-config", agent_data_config),
        clip_norm=clip_norm,
        round_duration_s=round_duration_s,
        seconds=seconds,
    )
    show_report(report, as_json=as_json)
    if not report.is_good:
        raise typer.Exit(1)
