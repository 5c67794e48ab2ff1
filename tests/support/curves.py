"""A model that logs in every way that people do, a callback that kills, and what TensorBoard shows of it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from tests.support.models import Regression


class Talkative(Regression):
    """Logs by step and by epoch, under steps of its own, and past Lightning with `global_step`."""

    def __init__(self, learning_rate: float = 0.05, pause: float = 0.0) -> None:
        super().__init__(learning_rate)
        self.pause = pause

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(self.pause)
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        for logger in self.loggers:
            logger.log_metrics({"by_epoch": float(self.current_epoch)}, step=self.current_epoch)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            for logger in self.loggers:
                value = self.trainer.callback_metrics["val_loss"]
                logger.experiment.add_scalar("own", value, self.global_step)  # type: ignore[attr-defined]


class Killed(pl.Callback):
    """Sends this process a signal at several moments, each of them once.

    Args:
        at: The moments, separated by commas: `step 5`, `validated 2` (after the second validation), `validating 3`.
        notes: A folder that says which were done.
        stop: Whether the signal is SIGTERM, else SIGKILL.
    """

    def __init__(self, at: str, notes: str, stop: bool = False) -> None:
        self.at = at.split(",")
        self.notes = Path(notes)
        self.signal = signal.SIGTERM if stop else signal.SIGKILL

    def _now(self, trainer: pl.Trainer, moment: str) -> None:
        if moment in self.at and not trainer.sanity_checking:
            note = self.notes / moment
            if not note.exists():
                self.notes.mkdir(exist_ok=True)
                note.touch()
                os.kill(os.getpid(), self.signal)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._now(trainer, f"step {trainer.global_step}")

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if batch_idx == 1:
            self._now(trainer, f"validating {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._now(trainer, f"validated {trainer.current_epoch}")


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All values that TensorBoard shows of a folder of events, but for those that tell of time."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in found.Tags()["scalars"] if not tag.startswith(("checkpoint/", "telemetry/"))]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}
