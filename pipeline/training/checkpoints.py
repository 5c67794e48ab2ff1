"""When a checkpoint is saved: after steps, after epochs and at the end of training."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from pipeline.checkpoint.commit import CommitRecord, Monitor, read_record, select, write_record
from pipeline.checkpoint.retention import Keep, Retention
from pipeline.checkpoint.saver import SaveFailed, Saver
from pipeline.checkpoint.serializable import plain
from pipeline.errors import LeaseLost, UserError
from pipeline.run.goodput import SAVING, Goodput
from pipeline.run.run_dir import SCHEMA, RunDir, now
from pipeline.training.checkpoint_io import OWN_KEY, RunIO
from pipeline.training.epoch_loop import epoch_over, settle
from pipeline.training.resume import Resume, data_of
from pipeline.training.rng_state import collect
from pipeline.training.save_timer import Clock

_HEARD_EVERY = 2.0
"""Seconds."""


class Checkpoints(Checkpoint):
    """Commits a checkpoint of the run after steps, after epochs and at the end of training.

    A save waits for the start of the next batch or epoch (or the end of training): only there is all that belongs to
    the step over, with its validation, its hooks and its learning rate schedules, so that going on from it is the same
    as never having stopped.

    Args:
        monitor: A logged metric that tells which checkpoint is best; None: the latest is.
        mode: Whether the least (`min`) or the greatest (`max`) value of `monitor` is best.
        every_n_epochs: Save after every n-th epoch; the end of training always saves.
        every_n_steps: Save after every n-th optimizer step, too.
        every_minutes: Save when so many minutes have passed since the last save, too; rank 0's clock decides for all.
        after_validation: Save after every validation within an epoch, too.
        keep_last: So many of the newest stay, the others go after each commit; None: all stay.
        keep_best: Of the best by `monitor` so many stay, too.
        keep_every_n_steps: And one for every so many steps.
        storage_budget: Seconds for which the storage may fail, while training goes on, before the run fails.
    """

    def __init__(
        self,
        monitor: str | None = None,
        mode: str = "min",
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        every_minutes: float | None = None,
        after_validation: bool = False,
        keep_last: int | None = None,
        keep_best: int = 1,
        keep_every_n_steps: int | None = None,
        storage_budget: float = 1800.0,
    ) -> None:
        problems = []
        if mode not in ("min", "max"):
            problems.append(f"checkpoints.mode={mode!r}: allowed are 'min' and 'max'")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                problems.append(f"checkpoints.{name}={value}: allowed are 1 and more")
        if every_minutes is not None and every_minutes <= 0:
            problems.append(f"checkpoints.every_minutes={every_minutes:g}: allowed are numbers above 0")
        self.keep = Keep(keep_last, keep_best, keep_every_n_steps)
        problems += self.keep.problems()
        if storage_budget < 0:
            problems.append(f"checkpoints.storage_budget={storage_budget:g}: allowed are 0 and more seconds")
        if problems:
            raise UserError(*problems)
        self.monitor = monitor
        self.mode = mode
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.after_validation = after_validation
        self.storage_budget = storage_budget
        self._clock = Clock(None)
        self.run: RunDir | None = None
        self.saver: Saver | None = None
        self._resume = Resume(None, anew=False)
        self._facts: dict[str, Any] = {}
        self._committed_step: int | None = None
        self._last_step = 0
        self._due: list[str] = []
        self._own: dict[str, Any] | None = None
        self._left: dict[str, Any] | None = None
        self._validated = False
        self._held: Callable[[], None] | None = None
        self._goodput = Goodput()
        self._owed = False

    def attach(
        self,
        run: RunDir,
        resumed_step: int | None,
        facts: dict[str, Any],
        resume: Resume,
        held: Callable[[], None] | None = None,
        goodput: Goodput | None = None,
    ) -> None:
        """Say where to save, which step is committed already, and what is to stand in every checkpoint.

        Args:
            run: The run directory.
            resumed_step: The step that this attempt goes on from, if the run itself committed it.
            facts: What a later resume is compared with, see `pipeline.config.compatibility.facts`.
            resume: Knows the ledger and the order of gradients.
            held: Raises if this process is not the run's writer any more.
            goodput: Is told what saves cost.
        """
        self._goodput = goodput or self._goodput
        self.run = run
        retention = Retention(run, self.keep, resumed_step)
        self.saver = Saver(run, self.storage_budget, held, retention.after_commit)
        self.saver.committed = resumed_step
        self._held = held
        self._committed_step = resumed_step
        self._facts = facts
        self._resume = resume

    @property
    def best_model_path(self) -> str:
        """The full URL of the best committed checkpoint, "" before there is one."""
        if self.run is None or not self.run.steps()["json"]:
            return ""
        return self.run.url_of(select(self.run, None).name)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write down where training stands, in Lightning's words and in ours."""
        if self._own is None:
            return  # somebody else's checkpoint, at a moment of its own
        checkpoint["epoch"] = self._own["epoch"]
        settle(checkpoint["loops"], self._own["epoch"], self._own["batches"])
        checkpoint[OWN_KEY] = self._own

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count steps from here, and refuse hyperparameters that would not load again.

        Raises:
            UserError: With all of them.
        """
        if self.run is not None:
            plain({"hyper_parameters": dict(pl_module.hparams)})
        self._last_step = trainer.global_step
        self._clock = Clock(None if self.every_minutes is None else 60 * self.every_minutes)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that what validation logs is known by now, and that a save may be due."""
        if not trainer.sanity_checking:
            self._validated = True
            # A step that is committed already was saved before its validation, which an earlier attempt had left.
            self._owed = trainer.global_step == self._committed_step
            if self.after_validation:
                self._due.append("validation")

    def save_due(
        self,
        trainer: pl.Trainer,
        epoch: int,
        batches: int,
        leaving: bool = False,
        standing: dict[str, Any] | None = None,
    ) -> None:
        """Save what has just ended, if it is due.

        Args:
            trainer: Standing between two batches, before any callback has begun the next.
            epoch: The epoch to go on with.
            batches: Its batches that are over.
            leaving: Training ends here, for now: save in any case, and wait until that is durable.
            standing: The state of this rank before the validation that is left in its middle, if one is.
        """
        if not batches and epoch % self.every_n_epochs == 0:
            self._due.append("epoch")
        if leaving:
            self._due.append("preemption")
        if self._due and trainer.global_step > 0:
            with self._goodput.during(SAVING):
                self._save(trainer, epoch, batches, standing=standing)
        self._due = []
        if leaving:
            self._finish(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Decide whether the step is to be saved."""
        step = trainer.global_step
        # A batch may make more than one step (manual optimization), and jump over a multiple.
        if self.every_n_steps is not None and step // self.every_n_steps > self._last_step // self.every_n_steps:
            self._due.append("steps")
        if step != self._last_step and self._clock.due(trainer):
            self._due.append("minutes")
        self._last_step = step

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the save that is under way come to its end: it is good."""
        if self.saver is not None and not isinstance(exception, SaveFailed):
            with suppress(SaveFailed, LeaseLost), self._goodput.during(SAVING):
                self.saver.finish()
            self._goodput.behind = self.saver.figures.get("checkpoint/behind_seconds")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the sums of an epoch that is left in its middle: Lightning forgets them."""
        self._resume.complete(trainer)
        self._left = None if epoch_over(trainer) else collect(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of training: between two epochs, or in the middle of one that can go on some day."""
        epoch, used = trainer.current_epoch, 0
        if epoch_over(trainer):
            self._due.append("epoch")
        else:
            completed = trainer.fit_loop.epoch_loop.batch_progress.current.completed
            epoch, used = epoch - 1, completed - completed % trainer.accumulate_grad_batches
        if trainer.global_step > 0:
            with self._goodput.during(SAVING):
                self._save(trainer, epoch, used, end=True)
        self._finish(trainer)  # also where the last step was saved before: it may still be under way
        self._due = []

    def _finish(self, trainer: pl.Trainer) -> None:
        """Wait, all ranks together, until the save that is under way is durable."""
        if self.saver is not None:
            with self._goodput.during(SAVING):
                self._together(trainer, self.saver.finished)
            self._report(trainer)

    def _together(self, trainer: pl.Trainer, over: Callable[[float], bool]) -> None:
        """Wait until something is over on rank 0, whose ranks would lose their patience with it if they heard nothing.

        Args:
            trainer: Whose ranks wait.
            over: Waits for so many seconds at most, and says whether it is.
        """
        while not trainer.strategy.broadcast(not trainer.is_global_zero or over(_HEARD_EVERY)):
            self._resume.moved()

    def _save(
        self,
        trainer: pl.Trainer,
        epoch: int,
        batches: int,
        end: bool = False,
        standing: dict[str, Any] | None = None,
    ) -> None:
        """Save one step, if it is not committed yet.

        Args:
            trainer: Standing between two batches.
            epoch: The epoch to go on with.
            batches: Its batches that are over.
            end: Whether training ends here.
            standing: As in `save_due`.
        """
        step = trainer.global_step
        if self.run is None or self.saver is None:
            return
        if step == self._committed_step:
            self._amend(trainer, end)
            return
        # The last one is worth waiting for, however long the storage is away.
        self._together(trainer, self.saver.finished if end else self.saver.ready)
        began = time.perf_counter()
        url = self.run.url_of(RunDir.checkpoint(step))
        data, ledger = data_of(trainer), self._resume.ledger
        position = None
        if data is not None and data.batches is not None:
            position = data.batches.position(batches) if batches else 0
        self._own = {
            "schema": SCHEMA,
            "facts": self._facts,
            "epoch": epoch,
            "batches": batches,
            "position": position,
            "ledger": ledger.state(trainer, epoch, batches) if ledger is not None else None,
            "state": collect(trainer, standing) if self._left is None else self._left,
            "owes_validation": standing is not None,
            "gradient_order": self._resume.gradient_order.indices,
        }
        try:
            trainer.save_checkpoint(url)
        finally:
            self._own = None
        taken = False
        if trainer.is_global_zero:
            # What is known in the middle of a validation is that of another step.
            monitor = self._monitored(trainer) if standing is None else None
            reason = [*dict.fromkeys(self._due), *(["end"] if end else [])]
            taken = self._hand_over(trainer, epoch, position, monitor, reason)
            self._report(trainer)
        # All ranks save together, so all must know of a save that was left out.
        if trainer.strategy.broadcast(taken):
            self._committed_step = step
            self._goodput.saved(time.perf_counter() - began)
            self._clock.restart()
        known = trainer.callback_metrics
        could_know = self._validated or not sum(trainer.num_val_batches)
        if self.monitor is not None and self.monitor not in known and could_know:
            self._finish(trainer)
            raise UserError(
                f"checkpoints.monitor={self.monitor!r} is not logged by the model; logged are: "
                f"{', '.join(sorted(known)) or 'none'}. Step {step} is saved: mend the name and start again"
            )

    def _hand_over(
        self, trainer: pl.Trainer, epoch: int, position: int | None, monitor: Monitor | None, reason: list[str]
    ) -> bool:
        """On rank 0: let the Saver make the checkpoint durable, behind training.

        Returns:
            Whether it was taken.
        """
        io = trainer.strategy.checkpoint_io
        assert isinstance(io, RunIO)
        assert io.taken is not None
        assert self.saver is not None
        taken, io.taken = io.taken, None
        record = CommitRecord(
            step=trainer.global_step,
            epoch=epoch,
            position=position,
            bytes=0,
            sha256="",
            monitor=monitor,
            world_size=trainer.world_size,
            created=now(),
            reason=reason,
        )
        return self.saver.save(taken, record)

    def _amend(self, trainer: pl.Trainer, end: bool) -> None:
        """Write into the record of a step what is known only now: a value of the validation that was left; the end."""
        assert self.run is not None
        owed, self._owed = self._owed, False
        record = read_record(self.run, trainer.global_step) if trainer.is_global_zero and (owed or end) else None
        if record is None:
            return
        known = replace(
            record,
            monitor=self._monitored(trainer) if owed else record.monitor,
            reason=[*dict.fromkeys([*record.reason, *(["end"] if end else [])])],
        )
        if known != record:
            if self._held is not None:
                self._held()
            write_record(self.run, known, overwrite=True)

    def _report(self, trainer: pl.Trainer) -> None:
        """Log what saving costs, and whether the storage fails."""
        assert self.saver is not None
        self._goodput.behind = self.saver.figures.get("checkpoint/behind_seconds")
        for logger in trainer.loggers:
            logger.log_metrics(self.saver.figures, step=trainer.global_step)

    def _monitored(self, trainer: pl.Trainer) -> Monitor | None:
        value: Any = None if self.monitor is None else trainer.callback_metrics.get(self.monitor)
        # JSON has no NaN, and a NaN is never best.
        if value is None or not math.isfinite(value):
            return None
        assert self.monitor is not None
        return Monitor(self.monitor, float(value), self.mode)
