"""How far a trainer has come, looked up where it is when a line or a frame is due: between those it costs nothing."""

import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from pipeline.checkpoint.saver import Saver
from pipeline.run.checkpoint_interval import duration
from pipeline.training.logs.figures import TRAINING, Figures, rounded
from pipeline.training.logs.pace import Pace

log = logging.getLogger(__name__)

_RECENT = 10.0
"""Seconds over which a rate is taken, at least."""
_MOST_VALUES = 8
_STAGES = {"validate": "validating", "test": "testing", "predict": "predicting", "sanity_check": "trying a validation"}


class _Clock:
    """The speed of one stage.

    Args:
        done: Batches at its start.
    """

    def __init__(self, done: int) -> None:
        self.began, self.first = time.monotonic(), done
        self._recent: deque[tuple[float, int]] = deque([(self.began, done)])

    def speed(self, done: int) -> float | None:
        """Return the batches a second lately, None before there is one."""
        now = time.monotonic()
        while len(self._recent) > 1 and now - self._recent[1][0] >= _RECENT:
            self._recent.popleft()
        since, before = self._recent[0]
        if now - self._recent[-1][0] >= 1:
            self._recent.append((now, done))
        return (done - before) / (now - since) if done > before and now > since else None

    def seconds(self, done: int, left: float | None) -> float | None:
        """Return how long the batches that are left will take, at the speed since the start."""
        if left is None or done <= self.first:
            return None
        return left * (time.monotonic() - self.began) / (done - self.first)


class TrainerProgress:
    """What lines and the live view show of one trainer. On rank 0 only, where it waits for no other rank.

    Attributes:
        attempt: The number of this start of the run; None: nothing is written.
        saver: Writes its checkpoints; None: nothing does.
    """

    def __init__(self) -> None:
        self.attempt: int | None = None
        self.saver: Saver | None = None
        self._trainer: pl.Trainer | None = None
        self._values: dict[str, float] = {}
        self._epochs = Pace(at_once=True)
        self._ended: Figures | None = None
        self._steps: int | None = None
        self._stage = TRAINING
        self._evaluated: tuple[int, int | None] = 0, None

    def begin_training(self, trainer: pl.Trainer) -> None:
        """Start the clock of training."""
        self._trainer, self._stage, self._first_step = trainer, TRAINING, trainer.global_step
        self._clock = _Clock(_batches_trained(trainer))

    def begin_evaluation(self, trainer: pl.Trainer) -> None:
        """Begin a validation, test or prediction, also one in the midst of training."""
        self._trainer, self._stage = trainer, _STAGES.get(str(getattr(trainer.state.stage, "value", "")), "evaluating")
        self._evaluated, self._evaluation_clock = (0, _sum(_evaluation_batches(trainer))), _Clock(0)

    def evaluated(self, trainer: pl.Trainer, batch: int, loader: int) -> None:
        """Take note of a batch that was not trained on.

        Args:
            trainer: In that stage.
            batch: Its index.
            loader: The index of its loader.
        """
        batches = _evaluation_batches(trainer)
        self._evaluated = batch + 1 + (_sum(batches[:loader]) or 0), _sum(batches)

    def end_evaluation(self) -> None:
        """Show training again, if that continues."""
        self._stage = TRAINING

    def read(self, outputs: Any) -> None:
        """Look at what the model has logged: this waits for the device.

        Args:
            outputs: What `training_step` returned, as callbacks get it.
        """
        assert self._trainer is not None
        found = _numbers(self._trainer.progress_bar_metrics)
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1 and not any("loss" in name for name in found):
            found = {"loss": float(loss), **found}
        self._values, self._steps = found, _last_step(self._trainer)

    def figures(self, between_batches: bool = True) -> Figures | None:
        """Return how far it is, None before it has begun.

        Args:
            between_batches: Whether the caller is the thread that trains. Any other one finds a batch half counted, and
                so takes the step at which the run ends from the last `read`.
        """
        trainer = self._trainer
        if trainer is None:
            return None
        in_fit = trainer.state.fn == "fit"
        epoch = trainer.current_epoch + 1 if in_fit and not trainer.sanity_checking else None
        epochs, step = None if epoch is None else _limit(trainer.max_epochs), trainer.global_step
        left: float | None
        share: float | None
        if self._stage != TRAINING:
            done, batches = self._evaluated
            left, share = (None, None) if batches is None else (batches - done, done / max(batches, 1))
            clock, values, steps, batch = self._evaluation_clock, {}, None, done
        else:
            left, share, batch, batches = _rest(trainer)
            clock, values, done = self._clock, self._values, _batches_trained(trainer)
            steps = _last_step(trainer) if between_batches else self._steps
        speed, size = clock.speed(done), _batch_size(trainer, self._stage)
        return Figures(
            *(self._stage, epoch, epochs, step, steps, batch, batches, share, values),
            samples_per_second=None if speed is None or size is None else speed * size * trainer.world_size,
            batches_per_second=speed,
            seconds_left=clock.seconds(done, left),
            saving=self.saver is not None and self.saver.saving,
            checkpoint=None if self.saver is None else self.saver.committed,
            attempt=self.attempt,
        )

    def log(self) -> None:
        """Log a line with all of it."""
        if (found := self.figures()) is not None:
            log.info("%s", found.line(), extra={"figures": {"event": "progress", **found.fields()}})

    def end_epoch(self) -> None:
        """Take note of where an epoch has ended, if the last line of an epoch is not quite recent.

        Its values are not known yet: whoever asks for them here has them reduced over all ranks, which do not ask.
        """
        if self._epochs.is_due():
            self._ended = self.figures()

    def tell_epoch(self) -> None:
        """Log how the last epoch has gone, now that its values are known."""
        found, self._ended = self._ended, None
        if found is None or self._trainer is None:
            return
        self._epochs.mark()
        shown = _numbers(self._trainer.progress_bar_metrics) or _numbers(self._trainer.callback_metrics)
        found = replace(found, values=shown)
        log.info("%s", found.line(f"{found.head} ended"), extra={"figures": {"event": "epoch", **found.fields()}})

    def end_training(self) -> None:
        """Log how fast it was."""
        if self._trainer is None or not (steps := self._trainer.global_step - self._first_step):
            return
        seconds = max(time.monotonic() - self._clock.began, 1e-9)
        size, batches = _batch_size(self._trainer, TRAINING), _batches_trained(self._trainer) - self._clock.first
        rate = "" if size is None else f", {rounded(size * self._trainer.world_size * batches / seconds)} samples/s"
        count, speed = f"{steps} step{'s' * (steps > 1)}", rounded(steps / seconds)
        log.info("trained %s in %s (%s steps/s%s)", count, duration(seconds), speed, rate)


class TellsEpochs(pl.Callback):
    """What lines and the live view have in common: how each epoch and training as a whole went.

    Attributes:
        progress: Of the trainer; on a rank where it has not begun, nothing is told.
    """

    progress: TrainerProgress

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the epoch before went."""
        self.progress.tell_epoch()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End an epoch."""
        self.progress.end_epoch()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how fast it was."""
        self.progress.tell_epoch()
        self.progress.end_training()


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return what is a number of what a model has logged, up to some values."""
    scalars = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    }
    return dict([*scalars.items()][:_MOST_VALUES])


def _batches_trained(trainer: pl.Trainer) -> int:
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


def _rest(trainer: pl.Trainer) -> tuple[float | None, float | None, int, int | None]:
    """Return the batches that are left, the share that is done, and the batch of how many in this epoch."""
    ready: int = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    batches, epochs, most = _sum([trainer.num_training_batches]), _limit(trainer.max_epochs), _limit(trainer.max_steps)
    batch = ready if batches is None else min(ready, batches)
    left: float | None = None
    if batches is not None and epochs is not None:
        left = max(batches * (epochs - trainer.current_epoch) - batch, 0)
    if most is not None:
        by_steps = max(most - trainer.global_step, 0) * _batches_per_step(trainer)
        left = by_steps if left is None else min(left, by_steps)
    if left is None:
        return None, None, batch, batches
    done = trainer.global_step if batches is None else trainer.current_epoch * batches + batch
    return left, done / max(done + left, 1), batch, batches


def _batches_per_step(trainer: pl.Trainer) -> float:
    """Return the batches that one optimizer step takes, with manual optimization those that it took so far."""
    if trainer.lightning_module.automatic_optimization:
        return max(trainer.accumulate_grad_batches, 1)
    return _batches_trained(trainer) / trainer.global_step if trainer.global_step else 1


def _last_step(trainer: pl.Trainer) -> int | None:
    """Return the step at which a run ends, None where that is not known."""
    batches, epochs, most = _sum([trainer.num_training_batches]), _limit(trainer.max_epochs), _limit(trainer.max_steps)
    if batches is None or epochs is None:
        return most
    if not trainer.lightning_module.automatic_optimization:
        left = _rest(trainer)[0]
        return None if left is None else trainer.global_step + round(left / _batches_per_step(trainer))
    batches_per_step, ready = (
        max(trainer.accumulate_grad_batches, 1),
        trainer.fit_loop.epoch_loop.batch_progress.current.ready,
    )
    per_epoch = math.ceil(batches / batches_per_step)
    done = per_epoch if ready >= batches else ready // batches_per_step
    last: int = trainer.global_step + per_epoch * (epochs - trainer.current_epoch) - done
    return last if most is None else min(last, most)


def _evaluation_batches(trainer: pl.Trainer) -> list[int | float]:
    """Return the batches of each loader of this stage."""
    if trainer.predicting:
        return list(trainer.num_predict_batches)
    if trainer.testing:
        return list(trainer.num_test_batches)
    return list(trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches)


def _sum(batches: list[int | float]) -> int | None:
    """Return the batches of all loaders, None where one of them does not end."""
    return int(sum(batches)) if all(map(math.isfinite, batches)) else None


def _limit(most: int | None) -> int | None:
    """Return a limit of the trainer, None where there is none."""
    return None if most is None or most < 0 else most


def _batch_size(trainer: pl.Trainer, stage: str) -> int | None:
    """Return the samples of a batch of one rank, None where the loader does not say."""
    names = {TRAINING: "train_dataloader", "testing": "test_dataloaders", "predicting": "predict_dataloaders"}
    loaders: Any = getattr(trainer, names.get(stage, "val_dataloaders"))
    if isinstance(loaders, list):
        loaders = loaders[0] if len(loaders) == 1 else None
    sizes = (getattr(loaders, "batch_size", None), getattr(getattr(loaders, "batch_sampler", None), "batch_size", None))
    return next((size for size in sizes if isinstance(size, int)), None)
