"""A stop that was asked for comes back with a resume, while it would be asked for again."""

from collections.abc import Callable
from pathlib import Path

from pipeline.training.save_policy import Boundary
from pipeline.training.state import stopping
from pipeline.training.trainer import Trainer
from tests.support.commands import Ended
from tests.support.resumes import only, same_end, state
from tests.support.runs import ROWS

App = Callable[..., Ended]
LATCHED = (
    *("fit", *ROWS, "--trainer.max_epochs=6", "--trainer.min_epochs=4", "--model.learning_rate=0"),
    *("--checkpoints.every_n_steps=1", "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"),
    "--trainer.callbacks.patience=1",
)
"""The stop is asked for after epoch 1 (step 14), and obeyed after epoch 3 (step 28)."""


def asks(trainer: Trainer) -> None:
    class Callback:
        def __init__(self) -> None:
            trainer.should_stop = True

    Callback()


def test_who_asks_a_trainer_to_stop_is_remembered_until_that_is_taken_back() -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False)
    assert (trainer.should_stop, trainer.stopped_by) == (False, None)
    asks(trainer)
    assert (trainer.should_stop, trainer.stopped_by) == (True, "Callback")
    trainer.should_stop = trainer.should_stop or True
    assert trainer.stopped_by == "Callback"
    trainer.should_stop = False
    assert (trainer.should_stop, trainer.stopped_by) == (False, None)


def test_only_the_end_is_ended_by_a_stop_or_a_limit() -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, max_steps=4)
    assert stopping.ended(trainer, {}, Boundary(4, 0, 4)) is None
    assert stopping.ended(trainer, {}, Boundary(3, 0, 3, "end")) is None
    assert stopping.ended(trainer, {}, Boundary(4, 0, 4, "end")) == {"by": "max_steps", "asked": {"max_steps": 4}}
    asks(trainer)
    assert (stopping.ended(trainer, {}, Boundary(4, 0, 4, "end")) or {})["by"] == "Callback"


def test_a_stop_that_waits_for_the_least_epochs_is_obeyed_after_a_resume(app: App, tmp_path: Path) -> None:
    straight = tmp_path / "straight"
    assert app(*LATCHED, "--run_dir", straight).status == 0
    assert state(str(straight))["global_step"] == 28
    for step in (14, 17):
        resumed = tmp_path / f"from-{step}"
        only(straight, resumed, step)
        ended = app(*LATCHED, "--run_dir", resumed)
        assert ended.status == 0, ended.err
        same_end(straight, resumed)


def test_a_stop_that_would_not_be_asked_for_again_is_not_obeyed(app: App, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert app(*LATCHED, "--run_dir", straight).status == 0
    only(straight, resumed, 17)
    ended = app(*LATCHED, "--trainer.callbacks.patience=9", "--run_dir", resumed)
    assert ended.status == 0, ended.err
    assert "EarlyStopping has patience 9 as asked for, the checkpoint 1" in ended.err
    assert "training continues though EarlyStopping had ended it" in ended.err
    assert state(str(resumed))["global_step"] == 42
