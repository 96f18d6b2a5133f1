"""How Kafka's topics are configured, compared with how they must be.

The cluster's owner may have made them differently, or changed them since, and Kafka
deletes silently. So every writer asks first. Nothing here changes a topic unless told
to.

FATAL    what was acknowledged can be lost, or nothing of a kind can be written at all
WARNING  it costs something else, or Kafka does not say
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its public names
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from adapters.kafka import (
    ANSWER_TIMEOUT_S,
    KafkaUnavailableError,
    describe_kafka,
    make_admin,
    make_away,
)
from adapters.settings import Settings
from schemas import topics

log = logging.getLogger(__name__)

MAX_SHOWN: Final = 200
"""Characters shown of a value; no correct one is so long."""
_CANNOT_SAY: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError._UNSUPPORTED_FEATURE,  # noqa: SLF001  # its public name
        KafkaError.INVALID_REQUEST,
    }
)
"""Somebody else's cluster may forbid the question, or not know it."""


class Weight(StrEnum):
    """What a problem costs."""

    FATAL = "FATAL"
    WARNING = "WARNING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a topic.

    Attributes:
        topic: The topic.
        name: The configuration's key, or the property at fault.
        found: Its value; empty if Kafka does not say.
        wanted: Its right value.
        why: What happens otherwise, as text.
        weight: What it costs.
        setting: The value that cures it; None if no configuration does.
    """

    topic: str
    name: str
    found: str
    wanted: str
    why: str
    weight: Weight
    setting: str | None = None

    def __str__(self) -> str:
        found = f"is {self.found}" if self.found else "is not known"
        return (
            f"{self.weight}: {self.topic}: {self.name} {found}, must be "
            f"{self.wanted}: {self.why}"
        )


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic as Kafka describes it.

    Attributes:
        num_partitions: Its partitions; None if Kafka does not say, 0 if it is missing.
        num_replicas: The fewest of any partition.
        config: The effective configuration, cluster defaults included; None if Kafka
            does not say.
    """

    num_partitions: int | None
    num_replicas: int = 1
    config: Mapping[str, str | None] | None = None


class TopicConfigError(Exception):
    """The topics could lose acknowledged records; says how to cure it."""


# What must hold


def find_problems(
    found: Mapping[str, FoundTopic], *, num_brokers: int = 1
) -> list[Problem]:
    """Return what is wrong, topic by topic.

    Args:
        found: What Kafka says about every topic of `schemas.topics.EVENTS`.
        num_brokers: How many brokers there are.
    """
    ledger = found.get(topics.LEDGER, FoundTopic(None)).num_partitions
    problems: list[Problem] = []
    for topic, facts in found.items():
        if facts.num_partitions == 0:
            problems.append(_missing(topic))
            continue
        problems += _judge_places(topic, facts, ledger, num_brokers)
        if facts.config is None:
            problems.append(_unknown(topic, "configuration", "DescribeConfigs"))
        else:
            problems += _judge_config(topic, facts, facts.config)
    # Nothing is lost for want of a heartbeat.
    return [
        replace(problem, weight=Weight.WARNING)
        if problem.topic == topics.HEARTBEATS
        else problem
        for problem in problems
    ]


def _missing(topic: str) -> Problem:
    return Problem(
        topic=topic,
        name="existence",
        found="missing",
        wanted="there",
        why="`moot topics create` makes it",
        weight=Weight.FATAL,
    )


def _unknown(topic: str, name: str, right: str) -> Problem:
    return Problem(
        topic=topic,
        name=name,
        found="",
        wanted="as in docs/reference/topics.md",
        why=f"Kafka does not say, which takes the right {right}: have its operator "
        "compare",
        weight=Weight.WARNING,
    )


def _judge_places(
    topic: str, facts: FoundTopic, ledger: int | None, num_brokers: int
) -> Iterator[Problem]:
    number = facts.num_partitions
    if number is None:
        yield _unknown(topic, "number of partitions", "Describe")
        return
    if ledger and number != ledger:
        cure = (
            f"kafka-topics.sh --alter --topic {topic} --partitions {ledger} adds some"
            if number < ledger
            else "it must be deleted and made again, which is safe only without "
            "records of a federation"
        )
        yield Problem(
            topic=topic,
            name="number of partitions",
            found=str(number),
            wanted=f"{ledger}, as {topics.LEDGER} has",
            why=f"a federation's records would be in partitions where nobody looks; "
            f"{cure}",
            weight=Weight.FATAL,
        )
    if facts.num_replicas < topics.MIN_REPLICAS <= num_brokers:
        yield Problem(
            topic=topic,
            name="number of replicas",
            found=str(facts.num_replicas),
            wanted=f"{topics.MIN_REPLICAS} or more",
            why="a broker's disk could be the only one with a record that was "
            "acknowledged; kafka-reassign-partitions.sh adds some",
            weight=Weight.WARNING,
        )


def _judge_config(
    topic: str, facts: FoundTopic, config: Mapping[str, str | None]
) -> Iterator[Problem]:
    wanted = topics.config_of(topic)
    missing = [name for name in wanted if config.get(name) is None]
    for name in missing:
        yield _unknown(topic, name, "DescribeConfigs; some clusters hide keys")

    def wrong(name: str, must: str, why: str, weight: Weight) -> Problem:
        return Problem(
            topic=topic,
            name=name,
            found=config.get(name) or "",
            wanted=must,
            why=why,
            weight=weight,
            setting=wanted[name],
        )

    policy = config.get("cleanup.policy")
    policies = {part.strip() for part in (policy or "").split(",")} - {"", "none"}
    if topic == topics.HEARTBEATS:
        if "compact" not in policies:
            why = "readers would have to read every heartbeat to find the last ones"
            must = wanted["cleanup.policy"]
            yield wrong("cleanup.policy", must, why, Weight.WARNING)
        return
    if "compact" in policies:
        why = (
            "Kafka would keep only each federation's last record. No setting brings "
            "back what it has deleted: audit"
        )
        yield wrong("cleanup.policy", "delete", why, Weight.FATAL)
    # A topic without a policy deletes nothing (Kafka 4.2).
    if policy is None or policies:
        yield from _judge_retention(topic, config, wrong)
    yield from _judge_size(topic, config, wrong)
    packed = config.get("compression.type")
    if packed not in {None, "producer"}:
        why = "the broker unpacks and packs every batch, whoever made it"
        yield wrong("compression.type", "producer", why, Weight.WARNING)
    unclean = (config.get("unclean.leader.election.enable") or "").lower()
    if unclean == "true" and facts.num_replicas > 1:
        why = (
            "a replica that lags could become the leader: what was acknowledged is "
            "lost, and its offsets are given again"
        )
        yield wrong("unclean.leader.election.enable", "false", why, Weight.FATAL)
    yield from _judge_in_sync(topic, facts, config)


def _judge_retention(
    topic: str, config: Mapping[str, str | None], wrong: Any
) -> Iterator[Problem]:
    if _number(config, "retention.bytes") not in {None, -1}:
        why = "Kafka deletes by size: whoever writes most decides when"
        yield wrong("retention.bytes", topics.FOR_EVER, why, Weight.FATAL)
    retention_ms = _number(config, "retention.ms")
    by_producer = config.get("message.timestamp.type") not in {None, "LogAppendTime"}
    kept_ms = retention_ms
    if retention_ms not in {None, -1} and topic in topics.KEPT_FOR_EVER:
        why = f"it is the record: Kafka would delete it after {_days(retention_ms)}"
        yield wrong("retention.ms", topics.FOR_EVER, why, Weight.FATAL)
    elif retention_ms not in {None, -1}:
        assert retention_ms is not None, "just excluded"
        if retention_ms < topics.MIN_KEPT_MS:
            why = (
                "what waits for the sequencer would be deleted after "
                f"{_days(retention_ms)}"
            )
            must = f"{topics.MIN_KEPT_MS} or more, or {topics.FOR_EVER}"
            yield wrong("retention.ms", must, why, Weight.FATAL)
        before_ms = _number(config, "message.timestamp.before.max.ms")
        kept_ms = retention_ms - (2**63 if before_ms is None else before_ms)
        if by_producer and kept_ms < topics.MIN_KEPT_MS:
            why = (
                "a record is deleted by its producer's clock: one that a device "
                "stamped 1970 goes before it is sequenced"
            )
            must = "LogAppendTime"
            yield wrong("message.timestamp.type", must, why, Weight.FATAL)
            by_producer = False  # said
    if by_producer:
        why = (
            "the broker refuses what a producer stamps more than "
            "message.timestamp.after.max.ms ahead of it"
        )
        yield wrong("message.timestamp.type", "LogAppendTime", why, Weight.WARNING)


def _judge_size(
    topic: str, config: Mapping[str, str | None], wrong: Any
) -> Iterator[Problem]:
    name = "max.message.bytes"
    size, must = _number(config, name), topics.config_of(topic)[name]
    if size is None:
        return
    if size < int(must):
        why = (
            "Kafka would refuse large blocks, and the sequencer could not go on"
            if topic == topics.LEDGER
            else "Kafka would refuse events that the protocol allows"
        )
        yield wrong(name, must, why, Weight.FATAL)
    elif size > int(must):
        why = "readers hold whole batches, whatever their size"
        yield wrong(name, must, why, Weight.WARNING)


def _judge_in_sync(
    topic: str, facts: FoundTopic, config: Mapping[str, str | None]
) -> Iterator[Problem]:
    name = "min.insync.replicas"
    in_sync = _number(config, name)
    if in_sync is None:
        return
    replicas = facts.num_replicas
    if in_sync > replicas:
        yield Problem(
            topic=topic,
            name=name,
            found=str(in_sync),
            wanted=f"at most {replicas}: there are {replicas} replicas",
            why="Kafka acknowledges nothing",
            weight=Weight.FATAL,
            setting=str(max(1, replicas - 1)),
        )
    elif replicas >= topics.MIN_REPLICAS and in_sync < topics.MIN_IN_SYNC:
        yield Problem(
            topic=topic,
            name=name,
            found=str(in_sync),
            wanted=f"{topics.MIN_IN_SYNC} or more",
            why="Kafka acknowledges what a single disk has",
            weight=Weight.WARNING,
            setting=str(topics.MIN_IN_SYNC),
        )


def _number(config: Mapping[str, str | None], name: str) -> int | None:
    try:
        return int(config.get(name) or "")
    except ValueError:
        return None


def _days(milliseconds: int | None) -> str:
    seconds = (milliseconds or 0) / 1_000
    return f"{seconds / 86_400:.1f} days" if seconds >= 86_400 else f"{seconds:.0f} s"  # noqa: PLR2004  # a day


# What is said


def is_fatal(problems: Iterable[Problem]) -> bool:
    """Return whether any can lose acknowledged records."""
    return any(problem.weight == Weight.FATAL for problem in problems)


def describe(problems: Sequence[Problem], settings: Settings) -> str:
    """Return the problems and their cures, as text."""
    lines = [str(problem) for problem in problems]
    cures = _find_cures(problems)
    if cures:
        lines.append("`moot topics create --repair` sets this, and so do:")
    for topic, values in cures.items():
        pairs = ",".join(f"{name}={value}" for name, value in values.items())
        lines.append(
            f"  kafka-configs.sh --bootstrap-server {settings.bootstrap_servers} "
            f"--alter --entity-type topics --entity-name {topic} --add-config {pairs}"
        )
    return "\n".join(lines)


def _find_cures(problems: Iterable[Problem]) -> dict[str, dict[str, str]]:
    cures: dict[str, dict[str, str]] = {}
    for problem in problems:
        if problem.setting is not None:
            cures.setdefault(problem.topic, {})[problem.name] = problem.setting
    return cures


# Asking Kafka


def check_topics(settings: Settings) -> list[Problem]:
    """Ask Kafka about the topics, and return what is wrong.

    Raises:
        KafkaUnavailableError: it does not answer.
    """
    admin = make_admin(settings)
    names = list(topics.EVENTS)
    try:
        num_brokers = len(
            admin.list_topics(topics.LEDGER, timeout=ANSWER_TIMEOUT_S).brokers
        )
        places = _describe(admin, names)
        present = [name for name in names if places[name].num_partitions != 0]
        configs = _read_configs(admin, present)
    except (KafkaException, TimeoutError) as error:
        raise make_away(settings, error) from error
    found = {
        name: FoundTopic(place.num_partitions, place.num_replicas, configs.get(name))
        for name, place in places.items()
    }
    return find_problems(found, num_brokers=num_brokers)


def _describe(admin: AdminClient, names: list[str]) -> dict[str, FoundTopic]:
    found = {}
    answers = admin.describe_topics(
        TopicCollection(names), request_timeout=ANSWER_TIMEOUT_S
    )
    for name, answer in answers.items():
        try:
            partitions = answer.result(ANSWER_TIMEOUT_S).partitions
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.UNKNOWN_TOPIC_OR_PART:
                found[name] = FoundTopic(0)
            elif code in _CANNOT_SAY:
                found[name] = FoundTopic(None)
            else:
                raise
        else:
            fewest = min(len(partition.replicas) for partition in partitions)
            found[name] = FoundTopic(len(partitions), fewest)
    return found


def _read_configs(
    admin: AdminClient, names: list[str]
) -> dict[str, dict[str, str | None]]:
    if not names:
        return {}
    found: dict[str, dict[str, str | None]] = {}
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    answers = admin.describe_configs(resources, request_timeout=ANSWER_TIMEOUT_S)
    for resource, answer in answers.items():
        try:
            entries = answer.result(ANSWER_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() not in _CANNOT_SAY:
                raise
        else:
            found[resource.name] = {
                name: _clean(entry.value) for name, entry in entries.items()
            }
    return found


def _clean(value: str | None) -> str | None:
    """Return a broker's text, safe for terminals and logs."""
    if value is None or (value.isascii() and value.isprintable()):
        return value and value[:MAX_SHOWN]
    return ascii(value[:MAX_SHOWN])


def demand_topics(settings: Settings) -> None:
    """Check that the topics keep acknowledged records; warn of other problems.

    Raises:
        TopicConfigError: they would lose some.
        KafkaUnavailableError: Kafka does not answer.
    """
    problems = check_topics(settings)
    if is_fatal(problems):
        fatal = [problem for problem in problems if problem.weight == Weight.FATAL]
        msg = "Kafka's topics are not safe to write to:\n" + describe(fatal, settings)
        raise TopicConfigError(msg)
    for problem in problems:
        log.warning("%s", problem)


def warn_of_topics(settings: Settings) -> None:
    """Log what is wrong, for processes that neither own the topics nor need them."""
    try:
        problems = check_topics(settings)
    except KafkaUnavailableError as error:
        log.warning("the topics' configuration could not be read: %s", error)
        return
    for problem in problems:
        level = logging.CRITICAL if problem.weight == Weight.FATAL else logging.WARNING
        log.log(level, "%s", problem)


def repair_topics(settings: Settings, problems: Iterable[Problem]) -> None:
    """Apply the configurations that cure problems, and nothing else.

    Raises:
        KafkaUnavailableError: Kafka did not apply them.
    """
    resources = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
                for name, value in values.items()
            ],
        )
        for topic, values in _find_cures(problems).items()
    ]
    if not resources:
        return
    admin = make_admin(settings)  # the requests end with it
    answers = admin.incremental_alter_configs(
        resources, request_timeout=ANSWER_TIMEOUT_S
    )
    for resource, answer in answers.items():
        try:
            answer.result(ANSWER_TIMEOUT_S)
        except (KafkaException, TimeoutError) as error:
            said = describe_kafka(error)
            msg = f"could not change topic {resource.name}: {said}"
            raise KafkaUnavailableError(msg) from error
