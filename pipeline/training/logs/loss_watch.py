"""Warns once that the loss is no longer finite: training continues, and nobody may be watching the curve."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

_AT_ONCE = 50
"""Losses that are looked at together: each look waits for the device."""


class LossWatch:
    """Looks at the losses that `training_step` returned, some steps later."""

    def __init__(self) -> None:
        self._losses: list[tuple[int, Tensor]] = []
        self._said = False

    def add(self, outputs: Any, step: int) -> None:
        """Take note of what a training step returned.

        Args:
            outputs: A loss, or a mapping with one under `loss`; anything else is not looked at.
            step: The optimizer step that it was for.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if self._said or not isinstance(loss, Tensor) or loss.numel() != 1:
            return
        self._losses.append((step, loss.detach()))
        if len(self._losses) >= _AT_ONCE:
            self.look()

    def look(self) -> None:
        """Warn of the first loss that is not finite, once."""
        losses, self._losses = self._losses, []
        if self._said or not losses:
            return
        values = torch.stack([loss.reshape(()).float() for _, loss in losses]).tolist()
        for (step, _), value in zip(losses, values, strict=True):
            if value - value != 0:  # nan or infinite
                self._said = True
                log.warning(
                    "the loss of step %d is %s; training continues. --on_nan stop or skip names rank and samples, and "
                    "keeps it from the weights; --trainer.detect_anomaly=true finds where it comes from",
                    step,
                    value,
                )
                return
