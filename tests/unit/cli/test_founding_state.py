"""The model state that a federation is founded with, and what an audit says about
it.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import cli.main
from cli.operate import create_federation, make_state_rules
from cli.stack.processes import StackError
from consumers.audit.auditor import run_audit
from consumers.audit.report import FindingCode
from producers.control import (
    InvalidConfigurationError,
    Operator,
    Parameters,
    load_principals,
)
from protocol.exchanged_state import StateClass, model_from_blob
from protocol.tensors import tensors_to_blob
from protocol.validation import MAX_MODEL_SIZE_BYTES, find_configuration_problem
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict, LogBuilder, make_key, unframe

TASK = e.Task(
    module="tests.unit.cli.test_founding_state:Module",
    module_config="{}",
    data_module="tests.synthetic:SyntheticDataModule",
    data_config="{}",
    local_epochs=1,
)
PARAMETERS = Parameters(task=TASK, cohort_size=5, min_cohort=3, round_duration_ms=1_000)
WEIGHT = np.ones(4, dtype="f4")


class Publisher:
    """Takes events as Kafka would."""

    def __init__(self):
        self.said = []

    def publish_all(self, events, _key, _genesis):
        self.said.extend(events)
        return [(0, 0) for _ in events]


@pytest.fixture
def publisher():
    return Publisher()


def found(publisher, store, model, tmp_path):
    operator = Operator(make_key("OPERATOR"), publisher)
    operator.found("clinics", PARAMETERS, load_principals(tmp_path), model, store)
    return publisher.said[0]


def test_a_strategy_that_nobody_knows_is_refused(publisher, tmp_path):
    operator = Operator(make_key("OPERATOR"), publisher)
    parameters = replace(PARAMETERS, strategy="FEDSGD")
    model = tensors_to_blob({"w": WEIGHT})
    with pytest.raises(
        InvalidConfigurationError, match="strategy must be FEDAVG or FEDPROX"
    ):
        operator.found(
            "clinics", parameters, load_principals(tmp_path), model, BlobDict()
        )
    assert publisher.said == []


def test_a_federation_is_founded_with_the_canonical_form_of_a_model(
    publisher, tmp_path
):
    store = BlobDict()
    tensors = {"w": WEIGHT, "table": np.arange(3), "mask": np.float64([0, -np.inf])}
    metadata = {"folkmoot/state/table": "kept", "folkmoot/state/mask": "fixed"}
    model = tensors_to_blob(tensors, metadata=metadata)
    config = found(
        publisher,
        store,
        tensors_to_blob(tensors, metadata=metadata | {"format": "pt"}),
        tmp_path,
    )
    assert store.fetch(config.initial_model, max_size_bytes=10_000) == model
    assert config.num_parameters == 4


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (tensors_to_blob({"w": np.ones(2)}), "STATE_REFUSED.*'w'.*float64"),
        (tensors_to_blob({"w": WEIGHT, "n": np.array(0)}), "STATE_REFUSED.*'n'.*int64"),
        (tensors_to_blob({"w": WEIGHT * np.nan}), "STATE_REFUSED.*'w'.*NaN"),
        (
            tensors_to_blob(
                {"w": WEIGHT, "m": WEIGHT},
                metadata={"folkmoot/state/m": "refused"},
            ),
            "STATE_REFUSED.*'m'.*refused",
        ),
        (tensors_to_blob({}), "STATE_REFUSED.*nothing"),
        (b"no model", "the initial model: no header"),
    ],
    ids=["double", "integer", "nan", "refused", "nothing", "no-model"],
)
def test_what_cannot_be_exchanged_is_refused_before_anything_is_said(
    publisher, tmp_path, model, why
):
    store = BlobDict()
    with pytest.raises(InvalidConfigurationError, match=why):
        found(publisher, store, model, tmp_path)
    assert not publisher.said
    assert not store


@pytest.mark.parametrize(
    "model",
    [
        tensors_to_blob({"w": WEIGHT, "n": np.array(0)}),
        tensors_to_blob({"w": WEIGHT}, metadata={"folkmoot/state/w": "new"}),
        tensors_to_blob({"w": WEIGHT}, metadata={"folkmoot/state/w": "fixed"}),
        tensors_to_blob({"w": WEIGHT * np.inf}),
        tensors_to_blob({"w": WEIGHT[:3]}),
    ],
    ids=["integer", "unknown", "nothing", "infinite", "short"],
)
def test_an_audit_finds_an_initial_model_that_says_what_it_may_not(model):
    log = LogBuilder()
    config = log.configure(log.blobs.store(model))
    log.say(replace(config, num_parameters=4), make_key("OPERATOR"))
    log.settle()
    report = run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        fetch_blob=log.blobs.fetch,
    ).report
    assert [f.code for f in report.findings] == [FindingCode.INVALID_MODEL]


def test_the_size_of_all_models_is_bounded_at_the_founding():
    config = LogBuilder().configure(BlobDict().store(tensors_to_blob({"w": WEIGHT})))
    assert find_configuration_problem(config) is None

    def with_size(size):
        return replace(
            config, initial_model=replace(config.initial_model, size_bytes=size)
        )

    assert find_configuration_problem(with_size(MAX_MODEL_SIZE_BYTES)) is None
    problem = find_configuration_problem(with_size(MAX_MODEL_SIZE_BYTES + 1))
    assert problem is not None
    assert problem[0] == Reason.INVALID_CONFIGURATION


# From a module


def create(monkeypatch, tmp_path, module, rules=()):
    """Found a federation without a stack; return its initial model."""
    publisher, store = Publisher(), BlobDict()
    store.ensure_bucket = lambda: None
    monkeypatch.setattr("cli.operate.BlobStore", lambda _: store)
    monkeypatch.setattr("cli.operate.Publisher", lambda *_: publisher)
    monkeypatch.setattr("cli.operate.make_registry", lambda _: None)
    monkeypatch.setattr("cli.operate.await_leaf", lambda *_: 0)
    monkeypatch.setattr("cli.operate.load_class", lambda *_: module)
    create_federation(
        SimpleNamespace(state_directory=tmp_path),
        "clinics",
        PARAMETERS,
        seed=1,
        principals={},
        allowed_prefixes=(),
        state_rules=rules,
    )
    ref = publisher.said[0].initial_model
    return model_from_blob(store.fetch(ref, max_size_bytes=10**6))


@pytest.fixture
def normalised():
    torch = pytest.importorskip("torch")
    lightning = pytest.importorskip("pytorch_lightning")

    class Normalised(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.add_module("0", torch.nn.Linear(2, 2))
            self.add_module("1", torch.nn.BatchNorm1d(2))

        def training_step(self, batch):
            """Nothing trains it here."""

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters())

    return Normalised


def test_what_cannot_be_exchanged_is_refused_with_what_to_do(
    monkeypatch, tmp_path, normalised
):
    with pytest.raises(StackError) as caught:
        create(monkeypatch, tmp_path, lambda: normalised().double())
    assert caught.value.message.startswith("STATE_REFUSED: entry '0.bias'")
    assert "--state PATTERN=CLASS" in caught.value.hint


def test_running_statistics_are_averaged_apart(
    monkeypatch, tmp_path, normalised, capsys
):
    model = create(monkeypatch, tmp_path, normalised)
    assert capsys.readouterr().out == (
        "an update has 34 integers: 10 trained values, 24 for 4 values averaged apart, "
        "unless training leaves them alone and they are made `fixed`; kept: 1 entry\n"
    )
    assert model.classes == {
        "1.num_batches_tracked": StateClass.KEPT,
        "1.running_mean": StateClass.AVERAGED_APART,
        "1.running_var": StateClass.AVERAGED_UNSIGNED,
    }
    assert model.num_integers == 10 + 6 * 4


def test_the_founder_says_what_becomes_of_running_statistics(
    monkeypatch, tmp_path, normalised
):
    rules = make_state_rules(["1.running_*=trained", "1.weight=fixed"])
    model = create(monkeypatch, tmp_path, normalised, rules)
    assert model.classes == {
        "1.num_batches_tracked": StateClass.KEPT,
        "1.weight": StateClass.FIXED,
    }


@pytest.mark.parametrize("text", ["", "=", "w", "w=", "=fixed", "w=Fixed", "w=frozen"])
def test_an_unknown_rule_is_refused(text):
    with pytest.raises(StackError, match="PATTERN=CLASS"):
        make_state_rules([text])


def test_a_pattern_may_hold_an_equals_sign():
    assert make_state_rules(["a=b=kept"]) == [("a=b", StateClass.KEPT)]


def test_the_command_takes_rules(monkeypatch):
    taken = []

    def create_instead(*_args, state_rules, **_options):
        taken.extend(state_rules)
        return SimpleNamespace(genesis=bytes(32), public_key=bytes(32))

    monkeypatch.setattr("cli.operate.create_federation", create_instead)
    monkeypatch.setattr("cli.commands.federation.find_kafka", lambda: None)
    command = [
        *("federation", "create", "--federation", "clinics"),
        *("--module", "a:B", "--data-module", "a:C"),
        *("--module-config", json.dumps({})),
        *("--state", "*.pe=fixed", "--state", "*=trained"),
    ]
    assert CliRunner().invoke(cli.main.app, command).exit_code == 0
    assert taken == [("*.pe", StateClass.FIXED), ("*", StateClass.TRAINED)]
