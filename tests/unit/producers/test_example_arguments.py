"""What a task may ask of the classes that every agent allows by default."""

import functools
import importlib
import inspect
import json
import math
import pkgutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from adapters.attempts import Attempts  # noqa: E402
from adapters.imports import ImportRefusedError, load_class  # noqa: E402
from adapters.kafka_log import Genesis  # noqa: E402
from cli.options import DEFAULT_ALLOWED  # noqa: E402
from producers.agent.agent import Agent, AgentOptions  # noqa: E402
from producers.agent.kept_update import UpdateKeeper  # noqa: E402
from producers.agent.training import (  # noqa: E402
    TrainingError,
    initial_tensors,
    initialise,
    train,
)
from producers.arguments import (  # noqa: E402
    ArgumentError,
    check_float,
    check_instance,
    check_int,
)
from producers.examples import breast_cancer as breast  # noqa: E402
from producers.examples import digits  # noqa: E402
from producers.examples.classification import DividedDataModule  # noqa: E402
from protocol.averaged_apart import apply_average  # noqa: E402
from protocol.encoding import parse_update  # noqa: E402
from protocol.exchanged_state import (  # noqa: E402
    Model,
    StateClass,
    model_to_blob,
)
from protocol.tensors import tensors_to_blob  # noqa: E402
from schemas import events as e  # noqa: E402
from schemas.reasons import Reason  # noqa: E402
from tests.builders import BlobDict  # noqa: E402
from tests.six_models import CASES  # noqa: E402
from tests.synthetic import (  # noqa: E402
    SyntheticDataModule,
    SyntheticModule,
)

MAX_PARAMETERS = 2**24
MAX_BATCH_SIZE = 65_536
MAX_ITEMS = 2**24

#: Nothing that an example takes: whoever adds an argument to one that takes any of it
#: (a path, a flag, a list) says here what bounds it.
HOSTILE = (
    *(True, False, None, "", "1", "/etc/passwd", "http://example.com", "x" * 8_000),
    *(math.nan, math.inf, -math.inf, -1, -1.0, -(10**18), 10**18, 10**400, 1e18, 1e308),
    *([], [1], [[1.0]] * 1_000, {}, {"a": 1}),
)


def _find_classes():
    """Yield every class that a task may name by default, under its own path."""
    for prefix in DEFAULT_ALLOWED:
        package = importlib.import_module(prefix)
        for module in pkgutil.walk_packages(package.__path__, f"{prefix}."):
            for name in vars(importlib.import_module(module.name)):
                path = f"{module.name}:{name}"
                try:
                    found = load_class(path, DEFAULT_ALLOWED)
                except ImportRefusedError:
                    continue
                if found.__module__ == module.name:
                    yield path


def _find_arguments(path):
    """Return the arguments of a class, with one good value each."""
    found = load_class(path, DEFAULT_ALLOWED)
    return {
        name: GOOD.get(name, parameter.default)
        for name, parameter in inspect.signature(found).parameters.items()
    }


GOOD = {
    "network": torch.nn.Linear(2, 2),
    "learning_rate": 0.1,
    "training": (np.zeros((4, 2)), np.zeros(4)),
    "validation": (np.zeros((4, 2)), np.zeros(4)),
    "inputs": np.zeros((40, 2)),
    "labels": np.arange(40) % 2,
    "organisation": 0,
    "num_organisations": 1,
    "alpha": 0.3,
    "seed": 0,
    "min_examples": 1,
    "batch_size": 4,
}
PATHS = sorted(set(_find_classes()))
EACH = [(path, name) for path in PATHS for name in _find_arguments(path)]


@pytest.fixture(scope="module", autouse=True)
def _load_once():
    """Reading the data sets is most of what building their classes takes."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((digits, "load_digits"), (breast, "load_breast_cancer")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        yield


def test_the_classes_that_are_looked_at_are_those_that_can_be_had():
    names = {path.split(":")[1] for path in PATHS}
    assert {
        *("DigitsModule", "DigitsDataModule"),
        *("BreastCancerModule", "BreastCancerDataModule", "Classifier"),
        *("ArraysDataModule", "DividedDataModule"),
    } <= names


@pytest.mark.parametrize("path", PATHS)
def test_every_class_takes_named_arguments_with_good_values(path):
    """Otherwise the test of the others would show nothing."""
    arguments = _find_arguments(path)
    kinds = {
        parameter.kind
        for parameter in inspect.signature(
            load_class(path, DEFAULT_ALLOWED)
        ).parameters.values()
    }
    assert not kinds & {
        inspect.Parameter.VAR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    }
    load_class(path, DEFAULT_ALLOWED)(**arguments)


@pytest.mark.parametrize(("path", "name"), EACH)
def test_every_argument_of_every_class_refuses_other_values(path, name):
    found, arguments = load_class(path, DEFAULT_ALLOWED), _find_arguments(path)
    for value in HOSTILE:
        with pytest.raises(ArgumentError, match=rf"^{name} must be ") as caught:
            found(**arguments | {name: value})
        assert len(str(caught.value)) < 100  # not with the value in it


@pytest.mark.parametrize(("path", "name"), EACH)
def test_the_largest_value_of_every_number_is_one_that_a_machine_can_bear(path, name):
    found, arguments = load_class(path, DEFAULT_ALLOWED), _find_arguments(path)
    if type(arguments[name]) is not int:
        return
    # Doubled, not guessed: each step is at most twice what the one before could bear.
    value = arguments[name] or 1
    while value < 2**70:
        try:
            made = found(**arguments | {name: value})
        except ValueError:
            return
        if isinstance(made, torch.nn.Module):
            assert sum(p.numel() for p in made.parameters()) <= MAX_PARAMETERS
        else:
            for loader in (made.train_dataloader(), made.val_dataloader()):
                assert (loader.batch_size or 0) <= MAX_BATCH_SIZE
                assert sum(t.numel() for t in loader.dataset.tensors) <= MAX_ITEMS
        value *= 2
    pytest.fail(f"{name} has no bound")


def test_dividing_stays_whole_at_both_ends():
    inputs, labels = np.zeros((400, 2)), np.arange(400) % 4
    for alpha in (1e-3, 1e3):
        parts = [
            DividedDataModule(
                inputs,
                labels,
                organisation=number,
                num_organisations=20,
                alpha=alpha,
                seed=1,
                min_examples=2,
                batch_size=4,
            )
            for number in range(20)
        ]
        sizes = [len(part.train_dataloader().dataset) for part in parts]
        assert min(sizes) >= 2
        assert sum(sizes) == 320


@pytest.mark.parametrize(
    "value", [True, 0, 11, 5.0, "5", None, math.nan, -(10**400), 10**400]
)
def test_a_whole_number_is_one_within_bounds(value):
    assert check_int("it", 1, 1, 10) == 1
    assert check_int("it", 10, 1, 10) == 10
    with pytest.raises(ArgumentError, match="it must be a whole number from 1 to 10"):
        check_int("it", value, 1, 10)


@pytest.mark.parametrize("value", [True, 0.4, 2.1, "1", None, math.nan, math.inf])
def test_a_number_is_one_within_bounds(value):
    assert check_float("it", 1, 0.5, 2.0) == 1.0
    with pytest.raises(ArgumentError, match=r"it must be a number from 0\.5 to 2"):
        check_float("it", value, 0.5, 2.0)


def test_what_no_task_can_give_is_demanded():
    assert check_instance("it", (1,), tuple) == (1,)
    with pytest.raises(ArgumentError, match="it must be a tuple"):
        check_instance("it", [1], tuple)


# What an agent makes of it

ALLOWED = (*DEFAULT_ALLOWED, "tests.synthetic")


class Alone(Agent):
    """An agent without a stack."""

    def __init__(self, directory, store):
        self._options = AgentOptions(
            federation_id="clinics",
            agent_id="ada",
            operator_key=bytes(32),
            directory=directory,
            allowed_prefixes=ALLOWED,
            data_config={},
        )
        self._store = store
        self._updates = UpdateKeeper(directory)
        self._attempts = Attempts(directory)
        config = SimpleNamespace(
            plain=e.Plain(),
            mpc=None,
            initial_model=None,
            round_duration_ms=2**31,
            strategy="FEDAVG",
            strategy_parameters=(),
        )
        self._terms = SimpleNamespace(config=config)
        self._genesis = Genesis(config, bytes(32))

    def answer(self, started):
        return self._compute_answer(started, "round-1", "")


@pytest.fixture
def alone(tmp_path):
    return Alone(tmp_path, BlobDict())


def start(alone, module_config, data_config, **changes):
    base = initial_tensors(
        module=SyntheticModule, module_config={"num_parameters": 100}, seed=1
    )
    blob = changes.pop("model", None) or tensors_to_blob(base)
    alone._terms.config.initial_model = alone._store.store(blob)
    task = e.Task(
        module="tests.synthetic:SyntheticModule",
        module_config=json.dumps(module_config),
        data_module="tests.synthetic:SyntheticDataModule",
        data_config=json.dumps(data_config),
        local_epochs=changes.pop("local_epochs", 1),
    )
    started = e.RoundStarted(
        federation_id="clinics",
        round=1,
        cause=bytes(32),
        cause_leaf_index=1,
        output_index=0,
        num_drawn=1,
        cohort_seed=bytes(32),
        last_ticket=b"\xff" * 32,
        base_version=0,
        base_model=alone._terms.config.initial_model,
        deadline_ms=2**50,
        task=task,
        fractional_bits=16,
        num_parameters=97,
    )
    return replace(started, **changes)


def test_an_agent_trains_on_good_arguments(alone):
    answer = alone.answer(start(alone, {"num_parameters": 100}, {"batch_size": 4}))
    assert isinstance(answer, e.UpdateSubmitted)


@pytest.mark.parametrize(
    ("module_config", "data_config", "name"),
    [
        ({"num_parameters": 10**11}, {}, "num_parameters"),
        ({"num_parameters": 100, "learning_rate": math.nan}, {}, "learning_rate"),
        ({"num_parameters": 100}, {"batch_size": 10**11}, "batch_size"),
        ({"num_parameters": 100}, {"organisation": "/etc/passwd"}, "organisation"),
    ],
)
def test_an_agent_declines_arguments_out_of_bounds(
    alone, caplog, module_config, data_config, name
):
    answer = alone.answer(start(alone, module_config, data_config))
    assert isinstance(answer, e.UpdateDeclined)
    assert answer.reason == Reason.TASK_NOT_ALLOWED
    # Everybody reads this; which argument, the agent's own log alone says.
    assert answer.detail == "an argument of the task's classes is out of bounds"
    assert f"{name} must be " in caplog.text
    assert "/etc/passwd" not in caplog.text


@pytest.mark.parametrize("path", ["os:PathLike", "models_of_nobody:Net"])
def test_why_an_agent_does_not_run_a_class_stays_with_it(alone, caplog, path):
    """Not allowed, or allowed and not there: everybody reads the same words."""
    allowed = (*ALLOWED, "models_of_nobody")
    alone._options = replace(alone._options, allowed_prefixes=allowed)
    started = start(alone, {}, {})
    answer = alone.answer(replace(started, task=replace(started.task, module=path)))
    assert answer.reason == Reason.TASK_NOT_ALLOWED
    assert answer.detail == (
        "this agent may not run the task's classes, or does not have them"
    )
    assert path.partition(":")[0] in caplog.text


def test_an_agent_declines_a_state_that_it_cannot_exchange(alone, caplog):
    tensors = {"w": np.zeros(97, np.float32), "norm.mean": np.zeros(2, np.float32)}
    metadata = {"folkmoot/state/norm.mean": "refused"}
    model = tensors_to_blob(tensors, metadata=metadata)
    answer = alone.answer(start(alone, {"num_parameters": 100}, {}, model=model))
    assert answer.reason == Reason.STATE_REFUSED
    assert "norm.mean" in caplog.text
    assert "norm.mean" not in answer.detail


def start_measuring(alone, **changes):
    """A round of a model with running statistics."""
    alone._options = replace(alone._options, allowed_prefixes=("tests.six_models",))
    case = next(c for c in CASES if c.name == "ConvNet")
    model = initialise(module=case.module, module_config={}, seed=1)
    started = start(alone, {}, {}, model=model_to_blob(model))
    task = replace(
        started.task, module=case.path(case.module), data_module=case.path(case.data)
    )
    return replace(
        started, task=task, num_parameters=model.num_integers, **changes
    ), model


def test_an_agent_says_what_it_measured(alone, caplog):
    started, model = start_measuring(alone)
    answer = alone.answer(started)
    assert isinstance(answer, e.UpdateSubmitted)
    blob = alone._store.fetch(answer.update, max_size_bytes=10**6)
    values = parse_update(blob, num_parameters=model.num_integers)
    digits = values[len(model.to_vector()) :].astype("i8")
    averaged = apply_average(model.to_averaged(), digits, 1)
    moved = model.replace_moved(model.to_vector(), averaged)
    # Variances of 400 and more are as far as they may be after one round.
    assert (moved.tensors["norm.running_var"] == 9).all()
    assert "averaged apart moved further" in caplog.text


def test_nothing_is_averaged_apart_with_agent_level_privacy(alone, caplog):
    privacy = e.RoundPrivacy(
        sigma=1, norm_bound=1, weight=12, inverse_delta=10, order=2
    )
    started, _ = start_measuring(alone, privacy=privacy)
    answer = alone.answer(started)
    assert answer.reason == Reason.STATE_REFUSED
    assert "agent-level privacy" in caplog.text


def test_an_agent_says_how_much_of_its_update_is_lost(alone, caplog):
    started = start(alone, {"num_parameters": 100}, {}, fractional_bits=0)
    answer = alone.answer(started)
    assert answer.encoding_loss == e.EncodingLoss(shrunk_times=1, zeroed_percent=100)
    assert "100 % of the trained values that changed are sent as zero" in caplog.text
    again = alone.answer(replace(started, round=2))  # the same update
    assert again.encoding_loss == answer.encoding_loss


def test_an_agent_declines_a_model_of_another_size(alone, caplog):
    started = start(alone, {"num_parameters": 100}, {})
    answer = alone.answer(replace(started, num_parameters=96))
    assert answer.reason == Reason.STATE_REFUSED
    assert "updates of 97 integers, not 96" in caplog.text


def test_an_agent_declines_if_training_changes_what_is_fixed(alone, caplog):
    base = initial_tensors(
        module=SyntheticModule, module_config={"num_parameters": 100}, seed=1
    )
    name = min(base)
    model = Model(base, {name: StateClass.FIXED})
    started = start(
        alone,
        {"num_parameters": 100},
        {},
        model=model_to_blob(model),
        num_parameters=len(model.to_vector()),
    )
    answer = alone.answer(started)
    assert answer.reason == Reason.STATE_REFUSED
    assert f"training changed {name!r}, which is fixed" in caplog.text


def test_of_an_error_in_training_others_see_the_type_alone(alone, caplog, monkeypatch):
    def fail(_started):
        raise LookupError("patient 17 has no birthday")

    monkeypatch.setattr(alone, "_train", fail)
    answer = alone.answer(start(alone, {}, {}))
    assert (answer.reason, answer.detail) == (Reason.TRAINING_FAILED, "LookupError")
    assert "patient 17" in caplog.text


@pytest.mark.parametrize(
    ("own", "is_trained"), [({"batch_size": 4}, True), ({}, False)]
)
def test_an_agents_own_data_config_wins(alone, own, is_trained):
    alone._options = replace(alone._options, data_config=own)
    answer = alone.answer(start(alone, {"num_parameters": 100}, {"batch_size": -1}))
    assert isinstance(answer, e.UpdateSubmitted) == is_trained


def test_an_agent_trains_no_longer_than_its_round(alone, caplog):
    started = start(alone, {"num_parameters": 100}, {}, local_epochs=2**31 - 1)
    alone._terms.config.round_duration_ms = 1
    answer = alone.answer(started)
    assert answer.reason == Reason.TRAINING_FAILED
    assert "training took too long" in caplog.text


def test_training_gives_up_when_it_is_told_to():
    base = initial_tensors(
        module=SyntheticModule, module_config={"num_parameters": 100}, seed=1
    )
    options = {
        "module": SyntheticModule,
        "module_config": {"num_parameters": 100},
        "data_module": SyntheticDataModule,
        "data_config": {},
        "base": base,
        "seed": 1,
    }
    with pytest.raises(TrainingError, match="took too long"):
        train(**options, local_epochs=2**31 - 1, timeout_s=0.0)
    assert train(**options, local_epochs=1, timeout_s=1e6).num_steps == 1
