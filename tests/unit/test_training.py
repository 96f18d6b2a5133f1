"""One agent's share of a round."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from adapters.models import StateMismatchError, read_state, write_state  # noqa: E402
from producers.examples.breast_cancer import (  # noqa: E402
    _SCALES,
    BreastCancerDataModule,
    BreastCancerModule,
)
from producers.examples.digits import DigitsDataModule, DigitsModule  # noqa: E402
from producers.examples.partition import divide_by_label  # noqa: E402
from producers.examples.synthetic import (  # noqa: E402
    SyntheticDataModule,
    SyntheticModule,
)
from producers.training import (  # noqa: E402
    TrainingError,
    evaluate,
    initial_tensors,
    train,
)
from protocol.aggregation import Accumulator  # noqa: E402
from protocol.encoding import encode_update  # noqa: E402
from protocol.strategies import fedavg  # noqa: E402
from protocol.tensors import (  # noqa: E402
    flatten,
    manifest_of,
    num_parameters,
    unflatten,
)

SYNTHETIC = {
    "module": SyntheticModule,
    "module_config": {"num_parameters": 100},
    "data_module": SyntheticDataModule,
    "data_config": {},
}
DIGITS = {"module": DigitsModule, "module_config": {}, "data_module": DigitsDataModule}
FRACTIONAL_BITS = 16


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


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


def test_integer_buffers_are_not_exchanged():
    module = torch.nn.BatchNorm1d(2)
    state = read_state(module)
    assert sorted(state) == ["bias", "running_mean", "running_var", "weight"]
    write_state(module, {name: array + 1 for name, array in state.items()})
    assert module.running_mean.tolist() == [1, 1]
    assert module.weight.requires_grad


def test_half_precision_is_exchanged_as_float32():
    module = torch.nn.Linear(1, 1).bfloat16()
    write_state(module, {"weight": np.float32([[0.5]]), "bias": np.float32([2])})
    state = read_state(module)
    assert (state["weight"].dtype, state["weight"].item()) == (np.float32, 0.5)


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
        after = fedavg(
            before, accumulator.total, accumulator.num_examples, FRACTIONAL_BITS
        )
        model = unflatten(after, manifest)

    alone = [
        train(**DIGITS, data_config=config, base=start, local_epochs=10, seed=0)
        for config in configs
    ]
    assert accuracy(model) > 0.9
    assert max(accuracy(result.tensors) for result in alone) < 0.8
