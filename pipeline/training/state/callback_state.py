"""The states of Lightning's callbacks, where loading them as they are would not resume what was asked for."""

import logging
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, SpikeDetection

log = logging.getLogger(__name__)


def prepare(trainer: pl.Trainer, states: dict[str, Any]) -> None:
    """Change the states of callbacks that are about to be loaded.

    Args:
        trainer: Whose callbacks they are.
        states: Theirs, as in the checkpoint.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if state is not None and isinstance(callback, EarlyStopping):
            _keep_patience(callback, state)
        if state is not None and isinstance(callback, SpikeDetection):
            _load_spike_detection(callback)


def before_validation(checkpoint: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a checkpoint with the model and its average where they are outside of a validation.

    Within one, WeightAveraging has them change places, so that it would save each as the other.

    Args:
        checkpoint: As Lightning captured it; it is changed.
        kind: Of the boundary where training stands, `validation` within one.
    """
    if kind == "validation" and "averaging_state" in checkpoint:
        model, average = checkpoint["state_dict"], checkpoint["current_model_state"]
        checkpoint["state_dict"], checkpoint["current_model_state"] = average, model
    return checkpoint


def _keep_patience(callback: EarlyStopping, state: dict[str, Any]) -> None:
    """Have EarlyStopping take the patience that was asked for: its state would put the earlier one back."""
    asked, saved = callback.patience, state["patience"]
    if asked != saved:
        log.info("%s has patience %d as asked for, the checkpoint %d", type(callback).__name__, asked, saved)
        state["patience"] = asked


def _load_spike_detection(callback: SpikeDetection) -> None:
    """Replace what in Lightning 2.6 raises AttributeError; the running mean comes back with other torchmetrics."""

    def load_state_dict(state: dict[str, Any]) -> None:
        callback.last_val, callback.bad_batches = state["last_val"], list(state["bad_batches"])

    callback.load_state_dict = load_state_dict  # type: ignore[method-assign,assignment]
