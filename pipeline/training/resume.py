"""How training stands exactly where a checkpoint of ours was saved, and where it stands still to save or to end."""

import logging
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.call import _call_callbacks_load_state_dict

from pipeline.data.datamodule import DataModule
from pipeline.data.ledger import Ledger
from pipeline.errors import Preempted, UserError
from pipeline.run.goodput import Goodput
from pipeline.training import rng_state as state
from pipeline.training.bucket_order import GradientOrder
from pipeline.training.checkpoint_io import OWN_KEY, require_schema
from pipeline.training.epoch_loop import EpochLoop
from pipeline.training.rng_state import Restoring
from pipeline.training.stop_vote import Agreement

log = logging.getLogger(__name__)


Save = Callable[[pl.Trainer, int, int, bool, dict[str, Any] | None], None]
"""As `Checkpoints.save_due`."""


class Resume(pl.Callback):
    """Puts back what a checkpoint of ours holds beside Lightning's state, and ends training where all ranks agree.

    It must be the trainer's first callback. Between two batches, before any other callback has begun the next one, is
    where a checkpoint is saved, where training ends if it is asked to, and where random numbers are put back.

    Args:
        ledger: Counts the samples; None for foreign data.
        anew: Whether the epoch that the checkpoint stands in begins anew, since its order is another one.
        agreement: Knows whether the ranks end; None: nobody asks them.
        goodput: Counts where the time goes.
        save: Saves what is due; None: this attempt saves nothing.
    """

    def __init__(
        self,
        ledger: Ledger | None,
        anew: bool,
        agreement: Agreement | None = None,
        goodput: Goodput | None = None,
        save: Save | None = None,
    ) -> None:
        self.ledger = ledger
        self.anew = anew
        self.agreement = agreement
        self.goodput = goodput or Goodput()
        self.save = save
        self._standing: dict[str, Any] | None = None
        self._validates = 0
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
            loop.owes_validation = not begins and bool(own.get("owes_validation"))
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

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the ranks speak to each other."""
        if self.agreement is not None:
            self.agreement.begin(trainer)

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
        loop.goodput = self.goodput
        loop.before_validation = lambda: self._before_validation(trainer)
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
        self._go_on_in_epoch(trainer)
        self._between(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)
        self.goodput.steps(trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find how many batches all ranks have in common: only within those they can agree."""
        self.goodput.validates(begins=True)
        if self.agreement is not None:
            self._validates = self.agreement.least(sum(trainer.fit_loop.epoch_loop.val_loop.max_batches))
            self.agreement.restart()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Leave a validation in its middle, if all ranks do."""
        self._validates -= 1
        if self.agreement is not None and self._validates >= 0 and self.agreement.ending():
            self._leave_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with training."""
        self._standing = None
        self.goodput.validates(begins=False)
        if self.agreement is not None:
            self.agreement.restart()

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

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop counting steps."""
        self.goodput.ends(trainer.global_step)

    def moved(self) -> None:
        """The ranks have heard of each other, though they stand between two batches."""
        if self.agreement is not None:
            self.agreement.preemption.heartbeat()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop counting steps: what comes now is none."""
        self.goodput.ends(trainer.global_step)

    def complete(self, trainer: pl.Trainer) -> None:
        """Put back what no later batch of the epoch has logged: now, if it has not been done."""
        if self._restoring is not None:
            self._restoring.at_epoch_end(trainer)
            self._restoring = None

    def _before_validation(self, trainer: pl.Trainer) -> None:
        """Stand after a batch's step and before the validation that follows it."""
        self._go_on_in_epoch(trainer)
        self._put_back(trainer)
        self._standing = state.own(trainer)

    def _go_on_in_epoch(self, trainer: pl.Trainer) -> None:
        """Forget again what the epoch's start has logged and counted once more."""
        if self._in_epoch:
            self._in_epoch = False
            _call_callbacks_load_state_dict(trainer, self._callbacks)
            trainer.fit_loop.epoch_loop._results.clear()

    def _put_back(self, trainer: pl.Trainer) -> None:
        """Put random numbers and sums back, once."""
        if self._restoring is not None and not self._restoring.begun:
            self._restoring.before_first_batch(trainer)

    def _between(self, trainer: pl.Trainer, batches: int) -> None:
        self.goodput.step = trainer.global_step
        # Batches that are accumulated for a step to come are in no checkpoint.
        whole = batches % trainer.accumulate_grad_batches == 0
        leaving = self.agreement is not None and self.agreement.ending() and whole
        if leaving and self._restoring is not None and not self._restoring.begun:
            raise Preempted(f"preempted at step {trainer.global_step}, before the first new one: nothing to save")
        if self.save is not None:
            self.save(trainer, trainer.current_epoch, batches, leaving, None)
        if leaving:
            raise Preempted(f"preempted at step {trainer.global_step}")
        self._put_back(trainer)

    def _leave_validation(self, trainer: pl.Trainer) -> None:
        """Save the step that the validation follows, which then comes first when training goes on.

        Not where training ends with this validation, for then nothing would go on; nor among accumulated batches.
        """
        loop, step = trainer.fit_loop.epoch_loop, trainer.global_step
        if trainer.sanity_checking:
            raise Preempted("preempted before training began: nothing to save")
        last = trainer.should_stop or (loop.max_steps != -1 and step >= loop.max_steps)
        if last or loop._should_accumulate():
            return
        if self.save is not None:
            self.save(trainer, trainer.current_epoch, loop.batch_progress.current.completed, True, self._standing)
        raise Preempted(f"preempted in the validation after step {step}")


def _in_epoch(checkpoint: dict[str, Any]) -> bool:
    """Whether somebody else's checkpoint was saved in the middle of an epoch."""
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_loop.batch_progress", {})
    return bool(progress.get("current", {}).get("ready")) and not progress.get("is_last_batch", False)


def data_of(trainer: pl.Trainer) -> DataModule | None:
    """The data, if they are ours: foreign ones have no position."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, DataModule) else None
