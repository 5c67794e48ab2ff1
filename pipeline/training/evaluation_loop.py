"""Lightning's loop over the batches of a validation or a test, without the calls that nobody asked for."""

from typing import Any

import lightning.pytorch as pl

from pipeline.training.step import logged_values
from pipeline.training.step.lean_evaluation import LeanEvaluation
from pipeline.training.step.logged_values import LoggedCalls
from pipeline.training.step.step_compat import EvaluationLoop as StockLoop


class EvaluationLoop(StockLoop):
    """The batches of one evaluation."""

    _lean: LeanEvaluation | None = None

    @property
    def logged(self) -> LoggedCalls | None:
        """What the batches log; None where Lightning's own loop evaluates them."""
        return None if self._lean is None else self._lean.logged

    def on_run_start(self) -> None:
        """Look up who has anything to do in a batch."""
        super().on_run_start()
        self._lean = LeanEvaluation.of(self)

    def _evaluation_step(self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Any) -> None:
        if self._lean is not None and not self._lean.holds:
            self._lean = None
        try:
            if self._lean is None:
                super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            else:
                self._lean.evaluate(batch, batch_idx, dataloader_idx)
        except BaseException:
            self._lean = None
            raise

    def on_run_end(self) -> Any:
        """Keep nothing beyond the last batch."""
        self._lean = None
        return super().on_run_end()


EvaluationLoop.__name__ = StockLoop.__name__  # by which Lightning's profilers name what it does


def install(trainer: pl.Trainer) -> None:
    """Have a trainer validate and test without what nobody asked for; a loop of the user's own stays as it is."""
    logged_values.install()
    for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
        if type(loop) is StockLoop:
            loop.__class__ = EvaluationLoop
