"""Six models, each in every mode, on the real stack: `tests/six_models.py`.

Agents of `moot agent run` train them, the exporter exports what it can, the audit
recomputes the rounds. Whoever then loads the model that is on the ledger gives the
same answers.
"""

import json
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from adapters.models import write_state  # noqa: E402
from cli.modes.mpc import show_party  # noqa: E402
from protocol.exchanged_state import model_from_blob  # noqa: E402
from schemas import events as e  # noqa: E402
from tests.integration.harness import World  # noqa: E402
from tests.six_models import CASES, Case, ConvNet, TiedLstm  # noqa: E402

AGENTS = ("yarrow", "zinnia")
PARTIES = ("mound", "tumulus")
NUM_ROUNDS = 2
ROUND_S = 180.0
BY_DAY = {(ConvNet, "plain"), (TiedLstm, "mpc")}
GOOD = [
    pytest.param(
        *(case, mode),
        id=f"{case.name}-{mode}",
        marks=() if (case.module, mode) in BY_DAY else pytest.mark.nightly,
    )
    for case in CASES
    if case.refused is None
    for mode in ("plain", "mpc")
]


@pytest.fixture(scope="module")
def parties(world: World) -> Iterator[list[str]]:
    """Options of `federation create` that name two running parties."""
    made = world.services.start_parties(world.settings, *PARTIES)
    yield [f"--party={show_party(party)}" for party in made]
    world.services.stop(*(f"party-{name}" for name in PARTIES))


def create(world: World, case: Case, name: str, *options: str) -> tuple[int, str]:
    finished = world.moot(
        "federation", "create", "--federation", name, "--allow", "tests.six_models",
        "--module", case.path(case.module), "--data-module", case.path(case.data),
        "--min-cohort", "2", "--cohort-size", "2", "--local-epochs", "3", *options,
    )  # fmt: skip
    return finished.returncode, finished.stdout + finished.stderr


@pytest.mark.parametrize(("case", "mode"), GOOD)
def test_a_model_is_the_same_function_for_everybody(
    world: World, parties: list[str], case: Case, mode: str
) -> None:
    name = f"six-{case.name.lower()}-{mode}"
    options = [*parties, "--clip-norm=8"] if mode == "mpc" else []
    code, said = create(world, case, name, *options)
    assert code == 0, said
    assert f": {case.num_trained} trained values" in said
    federation = world.join(name)
    federation.wait(e.FederationConfigured)
    allow = ("--allow", "tests.six_models")
    services = [f"timer-{name}", f"exporter-{name}", *(f"{a}-{name}" for a in AGENTS)]
    world.start_timer(name)
    world.services.start(services[1], "serve", "exporter", "--federation", name, *allow)
    for index, agent in enumerate(AGENTS):
        world.services.start(
            services[2 + index], "agent", "run", agent, "--federation", name, *allow,
            "--operator-key", world.operator_key.public_key.hex(),
            "--data-config", json.dumps({"organisation": index}),
        )  # fmt: skip
    for agent in AGENTS:
        asked = federation.wait(e.AgentEnrolmentRequested, ROUND_S, agent_id=agent)
        federation.operator.admit(name, {agent: asked.public_key})
        federation.wait(e.AgentAdmitted, agent_id=agent)

    versions = [federation.run_round(ROUND_S) for _ in range(NUM_ROUNDS)]
    assert [version.version for version in versions] == [1, 2]
    published = federation.wait(e.AggregatePublished, round=NUM_ROUNDS)
    assert published.num_contributions == len(AGENTS)
    blob = world.store.fetch(published.model, max_size_bytes=10**6)
    model = model_from_blob(blob)
    classes = {n: str(c) for n, c in model.classes.items() if c != "trained"}
    assert (classes, model.tied) == (case.classes, case.tied)
    copies = []
    for seed in range(2):
        torch.manual_seed(seed)
        copies.append(case.module().eval())
        write_state(copies[-1], model.tensors)
    inputs, _ = next(iter(case.data().val_dataloader()))
    with torch.inference_mode():
        first, second = (copy(inputs).numpy() for copy in copies)
    assert first.tobytes() == second.tobytes()
    exported = versions[-1].onnx
    if exported is not None:
        onnx = world.store.fetch(exported, max_size_bytes=10**7)
        session = onnxruntime.InferenceSession(onnx)
        [given] = session.get_inputs()
        [answers] = session.run(None, {given.name: inputs.numpy()})
        np.testing.assert_allclose(answers, first, rtol=1e-4, atol=1e-4)
    assert exported is not None or case.module not in {ConvNet, TiedLstm}
    # The audit computed both rounds again, to the bit.
    assert federation.audit()["num_rounds_recomputed"] == NUM_ROUNDS
    world.services.stop(*services)


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in CASES if c.refused is not None]
)
def test_a_model_that_cannot_be_added_up_founds_nothing(
    world: World, case: Case
) -> None:
    code, said = create(world, case, "six-refused")
    assert code != 0
    assert "STATE_REFUSED" in said
    assert "bfloat16" in said
    assert "float32" in said
    assert world.moot("federation", "show", "-f", "six-refused").returncode != 0
