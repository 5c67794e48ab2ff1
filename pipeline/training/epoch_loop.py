"""Lightning's loop over the batches of an epoch, which goes on exactly where a checkpoint of ours stands.

Lightning saves from hooks in the middle of its own bookkeeping, and guesses on resume how far that had come; in 2.6.6
it guesses wrong in several places (an epoch resumed at its start is empty, a learning rate schedule steps twice or
never, a validation is lost). We save only where all bookkeeping of the last batch is over, write the counters as they
are there (`settle`), and resume without a guess.
"""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor

from pipeline.data.ledger import Ledger
from pipeline.run.goodput import Goodput


class EpochLoop(_TrainingEpochLoop):
    """The batches of one epoch.

    Attributes:
        stands_at: Batches of the epoch that are over, where a settled checkpoint was loaded; else None.
        owes_validation: Whether the validation after the last of them was left in its middle, and comes first.
        ledger: Is told of each batch; None for foreign data.
        goodput: Is told when a batch is over.
        before_validation: Called right before the validation within or at the end of an epoch begins.
    """

    stands_at: int | None = None
    owes_validation = False
    ledger: Ledger | None = None
    goodput: Goodput | None = None
    before_validation: Callable[[], None] | None = None
    _skipped = False

    def reset(self) -> None:
        """Begin the epoch, or go on in it."""
        batches, self.stands_at = self.stands_at, None
        self._skipped = False
        if batches is not None:
            self.restarting = False
            self.trainer.fit_loop._restarting = False
        if batches:
            current: Any = self.batch_progress.current
            # Batches that were None never started; in another world the same position is another number of batches.
            current.started += batches - current.completed
            current.ready = current.processed = current.completed = batches
        else:
            super().reset()
        if self.ledger is not None:
            self.ledger.open(self.trainer, anew=not batches)

    def on_run_start(self, data_fetcher: Any) -> None:
        """Do what is left of the batch that the checkpoint stands after."""
        super().on_run_start(data_fetcher)
        if self.owes_validation:
            progress = self.batch_progress
            progress.is_last_batch = progress.current.ready >= self.trainer.num_training_batches
            self.on_advance_end(data_fetcher)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        due = self.owes_validation or super()._should_check_val_fx(data_fetcher)
        if due and self.before_validation is not None:
            self.before_validation()
        self.owes_validation = False
        return due

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: Lightning would have all ranks and their devices wait for each other here, before every batch."""

    def advance(self, data_fetcher: Any) -> None:
        """Train on one batch, which then is accounted for."""
        progress: Any = self.batch_progress.current
        ready = progress.ready
        if self.goodput is not None:
            self.goodput.waits()
        try:
            super().advance(data_fetcher)
        except StopIteration:
            self._skipped = progress.ready > ready  # there was a batch, and the model returned -1
            raise
        if self.ledger is not None:
            self.ledger.count(self.trainer)

    def run(self, data_fetcher: Any) -> None:
        """Train on the batches of one epoch, whose account is then closed."""
        if self.goodput is not None:
            self.goodput.waits()  # a loader starts its workers before the first batch
        super().run(data_fetcher)
        if self.goodput is not None:
            self.goodput.rests()
        if self.ledger is not None:
            self.ledger.close(self.trainer, self._ended_by(), self.batch_progress.current.completed)

    def _ended_by(self) -> str:
        """What ended the epoch."""
        if self._skipped:
            return "skipped"
        if self._num_ready_batches_reached():
            return "complete"
        if self.max_steps != -1 and self.trainer.global_step >= self.max_steps:
            return "max_steps"
        return "stopped" if self.trainer.should_stop else "loader"


def install(trainer: pl.Trainer) -> None:
    """Have a trainer resume exactly."""
    stock = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_loop = EpochLoop(trainer, stock.min_steps, stock.max_steps)


def epoch_over(trainer: pl.Trainer) -> bool:
    """Between two epochs: whether the last one has had its last batch, the data's, a limit's or the model's choice.

    Otherwise training was stopped within it, and can go on within it.
    """
    return bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())


def settle(loops: dict[str, Any], epoch: int, batches: int) -> None:
    """Write Lightning's counters into a checkpoint as they stand between two batches, or between two epochs.

    Args:
        loops: `checkpoint["loops"]`.
        epoch: Epochs that are over.
        batches: Batches of the epoch after those that are over.
    """
    # An epoch that goes on in its middle counts as not started, so that its on_train_epoch_start is called again: what
    # that sets up in callbacks and models (how many batches to accumulate, a list of outputs) no checkpoint holds.
    begun = epoch + (batches > 0)
    for counters in loops["fit_loop"]["epoch_progress"].values():
        counters.update(ready=begun, started=epoch, processed=epoch, completed=epoch)
    if batches:
        progress = loops["fit_loop"]["epoch_loop.batch_progress"]
        progress["is_last_batch"] = False
        more = {name: value - batches for name, value in progress["current"].items() if name != "started"}
        # Where a save follows a step that was thrown away, it has not started either.
        more["started"] = max(more["completed"], 0)
        for counter, value in more.items():
            progress["total"][counter] -= value
            progress["current"][counter] -= value


def exact_reduce(trainer: pl.Trainer) -> None:
    """Have self.log(sync_dist=True) reduce counts as exactly as values.

    The mean over ranks of whole numbers of samples is cut off to a whole number in Lightning 2.6.6, so that a metric
    over ranks with unequal numbers of samples comes out wrong.
    """
    stock = trainer.strategy.reduce

    def reduce(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(tensor, Tensor) and not tensor.is_floating_point():
            tensor = tensor.double()
        return stock(tensor, *arguments, **named)

    trainer.strategy.reduce = reduce  # type: ignore[method-assign]
