"""Every copy of a model is the same function of the bytes on the ledger.

Six models go through two rounds each, as agents, aggregator and audit compute them;
then whoever has a copy gives the same answers. `tests/integration/test_six_models.py`
runs them on the real stack.
"""

import re
import subprocess
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from adapters.models import write_state  # noqa: E402
from consumers.export.artifacts import export_model  # noqa: E402
from producers.agent.training import evaluate, initialise, train  # noqa: E402
from producers.modes.mpc import encode_within_bound  # noqa: E402
from producers.modes.plain import PlainSide  # noqa: E402
from producers.modes.side import Site  # noqa: E402
from protocol.averaged_apart import NUM_DIGITS  # noqa: E402
from protocol.clipping import compute_squared_norm  # noqa: E402
from protocol.exchanged_state import (  # noqa: E402
    AVERAGED,
    RefusedStateError,
    StateClass,
    model_from_blob,
    model_to_blob,
)
from protocol.model import apply_sum, compute_max_model_size  # noqa: E402
from schemas import events as e  # noqa: E402
from tests.builders import BlobDict, LogBuilder  # noqa: E402
from tests.mpc_builder import MpcLogBuilder  # noqa: E402
from tests.paths import ROOT  # noqa: E402
from tests.six_models import (  # noqa: E402
    CASES,
    ConvNet,
    FrozenBackbone,
    TiedLstm,
)

GOOD = [pytest.param(case, id=case.name) for case in CASES if case.refused is None]
CLASSIFIERS = (ConvNet, FrozenBackbone, TiedLstm)
PLAIN = replace(LogBuilder().configure(BlobDict().store(b"-")), fractional_bits=20)
MPC = replace(
    MpcLogBuilder(norm_bound=2**18).configure(BlobDict().store(b"-")),
    fractional_bits=15,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def encode(update, config):
    """Return an agent's integers, as its mode's side does."""
    if config.mpc is not None:
        return encode_within_bound(update, config)
    site = Site(config=config, genesis=b"", agent_id="ana", store=None)
    return PlainSide(site).encode(update, RoundStub(config.fractional_bits))


class RoundStub:
    def __init__(self, fractional_bits):
        self.fractional_bits = fractional_bits


def run_round(case, blob, config, *, seed):
    """Return the next model's bytes; whoever audits computes the same."""
    base = model_from_blob(blob)
    total, num_examples = np.zeros(base.num_integers, dtype=np.int64), 0
    for organisation in range(2):
        result = train(
            module=case.module,
            module_config={},
            data_module=case.data,
            data_config={"organisation": organisation},
            base=base.tensors,
            local_epochs=3,
            seed=seed + organisation,
        )
        encoded = encode(base.compute_update(result.tensors), config)
        assert encoded.values.shape == (base.num_integers,)
        if config.mpc is not None:
            bound = config.mpc.norm_bound
            assert compute_squared_norm(encoded.values) <= bound**2
        total += encoded.values * result.num_examples
        num_examples += result.num_examples
    sealed = e.RoundSealed(
        federation_id="clinics",
        round=1,
        cause=bytes(32),
        cause_leaf_index=0,
        output_index=0,
        num_contributions=2,
        contributions_sha256=bytes(32),
        num_examples=num_examples,
        base_model=BlobDict().store(blob),
        fractional_bits=config.fractional_bits,
        num_parameters=base.num_integers,
    )
    ours, theirs = (
        apply_sum("FEDAVG", total.copy(), sealed, bytes(blob)).model_blob
        for _ in range(2)
    )
    assert ours == theirs
    assert len(ours) <= compute_max_model_size(sealed.base_model)
    return ours


def load(case, blob, seed):
    """Return a copy of a model, made where nobody knows which random numbers come."""
    torch.manual_seed(seed)
    module = case.module().eval()
    write_state(module, model_from_blob(blob).tensors)
    return module


def take_inputs(case):
    return next(iter(case.data().val_dataloader()))[0]


def answer(module, inputs):
    with torch.inference_mode():
        return module(inputs).numpy()


@pytest.mark.parametrize("case", GOOD)
def test_each_entry_has_the_class_of_its_kind(case):
    model = initialise(module=case.module, module_config={}, seed=1)
    classes = {n: str(c) for n, c in model.classes.items() if c != "trained"}
    assert classes == case.classes
    assert model.tied == case.tied
    assert len(model.to_vector()) == case.num_trained
    # What is frozen, kept or tied costs nothing.
    averaged = sum(model.tensors[n].size for n, c in classes.items() if c in AVERAGED)
    assert model.num_integers == case.num_trained + NUM_DIGITS * averaged


@pytest.mark.parametrize("config", [PLAIN, MPC], ids=["plain", "mpc"])
@pytest.mark.parametrize("case", GOOD)
def test_all_copies_give_the_same_answers(case, config):
    blob = model_to_blob(initialise(module=case.module, module_config={}, seed=1))
    first = blob
    for number in range(2):
        blob = run_round(case, blob, config, seed=10 * number)
    inputs = take_inputs(case)
    answers = [answer(load(case, blob, seed), inputs) for seed in range(3)]
    assert all(each.tobytes() == answers[0].tobytes() for each in answers)
    # The model learned, running statistics and all: it is evaluated with them.
    before, after = (
        evaluate(
            module=case.module,
            module_config={},
            data_module=case.data,
            data_config={},
            tensors=model_from_blob(each).tensors,
        )
        for each in (first, blob)
    )
    assert after.loss < before.loss
    if case.module in CLASSIFIERS:
        exported = export_model(
            module=case.module,
            module_config={},
            data_module=case.data,
            data_config={},
            tensors=model_from_blob(blob).tensors,
        )
        session = onnxruntime.InferenceSession(exported.onnx)
        [name] = [each.name for each in session.get_inputs()]
        theirs = session.run(None, {name: inputs.numpy()})[0]
        np.testing.assert_allclose(theirs, answers[0], rtol=1e-4, atol=1e-4)
        assert exported.accuracy == pytest.approx(after.accuracy)


@pytest.mark.parametrize("case", GOOD)
def test_the_page_for_users_loads_every_model(case, tmp_path, monkeypatch):
    """It says so to people who have no Folkmoot."""
    torch.manual_seed(1)
    model = initialise(module=case.module, module_config={}, seed=1)
    (tmp_path / "model.safetensors").write_bytes(model_to_blob(model))
    page = (ROOT / "docs" / "howto" / "use-the-model.md").read_text(encoding="utf-8")
    [code] = re.findall(r"## In PyTorch\n.*?```python\n(.*?)```", page, re.DOTALL)
    users = ModuleType("clinic_models.xray")
    users.XrayModule = lambda **_: case.module()
    monkeypatch.setitem(sys.modules, users.__name__, users)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(2)
    found = {}
    exec(code, found)
    inputs = take_inputs(case)
    expected = answer(load(case, model_to_blob(model), seed=3), inputs)
    assert answer(found["module"], inputs).tobytes() == expected.tobytes()


def test_a_copy_in_another_process_gives_the_same_answers(tmp_path):
    """And constructors that draw other numbers there change nothing."""
    program = """
import sys, numpy as np, torch
from adapters.models import write_state
from protocol.exchanged_state import model_from_blob
from tests.six_models import CASES
torch.set_num_threads(1)
for case in CASES:
    if case.refused is None:
        module = case.module().eval()
        blob = open(f"{sys.argv[1]}/{case.name}", "rb").read()
        write_state(module, model_from_blob(blob).tensors)
        inputs = next(iter(case.data().val_dataloader()))[0]
        with torch.inference_mode():
            np.save(f"{sys.argv[1]}/{case.name}.npy", module(inputs).numpy())
"""
    cases = [case for case in CASES if case.refused is None]
    for case in cases:
        model = initialise(module=case.module, module_config={}, seed=3)
        (tmp_path / case.name).write_bytes(model_to_blob(model))
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, cwd=ROOT)
    for case in cases:
        ours = answer(
            load(case, (tmp_path / case.name).read_bytes(), 5), take_inputs(case)
        )
        assert np.load(tmp_path / f"{case.name}.npy").tobytes() == ours.tobytes()


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in CASES if c.refused is not None]
)
def test_what_cannot_be_added_up_is_refused_at_the_founding(case):
    with pytest.raises(RefusedStateError, match=case.refused):
        initialise(module=case.module, module_config={}, seed=1)


def test_what_is_frozen_may_train_if_the_founder_says_so():
    rules = [("backbone.1.*", StateClass.TRAINED)]
    model = initialise(module=FrozenBackbone, module_config={}, seed=1, rules=rules)
    assert len(model.to_vector()) == 195 + 108 * 64 + 64
