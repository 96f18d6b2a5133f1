"""`moot topics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.environment import find_kafka
from cli.options import AsJson
from cli.show import say, say_json

if TYPE_CHECKING:
    from adapters.settings import Settings
    from adapters.topic_config import Problem

app = typer.Typer(help="Create, check and list Kafka topics.", no_args_is_help=True)
NEW_TOPIC_KNOWN_WITHIN_S: Final = 5.0


@app.command("create")
def create(
    repair: Annotated[
        bool,
        typer.Option(help="Also correct the configuration of existing topics."),
    ] = False,
) -> None:
    """Create the topics that do not exist yet, and check those that do."""
    import time

    from adapters.kafka import create_topics
    from adapters.topic_config import check_topics, repair_topics

    settings = find_kafka()
    created = create_topics(settings)
    say(*(created or ["all topics exist"]))
    deadline = time.monotonic() + NEW_TOPIC_KNOWN_WITHIN_S
    problems = check_topics(settings)
    # Brokers do not all learn of a new topic at once.
    while any(p.topic in created for p in problems) and time.monotonic() < deadline:
        time.sleep(0.2)
        problems = check_topics(settings)
    if repair:
        repair_topics(settings, problems)
        problems = check_topics(settings)
    _show_topic_problems(settings, problems)


@app.command("check")
def check(as_json: AsJson = False) -> None:
    """Check the topics' configuration without changing anything."""
    from dataclasses import asdict

    from adapters.topic_config import check_topics, is_fatal

    settings = find_kafka()
    problems = check_topics(settings)
    if as_json:
        say_json([asdict(problem) for problem in problems])
        raise typer.Exit(int(is_fatal(problems)))
    if not problems:
        say("all topics are configured correctly")
    _show_topic_problems(settings, problems)


def _show_topic_problems(settings: Settings, problems: Sequence[Problem]) -> None:
    from adapters.topic_config import describe, is_fatal

    if problems:
        say(*describe(problems, settings).splitlines(), is_error=True)
    if is_fatal(problems):
        raise typer.Exit(1)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show which events travel on which topic."""
    from schemas import topics

    if as_json:
        table = {t: [c.__name__ for c in cs] for t, cs in topics.EVENTS.items()}
        say_json(table)
        return
    for topic, events in topics.EVENTS.items():
        say(f"{topic:<18} {', '.join(event.__name__ for event in events)}")
