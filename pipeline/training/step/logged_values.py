"""What `self.log` is called with in `training_step`: looked at when somebody reads it, and checked once.

Lightning 2.6.6 checks the arguments of each call, describes it anew, walks and copies what it has summed up, and turns
the values of each batch into dictionaries (and, for a progress bar, into numbers, for which it waits for the device),
read or not. A call that is like the one before needs none of that.
"""

import functools
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from pipeline.training.compat import TrainingEpochLoop, logged_results
from pipeline.training.step import step_compat as compat

_BATCH_SIZE = 9
"""Which argument of `log` the batch size is, after name and value, where it is given by position."""


class LoggedValues:
    """The values of the training batches of one epoch.

    Args:
        loop: Of a trainer.
    """

    def __init__(self, loop: TrainingEpochLoop) -> None:
        self._trainer = loop.trainer
        self._known: dict[str, tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
        """By name: how a value was logged last, and Lightning's sum of it."""
        self._pending = False

    def end_batch(self) -> None:
        """Take note that the values of a batch are complete; whoever asks the trainer for them gets them."""
        self._pending = True
        compat.forget_batch(self._trainer)

    def settle(self) -> None:
        """Have the trainer keep the values of the last batch: an epoch or a validation begins or ends."""
        if self._pending:
            self._pending = False
            compat.keep_values(self._trainer)

    def send(self) -> None:
        """Send the values of a batch to the loggers, where that is due."""
        compat.send_values(self._trainer)

    def add(self, name: str, value: Tensor, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Add a value that was logged in the same way in an earlier batch of this epoch.

        Args:
            name: Of the value.
            value: Of this batch.
            arguments: More of the call, by position.
            named: More of the call, by name.

        Returns:
            Whether that was so; otherwise it is Lightning's to check and to add.
        """
        if name not in self._known or compat.in_first_batch(self._trainer):
            return False
        *known, metric = self._known[name]
        floats = value.dtype in (torch.float32, torch.float64) and value.device == metric.value.device
        if known != [arguments, named] or not floats or value.numel() != 1:
            return False
        value = value.detach().clone()
        compat.add_to_sum(
            self._trainer, metric, value if value.dim() == 0 else value.squeeze(), named.get("batch_size")
        )
        return True

    def learn(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Take note of a call that Lightning has checked."""
        metric: Any = logged_results(self._trainer).get(f"{compat.LOGGING}.{name}")
        if metric is not None and metric.is_tensor and len(arguments) < _BATCH_SIZE:
            self._known[name] = arguments, named, metric


def install() -> None:
    """Have `LightningModule.log` ask `LoggedValues` first, where a lean step trains."""
    stock = pl.LightningModule.log
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def log(self: pl.LightningModule, name: str, value: Any, *arguments: Any, **named: Any) -> None:
        trainer = self._trainer
        logged = None if trainer is None or vars(self).get(compat.CURRENT_HOOK) != compat.LOGGING else _of(trainer)
        if logged is None or type(value) is not Tensor or torch.compiler.is_compiling():
            stock(self, name, value, *arguments, **named)
        elif not logged.add(name, value, arguments, named):
            stock(self, name, value, *arguments, **named)
            logged.learn(name, arguments, named)

    pl.LightningModule.log = log  # type: ignore[method-assign]


def _of(trainer: Any) -> LoggedValues | None:
    """Return what a trainer logs in lean steps; None where another loop trains."""
    return getattr(trainer.fit_loop.epoch_loop, "logged", None)
