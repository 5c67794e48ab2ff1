"""What callbacks change on a model outside of its state_dict: frozen parameters, modules in eval mode, pruning masks.

They do so when their time comes (BackboneFinetuning unfreezes at an epoch, ModelPruning prunes after each), and never
again on a resume. What the model itself is built with is left to the model: a resume may be asked to freeze more.
"""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn.utils import prune

from pipeline.training import compat

_ATTRIBUTES = {"frozen": "requires_grad", "eval": "training", "untracked": "track_running_stats"}

Modes = dict[str, list[str]]
"""By `frozen`, `eval` and `untracked`: the names of parameters and modules that are."""


class ModelModes:
    """The modes and masks of one model, from the start of a fit on.

    Args:
        trainer: Whose model is built and loaded; no callback has acted on it, but for its `setup`.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer
        self.model: nn.Module = trainer.lightning_module
        self.at_start = modes(self.model)
        self._pruned_at_start = {name for name, *_ in _pruned(self.model)}
        self.standing: Modes | None = None
        """Before the validation that is under way, in which all modules are in eval mode."""
        self._kept: list[tuple[Any, str, bool]] = []

    def stand(self) -> None:
        """Remember the modes before a validation."""
        self.standing = modes(self.model)

    def capture(self, in_validation: bool) -> dict[str, Modes]:
        """Return the modes now, beside those at the start of the fit; nothing where they are the same."""
        now = self.standing if in_validation and self.standing is not None else modes(self.model)
        return {} if now == self.at_start else {"start": self.at_start, "now": now}

    def capture_masks(self, state_dict: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the weights before pruning with their masks, and leave pruned weights in a checkpoint's state_dict.

        Args:
            state_dict: Of the checkpoint. Under its plain names any model loads it, also one that is not pruned.
        """
        masks: dict[str, dict[str, Any]] = {}
        for name, module, tensor in _pruned(self.model):
            if name in self._pruned_at_start:
                continue
            weights, mask = getattr(module, f"{tensor}_orig").detach(), getattr(module, f"{tensor}_mask")
            tied = any(copy.data_ptr() == weights.data_ptr() for copy in self._tickets(module, tensor))
            masks[name] = {"weights": weights, "mask": mask, "tied": tied}
            if state_dict.pop(f"{name}_orig", None) is not None:
                state_dict[name] = state_dict.pop(f"{name}_mask").to(weights.dtype) * weights
        return masks

    def restore(self, saved: dict[str, Modes]) -> None:
        """Put the modes back, but for those with which the model is built otherwise than it was."""
        if not saved:
            return
        for kind, named in _parts(self.model).items():
            before, captured, now = set(saved["start"][kind]), set(saved["now"][kind]), set(self.at_start[kind])
            for name, part in named:
                if (name in before) == (name in now):
                    setattr(part, _ATTRIBUTES[kind], name not in captured)

    def keep(self) -> None:
        """Remember the modes before hooks that are called a second time."""
        parts = [(part, _ATTRIBUTES[kind]) for kind, named in _parts(self.model).items() for _, part in named]
        self._kept = [(part, name, getattr(part, name)) for part, name in parts]

    def put_back(self) -> None:
        """Put the modes back that those hooks have changed, but for parts that they have added."""
        for part, name, value in self._kept:
            if getattr(part, name) != value:
                setattr(part, name, value)
        self._kept = []

    def restore_masks(self, saved: dict[str, dict[str, Any]]) -> None:
        """Prune again with the saved masks. The optimizer keeps its parameters, in the order that it had."""
        for name, found in saved.items():
            path, _, tensor = name.rpartition(".")
            try:
                module = self.model.get_submodule(path)
                weights = module.get_parameter(tensor)
            except AttributeError:  # another model, or it prunes by itself
                continue
            with torch.no_grad():
                weights.copy_(found["weights"])
            prune.custom_from_mask(module, tensor, found["mask"].to(weights.device))  # type: ignore[no-untyped-call]
            if found["tied"]:
                for copy in self._tickets(module, tensor):
                    copy.data = weights.data

    def _tickets(self, module: nn.Module, tensor: str) -> list[Tensor]:
        """Return what ModelPruning resets a weight to, which on a CPU becomes the weight itself when it first does."""
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        copies = [copy for each in callbacks if isinstance(each, ModelPruning) for copy in compat.lottery_copies(each)]
        return [getattr(copy, tensor) for of, copy, name in copies if of is module and name == tensor]


def modes(model: nn.Module) -> Modes:
    """Return which parameters are frozen, and which modules are in eval mode or keep no running statistics."""
    return {
        kind: [name for name, part in named if not getattr(part, _ATTRIBUTES[kind])]
        for kind, named in _parts(model).items()
    }


def _parts(model: nn.Module) -> dict[str, list[tuple[str, Any]]]:
    return {
        # Pruning renames the parameter, which stays the same one.
        "frozen": [(name.removesuffix("_orig"), parameter) for name, parameter in model.named_parameters()],
        "eval": list(model.named_modules()),
        "untracked": [each for each in model.named_modules() if hasattr(each[1], _ATTRIBUTES["untracked"])],
    }


def _pruned(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield each pruned tensor: its name in a state_dict without pruning, its module, and its name there."""
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            tensor = name.removesuffix("_orig")
            if tensor != name and hasattr(module, f"{tensor}_mask"):
                yield f"{path}.{tensor}".lstrip("."), module, tensor
