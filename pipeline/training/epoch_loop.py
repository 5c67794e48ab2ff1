"""Lightning's loop over the batches of an epoch, which resumes exactly where a checkpoint of ours stands.

Lightning saves from hooks in the middle of its own bookkeeping, and guesses on resume how far that had come; in 2.6.6
it guesses wrong in several places (an epoch resumed at its start is empty, a learning rate schedule steps twice or
never, a validation is lost). We save only where all bookkeeping of the last batch is over, write the counters as they
are there (`progress.settle`), and resume without a guess.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from pipeline.run.goodput import OTHER, WAITING
from pipeline.training import compat
from pipeline.training.logs import tensorboard
from pipeline.training.step import logged_values
from pipeline.training.step.lean_step import LeanStep
from pipeline.training.step.logged_values import LoggedValues

if TYPE_CHECKING:
    from pipeline.training.session import TrainingSession


class EpochLoop(compat.TrainingEpochLoop):
    """The batches of one epoch.

    Attributes:
        validation_pending: Whether the validation after the last batch was cut short, and comes first.
    """

    validation_pending = False
    _skipped = False
    _session: "TrainingSession | None" = None
    _hooks: pl.Callback | None = None
    _lean: LeanStep | None = None

    @property
    def logged(self) -> LoggedValues | None:
        """What the batches of this epoch log; None where Lightning's own loop trains on them."""
        return None if self._lean is None else self._lean.logged

    def begin(self, session: "TrainingSession", hooks: pl.Callback) -> None:
        """Have a session called between two batches, while its hooks are among the trainer's callbacks."""
        self._session, self._hooks = session, hooks

    @property
    def session(self) -> "TrainingSession | None":
        """None where a finder runs the loop for its own purposes, before training or in its midst."""
        return self._session if self._hooks in self.trainer.callbacks else None  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Begin the epoch, or resume it in its middle."""
        batches: int | None = None
        if self.session is not None:
            self.session.state.start_epoch()  # where Lightning itself resumes in an epoch, no hook has come before
            batches, self.validation_pending = self.session.state.take_resume_batch()
        self._skipped = False
        if batches is not None:
            self.restarting = False
            compat.end_restart(self.trainer)
        if batches:
            current: Any = self.batch_progress.current
            # Batches that were None never started; in another world the same position is another number of batches.
            current.started += batches - current.completed
            current.ready = current.processed = current.completed = batches
        else:
            super().reset()
        if self.session is not None:
            self.session.state.open_epoch(from_start=not batches)

    def on_run_start(self, data_fetcher: Any) -> None:
        """Do what is left of the batch that the checkpoint stands after."""
        super().on_run_start(data_fetcher)
        self._lean = LeanStep.of(self, data_fetcher)
        if self.session is not None:
            self.session.state.loaders.resume(data_fetcher)
            self.session.state.resume_epoch()
            tensorboard.mute(self.trainer, False)
        if self.validation_pending:
            progress = self.batch_progress
            progress.is_last_batch = data_fetcher.done or progress.current.ready >= self.trainer.num_training_batches
            self.on_advance_end(data_fetcher)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        due = self.validation_pending or super()._should_check_val_fx(data_fetcher)
        if due and self.session is not None:
            self.session.before_validation()
        self.validation_pending = False
        return due

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: Lightning would have all ranks and their devices wait for each other here, before every batch."""

    def advance(self, data_fetcher: Any) -> None:
        """Let the session do what is due between two batches, and train on the next one."""
        progress: Any = self.batch_progress.current
        ready = progress.ready
        if self.session is not None:
            self.session.at_boundary(self.session.state.boundary("batch"))
            self.session.before_batch()
        if self._lean is not None and not self._lean.holds:
            self._leave_lean_step()
        try:
            if self._lean is None or self.restarting:
                super().advance(data_fetcher)
            else:
                self._lean.advance(data_fetcher)
        except StopIteration:
            self._skipped = progress.ready > ready  # there was a batch, and the model returned -1
            raise
        if self.session is not None:
            self.session.on_batch_end()

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate where that is due, and count the batch."""
        if self.logged is not None:
            ends = self.validation_pending or self._skip_next_val or self.trainer.should_stop
            if not (ends or self.trainer.lr_scheduler_configs or super()._should_check_val_fx(data_fetcher)):
                self._batches_that_stepped += not self._should_accumulate()
                return
            self.logged.settle()
        super().on_advance_end(data_fetcher)

    def _leave_lean_step(self) -> None:
        """Leave the rest of this epoch to Lightning's own loop."""
        if self.logged is not None:
            self.logged.settle()
        self._lean = None

    def run(self, data_fetcher: Any) -> None:
        """Train on the batches of one epoch, whose ledger is then closed."""
        if self.session is not None:
            self.session.goodput.enter(WAITING)  # a loader starts its workers before the first batch
        try:
            super().run(data_fetcher)
        except BaseException:
            with suppress(RuntimeError):  # of a device that has failed
                self._leave_lean_step()
            raise
        self._leave_lean_step()
        if self.session is not None:
            self.session.goodput.enter(OTHER)
            self.session.state.close_epoch(self._ended_by(), self.batch_progress.current.completed)

    def _ended_by(self) -> str:
        """Return what ended the epoch."""
        if self._skipped:
            return "skipped"
        if compat.epoch_is_over(self.trainer):
            return "complete"
        if self.max_steps != -1 and self.trainer.global_step >= self.max_steps:
            return "max_steps"
        return "stopped" if self.trainer.should_stop else "loader"


def install(trainer: pl.Trainer) -> EpochLoop:
    """Have a trainer resume exactly."""
    logged_values.install()
    stock = trainer.fit_loop.epoch_loop
    loop = EpochLoop(trainer, stock.min_steps, stock.max_steps)
    loop.val_loop = stock.val_loop
    trainer.fit_loop.epoch_loop = loop
    return loop
