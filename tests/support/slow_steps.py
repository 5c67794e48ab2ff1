"""Steps that take their time, of which telemetry tells."""

import time
from typing import Any

from tests.support.models import Regression
from tests.support.runs import FIT

SHORT = "--telemetry_every=0.2"


class Slow(Regression):
    """Takes its time on one rank, so that the others wait for it.

    Args:
        learning_rate: Of the optimizer.
        seconds: For each batch.
        rank: Which one.
    """

    flops_per_batch = 1_000_000

    def __init__(self, learning_rate: float = 0.01, seconds: float = 0.01, rank: int | None = None) -> None:
        super().__init__(learning_rate)
        self.seconds, self.slow = seconds, rank

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.slow is None or self.global_rank == self.slow:
            time.sleep(self.seconds)
        return super().training_step(batch, batch_idx)


def slow_fit(**settings: Any) -> tuple[str, ...]:
    arguments = [argument for argument in FIT if not argument.startswith(("--model", "--trainer.max_epochs"))]
    model = [f"--model.{name}={value}" for name, value in settings.items()]
    return (*arguments, "--model=tests.support.slow_steps.Slow", *model)
