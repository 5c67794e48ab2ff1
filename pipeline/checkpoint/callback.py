"""When a checkpoint is saved: after each epoch and at the end of training."""

import logging
import math
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from pipeline.checkpoint.io import StreamingIO
from pipeline.checkpoint.record import CommitRecord, Monitor, newest, select, write_record
from pipeline.errors import UserError
from pipeline.run_dir import RunDir, now

log = logging.getLogger(__name__)

_OWN_KEY = "pipeline"
"""What this project adds to Lightning's checkpoint stands under this key."""


class Checkpoints(Checkpoint):
    """Commits a checkpoint of the run after each epoch and at the end of training.

    The save of an epoch waits for the start of the next one (or the end of training): only there is the epoch wholly
    over, with its validation, its hooks and its learning rate schedulers, so that going on from it is the same as
    never having stopped.

    Args:
        monitor: A logged metric that tells which checkpoint is best; None: the latest is.
        mode: Whether the least (`min`) or the greatest (`max`) value of `monitor` is best.
        every_n_epochs: Save after every n-th epoch; the end of training always saves.
    """

    def __init__(self, monitor: str | None = None, mode: str = "min", every_n_epochs: int = 1) -> None:
        problems = []
        if mode not in ("min", "max"):
            problems.append(f"checkpoints.mode={mode!r}: allowed are 'min' and 'max'")
        if every_n_epochs < 1:
            problems.append(f"checkpoints.every_n_epochs={every_n_epochs}: allowed are 1 and more")
        if problems:
            raise UserError(*problems)
        self.monitor = monitor
        self.mode = mode
        self.every_n_epochs = every_n_epochs
        self.run: RunDir | None = None
        self._committed_step: int | None = None
        self._saving = False
        self._resumes_at_epoch_start = False
        self._validated = False

    def attach(self, run: RunDir, resumed_step: int | None) -> None:
        """Say where to save, and which step is committed already."""
        self.run = run
        self._committed_step = resumed_step

    @property
    def best_model_path(self) -> str:
        """The full URL of the best committed checkpoint, "" before there is one."""
        if self.run is None or newest(self.run) is None:
            return ""
        return self.run.url_of(select(self.run, None).name)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say in the checkpoint that an epoch is about to begin, in Lightning's words and in ours."""
        if not self._saving:
            return  # somebody else's checkpoint, at a moment of its own
        for counters in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            counters["ready"] = counters["processed"]
        checkpoint[_OWN_KEY] = {"position": _position(trainer), "world_size": trainer.world_size}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember whether the checkpoint is one of ours."""
        self._resumes_at_epoch_start = _OWN_KEY in checkpoint

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the epoch afresh where the checkpoint says so.

        Lightning takes every resume under `max_steps` for one in the middle of an epoch: it would skip the epoch's
        batches, validation and learning rate schedule.
        """
        if self._resumes_at_epoch_start:
            trainer.fit_loop._restarting = False
            trainer.fit_loop.epoch_loop.restarting = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that what validation logs is known by now."""
        self._validated = self._validated or not trainer.sanity_checking

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch that has just ended."""
        if trainer.global_step > 0 and trainer.current_epoch % self.every_n_epochs == 0:
            self._save(trainer, ["epoch"])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of training."""
        if trainer.global_step > 0:
            self._save(trainer, ["epoch", "end"] if trainer.fit_loop.epoch_loop._is_training_done else ["end"])

    def _save(self, trainer: pl.Trainer, reason: list[str]) -> None:
        step = trainer.global_step
        if self.run is None or step == self._committed_step:
            return
        url = self.run.url_of(RunDir.checkpoint(step))
        started = time.monotonic()
        self._saving = True
        try:
            trainer.save_checkpoint(url)
        finally:
            self._saving = False
        monitor = self._monitored(trainer)
        if trainer.is_global_zero:
            io = trainer.strategy.checkpoint_io
            assert isinstance(io, StreamingIO)
            written = io.written.pop(url)
            record = CommitRecord(
                step=step,
                epoch=trainer.current_epoch,
                position=_position(trainer),
                bytes=written.bytes,
                sha256=written.sha256,
                monitor=monitor,
                world_size=trainer.world_size,
                created=now(),
                reason=reason,
            )
            write_record(self.run, record)
            value = f", {monitor.name} {monitor.value:.6g}" if monitor else ""
            log.info("saved step %d%s (%.1f s)", step, value, time.monotonic() - started)
        self._committed_step = step
        known = trainer.callback_metrics
        could_know = self._validated or not sum(trainer.num_val_batches)
        if self.monitor is not None and self.monitor not in known and could_know:
            raise UserError(
                f"checkpoints.monitor={self.monitor!r} is not logged by the model; logged are: "
                f"{', '.join(sorted(known)) or 'none'}. Step {step} is saved: mend the name and start again"
            )

    def _monitored(self, trainer: pl.Trainer) -> Monitor | None:
        value: Any = None if self.monitor is None else trainer.callback_metrics.get(self.monitor)
        # JSON has no NaN, and a NaN is never best.
        if value is None or not math.isfinite(value):
            return None
        assert self.monitor is not None
        return Monitor(self.monitor, float(value), self.mode)


def _position(trainer: pl.Trainer) -> int | None:
    """Every save stands at the start of an epoch, where nothing is consumed; foreign data has no position."""
    return getattr(getattr(trainer, "datamodule", None), "position", None)
