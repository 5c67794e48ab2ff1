"""The model of a run with the weights of one of its checkpoints, on the CPU and in eval mode; or a part of it."""

from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from pipeline.checkpoint.foreign import listed
from pipeline.commands.export.averages import ChosenWeights, chosen_weights
from pipeline.commands.inspection.failures import described, user_code
from pipeline.config import mistakes
from pipeline.config.parser import CommandLine
from pipeline.data.datamodule import DataModule
from pipeline.errors import StorageAway, UserError
from pipeline.process.topology import Topology
from pipeline.training.inspection.step_measurement import MEASURING
from pipeline.training.logs import console

_COMPILED = "_orig_mod"
_LONGEST = 200
"""Characters of what a failure says: some tracers write pages."""


@dataclass
class TrainedModule:
    """A model as a checkpoint has it.

    Attributes:
        model: All of it.
        source: What brings the run's loaders: its data, or the model.
        class_path: Of the model.
        weights: Which ones it has.
        notes: What is worth knowing of it, a sentence each.
    """

    model: pl.LightningModule
    source: Any
    class_path: str
    weights: ChosenWeights
    notes: list[str]

    def part(self, path: str) -> nn.Module:
        """Return a part of the model by its dotted name; "" is all of it.

        Raises:
            UserError: There is none of that name.
        """
        parts = dict(self.model.named_modules(remove_duplicate=False))
        if path in parts:
            return parts[path]  # type: ignore[no-any-return]
        near = get_close_matches(path, [name for name in parts if name], n=3, cutoff=0.5)
        have = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {listed(filter(None, parts))}"
        raise UserError(f"submodule={path!r} is no part of {type(self.model).__name__}; {have}")

    def detach(self) -> None:
        """Take the trainer off, which served to look for inputs."""
        self.model.trainer = None


def build(url: str) -> CommandLine:
    """Build the model of a run, its data if they can be built here, and a trainer for hooks that ask for one.

    Raises:
        UserError: The model cannot be built.
        StorageAway: What it reads does not answer.
    """
    topology = Topology.from_environment()
    console.set_up(topology)
    command = CommandLine(["validate", "--run_dir", url], topology)
    for key, value in {**MEASURING, "accelerator": "cpu", "precision": None}.items():
        command.asked.trainer[key] = value
    try:
        command.build([], lambda: False)
    except (UserError, StorageAway):
        if command.asked.data is None:
            raise
        command.asked.data = None
        command.build([], lambda: False)  # if it is not the data, this fails in the same way
    return command


def load(command: CommandLine, checkpoint: dict[str, Any], average: bool | None) -> TrainedModule:
    """Give the model that was built the weights of a checkpoint, in the order in which Lightning itself does it.

    Args:
        command: Has built it.
        checkpoint: Of the same run.
        average: As for `chosen_weights`.

    Raises:
        UserError: They do not fit, or a hook of the model fails.
    """
    model, notes = command.model, []
    trainer: Any = command.trainer
    trainer.datamodule = command.datamodule
    trainer.strategy.connect(model)
    model.trainer = trainer
    with ExitStack() as guarded:
        guarded.enter_context(user_code(f"{type(model).__name__} cannot be prepared for its weights"))
        notes += _set_up(command, set(checkpoint["state_dict"]))
        weights = chosen_weights(
            checkpoint, average, {name for name, _ in model.named_parameters(remove_duplicate=False)}
        )
        checkpoint["state_dict"] = weights.state
        model.on_load_checkpoint(checkpoint)
    state = checkpoint["state_dict"]
    try:
        answer: Any = model.load_state_dict(state, strict=model.strict_loading)
    except RuntimeError as error:
        raise UserError(
            f"{type(model).__name__} does not fit its own checkpoint: {' '.join(str(error).split())}. Was its code "
            "changed since it was trained?"
        ) from error
    if answer is not None and answer.missing_keys:
        notes.append(
            f"{len(answer.missing_keys)} tensors are in no checkpoint, so as the constructor made them: "
            f"{listed(answer.missing_keys)}"
        )
    _take_types(model, state)
    _unwrap_compiled(model)
    model.requires_grad_(False)
    model.eval()
    kind = type(model)
    return TrainedModule(model, command.source, f"{kind.__module__}.{kind.__qualname__}", weights, notes)


def _set_up(command: CommandLine, expected: set[str]) -> list[str]:
    """Have the model make all its layers, in configure_model and setup; say what fails that is not needed for them."""
    model = command.model
    if is_overridden("configure_model", model):
        model.configure_model()
    if not is_overridden("setup", model):
        return []
    try:
        prepare_data(command.datamodule, "fit")
        model.setup("fit")
    except Exception as error:
        if expected - model.state_dict().keys():
            raise
        return [f"setup fails here: {reason(error)}"]
    return []


def prepare_data(data: Any, stage: str) -> None:
    """Prepare and set up a data module for a stage; nothing for None."""
    if isinstance(data, DataModule):
        data.num_workers = 0
    if data is not None:
        data.prepare_data()
        data.setup(stage)


def _take_types(model: nn.Module, state: dict[str, Any]) -> None:
    """Give each tensor the type that it has in the checkpoint, such as bfloat16: loading casts to the model's."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        saved = state.get(name)
        if isinstance(saved, torch.Tensor) and saved.dtype != tensor.dtype:
            tensor.data = saved.to(tensor.device, copy=True)


def _unwrap_compiled(model: nn.Module) -> None:
    """Put each module that torch.compile has wrapped into the place of its wrapper: names are the code's then."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(inner := getattr(child, _COMPILED, None), nn.Module):
                parent._modules[name] = inner


def reason(error: BaseException) -> str:
    """Return what a failure of the user's code says, shortened, and where in that code it came from."""
    place = mistakes.where(error)
    text = described(error).removesuffix(place)
    return (text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ...") + place
