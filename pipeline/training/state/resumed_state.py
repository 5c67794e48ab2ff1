"""What a checkpoint has put into a trainer, compared right before training continues.

Callbacks and models may do as they like where training begins: a finder restores what it has saved before its trial, a
hook loads pretrained weights. On a resume that undoes it, and what follows would be committed as if it were the run's.
So all of it is compared with the checkpoint, bit by bit: it is mapped from a local file, and takes no memory.

Where an epoch resumes in its middle, the hooks of its start are called again: most of what they set up no checkpoint
holds. What they change of what one holds would then be changed twice, and is put back.
"""

import logging
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.training.state import finders
from pipeline.training.state.hook_state import HookState

log = logging.getLogger(__name__)

_SAMPLED = 1024
"""Elements that are compared of a parameter that is in no checkpoint."""
_PART = 1 << 24
"""Elements that are compared at once: those of a checkpoint go to the device for it."""
_SHOWN = 3
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ResumedState:
    """Step, weights, buffers and optimizers as the checkpoint has them.

    Args:
        checkpoint: As Lightning has loaded it into the model. Its optimizer states are replaced by copies if need be.
        on_cpu: Whether an optimizer would use, and change, the tensors of the checkpoint itself.

    Attributes:
        in_epoch: Whether the hooks of an epoch's start are being called once more.
    """

    def __init__(self, checkpoint: dict[str, Any], on_cpu: bool = True) -> None:
        self.step = checkpoint.get("global_step") if "loops" in checkpoint else None
        # WeightAveraging has its average in the place of the model.
        self._model = {**checkpoint.get("state_dict", {}), **checkpoint.get("current_model_state", {})}
        states = checkpoint.get("optimizer_states", [])
        self._optimizers: list[dict[Any, Any]] = [state["state"] for state in states]
        if on_cpu and states:
            checkpoint["optimizer_states"] = deepcopy(states)
        self._loaded: dict[str, Tensor] = {}
        self._samples: dict[str, Tensor] = {}
        self.in_epoch = False
        self._groups: list[list[dict[str, Any]]] = []
        self._schedulers: list[tuple[Any, dict[str, Any]]] = []

    def start_fit(self, trainer: pl.Trainer, found: dict[str, Any]) -> None:
        """Look at the model, once all that the checkpoint holds of it is loaded; from here on no finder searches.

        Args:
            trainer: About to train.
            found: What finders have found where the run began.
        """
        finders.suspend(trainer, found)
        for name, value in _tensors(trainer).items():
            saved = self._model.get(name)
            if isinstance(saved, Tensor):
                as_saved = saved.data_ptr() != value.data_ptr() and _equal(saved, value)
                # A model may load something else than it has saved, or the very tensors of the checkpoint.
                self._loaded[name] = saved if as_saved else value.detach().to("cpu", copy=True)
            elif isinstance(value, torch.nn.Parameter):
                self._samples[name] = _sample(value)

    def start_epoch(self, trainer: pl.Trainer, in_epoch: bool) -> None:
        """Compare, and keep the settings of optimizers and schedules if the epoch resumes in its middle.

        Buffers are put back: a validation or a reset before training may have changed them.

        Raises:
            UserError: Something has changed what was loaded.
        """
        if moved := self._put_back(dict(trainer.lightning_module.named_buffers())):
            log.info("before training resumes, something has changed %s; put back as loaded", _listed(moved, "buffers"))
        if changes := self.changes(trainer):
            raise UserError(
                f"after the checkpoint was loaded, something has changed {' and '.join(changes)}: training would not "
                "continue where it stopped. A callback or model that loads or resets something when a fit starts must "
                "leave it alone on a resume, where trainer.ckpt_path is set"
            )
        self.in_epoch = in_epoch
        if not in_epoch:
            finders.allow(trainer)
            return
        self._hooks = HookState(trainer)
        self._groups = [[_settings(group) for group in each.param_groups] for each in trainer.optimizers]
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._schedulers = [(each, deepcopy(each.state_dict())) for each in schedulers]

    def resume_epoch(self, trainer: pl.Trainer) -> None:
        """Put back what the hooks have changed, and name what cannot be."""
        finders.allow(trainer)
        moved, lost = self._hooks.put_back()
        if names := self._put_back(_tensors(trainer)):
            moved.append(_listed(names, "tensors of the model"))
        for number, (saved, optimizer) in enumerate(zip(self._optimizers, trainer.optimizers, strict=False)):
            state = optimizer.state_dict()
            if not _equal_states(saved, state["state"]):
                optimizer.load_state_dict({**state, "state": saved})
                moved.append(f"the state of {type(optimizer).__name__} (optimizer {number})")
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=False):
            for group, settings in zip(optimizer.param_groups, groups, strict=False):
                group.update(settings)
        present = [config.scheduler for config in trainer.lr_scheduler_configs]
        for scheduler, state in self._schedulers:
            if any(scheduler is each for each in present):
                scheduler.load_state_dict(state)
        if moved:
            log.info(
                "resuming in the middle of this epoch: on_train_epoch_start, which is called once more, has changed "
                "%s; put back as loaded",
                " and ".join(moved),
            )
        same = not (moved or self._samples) and self.step in (None, trainer.global_step)
        if changes := ([] if same else self.changes(trainer)) + lost:
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
        now = _tensors(trainer)
        samples = {name: _sample(now[name]) for name in self._samples if name in now}
        moved = self._moved(now) + [name for name, value in samples.items() if not _equal(self._samples[name], value)]
        if moved:
            weights = sum(isinstance(value, torch.nn.Parameter) for value in now.values())
            found.append(_listed(moved, "weights", weights))
        for number, (saved, optimizer) in enumerate(zip(self._optimizers, trainer.optimizers, strict=False)):
            if not _equal_states(saved, optimizer.state_dict()["state"]):
                found.append(f"the state of {type(optimizer).__name__} (optimizer {number})")
        return found

    def _moved(self, now: dict[str, Tensor]) -> list[str]:
        """Return the names of the tensors that are no longer what was loaded."""
        return [name for name, value in now.items() if name in self._loaded and not _equal(self._loaded[name], value)]

    def _put_back(self, now: dict[str, Tensor]) -> list[str]:
        """Put tensors of the model back, if they still fit; return the names of those that had changed."""
        moved = self._moved(now)
        with torch.no_grad():
            for name in moved:
                if now[name].shape == self._loaded[name].shape:
                    now[name].copy_(self._loaded[name])
        return moved


def _tensors(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return the parameters and buffers of the model that are plain tensors with values, by name."""
    model = trainer.lightning_module
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    lazy = torch.nn.parameter.is_lazy
    return {
        name: value
        for name, value in named.items()
        if not lazy(value) and type(value.detach()) is Tensor and value.layout is torch.strided and not value.is_meta
    }


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of what a parameter group holds beside its parameters."""
    return {name: deepcopy(value) for name, value in group.items() if name != "params"}


def _sample(tensor: Tensor) -> Tensor:
    """Return a copy of some elements, spread evenly."""
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    return flat[:: max(1, flat.numel() // _SAMPLED)].cpu().clone()


def _equal_states(saved: dict[Any, Any], now: dict[Any, Any]) -> bool:
    """Return whether an optimizer still has the numbers that were loaded for each parameter."""
    return all(
        _equal(value, now.get(index, {}).get(name))
        for index, values in saved.items()
        for name, value in values.items()
        if isinstance(value, (Tensor, int, float))
    )


def _equal(saved: Any, now: Any) -> bool:
    """Compare by bits, in the type that a value has now: an optimizer may keep another one than the checkpoint."""
    if not isinstance(saved, Tensor) or not isinstance(now, Tensor):
        return now is not None and float(saved) == float(now)
    if saved.shape != now.shape:
        return False
    before, after = saved.detach().reshape(-1), now.detach().reshape(-1)
    parts = (slice(start, start + _PART) for start in range(0, len(after), _PART))
    return all(torch.equal(_bits(before[part].to(after)), _bits(after[part])) for part in parts)


def _bits(tensor: Tensor) -> Tensor:
    """Return what a comparison tells NaN from NaN, and 0.0 from -0.0, by."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.view(_BITS[real.element_size()])


def _listed(names: list[str], what: str, of: int | None = None) -> str:
    """Return how many things there are, and the first of their names."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{len(names)}{'' if of is None else f' of {of}'} {what} ({', '.join(names[:_SHOWN])}{more})"
