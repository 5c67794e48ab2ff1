"""What `self.log` is called with in a step: looked at when somebody reads it, and checked once.

Lightning 2.6.6 checks the arguments of each call, describes it anew, walks and copies what it has summed up, and turns
the values of each batch into dictionaries (and, for a progress bar, into numbers, for which it waits for the device),
read or not. A call that is like the one before needs none of that.
"""

import functools
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.training.compat import TrainingEpochLoop
from pipeline.training.step import step_compat as compat

Loggable = Tensor | Metric | float | int
"""What a step logs."""
_BATCH_SIZE = 9
"""Which argument of `log` the batch size is, after name and value, where it is given by position."""


class LoggedCalls:
    """The calls of `log` in the steps of one epoch, or of one evaluation.

    Args:
        loop: Whose steps they are.
        hook: The step: `training_step`, `validation_step` or `test_step`.
    """

    def __init__(self, loop: TrainingEpochLoop | compat.EvaluationLoop, hook: str) -> None:
        self._loop, self._trainer, self._hook = loop, loop.trainer, hook
        self._known: dict[tuple[str, int | None], tuple[tuple[Any, ...], dict[str, Any], Any]] = {}
        """By name and loader: how a value was logged last, and Lightning's sum of it."""

    def add(self, name: str, value: Loggable, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
        """Add a value that was logged in the same way in an earlier batch.

        Args:
            name: Of the value.
            value: Of this batch.
            arguments: More of the call, by position.
            named: More of the call, by name.

        Returns:
            Whether that was so; otherwise it is Lightning's to check and to add.
        """
        results: Any = self._loop._results
        key = name, results.dataloader_idx
        if key not in self._known or compat.in_first_batch(self._trainer):
            return False
        *known, metric = self._known[key]
        if known != [arguments, named]:
            return False
        if isinstance(value, Metric):
            # Lightning moves it to where it is each time, which gives it the default dtype besides (`bf16-true`).
            if value is not metric.value or value.dtype is not torch.get_default_dtype():
                return False
        elif isinstance(value, Tensor):
            floats = value.dtype in (torch.float32, torch.float64) and value.device == metric.value.device
            if not floats or value.numel() != 1:
                return False
            value = value.detach().clone()
            value = value if value.dim() == 0 else value.squeeze()
        else:
            value = torch.tensor(value, dtype=compat.default_dtype(), device=metric.value.device)
        compat.add_to_sum(self._trainer, self._hook, results, metric, value, named.get("batch_size"))
        return True

    def learn(self, name: str, value: Loggable, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Take note of a call that Lightning has checked."""
        results: Any = self._loop._results
        key = f"{self._hook}.{name}"
        metric = results.get(key if results.dataloader_idx is None else f"{key}.{results.dataloader_idx}")
        if metric is not None and metric.is_tensor != isinstance(value, Metric) and len(arguments) < _BATCH_SIZE:
            self._known[name, results.dataloader_idx] = arguments, named, metric


class LoggedValues(LoggedCalls):
    """The values of the training batches of one epoch.

    Args:
        loop: Of a trainer.
    """

    def __init__(self, loop: TrainingEpochLoop) -> None:
        super().__init__(loop, compat.TRAINING)
        self._pending = False

    def end_batch(self) -> None:
        """Take note that the values of a batch are complete; whoever asks the trainer for them gets them."""
        self._pending = True
        compat.forget_batch(self._loop)

    def settle(self) -> None:
        """Have the trainer keep the values of the last batch: an epoch or a validation begins or ends."""
        if self._pending:
            self._pending = False
            compat.keep_values(self._trainer)

    def send(self) -> None:
        """Send the values of a batch to the loggers, where that is due."""
        compat.send_values(self._trainer)


def install() -> None:
    """Have `LightningModule.log` ask `LoggedCalls` first, where a lean step trains or evaluates."""
    stock = pl.LightningModule.log
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def log(self: pl.LightningModule, name: str, value: Any, *arguments: Any, **named: Any) -> None:
        trainer = self._trainer
        loop = None if trainer is None else compat.loop_of(trainer, vars(self).get(compat.CURRENT_HOOK))
        # None where Lightning's own loop takes the steps.
        logged: LoggedCalls | None = getattr(loop, "logged", None)
        if logged is None or not isinstance(value, Loggable) or torch.compiler.is_compiling():
            stock(self, name, value, *arguments, **named)
        elif not logged.add(name, value, arguments, named):
            stock(self, name, value, *arguments, **named)
            logged.learn(name, value, arguments, named)

    pl.LightningModule.log = log  # type: ignore[method-assign]
