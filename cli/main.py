"""`moot`: the command line. Commands import what they need when they run."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup

from cli.show import prepare, say, say_error, say_json
from cli.stack.processes import StackError

if TYPE_CHECKING:
    from adapters.settings import Settings
    from adapters.topic_config import Problem

EXIT_CANNOT: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 and SIGINT's number, as shells have it
NEW_TOPIC_KNOWN_WITHIN_S: Final = 5.0
OUR_PACKAGES: Final = (
    "adapters", "cli", "consumers", "ledger", "producers", "protocol", "schemas",
)  # fmt: skip


class UnwrittenError(Exception):
    """Nobody took the output."""


class _Commands(TyperGroup):
    """The commands, with one end for what goes wrong in any of them."""

    answer: int | None = None
    """The exit code that a command gave itself."""

    def invoke(self, ctx: Any) -> Any:
        """Run one; typer would end with 1 when nobody takes the output."""
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
topics_app = typer.Typer(help="Kafka topics.", no_args_is_help=True)
schemas_app = typer.Typer(help="Avro schemas in the registry.", no_args_is_help=True)
federation_app = typer.Typer(help="Found and show federations.", no_args_is_help=True)
round_app = typer.Typer(help="Ask for rounds and watch them.", no_args_is_help=True)
agent_app = typer.Typer(help="Run, admit and revoke agents.", no_args_is_help=True)
names_app = typer.Typer(
    help="Whose pseudonyms the agents are: beside the log.", no_args_is_help=True
)
registry_app = typer.Typer(help="The model registry.", no_args_is_help=True)
party_app = typer.Typer(help="Parties and their keys.", no_args_is_help=True)
node_app = typer.Typer(help="Ledger nodes and their keys.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(schemas_app, name="schemas")
app.add_typer(federation_app, name="federation")
app.add_typer(round_app, name="round")
app.add_typer(agent_app, name="agent")
app.add_typer(names_app, name="names")
app.add_typer(registry_app, name="registry")
app.add_typer(node_app, name="node")
app.add_typer(party_app, name="party")
dealer_app = typer.Typer(help="Dealers and their keys.", no_args_is_help=True)
app.add_typer(dealer_app, name="dealer")

Federation = Annotated[
    str, typer.Option("--federation", "-f", help="Name of the federation.")
]
OperatorKey = Annotated[
    str | None,
    typer.Option("--operator-key", help="Public key of the operator you trust, hex."),
]
GenesisHash = Annotated[
    str | None,
    typer.Option("--genesis", help="Hash of the founding that you take part in, hex."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
StackDirectory = Annotated[
    Path | None,
    typer.Option(help="Directory of the stack; the user's state folder by default."),
]


@app.command()
def up(directory: StackDirectory = None) -> None:
    """Start Kafka, the schema registry and MinIO, and leave them running."""
    from cli.stack.stack import LocalStack, default_directory

    stack = LocalStack(directory or default_directory(), detached=True)
    stack.start(_say)
    say(f"up: {stack.endpoints.bootstrap_servers}; `moot down` stops it")


@app.command()
def down(directory: StackDirectory = None) -> None:
    """Stop the stack that `moot up` started; its data stays."""
    from cli.stack.stack import default_directory, stop_detached

    running = stop_detached(directory or default_directory())
    say("stopped" if running else "nothing was running")


@app.command()
def status(
    directory: StackDirectory = None,
    env: Annotated[
        bool, typer.Option("--env", help="Print the settings as shell exports.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the stack that `moot up` started."""
    from cli.stack.stack import StackState, default_directory, read_status

    found = read_status(directory or default_directory())
    if env:
        if found.endpoints is None:
            raise _failure("nothing is running: `moot up` starts it")
        for name, value in found.endpoints.environment().items():
            say(f"export {name}='{value}'")
        state = (directory or default_directory()) / "services"
        say(f"export MOOT_STATE_DIRECTORY='{state}'")
    elif as_json:
        services = [
            {
                "name": service.name,
                "pid": service.pid,
                "healthy": service.healthy,
                "endpoint": service.endpoint,
                "log": str(service.log_path),
            }
            for service in found.services
        ]
        say_json({"state": found.state, "services": services})
    else:
        say(f"{found.directory}: {found.state}")
        for service in found.services:
            word = "healthy" if service.healthy else "NOT HEALTHY"
            say(f"  {service.name:<10} {word:<12} {service.endpoint}")
    if found.state not in {StackState.RUNNING, StackState.STOPPED}:
        raise typer.Exit(1)


@app.command()
def demo(
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 5,
    task: Annotated[
        str, typer.Option(help="Which example: digits or breast-cancer.")
    ] = "digits",
    directory: Annotated[
        Path | None,
        typer.Option(help="Keep everything here; a temporary folder by default."),
    ] = None,
) -> None:
    """Train across five organisations on a fresh stack, then audit the result."""
    from cli.demo import run_demo

    raise typer.Exit(run_demo(rounds=rounds, task=task, directory=directory))


@app.command()
def serve(
    service: Annotated[
        str,
        typer.Argument(
            help="sequencer, rounds, aggregator, registry, rewards, party or dealer; "
            "timer, exporter, ledger-node or log, which serve one federation."
        ),
    ],
    federation: Annotated[
        str | None, typer.Option("--federation", "-f", help="Which federation.")
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Modules that the exporter may load models from."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The ledger node's, party's or dealer's.")
    ] = None,
    min_cohort: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="The fewest contributions that a party sums: 2, or MOOT_MIN_COHORT.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Where to listen: 127.0.0.1 unless told, a party at its own address."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(help="7400 for a ledger node, 7480 for the log; 0: a free one."),
    ] = None,
    operator_key: OperatorKey = None,
    genesis: GenesisHash = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="URL of a ledger node, besides those that the log names."),
    ] = None,
) -> None:
    """Run one service until it is told to stop."""
    from adapters.descriptors import raise_limit
    from cli.stack.processes import LOOPBACK
    from cli.stack.services import (
        NODE_PORTS,
        NodeArguments,
        run_dealer,
        run_node,
        run_party,
        run_service,
    )

    _load_environment()
    raise_limit()
    if service == "party":
        run_party(name, min_cohort, host)
        return
    if service == "dealer":
        run_dealer(name)
        return
    if service in NODE_PORTS:
        arguments = NodeArguments(
            federation=federation,
            name=name,
            host=host or LOOPBACK,
            port=port,
            operator_key=None if operator_key is None else _parse_key(operator_key),
            genesis=None if genesis is None else _parse_key(genesis),
            peers=tuple(peer or ()),
        )
        run_node(service, arguments)
        return
    run_service(service, federation, tuple(allow or ()) or DEFAULT_ALLOWED)


@app.command()
def audit(
    bundle_to_read: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="A bundle, to be audited offline."),
    ] = None,
    federation: Annotated[
        str, typer.Option("--federation", "-f", help="Name of the federation.")
    ] = "",
    operator_key: OperatorKey = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Whose cosignatures you demand: a C2SP policy file."),
    ] = None,
    blobs: Annotated[
        bool, typer.Option(help="Fetch blobs and recompute every aggregate.")
    ] = True,
    rejected: Annotated[
        bool, typer.Option("--rejected", help="List the records that were refused.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Write everything that was read into a file, as a bundle."),
    ] = None,
    continue_from: Annotated[
        Path | None,
        typer.Option("--from", help="Go on from where an audit ended (--save)."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Save where this audit ends, if it is sound.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on as a monitor; prints alerts.")
    ] = False,
    stale_after: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds until a monitor complains that nothing becomes final, or "
            "that nothing can be read; 300 unless told otherwise, 0: never.",
        ),
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Do not end after a fork.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; as many as there are cores."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay a log and check everything in it.

    Exit code 0: sound. 1: the log is wrong, and where. 2: it could not be read.
    """
    from cli.audit import Options
    from cli.audit import audit as run_audit

    _load_environment()
    run_audit(
        Options(
            federation=federation,
            bundle=bundle_to_read,
            operator_key=operator_key,
            policy=policy,
            with_blobs=blobs,
            lists_refused=rejected,
            write_bundle=bundle,
            continue_from=continue_from,
            save=save,
            is_followed=follow,
            stale_after_s=stale_after,
            keeps_going=keep_going,
            as_json=as_json,
            jobs=jobs,
        )
    )


@app.command()
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which: sequencer, rounds, finality, audit, aggregation, privacy, "
            "differences."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Small sizes, to see that it runs.")
    ] = False,
    write: Annotated[
        bool, typer.Option(help="Write docs/benchmarks.md instead of printing it.")
    ] = False,
) -> None:
    """Measure, on a stack of its own, and compare with the limits."""
    from cli.bench import run_bench

    run_bench(tuple(names or ()), quick=quick, write=write)


@topics_app.command("create")
def topics_create(
    repair: Annotated[
        bool,
        typer.Option(help="Change the configuration of topics that exist, too."),
    ] = False,
) -> None:
    """Create the topics that do not exist yet, and check those that do."""
    import time

    from adapters.kafka import create_topics
    from adapters.topic_config import check_topics, repair_topics

    settings = _settings()
    created = create_topics(settings)
    say(*(created or ["all topics exist"]))
    deadline = time.monotonic() + NEW_TOPIC_KNOWN_WITHIN_S
    problems = check_topics(settings)
    # Not every broker knows at once what was just made.
    while any(p.topic in created for p in problems) and time.monotonic() < deadline:
        time.sleep(0.2)
        problems = check_topics(settings)
    if repair:
        repair_topics(settings, problems)
        problems = check_topics(settings)
    _show_topic_problems(settings, problems)


@topics_app.command("check")
def topics_check(as_json: AsJson = False) -> None:
    """Compare the topics with what they must be; changes nothing."""
    from dataclasses import asdict

    from adapters.topic_config import check_topics, is_fatal

    settings = _settings()
    problems = check_topics(settings)
    if as_json:
        say_json([asdict(problem) for problem in problems])
        raise typer.Exit(int(is_fatal(problems)))
    if not problems:
        say("all topics are as they must be")
    _show_topic_problems(settings, problems)


def _show_topic_problems(settings: Settings, problems: Sequence[Problem]) -> None:
    from adapters.topic_config import describe, is_fatal

    if problems:
        say(*describe(problems, settings).splitlines(), is_error=True)
    if is_fatal(problems):
        raise typer.Exit(1)


@topics_app.command("list")
def topics_list(as_json: AsJson = False) -> None:
    """Show which events travel on which topic."""
    from schemas import topics

    if as_json:
        table = {t: [c.__name__ for c in cs] for t, cs in topics.EVENTS.items()}
        say_json(table)
        return
    for topic, events in topics.EVENTS.items():
        say(f"{topic:<18} {', '.join(event.__name__ for event in events)}")


@schemas_app.command("register")
def schemas_register(as_json: AsJson = False) -> None:
    """Register every schema under its subject, FULL_TRANSITIVE."""
    from adapters.schema_registry import SchemaRegistry

    ids = SchemaRegistry(_settings().schema_registry_url).register_all()
    if as_json:
        say_json(ids)
        return
    for subject, schema_id in ids.items():
        say(f"{schema_id:>5} {subject}")


@schemas_app.command("show")
def schemas_show(name: str) -> None:
    """Print the Avro schema of an event."""
    from schemas import codec

    if name not in codec.CLASSES:
        raise _failure(f"no event {name}; `moot topics list` shows them all")
    say(*codec.schema_text(name).splitlines())


@federation_app.command("create")
def federation_create(
    federation: Federation,
    module: Annotated[str, typer.Option(help="LightningModule, package.module:Class.")],
    data_module: Annotated[
        str, typer.Option(help="LightningDataModule, package.module:Class.")
    ],
    module_config: Annotated[str, typer.Option(help="Its arguments, JSON.")] = "{}",
    data_config: Annotated[str, typer.Option(help="Its arguments, JSON.")] = "{}",
    local_epochs: Annotated[int, typer.Option(min=1)] = 1,
    cohort_size: Annotated[int, typer.Option(min=1)] = 5,
    min_cohort: Annotated[int, typer.Option(min=1)] = 3,
    round_duration_s: Annotated[int, typer.Option(min=1)] = 120,
    seed: Annotated[int, typer.Option(help="Of the initial model.")] = 0,
    principal: Annotated[
        list[str] | None,
        typer.Option(
            help="ROLE=HEX, the public key of a service that keeps its own key; "
            "EXPORTER=none for no exporter."
        ),
    ] = None,
    ledger_node: Annotated[
        list[str] | None,
        typer.Option(help="NAME=HEX@URL, a ledger node: `moot node init` prints it."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="NAME=POINTS, a value of the reward rule; or none=0."),
    ] = None,
    party: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=HEX:HEX[@HOST:PORT], a party: `moot party init` prints it."
        ),
    ] = None,
    clip_norm: Annotated[
        float,
        typer.Option(min=0.001, help="With parties: the largest norm of an update."),
    ] = 8.0,
    dealer: Annotated[
        str | None,
        typer.Option(
            help="HEX, who deals the parties what they compare updates with: "
            "`moot dealer init` prints it."
        ),
    ] = None,
    max_distance: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=2.0,
            help="With a dealer: how many clip norms apart two updates are far from "
            "each other; who is far from most others is left out. 0: none is.",
        ),
    ] = 0.0,
    state: Annotated[
        list[str] | None,
        typer.Option(
            help="PATTERN=CLASS, what becomes of entries of the model's state: "
            "trained, kept or fixed; the first pattern that fits a name."
        ),
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Modules that may be loaded.")
    ] = None,
) -> None:
    """Found a federation: make its initial model and publish its genesis.

    With parties nobody sees an update: each is shared among them, and only sums are
    opened. Without, the aggregator sees them all.
    """
    from cli.node import parse_ledger_nodes
    from cli.operate import create_federation, make_state_rules
    from cli.party import parse_parties
    from cli.rewards import parse_reward_rule
    from producers.control import Parameters, with_parties
    from schemas.events import Task

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
        **with_parties(
            parse_parties(party or ()),
            clip_norm,
            dealer_key=None if dealer is None else _parse_key(dealer),
            max_distance=max_distance,
        ),
    )
    operator = create_federation(
        _settings(),
        federation,
        parameters,
        seed=seed,
        principals=_parse_principals(principal or ()),
        allowed_prefixes=tuple(allow or ()) or DEFAULT_ALLOWED,
        state_rules=make_state_rules(state or ()),
    )
    say(f"founded {federation}, genesis {operator.genesis.hex()}")
    say("agents and auditors pin this operator key:")
    say(operator.public_key.hex())


@federation_app.command("key")
def federation_key(
    role: Annotated[
        str, typer.Argument(help="SEQUENCER, DECIDER, AGGREGATOR, EXPORTER or TIMER.")
    ],
) -> None:
    """Print a service's public key, for `federation create --principal`.

    The key is made in this machine's state directory if it does not exist yet.
    """
    from adapters.keys import key_path, load_or_create_key
    from protocol.validation import ROLES

    if role not in ROLES:
        raise _failure(f"no role {role!r}: {', '.join(ROLES)}")
    keys = _settings().state_directory / "keys"
    say(load_or_create_key(key_path(keys, role)).public_key.hex())


@federation_app.command("show")
def federation_show(federation: Federation, as_json: AsJson = False) -> None:
    """Show a federation: its parameters, agents, round and model."""
    from cli.operate import show_federation

    show_federation(_settings(), federation, as_json=as_json)


@federation_app.command("change")
def federation_change(
    federation: Federation,
    round_duration_s: Annotated[int | None, typer.Option(min=1)] = None,
    cohort_size: Annotated[int | None, typer.Option(min=1)] = None,
    min_cohort: Annotated[
        int | None, typer.Option(min=1, help="May only become larger.")
    ] = None,
    max_num_examples: Annotated[
        int | None, typer.Option(min=1, help="May only become smaller.")
    ] = None,
    norm_bound: Annotated[
        int | None,
        typer.Option(min=1, help="In encoded units; may only become smaller."),
    ] = None,
    local_epochs: Annotated[int | None, typer.Option(min=1)] = None,
    rules_version: Annotated[
        int | None,
        typer.Option(min=1, help="Of the deciders' rules; may only become larger."),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(help="NAME=POINTS, as for `create`: the whole rule anew."),
    ] = None,
    module: Annotated[
        str | None, typer.Option(help="Agents run it once they accept it.")
    ] = None,
    module_config: Annotated[str | None, typer.Option(help="JSON.")] = None,
    data_module: Annotated[
        str | None, typer.Option(help="Agents run it once they accept it.")
    ] = None,
    data_config: Annotated[str | None, typer.Option(help="JSON.")] = None,
    is_agreed: Annotated[
        bool, typer.Option("--yes", help="Sign without asking.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Change a federation from the next round on, after showing what changes.

    With --json and without --yes it only shows.
    """
    from cli.operate import change_federation, propose_change, show_change
    from cli.rewards import parse_reward_rule

    asked: dict[str, Any] = {
        "round_duration_ms": None
        if round_duration_s is None
        else round_duration_s * 1000,
        "cohort_size": cohort_size,
        "min_cohort": min_cohort,
        "max_num_examples": max_num_examples,
        "mpc.norm_bound": norm_bound,
        "rules_version": rules_version,
        "task.local_epochs": local_epochs,
        "task.module": module,
        "task.module_config": module_config,
        "task.data_module": data_module,
        "task.data_config": data_config,
    }
    changes = {name: value for name, value in asked.items() if value is not None}
    if reward:
        changes["reward_rule"] = parse_reward_rule(reward)
    settings = _settings()
    change, differences = propose_change(settings, federation, changes)
    show_change(change, differences, as_json=as_json)
    if as_json and not is_agreed:
        return
    if not is_agreed:
        typer.confirm("Sign it?", abort=True)
    change_federation(settings, change)
    if not as_json:
        say(f"change {change.number} is on the ledger")


@party_app.command("init")
def party_init(
    name: Annotated[str, typer.Argument(help="Its name among the parties.")],
    address: Annotated[
        str,
        typer.Option(help="Where other parties reach it to compare, HOST:PORT."),
    ] = "",
) -> None:
    """Make a party's keys and memory, and print it for `federation create`."""
    from cli.party import make_party, show_party

    say(show_party(make_party(_settings(), name, address)))


@dealer_app.command("init")
def dealer_init(
    name: Annotated[str, typer.Argument(help="What this machine calls it.")],
) -> None:
    """Make a dealer's key, and print it for `federation create`."""
    from cli.party import make_dealer_key

    say(make_dealer_key(_settings(), name).hex())


@node_app.command("init")
def node_init(
    name: Annotated[str, typer.Argument(help="Its name among the nodes.")],
    url: Annotated[
        str, typer.Option(help="Where others will reach it, http://host:port.")
    ] = "",
) -> None:
    """Make a ledger node's key and vote log, and print it for `federation create`."""
    from cli.node import make_node, show_node

    say(show_node(make_node(_settings(), name, url)))


@node_app.command("list")
def node_list(federation: Federation, as_json: AsJson = False) -> None:
    """List a federation's ledger nodes, era by era."""
    from cli.node import list_nodes

    list_nodes(_settings(), federation, as_json=as_json)


@node_app.command("policy")
def node_policy(
    federation: Federation,
    era: Annotated[
        int | None,
        typer.Option(help="Of which node set, from 0; the present one by default."),
    ] = None,
) -> None:
    """Print whose cosignatures make a checkpoint final, as a C2SP policy file."""
    from cli.receipts import show_policy

    say(*show_policy(_settings(), federation, era).splitlines())


@node_app.command("propose")
def node_propose(
    federation: Federation,
    node: Annotated[list[str], typer.Option(help="NAME=HEX@URL, each new node.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")],
) -> None:
    """Write a proposal for other ledger nodes, to be approved by the present ones."""
    from cli.node import parse_ledger_nodes, propose

    propose(_settings(), federation, parse_ledger_nodes(node), output)


@node_app.command("approve")
def node_approve(
    proposal: Annotated[Path, typer.Argument(help="The file.")],
    name: Annotated[str, typer.Option(help="Which of this machine's nodes signs.")],
) -> None:
    """Sign a proposal with the key of a present ledger node."""
    from cli.node import approve

    approve(_settings(), proposal, name)


@node_app.command("change")
def node_change(
    proposal: Annotated[Path, typer.Argument(help="The file, approved.")],
) -> None:
    """Publish an approved proposal as the operator."""
    from cli.node import change

    change(_settings(), proposal)


@app.command()
def receipt(
    event: Annotated[str, typer.Argument(help="Event id in hex, or a leaf index.")],
    federation: Federation,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file.")
    ] = None,
    url: Annotated[list[str] | None, typer.Option(help="A server of the log.")] = None,
) -> None:
    """Write a receipt: leaf, inclusion proof, cosigned checkpoint (C2SP tlog-proof)."""
    from cli.receipts import get_receipt
    from ledger.proof_file import FILE_EXTENSION

    leaf_index, data = get_receipt(_settings(), federation, event, tuple(url or ()))
    path = output or Path(f"{federation}-leaf-{leaf_index}{FILE_EXTENSION}")
    path.write_bytes(data)
    say(f"wrote {path}: leaf {leaf_index}, {len(data)} bytes")


@app.command("verify-receipt")
def verify_receipt(
    file: Annotated[Path, typer.Argument(help="The receipt.")],
    policy: Annotated[
        Path, typer.Option(help="Whose word counts: `moot node policy` prints it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Verify a receipt, offline."""
    from cli.receipts import check_receipt

    raise typer.Exit(check_receipt(file, policy, as_json=as_json))


@round_app.command("start")
def round_start(
    federation: Federation,
    wait: Annotated[bool, typer.Option(help="Wait until it ends.")] = True,
    timeout_s: Annotated[float, typer.Option(help="How long to wait.")] = 600,
) -> None:
    """Ask for the next round, and watch it."""
    from cli.operate import start_round

    raise typer.Exit(
        start_round(_settings(), federation, wait=wait, timeout_s=timeout_s)
    )


@round_app.command("abandon")
def round_abandon(
    federation: Federation,
    explanation: Annotated[str, typer.Option("--because", help="Why.")],
) -> None:
    """Give up the round in progress, so that another can start."""
    from cli.operate import abandon_round

    say(f"gave up round {abandon_round(_settings(), federation, explanation)}")


@round_app.command("watch")
def round_watch(
    federation: Federation,
    as_json: AsJson = False,
    follow: Annotated[bool, typer.Option(help="Go on past the present end.")] = True,
) -> None:
    """Print what happens in a federation, from the beginning on."""
    from cli.operate import watch

    watch(_settings(), federation, as_json=as_json, follow=follow)


@agent_app.command("run")
def agent_run(
    agent_id: str,
    federation: Federation,
    operator_key: Annotated[
        str, typer.Option(help="Public key of the operator you trust, hex.")
    ],
    genesis: GenesisHash = None,
    directory: Annotated[
        Path | None, typer.Option(help="Its key and what it has said.")
    ] = None,
    data_config: Annotated[
        str, typer.Option(help="Its own arguments of the data module, JSON.")
    ] = "{}",
    allow: Annotated[
        list[str] | None, typer.Option(help="Modules that a task may name.")
    ] = None,
    min_cohort: Annotated[
        int | None,
        typer.Option(min=1, help="Decline where fewer contributions may be summed."),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="Decline where updates are combined otherwise: plain, mpc."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="HEX, digest of the task that a first start accepts; the one that it "
            "finds unless told."
        ),
    ] = None,
) -> None:
    """Run a training agent until it is told to stop."""
    from cli.stack.services import run_agent

    run_agent(
        _settings(),
        federation=federation,
        agent_id=agent_id,
        operator_key=_parse_key(operator_key),
        genesis=None if genesis is None else _parse_key(genesis),
        directory=directory,
        data_config=data_config,
        allowed_prefixes=tuple(allow or ()) or DEFAULT_ALLOWED,
        min_cohort=min_cohort,
        modes=tuple(mode or ()),
        task=None if task is None else _parse_key(task),
    )


@agent_app.command("accept-task")
def agent_accept_task(
    agent_id: str,
    federation: Federation,
    task: Annotated[str, typer.Option(help="Digest of the task, hex.")],
    directory: Annotated[
        Path | None, typer.Option(help="The agent's, if it is not the usual one.")
    ] = None,
) -> None:
    """Let an agent on this machine run a task that the operator has changed."""
    from cli.stack.services import agent_directory
    from producers.agent.terms import accept_task

    settings = _settings()
    accept_task(
        directory or agent_directory(settings, federation, agent_id), _parse_key(task)
    )
    say(f"{agent_id} runs the task {task}")


@agent_app.command("list")
def agent_list(federation: Federation, as_json: AsJson = False) -> None:
    """Show who asked to join, who was admitted, who was revoked."""
    from cli.operate import list_agents

    list_agents(_settings(), federation, as_json=as_json)


@agent_app.command("admit")
def agent_admit(
    agent_id: str,
    federation: Federation,
    public_key: Annotated[
        str,
        typer.Option(
            help="The key that its organisation told you, hex: `moot agent list` "
            "shows what was asked for; compare before you admit."
        ),
    ],
) -> None:
    """Bind an agent to its key; from then on its events count."""
    from cli.operate import admit_agent

    admit_agent(_settings(), federation, agent_id, _parse_key(public_key))
    say(f"admitted {agent_id}")


@agent_app.command("revoke")
def agent_revoke(
    agent_id: str,
    federation: Federation,
    explanation: Annotated[str, typer.Option("--because", help="Why.")],
) -> None:
    """End an agent's membership, for good."""
    from cli.operate import revoke_agent

    revoke_agent(_settings(), federation, agent_id, explanation)
    say(f"revoked {agent_id}")


@names_app.command("set")
def names_set(
    agent_id: str,
    name: Annotated[str, typer.Argument(help="An empty one takes it out.")],
    federation: Federation,
) -> None:
    """Remember whose pseudonym an agent is, encrypted, on this machine."""
    from cli.names import set_name

    set_name(_settings(), federation, agent_id, name)


@names_app.command("list")
def names_list(federation: Federation, as_json: AsJson = False) -> None:
    """Show whose pseudonyms the agents are."""
    from cli.names import list_names

    list_names(_settings(), federation, as_json=as_json)


@names_app.command("destroy-key")
def names_destroy_key(federation: Federation) -> None:
    """Make the names unreadable, for good; the log stays as it is."""
    from cli.names import destroy_key

    destroy_key(_settings(), federation)


@registry_app.command("list")
def registry_list(federation: Federation, as_json: AsJson = False) -> None:
    """Show the model versions of a federation."""
    from cli.operate import list_versions

    list_versions(_settings(), federation, as_json=as_json)


@registry_app.command("get")
def registry_get(
    version: Annotated[int, typer.Argument(min=1)],
    federation: Federation,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    form: Annotated[
        str, typer.Option("--format", help="onnx or safetensors.")
    ] = "onnx",
) -> None:
    """Fetch a model version, digest verified."""
    from cli.operate import get_version

    get_version(_settings(), federation, version, form, output)


@app.command()
def rewards(
    federation: Federation,
    history: Annotated[
        bool, typer.Option("--history", help="Show every change and its leaf.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what agents and ledger nodes have earned and lost."""
    from cli.rewards import show_rewards

    show_rewards(_settings(), federation, as_json=as_json, history=history)


DEFAULT_ALLOWED: Final = ("producers.examples",)


def _say(service: str, message: str) -> None:
    say(f"{service:>16}  {message}", is_error=True)


def _parse_principals(items: Sequence[str]) -> dict[str, str]:
    from cli.operate import NOBODY

    principals = {}
    for item in items:
        role, equals, key = item.partition("=")
        if not equals:
            raise _failure(f"not ROLE=HEX: {item!r:.80}")
        principals[role] = key if key == NOBODY else _parse_key(key).hex()
    return principals


def _parse_key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:  # noqa: PLR2004  # an Ed25519 public key, or SHA-256
        raise _failure(f"not a key or hash: {text!r:.80}; expected 64 hex digits")
    return key


def _load_environment() -> None:
    """Point the settings at the stack of `moot up`, where the environment is silent."""
    if "MOOT_BOOTSTRAP_SERVERS" in os.environ:
        return
    from cli.stack.stack import default_directory, read_endpoints

    endpoints = read_endpoints(default_directory())
    if endpoints is not None:
        for name, value in endpoints.environment().items():
            os.environ.setdefault(name, value)
        os.environ.setdefault(
            "MOOT_STATE_DIRECTORY", str(default_directory() / "services")
        )


def _settings() -> Any:
    from adapters import telemetry
    from adapters.settings import load_settings

    _load_environment()
    settings = load_settings()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Our own readers say that Kafka is away, and say it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    telemetry.configure("moot", settings.otlp_endpoint)
    return settings


def _failure(message: str) -> typer.Exit:
    say_error(message)
    return typer.Exit(EXIT_CANNOT)


def main() -> None:
    """Run a command; whatever goes wrong is said in a sentence.

    Exit code 1 is a command's own answer (a log that is wrong, a receipt that is not
    valid): nothing else ends with it.
    """
    prepare()
    sys.exit(_finish(_run()))


def _run() -> int:
    commands = cast("_Commands", typer.main.get_command(app))
    try:
        commands()
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        # Libraries end with 1, too: rich does when a pipe is broken.
        is_answer = isinstance(code, int) and (code != 1 or commands.answer == 1)
        return int(code) if is_answer else EXIT_CANNOT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # the last resort
        _explain(error)
    return EXIT_CANNOT


def _explain(error: Exception) -> None:
    """Say what went wrong: what we raise on purpose is a sentence already."""
    with suppress(OSError):  # nobody listens
        if os.environ.get("MOOT_DEBUG"):
            say_error("".join(traceback.format_exception(error)).rstrip("\n"))
            return
        if isinstance(error, StackError):
            say_error(error.message)
            say(error.hint, is_error=True)
        elif type(error).__module__.split(".", 1)[0] in OUR_PACKAGES:
            say_error(error)
        else:
            say_error(f"{type(error).__name__}: {error}")
            say("Set MOOT_DEBUG=1 to see where it comes from.", is_error=True)


def _finish(code: int) -> int:
    """Write what is still to be written; an answer that nobody gets is none."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        _explain(UnwrittenError(f"the output could not be written: {error}"))
        # Or the interpreter tries again, and ends with a code of its own.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CANNOT
    return code


if __name__ == "__main__":
    main()
