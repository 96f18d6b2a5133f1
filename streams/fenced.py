"""What a service does when Kafka no longer takes it for the one that it is.

A producer of transactions is *fenced* once another began with its transactional id:
that keeps two processes from writing one log. But Kafka fences it likewise when a
transaction was open for too long (the process was suspended, the machine too busy), and
it forgets a producer that was silent for long enough. Either way nothing was committed,
and whoever starts now reads the same records again.

So the group is asked who reads what this process read. If another does, this process
has a rival, which has taken over, and ends. If nobody does, it joins again, as a fresh
process. It never goes on by itself: Kafka first makes it a member, gives it partitions
and a producer, and the log is read on from what is committed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from aiokafka import errors

from adapters import alive
from adapters.kafka import KafkaUnavailableError, Member, find_members
from adapters.settings import Settings

log = logging.getLogger(__name__)

_LOST: Final = (
    errors.ProducerFenced,
    errors.InvalidProducerEpoch,
    # It was silent for longer than Kafka remembers producers.
    errors.InvalidProducerIdMapping,
    errors.UnknownProducerId,
    errors.OutOfOrderSequenceNumber,
    errors.InvalidTxnState,
    # Said by a producer that has failed before, of whatever it is asked for.
    errors.IllegalOperation,
)


def is_lost(error: BaseException | None) -> bool:
    """Return whether an error means that a producer can do nothing more."""
    while error is not None:
        # aiokafka wraps what it did not expect in the class of all its errors.
        if isinstance(error, _LOST) or type(error) is errors.KafkaError:
            return True
        error = error.__cause__
    return False


def find_rival(
    members: Iterable[Member],
    *,
    member_id: str,
    instance_id: str,
    places: Iterable[tuple[str, int]],
) -> Member | None:
    """Return a member of the group that has taken a process's place. Pure.

    Args:
        members: The group's members.
        member_id: The process's own, the last that Kafka gave it.
        instance_id: Its own, which nobody else may have.
        places: The topics and partitions that it read.
    """
    own = frozenset(places)
    for member in members:
        if member.member_id == member_id:
            continue
        # While a group settles any other may become the one.
        if (
            member.instance_id == instance_id
            or member.places is None
            or member.places & own
        ):
            return member
    return None


def leave_or_join_again(settings: Settings, app: Any, reason: str) -> NoReturn:
    """End the process if it has a rival, and have it join again if it has none.

    Args:
        settings: Where Kafka is.
        app: The Faust app.
        reason: What happened, for the log.
    """
    group, instance_id = app.conf.id, app.conf.consumer_group_instance_id
    # Neither library has public names for these.
    coordinator = getattr(app.consumer._thread._consumer, "_coordinator", None)  # noqa: SLF001
    try:
        rival = find_rival(
            find_members(settings, group),
            member_id=getattr(coordinator, "member_id", ""),
            instance_id=instance_id,
            places=[(at.topic, at.partition) for at in app._assignment or ()],  # noqa: SLF001
        )
    except KafkaUnavailableError as error:
        log.critical("%s; whether another took over is unknown: %s", reason, error)
        alive.end_process()
    if rival is not None:
        log.critical(
            "%s, and %s at %s has taken over: this process ends. (Two processes of one "
            "service must not have the same MOOT_INSTANCE_ID.)",
            reason,
            rival.instance_id or rival.member_id,
            rival.host,
        )
        alive.end_process()
    log.critical("%s, and nobody has taken over: joining again", reason)
    alive.begin_again()
