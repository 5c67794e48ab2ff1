"""Models and callbacks that die, hang, stop or write notes at a moment that a test chooses."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from tests.support.models import Regression, Rows, die


class Noting(Regression):
    """Notes the indices of every step at once, so that they outlast a kill; dies or stops where it is told to."""

    def __init__(self, notes: str, die_at: int | None = None, pause: float = 0.0) -> None:
        super().__init__()
        self.notes = notes
        self.pause = pause
        self.die_at = die_at
        self.indices: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.indices += batch[0][:, 0].long().tolist()
        time.sleep(self.pause)
        return super().training_step((batch[0] / 100, batch[1]), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_mean", batch[0][:, 0].mean(), sync_dist=True, batch_size=len(batch[0]))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = self.trainer.global_step
        with open(f"{self.notes}-{self.global_rank}.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "epoch": self.current_epoch, "indices": self.indices}) + "\n")
        self.indices = []
        if step == self.die_at and self.global_rank == 0:
            die(self.trainer)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Slowly(Regression):
    """Takes its time, so that a test can come between two steps."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        time.sleep(0.1)
        return super().training_step(batch, batch_idx)


class Asks(pl.Callback):
    """Sends this process SIGTERM, once, at a moment such as `step 5`, `validation 2` (its second batch) or `sanity`.

    Args:
        at: The moment.
        once: A file that says that it has been done.
        rank: Which rank's process.
    """

    def __init__(self, at: str, once: str, rank: int = 0) -> None:
        self.at = at
        self.once = Path(once)
        self.rank = rank
        self.validations = 0

    def _now(self, trainer: pl.Trainer, moment: str) -> None:
        if moment == self.at and trainer.global_rank == self.rank and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)  # the thread that listens is another one

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._now(trainer, "setup")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._now(trainer, f"step {trainer.global_step}")
        self._now(trainer, f"batch {trainer.fit_loop.epoch_loop.total_batch_idx}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validations += not trainer.sanity_checking

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if trainer.sanity_checking:
            self._now(trainer, "sanity")
        elif batch_idx == 1:
            self._now(trainer, f"validation {self.validations}")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._now(trainer, f"start of epoch {trainer.current_epoch}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._now(trainer, f"end of epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._now(trainer, "end")


class Stuck(Regression):
    """Stands still in its fourth step, as with peers that are gone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.global_step == 3:
            print("stuck", file=sys.stderr, flush=True)
            time.sleep(600)
        return super().training_step(batch, batch_idx)


class FailsOnOneRank(Noting):
    """Raises on rank 1, in its fifth step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_rank == 1 and self.trainer.global_step == 4:
            raise ZeroDivisionError("the model is broken on rank 1")
        return super().training_step(batch, batch_idx)


class Chatty(Slowly):
    """Prints each step, whether or not anybody reads it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        print(f"step {self.trainer.global_step}", flush=True)
        return super().training_step(batch, batch_idx)


class Downloads(Rows):
    """Takes ten minutes to be there."""

    def __init__(self) -> None:
        super().__init__()
        print("downloading", file=sys.stderr, flush=True)
        time.sleep(600)
