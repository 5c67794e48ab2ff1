"""The run's entry in TensorBoard's HParams table: one session, from the first attempt's start to training's end.

The columns of values are the run's curves, each by its last value: those of validations, and of a test once there is
one. No list of columns is written, for TensorBoard would take one run's for all the runs of a folder.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from pipeline.training.logs import writer_compat

OF_COMMAND_LINE = "_instantiator"
"""What LightningCLI adds to a model's hyperparameters for its own use."""


def start(writer: Any, parameters: Mapping[str, Any]) -> None:
    """Write with which hyperparameters a run trains; of several attempts TensorBoard takes the first.

    Args:
        writer: Torch's SummaryWriter.
        parameters: By name, also nested; what is no number, text or truth value is shown as its text.
    """
    _, session, _ = hparams(_flat(parameters), {})
    writer_compat.write_summary(writer, session)


def end(writer: Any) -> None:
    """Write that a run's training has come to its end."""
    _, _, session = hparams({}, {})
    writer_compat.write_summary(writer, session)


def _flat(parameters: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        if key == OF_COMMAND_LINE:
            continue
        name = f"{within}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}/")
        elif value is None or isinstance(value, (bool, int, float, str)):
            flat[name] = value
        else:
            plain = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
            flat[name] = plain if isinstance(plain, (int, float)) else str(plain)
    return flat
