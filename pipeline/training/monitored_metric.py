"""The logged metrics that somebody acts on: which checkpoint is best, when to stop, when to lower a learning rate."""

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher, get_close_matches
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pipeline.checkpoint.commit import Monitor
from pipeline.errors import UserError
from pipeline.training.compat import logged_results
from pipeline.training.save_policy import Boundary

if TYPE_CHECKING:
    from pipeline.training.trainer_state import TrainerState

log = logging.getLogger(__name__)

_SAME = 1e-5
"""Relative difference of what is one value on all ranks."""
_SHOWN = 3
_NEAR = 0.8
"""How alike two names are of which one looks misspelt, of 1."""
_REFUSALS = ("conditioned on metric", "could not find the monitored key")
"""What Lightning's own say of a metric that is not there."""
_SEVERAL_SETS = "/dataloader_idx_"
"""What Lightning adds to a name where there are several validation sets."""


class MonitoredMetric:
    """The metric that tells which checkpoint is best.

    Args:
        state: Of the trainer, which knows what was logged.
        name: Of the metric; None: none is monitored, and the latest checkpoint is best.
        mode: Whether the least (`min`) or the greatest (`max`) value of it is best.
    """

    def __init__(self, state: "TrainerState", name: str | None, mode: str) -> None:
        self._state, self._name, self._mode = state, name, mode
        self._seen = name is None
        self._first: int | None = None
        self._validated = self._validated_now = False

    @property
    def value(self) -> Monitor | None:
        """What it is now; None where it is not known."""
        found = None if self._name is None else self._state.metrics().get(self._name)
        return None if found is None else Monitor.of(str(self._name), float(found), self._mode)

    def validated(self) -> None:
        """Take note that a validation has ended."""
        self._validated = self._validated_now = True

    def tried(self) -> None:
        """Look at what the validation before training has logged."""
        warn_of_a_near_miss(self._name, self._state.metrics())

    def missing(self, at: Boundary, saved: int | None) -> str | None:
        """Return what is wrong as soon as it is certain that the model does not log it, on every rank; else None.

        That is after an epoch with its validation, or after a validation within an epoch, unless a value may still
        come at the epoch's end. All ranks must call it at every boundary.

        Args:
            at: Where training stands.
            saved: The newest step that is committed, or is about to be.
        """
        self._first = at.step if self._first is None else self._first
        within, self._validated_now = self._validated_now and at.kind == "batch", False
        after_epoch = at.kind != "batch" and (self._validated or not self._state.validates)
        if self._seen or at.step == self._first or not (within or after_epoch):
            return None
        known = self._state.metrics()
        waits = within and comes_at_epoch_end(self._state.trainer, str(self._name))
        # Rank 0's value is the one that counts: the model may log it on rank 0 only.
        self._seen = self._state.broadcast(self._name in known)
        if self._seen:
            warn_of_parts(self._state.trainer, str(self._name), known.get(str(self._name)))
        if self._seen or waits:
            return None
        kept = "Nothing is saved yet" if saved is None else f"Step {saved} is saved"
        return f"{not_logged('checkpoints.monitor', str(self._name), known)}. {kept}: fix the name and start again"


def warn_of_parts(trainer: pl.Trainer, name: str, value: Any) -> None:
    """Warn where the monitored value is one rank's part of a whole. All ranks must call it.

    Args:
        trainer: In training.
        name: Of the metric.
        value: What it is on this rank; None where this rank does not log it.
    """
    if trainer.world_size == 1:
        return
    found: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(found, None if value is None else float(value))
    others = [each for each in found[1:] if each is not None and math.isfinite(each)]
    if trainer.is_global_zero and not all(math.isclose(found[0], each, rel_tol=_SAME) for each in others):
        log.warning(
            "checkpoints.monitor=%r is of rank 0's samples alone: %s there, %s on other ranks. Log it with "
            "self.log(%r, ..., sync_dist=True) for that of all",
            *(name, f"{found[0]:.6g}", ", ".join(f"{each:.6g}" for each in others[:_SHOWN]), name),
        )


def warn_of_a_near_miss(name: str | None, known: Collection[str]) -> None:
    """Warn, before anything is trained, of a metric that looks misspelt beside those of the trial validation.

    Args:
        name: What is monitored; None: nothing is.
        known: What that validation has logged.
    """
    if name is None or name in known:
        return
    if near := get_close_matches(name, known, n=1, cutoff=_NEAR):
        log.warning(
            "checkpoints.monitor=%r: the validation that was tried has logged %r, and not that. If training does not "
            "log it either, the run ends with status 2",
            *(name, near[0]),
        )


def not_logged(flag: str, name: str, known: Collection[str]) -> str:
    """Return a sentence on a metric that is not logged, with those that are, the nearest first."""

    def farness(each: str) -> tuple[bool, float]:
        return not each.startswith(name), -SequenceMatcher(None, name, each).ratio()

    nearest = sorted(sorted(known), key=farness)
    text = f"{flag}={name!r} is not logged by the model; logged are: {', '.join(nearest) or 'none'}"
    if any(each.startswith(name + _SEVERAL_SETS) for each in known):
        text += f". Each of several validation sets has a name of its own: choose one, such as {nearest[0]!r}"
    return text


def comes_at_epoch_end(trainer: pl.Trainer, name: str) -> bool:
    """Return whether a metric may be known when the epoch is over, though it is not now."""
    summed = {str(metric.meta.name) for metric in logged_results(trainer).values()}
    hook = "on_train_epoch_end"
    owners = [trainer.lightning_module, *trainer.callbacks]  # type: ignore[attr-defined]
    methods = [getattr(type(owner), hook) for owner in owners]
    own = [each for each in methods if each.__module__.partition(".")[0] not in ("lightning", "pipeline")]
    return bool(own) or name.removesuffix("_epoch") in summed


@contextmanager
def refusals_explained(trainer: pl.Trainer) -> Iterator[None]:
    """Say of every metric at once that somebody acts on and nobody logs, where Lightning fails at the first one.

    Raises:
        UserError: Lightning has found that one is not there.
    """
    try:
        yield
    except (RuntimeError, MisconfigurationException) as error:
        if not any(words in str(error) for words in _REFUSALS):
            raise
        known = trainer.callback_metrics
        missing = [not_logged(flag, name, known) for flag, name in _watched(trainer) if name not in known]
        if not missing:
            raise
        if trainer.world_size > 1:
            missing = [f"{each} (rank {trainer.global_rank} says so; log it on every rank)" for each in missing]
        raise UserError(*missing) from error


def _watched(trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
    """Yield each metric that Lightning requires, and who asks for it."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = getattr(callback, "monitor", None)
        strict = isinstance(callback, ModelCheckpoint) or getattr(callback, "strict", False)
        if isinstance(name, str) and isinstance(callback, (EarlyStopping, ModelCheckpoint)) and strict:
            yield f"{type(callback).__name__}.monitor", name
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.strict:
            yield f"{type(config.scheduler).__name__}'s monitor", str(config.monitor)
