"""When a checkpoint is due: a pure function of where training stands and what has happened since the last boundary."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Boundary:
    """A place between two batches or two epochs, or the end of training: nowhere else is anything saved.

    Attributes:
        step: Optimizer steps done.
        epoch: The epoch to continue with, counted from 0.
        batches: Batches of that epoch that each rank has completed.
        kind: `batch` before the next batch, `epoch` before the next epoch's hooks, `end` after training,
            `validation` within the validation that follows the last batch.
        accumulating: Whether batches have been accumulated for a step that is still to come; no checkpoint holds them.
    """

    step: int
    epoch: int
    batches: int
    kind: Literal["batch", "epoch", "validation", "end"] = "batch"
    accumulating: bool = False


@dataclass(frozen=True)
class SavePolicy:
    """What a user asked to be saved; the end of training and a preemption are always saved.

    Attributes:
        every_n_epochs: After every n-th epoch.
        every_n_steps: After every n-th optimizer step.
        every_minutes: When so many minutes have passed since the last save.
        after_validation: After every validation.
    """

    every_n_epochs: int = 1
    every_n_steps: int | None = None
    every_minutes: float | None = None
    after_validation: bool = False

    def due(
        self, at: Boundary, before: int, *, minutes: bool = False, validated: bool = False, stop: bool = False
    ) -> list[str]:
        """Return why a checkpoint is due, as it stands in the commit record; nothing if none is.

        Args:
            at: Where training stands.
            before: Optimizer steps that were done at the last boundary.
            minutes: Whether `every_minutes` have passed since the last save.
            validated: Whether a validation has ended since the last boundary.
            stop: Whether training is preempted here.
        """
        if at.step == 0:
            return []
        reasons = {
            # A batch may make more than one step (manual optimization), and jump over a multiple.
            "steps": self.every_n_steps is not None and at.step // self.every_n_steps > before // self.every_n_steps,
            "minutes": minutes,
            "validation": validated and self.after_validation,
            "epoch": not at.batches and (at.kind == "end" or at.epoch % self.every_n_epochs == 0),
            "preemption": stop,
            "end": at.kind == "end",
        }
        return [reason for reason, due in reasons.items() if due]
