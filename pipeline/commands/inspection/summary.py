"""`python -m pipeline summary`: the layers of a model, and what one training step takes where there are data."""

import json
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.model_summary import ModelSummary

from pipeline.commands.inspection import model_report
from pipeline.commands.inspection.asked_devices import AskedDevices
from pipeline.commands.inspection.failures import described, user_code
from pipeline.commands.inspection.memory_fit import MemoryFit
from pipeline.config.parser import CommandLine
from pipeline.data.datamodule import DataModule
from pipeline.errors import StorageAway, UserError
from pipeline.training.inspection.step_measurement import MEASURING, StepFacts

_STEPS = 1000
"""The least for which the trainer is built: a schedule may ask, and two steps must not be the last ones."""


def summarize(command: CommandLine) -> str:
    """Return the layers of a model and, where there are data, what a step takes.

    Raises:
        UserError: A flag is wrong, or the model cannot be built.
        StepFailed: The step fails; what is known without it is in the error.
    """
    asked = command.asked
    if asked.max_depth < -1:
        raise UserError(f"max_depth={asked.max_depth} must be >= -1; -1 shows all layers")
    devices = AskedDevices.of(asked.trainer, asked.device_memory)
    accumulate = asked.trainer.accumulate_grad_batches
    missing = _build(command, devices)
    if missing is None:
        missing = _set_up(command, devices, accumulate)
    if missing is not None:
        return _without_a_step(command, missing)
    step = _measure(command)
    if isinstance(step, str):
        raise StepFailed(step, _without_a_step(command, None))
    name, fit = type(command.model).__name__, MemoryFit.of(step, devices)
    if asked.json:
        return json.dumps(model_report.as_json(name, step, devices, fit, asked.max_depth), indent=2)
    return model_report.as_text(name, step, devices, fit, asked.max_depth)


class StepFailed(UserError):
    """The training step fails.

    Args:
        problem: How.
        known: What is known of the model without it, to be shown first.
    """

    def __init__(self, problem: str, known: str) -> None:
        super().__init__(problem)
        self.known = known


def _build(command: CommandLine, devices: AskedDevices) -> str | None:
    """Build model, data and trainer; return why there are no data, None if there are."""
    trainer = command.asked.trainer
    for key, value in {**MEASURING, "accelerator": devices.accelerator}.items():
        trainer[key] = value
    if not trainer.max_epochs:
        trainer.max_epochs = _STEPS
    if 0 <= trainer.max_steps < _STEPS:
        trainer.max_steps = _STEPS
    try:
        command.build([], lambda: False)
    except (UserError, StorageAway) as error:
        if command.asked.data is None:
            raise
        command.asked.data = None
        command.build([], lambda: False)  # if it is not the data, this fails in the same way
        return f"the data cannot be built here: {error}"
    if not is_overridden("train_dataloader", command.source):
        return "there are no training data"
    return None


def _set_up(command: CommandLine, devices: AskedDevices, accumulate: int) -> str | None:
    """Have this project's data prepared, with the batch of one of the processes that are asked for."""
    data = command.datamodule
    if not isinstance(data, DataModule):
        return None
    with user_code("the data"):
        data.prepare_early(True)
        data.set_up_early()
    if data.datasets["train"] is None and type(data).train_dataloader is DataModule.train_dataloader:
        return "data.train names no dataset"
    if data.datasets["train"] is not None:
        data.batch_size, data.global_batch_size = data.check(devices.world_size, accumulate), None
    return None


def _measure(command: CommandLine) -> StepFacts | str:
    """Return what a step takes, or how it fails."""
    try:
        facts: StepFacts = command.trainer.summary(command.model, command.datamodule)  # type: ignore[attr-defined]
    except (UserError, StorageAway):
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        return f"the first training step runs out of memory on {command.trainer.strategy.root_device}: {error}"
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning has replaced a person's Ctrl-C
            raise error.__context__ from None
        raise
    except Exception as error:  # noqa: BLE001 - whatever the user's own code raises
        return f"the first training steps fail: {described(error)}. --trainer.fast_dev_run=true of fit shows all of it"
    return facts


def _without_a_step(command: CommandLine, missing: str | None) -> str:
    """Return what is known of a model without training it: the table of Lightning's."""
    model, asked = command.model, command.asked
    notes = [] if missing is None else [f"Nothing is measured: {missing}."]
    if model.example_input_array is None:
        notes.append(f"There are no sizes: {type(model).__name__} sets no example_input_array.")
    shown = _summary(lambda: ModelSummary(model, max_depth=asked.max_depth), model, notes)
    if not asked.json:
        return "\n".join([str(shown), *notes])
    counts = {"parameters": shown.total_parameters, "trained": shown.trainable_parameters}
    return json.dumps({"schema": 1, "model": type(model).__name__, **counts, "notes": notes}, indent=2)


def _summary(make: Callable[[], ModelSummary], model: Any, notes: list[str]) -> ModelSummary:
    """Return the table, without sizes where the model fails on its own example."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - the user's own forward
        notes.append(
            f"There are no sizes: {type(model).__name__} fails on its example_input_array: {described(error)}."
        )
        model.example_input_array = None
        return make()
