"""The autoencoder of Lightning's own documentation, ready for DDP. It knows nothing of this pipeline.

python -m pipeline fit --config pipeline/configs/digits.yaml --model.learning_rate=0.01
"""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional

_SHOWN, _PIXELS = 8, 32
"""Samples of each validation that are logged as images, and the width of each at least."""


class Encoder(nn.Module):
    """(batch, input_dim) -> (batch, 3)."""

    def __init__(self, input_dim: int = 784) -> None:
        super().__init__()
        self.l1 = nn.Sequential(nn.Linear(input_dim, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Encode a batch."""
        code: Tensor = self.l1(x)
        return code


class Decoder(nn.Module):
    """(batch, 3) -> (batch, input_dim)."""

    def __init__(self, input_dim: int = 784) -> None:
        super().__init__()
        self.l1 = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, input_dim))

    def forward(self, code: Tensor) -> Tensor:
        """Decode a batch of codes."""
        x: Tensor = self.l1(code)
        return x


class LitAutoEncoder(pl.LightningModule):
    """Compresses each sample to three numbers and back; the loss is the mean squared error of the reconstruction.

    Args:
        learning_rate: Of Adam.
        input_dim: Numbers per sample: 64 for the 8 x 8 digits, 784 for MNIST.
    """

    def __init__(self, learning_rate: float = 1e-3, input_dim: int = 784) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.encoder = Encoder(input_dim)
        self.decoder = Decoder(input_dim)
        self.example_input_array = torch.zeros(1, input_dim)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of (batch, ...), as (batch, input_dim)."""
        reconstruction: Tensor = self.decoder(self.encoder(x.flatten(1)))
        return reconstruction

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean loss of a batch (x, ...), logged as `train_loss`."""
        loss = self._errors(batch).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the mean loss over all ranks as `val_loss`."""
        errors = self._errors(batch)
        self.log("val_loss", errors.mean(), prog_bar=True, sync_dist=True, batch_size=len(errors))
        if batch_idx == 0 and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self._show(batch[0][:_SHOWN].flatten(1))

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Log the mean loss as `test_loss`; the error of each sample becomes a column of scores.csv."""
        errors = self._errors(batch)
        self.log("test_loss", errors.mean(), sync_dist=True, batch_size=len(errors))
        return {"reconstruction_error": errors}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The codes of a batch, (batch, 3)."""
        codes: Tensor = self.encoder(batch[0].flatten(1))
        return codes

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def _show(self, x: Tensor) -> None:
        """Log samples, (batch, input_dim), above their reconstructions as one image, where there is a TensorBoard."""
        boards = [logger.experiment for logger in self.loggers if isinstance(logger, TensorBoardLogger)]
        side = math.isqrt(x.shape[1])
        if not boards or side**2 != x.shape[1]:
            return
        rows = torch.stack([x, self(x)]).float().clamp(0, 1).reshape(2, len(x), side, side)
        image = rows.permute(0, 2, 1, 3).reshape(2 * side, -1)
        scale = max(1, _PIXELS // side)
        image = image.repeat_interleave(scale, 0).repeat_interleave(scale, 1).cpu()
        for board in boards:
            board.add_image("reconstructions", image, self.global_step, dataformats="HW")

    def _errors(self, batch: Any) -> Tensor:
        """The mean squared error of each sample: (batch,)."""
        x = batch[0].flatten(1)
        return functional.mse_loss(self(x), x, reduction="none").mean(dim=1)
