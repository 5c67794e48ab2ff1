"""The hooks of a batch, without those that nobody has given anything to do, and its way to the device."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from pipeline.training.step import step_compat as compat

OF_TRAINING = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    "on_before_optimizer_step",
)
"""Hooks of a training batch that callbacks and the model have."""
OF_EVALUATION = tuple(f"on_{kind}_batch_{when}" for kind in ("validation", "test") for when in ("start", "end"))
"""Hooks of an evaluated batch that callbacks and the model have."""
OF_MODEL = ("optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping")
"""Those that the model alone has."""


class Hook:
    """One hook of a batch, as callbacks and the model have overridden it.

    Args:
        name: Of the hook, which `LightningModule.log` asks for.
        trainer: Running.
    """

    def __init__(self, name: str, trainer: pl.Trainer) -> None:
        self.name = name
        self._trainer, self._module = trainer, trainer.lightning_module
        owners: list[Any] = trainer.callbacks if name in (*OF_TRAINING, *OF_EVALUATION) else []  # type: ignore[attr-defined]
        self._callbacks = [method for owner in owners if (method := compat.overridden(owner, name)) is not None]
        self._method = compat.overridden(self._module, name)
        self.overridden = self._method is not None
        """Whether the model does."""

    def __call__(self, *arguments: Any) -> Any:
        """Call the callbacks' methods, then the model's; return what that returned."""
        for method in self._callbacks:
            within(self._module, self.name, method, self._trainer, self._module, *arguments)
        return None if self._method is None else within(self._module, self.name, self._method, *arguments)


def within(module: pl.LightningModule, hook: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns that may log values as a hook of the model's."""
    # Past `nn.Module.__setattr__`, which looks for parameters and costs more than most hooks.
    attributes = vars(module)
    before, attributes[compat.CURRENT_HOOK] = attributes[compat.CURRENT_HOOK], hook
    returned = function(*arguments)
    attributes[compat.CURRENT_HOOK] = before
    return returned


class Called:
    """Who is called around a batch, as it was looked up before the first one.

    Args:
        trainer: Running.
        names: Of the model's methods.
    """

    def __init__(self, trainer: pl.Trainer, names: Sequence[str]) -> None:
        self._trainer, self._module, self._names = trainer, trainer.lightning_module, names
        self._callbacks = list(trainer.callbacks)  # type: ignore[attr-defined]
        self._methods = self._now()

    def _now(self) -> list[Any]:
        return [getattr(self._module, name) for name in self._names]

    @property
    def holds(self) -> bool:
        """Whether callbacks and methods are the same: asked before each batch, and not of a callback's own methods."""
        callbacks = self._trainer.callbacks  # type: ignore[attr-defined]
        same = len(callbacks) == len(self._callbacks) and all(map(operator.is_, callbacks, self._callbacks))
        return same and self._now() == self._methods


class Transfer:
    """Takes batches to the device.

    Args:
        trainer: Running.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._only_moves = compat.runs_in_full_precision(trainer) and not compat.moves_batches(trainer)
        self._device = trainer.strategy.root_device

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Return a batch on its device, having gone through the hooks that move it."""
        if self._only_moves and (same := _repacked(batch, self._device)) is not None:
            return same
        return compat.moved(self._trainer, batch, dataloader_idx)


def _repacked(batch: Any, device: torch.device) -> Any:
    """Return the tensors of a batch in new containers, as Lightning does: a dataset may keep those that it hands out.

    Args:
        batch: A tensor, or a list, tuple or dict.
        device: Where they are to be.

    Returns:
        None where anything else is in it, or a tensor elsewhere.
    """
    if type(batch) is Tensor:
        return batch if batch.device == device else None
    if type(batch) in (list, tuple):
        parts = [_repacked(part, device) for part in batch]
        return type(batch)(parts) if all(part is not None for part in parts) else None
    if type(batch) is dict:
        parts = [_repacked(part, device) for part in batch.values()]
        return dict(zip(batch, parts, strict=True)) if all(part is not None for part in parts) else None
    return None
