"""Tasks that work, and some that never can."""

from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset


class Line(LightningModule):
    """Regression."""

    def __init__(self, lr=0.1):
        super().__init__()
        self.lr = lr
        self.out = torch.nn.Linear(2, 1)

    def forward(self, inputs):
        return self.out(inputs)

    def training_step(self, batch):
        inputs, wanted = batch
        return F.mse_loss(self(inputs), wanted)

    def validation_step(self, batch):
        self.log("val_mse", self.training_step(batch), batch_size=2)
        self.log("val_emr", 0.5, batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class LineData(LightningDataModule):
    """Anybody's data; training data only where there is a path."""

    def __init__(self, batch_size=4, path=None):
        super().__init__()
        if not isinstance(batch_size, int):
            raise TypeError("batch_size must be a whole number")
        self.batch_size = batch_size
        self.path = path
        inputs = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
        self.examples = TensorDataset(inputs, inputs.sum(1, keepdim=True))

    def train_dataloader(self):
        return DataLoader(self.examples, batch_size=self.batch_size)

    def val_dataloader(self):
        return self.train_dataloader()


class LocalData(LineData):
    def train_dataloader(self):
        with Path(self.path).open("rb"):
            return super().train_dataloader()


class Hooked(LineData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Lazy(Line):
    def __init__(self):
        super().__init__()
        self.out = torch.nn.LazyLinear(1)


class Double(Line):
    def __init__(self):
        super().__init__()
        self.double()


class Wrong(Line):
    def forward(self, inputs):
        return self.out(inputs[:, :1])


class Lossless(Line):
    def training_step(self, batch):
        return None

    def validation_step(self, batch):
        self.log("val_mse", 1.0)


class Plateau(Line):
    def configure_optimizers(self):
        optimiser = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser)
        scheduled = {"scheduler": scheduler, "monitor": "val_los"}
        return {"optimizer": optimiser, "lr_scheduler": scheduled}


class TwoOptimisers(Line):
    def configure_optimizers(self):
        return [super().configure_optimizers(), super().configure_optimizers()]


class Idle(Line):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Leaving(LineData):
    def train_dataloader(self):
        raise SystemExit(0)


class NoModule:
    pass


class Measurable(Line):
    def test_step(self, batch):
        self.log("test_mae", (self(batch[0]) - batch[1]).abs().mean(), batch_size=2)


class OwnTestData(LineData):
    """An organisation's own: twice as much of it."""

    def test_dataloader(self):
        return DataLoader(self.examples + self.examples, batch_size=self.batch_size)
