"""What Lightning's users do works here as it does under Lightning."""

import pytest

torch = pytest.importorskip("torch")

from pytorch_lightning import LightningDataModule, LightningModule, Trainer  # noqa: E402
from pytorch_lightning.callbacks import (  # noqa: E402
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
)
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from producers.agent.training import (  # noqa: E402
    TrainingError,
    evaluate,
    initialise,
    train,
)
from protocol.exchanged_state import RefusedStateError, StateClass  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


class Base(LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.lr = lr
        self.net = self.build()

    def build(self):
        return torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
        )

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch):
        x, y = batch
        logits = self(x)
        self.log("val_loss", F.cross_entropy(logits, y), batch_size=len(y))
        right = (logits.argmax(1) == y).float().mean()
        self.log("val_accuracy", right, batch_size=len(y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Data(LightningDataModule):
    n = 40
    drop_last = False

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(self.n, 4, generator=generator)
        self.y = (self.x[:, 0] > 0).long()

    def train_dataloader(self):
        examples = TensorDataset(self.x, self.y)
        return DataLoader(
            examples, batch_size=8, shuffle=True, drop_last=self.drop_last
        )

    def val_dataloader(self):
        return DataLoader(TensorDataset(self.x, self.y), batch_size=8)


def run(module=Base, data_module=Data, *, epochs=1):
    """Found, train, measure; returns the model before, the result, the evaluation."""
    task = {
        "module": module,
        "module_config": {},
        "data_module": data_module,
        "data_config": {},
    }
    model = initialise(**task, seed=0)
    result = train(**task, base=model.tensors, local_epochs=epochs, seed=1)
    return model, result, evaluate(**task, tensors=result.tensors)


def moved(model, result):
    return [n for n, a in model.tensors.items() if (a != result.tensors[n]).any()]


class Raw(Data):
    """Data on another scale, which a hook takes back."""

    def __init__(self):
        super().__init__()
        self.x = self.x * 50 + 300


class NormalisedByData(Raw):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [(batch[0] - 300) / 50, batch[1]]


class NormalisedBefore(Raw):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        assert self.trainer.datamodule is self
        return [(batch[0] - 300) / 50, batch[1]]


class NormalisedOnTheWay(Raw):
    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return [(moved[0] - 300) / 50, moved[1]]


class NormalisedByModule(Base):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [(batch[0] - 300) / 50, batch[1]]


@pytest.mark.parametrize(
    ("module", "data_module"),
    [
        (Base, NormalisedByData),
        (Base, NormalisedBefore),
        (Base, NormalisedOnTheWay),
        (NormalisedByModule, Raw),
    ],
)
def test_batch_hooks_are_called_in_training_and_in_evaluation(module, data_module):
    _, plain, expected = run(Base, Data, epochs=20)
    _, hooked, found = run(module, data_module, epochs=20)
    assert hooked.loss == pytest.approx(plain.loss, rel=1e-3)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-3)
    assert found.accuracy > 0.9


class Plateau(Base):
    def configure_optimizers(self):
        optimiser = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser)
        scheduled = {"scheduler": scheduler, "monitor": "val_loss"}
        return {"optimizer": optimiser, "lr_scheduler": scheduled}


class Stops(Base):
    def configure_callbacks(self):
        return [EarlyStopping("val_loss", patience=0, min_delta=10.0)]


class Monitors(Base):
    def configure_callbacks(self):
        return [LearningRateMonitor(), ModelCheckpoint(monitor="val_loss")]


class Logs(Base):
    def training_step(self, batch):
        self.logger.experiment.add_scalar("x", 1.0, 0)
        self.logger.log_metrics({"x": 1.0})
        self.log("train_loss", loss := super().training_step(batch))
        return loss


class LooksUp(Base):
    """What it trains with depends on the trainer and on what validation logged."""

    def configure_optimizers(self):
        optimiser = super().configure_optimizers()
        steps = self.trainer.estimated_stepping_batches
        return [optimiser], [
            torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
        ]

    def on_train_epoch_end(self):
        assert self.trainer.callback_metrics["val_loss"] > 0


@pytest.mark.parametrize("module", [Plateau, Monitors, Logs, LooksUp])
def test_training_may_depend_on_validation_and_on_a_logger(module, tmp_path):
    model, result, _ = run(module, epochs=2)
    assert len(moved(model, result)) == 4
    assert result.num_steps == 10


def test_early_stopping_stops():
    _, result, _ = run(Stops, epochs=20)
    assert result.num_steps == 10  # after the second epoch of five steps


def test_training_is_lightnings_own():
    model, result, _ = run(Plateau, epochs=3)
    torch.manual_seed(1)
    from pytorch_lightning import seed_everything

    seed_everything(1, workers=True, verbose=False)
    module, data = Plateau(), Data()
    module.load_state_dict({n: torch.tensor(a) for n, a in model.tensors.items()})
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    for name, entry in module.state_dict().items():
        assert entry.numpy() == pytest.approx(result.tensors[name], abs=1e-6)


class Manual(Base):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch):
        optimisers = self.optimizers()
        first = optimisers[0] if isinstance(optimisers, list) else optimisers
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()


class ManualAndNamed(Manual):
    def training_step(self, batch):
        super().training_step(batch)
        return {"g_loss": torch.tensor(1.0)}


class ManualWithLoss(Manual):
    def training_step(self, batch):
        super().training_step(batch)
        return {"loss": torch.tensor(1.5)}


class Adversaries(LightningModule):
    """Two networks, two optimisers, no loss."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = torch.nn.Linear(2, 4)
        self.judge = torch.nn.Linear(4, 1)

    def forward(self, noise):
        return self.generator(noise)

    def training_step(self, batch):
        real, _ = batch
        of_generator, of_judge = self.optimizers()
        noise = torch.randn(len(real), 2)
        self.toggle_optimizer(of_judge)
        loss = self.judge(self(noise).detach()).mean() - self.judge(real).mean()
        of_judge.zero_grad()
        self.manual_backward(loss)
        of_judge.step()
        self.untoggle_optimizer(of_judge)
        self.toggle_optimizer(of_generator)
        loss = -self.judge(self(noise)).mean()
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)

    def validation_step(self, batch):
        self.log("val_score", self.judge(batch[0]).mean())

    def configure_optimizers(self):
        return [
            torch.optim.SGD(part.parameters(), lr=0.01)
            for part in (self.generator, self.judge)
        ]


@pytest.mark.parametrize("module", [Manual, ManualAndNamed, Adversaries])
def test_manual_optimisation_needs_no_loss(module):
    model, result, _ = run(module)
    # A difference of two judgements says nothing about the judge's bias.
    assert len(moved(model, result)) >= 3
    assert result.loss is None
    assert result.num_batches == result.batches_per_epoch == 5


def test_manual_optimisation_may_say_its_loss():
    assert run(ManualWithLoss)[1].loss == 1.5


class Few(Data):
    n = 5
    drop_last = True


def test_data_that_gives_no_batch_is_named():
    with pytest.raises(TrainingError, match=r"no batch.*5 examples.*drop_last"):
        run(data_module=Few)


class Configured(Base):
    def build(self):
        return None

    def configure_model(self):
        if self.net is None:
            self.net = Base.build(self)


class SetUp(Base):
    """Layers of a size that only the data knows."""

    def build(self):
        return None

    def setup(self, stage):
        width = self.trainer.datamodule.x.shape[1]
        if self.net is None:
            self.net = torch.nn.Linear(width, 2)


class Lazy(Base):
    def build(self):
        return torch.nn.Sequential(
            torch.nn.LazyLinear(8), torch.nn.LazyBatchNorm1d(), torch.nn.Linear(8, 2)
        )


@pytest.mark.parametrize("module", [Configured, SetUp])
def test_layers_may_be_made_after_the_constructor(module):
    model, result, found = run(module, epochs=20)
    assert moved(model, result) == list(model.tensors)
    assert found.accuracy > 0.8
    again = train(
        module=module,
        module_config={},
        data_module=Data,
        data_config={},
        base=result.tensors,
        local_epochs=1,
        seed=1,
    )
    assert again.loss < result.loss + 0.1  # it went on where it was


LAZY = {"module": Lazy, "module_config": {}, "data_config": {}}
RULES = [("*.running_*", StateClass.KEPT)]


def test_lazy_layers_take_their_shapes_from_a_batch_and_nothing_else():
    model = initialise(**LAZY, data_module=Data, seed=0, rules=RULES)
    assert model.tensors["net.0.weight"].shape == (8, 4)
    assert not model.tensors["net.1.running_mean"].any()
    assert model.tensors["net.1.num_batches_tracked"] == 0
    result = train(**LAZY, data_module=Data, base=model.tensors, local_epochs=5, seed=1)
    assert "net.0.weight" in moved(model, result)
    found = evaluate(**LAZY, data_module=Data, tensors=result.tensors)
    assert found.accuracy > 0.8


def test_lazy_layers_without_data_are_refused_in_a_sentence():
    with pytest.raises(RefusedStateError, match=r"lazy layers.*batch"):
        initialise(module=Lazy, module_config={}, seed=0)
