"""What a checkpoint has put into a trainer, compared right before training continues.

Callbacks and models may do as they like where training begins: a finder restores what it has saved before its trial, a
hook loads pretrained weights. On a resume that undoes it, and what follows would be committed as if it were the run's.
Of each tensor a sample is compared, so that this takes milliseconds also for a large model.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

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

    def sample_weights(self, model: pl.LightningModule) -> None:
        """Sample the weights, once all that the checkpoint holds of them is loaded."""
        self.weights = {name: _sample(value) for name, value in model.named_parameters()}

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
