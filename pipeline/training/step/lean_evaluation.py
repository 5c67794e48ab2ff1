"""The evaluation of one batch: Lightning's calls in their order, as far as somebody has given them something to do.

See `lean_step`. The step itself is the strategy's, which knows about precision and DDP.
"""

from collections.abc import Callable
from typing import Any

from pipeline.training.step import step_compat as compat
from pipeline.training.step.hook import Called, Hook, Transfer, within
from pipeline.training.step.logged_values import LoggedCalls


class LeanEvaluation:
    """Evaluates the batches of one validation or test.

    Args:
        loop: Of the trainer, which is before its first batch.

    Attributes:
        logged: What the batches log.
    """

    def __init__(self, loop: compat.EvaluationLoop) -> None:
        trainer = loop.trainer
        kind = "test" if trainer.testing else "validation"
        self._step_name = f"{kind}_step"
        self.logged = LoggedCalls(loop, self._step_name)
        self._loop, self._trainer, self._module = loop, trainer, trainer.lightning_module
        start, end = (f"on_{kind}_batch_{when}" for when in ("start", "end"))
        self._start, self._end = Hook(start, trainer), Hook(end, trainer)
        self._called = Called(trainer, (self._step_name, start, end))
        self._step: Callable[..., Any] = getattr(trainer.strategy, self._step_name)
        self._moved = Transfer(trainer)
        self._takes_index = compat.takes_batch_index(self._module, self._step_name)
        self._tells_loader = compat.tells_loader(loop)

    @staticmethod
    def of(loop: compat.EvaluationLoop) -> "LeanEvaluation | None":
        """Return how to evaluate the batches that a loop has before it; None where that is Lightning's to do."""
        return LeanEvaluation(loop) if compat.is_plain_evaluation(loop) else None

    @property
    def holds(self) -> bool:
        """Whether what was looked up still is so."""
        return self._called.holds

    def evaluate(self, batch: Any, index: int, dataloader_idx: int) -> None:
        """Evaluate a batch.

        Args:
            batch: As the loader gave it.
            index: Of the batch within its loader.
            dataloader_idx: Of the loader.
        """
        loop, progress = self._loop, self._loop.batch_progress
        loader = (dataloader_idx,) if self._tells_loader else ()
        batch = self._moved(batch, dataloader_idx)
        progress.increment_ready()
        compat.begin_batch(self._trainer, batch, *loader)
        self._start(batch, index, *loader)
        progress.increment_started()
        arguments = (batch, index, *loader) if self._takes_index else (batch, *loader)
        output = within(self._module, self._step_name, self._step, *arguments)
        progress.increment_processed()
        self._end(output, batch, index, *loader)
        compat.end_evaluated_batch(loop)
        progress.increment_completed()
        compat.count_evaluated_batch(loop, dataloader_idx)
        if not progress.is_last_batch:
            compat.stop_on_sigterm(self._trainer)
