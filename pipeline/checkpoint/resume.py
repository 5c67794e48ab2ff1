"""How training stands exactly where a checkpoint of ours was saved, whether or not this attempt saves any itself."""

from typing import Any

import lightning.pytorch as pl

from pipeline.checkpoint.io import OWN_KEY, require_schema
from pipeline.checkpoint.state import Restoring
from pipeline.data import DataModule
from pipeline.gradient_order import GradientOrder
from pipeline.ledger import Ledger
from pipeline.loops import EpochLoop


class Resume(pl.Callback):
    """Puts back what a checkpoint of ours holds beside Lightning's state.

    It must be the trainer's last callback: random numbers are put back where they were taken, when every other callback
    had begun the batch.

    Args:
        ledger: Counts the samples; None for foreign data.
        anew: Whether the epoch that the checkpoint stands in begins anew, since its order is another one.
    """

    def __init__(self, ledger: Ledger | None, anew: bool) -> None:
        self.ledger = ledger
        self.anew = anew
        self.gradient_order = GradientOrder()
        self._known_order: list[int] | None = None
        self._restoring: Restoring | None = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stand where the checkpoint stands, if it is one of ours."""
        own = checkpoint.get(OWN_KEY)
        if own is None:
            return
        require_schema(own)
        loop, data = trainer.fit_loop.epoch_loop, data_of(trainer)
        if data is not None and own["position"] is not None:
            data.resume(own["epoch"], 0 if self.anew else own["position"])
        if isinstance(loop, EpochLoop):
            # Without a position (under overfit_batches) our data begin at their start.
            begins = self.anew or (data is not None and own["position"] is None)
            loop.stands_at = 0 if begins else own["batches"]
        if self.ledger is not None and own["ledger"] is not None:
            self.ledger.load(own["ledger"], own["epoch"], self.anew)
        self._restoring = Restoring(own["state"], with_sums=not self.anew)
        self._known_order = own["gradient_order"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put back what callbacks and schedules look at, and find the batch to go on with."""
        loop, data = trainer.fit_loop.epoch_loop, data_of(trainer)
        if self._restoring is not None:
            self._restoring.before_training(trainer)
        self.gradient_order.begin(trainer, self._known_order)
        if isinstance(loop, EpochLoop) and loop.stands_at and data is not None and data.batches is not None:
            # In another world the same position is another number of batches. There is one more to come, unless what
            # is left fills none.
            left = data.batches.count(data.batches.sampler.position)
            loop.stands_at = min(data.batches.done, int(trainer.num_training_batches) - (left > 0))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the random numbers back, between two epochs."""
        self._restore(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random numbers back, between two batches."""
        self._restore(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Put sums back as their names are logged again."""
        self.gradient_order.after_batch()
        if self._restoring is not None:
            self._restoring.after_batch(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the rest of the sums back."""
        self.complete(trainer)

    def complete(self, trainer: pl.Trainer) -> None:
        """Put back what no later batch of the epoch has logged: now, if it has not been done."""
        if self._restoring is not None:
            self._restoring.at_epoch_end(trainer)
            self._restoring = None

    def _restore(self, trainer: pl.Trainer) -> None:
        if self._restoring is not None and not self._restoring.begun:
            self._restoring.before_first_batch(trainer)


def data_of(trainer: pl.Trainer) -> DataModule | None:
    """The data, if they are ours: foreign ones have no position."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, DataModule) else None
