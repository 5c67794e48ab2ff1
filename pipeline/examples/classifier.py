"""A classifier of any network, which YAML names and any library may have, measured by torchmetrics."""

from fnmatch import fnmatch
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score


class Layers(nn.Sequential):
    """A sequence of layers, for YAML: torch's own takes them as positional arguments.

    Args:
        layers: One after the other.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__(*layers)


class Classifier(pl.LightningModule):
    """Gives each sample one of several classes; the loss is the cross entropy.

    Args:
        network: (batch, ...) -> (batch, classes) unnormalized log-probabilities, or an object that has them as
            `logits`, as those of Hugging Face do.
        classes: How many there are.
        learning_rate: Of AdamW, over all parameters that are trained.
        frozen: Patterns of the names of parameters that keep their values, such as `bert.embeddings.*`.

    Raises:
        ValueError: A pattern fits no parameter, or nothing is left to train.
    """

    def __init__(
        self, network: nn.Module, classes: int = 10, learning_rate: float = 1e-3, frozen: list[str] | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.learning_rate = learning_rate
        _freeze(network, frozen or [])
        metrics = MetricCollection(
            {"accuracy": MulticlassAccuracy(classes, average="micro"), "f1": MulticlassF1Score(classes)}
        )
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def forward(self, x: Tensor) -> Tensor:
        """(batch, ...) -> (batch, classes)."""
        found = self.network(x)
        logits: Tensor = getattr(found, "logits", found)
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean loss of a batch (x, labels), logged as `train_loss`."""
        loss = functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log `val_loss`, `val_accuracy` and `val_f1`, over all ranks."""
        logits, labels = self(batch[0]), batch[1]
        self.val_metrics.update(logits, labels)
        loss = functional.cross_entropy(logits, labels)
        self.log("val_loss", loss, prog_bar=True, sync_dist=True, batch_size=len(labels))
        self.log_dict(self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Log `test_loss`, `test_accuracy` and `test_f1`; each sample's loss and class become columns of scores.csv."""
        logits, labels = self(batch[0]), batch[1]
        self.test_metrics.update(logits, labels)
        losses = functional.cross_entropy(logits, labels, reduction="none")
        self.log("test_loss", losses.mean(), batch_size=len(labels))
        self.log_dict(self.test_metrics)
        return {"loss": losses, "predicted": logits.argmax(1), "label": labels}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The probabilities of a batch, (batch, classes)."""
        probabilities: Tensor = self(batch[0]).softmax(1)
        return probabilities

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over what is trained."""
        return torch.optim.AdamW((each for each in self.parameters() if each.requires_grad), lr=self.learning_rate)


def _freeze(network: nn.Module, patterns: list[str]) -> None:
    named = dict(network.named_parameters())
    idle = [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in named)]
    if idle:
        raise ValueError(f"frozen={idle} fits no parameter; there are {', '.join(named)}")
    for name, parameter in named.items():
        parameter.requires_grad_(not any(fnmatch(name, pattern) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ValueError(f"frozen={patterns} leaves no parameter to train")
