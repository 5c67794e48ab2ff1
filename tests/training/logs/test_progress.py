"""How far a trainer is, looked up in a trainer of Lightning's own."""

import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest

from pipeline.training.logs.figures import Figures
from pipeline.training.logs.progress import TrainerProgress
from tests.support.models import Own, Regression


class Looks(pl.Callback):
    """Looks at the progress at some moments."""

    def __init__(self) -> None:
        self.progress = TrainerProgress()
        self.found: list[Figures] = []

    def look(self) -> None:
        figures = self.progress.figures()
        assert figures is not None
        self.found.append(figures)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.begin_training(trainer)
        self.look()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.progress.read(outputs)
        self.look()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.begin_evaluation(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.progress.evaluated(trainer, batch_idx, dataloader_idx)
        self.look()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.end_evaluation()


def looked(model: pl.LightningModule | None = None, **options: Any) -> list[Figures]:
    looks = Looks()
    quiet = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "num_sanity_val_steps"), False
    )
    pl.Trainer(accelerator="cpu", callbacks=[looks], **{**quiet, **options}).fit(model or Regression(), Own())
    return looks.found


def test_training_and_validation_have_figures_of_their_own() -> None:
    found = looked(max_epochs=2)
    training = [each for each in found if each.stage == "training"]
    assert [each.step for each in training] == [0, *range(1, len(training))]
    assert {each.steps for each in training} == {len(training) - 1}
    assert [each.share for each in training][:: len(training) - 1] == [0, 1]
    assert training[-1].seconds_left == 0
    assert training[0].seconds_left is None
    assert all("loss" in each.values and each.samples_per_second for each in training[1:])
    batches = training[0].batches
    assert batches is not None
    assert [each.epoch for each in training[1:]] == [1] * batches + [2] * batches
    validating = [each for each in found if each.stage == "validating"]
    assert validating
    assert validating[-1].share == 1
    assert (validating[0].batch, validating[-1].batch) == (1, validating[-1].batches)
    assert {each.epoch for each in validating} == {1, 2}
    assert not any(each.values for each in validating)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 5}, 5),
        ({"max_epochs": 1, "limit_train_batches": 4}, 4),
        ({"max_epochs": 1, "limit_train_batches": 5, "accumulate_grad_batches": 2}, 3),
    ],
)
def test_the_last_step_is_known_from_the_first_on(options: dict[str, Any], steps: int) -> None:
    found = [each for each in looked(**options) if each.stage == "training"]
    assert found[1].steps == steps
    assert (found[-1].step, found[-1].steps, found[-1].share) == (steps, steps, 1)


class TwoStepsABatch(Regression):
    """Steps by hand, twice in each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()


@pytest.mark.parametrize("options", [{"max_epochs": 2, "limit_train_batches": 4}, {"max_steps": 16}])
def test_the_steps_of_manual_optimization_are_counted_as_the_model_makes_them(options: dict[str, Any]) -> None:
    found = [each for each in looked(TwoStepsABatch(), **options) if each.stage == "training"]
    assert {each.steps for each in found[1:]} == {16}
    assert (found[-1].step, found[-1].share) == (16, 1)


def test_what_is_not_known_before_it_begins_is_nothing() -> None:
    assert TrainerProgress().figures() is None


def test_a_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training.logs.progress import _Clock

    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock, done = _Clock(10), 10
    assert clock.speed(10) is None
    speed: Callable[[int], float | None] = clock.speed
    for a_second in (5, 100):
        for _ in range(60):
            now[0] += 1
            done += a_second
            found = speed(done)
        assert found == pytest.approx(a_second)
    assert clock.seconds(done, 105) == pytest.approx(105 / ((5 + 100) / 2)), "the rest is at the speed so far"
    assert clock.seconds(done, None) is None
