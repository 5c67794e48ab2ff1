"""The hooks of a batch, without those that nobody has given anything to do, and its way to the device."""

from collections.abc import Callable
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
        owners: list[Any] = [] if name in OF_MODEL else trainer.callbacks  # type: ignore[attr-defined]
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


class Transfer:
    """Takes batches to the device.

    Args:
        trainer: Running.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer
        self._as_it_is = compat.runs_in_full_precision(trainer) and not compat.moves_batches(trainer)
        self._device = trainer.strategy.root_device

    def __call__(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Return a batch on its device, having gone through the hooks that move it."""
        if self._as_it_is and _is_on(batch, self._device):
            return batch
        return compat.moved(self._trainer, batch, dataloader_idx)


def _is_on(batch: Any, device: torch.device) -> bool:
    """Return whether a batch is a tensor, or a plain collection of tensors, on a device."""
    if type(batch) is Tensor:
        return batch.device == device
    if type(batch) in (list, tuple):
        return all(_is_on(part, device) for part in batch)
    return type(batch) is dict and all(_is_on(part, device) for part in batch.values())
