"""Lightning reaches the session at every moment that it gives to callbacks only."""

from typing import Any

import lightning.pytorch as pl

from pipeline.data.datamodule import DataModule
from pipeline.errors import Preempted
from pipeline.process.preemption import Preemption
from pipeline.run.goodput import OTHER, USEFUL, VALIDATING, Goodput
from pipeline.training.epoch_loop import install
from pipeline.training.hooks import SessionHooks
from pipeline.training.session import TrainingSession
from pipeline.training.stop_vote import StopVote
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import TrainerState
from tests.support.models import Regression, Rows


class NotingSession(TrainingSession):
    """A session that notes its boundaries."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.boundaries: list[tuple[str, int, int]] = []

    def at_boundary(self, at: Any) -> None:
        self.boundaries.append((at.kind, at.epoch, at.step))
        super().at_boundary(at)


class StopsAt(pl.Callback):
    """Asks the process to stop in a validation, or fails in a step."""

    def __init__(self, preemption: Preemption, validation: int = -1, step: int = -1) -> None:
        self.preemption, self.validation, self.step = preemption, validation, step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.validation and not trainer.sanity_checking:
            self.preemption.ask()

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("broken")


def fit(**when: int) -> tuple[NotingSession, BaseException | None]:
    """Two epochs of 3 batches, each with a validation of 3 batches, and the session that was reached."""
    preemption = Preemption()
    trainer = Trainer(
        max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    loop = install(trainer)
    session = NotingSession(TrainerState(trainer), StopVote(preemption), Goodput())
    trainer.callbacks[:0] = [SessionHooks(session), StopsAt(preemption, **when)]  # type: ignore[attr-defined]
    error: BaseException | None = None
    try:
        trainer.fit(Regression(), DataModule(train=Rows(9), val=Rows(9), batch_size=3))
    except (Preempted, RuntimeError) as raised:
        error = raised
    assert loop.session is session
    return session, error


def test_boundaries_are_between_epochs_and_between_batches_in_that_order() -> None:
    session, error = fit()
    assert error is None
    assert session.boundaries == [
        *(("epoch", 0, 0), ("batch", 0, 0), ("batch", 0, 1), ("batch", 0, 2)),
        *(("epoch", 1, 3), ("batch", 1, 3), ("batch", 1, 4), ("batch", 1, 5)),
    ]


def test_time_is_counted_by_what_training_does() -> None:
    session, _ = fit()
    seconds = session.goodput.as_dict()["seconds"]
    assert seconds[USEFUL] > 0
    assert seconds[VALIDATING] > 0
    assert session.goodput._purpose == OTHER
    assert session.goodput.step == 6


def test_a_validation_is_left_in_its_middle() -> None:
    session, error = fit(validation=1)
    assert isinstance(error, Preempted)
    assert "preempted in the validation after step 6" in str(error)
    assert session.goodput._purpose == OTHER, "also an exception ends training"


def test_an_exception_ends_the_time_of_the_step() -> None:
    session, error = fit(step=2)
    assert str(error) == "broken"
    assert (session.goodput._purpose, session.goodput.step) == (OTHER, 2)
