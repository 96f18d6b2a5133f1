"""What well-formed events look like beyond their Avro types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from protocol.modes.mpc.configuration import MAX_COMPARED
from protocol.validation import (
    BLOB_REASONS,
    CHECK_REASONS,
    MAX_AGENTS_IN_COHORT,
    MAX_CHECK_DETAIL_BYTES,
    MAX_CHECKS,
    MAX_CONFIG_SIZE_BYTES,
    MAX_ROUND_DURATION_MS,
    MAX_WEIGHT,
    OPTIONAL_ROLES,
    REQUIRED_ROLES,
    find_configuration_problem,
    find_problem,
)
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    BASE,
    COMPARING_CONFIG,
    CONFIG,
    MPC,
    MPC_CONFIG,
    admitted,
    aggregate,
    checked,
    deadline,
    declined,
    enrolment,
    evaluation,
    exported,
    make_blob,
    request,
    revoked,
    update,
)

BAD_BLOBS = [
    replace(BASE, size_bytes=0),
    replace(BASE, size_bytes=-1),
    replace(BASE, sha256=bytes(32)),
    replace(BASE, uri=BASE.uri.upper()),
    replace(BASE, uri=BASE.uri.replace("s3:", "https:")),
    replace(BASE, uri=BASE.uri.replace("moot", "..")),
    replace(BASE, uri=BASE.uri.replace("moot", "moot/other")),
    replace(BASE, uri=BASE.uri + "\n"),
    replace(BASE, uri=BASE.uri + "?x"),
    replace(BASE, uri=""),
]
BAD_NAMES = ["", "A", "ä", "a b", "a/b", "-a", "a-", ".a", "a\n", "a" * 65, "a\0"]
GOOD_NAMES = ["a", "0", "a.b_c-d", "a" * 64]


KEY = bytes(32)
REASONS = {
    "principals": Reason.INVALID_PRINCIPALS,
    "plain": Reason.NOT_ONE_MODE,
    "mpc": Reason.NOT_ONE_MODE,
    "task": Reason.INVALID_TASK,
}


def without(role: str) -> tuple[e.Principal, ...]:
    return tuple(p for p in CONFIG.principals if p.role != role)


def metrics(*found: tuple[str, int, str]) -> e.Evaluation:
    return e.Evaluation(
        num_examples=1,
        metrics=tuple(
            e.Metric(name=name, value_micros=value, direction=direction)
            for name, value, direction in found
        ),
    )


def task(**changes: Any) -> e.Task:
    return replace(CONFIG.task, **changes)


@pytest.mark.parametrize(
    "event",
    [
        CONFIG,
        enrolment("ana"),
        admitted("ana"),
        revoked("ana"),
        request(1),
        request(2**63 - 1),
        deadline(1),
        update("ana"),
        declined("ana"),
        checked(1, 2, 5),
        checked(*range(MAX_CHECKS)),
        *(checked(1, reason=reason) for reason in sorted(BLOB_REASONS)),
        aggregate(2, 20),
        exported(1, BASE),
        exported(1, BASE, evaluation=evaluation(0, num_examples=1)),
        exported(1, BASE, evaluation=evaluation(1_000_000)),
        exported(1, BASE, evaluation=metrics(("val/mse", -(2**63), "LOWER"))),
        exported(1, BASE, evaluation=None, no_evaluation="NOT_MEASURED"),
        exported(1, BASE, onnx=None, no_onnx="NOT_EXPORTABLE"),
        replace(CONFIG, round_duration_ms=MAX_ROUND_DURATION_MS),
        replace(CONFIG, cohort_size=256, min_cohort=256, max_num_examples=2**22),
        replace(CONFIG, cohort_size=10_000, max_num_examples=2**30 // 10_000),
        replace(CONFIG, fractional_bits=0),
        replace(CONFIG, fractional_bits=30),
        replace(CONFIG, task=task(module_config='{"a": "[[[{{{", "b": [1, {}]}')),
        replace(CONFIG, task=task(module_config='{"a": ' + "[" * 31 + "]" * 31 + "}")),
        replace(CONFIG, principals=CONFIG.principals[::-1]),
        *(replace(CONFIG, principals=without(role)) for role in OPTIONAL_ROLES),
        MPC_CONFIG,
        COMPARING_CONFIG,
    ],
)
def test_good_events_have_no_problem(event: e.LedgerEvent) -> None:
    assert find_problem(event) is None


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_good_names(name: str) -> None:
    assert find_problem(replace(update(name), federation_id=name)) is None


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_names(name: str) -> None:
    for event in (
        replace(request(1), federation_id=name),
        update(name),
        declined(name),
        admitted(name),
        enrolment(name),
        revoked(name),
    ):
        assert find_problem(event) is not None


@pytest.mark.parametrize(
    "changes",
    [
        *({"principals": without(role)} for role in REQUIRED_ROLES),
        {"principals": (*CONFIG.principals, e.Principal(role="X", public_key=KEY))},
        {"principals": (*CONFIG.principals, CONFIG.principals[0])},
        {"principals": (*CONFIG.principals[:-1], CONFIG.principals[0])},
        {"principals": ()},
        {"nonce": bytes(32)},
        {"plain": None},
        {"mpc": MPC},
        {"strategy": "FEDSGD"},
        {"num_parameters": 0},
        {"num_parameters": 2**31 + 1},
        {"fractional_bits": -1},
        {"fractional_bits": 31},
        {"max_num_examples": 0},
        {"max_num_examples": 2**22 + 1},
        {"min_cohort": 0},
        {"min_cohort": 5},
        {"cohort_size": 10_001},
        {"round_duration_ms": 0},
        {"round_duration_ms": MAX_ROUND_DURATION_MS + 1},
        {"task": task(local_epochs=0)},
        {"task": task(module="no_class")},
        {"task": task(module=":Class")},
        {"task": task(data_module="package.module:Class()")},
        {"task": task(data_module="package.module:Class\n")},
        {"task": task(data_module="päckage.module:Class")},
        {"task": task(module_config="")},
        {"task": task(module_config="[]")},
        {"task": task(module_config="null")},
        {"task": task(module_config='{"a": NaN}')},
        {"task": task(module_config='{"a": -Infinity}')},
        {"task": task(module_config="{} {}")},
        {"task": task(data_config='{"a": "' + "x" * MAX_CONFIG_SIZE_BYTES + '"}')},
        {
            "task": task(
                data_config='{"a": "' + "ä" * (MAX_CONFIG_SIZE_BYTES // 2) + '"}'
            )
        },
        {"task": task(data_config='{"a": ' + "[" * 32 + "]" * 32 + "}")},
        {"task": task(data_config='{"a": ' * 1_000 + "1" + "}" * 1_000)},
        {"task": task(data_config="[" * 8_000)},
        {"task": task(data_config='"' * 8_000)},
        *({"initial_model": blob} for blob in BAD_BLOBS),
    ],
)
def test_bad_configurations(changes: dict[str, Any]) -> None:
    bad = replace(CONFIG, **changes)
    assert find_problem(bad) is not None
    (changed,) = changes
    problem = find_configuration_problem(bad)
    assert problem is not None
    assert problem[0] == REASONS.get(changed, Reason.INVALID_CONFIGURATION)


def test_numbers_in_a_configuration_may_be_of_any_length() -> None:
    """Python converts 4,300 digits unless the environment says otherwise."""
    numbers = "1" * 5_000
    config = replace(CONFIG, task=task(module_config='{"a": ' + numbers + "}"))
    assert find_problem(config) is None


@pytest.mark.parametrize(
    "event",
    [
        *(update("ana", update=blob) for blob in BAD_BLOBS),
        *(exported(1, BASE, onnx=blob) for blob in BAD_BLOBS),
        *(aggregate(2, 20, sum=blob) for blob in BAD_BLOBS),
        *(aggregate(2, 20, model=blob) for blob in BAD_BLOBS),
        update("ana", num_examples=0),
        *(
            update(
                "ana",
                encoding_loss=e.EncodingLoss(
                    shrunk_times=times, zeroed_percent=percent
                ),
            )
            for times, percent in ((0, 50), (1, -1), (1, 101))
        ),
        update("ana", num_examples=-1),
        update("ana", 0),
        declined("ana", -1),
        request(0),
        deadline(0),
        checked(1, number=0),
        replace(revoked("ana"), explanation="x" * 501),
        declined("ana", detail="x" * 501),
        checked(),
        checked(*range(MAX_CHECKS + 1)),
        checked(2, 1),
        checked(1, 1),
        checked(1, detail="x" * 501),
        checked(1, reason="DUPLICATE"),
        checked(1, reason="x" * 1_000),
        exported(1, BASE, evaluation=evaluation(num_examples=0)),
        exported(1, BASE, evaluation=evaluation(-1)),
        exported(1, BASE, evaluation=evaluation(1_000_001)),
        exported(1, BASE, evaluation=metrics(("accuracy", 1, "LOWER"))),
        exported(1, BASE, evaluation=metrics(("a", 1, "UP"))),
        exported(1, BASE, evaluation=metrics(("", 1, "LOWER"))),
        exported(1, BASE, evaluation=metrics(("a b", 1, "LOWER"))),
        exported(1, BASE, evaluation=metrics(("x" * 65, 1, "LOWER"))),
        exported(1, BASE, evaluation=metrics()),
        exported(1, BASE, evaluation=metrics(*[("a", 1, "LOWER")] * 2)),
        exported(1, BASE, evaluation=metrics(("b", 1, "LOWER"), ("a", 1, "LOWER"))),
        exported(
            1,
            BASE,
            evaluation=metrics(*((f"m{n:03}", 1, "LOWER") for n in range(65))),
        ),
        exported(1, BASE, evaluation=None),
        exported(1, BASE, no_evaluation="NOT_MEASURED"),
        exported(1, BASE, evaluation=None, no_evaluation="LATE"),
        exported(1, BASE, onnx=None),
        exported(1, BASE, no_onnx="NOT_EXPORTABLE"),
    ],
)
def test_bad_fields(event: e.LedgerEvent) -> None:
    assert find_problem(event) is not None


@pytest.mark.parametrize(("index", "place"), [(-1, 0), (0, -1), (-(2**62), 3)])
def test_a_fact_has_a_cause_and_a_place(index: int, place: int) -> None:
    fact = e.RoundAbandoned(
        federation_id="f",
        round=1,
        cause=bytes(32),
        cause_leaf_index=index,
        output_index=place,
        reason="r",
        detail="d",
    )
    assert find_problem(fact) is not None
    assert find_problem(replace(fact, cause_leaf_index=0, output_index=0)) is None


def test_the_largest_facts_that_can_follow_fit_a_leaf() -> None:
    """Or a federation could be founded in which no round can start."""
    config_text = '{"a": "' + "x" * (MAX_CONFIG_SIZE_BYTES - 9) + '"}'
    largest = task(
        module="m" * 190 + ":" + "C" * 99,
        module_config=config_text,
        data_module="m" * 190 + ":" + "C" * 99,
        data_config=config_text,
    )
    cohort = tuple(f"{number:064d}" for number in range(MAX_COMPARED))
    big = 2**63 - 1
    blob = replace(make_blob("x"), size_bytes=big)
    assert find_problem(replace(CONFIG, task=largest)) is None
    common: dict[str, Any] = {
        "federation_id": "f" * 64,
        "round": big,
        "cause": bytes(32),
        "cause_leaf_index": big,
        "output_index": 2**31 - 1,
    }
    started = e.RoundStarted(
        num_drawn=MAX_AGENTS_IN_COHORT,
        cohort_seed=bytes(32),
        last_ticket=bytes(32),
        base_version=big,
        base_model=blob,
        task=largest,
        num_parameters=2**31,
        fractional_bits=30,
        deadline_ms=big,
        **common,
    )
    sealed = e.RoundSealed(
        num_contributions=MAX_AGENTS_IN_COHORT,
        contributions_sha256=bytes(32),
        num_examples=MAX_WEIGHT,
        base_model=blob,
        fractional_bits=30,
        num_parameters=2**31,
        **common,
    )
    comparison = e.ComparisonStarted(agent_ids=cohort, far_threshold=big, **common)
    checks = e.UpdatesChecked(
        federation_id="f" * 64,
        round=big,
        results=tuple(
            e.UpdateCheck(
                leaf_index=big - number,
                reason=max(CHECK_REASONS, key=len),
                detail="x" * MAX_CHECK_DETAIL_BYTES,
            )
            for number in range(MAX_CHECKS)
        ),
    )
    for fact in (started, sealed, comparison, checks):
        assert len(codec.encode(fact)) <= codec.MAX_EVENT_SIZE_BYTES


def test_a_sum_of_the_largest_cohort_stays_exact() -> None:
    assert MAX_WEIGHT * 2**31 <= 2**62
    most = MAX_WEIGHT // MAX_AGENTS_IN_COHORT
    good = replace(
        CONFIG, cohort_size=MAX_AGENTS_IN_COHORT, min_cohort=1, max_num_examples=most
    )
    assert find_problem(good) is None
    problem = find_problem(replace(good, max_num_examples=most + 1))
    assert problem is not None
    assert "max_num_examples" in problem
