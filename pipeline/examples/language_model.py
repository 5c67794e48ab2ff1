"""The transformer of Lightning's demos on token sequences of one's own, instead of the text that it downloads."""

from typing import Any

from lightning.pytorch.demos.transformer import LightningTransformer
from torch import Tensor
from torch.nn import functional


class LanguageModel(LightningTransformer):
    """Predicts each next token of a sequence, (batch, length) int64; the loss is the negative log-likelihood.

    Args:
        vocab_size: How many tokens there are.
    """

    def prepare_data(self) -> None:
        """Download nothing: the data are the DataModule's."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean loss of a batch (tokens, ...), logged as `train_loss`."""
        loss = self._losses(batch).mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the mean loss over all ranks as `val_loss`."""
        losses = self._losses(batch)
        self.log("val_loss", losses.mean(), prog_bar=True, sync_dist=True, batch_size=len(losses))

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Log the mean loss as `test_loss`; the loss of each sequence becomes a column of scores.csv."""
        losses = self._losses(batch)
        self.log("test_loss", losses.mean(), batch_size=len(losses))
        return {"loss": losses}

    def _losses(self, batch: Any) -> Tensor:
        """The mean loss of each sequence: (batch,)."""
        given, wanted = batch[0][:, :-1], batch[0][:, 1:]
        # The demo returns (batch x length, vocab_size).
        found = self(given, wanted)
        return functional.nll_loss(found, wanted.flatten(), reduction="none").view(wanted.shape).mean(1)
