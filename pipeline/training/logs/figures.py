"""How far a trainer is, in numbers, in words and in fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.run.checkpoint_interval import duration

TRAINING = "training"
_DIGITS = ("share", "samples_per_second", "batches_per_second", "seconds_left")


@dataclass(frozen=True)
class Figures:
    """How far it is. What is not known is None.

    Attributes:
        stage: `training`, or what is done with batches that are not trained on: `validating`, `testing`.
        epoch: From 1; None outside of a fit.
        epochs: Of the run.
        step: Optimizer steps of the run.
        steps: The step at which the run ends.
        batch: Of the epoch, or of another stage.
        batches: In all.
        share: Of the run, or of another stage, that is done: 0 to 1.
        values: What the model put on its progress bar, else its loss.
        samples_per_second: Of all ranks.
        batches_per_second: Of each rank.
        seconds_left: Until the run, or another stage, is done at its speed so far.
        saving: Whether a checkpoint is being written.
        checkpoint: The newest step that is durable.
        attempt: The number of this start of the run.
    """

    stage: str
    epoch: int | None
    epochs: int | None
    step: int
    steps: int | None
    batch: int
    batches: int | None
    share: float | None
    values: Mapping[str, float]
    samples_per_second: float | None
    batches_per_second: float | None
    seconds_left: float | None
    saving: bool = False
    checkpoint: int | None = None
    attempt: int | None = None

    @property
    def head(self) -> str:
        """Which epoch, and which stage where it is not training."""
        epoch = "" if self.epoch is None else f"epoch {_of(self.epoch, self.epochs)}"
        return ", ".join(filter(None, (epoch, "" if self.stage == TRAINING else self.stage)))

    @property
    def count(self) -> str:
        """How many steps or batches of how many."""
        if self.stage == TRAINING:
            return f"step {_of(self.step, self.steps)}"
        return f"batch {_of(self.batch, self.batches)}"

    @property
    def percent(self) -> str:
        """How much of the run or stage, "" where that is not known."""
        return "" if self.share is None else f"{100 * self.share:.0f} %"

    @property
    def rate(self) -> str:
        """How fast, "" where that is not known yet."""
        if self.samples_per_second is not None:
            return f"{rounded(self.samples_per_second)} samples/s"
        return "" if self.batches_per_second is None else f"{rounded(self.batches_per_second)} batches/s"

    @property
    def left(self) -> str:
        """How much longer, "" where that is not known, or nothing is left."""
        return f"{duration(self.seconds_left)} left" if self.seconds_left else ""

    @property
    def logged(self) -> list[str]:
        """The values with their names."""
        return [f"{name} {value:.6g}" for name, value in self.values.items()]

    def line(self, head: str = "") -> str:
        """Return all of it in one line.

        Args:
            head: In the place of epoch and stage.
        """
        count = f"{self.count} ({self.percent})" if self.percent else self.count
        rest = (count, *self.logged, self.rate, self.left, "saving a checkpoint" if self.saving else "")
        return f"{head or self.head}: {', '.join(filter(None, rest))}"

    def fields(self) -> dict[str, Any]:
        """Return what is known, for machines."""
        known = {name: value for name, value in vars(self).items() if value is not None}
        return known | {name: float(f"{known[name]:.6g}") for name in _DIGITS if name in known}


def rounded(number: float) -> str:
    """Return a rate as people read it: `15,120`, `3.4`."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _of(number: int, most: int | None) -> str:
    return f"{number}" if most is None else f"{number}/{most}"
