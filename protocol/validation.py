"""What a well-formed event must look like beyond its Avro types.

Runs once an event's signature is checked and before anything acts on it (validate
before you parse further), and is the same for the sequencer and the audit.
"""

from __future__ import annotations

import json
import re
from dataclasses import astuple
from enum import StrEnum
from typing import Final, TypeAlias

from ledger.policy import BFT_GROUP, NO_QUORUM
from protocol.clipping import compute_min_norm_bound
from protocol.configuration import (
    MODES,
    get_comparison,
    get_reward_rule,
    list_modes,
    list_parties,
)
from protocol.modes.mpc.far_pairs import (
    MAX_FAR_THRESHOLD,
    MIN_COMPARED,
    compute_num_pairs,
)
from protocol.tensors import compute_json_depth
from schemas import events as e
from schemas.reasons import Reason

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
IMPORT_PATH: Final = re.compile(
    # ASCII: what else is a letter depends on the Unicode version of whoever asks.
    r"[A-Za-z_][\w.]{0,198}:[A-Za-z_]\w{0,98}",
    re.ASCII,
)
BLOB_URI: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,62}/sha256/[0-9a-f]{64}")
REFUSAL_CODE: Final = re.compile(r"[A-Z_]{1,64}")
MAX_TEXT_LENGTH: Final = 500
MAX_CONFIG_SIZE_BYTES: Final = 8_192
"""A round's start carries both configurations and a cohort; it must fit a leaf."""
MAX_CONFIG_DEPTH: Final = 32
"""Every JSON parser can nest this deep; where one gives up must not matter."""
MAX_CHECKS: Final = 100
MAX_CHECK_DETAIL_BYTES: Final = 400
"""So many that a hundred of them fit an event."""
MAX_ROUND_DURATION_MS: Final = 366 * 24 * 60 * 60 * 1_000  # = 31,622,400,000
MILLION: Final = 1_000_000
BLOB_REASONS: Final = frozenset(
    {
        Reason.MISSING_BLOB,
        Reason.OVERSIZED_BLOB,
        Reason.CORRUPT_BLOB,
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
"""The metric that rewards go by: the fraction of examples answered right."""
MAX_FRACTIONAL_BITS: Final = 30
MAX_AGENTS_IN_COHORT: Final = 10_000
MAX_WEIGHT: Final = 2**30
"""Of all contributions of a round: every |x| is below 2**31, so |sum| < 2**61, and the
ring sum is exact."""
MAX_COMPARED: Final = 256
"""Updates that the parties compare, each with each: what they say has a bit a pair."""
MAX_NUM_EXAMPLES: Final = 2**22
MAX_NUM_PARAMETERS: Final = 2**31
#: Of a model: float32 of all parameters, and as many bytes again of other entries.
MAX_MODEL_SIZE_BYTES: Final = 2 * 4 * MAX_NUM_PARAMETERS  # = 17,179,869,184
_CONFIG_RULE: Final = (
    "module_config and data_config must be JSON objects of at most "
    f"{MAX_CONFIG_SIZE_BYTES} bytes, nested at most {MAX_CONFIG_DEPTH} deep"
)
MAX_LEDGER_NODES: Final = 64
"""More signatures than these do not fit a certificate that fits a leaf."""
NODE_URL: Final = re.compile(
    r"https?://[a-zA-Z0-9.:\[\]_-]{1,200}(?:/[\w./-]{0,200})?", re.ASCII
)
ADDRESS: Final = re.compile(
    r"(?:[a-zA-Z0-9._-]{1,200}|\[[0-9a-fA-F:.]{2,64}\]):[1-9][0-9]{0,4}", re.ASCII
)
MAX_CHECKPOINT_SIZE_BYTES: Final = 16_384
MAX_EVIDENCE_SIZE_BYTES: Final = 16_384
MAX_POINTS: Final = 1_000_000_000
MAX_PARTIES: Final = 16
MAX_NORM_BOUND: Final = 2**19 - 1
"""So every value of an update is below 2**19 in magnitude, as the norm proof needs."""
MAX_SECRET_PARAMETERS: Final = 2**24 - 2**13  # = 16,769,024
"""What the norm proof's bounds against wraparound hold for: see
`protocol.modes.mpc.norm_proof`."""
SEALING_KEY_SIZES: Final = frozenset({32, 1_216})
"""X25519 (RFC 7748), and ML-KEM-768 with X25519 (X-Wing)."""
MIN_SECRET_COHORT: Final = 2
"""The sum of one update is that update."""
MAX_FAR_SIZE_BYTES: Final = (compute_num_pairs(MAX_COMPARED) + 7) // 8
REQUIRED_ROLES: Final = ("OPERATOR", "SEQUENCER", "DECIDER", "AGGREGATOR", "TIMER")
OPTIONAL_ROLES: Final = ("EXPORTER",)
"""Without an exporter no model is registered, so none is exported or earns by it."""
ROLES: Final = REQUIRED_ROLES + OPTIONAL_ROLES


class Direction(StrEnum):
    """Which values of a metric are better."""

    HIGHER = "HIGHER"
    LOWER = "LOWER"


def find_problem(event: e.LedgerEvent) -> str | None:
    """Return what is wrong with an event's fields, for people; None if nothing is."""
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
            | e.PartyDeclined(detail=text)
        ) if len(text) > MAX_TEXT_LENGTH:
            return f"a text is longer than {MAX_TEXT_LENGTH} characters"
        case (
            e.UpdateSubmitted(num_examples=num_examples)
            | e.UpdateCommitted(num_examples=num_examples)
        ) if num_examples < 1:
            return "num_examples must be at least 1"
        case e.UpdateSubmitted(update=blob):
            return _blob_problem(blob)
        case e.ModelExported():
            return _export_problem(event)
        case e.UpdateCommitted(commitments=blob, shares=shares, proof=proof):
            if len(shares) > MAX_PARTIES:
                return f"at most {MAX_PARTIES} shares"
            blobs = [blob, *(share.sealed for share in shares), proof]
            return next(filter(None, map(_blob_problem, blobs)), None)
        case e.PartialAggregateSubmitted(partial=blob):
            return _blob_problem(blob)
        case e.SharesLinked(links=blob, noise=noise):
            blobs = [blob] if noise is None else [blob, noise.commitments, noise.proof]
            return next(filter(None, map(_blob_problem, blobs)), None)
        case e.PartyDeclined(reason=code) if REFUSAL_CODE.fullmatch(code) is None:
            return "reason must be 1 to 64 of A-Z and _"
        case e.UpdatesCompared(far=far) if len(far) > MAX_FAR_SIZE_BYTES:
            return f"far has {len(far)} bytes; at most {MAX_FAR_SIZE_BYTES}"
        case e.AggregateSubmitted(sum=total, model=model):
            return _blob_problem(total) or _blob_problem(model)
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
            return None


Problem: TypeAlias = tuple[Reason, str]
"""Which rule, and what is wrong, for people."""


def find_configuration_problem(config: e.FederationConfigured) -> Problem | None:
    """Return what is wrong with a federation's parameters; None if nothing is."""
    problem = find_principals_problem(config)
    if problem is not None:
        return problem
    sections = (
        (Reason.NOT_ONE_MODE, _modes_problem),
        (Reason.INVALID_CONFIGURATION, _numbers_problem),
        (Reason.INVALID_TASK, _task_problem),
        (Reason.INVALID_LEDGER_NODES, _first_nodes_problem),
        (Reason.INVALID_PARTIES, _parties_problem),
        (Reason.INVALID_COMPARISON, _comparison_problem),
        (Reason.INVALID_REWARD_RULE, _rewards_problem),
        (Reason.INVALID_CONFIGURATION, _initial_model_problem),
    )
    for reason, find in sections:
        detail = find(config)
        if detail is not None:
            return reason, detail
    return None


def find_principals_problem(config: e.FederationConfigured) -> Problem | None:
    """Return what is wrong with who may sign what; None if nothing is."""
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
        (config.strategy == "FEDAVG", "strategy must be FEDAVG"),
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


def _parties_problem(config: e.FederationConfigured) -> str | None:
    mpc = config.mpc
    if mpc is None:
        return None
    parties = mpc.parties
    names = [party.name for party in parties]
    keys = {party.public_key for party in parties}
    sealing_keys = {party.sealing_key for party in parties}
    if not 2 <= len(parties) <= MAX_PARTIES:  # noqa: PLR2004  # one party sees it all
        return f"aggregation MPC needs 2 to {MAX_PARTIES} parties"
    if names != sorted(set(names)) or any(NAME.fullmatch(n) is None for n in names):
        return "parties must be in ascending order of name, 1 to 64 of a-z 0-9 . _ -"
    if len(keys) != len(parties) or len(sealing_keys) != len(parties):
        return "every party has keys of its own"
    if any(len(party.sealing_key) not in SEALING_KEY_SIZES for party in parties):
        return "a party's sealing_key must have 32 or 1,216 bytes"
    if any(
        party.address and ADDRESS.fullmatch(party.address) is None for party in parties
    ):
        return "a party's address must be host:port"
    if not 1 <= config.num_parameters <= MAX_SECRET_PARAMETERS:
        return f"num_parameters must be 1 to {MAX_SECRET_PARAMETERS} with MPC"
    smallest = compute_min_norm_bound(config.num_parameters)
    if not smallest <= mpc.norm_bound <= MAX_NORM_BOUND:
        return (
            f"norm_bound must be {smallest} to {MAX_NORM_BOUND} for "
            f"{config.num_parameters} parameters, or rounding alone exceeds it"
        )
    if config.min_cohort < MIN_SECRET_COHORT:
        return f"min_cohort must be at least {MIN_SECRET_COHORT} with aggregation MPC"
    return None


def _comparison_problem(config: e.FederationConfigured) -> str | None:
    """Return what is wrong with how the parties compare updates, if they do."""
    comparison, parties = get_comparison(config), list_parties(config)
    if comparison is None:
        return None
    if not 1 <= comparison.far_threshold <= MAX_FAR_THRESHOLD:
        return f"far_threshold must be 1 to {MAX_FAR_THRESHOLD}"
    if any(party.public_key == comparison.dealer_key for party in parties):
        return "comparing updates needs a dealer with a key of its own"
    addresses = {party.address for party in parties}
    if "" in addresses or len(addresses) != len(parties):
        return "to compare updates every party needs an address of its own"
    if config.min_cohort < MIN_COMPARED or config.cohort_size > MAX_COMPARED:
        return (
            f"cohorts must be of {MIN_COMPARED} to {MAX_COMPARED} agents to compare "
            "their updates"
        )
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
    if exported.onnx is not None and (problem := _blob_problem(exported.onnx)):
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
    return _blob_problem(config.initial_model)


def _blob_problem(blob: e.BlobRef) -> str | None:
    if blob.size_bytes < 1:
        return "a blob's size_bytes must be at least 1"
    if BLOB_URI.fullmatch(blob.uri) is None or blob.uri[-64:] != blob.sha256.hex():
        return "a blob's uri must be s3://<bucket>/sha256/<hex of its sha256>"
    return None


def _is_json_object(text: str) -> bool:
    if len(text.encode(errors="replace")) > MAX_CONFIG_SIZE_BYTES:
        return False
    if compute_json_depth(text) > MAX_CONFIG_DEPTH:
        return False
    try:
        # Numbers stay text: how many digits Python converts is a setting of its own.
        parsed = json.loads(
            text, parse_constant=_refuse_constant, parse_int=str, parse_float=str
        )
        return isinstance(parsed, dict)
    except ValueError:
        return False


def _refuse_constant(name: str) -> None:
    msg = f"{name} is not JSON"  # RFC 8259 section 6; Python alone reads NaN
    raise ValueError(msg)
