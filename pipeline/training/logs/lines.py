"""The progress of a trainer where nobody watches: one plain line from rank 0 now and then."""

import math
import time
from typing import Any

import lightning.pytorch as pl

from pipeline.training.logs.pace import LEAST, Pace
from pipeline.training.logs.progress import TellsEpochs, TrainerProgress

_LOOK_AGAIN = 1.0
"""Seconds after which it is looked again whether a line is due that was not."""


class Lines(TellsEpochs):
    """One line every 10 s or 5 % of the run, whichever is later, and one for the end of an epoch.

    Where none is due, a batch costs a look at the clock. Values are read from the device for a line only.

    Args:
        progress: Of the trainer.
    """

    def __init__(self, progress: TrainerProgress) -> None:
        self.progress = progress
        self._look_at = math.inf
        self._pace = self._evaluation_pace = Pace()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of this attempt."""
        if trainer.is_global_zero:
            self.progress.begin_training(trainer)
            self._pace, self._look_at = Pace(), time.monotonic() + LEAST

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a line if one is due."""
        if time.monotonic() >= self._look_at:
            self._look(self._pace, outputs)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a validation."""
        if trainer.is_global_zero:
            self.progress.begin_evaluation(trainer)
            self._evaluation_pace, self._look_at = Pace(), time.monotonic() + LEAST

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a line if one is due."""
        if time.monotonic() >= self._look_at:
            self.progress.evaluated(trainer, batch_idx, dataloader_idx)
            self._look(self._evaluation_pace)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue with training."""
        self.progress.end_evaluation()
        if trainer.is_global_zero:
            self._look_at = time.monotonic() + _LOOK_AGAIN

    def _look(self, pace: Pace, outputs: Any = None) -> None:
        """Write a line if enough has been done since the last one."""
        self._look_at = time.monotonic() + _LOOK_AGAIN
        found = self.progress.figures()
        if found is not None and pace.is_due(found.share):
            pace.mark(found.share)
            if pace is self._pace:
                self.progress.read(outputs)
            self.progress.log()

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end
