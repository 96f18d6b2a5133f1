"""`moot federation`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.environment import find_kafka, find_settings
from cli.extras import demand
from cli.options import (
    DEFAULT_ALLOWED,
    AsJson,
    Federation,
    Watch,
    make_failure,
    parse_config,
    parse_principals,
)
from cli.show import say

if TYPE_CHECKING:
    from protocol.exchanged_state import Model

app = typer.Typer(help="Found, show and change federations.", no_args_is_help=True)


@app.command("create")
def create(
    federation: Federation,
    module: Annotated[str, typer.Option(help="LightningModule, package.module:Class.")],
    data_module: Annotated[
        str, typer.Option(help="LightningDataModule, package.module:Class.")
    ],
    module_config: Annotated[str, typer.Option(help="Its arguments, JSON.")] = "{}",
    data_config: Annotated[str, typer.Option(help="Its arguments, JSON.")] = "{}",
    local_epochs: Annotated[
        int, typer.Option(min=1, help="Passes over an agent's data per round.")
    ] = 1,
    cohort_size: Annotated[
        int, typer.Option(min=1, help="Largest number of agents drawn for a round.")
    ] = 5,
    min_cohort: Annotated[
        int, typer.Option(min=1, help="Fewest contributions that may be summed.")
    ] = 3,
    round_duration_s: Annotated[
        int, typer.Option(min=1, help="Seconds that agents have to answer.")
    ] = 120,
    seed: Annotated[int, typer.Option(help="Seed of the initial model.")] = 0,
    principal: Annotated[
        list[str] | None,
        typer.Option(
            help="ROLE=HEX, the public key of a service that runs elsewhere; "
            "EXPORTER=none for no exporter."
        ),
    ] = None,
    ledger_node: Annotated[
        list[str] | None,
        typer.Option(help="NAME=HEX@URL, a ledger node: `moot node init` prints it."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=POINTS, a value of the reward rule; none=0 sets the rest to 0."
        ),
    ] = None,
    party: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=HEX:HEX or NAME=HEX:HEX@HOST:PORT, a party: `moot party init` "
            "prints it."
        ),
    ] = None,
    clip_norm: Annotated[
        float,
        typer.Option(min=0.001, help="With parties: the largest norm of an update."),
    ] = 8.0,
    dealer: Annotated[
        str | None,
        typer.Option(
            help="HEX, key of the dealer whose randomness the parties use to compare "
            "updates: `moot dealer init` prints it."
        ),
    ] = None,
    max_distance: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=2.0,
            help="With a dealer: leave out any update that is further than this, in "
            "clip norms, from most others. 0: compare none.",
        ),
    ] = 0.0,
    strategy: Annotated[
        str,
        typer.Option(
            help="How the average update moves the model: FEDAVG, FEDPROX, FEDADAM, "
            "FEDYOGI or FEDNOVA."
        ),
    ] = "FEDAVG",
    strategy_parameter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER, a parameter of the strategy."),
    ] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="PATTERN=CLASS: how entries of the model's state are treated, such as "
            "kept or fixed; the first pattern that matches a name decides."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Module prefix that may be loaded.")
    ] = None,
    agent_data_config: Annotated[
        str,
        typer.Option(
            help="What an agent would add to --data-config, for the check, JSON."
        ),
    ] = "{}",
    is_checked: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Try the task out here first, as `moot task check` does.",
        ),
    ] = True,
) -> None:
    """Found a federation: try its task, make its initial model, publish its genesis.

    With parties, nobody sees an update: each is split among them, and only
    sums are opened. Without parties, the aggregator sees every update.
    """
    from cli.modes import read_parameters
    from cli.node import parse_ledger_nodes
    from cli.operate import create_federation, demand_possible, make_state_rules
    from cli.rewards import parse_reward_rule
    from cli.strategies import parse_parameters
    from producers.control import Parameters
    from schemas.events import Task

    parse_config("--module-config", module_config)
    parse_config("--data-config", data_config)
    task = Task(
        module=module,
        module_config=module_config,
        data_module=data_module,
        data_config=data_config,
        local_epochs=local_epochs,
    )
    parameters = Parameters(
        task=task,
        cohort_size=cohort_size,
        min_cohort=min_cohort,
        round_duration_ms=round_duration_s * 1000,
        ledger_nodes=parse_ledger_nodes(ledger_node or ()),
        reward_rule=parse_reward_rule(reward or ()),
        strategy=strategy,
        strategy_parameters=parse_parameters(strategy_parameter or ()),
        **read_parameters(
            party=party,
            clip_norm=clip_norm,
            dealer=dealer,
            max_distance=max_distance,
        ),
    )
    principals = parse_principals(principal or ())
    allowed_prefixes = tuple(allow or ()) or DEFAULT_ALLOWED
    state_rules = make_state_rules(state or ())
    added = parse_config("--agent-data-config", agent_data_config)

    def check() -> Model:
        from cli.task_check import check_task, demand_good, show_warnings

        (mode,) = parameters.sections
        report = check_task(
            task,
            allowed_prefixes=allowed_prefixes,
            seed=seed,
            state_rules=state_rules,
            agent_data_config=added,
            clip_norm=clip_norm if party else None,
            mode=mode,
            round_duration_s=round_duration_s,
        )
        demand_good(report)
        show_warnings(report)
        assert report.model is not None, "a good report has one"
        return report.model

    demand_possible(federation, parameters, principals)
    demand("agent")
    operator = create_federation(
        find_kafka(),
        federation,
        parameters,
        seed=seed,
        principals=principals,
        allowed_prefixes=allowed_prefixes,
        state_rules=state_rules,
        check=check if is_checked else None,
    )
    say(f"founded {federation}, genesis {operator.genesis.hex()}")
    say("agents and auditors pin this operator key:")
    say(operator.public_key.hex())


@app.command("key")
def key(
    role: Annotated[
        str, typer.Argument(help="SEQUENCER, DECIDER, AGGREGATOR, EXPORTER or TIMER.")
    ],
) -> None:
    """Print a service's public key, for `federation create --principal`.

    The key is made in this machine's state directory if needed.
    """
    from adapters.keys import key_path, load_or_create_key
    from protocol.validation import ROLES

    if role not in ROLES:
        raise make_failure(f"no role {role!r}; the roles are {', '.join(ROLES)}")
    keys = find_settings().state_directory / "keys"
    say(load_or_create_key(key_path(keys, role)).public_key.hex())


@app.command("show")
def show(federation: Federation, as_json: AsJson = False) -> None:
    """Show a federation: its parameters, agents, round and model."""
    from cli.operate import show_federation

    show_federation(find_kafka(), federation, as_json=as_json)


@app.command("status")
def status(
    federation: Federation, watch: Watch = False, as_json: AsJson = False
) -> None:
    """Show who is there, who is away, and what the federation is waiting for.

    Exit code 1: somebody should act, and it says how.
    """
    from cli.status import show_status

    code = show_status(find_kafka(), federation, as_json=as_json, is_watched=watch)
    raise typer.Exit(code)


@app.command("change")
def change(
    federation: Federation,
    round_duration_s: Annotated[
        int | None, typer.Option(min=1, help="Seconds that agents have to answer.")
    ] = None,
    cohort_size: Annotated[
        int | None,
        typer.Option(min=1, help="Largest number of agents drawn for a round."),
    ] = None,
    min_cohort: Annotated[
        int | None,
        typer.Option(
            min=1, help="Fewest contributions that may be summed; may only grow."
        ),
    ] = None,
    max_num_examples: Annotated[
        int | None,
        typer.Option(min=1, help="Most examples per update; may only shrink."),
    ] = None,
    norm_bound: Annotated[
        int | None,
        typer.Option(min=1, help="Norm bound, in encoded units; may only shrink."),
    ] = None,
    local_epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over an agent's data per round.")
    ] = None,
    rules_version: Annotated[
        int | None,
        typer.Option(min=1, help="Version of the deciders' rules; may only grow."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="NAME=POINTS, as in `create`; replaces the rule."),
    ] = None,
    strategy_parameter: Annotated[
        list[str] | None,
        typer.Option(help="NAME=NUMBER, as in `create`; replaces all of them."),
    ] = None,
    module: Annotated[
        str | None,
        typer.Option(help="LightningModule; agents run it once they accept it."),
    ] = None,
    module_config: Annotated[
        str | None, typer.Option(help="Its arguments, JSON.")
    ] = None,
    data_module: Annotated[
        str | None,
        typer.Option(help="LightningDataModule; agents run it once they accept it."),
    ] = None,
    data_config: Annotated[
        str | None, typer.Option(help="Its arguments, JSON.")
    ] = None,
    is_agreed: Annotated[
        bool, typer.Option("--yes", help="Sign without asking.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Change a federation from the next round on, after showing what would change.

    With --json but without --yes, only show it.
    """
    from cli.modes import name_changes
    from cli.operate import propose_change, say_as_operator, show_change
    from cli.rewards import parse_reward_rule
    from cli.strategies import parse_parameters

    asked: dict[str, Any] = {
        "round_duration_ms": None
        if round_duration_s is None
        else round_duration_s * 1000,
        "cohort_size": cohort_size,
        "min_cohort": min_cohort,
        "max_num_examples": max_num_examples,
        **name_changes(norm_bound),
        "rules_version": rules_version,
        "task.local_epochs": local_epochs,
        "task.module": module,
        "task.module_config": module_config,
        "task.data_module": data_module,
        "task.data_config": data_config,
    }
    for option, text in (
        ("--module-config", module_config),
        ("--data-config", data_config),
    ):
        if text is not None:
            parse_config(option, text)
    changes = {name: value for name, value in asked.items() if value is not None}
    if reward:
        changes["reward_rule"] = parse_reward_rule(reward)
    if strategy_parameter:
        changes["strategy_parameters"] = parse_parameters(strategy_parameter)
    settings = find_kafka()
    change, differences = propose_change(settings, federation, changes)
    show_change(change, differences, as_json=as_json)
    if as_json and not is_agreed:
        return
    if not is_agreed:
        typer.confirm("Sign it?", abort=True)
    say_as_operator(settings, change)
    if not as_json:
        say(f"change {change.number} is on the ledger")
