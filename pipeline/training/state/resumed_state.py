"""What a checkpoint has put into a trainer, compared right before training continues.

Callbacks and models may do as they like where training begins: a finder restores what it has saved before its trial, a
hook loads pretrained weights. On a resume that undoes it, and what follows would be committed as if it were the run's.
Of each tensor a sample is compared, so that this takes milliseconds also for a large model.

Where an epoch resumes in its middle, the hooks of its start are called again: most of what they set up no checkpoint
holds. What they change in optimizers and schedules would then be changed twice, and is put back.
"""

import logging
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.training.state import finders

log = logging.getLogger(__name__)

_SAMPLED = 1024
"""Elements of a tensor that are compared."""
_SHOWN = 3


class ResumedState:
    """Step and optimizers as the checkpoint has them, and the weights as they were loaded.

    Args:
        checkpoint: As Lightning has loaded it.
    """

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        self.step = checkpoint.get("global_step") if "loops" in checkpoint else None
        self.optimizers = [_samples(state["state"]) for state in checkpoint.get("optimizer_states", [])]
        self.weights: dict[str, Tensor] = {}
        self._in_epoch = False
        """Whether the hooks of an epoch's start are being called once more."""
        self._groups: list[list[dict[str, Any]]] = []
        self._schedulers: list[tuple[Any, dict[str, Any]]] = []

    def start_fit(self, trainer: pl.Trainer, found: dict[str, Any]) -> None:
        """Sample the weights, once all that the checkpoint holds of them is loaded; from here on no finder searches.

        Args:
            trainer: About to train.
            found: What finders have found where the run began.
        """
        finders.suspend(trainer, found)
        self.weights = {name: _sample(value) for name, value in trainer.lightning_module.named_parameters()}

    def start_epoch(self, trainer: pl.Trainer, in_epoch: bool) -> None:
        """Compare, and keep the settings of optimizers and schedules if the epoch resumes in its middle.

        Raises:
            UserError: Something has changed what was loaded.
        """
        if self._in_epoch:
            return
        if changes := self.changes(trainer):
            raise UserError(
                f"after the checkpoint was loaded, something has changed {' and '.join(changes)}: training would not "
                "continue where it stopped. A callback or model that loads or resets something when a fit starts must "
                "leave it alone on a resume, where trainer.ckpt_path is set"
            )
        self._in_epoch = in_epoch
        if not in_epoch:
            finders.allow(trainer)
            return
        self._groups = [[_settings(group) for group in each.param_groups] for each in trainer.optimizers]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._schedulers = [(each, deepcopy(each.state_dict())) for each in schedulers]

    def resume_epoch(self, trainer: pl.Trainer) -> None:
        """Put those settings back after the hooks, and name what cannot be."""
        finders.allow(trainer)
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=False):
            for group, settings in zip(optimizer.param_groups, groups, strict=False):
                group.update(settings)
        present = [config.scheduler for config in trainer.lr_scheduler_configs]
        for scheduler, state in self._schedulers:
            if any(scheduler is each for each in present):
                scheduler.load_state_dict(state)
        if changes := self.changes(trainer):
            log.warning(
                "resuming in the middle of this epoch is not exact: on_train_epoch_start, which is called once more, "
                "changes %s. Resume at an epoch's end, or change it in on_train_epoch_end",
                " and ".join(changes),
            )

    def changes(self, trainer: pl.Trainer) -> list[str]:
        """Return what is otherwise than it was loaded, in words."""
        found = []
        if self.step is not None and trainer.global_step != self.step:
            found.append(f"the step ({self.step} -> {trainer.global_step})")
        now = dict(trainer.lightning_module.named_parameters())
        moved = [name for name, value in self.weights.items() if name in now and not _equal(value, _sample(now[name]))]
        if moved:
            more = ", ..." if len(moved) > _SHOWN else ""
            found.append(f"{len(moved)} of {len(self.weights)} weights ({', '.join(moved[:_SHOWN])}{more})")
        for number, (saved, optimizer) in enumerate(zip(self.optimizers, trainer.optimizers, strict=False)):
            state = _samples(optimizer.state_dict()["state"])
            if any(not _equal(value, state.get(key)) for key, value in saved.items()):
                found.append(f"the state of {type(optimizer).__name__} (optimizer {number})")
        return found


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of what a parameter group holds beside its parameters."""
    return {name: deepcopy(value) for name, value in group.items() if name != "params"}


def _samples(state: dict[Any, Any]) -> dict[tuple[Any, str], Any]:
    """Return the numbers in the state of an optimizer, by parameter and name."""
    return {
        (index, name): _sample(value) if isinstance(value, Tensor) else value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, (Tensor, int, float))
    }


def _sample(tensor: Tensor) -> Tensor:
    """Return a copy of some elements, spread evenly."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLED)].cpu().clone()


def _equal(saved: Any, now: Any) -> bool:
    if not isinstance(saved, Tensor) or not isinstance(now, Tensor):
        return float(saved) == float(now) if now is not None else False
    # An optimizer may keep its state in another type than the checkpoint; NaN is what it was, too.
    return torch.equal(torch.nan_to_num(saved.to(now.dtype)), torch.nan_to_num(now))
