"""What of a module's metrics a version carries."""

import math

import pytest

from consumers.export.metrics import find_direction, make_evaluation, name_metrics
from protocol.validation import MAX_METRICS


def carried(logged, directions=()):
    named = name_metrics(logged, dict(directions))
    return [(m.name, m.value_micros, str(m.direction)) for m in named.metrics]


def test_metrics_keep_their_names_but_for_the_two_that_rewards_know():
    logged = {"val_loss": 0.5, "val_accuracy": 0.25, "val_mae": 3.0, "val/f1": 0.75}
    assert carried(logged) == [
        ("accuracy", 250_000, "HIGHER"),
        ("loss", 500_000, "LOWER"),
        ("val/f1", 750_000, "HIGHER"),
        ("val_mae", 3_000_000, "LOWER"),
    ]


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        ("val_rmse", "LOWER"),
        ("valid/word_error_rate", "LOWER"),
        ("val_AUROC", "HIGHER"),
        ("val_map50", "HIGHER"),
        ("val_loss/dataloader_idx_1", "LOWER"),
        ("val_emr", None),
        ("val_f1_loss", None),  # both
    ],
)
def test_a_direction_follows_from_the_words_of_a_name(name, direction):
    assert find_direction(name, {}) == direction


@pytest.mark.parametrize(
    ("stated", "direction"), [("LOWER", "LOWER"), ("down", None), ([], None)]
)
def test_a_direction_is_as_the_module_states_it(stated, direction):
    assert find_direction("val_accuracy", {"val_accuracy": stated}) == direction


@pytest.mark.parametrize(
    ("logged", "why"),
    [
        ({"mean IoU": 0.5}, "name must be"),
        ({"x" * 65: 0.5}, "name must be"),
        ({"val_emr": 0.5}, "metric_directions"),
        ({"val_mse": math.nan}, "nan"),
        ({"val_mse": math.inf}, "inf"),
        ({"val_mse": 1e13}, "10000000000000"),
        ({"val_accuracy": 95.0}, "0 to 1"),
        ({"accuracy": 0.5, "val_accuracy": 0.25}, "logs accuracy as well"),
    ],
)
def test_what_a_version_cannot_carry_is_left_out_with_the_reason(logged, why):
    [(_, said)] = name_metrics(logged, {}).left_out.items()
    assert why in said
    found, left_out = make_evaluation(logged | {"val_loss": 1.0}, {}, 3)
    assert "loss" in [metric.name for metric in found.metrics]
    assert said in left_out.values()


def test_a_version_carries_so_many_metrics_and_no_more():
    named = name_metrics({f"val_loss_{i}": 1.0 for i in range(MAX_METRICS + 1)}, {})
    assert len(named.metrics) == MAX_METRICS
    assert len(named.left_out) == 1


def test_without_a_metric_there_is_no_evaluation():
    assert make_evaluation({"val_emr": 0.5}, {}, 3)[0] is None


@pytest.mark.parametrize("directions", [None, [], "HIGHER", 3])
def test_what_a_module_states_may_be_anything(directions):
    assert name_metrics({"val_loss": 1.0}, directions).metrics
