"""Validation and test in a loop of this project's, which Lightning's trainer runs as its own."""

from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from torch.utils.data import DataLoader

from pipeline.training import epoch_loop, evaluation_loop
from tests.support.hook_calls import Numbers, quiet_trainer


class Adding(pl.LightningModule):
    """Adds a callback after its second batch."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[int] = []

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("mean", batch.mean())

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 1:
            late = LambdaCallback(on_test_batch_start=lambda _, module, batch, index, *more: self.called.append(index))
            self.trainer.callbacks.append(late)  # type: ignore[attr-defined]


def loops(made: pl.Trainer) -> list[Any]:
    return [made.fit_loop.epoch_loop.val_loop, made.validate_loop, made.test_loop]


def test_each_evaluation_loop_becomes_lean_and_stays_as_it_was_configured() -> None:
    made = quiet_trainer(inference_mode=False)
    before = loops(made)
    epoch_loop.install(made)
    evaluation_loop.install(made)
    assert all(own is stock for own, stock in zip(loops(made), before, strict=True))
    assert {type(own) for own in loops(made)} == {evaluation_loop.EvaluationLoop}
    assert [own.inference_mode for own in loops(made)] == [False] * 3
    assert {type(own).__name__ for own in loops(made)} == {"_EvaluationLoop"}, "as profilers name it"


def test_a_loop_of_the_users_own_stays() -> None:
    class Own(_EvaluationLoop):
        pass

    made = quiet_trainer()
    for loop in loops(made):
        loop.__class__ = Own
    epoch_loop.install(made)
    evaluation_loop.install(made)
    assert {type(loop) for loop in loops(made)} == {Own}


def test_a_callback_that_comes_in_during_an_evaluation_is_called() -> None:
    model, made = Adding(), quiet_trainer()
    evaluation_loop.install(made)
    (result,) = made.test(model, DataLoader(Numbers(), batch_size=4), verbose=False)
    assert model.called == [2, 3, 4]
    assert result["mean"] == pytest.approx(float(Numbers().rows.mean()))


def test_an_evaluation_that_fails_leaves_a_trainer_that_evaluates() -> None:
    class Failing(Adding):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            if self.fails and batch_idx == 3:
                raise RuntimeError("in the midst of it")
            super().test_step(batch, batch_idx)

    model, made, loader = Failing(), quiet_trainer(), DataLoader(Numbers(), batch_size=4)
    evaluation_loop.install(made)
    means = []
    for model.fails in (False, True, False):
        try:
            means.append(made.test(model, loader, verbose=False)[0]["mean"])
        except RuntimeError:
            means.append(None)
        assert made.test_loop.logged is None  # type: ignore[attr-defined]
    assert means[1] is None
    assert means[0] == means[2]
