"""How Lightning reaches the session at the moments that it gives to callbacks only."""

from contextlib import suppress
from typing import Any

import lightning.pytorch as pl

from pipeline.training import compat
from pipeline.training.epoch_loop import EpochLoop
from pipeline.training.logs import tensorboard
from pipeline.training.logs.loss_watch import LossWatch
from pipeline.training.session import TrainingSession


class SessionHooks(pl.Callback):
    """Forwards hooks to the session. It must be the trainer's first callback: a boundary comes before other hooks.

    Args:
        session: Of this fit.
        watches: Whether a loss that is not finite is warned of, for nobody else looks at it.
    """

    def __init__(self, session: TrainingSession, watches: bool = True) -> None:
        self.session = session
        self._watches = watches
        self._losses = LossWatch()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the ranks vote."""
        timeout = compat.collective_timeout(trainer)
        self.session.vote.begin(trainer.world_size, timeout)
        if self.session.memory is not None:
            self.session.memory.open(timeout)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stand where the checkpoint stands."""
        self.session.state.load(checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let nothing replace what was loaded."""
        self.session.state.start_fit()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore what comes before the first batch, and have the loop call the session from here on."""
        self.session.state.begin()
        self.session.begin(trainer.global_step)
        self.session.telemetry.begin(trainer, self.session.vote.group)
        loop = trainer.fit_loop.epoch_loop
        if isinstance(loop, EpochLoop):
            loop.begin(self.session, self)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stand between two epochs."""
        self.session.state.start_epoch()
        if self.session.state.resumes_in_epoch:
            tensorboard.mute(trainer)
        else:
            self.session.at_boundary(self.session.state.boundary("epoch"))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Show the batch that the model gets, and count the time from here as a step's."""
        ledger = self.session.state.ledger
        if ledger is not None and ledger.transfers:
            ledger.receive(batch)
        self.session.goodput.steps(trainer.global_step)
        self.session.telemetry.clock.starts(batch)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Tell the time of gradients from that of the optimizer."""
        self.session.telemetry.clock.has_gradients()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the loss; rank 0 speaks for all, which a loss of another rank reaches with the next step."""
        if self._watches and trainer.is_global_zero:
            self._losses.add(outputs, trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin a validation: one that is left in its middle logs all of its values again."""
        if not trainer.sanity_checking:
            tensorboard.mark(trainer, self.session.state.boundary("batch"))
        self.session.on_validation_start(sum(trainer.fit_loop.epoch_loop.val_loop.max_batches))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave the validation in its middle, if all ranks do."""
        self.session.on_validation_batch(self.session.state.in_validation)

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look for a monitored metric that seems to be misspelt, before the first epoch is trained."""
        if trainer.is_global_zero:
            self.session.monitored.tried()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue with training."""
        self.session.on_validation_end()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the rest of the sums back, before anybody reads them."""
        self._losses.look()
        self.session.state.complete_epoch()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop counting steps."""
        self._losses.look()
        self.session.goodput.ends(trainer.global_step)
        self.session.telemetry.finish(trainer.global_step, trainer.current_epoch)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop counting steps: what comes now is none."""
        with suppress(RuntimeError):  # of a device that has failed
            self._losses.look()
        self.session.goodput.ends(trainer.global_step)
        self.session.telemetry.abandon()
