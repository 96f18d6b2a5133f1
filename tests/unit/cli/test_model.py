"""Every published model can be fetched, and measured on one's own data."""

import csv
import json
import sys
from types import SimpleNamespace
from xml.etree import ElementTree as ET

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import cli.main  # noqa: E402
from adapters.models import read_state  # noqa: E402
from cli.curves import draw_curves  # noqa: E402
from cli.stack.processes import StackError  # noqa: E402
from producers.control import Parameters, make_configuration  # noqa: E402
from protocol.exchanged_state import Model, model_to_blob  # noqa: E402
from protocol.validation import Direction  # noqa: E402
from schemas import events as e  # noqa: E402
from tests.builders import BlobDict  # noqa: E402
from tests.unit.cli.odd_tasks import Measurable  # noqa: E402

HERE = "tests.unit.cli.odd_tasks"
TASK = e.Task(
    module=f"{HERE}:Measurable",
    module_config="{}",
    data_module=f"{HERE}:LineData",
    data_config="{}",
    local_epochs=1,
)
PARAMETERS = Parameters(task=TASK, cohort_size=5, min_cohort=3, round_duration_ms=1_000)


def make_blob(scale):
    torch.manual_seed(0)
    tensors = {n: a * np.float32(scale) for n, a in read_state(Measurable()).items()}
    return model_to_blob(Model(tensors, {}))


@pytest.fixture
def federation(monkeypatch, tmp_path):
    """A federation of three models: an initial one, one registered, one not yet."""
    store = BlobDict()
    initial, first, second = (store.store(make_blob(scale)) for scale in (1, 2, 3))
    onnx = store.store(b"an ONNX file")
    fact = {
        "federation_id": "clinics", "cause": bytes(32), "cause_leaf_index": 0,
        "output_index": 0,
    }  # fmt: skip

    def publish(number, model):
        return e.AggregatePublished(
            **fact, round=number, base_model_sha256=bytes(32), num_contributions=3,
            num_examples=9, sum=initial, model=model, task=TASK,
        )  # fmt: skip

    metric = e.Metric(name="val_mse", value_micros=500_000, direction=Direction.LOWER)
    registered = e.ModelVersionRegistered(
        **fact, round=2, version=1, parent_version=0, model=first, onnx=onnx,
        no_onnx="", evaluation=e.Evaluation(num_examples=4, metrics=(metric,)),
        no_evaluation="", registered_at_ms=0,
    )  # fmt: skip
    config = make_configuration(
        "clinics", PARAMETERS, (), initial_model=initial, num_parameters=3
    )
    events = [config, publish(2, first), registered, publish(5, second)]
    leaves = [SimpleNamespace(sequenced=SimpleNamespace(event=each)) for each in events]
    settings = SimpleNamespace(demand_minio=lambda: None)
    for command in ("registry", "model"):
        monkeypatch.setattr(f"cli.commands.{command}.find_kafka", lambda: settings)
    monkeypatch.setattr("cli.operate.read_leaves", lambda *_: iter(leaves))
    monkeypatch.setattr("cli.operate.BlobStore", lambda _: store)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def moot(monkeypatch, capsys, federation):
    def run(*arguments, code=0):
        command = ["moot", *arguments, "-f", "clinics"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            cli.main.main()
        said = capsys.readouterr()
        assert end.value.code == code, said.err
        return said.err if code else said.out

    return run


@pytest.mark.parametrize(("version", "scale"), [("0", 1), ("1", 2), ("2", 3)])
def test_every_published_model_can_be_fetched(moot, tmp_path, version, scale):
    path = tmp_path / "model"
    moot("registry", "get", version, "--format", "safetensors", "-o", str(path))
    assert path.read_bytes() == make_blob(scale)


def test_a_version_without_an_onnx_file_says_why(moot, tmp_path):
    moot("registry", "get", "1", "-o", str(tmp_path / "onnx"))
    assert (tmp_path / "onnx").read_bytes() == b"an ONNX file"
    said = moot("registry", "get", "2", "-o", str(tmp_path / "other"), code=2)
    assert "no ONNX: the exporter has not been there yet" in said
    assert "version 3; the newest is 2" in moot(
        "registry", "get", "3", "-o", str(tmp_path / "other"), code=2
    )


def test_what_waits_to_be_registered_is_listed(moot):
    _, first, second = moot("registry", "list").splitlines()
    assert "val_mse 0.5000" in first
    assert "waits for the exporter" in second
    one, two = json.loads(moot("registry", "list", "--json"))
    assert one.keys() == two.keys()
    assert (two["version"], two["round"], two["evaluation"]) == (2, 5, None)
    assert two["model"]["size_bytes"] == len(make_blob(3))


OWN = ("--data-module", f"{HERE}:OwnTestData", "--allow", "tests")


def test_a_version_is_measured_by_its_test_step_on_own_data(moot):
    [found] = json.loads(moot("model", "evaluate", "1", *OWN, "--json"))
    assert (found["version"], found["round"], found["num_examples"]) == (1, 2, 32)
    assert found["step"] == "test_step"
    module = Measurable()
    tensors = {n: torch.tensor(a) * 2 for n, a in read_first().items()}
    module.load_state_dict(tensors)
    inputs = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    wanted = inputs.sum(1, keepdim=True)
    expected = (module(inputs) - wanted).abs().mean().item()
    assert found["metrics"]["test_mae"] == pytest.approx(expected, rel=1e-4)


def read_first():
    torch.manual_seed(0)
    return read_state(Measurable())


def test_the_newest_is_measured_by_its_validation_step_where_there_is_no_test(moot):
    said = moot("model", "evaluate", "--allow", "tests")
    assert "by validation_step, on 16 examples" in said
    assert "val_mse: lower is better" in said
    assert said.splitlines()[1].split()[:2] == ["2", "5"]


def test_all_versions_make_curves(moot, tmp_path):
    moot("model", "evaluate", "--all", *OWN, "--csv", "a.csv", "--plot", "a.svg")
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["version"] for row in rows] == ["0", "1", "2"]
    assert all(float(row["test_mae"]) > 0 for row in rows)
    tree = ET.parse(tmp_path / "a.svg")
    circles = [each for each in tree.iter() if each.tag.endswith("circle")]
    assert len(circles) == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("7", *OWN), "no version 7; the newest is 2"),
        (("--allow", "other"), "may not be run here"),
        ((*OWN, "--data-config", '{"site": 1}'), "can't be measured: TypeError"),
        ((*OWN, "--data-config", "1"), "JSON object"),
        ((*OWN, "--plot", "a.png"), "--plot writes SVG"),
        (("--data-module", f"{HERE}:Missing", "--allow", "tests"), "Missing"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(moot, arguments, why):
    said = moot("model", "evaluate", *arguments, code=2)
    assert why in said
    assert "Traceback" not in said


def test_a_picture_is_harmless_whatever_the_names_and_values_are():
    names = ["<script>", "a & b", "\u202e", "é", "\x1b[31m"]
    picture = draw_curves({name: [(1, 0.5), (2, float("nan"))] for name in names})
    assert picture.isascii()
    assert not [each for each in ET.fromstring(picture).iter() if "script" in each.tag]
    assert ET.fromstring(draw_curves({})) is not None


def test_a_missing_blob_is_a_sentence(moot, monkeypatch):
    def fetch(*_args):
        raise StackError("no blob", "Is MinIO there?")

    monkeypatch.setattr("cli.model.fetch_model", fetch)
    assert "no blob" in moot("model", "evaluate", *OWN, code=2)
