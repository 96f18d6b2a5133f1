"""Rules for well-formed events beyond their Avro types.

Runs after an event's signature is checked and before anything acts on it (validate
before you parse further), identically in sequencer and audit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import astuple
from enum import StrEnum
from typing import Final

from ledger.policy import BFT_GROUP, NO_QUORUM
from protocol.configuration import get_reward_rule
from protocol.encoding import MAX_FRACTIONAL_BITS, MILLION
from protocol.fields import NAME, find_blob_problem, find_text_problem
from protocol.modes import MODES, get_mode, list_kinds, list_modes
from protocol.modes.problem import Problem
from protocol.strategies import STRATEGIES, find_parameters_problem
from protocol.tensors import compute_json_depth
from schemas import events as e
from schemas.reasons import Reason

IMPORT_PATH: Final = re.compile(
    # ASCII: other letters depend on the reader's Unicode version.
    r"[A-Za-z_][\w.]{0,198}:[A-Za-z_]\w{0,98}",
    re.ASCII,
)
MAX_CONFIG_SIZE_BYTES: Final = 8_192
"""A round's start carries both configurations and a cohort; it must fit a leaf."""
MAX_CONFIG_DEPTH: Final = 32
"""Every JSON parser can nest this deep; parsers' own limits must not matter."""
MAX_CHECKS: Final = 100
MAX_CHECK_DETAIL_BYTES: Final = 400
"""So that a hundred of them fit an event."""
MAX_ROUND_DURATION_MS: Final = 366 * 24 * 60 * 60 * 1_000  # = 31,622,400,000
STORE_REASONS: Final = frozenset(
    {Reason.MISSING_BLOB, Reason.OVERSIZED_BLOB, Reason.CORRUPT_BLOB}
)
"""What an aggregator may say about what the store had: nobody can check it later."""
BLOB_REASONS: Final = STORE_REASONS | frozenset(
    {
        Reason.MALFORMED_BLOB,
        Reason.WRONG_SHAPE,
        Reason.WRONG_DTYPE,
        Reason.NOT_FINITE,
        Reason.OUT_OF_RANGE,
    }
)
"""What an aggregator may say about a blob."""
CHECK_REASONS: Final = BLOB_REASONS | {
    Reason.INVALID_PROOF,
    Reason.BAD_SHARE,
    Reason.SHARES_DIFFER,
    Reason.WRONG_PARTIAL,
    Reason.WRONG_SUM,
}
"""What it may say about all that it checks."""
EXPORT_REASONS: Final = frozenset({"", Reason.NOT_EXPORTABLE, Reason.NOT_MEASURED})
"""Why a version may be without ONNX or metrics."""
METRIC_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}")
MAX_METRICS: Final = 64
ACCURACY: Final = "accuracy"
"""The metric behind rewards: the fraction of examples classified correctly."""
MAX_AGENTS_IN_COHORT: Final = 10_000
MAX_WEIGHT: Final = 2**30
"""Of all contributions of a round: every |x| is below 2**31, so |sum| < 2**61, and the
ring sum is exact."""
MAX_NUM_EXAMPLES: Final = 2**22
MAX_NUM_PARAMETERS: Final = 2**31
#: Of a model: float32 of all parameters, and as many bytes again of other entries.
MAX_MODEL_SIZE_BYTES: Final = 2 * 4 * MAX_NUM_PARAMETERS  # = 17,179,869,184
_CONFIG_RULE: Final = (
    "module_config and data_config must be JSON objects of at most "
    f"{MAX_CONFIG_SIZE_BYTES} bytes, nested at most {MAX_CONFIG_DEPTH} deep"
)
MAX_LEDGER_NODES: Final = 64
"""More signatures than this would not fit a certificate in a leaf."""
NODE_URL: Final = re.compile(
    r"https?://[a-zA-Z0-9.:\[\]_-]{1,200}(?:/[\w./-]{0,200})?", re.ASCII
)
MAX_CHECKPOINT_SIZE_BYTES: Final = 16_384
MAX_EVIDENCE_SIZE_BYTES: Final = 16_384
MAX_POINTS: Final = 1_000_000_000
REQUIRED_ROLES: Final = ("OPERATOR", "SEQUENCER", "DECIDER", "AGGREGATOR", "TIMER")
OPTIONAL_ROLES: Final = ("EXPORTER",)
"""Without an exporter no model is registered, so none is exported or earns by it."""
ROLES: Final = REQUIRED_ROLES + OPTIONAL_ROLES


class Direction(StrEnum):
    """Which values of a metric are better."""

    HIGHER = "HIGHER"
    LOWER = "LOWER"


def find_problem(event: e.LedgerEvent) -> str | None:
    """Return what is wrong with an event's fields; None if nothing."""
    name_problem = _names_problem(event)
    if name_problem is not None:
        return name_problem
    match event:
        case e.FederationConfigured():
            problem = find_configuration_problem(event)
            return None if problem is None else problem[1]
        case e.FederationChanged(number=number) if number < 1:
            return "number must be at least 1"
        case (
            e.AgentRevoked(explanation=text)
            | e.RoundAbandonRequested(explanation=text)
            | e.UpdateDeclined(detail=text)
        ):
            return find_text_problem(text)
        case e.ModelExported():
            return _export_problem(event)
        case e.AggregateSubmitted(sum=total, model=model, state=state):
            blobs = (total, model) if state is None else (total, model, state)
            return next(filter(None, map(find_blob_problem, blobs)), None)
        case e.UpdatesChecked(results=results):
            return _checks_problem(results)
        case e.NodeSetChanged(era=era, nodes=nodes):
            if era < 1:
                return "era must be at least 1"
            return _nodes_problem(nodes) or (
                None if nodes else "a federation with ledger nodes keeps some"
            )
        case e.FinalityRequested(height=height) if height < 0:
            return "height must be at least 0"
        case e.CheckpointFinalised(checkpoint=text) if (
            len(text.encode(errors="replace")) > MAX_CHECKPOINT_SIZE_BYTES
        ):
            return f"a checkpoint is larger than {MAX_CHECKPOINT_SIZE_BYTES} bytes"
        case e.EquivocationProven(messages=messages) if (
            not 2 <= len(messages) <= 3  # noqa: PLR2004  # the schema says so
            or any(len(m) > MAX_EVIDENCE_SIZE_BYTES for m in messages)
        ):
            return (
                "messages must be two or three, each of at most "
                f"{MAX_EVIDENCE_SIZE_BYTES} bytes"
            )
        case _ if isinstance(event, e.Fact) and (
            event.cause_leaf_index < 0 or event.output_index < 0
        ):
            return "cause_leaf_index and output_index must be at least 0"
        case _:
            find = list_kinds().fields.get(type(event))
            return None if find is None else find(event)


def find_configuration_problem(config: e.FederationConfigured) -> Problem | None:
    """Return what is wrong with a federation's parameters; None if nothing."""
    problem = find_principals_problem(config)
    if problem is not None:
        return problem
    return (
        _find_first(
            config,
            (Reason.NOT_ONE_MODE, _modes_problem),
            (Reason.INVALID_CONFIGURATION, _numbers_problem),
            (Reason.INVALID_CONFIGURATION, _strategy_problem),
            (Reason.INVALID_TASK, _task_problem),
            (Reason.INVALID_LEDGER_NODES, _first_nodes_problem),
        )
        or get_mode(config).find_configuration_problem(config)
        or _find_first(
            config,
            (Reason.INVALID_REWARD_RULE, _rewards_problem),
            (Reason.INVALID_CONFIGURATION, _initial_model_problem),
        )
    )


def _find_first(
    config: e.FederationConfigured,
    *sections: tuple[Reason, Callable[[e.FederationConfigured], str | None]],
) -> Problem | None:
    for reason, find in sections:
        detail = find(config)
        if detail is not None:
            return reason, detail
    return None


def find_principals_problem(config: e.FederationConfigured) -> Problem | None:
    """Return what is wrong with the list of principals; None if nothing."""
    roles = [principal.role for principal in config.principals]
    unknown = {*roles} - {*ROLES}
    missing = [role for role in REQUIRED_ROLES if role not in roles]
    if unknown or missing or len({*roles}) != len(roles):
        detail = (
            f"principals must be each of {', '.join(REQUIRED_ROLES)} once, and may be "
            f"each of {', '.join(OPTIONAL_ROLES)} once"
        )
        return Reason.INVALID_PRINCIPALS, detail
    return None


def _modes_problem(config: e.FederationConfigured) -> str | None:
    found = list_modes(config)
    if len(found) != 1:
        return f"exactly one of {', '.join(MODES)} must be there; found {found}"
    return None


def _numbers_problem(config: e.FederationConfigured) -> str | None:
    rules = (
        (any(config.nonce), "nonce must be random bytes, not zeros"),
        (config.rules_version >= 1, "rules_version must be at least 1"),
        (
            1 <= config.num_parameters <= MAX_NUM_PARAMETERS,
            "num_parameters must be 1 to 2**31",
        ),
        (
            0 <= config.fractional_bits <= MAX_FRACTIONAL_BITS,
            f"fractional_bits must be 0 to {MAX_FRACTIONAL_BITS}",
        ),
        (
            1 <= config.max_num_examples <= MAX_NUM_EXAMPLES,
            f"max_num_examples must be 1 to {MAX_NUM_EXAMPLES}",
        ),
        (config.min_cohort >= 1, "min_cohort must be at least 1"),
        (
            config.min_cohort <= config.cohort_size <= MAX_AGENTS_IN_COHORT,
            f"cohort_size must be min_cohort to {MAX_AGENTS_IN_COHORT}",
        ),
        (
            config.cohort_size * config.max_num_examples <= MAX_WEIGHT,
            f"cohort_size times max_num_examples must be at most {MAX_WEIGHT}",
        ),
        (
            1 <= config.round_duration_ms <= MAX_ROUND_DURATION_MS,
            f"round_duration_ms must be 1 to {MAX_ROUND_DURATION_MS}",
        ),
    )
    return next((message for holds, message in rules if not holds), None)


def _strategy_problem(config: e.FederationConfigured) -> str | None:
    strategy = STRATEGIES.get(config.strategy)
    if strategy is None:
        return f"strategy must be {' or '.join(STRATEGIES)}"
    return find_parameters_problem(strategy, config.strategy_parameters)


def _task_problem(config: e.FederationConfigured) -> str | None:
    task = config.task
    if task.local_epochs < 1:
        return "local_epochs must be at least 1"
    if any(
        IMPORT_PATH.fullmatch(path) is None for path in (task.module, task.data_module)
    ):
        return "module and data_module must be import paths, package.module:Class"
    if not (_is_json_object(task.module_config) and _is_json_object(task.data_config)):
        return _CONFIG_RULE
    return None


def _first_nodes_problem(config: e.FederationConfigured) -> str | None:
    if config.ledger_nodes is None:
        return None
    nodes = config.ledger_nodes.nodes
    return _nodes_problem(nodes) if nodes else "ledger_nodes must name some, or be null"


def _nodes_problem(nodes: tuple[e.LedgerNode, ...]) -> str | None:
    names = [node.name for node in nodes]
    keys = {node.public_key for node in nodes}
    if len(nodes) > MAX_LEDGER_NODES:
        return f"at most {MAX_LEDGER_NODES} ledger nodes"
    if names != sorted(set(names)) or len(keys) != len(nodes):
        return "ledger nodes must be in ascending order of name, names and keys unique"
    if any(NAME.fullmatch(n) is None or n in {BFT_GROUP, NO_QUORUM} for n in names):
        return (
            "a ledger node's name must be 1 to 64 of a-z 0-9 . _ -, "
            f"not {BFT_GROUP} or {NO_QUORUM}: they mean something in policies"
        )
    if any(node.url and NODE_URL.fullmatch(node.url) is None for node in nodes):
        return "a ledger node's url must be http:// or https://, host and path alone"
    return None


def _rewards_problem(config: e.FederationConfigured) -> str | None:
    if any(
        not 0 <= points <= MAX_POINTS for points in astuple(get_reward_rule(config))
    ):
        return f"every value of reward_rule must be 0 to {MAX_POINTS}"
    return None


def _names_problem(event: e.LedgerEvent) -> str | None:
    if NAME.fullmatch(event.federation_id) is None and not isinstance(
        event, e.EventRejected
    ):
        return "federation_id must be 1 to 64 of a-z 0-9 . _ -, ends alphanumeric"
    agent_id = getattr(event, "agent_id", None)
    if agent_id is not None and NAME.fullmatch(agent_id) is None:
        return "agent_id must be 1 to 64 of a-z 0-9 . _ -, ends alphanumeric"
    lowest = 0 if isinstance(event, e.BalanceChanged) else 1
    if getattr(event, "round", 1) < lowest:
        return f"round must be at least {lowest}"
    return None


def _checks_problem(results: tuple[e.UpdateCheck, ...]) -> str | None:
    if not 1 <= len(results) <= MAX_CHECKS:
        return f"results must be 1 to {MAX_CHECKS}"
    indexes = [result.leaf_index for result in results]
    if indexes != sorted(set(indexes)):
        return "results must be in ascending order of leaf_index"
    if any(
        len(result.detail.encode(errors="replace")) > MAX_CHECK_DETAIL_BYTES
        for result in results
    ):
        return f"a detail is longer than {MAX_CHECK_DETAIL_BYTES} bytes"
    if any(result.reason not in {"", *CHECK_REASONS} for result in results):
        return "a reason must be empty or say what is wrong with a blob"
    return None


def _export_problem(exported: e.ModelExported) -> str | None:
    for found, reason in (
        (exported.onnx, exported.no_onnx),
        (exported.evaluation, exported.no_evaluation),
    ):
        if (reason == "") != (found is not None) or reason not in EXPORT_REASONS:
            return "what is absent has a reason, what is there has none"
    if exported.onnx is not None and (problem := find_blob_problem(exported.onnx)):
        return problem
    if exported.evaluation is None:
        return None
    metrics = exported.evaluation.metrics
    names = [metric.name for metric in metrics]
    if exported.evaluation.num_examples < 1:
        return "num_examples must be at least 1"
    if not 1 <= len(names) <= MAX_METRICS or names != sorted(set(names)):
        return f"metrics must be 1 to {MAX_METRICS}, in ascending order of name"
    if any(METRIC_NAME.fullmatch(name) is None for name in names):
        return "a metric's name must be 1 to 64 of A-Z a-z 0-9 . _ / -"
    if any(metric.direction not in set(Direction) for metric in metrics):
        return "a metric's direction must be HIGHER or LOWER"
    for metric in metrics:
        if metric.name == ACCURACY and (
            metric.direction != Direction.HIGHER
            or not 0 <= metric.value_micros <= MILLION
        ):
            return f"{ACCURACY} must be 0 to {MILLION} millionths, HIGHER"
    return None


def _initial_model_problem(config: e.FederationConfigured) -> str | None:
    # Everybody fetches models of this size.
    if config.initial_model.size_bytes > MAX_MODEL_SIZE_BYTES:
        return f"the initial model must be at most {MAX_MODEL_SIZE_BYTES} bytes"
    return find_blob_problem(config.initial_model)


def _is_json_object(text: str) -> bool:
    if len(text.encode(errors="replace")) > MAX_CONFIG_SIZE_BYTES:
        return False
    if compute_json_depth(text) > MAX_CONFIG_DEPTH:
        return False
    try:
        # Numbers stay text: Python's limit on digits is a setting of its own.
        parsed = json.loads(
            text, parse_constant=_refuse_constant, parse_int=str, parse_float=str
        )
        return isinstance(parsed, dict)
    except ValueError:
        return False


def _refuse_constant(name: str) -> None:
    msg = f"{name} is not JSON"  # RFC 8259 section 6; Python alone reads NaN
    raise ValueError(msg)
