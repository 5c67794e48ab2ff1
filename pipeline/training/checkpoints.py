"""The flags under `checkpoints`: when to save, which checkpoints stay, and for how long the storage may fail."""

from collections.abc import Callable
from dataclasses import asdict

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from pipeline.checkpoint.commit import CommitRecord, select
from pipeline.checkpoint.retention import Keep, Retention
from pipeline.checkpoint.saver import Saver
from pipeline.errors import UserError
from pipeline.run.attempts import AttemptLog
from pipeline.run.run_dir import RunDir
from pipeline.training.logs import tensorboard
from pipeline.training.memory_checkpoints import MemoryCheckpoints, Uncommitted
from pipeline.training.save_policy import SavePolicy
from pipeline.training.session import TrainingSession
from pipeline.training.stop_vote import StopVote
from pipeline.training.telemetry.telemetry import Telemetry
from pipeline.training.trainer_state import TrainerState


class Checkpoints(Checkpoint):
    """What a user asks of the run's checkpoints, and the last callback, after which nothing of a step is left to do.

    Args:
        monitor: A logged metric that tells which checkpoint is best; None: the latest is.
        mode: Whether the least (`min`) or the greatest (`max`) value of `monitor` is best.
        every_n_epochs: Save after every n-th epoch; the end of training is always saved.
        every_n_steps: Also save after every n-th optimizer step.
        every_minutes: Also save when so many minutes have passed since the last save; rank 0's clock decides for all.
        after_validation: Also save after every validation within an epoch.
        keep_last: Keep so many of the newest, and delete the others after each commit; None: keep all.
        keep_best: Also keep so many of the best by `monitor`.
        keep_every_n_steps: Also keep one for every so many steps.
        storage_budget: Seconds for which the storage may fail, while training continues, before the run fails.

    Raises:
        UserError: Values out of their range; all of them at once.
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
            problems.append(f"checkpoints.mode={mode!r} must be 'min' or 'max'")
        for name, value in (("every_n_epochs", every_n_epochs), ("every_n_steps", every_n_steps)):
            if value is not None and value < 1:
                problems.append(f"checkpoints.{name}={value} must be >= 1")
        if every_minutes is not None and every_minutes <= 0:
            problems.append(f"checkpoints.every_minutes={every_minutes:g} must be > 0")
        self.keep = Keep(keep_last, keep_best, keep_every_n_steps)
        problems += self.keep.problems()
        if storage_budget < 0:
            problems.append(f"checkpoints.storage_budget={storage_budget:g} must be >= 0 seconds")
        if problems:
            raise UserError(*problems)
        self.monitor = monitor
        self.mode = mode
        self.policy = SavePolicy(every_n_epochs, every_n_steps, every_minutes, after_validation)
        self.storage_budget = storage_budget
        self.session: TrainingSession | None = None
        self.run: RunDir | None = None

    def open_session(
        self,
        run: RunDir,
        state: TrainerState,
        vote: StopVote,
        writer: AttemptLog,
        resumed_step: int | None,
        after_first_commit: Callable[[CommitRecord], None] | None = None,
        memory: MemoryCheckpoints | None = None,
        uncommitted: Uncommitted | None = None,
        telemetry: Telemetry | None = None,
    ) -> TrainingSession:
        """Return the session of a fit that saves what is asked for here.

        Args:
            run: The run directory.
            state: Of the trainer.
            vote: Decides for all ranks whether they stop.
            writer: Of the run.
            resumed_step: The step that this attempt resumed from, if the run itself committed it.
            after_first_commit: Called once, after the first commit of this attempt.
            memory: Keeps states in the memory of the nodes.
            uncommitted: The state that this attempt resumes from, where it is in memory alone.
            telemetry: Measures this fit.
        """
        self.run = run
        retention = Retention(run, self.keep, resumed_step)

        def after_commit(record: CommitRecord) -> None:
            writer.committed(record.step, record.epoch, None if record.monitor is None else asdict(record.monitor))
            retention.after_commit(record)

        def before_commit() -> None:
            for logger in tensorboard.of(state.trainer):
                logger.wait()  # what was logged before a checkpoint outlasts this process as the checkpoint does
            writer.held()

        saver = Saver(run, self.storage_budget, before_commit, after_commit, after_first_commit)
        saver.committed = resumed_step
        if telemetry is not None:
            telemetry.uploads = lambda: saver.uploads
        self.session = TrainingSession(
            *(state, vote, writer.goodput, self.policy, saver, self.monitor, self.mode, resumed_step),
            *(memory, uncommitted, telemetry),
        )
        return self.session

    @property
    def best_model_path(self) -> str:
        """The full URL of the best committed checkpoint, "" before there is one."""
        if self.run is None or not self.run.steps()["json"]:
            return ""
        return self.run.url_of(select(self.run, None).name)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """All that the validation logs is known by now."""
        if self.session is not None and not trainer.sanity_checking:
            self.session.on_validation_logged(trainer.global_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the sums of an epoch that is left in its middle: Lightning forgets them."""
        if self.session is not None:
            self.session.state.leave_epoch()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the end of training: between two epochs, or in the middle of one that can resume some day."""
        if self.session is not None:
            self.session.at_end(self.session.state.boundary("end"))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the save under way come to its end."""
        if self.session is not None:
            self.session.on_exception(exception)
