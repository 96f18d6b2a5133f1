"""What a task is refused for before a federation begins, and what else is found."""

import json
import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from typer.testing import CliRunner  # noqa: E402

import cli.main  # noqa: E402
from cli.stack.processes import StackError  # noqa: E402
from cli.task_check import Level, Report, check_task, demand_good  # noqa: E402
from schemas import events as e  # noqa: E402

HERE = "tests.unit.cli.odd_tasks"


pytestmark = pytest.mark.usefixtures("one_thread")


def check(module="Line", data_module="LineData", **options):
    task = e.Task(
        module=f"{HERE}:{module}",
        module_config=options.pop("module_config", "{}"),
        data_module=f"{HERE}:{data_module}",
        data_config=options.pop("data_config", "{}"),
        local_epochs=2,
    )
    return check_task(task, allowed_prefixes=("tests",), seconds=2.0, **options)


@pytest.fixture(scope="module")
def good():
    return check(clip_norm=0.001, round_duration_s=1e-6)


def tell(report, level):
    return [f.message for f in report.findings if f.level is level]


def test_a_regression_works_and_is_measured(good):
    assert good.is_good
    assert demand_good(good) is None
    assert good.num_trained == 3
    assert good.classes == {"trained": 2}
    assert good.num_examples == 16
    assert list(good.metrics) == ["val_mse"]
    assert good.metrics["val_mse"][1] == "LOWER"
    assert good.has_onnx
    assert 0 < good.update_norm < good.clip_norm <= 2.2 * good.update_norm
    assert good.model.get_class("out.bias") == "trained"


def test_each_mode_is_answered_in(good):
    plain, mpc = good.modes["plain"], good.modes["mpc"]
    assert not plain.problem
    assert not mpc.problem
    assert 0 < plain.sent_bytes < mpc.sent_bytes
    assert plain.answer_s > 0
    assert mpc.answer_s > 0


def test_what_will_not_be_as_meant_is_a_warning(good):
    warned = tell(good, Level.WARNING)
    assert any("a clip norm of 0.001 shortens the update" in text for text in warned)
    assert any("will not carry the metric val_emr" in text for text in warned)
    assert any("in PLAIN an agent like this machine needs" in text for text in warned)


@pytest.mark.parametrize(
    ("module", "data_module", "options", "why", "cure"),
    [
        (
            "Line",
            "LineData",
            {"data_config": '{"batchsize": 4}'},
            "LineData doesn't take 'batchsize'",
            "'batch_size' meant?",
        ),
        (
            "Line",
            "LineData",
            {"data_config": '{"batch_size": "4"}'},
            "TypeError: batch_size must be a whole number (tests.unit.cli.odd_tasks",
            "--data-config",
        ),
        ("Line", "LineData", {"data_config": "[]"}, "JSON object", "batch_size"),
        ("Line", "LineData", {"module_config": "{"}, "is not JSON", "--module-config"),
        (
            "Line",
            "LineData",
            {"module_config": '{"hidden": 3}'},
            "Line doesn't take 'hidden'",
            "It takes lr",
        ),
        ("Missing", "LineData", {}, "can't be loaded", "--allow"),
        ("NoModule", "LineData", {}, "NoModule is no LightningModule", "Inherit"),
        ("Line", "Line", {}, "Line is no LightningDataModule", "Inherit"),
        ("Double", "LineData", {}, "STATE_REFUSED: entry 'out.bias'", "--state"),
        ("Wrong", "LineData", {}, "in forward)", "--agent-data-config"),
        (
            "Line",
            "Leaving",
            {},
            "it ends the process: SystemExit",
            "--agent-data-config",
        ),
        ("Lossless", "LineData", {}, "training_step returned no loss", ""),
        ("Plateau", "LineData", {}, "val_los", ""),
        ("TwoOptimisers", "LineData", {}, "multiple optimizers", ""),
        ("Line", "LocalData", {}, "in train_dataloader)", "--agent-data-config"),
        (
            "Line",
            "LineData",
            {"module_config": '{"lr": 1e30}'},
            "training diverges",
            "learning rate",
        ),
    ],
)
def test_what_can_never_work_is_refused_with_a_cure(
    module, data_module, options, why, cure
):
    report = check(module, data_module, **options)
    assert not report.is_good
    [said] = [f for f in report.findings if f.level is Level.REFUSED]
    assert why in said.message
    assert "Traceback" not in said.message
    assert "\n" not in said.message
    assert cure in said.cure
    with pytest.raises(StackError) as caught:
        demand_good(report)
    assert said.message in caught.value.message
    assert "--no-check" in caught.value.hint


def test_an_agents_arguments_are_for_training_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("cli.task_check._export", lambda *_: None)
    path = tmp_path / "data"
    path.touch()
    assert check("Line", "LocalData", agent_data_config={"path": str(path)}).is_good


def test_lazy_layers_and_batch_hooks_work_and_are_named():
    report = check("Lazy", "Hooked")
    assert report.is_good
    assert report.num_trained == 3
    [note] = tell(report, Level.NOTE)
    assert "Hooked.on_after_batch_transfer" in note


def test_training_that_moves_nothing_is_a_warning(monkeypatch):
    monkeypatch.setattr("cli.task_check._export", lambda *_: None)
    report = check("Idle")
    assert "training changes nothing of what is trained" in tell(report, Level.WARNING)
    assert report.clip_norm is None


def test_a_mode_that_cannot_take_the_update_is_refused_only_if_it_is_meant(
    monkeypatch,
):
    monkeypatch.setattr("cli.task_check._export", lambda *_: None)

    def refuse(*_args):
        raise ValueError("too large")

    monkeypatch.setattr("cli.task_check._try_mode", refuse)
    assert check(mode=None).is_good
    report = check(mode="mpc")
    assert tell(report, Level.REFUSED) == ["MPC can't take the update: too large"]


def run(*arguments):
    command = [
        *("task", "check", "--module", f"{HERE}:Line"),
        *("--data-module", f"{HERE}:LineData", "--allow", "tests", *arguments),
    ]
    return CliRunner().invoke(cli.main.app, command)


def test_the_command_answers_in_json_and_by_its_exit_code():
    done = run("--json", "--data-config", '{"batchsize": 4}')
    assert done.exit_code == 1
    answer = json.loads(done.stdout)
    assert answer["works"] is False
    assert answer["findings"][0]["level"] == "REFUSED"


def test_the_command_answers_people(monkeypatch, good):
    monkeypatch.setattr("cli.task_check.check_task", lambda *_a, **_o: good)
    done = run()
    assert done.exit_code == 0
    for text in ("3 trained parameters", "PLAIN", "MPC", "val_mse", "clip norm"):
        assert text in done.stdout
    assert done.stdout.endswith("the task works\n")


def test_a_federation_of_a_task_that_can_never_work_is_not_founded(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(
        "cli.commands.federation.find_kafka",
        lambda: SimpleNamespace(state_directory=tmp_path),
    )
    monkeypatch.setattr("cli.operate.BlobStore", lambda _: None)
    command = [
        *("moot", "federation", "create", "-f", "clinics", "--allow", "tests"),
        *("--module", f"{HERE}:Line", "--data-module", f"{HERE}:LineData"),
        *("--data-config", '{"batchsize": 4}'),
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        cli.main.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "error: the task can't work: --data-config: LineData doesn't take" in said
    assert "Traceback" not in said


def test_nothing_found_is_good():
    assert Report().is_good
