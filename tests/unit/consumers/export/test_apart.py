"""Users' code in a process of its own, and what of it costs its own model alone.

The modules are real, and so is the process.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from consumers.export import apart, exporter  # noqa: E402
from consumers.export.apart import (  # noqa: E402
    ChildError,
    Ending,
    ExportProcess,
    ExportTask,
    Stopped,
)
from consumers.export.exporter import Exporter  # noqa: E402
from protocol.encoding import update_to_blob  # noqa: E402
from protocol.exchanged_state import Model, model_to_blob  # noqa: E402
from schemas import events as e  # noqa: E402
from tests import builders  # noqa: E402
from tests.builders import LogBuilder, make_key, read_blocks  # noqa: E402
from tests.paths import ROOT  # noqa: E402

SOURCE = """
    import ctypes, errno, os, sys, time, warnings
    import torch
    from pytorch_lightning import LightningDataModule, LightningModule
    from torch.utils.data import DataLoader, TensorDataset

    class Unspeakable(Exception):
        def __str__(self):
            raise SystemExit(7)

    def deepen(): deepen()
    def leave(): sys.exit("enough")
    def vanish(): os._exit(3)
    def crash(): ctypes.string_at(0)
    def hang(): time.sleep(600)
    def exhaust(): raise MemoryError
    def fill(): raise OSError(errno.ENOSPC, "No space left on device")
    def lack(): import nowhere_to_be_found
    def refuse(): raise Unspeakable
    def assert_it(): assert False, "no"
    def stop(): raise StopIteration
    def end(): raise GeneratorExit
    def warn(): warnings.simplefilter("error"); warnings.warn("a warning")

    class Model(LightningModule):
        def __init__(self, where="", how="", shape=""):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(5))
            self.bias = torch.nn.Parameter(torch.zeros(1))
            self.how, self.shape = (how if where == "forward" else ""), shape
            if where == "init": globals()[how]()

        def forward(self, x):
            if self.how: globals()[self.how]()
            s = (x @ self.weight + self.bias).unsqueeze(1)
            if self.shape == "one": return s
            if self.shape == "pair": return s, s
            if self.shape == "choice": return torch.cat([s, -s], 1).argmax(1)
            if self.shape == "bfloat16": return torch.cat([s, -s], 1).bfloat16()
            if self.shape == "none": return None
            # No number for large parameters.
            return torch.cat([s.exp() - s.exp() + s, -s], 1)

        def validation_step(self, batch):
            x, y = batch
            logits = self(x)
            self.log("val_loss", torch.nn.functional.cross_entropy(logits, y))
            self.log("val_accuracy", (logits.argmax(1) == y).float().mean())

    class Examples(LightningDataModule):
        def __init__(self, where="", how="", labels="", batches=""):
            super().__init__()
            self.where, self.how = where, how
            self.labels, self.batches = labels, batches
            if where == "init": globals()[how]()

        def prepare_data(self):
            if self.where == "prepare": globals()[self.how]()

        def val_dataloader(self):
            if self.where == "loader": globals()[self.how]()
            if self.batches == "none": return None
            if self.batches == "empty": return []
            if self.batches == "number": return 7
            if self.batches == "texts": return ["a batch"]
            y = torch.tensor([0, 1, 0, 1])
            if self.labels == "float": y = y.float()
            if self.labels == "bool": y = y.bool()
            if self.labels == "one-hot": y = torch.nn.functional.one_hot(y, 2).float()
            if self.labels in {"-1", "-100", "2"}:
                y = y.clone(); y[::2] = int(self.labels)
            return DataLoader(TensorDataset(torch.ones(4, 5), y), batch_size=2)
"""
MODEL = model_to_blob(
    Model({"weight": np.zeros(5, np.float32), "bias": np.zeros(1, np.float32)}, {})
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def _clinic(tmp_path_factory):
    """Let modules be found as a user's are: on the path of the process."""
    folder = tmp_path_factory.mktemp("users")
    (folder / "clinic.py").write_text(textwrap.dedent(SOURCE))
    (folder / "leaving.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield
    sys.modules.pop("clinic", None)


def make_task(model=None, data=None, **changes):
    plain = {
        "module": "clinic:Model",
        "module_config": json.dumps(model or {}),
        "data_module": "clinic:Examples",
        "data_config": json.dumps(data or {}),
        "allowed_prefixes": ("clinic", "leaving", "nowhere"),
    }
    return ExportTask(**plain | changes)


def export_here(task, model=MODEL):
    """Export as the child does, in this process."""
    return apart._export(task, model)


# What any code may raise or return


PLACES = ("init", "prepare", "loader", "forward")
ERRORS = ("deepen", "leave", "lack", "refuse", "assert_it", "stop", "end", "warn")


@pytest.mark.parametrize(
    ("where", "how"),
    [
        # By day each place and each error once or twice: most cases export a model.
        pytest.param(where, how, marks=() if (i - j) % 4 == 0 else pytest.mark.nightly)
        for i, where in enumerate(PLACES)
        for j, how in enumerate(ERRORS)
    ],
)
def test_whatever_users_code_raises_its_model_gets_a_sentence(where, how):
    what = {"where": where, "how": how}
    is_module = where in {"init", "forward"}
    outcome = export_here(
        make_task(what if is_module else None, None if is_module else what)
    )
    assert outcome.ending in {Ending.REFUSED, Ending.EXPORTED}
    assert outcome.measured is None
    assert outcome.why
    assert "\n" not in outcome.why


@pytest.mark.parametrize("shape", ["one", "pair", "choice", "bfloat16", "none"])
def test_whatever_a_module_returns_is_measured_or_a_sentence_says_why_not(shape):
    outcome = export_here(make_task({"shape": shape}))
    assert outcome.measured is not None or outcome.why


@pytest.mark.parametrize("batches", ["none", "empty", "number", "texts"])
def test_whatever_a_data_module_returns_a_sentence_says_why_nothing_is_measured(
    batches,
):
    outcome = export_here(make_task(None, {"batches": batches}))
    assert outcome.measured is None
    assert outcome.why


@pytest.mark.parametrize("labels", ["float", "bool", "-1", "2"])
def test_labels_that_are_no_classes_are_not_counted_as_some(labels):
    """-1 was the last class, silently."""
    outcome = export_here(make_task(None, {"labels": labels}))
    assert outcome.measured is None
    assert "not measured: " in outcome.why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"module": "nowhere:Model"}, "nowhere:Model can't be loaded"),
        ({"module": "clinic:Nothing"}, "clinic:Nothing can't be loaded"),
        ({"module": "leaving:Model"}, "it ends the process: SystemExit"),
        ({"module": "no path"}, "not of the form"),
        ({"module_config": '{"unknown": 1}'}, "unexpected keyword argument"),
        ({"data_config": '{"unknown": 1}'}, "unexpected keyword argument"),
    ],
)
def test_what_cannot_be_loaded_is_refused(change, why):
    outcome = export_here(make_task(**change))
    assert outcome.ending is Ending.REFUSED
    assert why in outcome.why


@pytest.mark.parametrize("model", [b"", b"no file", MODEL[:-4]])
def test_bytes_that_are_no_model_are_refused(model):
    assert export_here(make_task(), model).ending is Ending.REFUSED


@pytest.mark.parametrize(
    ("how", "ending"), [("exhaust", Ending.FAILED), ("fill", Ending.WAITS)]
)
@pytest.mark.parametrize("where", ["init", "forward"])
def test_what_this_machine_lacks_is_no_models_fault(where, how, ending):
    outcome = export_here(make_task({"where": where, "how": how}))
    assert outcome.ending is ending


def test_code_that_this_exporter_may_not_run_waits_for_its_operator():
    outcome = export_here(make_task(allowed_prefixes=("others",)))
    assert outcome.ending is Ending.WAITS
    assert "may not be run here" in outcome.why


# What it may do to its process


def run(process, task, limit_s=60.0):
    process._limit_s = limit_s
    return process.export(task, MODEL, lambda: False)


def test_a_process_that_ends_or_hangs_is_replaced_and_the_next_model_is_exported():
    process = ExportProcess(60.0)
    try:
        for how, ending, why in (
            ("vanish", Ending.FAILED, "ended with exit code 3"),
            ("crash", Ending.FAILED, "ended by signal SIG"),
            ("hang", Ending.REFUSED, "it took longer than"),
        ):
            limit_s = 2.0 if how == "hang" else 60.0
            task = make_task({"where": "init", "how": how})
            outcome = run(process, task, limit_s)
            assert outcome.ending is ending
            assert why in outcome.why
        good = run(process, make_task())
        assert good.ending is Ending.EXPORTED
        assert good.measured.num_examples == 4
        child = process._child
        assert run(process, make_task()).onnx == good.onnx
        assert process._child is child  # torch is imported once
    finally:
        process.end()
    assert child.poll() is not None


def test_it_stops_when_told_and_when_its_exporter_dies():
    process = ExportProcess(60.0)
    process.start()
    child = process._child
    with pytest.raises(Stopped):
        process.export(make_task(), MODEL, lambda: True)
    assert child.poll() is not None
    program = (
        "import os, signal; from consumers.export.apart import ExportProcess; "
        "p = ExportProcess(9); p.start(); print(p._child.pid, flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    orphan = int(killed.stdout)
    deadline = time.monotonic() + 60
    while is_alive(orphan) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(orphan)


def is_alive(pid):
    """Return whether a process runs that is no child of this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return not Path("/proc/self").exists()


@pytest.mark.parametrize("program", [shutil.which("false"), "/nonexistent/python"])
def test_a_process_that_cannot_begin_says_so(monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)
    process = ExportProcess(60.0)
    with pytest.raises(ChildError, match="the exporting process cannot start: "):
        run(process, make_task())
    process.end()


# As a whole: what was a crash loop


def test_after_a_model_that_cannot_be_exported_later_ones_are_registered(monkeypatch):
    """Of two published models the first gives NaN."""
    task = e.Task(
        module="clinic:Model",
        module_config="{}",
        data_module="clinic:Examples",
        data_config="{}",
        local_epochs=1,
    )
    monkeypatch.setattr(builders, "TASK", task)
    log = LogBuilder(ledger_nodes=())
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    for scale in (100.0, -100.0):
        for agent in log.request_round():
            update = np.full(log.num_parameters, int(scale * 2**20), np.int32)
            log.submit(agent, blob=update_to_blob(update))
        log.settle()
        log.check()
        log.aggregate()
    said = []

    class Publisher:
        def __init__(self, *_):
            pass

        def publish(self, event, _key, _genesis, *, traceparent):
            assert traceparent
            said.append((event.round, str(event.no_onnx), str(event.no_evaluation)))

    monkeypatch.setattr(
        exporter, "follow_log", lambda *_: iter([*read_blocks(log), exporter.END])
    )
    monkeypatch.setattr(exporter, "Publisher", Publisher)
    monkeypatch.setattr(exporter, "SchemaRegistry", lambda _: None)
    monkeypatch.setattr(exporter, "BlobStore", lambda _: log.blobs)
    settings = type("Settings", (), {"schema_registry_url": ""})()
    one = Exporter(settings, "clinics", make_key("EXPORTER"), ("clinic",))
    one.run(lambda: False)
    assert said == [(1, "NOT_EXPORTABLE", ""), (2, "", "")]
