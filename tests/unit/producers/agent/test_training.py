"""One agent's share of a round."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from adapters.models import (  # noqa: E402
    StateMismatchError,
    demand_determined,
    make_model,
    read_state,
    write_state,
)
from producers.agent.training import (  # noqa: E402
    TrainingError,
    evaluate,
    initial_tensors,
    initialise,
    train,
)
from producers.examples.breast_cancer import (  # noqa: E402
    _SCALES,
    BreastCancerDataModule,
    BreastCancerModule,
)
from producers.examples.digits import DigitsDataModule, DigitsModule  # noqa: E402
from producers.examples.partition import divide_by_label  # noqa: E402
from protocol.aggregation import Accumulator  # noqa: E402
from protocol.encoding import encode_update  # noqa: E402
from protocol.exchanged_state import (  # noqa: E402
    RefusedStateError,
    StateClass,
    model_from_blob,
    model_to_blob,
)
from protocol.strategies import STRATEGIES, move, read_parameters  # noqa: E402
from protocol.tensors import (  # noqa: E402
    flatten,
    manifest_of,
    num_parameters,
    unflatten,
)
from tests.synthetic import (  # noqa: E402
    SyntheticDataModule,
    SyntheticModule,
)

SYNTHETIC = {
    "module": SyntheticModule,
    "module_config": {"num_parameters": 100},
    "data_module": SyntheticDataModule,
    "data_config": {},
}
DIGITS = {"module": DigitsModule, "module_config": {}, "data_module": DigitsDataModule}
FRACTIONAL_BITS = 16


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base():
    return initial_tensors(
        module=SyntheticModule, module_config={"num_parameters": 100}, seed=1
    )


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].tobytes() == right[name].tobytes() for name in left
    )


def test_training_says_what_it_did(base):
    result = train(**SYNTHETIC, base=base, local_epochs=3, seed=1)
    assert result.num_examples == 8
    assert result.num_steps == 3
    assert 0 < result.loss < 2
    assert {n: a.shape for n, a in result.tensors.items()} == {
        n: a.shape for n, a in base.items()
    }
    assert all(array.dtype == np.float32 for array in result.tensors.values())
    assert not same(result.tensors, base)


def test_training_leaves_the_base_alone(base):
    before = {name: array.copy() for name, array in base.items()}
    train(**SYNTHETIC, base=base, local_epochs=1, seed=1)
    assert same(base, before)


def test_the_same_seed_gives_the_same_model():
    config = {"organisation": 1, "num_organisations": 5}
    start = initial_tensors(module=DigitsModule, module_config={}, seed=1)
    first, second, other = (
        train(**DIGITS, data_config=config, base=start, local_epochs=1, seed=seed)
        for seed in (7, 7, 8)
    )
    assert same(first.tensors, second.tensors)
    assert first.loss == second.loss
    assert not same(first.tensors, other.tensors)


def test_the_same_seed_gives_the_same_initial_model():
    first, second, other = (
        initial_tensors(module=DigitsModule, module_config={}, seed=seed)
        for seed in (1, 1, 2)
    )
    assert same(first, second)
    assert not same(first, other)
    assert list(first) == sorted(first)


def test_training_disturbs_neither_random_numbers_nor_settings(base):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(**SYNTHETIC, base=base, local_epochs=1, seed=1)
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_is_quiet_and_leaves_no_files(
    base, capfd, caplog, tmp_path, monkeypatch, recwarn
):
    monkeypatch.chdir(tmp_path)
    train(**SYNTHETIC, base=base, local_epochs=1, seed=1)
    evaluate(**SYNTHETIC, tensors=base)
    assert capfd.readouterr() == ("", "")
    assert not [r for r in caplog.records if "lightning" in r.name]
    assert not list(recwarn)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_class_is_refused(base):
    other = SYNTHETIC | {"module_config": {"num_parameters": 200}}
    with pytest.raises(StateMismatchError, match=r"network\.0\.weight"):
        train(**other, base=base, local_epochs=1, seed=1)
    with pytest.raises(StateMismatchError):
        evaluate(**other, tensors=base)


class _Silent(SyntheticModule):
    def validation_step(self, batch):
        pass


class _Lossless(SyntheticModule):
    def training_step(self, batch):
        return None


class _Endless(SyntheticDataModule):
    def train_dataloader(self):
        examples = super().train_dataloader().dataset

        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(examples)

        return torch.utils.data.DataLoader(Stream(), batch_size=2)


def test_a_module_that_does_not_log_is_refused(base):
    with pytest.raises(TrainingError, match="val_accuracy"):
        evaluate(**SYNTHETIC | {"module": _Silent}, tensors=base)


def test_a_module_without_a_loss_is_refused(base):
    lossless = SYNTHETIC | {"module": _Lossless}
    with pytest.raises(TrainingError, match="no loss"):
        train(**lossless, base=base, local_epochs=1, seed=1)


def test_data_of_unknown_length_is_refused(base):
    endless = SYNTHETIC | {"data_module": _Endless}
    with pytest.raises(TrainingError, match="known length"):
        train(**endless, base=base, local_epochs=1, seed=1)


def test_the_whole_state_is_read_and_written_in_its_own_types():
    module = torch.nn.BatchNorm1d(2)
    state = read_state(module)
    assert {name: str(array.dtype) for name, array in state.items()} == {
        "bias": "float32",
        "num_batches_tracked": "int64",
        "running_mean": "float32",
        "running_var": "float32",
        "weight": "float32",
    }
    write_state(module, {name: array + 1 for name, array in state.items()})
    assert module.running_mean.tolist() == [1, 1]
    assert module.num_batches_tracked.item() == 1
    assert module.weight.requires_grad
    for name, array in state.items():  # copies: the module has moved on
        assert not np.array_equal(array, module.state_dict()[name].numpy())


@pytest.mark.parametrize(
    "change",
    [
        {"weight": np.zeros(2)},
        {"weight": np.zeros(3, dtype="f4")},
        {"num_batches_tracked": np.array(0, dtype="i4")},
        {"num_batches_tracked": None},
        {"more": np.zeros(2, dtype="f4")},
    ],
)
def test_a_state_of_other_entries_shapes_or_types_is_refused(change):
    module = torch.nn.BatchNorm1d(2)
    state = {n: a + 1 for n, a in read_state(module).items()} | change
    before = read_state(module)
    with pytest.raises(StateMismatchError, match=next(iter(change))):
        write_state(module, {n: a for n, a in state.items() if a is not None})
    assert same(read_state(module), before)


class _OfItsOwn(torch.Tensor):
    """A kind of tensor of which only its author knows what it holds."""


class _Stateful(torch.nn.Module):
    """One learned parameter, and whatever else a module can hold."""

    def __init__(self, **entries):
        super().__init__()
        self.learned = torch.nn.Parameter(torch.ones(2))
        self.extra = entries.pop("extra", None)
        for name, entry in entries.items():
            if isinstance(entry, torch.nn.Parameter):
                setattr(self, name, entry)
            else:
                self.register_buffer(name, entry)

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


def _without_extra(**entries):
    module = _Stateful(**entries)
    module._register_state_dict_hook(lambda _m, d, p, _l: d.pop(f"{p}_extra_state"))
    return module


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (torch.nn.Parameter(torch.ones(1), requires_grad=False), "fixed"),
        (torch.nn.Parameter(torch.ones(1)), "trained"),
        (torch.nn.Parameter(torch.ones(0, 3)), "trained"),
        (torch.nn.Parameter(torch.tensor(1.0)), "trained"),
        (torch.nn.Parameter(torch.ones(3, 2).t()), "trained"),
        (torch.nn.Parameter(torch.ones(1).double(), requires_grad=False), "fixed"),
        (torch.zeros(1), "averaged-apart"),
        (torch.zeros(1, dtype=torch.float64), "averaged-apart"),
        (torch.zeros(1, dtype=torch.float16), "averaged-apart"),
        (torch.tensor([0, -torch.inf]), "fixed"),
        (torch.zeros(2, dtype=torch.uint16), "kept"),
        (torch.tensor(3), "kept"),
        (torch.tensor([True]), "kept"),
        (torch.zeros(2, dtype=torch.uint8), "kept"),
    ],
)
def test_entries_have_the_class_of_their_kind(entry, expected):
    model = make_model(_without_extra(it=entry))
    assert {n: str(model.get_class(n)) for n in model.tensors} == {
        "it": expected,
        "learned": "trained",
    }
    assert same(model_from_blob(model_to_blob(model)).tensors, model.tensors)


@pytest.mark.parametrize(
    "entry",
    [
        torch.zeros(1, dtype=torch.cfloat),
        torch.zeros(1, dtype=torch.cfloat).conj(),
        torch.zeros(1, dtype=torch.bfloat16),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, 2).to_sparse_csr(),
        torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        torch.zeros(2).to(torch.float8_e4m3fn),
        torch.zeros(1).expand(3),
        torch.zeros(2).as_subclass(_OfItsOwn),
        torch.nn.Parameter(torch.zeros(1, dtype=torch.cfloat)),
        torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)),
        torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)),
        torch.nn.Parameter(torch.zeros(1, dtype=torch.float16)),
        torch.nn.Parameter(torch.zeros(1, dtype=torch.cfloat), requires_grad=False),
        torch.nn.Parameter(torch.full((1,), torch.nan)),
        torch.nn.Parameter(torch.empty(1, device="meta")),
    ],
    ids=str,
)
def test_what_cannot_be_exchanged_is_refused_by_name(entry):
    with pytest.raises(RefusedStateError, match="'it'"):
        make_model(_without_extra(it=entry))


@pytest.mark.parametrize("extra", [{"epoch": 1}, None, torch.ones(1)])
def test_what_only_the_module_can_read_is_refused(extra):
    with pytest.raises(RefusedStateError, match=r"'_extra_state'.*buffers"):
        make_model(_Stateful(extra=extra))


@pytest.mark.parametrize(
    ("entry", "cure"),
    [
        (torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)), "make it float32"),
        (torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)), r"\.float\(\)"),
        (torch.nn.Parameter(torch.zeros(1, dtype=torch.cfloat)), "two float32 entries"),
        (torch.zeros(2, 2).to_sparse(), "make it dense"),
        (torch.zeros(1).expand(3), "clone it"),
    ],
    ids=str,
)
def test_a_refusal_says_what_to_do(entry, cure):
    with pytest.raises(RefusedStateError, match=cure):
        make_model(_without_extra(it=entry))


def _tie(how):
    module = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False)})
    weight = module["a"].weight
    module["b"] = torch.nn.Linear(2, 2, bias=False)
    if how == "parameter":
        module["b"].weight = weight
    elif how == "module":
        module["b"] = module["a"]
    elif how == "memory":
        module["b"].weight = torch.nn.Parameter(weight.detach())
    elif how == "buffer":
        del module["b"].weight
        module["b"].register_buffer("weight", weight.detach())
    elif how == "transposed":
        module["b"].weight = torch.nn.Parameter(weight.detach().t())
    elif how == "part":
        module["b"].weight = torch.nn.Parameter(weight.detach()[:1])
    return module


@pytest.mark.parametrize("how", ["parameter", "module", "memory", "buffer"])
def test_a_tied_tensor_is_one_entry(how):
    module = _tie(how)
    model = make_model(module)
    assert model.tied == {"b.weight": "a.weight"}
    assert model.num_integers == len(model.to_vector()) == 4
    write_state(module, {"a.weight": np.full((2, 2), 7, dtype="f4")})
    assert module["b"].weight.tolist() == [[7, 7], [7, 7]]
    # A module that isn't tied is another function.
    with pytest.raises(StateMismatchError, match=r"b\.weight"):
        write_state(_tie("not at all"), model.tensors)


@pytest.mark.parametrize("how", ["transposed", "part"])
def test_what_shares_a_part_of_its_memory_is_refused(how):
    with pytest.raises(RefusedStateError, match=r"'[ab]\.weight' and '[ab].*share"):
        make_model(_tie(how))


def test_a_buffer_that_is_not_saved_is_the_same_in_every_copy():
    def make():
        module = torch.nn.Linear(2, 2)
        module.register_buffer("cache", torch.rand(3), persistent=False)
        return module

    model = make_model(make())
    assert model.get_class("cache") is StateClass.KEPT
    other = make()
    write_state(other, model.tensors)
    assert same(read_state(other), model.tensors)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.nn.utils.parametrizations.weight_norm,
        torch.nn.utils.parametrizations.spectral_norm,
        torch.nn.utils.parametrizations.orthogonal,
        torch.nn.utils.spectral_norm,
        lambda layer: torch.nn.utils.prune.random_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_reparametrised_layer_is_the_same_function_in_every_copy(wrap):
    def make(seed):
        torch.manual_seed(seed)
        return torch.nn.Sequential(wrap(torch.nn.Linear(3, 3)))

    module = make(0)
    demand_determined(module, make(1))
    module(torch.rand(5, 3))  # in training, some measure
    model = make_model(module.eval())
    inputs = torch.rand(4, 3)
    for seed in (1, 2):
        other = make(seed).eval()
        write_state(other, model.tensors)
        assert torch.equal(other(inputs), module(inputs))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randperm(64),
        lambda: [torch.nn.Linear(2, 2)],  # in a list, so not registered
        lambda: torch.rand(1).item(),
        lambda: {"shift": (torch.rand(2).numpy(),)},
        lambda: torch.rand(3).to(torch.bfloat16),
    ],
)
def test_what_a_constructor_draws_and_no_file_holds_is_refused(draw):
    class Drawing(SyntheticModule):
        def __init__(self, num_parameters):
            super().__init__(num_parameters=num_parameters)
            self.drawn = draw()

    with pytest.raises(RefusedStateError, match=r"drawn.*make it a buffer"):
        initialise(module=Drawing, module_config={"num_parameters": 100}, seed=1)


def test_what_a_constructor_makes_the_same_each_time_is_no_matter():
    class Constant(SyntheticModule):
        def __init__(self, num_parameters):
            super().__init__(num_parameters=num_parameters)
            self.class_weights = torch.tensor([0.1, 0.9])
            self.scale, self.layers, self.hparam = 3.5, [torch.eye(2)], {"a": None}

    initialise(module=Constant, module_config={"num_parameters": 100}, seed=1)


class _Spectral(SyntheticModule):
    """A layer in the frequency domain."""

    def __init__(self, *, is_real):
        super().__init__(num_parameters=100)
        drawn = torch.randn(9, dtype=torch.cfloat)
        shown = torch.view_as_real(drawn).clone() if is_real else drawn
        self.spectrum = torch.nn.Parameter(shown)

    def forward(self, inputs):
        spectrum = self.spectrum
        if not spectrum.is_complex():
            spectrum = torch.view_as_complex(spectrum)
        shaped = torch.fft.irfft(torch.fft.rfft(inputs) * spectrum, n=16)
        return super().forward(shaped)


def test_complex_weights_are_refused_and_their_halves_are_exchanged():
    """They were dropped without a word: each copy had its own."""
    with pytest.raises(RefusedStateError, match=r"'spectrum'.*complex64.*two float32"):
        initialise(module=_Spectral, module_config={"is_real": False}, seed=1)
    model = initialise(module=_Spectral, module_config={"is_real": True}, seed=1)
    inputs, answers = torch.rand(4, 16), []
    for seed in range(4):
        torch.manual_seed(seed)
        module = _Spectral(is_real=True).eval()
        write_state(module, model.tensors)
        answers.append(module(inputs))
    assert all(torch.equal(each, answers[0]) for each in answers)


def test_a_module_that_does_not_hold_what_was_written_is_refused():
    class Deaf(torch.nn.Linear):
        def named_parameters(self, *args, **options):
            # Of parameters that a property makes, writing reaches a copy.
            for name, parameter in super().named_parameters(*args, **options):
                yield name, torch.nn.Parameter(parameter.detach().clone())

    module = Deaf(2, 2)
    state = {name: array + 1 for name, array in read_state(module).items()}
    with pytest.raises(StateMismatchError, match="doesn't hold what was written"):
        write_state(module, state)


@pytest.mark.parametrize(
    "entry",
    [
        torch.nn.LazyLinear(2),
        torch.nn.ParameterList([torch.nn.UninitializedParameter()]),
    ],
    ids=str,
)
def test_what_is_not_made_yet_is_refused(entry):
    with pytest.raises(RefusedStateError, match=r"no array|no state"):
        make_model(torch.nn.ModuleList([torch.nn.Linear(1, 1), entry]))


def test_a_mask_is_fixed_or_what_the_founder_says():
    module = _without_extra(it=torch.tensor([0, -torch.inf]))
    model = make_model(module, [("it", StateClass.FIXED)])
    assert model.get_class("it") is StateClass.FIXED
    with pytest.raises(RefusedStateError, match="infinity"):
        make_model(module, [("it", StateClass.TRAINED)])


class _Normalised(SyntheticModule):
    """Running statistics, a counter, a frozen layer, a random table of integers."""

    def __init__(self, num_parameters, *, is_sloppy=False):
        super().__init__(num_parameters=num_parameters)
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("shuffle", torch.randperm(64))
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(requires_grad=False)
        self.is_sloppy = is_sloppy

    def forward(self, inputs):
        return self.frozen(self.norm(super().forward(inputs)))

    def on_train_end(self):
        if self.is_sloppy:
            self.frozen.bias += 1


NORMALISED = SYNTHETIC | {
    "module": _Normalised,
    "module_config": {"num_parameters": 100},
}


def test_a_round_of_a_model_with_a_state_of_many_classes():
    model = initialise(
        module=_Normalised, module_config={"num_parameters": 100}, seed=1
    )
    assert {n: str(c) for n, c in model.classes.items() if c != "trained"} == {
        "frozen.bias": "fixed",
        "frozen.weight": "fixed",
        "norm.num_batches_tracked": "kept",
        "norm.running_mean": "averaged-apart",
        "norm.running_var": "averaged-apart-unsigned",
        "shuffle": "kept",
    }
    result = train(**NORMALISED, base=model.tensors, local_epochs=2, seed=5)
    assert result.tensors["norm.num_batches_tracked"] > 0
    update = model.compute_update(result.tensors)
    after = model.replace_moved(model.to_vector() + update.trained, update.after)
    # Random as it was made, and the same in every copy of the model.
    assert np.array_equal(after.tensors["shuffle"], model.tensors["shuffle"])
    assert after.tensors["norm.num_batches_tracked"] == 0
    assert after.tensors["norm.running_mean"].any()
    evaluate(**NORMALISED, tensors=after.tensors)


def test_training_that_changes_a_frozen_layer_is_refused():
    model = initialise(
        module=_Normalised, module_config={"num_parameters": 100}, seed=1
    )
    sloppy = {"num_parameters": 100, "is_sloppy": True}
    result = train(
        **NORMALISED | {"module_config": sloppy},
        base=model.tensors,
        local_epochs=1,
        seed=1,
    )
    with pytest.raises(RefusedStateError, match=r"frozen\.bias"):
        model.compute_update(result.tensors)


@pytest.mark.parametrize("num", [21, 100, 1_000, 1_000_000])
def test_the_synthetic_model_is_about_as_large_as_asked(num):
    tensors = initial_tensors(
        module=SyntheticModule, module_config={"num_parameters": num}, seed=1
    )
    assert num - 18 <= num_parameters(manifest_of(tensors)) <= num


def test_a_division_gives_every_example_to_one_organisation():
    labels = np.arange(100) % 3
    division = {
        "num_organisations": 7, "alpha": 0.05, "seed": 1, "min_examples": 5,
    }  # fmt: skip
    parts = divide_by_label(labels, **division)
    assert sorted(np.concatenate(parts).tolist()) == list(range(100))
    assert min(map(len, parts)) >= 5
    again = divide_by_label(labels, **division)
    assert [p.tolist() for p in parts] == [p.tolist() for p in again]
    with pytest.raises(ValueError, match="too few"):
        divide_by_label(labels, **division | {"min_examples": 15})


@pytest.mark.parametrize("data_module", [DigitsDataModule, BreastCancerDataModule])
def test_organisations_share_the_held_out_data_and_nothing_else(data_module):
    modules = [data_module(organisation=i, num_organisations=4) for i in range(4)]
    held_out = [m.val_dataloader().dataset.tensors[0] for m in modules]
    assert all(torch.equal(held_out[0], other) for other in held_out)
    everything = data_module().train_dataloader().dataset
    assert sum(len(m.train_dataloader().dataset) for m in modules) == len(everything)


def test_the_published_scales_come_from_training_data_alone():
    inputs = BreastCancerDataModule().train_dataloader().dataset.tensors[0].numpy()
    assert len(_SCALES) == inputs.shape[1]
    assert np.abs(inputs.mean(axis=0)).max() < 0.02
    assert np.abs(inputs.std(axis=0) - 1).max() < 0.02


def test_breast_cancer_trains():
    model = {
        "module": BreastCancerModule,
        "module_config": {},
        "data_module": BreastCancerDataModule,
        "data_config": {},
    }
    start = initial_tensors(module=BreastCancerModule, module_config={}, seed=1)
    result = train(**model, base=start, local_epochs=3, seed=1)
    assert evaluate(**model, tensors=result.tensors).accuracy > 0.9


def test_together_organisations_learn_what_none_learns_alone():
    configs = [{"organisation": i, "num_organisations": 5} for i in range(5)]
    start = initial_tensors(module=DigitsModule, module_config={}, seed=0)
    manifest = manifest_of(start)

    def accuracy(tensors):
        return evaluate(**DIGITS, data_config={}, tensors=tensors).accuracy

    model = start
    for round_index in range(5):
        accumulator = Accumulator(num_parameters(manifest))
        before = flatten(model, manifest)
        for config in configs:
            result = train(
                **DIGITS,
                data_config=config,
                base=model,
                local_epochs=2,
                seed=round_index,
            )
            delta = flatten(result.tensors, manifest) - before
            accumulator.add(encode_update(delta, FRACTIONAL_BITS), result.num_examples)
        after, _ = move(
            STRATEGIES["FEDAVG"],
            before,
            accumulator.total,
            num_examples=accumulator.num_examples,
            fractional_bits=FRACTIONAL_BITS,
            parameters=read_parameters(STRATEGIES["FEDAVG"], ()),
        )
        model = unflatten(after, manifest)

    alone = [
        train(**DIGITS, data_config=config, base=start, local_epochs=10, seed=0)
        for config in configs
    ]
    assert accuracy(model) > 0.9
    assert max(accuracy(result.tensors) for result in alone) < 0.8
