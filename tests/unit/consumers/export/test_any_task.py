"""Any Lightning task is measured by its own metrics, and becomes a file if it can."""

import functools
import io

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from pytorch_lightning import LightningDataModule, LightningModule  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from consumers.export.artifacts import export_model  # noqa: E402
from producers.agent.training import (  # noqa: E402
    evaluate,
    initialise,
    train,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Module(LightningModule):
    def training_step(self, batch):
        return self.measure(batch)[0]

    def validation_step(self, batch):
        _, logged = self.measure(batch)
        self.log_dict(logged, batch_size=2)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Data(LightningDataModule):
    batch_size = 4

    def __init__(self):
        super().__init__()
        self.random = torch.Generator().manual_seed(0)
        self.examples = self.make()

    def draw(self, *shape):
        return torch.randn(*shape, generator=self.random)

    def collate(self, items):
        return torch.utils.data.default_collate(items)

    def train_dataloader(self):
        return DataLoader(
            self.examples, batch_size=self.batch_size, collate_fn=self.collate
        )

    def val_dataloader(self):
        return self.train_dataloader()


class Prices(Module):
    """Regression; a dict of a category and numbers goes in by name."""

    def __init__(self):
        super().__init__()
        self.city = torch.nn.Embedding(5, 3)
        self.out = torch.nn.Linear(5, 1)

    def forward(self, city, *, numbers=None):
        return self.out(torch.cat([self.city(city), numbers], dim=1)).squeeze(1)

    def measure(self, batch):
        found = self(batch["city"], numbers=batch["numbers"])
        loss = F.mse_loss(found, batch["price"])
        return loss, {
            "val_rmse": loss.sqrt(),
            "val_mae": (found - batch["price"]).abs().mean(),
        }


class PositionalPrices(Prices):
    def forward(self, city, numbers):
        return super().forward(city, numbers=numbers)


class PriceData(Data):
    def make(self):
        return [
            {
                "city": torch.tensor(i % 5),
                "numbers": self.draw(2),
                "price": self.draw(()),
            }
            for i in range(9)
        ]


class Masks(Module):
    """Segmentation: two results, a tuple batch, a mask for each pixel."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(1, 4, 3, padding=1)
        self.head = torch.nn.Conv2d(4, 2, 1)

    def forward(self, image):
        features = torch.relu(self.body(image))
        return {"mask": self.head(features), "features": features}

    def measure(self, batch):
        image, mask = batch
        logits = self(image)["mask"]
        loss = F.cross_entropy(logits, mask)
        found = logits.argmax(1)
        both = ((found == 1) & (mask == 1)).sum()
        either = ((found == 1) | (mask == 1)).sum()
        return loss, {"val_loss": loss, "val_iou": both / either.clamp(min=1)}


class MaskData(Data):
    def make(self):
        images = self.draw(9, 1, 6, 6)
        return TensorDataset(images, (images[:, 0] > 0).long())


class Tags(Module):
    """Sequence tagging: sentences of other lengths, padded by batch."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(11, 4)
        self.rnn = torch.nn.LSTM(4, 5, batch_first=True)
        self.out = torch.nn.Linear(5, 3)

    def forward(self, words):
        return self.out(self.rnn(self.words(words))[0])

    def measure(self, batch):
        logits = self(batch["words"])
        loss = F.cross_entropy(logits.flatten(0, 1), batch["tags"].flatten())
        right = (logits.argmax(2) == batch["tags"]).float().mean()
        return loss, {"val_token_accuracy": right}


class TagData(Data):
    def make(self):
        lengths = (3, 5, 4, 5, 7, 2, 6, 7, 3)
        return [torch.arange(n) % 11 for n in lengths]

    def collate(self, items):
        words = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
        return {"words": words, "tags": words % 3}


class Labels(Module):
    """Multi-label; the module states a direction that no word of the name says."""

    metric_directions = {"val_emr": "HIGHER"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(4, 3)

    def forward(self, inputs):
        return self.out(inputs)

    def measure(self, batch):
        inputs, labels = batch
        logits = self(inputs)
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        exact = ((logits > 0) == labels.bool()).all(1).float().mean()
        return loss, {"val_loss": loss, "val_emr": exact}


class LabelData(Data):
    def make(self):
        inputs = self.draw(9, 4)
        return TensorDataset(inputs, (inputs[:, :3] > 0).float())


@functools.cache
def publish(module, data_module):
    """Return a model after a round, and what the exporter makes of it."""
    task = {
        "module": module,
        "module_config": {},
        "data_module": data_module,
        "data_config": {},
    }
    model = initialise(**task, seed=0)
    tensors = train(**task, base=model.tensors, local_epochs=2, seed=1).tensors
    return evaluate(**task, tensors=tensors), export_model(**task, tensors=tensors)


@pytest.mark.parametrize(
    ("module", "data_module", "metrics", "inputs", "results"),
    [
        (PositionalPrices, PriceData, ["val_mae", "val_rmse"], ["city", "numbers"], 1),
        (Masks, MaskData, ["val_iou", "val_loss"], ["inputs"], 2),
        (Tags, TagData, ["val_token_accuracy"], ["inputs"], 1),
        (Labels, LabelData, ["val_emr", "val_loss"], ["inputs"], 1),
    ],
)
def test_a_task_is_measured_by_its_metrics_and_becomes_a_file(
    module, data_module, metrics, inputs, results
):
    expected, found = publish(module, data_module)
    assert found.no_evaluation == ""
    assert found.no_onnx == ""
    assert found.evaluation == expected
    assert list(expected.metrics) == metrics
    assert expected.num_examples == 9
    session = onnxruntime.InferenceSession(found.onnx)
    assert [each.name for each in session.get_inputs()] == inputs
    assert len(session.get_outputs()) == results


def test_the_file_takes_sentences_of_any_length():
    _, found = publish(Tags, TagData)
    session = onnxruntime.InferenceSession(found.onnx)
    for shape in ((1, 3), (2, 9)):
        (logits,) = session.run(None, {"inputs": np.ones(shape, dtype=np.int64)})
        assert logits.shape == (*shape, 3)


class Raw(LabelData):
    """What `tests/unit/producers/agent/test_lightning_habits.py` trains on."""

    def make(self):
        inputs = self.draw(9, 4)
        return TensorDataset(inputs * 50 + 300, (inputs[:, :3] > 0).float())

    def on_after_batch_transfer(self, batch, dataloader_idx):
        assert self.trainer.datamodule is self
        return [(batch[0] - 300) / 50, batch[1]]


def test_what_is_registered_is_what_lightning_measures_batch_hooks_included():
    expected, found = publish(Labels, Raw)
    plain, _ = publish(Labels, LabelData)
    assert found.evaluation == expected
    assert found.evaluation.metrics == pytest.approx(plain.metrics, rel=1e-3)
    assert found.batch_hooks == ("Raw.on_after_batch_transfer",)
    notes = {n.key: n.value for n in onnx.load(io.BytesIO(found.onnx)).metadata_props}
    assert "on_after_batch_transfer" in notes["folkmoot.inputs"]


class Unmeasured(Labels):
    """No validation step, but Lightning's own example of an input."""

    validation_step = LightningModule.validation_step
    example_input_array = torch.zeros(1, 4)


class Silent(Labels):
    def validation_step(self, batch):
        self(batch[0])


class Failing(Labels):
    def validation_step(self, batch):
        self(batch[0])
        raise KeyError("reference")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (Unmeasured, "nothing measures Unmeasured"),
        (Silent, "logs no metric in its validation_step"),
        (Failing, "KeyError: 'reference'"),
    ],
)
def test_a_model_without_metrics_has_a_file_and_the_reason(module, why):
    task = {"module": module, "module_config": {}, "data_config": {}}
    tensors = initialise(**task, data_module=LabelData, seed=0).tensors
    found = export_model(**task, data_module=LabelData, tensors=tensors)
    assert found.evaluation is None
    assert why in found.no_evaluation
    assert found.onnx


def test_a_model_that_takes_what_onnx_does_not_has_metrics_and_the_reason():
    expected, found = publish(Prices, PriceData)  # keyword-only
    assert found.evaluation == expected
    assert found.onnx is None
    assert "can't be exported" in found.no_onnx
