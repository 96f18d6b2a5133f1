"""Versions of the rules: deciders' conclusions may improve, old logs stay as they are.

A federation's configuration names the version of the rules that hold in its log, and an
operator's event may raise it, from its leaf on. Whoever moves a state (`decider.step`)
knows that version or stops: it could not check facts that another version concludes. So
a ledger node that does not know it attests nothing from there on, and an audit says
that it cannot judge.

A changed rule keeps its released variants side by side, in one place, as a mapping from
the version that brought each; `choose` picks the one that holds:

    DRAWS: Final = {1: draw_cohort, 4: draw_fairly}
    draw = choose(DRAWS, config.rules_version)

What concludes nothing (admission, how bytes are read) has no versions here: it changes
with schemas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

from schemas import codec
from schemas import events as e

KNOWN_VERSIONS: Final = range(1, 3)
"""All versions ever released, as known to this program."""
LATEST_VERSION: Final = KNOWN_VERSIONS[-1]

Rule = TypeVar("Rule")


class UnknownRulesError(Exception):
    """From here on a log follows rules that this version of the program lacks."""


def find_rules_problem(event: e.LedgerEvent) -> str | None:
    """Return why nothing can be concluded after an event; None if it can."""
    config: e.Event = event
    if isinstance(event, e.FederationChanged):
        try:
            config = codec.decode_as(e.FederationConfigured, event.configuration)
        except codec.CodecError:
            return None  # whatever follows from that, it is not this
    if not isinstance(config, e.FederationConfigured):
        return None
    version = config.rules_version
    if version in KNOWN_VERSIONS:
        return None
    return (
        f"version {version} of the rules is not known here, only up to "
        f"{LATEST_VERSION}: run a newer version of Folkmoot"
    )


def verify_rules(event: e.LedgerEvent, leaf_index: int) -> None:
    """Check that the rules that hold after a leaf are known.

    Raises:
        UnknownRulesError: they are not.
    """
    problem = find_rules_problem(event)
    if problem is not None:
        raise UnknownRulesError(f"leaf {leaf_index}: {problem}")


def choose(variants: Mapping[int, Rule], version: int) -> Rule:
    """Return the variant of a rule that holds under a version of the rules.

    Args:
        variants: Every released variant, by the version that brought it; one of them by
            version 1.
        version: The version that the configuration names, one of `KNOWN_VERSIONS`.
    """
    return variants[max(since for since in variants if since <= version)]
