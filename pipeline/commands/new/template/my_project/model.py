"""What is trained: an ordinary LightningModule."""

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]


class Classifier(pl.LightningModule):
    """Tells which of two spirals a point lies on.

    Args:
        width: Of the hidden layers.
        learning_rate: Of Adam.
    """

    def __init__(self, width: int = 64, learning_rate: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(
            nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
        )

    def forward(self, points: Tensor) -> Tensor:
        """(batch, 2) coordinates -> (batch, 2) logits."""
        return self.layers(4 * points)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, _ = self._score(batch)
        self.log("train_loss", loss.mean(), prog_bar=True)
        return loss.mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._log("val", *self._score(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """What is returned for each sample becomes a column of <run_dir>/evaluation/scores.csv."""
        loss, correct = self._score(batch)
        self._log("test", loss, correct)
        return {"loss": loss, "correct": correct}

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """What is returned for each sample is kept in <run_dir>/predictions."""
        return self(batch[0]).softmax(dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def _score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each sample, and whether it is told correctly (1 or 0): (batch,) both."""
        points, labels = batch
        logits = self(points)
        correct = (logits.argmax(dim=1) == labels).float()
        return functional.cross_entropy(logits, labels, reduction="none"), correct

    def _log(self, split: str, loss: Tensor, correct: Tensor) -> None:
        values = {f"{split}_loss": loss.mean(), f"{split}_accuracy": correct.mean()}
        self.log_dict(values, prog_bar=True, sync_dist=True, batch_size=len(loss))
