"""Six models as users have them: tests run each in every mode.

A network with batch norm, a regression with embeddings, a frozen backbone, a recurrent
network with tied weights, a segmentation, and one of bfloat16, which is refused. All
are tiny: two convolutions say as much about a model's state as two hundred.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

NUM_CLASSES: Final = 3
NUM_TOKENS: Final = 7
_NUM_EXAMPLES: Final = 48
_NUM_VALIDATION: Final = 24


class _Module(LightningModule):
    """A network and its loss."""

    learning_rate: ClassVar[float] = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.build()

    def build(self) -> None:
        raise NotImplementedError

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets)

    def compute_accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(dim=1) == targets).float().mean()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return self.compute_loss(self(inputs), targets)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        inputs, targets = batch
        outputs = self(inputs)
        self.log("val_loss", self.compute_loss(outputs, targets))
        self.log("val_accuracy", self.compute_accuracy(outputs, targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = (p for p in self.parameters() if p.requires_grad)
        return torch.optim.SGD(trained, lr=self.learning_rate)


class _Data(LightningDataModule):
    """One organisation's examples, and a validation set that all share."""

    def __init__(self, organisation: int = 0) -> None:
        super().__init__()
        self._organisation = organisation

    def draw(self, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _load(self, seed: int, num: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(TensorDataset(*self.draw(generator, num)), batch_size=16)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._load(self._organisation + 1, _NUM_EXAMPLES)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._load(0, _NUM_VALIDATION)


class Images(_Data):
    """Images of which one channel is bright, in units of nobody's choice."""

    def draw(self, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(NUM_CLASSES, (num,), generator=generator)
        images = torch.randn(num, NUM_CLASSES, 6, 6, generator=generator)
        images[torch.arange(num), labels] += 2
        return images * 20 + self._organisation, labels


class ConvNet(_Module):
    """Batch norm on inputs whose variance is in the hundreds."""

    def build(self) -> None:
        self.norm = nn.BatchNorm2d(NUM_CLASSES)
        self.convolution = nn.Conv2d(NUM_CLASSES, 4, 3)
        self.inner_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.inner_norm(self.convolution(self.norm(images)))
        return self.head(inner.relu().mean(dim=(2, 3)))


class Rows(_Data):
    """Two categories and two measurements; the price follows from all four."""

    def draw(self, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor]:
        categories = torch.randint(5, (num, 2), generator=generator).float()
        measured = torch.randn(num, 2, generator=generator)
        prices = categories.sum(dim=1) - 5 + measured @ torch.tensor([1.0, -2.0])
        return torch.cat((categories, measured), dim=1), prices[:, None]


class EmbeddingRegression(_Module):
    """A regression with an embedding for each category."""

    def build(self) -> None:
        self.embeddings = nn.ModuleList([nn.Embedding(5, 3), nn.Embedding(5, 3)])
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, rows: Tensor) -> Tensor:
        first, second = self.embeddings
        columns = (first(rows[:, 0].long()), second(rows[:, 1].long()), rows[:, 2:])
        return self.head(torch.cat(columns, dim=1))

    def compute_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.mse_loss(outputs, targets)

    def compute_accuracy(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return ((outputs - targets).abs() < 1).float().mean()


class FrozenBackbone(_Module):
    """A head that learns, on a network that doesn't but for what it measures."""

    def build(self) -> None:
        self.backbone = nn.Sequential(
            nn.Flatten(), nn.Linear(NUM_CLASSES * 36, 64), nn.ReLU(), nn.BatchNorm1d(64)
        )
        for parameter in self.backbone.parameters():
            parameter.requires_grad = False
        self.register_buffer("scale", torch.tensor(0.05))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=False)
        self.head = nn.Linear(64, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images * self.scale)) + self.mask[0]


class Sentences(_Data):
    """Tokens that count upwards, from anywhere; the next one is to be told."""

    def draw(self, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor]:
        first = torch.randint(NUM_TOKENS, (num, 1), generator=generator)
        tokens = (first + torch.arange(5)) % NUM_TOKENS
        return tokens, (tokens[:, -1] + 1) % NUM_TOKENS


class TiedLstm(_Module):
    """A language model that reads and writes with one table."""

    learning_rate: ClassVar[float] = 0.5

    def build(self) -> None:
        self.read = nn.Embedding(NUM_TOKENS, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.write = nn.Linear(6, NUM_TOKENS)
        self.write.weight = self.read.weight

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.lstm(self.read(tokens))
        return self.write(states[:, -1])


class Masks(_Data):
    """Images and which of their pixels are bright."""

    def draw(self, generator: torch.Generator, num: int) -> tuple[Tensor, Tensor]:
        masks = torch.randint(2, (num, 6, 6), generator=generator)
        noise = torch.randn(num, 1, 6, 6, generator=generator)
        return noise + 3 * masks[:, None], masks


class Segmentation(_Module):
    """A class for each pixel."""

    def build(self) -> None:
        self.down = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.head = nn.Conv2d(5, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        inner = self.up(self.norm(self.down(images)).relu())
        return self.head(torch.cat((images, inner), dim=1))


class Halved(_Module):
    """Its weights are bfloat16, which nothing here can add up exactly."""

    def build(self) -> None:
        self.head = nn.Linear(4, 1).to(torch.bfloat16)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(rows.to(torch.bfloat16)).float()


@dataclass(frozen=True, slots=True)
class Case:
    """A model, its data, and what is expected of it.

    Attributes:
        module: The model.
        data: Its data.
        classes: The class of each entry that isn't trained.
        tied: Names of entries by their other names.
        num_trained: Number of trained values.
        refused: What its refusal says; None if it works.
    """

    module: type[LightningModule]
    data: type[LightningDataModule]
    classes: Mapping[str, str]
    tied: Mapping[str, str]
    num_trained: int
    refused: str | None = None

    @property
    def name(self) -> str:
        return self.module.__name__

    def path(self, cls: type) -> str:
        """Return a class's import path, as a task has it."""
        return f"{__name__}:{cls.__name__}"


def _norm(name: str) -> dict[str, str]:
    return {
        f"{name}.num_batches_tracked": "kept",
        f"{name}.running_mean": "averaged-apart",
        f"{name}.running_var": "averaged-apart-unsigned",
    }


CASES: Final = (
    Case(ConvNet, Images, _norm("norm") | _norm("inner_norm"), {}, 141),
    Case(EmbeddingRegression, Rows, {}, {}, 111),
    Case(
        FrozenBackbone,
        Images,
        _norm("backbone.3")
        | dict.fromkeys(
            (f"backbone.{n}.{kind}" for n in (1, 3) for kind in ("weight", "bias")),
            "fixed",
        )
        | {"scale": "averaged-apart", "mask": "kept"},
        {},
        195,
    ),
    Case(TiedLstm, Sentences, {}, {"write.weight": "read.weight"}, 385),
    Case(Segmentation, Masks, {}, {}, 128),
    Case(Halved, Rows, {}, {}, 0, r"'head\.bias'.*bfloat16.*float32"),
)
