"""Why something was refused: the codes that users, dashboards and audits see.

Avro carries them as strings, so that a new code is not a schema change; this is the
only list of them. ``docs/reference/reasons.md`` says what to do about each.
"""

from enum import StrEnum


class Reason(StrEnum):
    """A reason code."""

    # the sequencer, before an event is understood
    NO_VALUE = "NO_VALUE"
    TOO_LARGE = "TOO_LARGE"
    NOT_FRAMED = "NOT_FRAMED"
    UNKNOWN_SCHEMA = "UNKNOWN_SCHEMA"
    WRONG_TOPIC = "WRONG_TOPIC"
    MALFORMED_EVENT = "MALFORMED_EVENT"
    INVALID_FIELD = "INVALID_FIELD"
    # the sequencer, once it is
    WRONG_KEY = "WRONG_KEY"
    WRONG_PARTITION = "WRONG_PARTITION"
    UNKNOWN_FEDERATION = "UNKNOWN_FEDERATION"
    FEDERATION_EXISTS = "FEDERATION_EXISTS"
    INVALID_CONFIGURATION = "INVALID_CONFIGURATION"
    MISSING_SIGNATURE = "MISSING_SIGNATURE"
    BAD_SIGNATURE = "BAD_SIGNATURE"
    UNKNOWN_AGENT = "UNKNOWN_AGENT"
    REVOKED_AGENT = "REVOKED_AGENT"
    AGENT_EXISTS = "AGENT_EXISTS"
    DUPLICATE_EVENT = "DUPLICATE_EVENT"
    # the rounds decider
    ROUND_OPEN = "ROUND_OPEN"
    WRONG_ROUND = "WRONG_ROUND"
    NOT_ENOUGH_AGENTS = "NOT_ENOUGH_AGENTS"
    NOT_IN_COHORT = "NOT_IN_COHORT"
    WRONG_BASE_MODEL = "WRONG_BASE_MODEL"
    TOO_MANY_EXAMPLES = "TOO_MANY_EXAMPLES"
    DUPLICATE = "DUPLICATE"
    LATE = "LATE"
    NOT_ENOUGH_CONTRIBUTIONS = "NOT_ENOUGH_CONTRIBUTIONS"
    OPERATOR_ABANDONED = "OPERATOR_ABANDONED"
    STALE_REQUEST = "STALE_REQUEST"
    UNEXPECTED_CLAIM = "UNEXPECTED_CLAIM"
    # the aggregator, about a blob
    MISSING_BLOB = "MISSING_BLOB"
    OVERSIZED_BLOB = "OVERSIZED_BLOB"
    CORRUPT_BLOB = "CORRUPT_BLOB"
    MALFORMED_BLOB = "MALFORMED_BLOB"
    WRONG_SHAPE = "WRONG_SHAPE"
    WRONG_DTYPE = "WRONG_DTYPE"
    # an agent, about its own training; NOT_FINITE and OUT_OF_RANGE also about a blob
    NOT_FINITE = "NOT_FINITE"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    TRAINING_FAILED = "TRAINING_FAILED"
    TASK_NOT_ALLOWED = "TASK_NOT_ALLOWED"
