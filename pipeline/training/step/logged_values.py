"""What `self.log` is called with in a step: looked at when somebody reads it, and checked once.

Lightning 2.6.6 checks the arguments of each call, describes it anew, walks and copies what it has summed up, and turns
the values of each batch into dictionaries (and, for a progress bar, into numbers, for which it waits for the device),
read or not. A call that is like the one before needs none of that.
"""

import functools
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from pipeline.training.compat import TrainingEpochLoop
from pipeline.training.step import step_compat as compat

Loggable = Tensor | Metric | float | int
"""What a step logs."""
_LOADER = 8
"""Which argument of `log` `add_dataloader_idx` is, after name and value; the batch size is the next."""


class _Known(NamedTuple):
    """How a value was logged last: the call without name and value, and Lightning's sum of it."""

    arguments: tuple[Any, ...]
    named: dict[str, Any]
    metric: Any


class LoggedCalls:
    """The calls of `log` in the steps of one epoch, or of one evaluation.

    Args:
        loop: Whose steps they are.
        hook: The step: `training_step`, `validation_step` or `test_step`.
    """

    def __init__(self, loop: TrainingEpochLoop | compat.EvaluationLoop, hook: str) -> None:
        self._loop, self._trainer, self._hook = loop, loop.trainer, hook
        self._known: dict[tuple[str, int | None], _Known] = {}
        """By name and loader."""

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
        results = compat.results_of(self._loop)
        known = self._known.get((name, results.dataloader_idx))
        if known is None or compat.in_first_batch(self._trainer):
            return False
        metric = known.metric
        # Where one of them is a tensor, to compare it waits for its device.
        if any(isinstance(each, Tensor) for each in named.values()) or known[:2] != (arguments, named):
            return False
        if metric.is_tensor == isinstance(value, Metric):
            return False  # of two kinds, which is refused
        if isinstance(value, Metric):
            # Lightning moves it to where it is, and so gives it the default dtype (`bf16-true`), until it has that.
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
        results = compat.results_of(self._loop)
        loader = results.dataloader_idx
        if len(arguments) > _LOADER:
            return  # what is given by name is known, and these are not
        # As `_ResultCollection.log` names them.
        suffix = "" if loader is None or not named.get("add_dataloader_idx", True) else f".{loader}"
        metric = results.get(f"{self._hook}.{name}{suffix}")
        if metric is not None and metric.is_tensor != isinstance(value, Metric):
            self._known[name, loader] = _Known(arguments, named, metric)


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
        logged: LoggedCalls | None = None
        if not torch.compiler.is_compiling() and trainer is not None and isinstance(value, Loggable):
            # None where Lightning's own loop takes the steps.
            logged = getattr(compat.loop_of(trainer, vars(self).get(compat.CURRENT_HOOK)), "logged", None)
        if logged is None:
            stock(self, name, value, *arguments, **named)
        elif not logged.add(name, value, arguments, named):
            stock(self, name, value, *arguments, **named)
            logged.learn(name, value, arguments, named)

    pl.LightningModule.log = log  # type: ignore[method-assign]
