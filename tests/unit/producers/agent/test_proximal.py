"""The proximal term is what adding it to the loss would be, whatever a module does."""

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pytorch_lightning import LightningModule  # noqa: E402
from torch import nn  # noqa: E402

from producers.agent import training  # noqa: E402
from producers.agent.proximal import ProximalTerm as term  # noqa: E402, N813
from producers.agent.training import TrainingError, initial_tensors, train  # noqa: E402
from tests.synthetic import SyntheticDataModule  # noqa: E402

MU = 0.25
SIZE = 12


pytestmark = pytest.mark.usefixtures("one_thread")


class Net(LightningModule):
    """Two layers of which the second may not take part in every step, and a head of
    each agent's own.

    Args:
        term: mu of a term in the loss, of the entries that are trained.
    """

    def __init__(self, term: float = 0.0):
        super().__init__()
        self.first = nn.Parameter(torch.linspace(-1, 1, SIZE))
        self.second = nn.Parameter(torch.linspace(2, -1, SIZE))
        self.head = nn.Parameter(torch.zeros(SIZE))
        self.term = term

    def on_train_start(self):
        self.anchors = [p.detach().clone() for p in (self.first, self.second)]

    def compute_loss(self, batch):
        pulled = (self.first - 3 * batch[0].mean()) ** 2 + (
            self.second * self.head
        ) ** 2
        loss = pulled.sum() + ((self.head - self.first) ** 2).sum()
        if self.term:
            for now, anchor in zip(
                (self.first, self.second), self.anchors, strict=True
            ):
                loss = loss + self.term / 2 * ((now - anchor) ** 2).sum()
        return loss

    def training_step(self, batch, _):
        return self.compute_loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Adam(Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


class Again(Net):
    """Its optimiser computes the loss several times in a step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


class Manual(Net):
    """Two optimisers, and gradients of two batches added up."""

    def __init__(self, term: float = 0.0):
        super().__init__(term)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        # One term for each step, not for each batch.
        every, self.term = self.term, self.term if index % 2 else 0.0
        self.manual_backward(self.compute_loss(batch))
        self.term = every
        if index % 2:
            for optimizer in self.find_optimizers():
                optimizer.step()
                optimizer.zero_grad()

    def find_optimizers(self):
        return self.optimizers()

    def configure_optimizers(self):
        return [
            torch.optim.SGD([self.first, self.head], lr=0.01),
            torch.optim.Adam([self.second], lr=0.02),
        ]


class Raw(Manual):
    """It steps torch's optimisers, without Lightning's around them."""

    def find_optimizers(self):
        return self.optimizers(use_pl_optimizer=False)


class Wrapper(torch.optim.Optimizer):
    """An optimiser around another, as some are."""

    def __init__(self, params):
        super().__init__(params, {})
        self.inner = torch.optim.SGD(self.param_groups, lr=0.02)

    def step(self, closure=None):
        loss = None if closure is None else closure()
        self.inner.step()
        return loss


class Wrapped(Net):
    def configure_optimizers(self):
        return Wrapper(self.parameters())


def run(module, *, weight=0.0, **config):
    base = initial_tensors(module=module, module_config={}, seed=1)
    return train(
        module=module,
        module_config=config,
        data_module=SyntheticDataModule,
        data_config=BATCHES,
        base=base,
        local_epochs=3,
        seed=1,
        proximal_weight=weight,
        held_back=("first", "second"),
    ).tensors


BATCHES = {"batch_size": 2}  # four in an epoch
MODULES = [Net, Adam, Again, Manual, Raw, Wrapped]


@pytest.mark.parametrize("module", MODULES)
def test_it_is_the_term_in_the_loss(module):
    with_ours, with_theirs, without = (
        run(module, weight=MU),
        run(module, term=MU),
        run(module),
    )
    for name, array in with_theirs.items():
        np.testing.assert_allclose(with_ours[name], array, rtol=2e-5, atol=1e-6)
    # It makes a difference that rounding does not.
    assert max(abs(with_theirs[n] - without[n]).max() for n in without) > 1e-3


def test_a_weight_of_zero_is_no_term(monkeypatch):
    monkeypatch.setattr(training, "ProximalTerm", None)
    plain = run(Net)
    with pytest.raises(TypeError):
        run(Net, weight=MU)
    monkeypatch.undo()
    # Nor would a term of that weight change a bit.
    monkeypatch.setattr(training, "ProximalTerm", lambda _, names: term(0.0, names))
    zero = run(Net, weight=MU)
    assert all(plain[name].tobytes() == zero[name].tobytes() for name in plain)


def test_a_larger_weight_stays_closer():
    base = initial_tensors(module=Net, module_config={}, seed=1)
    distances = [
        np.linalg.norm(run(Net, weight=weight)["first"] - base["first"])
        for weight in (0.0, 1.0, 10.0)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[2] < distances[0] / 2


class Sparse(Net):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 2, sparse=True)

    def compute_loss(self, _batch):
        return self.table(torch.tensor([1])).sum()

    def configure_optimizers(self):
        return torch.optim.SparseAdam(self.table.parameters(), lr=0.1)


def test_sparse_gradients_are_refused_with_a_reason():
    base = initial_tensors(module=Sparse, module_config={}, seed=1)
    with pytest.raises(TrainingError, match="sparse gradients"):
        train(
            module=Sparse,
            module_config={},
            data_module=SyntheticDataModule,
            data_config=BATCHES,
            base=base,
            local_epochs=1,
            seed=1,
            proximal_weight=MU,
            held_back=["table.weight"],
        )
    # And nothing is left behind in torch.
    optimizers = sys.modules["torch.optim.optimizer"]
    assert not optimizers._global_optimizer_pre_hooks
    assert not optimizers._global_optimizer_post_hooks


def test_other_optimisers_of_the_process_are_left_alone():
    class Nosy(Net):
        def on_train_batch_end(self, *_):
            other = nn.Parameter(torch.ones(2))
            other.grad = torch.zeros(2)
            torch.optim.SGD([other], lr=1.0).step()
            assert other.grad.tolist() == [0, 0]
            assert other.tolist() == [1, 1]

    run(Nosy, weight=MU)
