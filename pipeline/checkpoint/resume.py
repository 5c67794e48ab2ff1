"""How training stands exactly where a checkpoint of ours was saved, whether or not this attempt saves any itself."""

import logging
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.call import _call_callbacks_load_state_dict

from pipeline.checkpoint.io import OWN_KEY, require_schema
from pipeline.checkpoint.state import Restoring
from pipeline.data import DataModule
from pipeline.errors import UserError
from pipeline.gradient_order import GradientOrder
from pipeline.ledger import Ledger
from pipeline.loops import EpochLoop

log = logging.getLogger(__name__)


class Resume(pl.Callback):
    """Puts back what a checkpoint of ours holds beside Lightning's state.

    It must be the trainer's first callback. Between two batches, before any other callback has begun the next one, is
    where a checkpoint is saved and where random numbers are put back.

    Args:
        ledger: Counts the samples; None for foreign data.
        anew: Whether the epoch that the checkpoint stands in begins anew, since its order is another one.
        save: Saves what is due: a function of the trainer, the epoch to go on with and its batches that are over; None:
            this attempt saves nothing.
    """

    def __init__(
        self, ledger: Ledger | None, anew: bool, save: Callable[[pl.Trainer, int, int], None] | None = None
    ) -> None:
        self.ledger = ledger
        self.anew = anew
        self.save = save
        self.gradient_order = GradientOrder()
        self._known_order: list[int] | None = None
        self._callbacks: dict[str, Any] = {}
        self._restoring: Restoring | None = None
        self._in_epoch = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stand where the checkpoint stands."""
        own = checkpoint.get(OWN_KEY)
        loop, data = trainer.fit_loop.epoch_loop, data_of(trainer)
        if own is None:
            if isinstance(loop, EpochLoop) and data is not None and _in_epoch(checkpoint):
                log.warning("the checkpoint says not which samples of its epoch are used: that epoch begins anew")
                loop.stands_at = 0
            return
        require_schema(own)
        # Without a position (under overfit_batches) our data begin at their start.
        begins = self.anew or (data is not None and own["position"] is None)
        if data is not None and own["position"] is not None:
            data.resume(own["epoch"], 0 if begins else own["position"])
        if isinstance(loop, EpochLoop):
            loop.stands_at = 0 if begins else own["batches"]
        if self.ledger is not None and own["ledger"] is not None:
            try:
                self.ledger.load(own["ledger"], own["epoch"], self.anew)
            except ValueError as error:
                raise UserError(
                    f"the checkpoint's ledger is damaged ({error}): remove it and go on from one before"
                ) from error
        self._in_epoch = not begins and own["batches"] > 0
        self._callbacks = {"callbacks": checkpoint.get("callbacks")}
        self._restoring = Restoring(own["state"], with_sums=not begins)
        self._known_order = own["gradient_order"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put back what callbacks and schedules look at, and find the batch to go on with."""
        loop, data = trainer.fit_loop.epoch_loop, data_of(trainer)
        if self._restoring is not None:
            self._restoring.before_training(trainer)
        self.gradient_order.begin(trainer, self._known_order)
        if not isinstance(loop, EpochLoop):
            return
        # Not before: a finder of batch sizes or learning rates runs the loop for its own purposes.
        loop.ledger = self.ledger
        if loop.stands_at and data is not None and data.batches is not None:
            # In another world, or under another limit, the same position is another number of batches, or all of them.
            loop.stands_at = min(data.batches.done, int(trainer.num_training_batches))

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stand between two epochs."""
        if not self._in_epoch:
            self._between(trainer, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stand between two batches."""
        if self._in_epoch:
            # What the epoch's start has logged and counted once more is forgotten again.
            self._in_epoch = False
            _call_callbacks_load_state_dict(trainer, self._callbacks)
            trainer.fit_loop.epoch_loop._results.clear()
        self._between(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)

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

    def _between(self, trainer: pl.Trainer, batches: int) -> None:
        if self.save is not None:
            self.save(trainer, trainer.current_epoch, batches)
        if self._restoring is not None and not self._restoring.begun:
            self._restoring.before_first_batch(trainer)


def _in_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether somebody else's checkpoint was saved in the middle of an epoch."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    return bool(progress.get("current", {}).get("ready")) and not progress.get("is_last_batch", False)


def data_of(trainer: pl.Trainer) -> DataModule | None:
    """The data, if they are ours: foreign ones have no position."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, DataModule) else None
