"""What a Lightning trainer holds, captured between two batches and put back there: the other half of the session."""

import logging
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl

from pipeline.data.datamodule import data_of
from pipeline.data.ledger import Ledger
from pipeline.errors import Preempted, UserError
from pipeline.training import compat
from pipeline.training.loaders.loader_position import LoaderPosition
from pipeline.training.logs import tensorboard
from pipeline.training.save_policy import Boundary
from pipeline.training.state import callback_state, finders, rng_state, stopping
from pipeline.training.state.bucket_order import BucketOrder
from pipeline.training.state.model_modes import ModelModes
from pipeline.training.state.optimizer_settings import OptimizerSettings
from pipeline.training.state.progress import is_mid_epoch, settle
from pipeline.training.state.resumed_state import ResumedState
from pipeline.training.state.run_state import KEY, RunState

log = logging.getLogger(__name__)


class TrainerState:
    """The state of one trainer.

    A resume puts each part back at the moment that corresponds to the one where it was captured: `load` when Lightning
    loads the checkpoint, `begin` before training, `resume_epoch` and `restore` before the first batch, `after_batch`
    as names are logged again, `complete_epoch` at the epoch's end.

    Args:
        trainer: Whose loop over the batches is an `EpochLoop`, which calls this.
        facts: What a later resume is compared with, see `pipeline.config.compatibility.facts`.
        ledger: Counts the samples; None for foreign data.
        restart_epoch: Whether the epoch of the checkpoint starts over, since its order has changed.
        asked: The resolved configuration, in which what may stop training is found.
        override_optimizer: Whether settings of optimizers and schedules that are asked for win over the checkpoint's.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        facts: dict[str, Any] | None = None,
        ledger: Ledger | None = None,
        restart_epoch: bool = False,
        asked: dict[str, Any] | None = None,
        override_optimizer: bool = False,
    ) -> None:
        self.trainer = trainer
        self.facts = facts or {}
        self.ledger = ledger
        self.restart_epoch = restart_epoch
        self.asked = asked or {}
        self.override_optimizer = override_optimizer
        self.bucket_order = BucketOrder()
        self.loaders = LoaderPosition(trainer)
        self._loaded: RunState | None = None
        self._resumed: ResumedState | None = None
        self._settings: OptimizerSettings | None = None
        self._modes: ModelModes | None = None  # from the start of the fit on
        self._resume_batch: int | None = None
        self._validation_pending = False
        self._callbacks: Any = None
        self._in_epoch = False
        self._restoring: rng_state.RankState | None = None
        self._left: dict[str, Any] | None = None
        """Of all ranks, where an epoch was left in its middle: Lightning forgets its sums."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.trainer.is_global_zero

    @property
    def world_size(self) -> int:
        """Processes that train."""
        return self.trainer.world_size

    @property
    def model(self) -> pl.LightningModule:
        """That is trained."""
        return self.trainer.lightning_module

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The model's, as a checkpoint holds them."""
        return dict(self.model.hparams)

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate on."""
        return bool(sum(self.trainer.num_val_batches))

    def broadcast(self, value: bool) -> bool:
        """Return rank 0's value. All ranks must call it."""
        return bool(self.trainer.strategy.broadcast(value))

    def metrics(self) -> dict[str, Any]:
        """Return what callbacks may monitor, by name."""
        return self.trainer.callback_metrics

    def log(self, figures: dict[str, float], step: int) -> None:
        """Send figures of a save to every logger."""
        tensorboard.log_save(self.trainer, figures, step)

    def boundary(self, kind: Literal["batch", "epoch", "end"]) -> Boundary:
        """Return where training stands."""
        trainer = self.trainer
        epoch, batches = trainer.current_epoch, 0
        left = kind == "end" and not compat.epoch_is_over(trainer)
        if kind == "batch" or left:
            batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        pending = batches % trainer.accumulate_grad_batches
        if left:  # the epoch can resume some day; what was accumulated of a step is thrown away
            epoch, batches, pending = epoch - 1, batches - pending, 0
        return Boundary(trainer.global_step, epoch, batches, kind, accumulating=pending > 0)

    def in_validation(self) -> Boundary | None:
        """Return where training stands within a validation; None where it must not be left.

        That is where training ends with this validation, for then nothing would resume, and among accumulated batches.

        Raises:
            Preempted: It is the sanity check, before training.
        """
        trainer = self.trainer
        loop, step = trainer.fit_loop.epoch_loop, trainer.global_step
        if trainer.sanity_checking:
            raise Preempted("preempted before training began: nothing to save")
        if trainer.should_stop or (loop.max_steps != -1 and step >= loop.max_steps) or compat.is_accumulating(trainer):
            return None
        return Boundary(step, trainer.current_epoch, loop.batch_progress.current.completed, "validation")

    def of_rank(self, mid_epoch: bool = True, unused: int = 0) -> dict[str, Any]:
        """Return the state of this rank as it is now, see `LoaderPosition.capture`."""
        if self._modes is not None:
            self._modes.stand()  # a validation may follow
        return {**rng_state.capture(self.trainer), "loaders": self.loaders.capture(mid_epoch, unused)}

    def leave_epoch(self) -> None:
        """Keep the state of an epoch that training leaves in its middle. All ranks must call it."""
        self.complete_epoch()
        trainer, over = self.trainer, compat.epoch_is_over(self.trainer)
        unused = trainer.fit_loop.epoch_loop.batch_progress.current.completed % trainer.accumulate_grad_batches
        self._left = None if over else rng_state.gather(trainer, self.of_rank(unused=unused))

    def ended(self, at: Boundary) -> dict[str, Any] | None:
        """Return what ends training at a boundary, see `pipeline.training.state.run_end`."""
        return stopping.ended(self.trainer, self.asked, at)

    def capture(self, at: Boundary, standing: dict[str, Any] | None = None) -> tuple[dict[str, Any], RunState]:
        """Return a whole checkpoint, complete on rank 0. All ranks must call it.

        Args:
            at: Where training stands.
            standing: The state of this rank before the validation that is left in its middle, if one is.

        Raises:
            ProofFailed: The open epoch has used another number of samples than its position says.
        """
        trainer = self.trainer
        data = data_of(trainer)
        batches, ranks = None if data is None else data.batches, self._left
        if ranks is None:
            ranks = rng_state.gather(trainer, standing or self.of_rank(at.batches > 0))
        state = RunState(
            facts=self.facts,
            epoch=at.epoch,
            batches=at.batches,
            position=None if batches is None else batches.position(at.batches) if at.batches else 0,
            ledger=None if self.ledger is None else self.ledger.state(trainer, at.epoch, at.batches),
            ranks=ranks.get("ranks", []),
            metrics=ranks.get("metrics", {}),
            validation_pending=at.kind == "validation",
            bucket_order=self.bucket_order.indices,
            stop=stopping.requested(trainer, self.asked),
            found=finders.found(trainer),
            built={} if self._settings is None else self._settings.kept,
        )
        checkpoint = callback_state.before_validation(compat.dump_checkpoint(trainer), at.kind)
        if self._modes is not None:
            masks = self._modes.capture_masks(checkpoint["state_dict"])
            state = replace(state, modes=self._modes.capture(standing is not None), masks=masks)
        checkpoint["epoch"] = at.epoch
        settle(checkpoint["loops"], at.epoch, at.batches)
        checkpoint[KEY] = state.to_dict()
        tensorboard.mark(trainer, at)
        return checkpoint, state

    def preview(self) -> dict[str, Any]:
        """Return what a checkpoint would hold now; nothing where hooks need what is not there yet.

        All ranks must call it.
        """
        try:
            return compat.dump_checkpoint(self.trainer)
        except Exception:  # noqa: BLE001 - the user's hooks may raise anything, and will again when a save is due
            return {}

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Stand where a checkpoint stands, as far as that can be before training begins.

        Raises:
            UserError: Its state is damaged or of another version, or does not fit the data.
        """
        if self._modes is None:  # else it is a callback that puts back what it has saved itself
            self._resumed = ResumedState(checkpoint, self.trainer.strategy.root_device.type == "cpu")
        callback_state.prepare(self.trainer, checkpoint.get("callbacks") or {})
        state, data = RunState.of_checkpoint(checkpoint), data_of(self.trainer)
        if state is None:
            if data is not None and is_mid_epoch(checkpoint):
                log.warning("checkpoint has no sample position: restarting its epoch from the beginning")
                self._resume_batch = 0
            return
        restarts = self.restart_epoch
        if data is not None and state.position is not None:
            data.resume(state.epoch, 0 if restarts else state.position)
        self._resume_batch = 0 if restarts else state.batches
        self._validation_pending = state.validation_pending and not restarts
        if self.ledger is not None and state.ledger is not None:
            try:
                self.ledger.load(state.ledger, state.epoch, restarts)
            except ValueError as error:
                raise UserError(
                    f"the checkpoint's ledger is damaged ({error}): remove it and resume from the one before"
                ) from error
        finders.put_back(self.trainer, state.found)
        if any(each.get("loaders") for each in state.ranks):
            # Lightning would give rank 0's to all ranks, and only in the middle of an epoch.
            checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        self._loaded = state
        self.loaders.expect(state)
        self._in_epoch = not restarts and state.batches > 0
        self._callbacks = checkpoint.get("callbacks")
        self._restoring = rng_state.RankState(state, with_sums=not restarts)

    def start_fit(self) -> None:
        """Stand right after the model was loaded: from here on hooks of the user's own may act."""
        self._modes = ModelModes(self.trainer)
        self._settings = OptimizerSettings(self.trainer, self.override_optimizer)
        if self._loaded is not None:
            self._settings.compare(self._loaded.built, bool(self._loaded.found))
            self._modes.restore_masks(self._loaded.masks)
        if self._resumed is not None:
            self._resumed.start_fit(self.trainer, {} if self._loaded is None else self._loaded.found)

    def start_epoch(self) -> None:
        """Compare what is there before the first epoch with what was loaded, once, and freeze what was frozen.

        Raises:
            UserError: Something has changed it.
        """
        self._left = None  # it was over: its loader has given fewer batches than its length says
        if self._resumed is not None and not self._resumed.in_epoch:
            self._resumed.start_epoch(self.trainer, self._in_epoch)
            if self._modes is not None and self._loaded is not None:
                self._modes.restore(self._loaded.modes)
                self._modes.keep()
            if not self._in_epoch:
                self._resumed = None

    def begin(self) -> None:
        """Put back what callbacks and schedules look at, and find the batch to resume at."""
        data = data_of(self.trainer)
        if self._loaded is not None and self._resume_batch is not None:
            before, has_order = self._resume_batch, data is not None and data.batches is not None
            self._resume_batch = self.loaders.plan(self._loaded, before, has_order)
            if before and not self._resume_batch:
                self._in_epoch = self._validation_pending = False
                self._restoring = rng_state.RankState(self._loaded, with_sums=False)
        if self._restoring is not None:
            self._restoring.before_training(self.trainer)
        self.bucket_order.begin(self.trainer, None if self._loaded is None else self._loaded.bucket_order)
        if self._settings is not None:
            self._settings.apply()
        stopping.restore(self.trainer, None if self._loaded is None else self._loaded.stop, self.asked)
        if self._resume_batch and data is not None and data.batches is not None:
            # In another world, or under another limit, the same position is another number of batches, or all of them.
            self._resume_batch = min(data.batches.done, int(self.trainer.num_training_batches))

    def take_resume_batch(self) -> tuple[int | None, bool]:
        """Return once how many batches of the open epoch are over, and whether the validation after them is pending.

        None stands for an epoch that is not resumed.
        """
        taken = self._resume_batch, self._validation_pending
        self._resume_batch, self._validation_pending = None, False
        return taken

    @property
    def resumes_in_epoch(self) -> bool:
        """Whether the epoch that begins now is resumed in its middle."""
        return self._in_epoch

    def resume_epoch(self) -> None:
        """Undo what the hooks of an epoch's start, called again where it resumes in its middle, do a second time."""
        if self._in_epoch:
            self._in_epoch = False
            compat.load_callbacks(self.trainer, self._callbacks)
            compat.logged_results(self.trainer).clear()
            if self._modes is not None:
                self._modes.put_back()
            if self._resumed is not None:
                self._resumed.resume_epoch(self.trainer)
                self._resumed = None

    @property
    def is_restoring(self) -> bool:
        """Whether a resumed state is not in place yet."""
        return self._restoring is not None and not self._restoring.begun

    def restore(self) -> None:
        """Put random number generators and running sums back, once."""
        if self._restoring is not None and not self._restoring.begun:
            self._restoring.before_first_batch(self.trainer)

    def after_batch(self) -> None:
        """Add restored sums to names that were logged again; count the samples of the batch."""
        self.bucket_order.after_batch()
        if self._restoring is not None:
            self._restoring.sums.after_batch(self.trainer)
        if self.ledger is not None:
            self.ledger.count(self.trainer)

    def complete_epoch(self) -> None:
        """Put back what no later batch of the epoch has logged, once."""
        if self._restoring is not None:
            self._restoring.sums.at_epoch_end(self.trainer)
            self._restoring = None

    def open_epoch(self, from_start: bool) -> None:
        """Open the ledger of an epoch, or resume the one that was loaded."""
        if self.ledger is not None:
            self.ledger.open(self.trainer, from_start)

    def close_epoch(self, reason: str, completed: int) -> None:
        """Close the ledger of an epoch.

        Args:
            reason: What ended it.
            completed: Its batches that are over.

        Raises:
            ProofFailed: Other samples were used than the epoch's order says.
        """
        if self.ledger is not None:
            self.ledger.close(self.trainer, reason, completed)
