"""The flags under checkpoints: what they refuse, and when they save."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint.commit import committed, read_record
from pipeline.errors import UserError
from pipeline.process.preemption import Preemption
from pipeline.run.attempts import AttemptLog
from pipeline.run.run_dir import RunDir
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.epoch_loop import install
from pipeline.training.hooks import SessionHooks
from pipeline.training.stop_vote import StopVote
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import TrainerState
from tests.support.checkpoints import commit
from tests.support.commands import Ended
from tests.support.models import Own, Regression
from tests.support.runs import FIT

App = Callable[..., Ended]


ROWS = "tests.support.models.Rows"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--checkpoints.every_minutes=0.000001",), "minutes"),
        (("--checkpoints.after_validation=true", "--trainer.val_check_interval=3", f"--data.val={ROWS}"),
         "validation"),
        (("--checkpoints.every_n_steps=3",), "steps"),
    ],
)  # fmt: skip
def test_saves_by_time_by_validation_and_by_steps(app: App, tmp_path: Path, more: tuple[str, ...], reason: str) -> None:
    assert app(*FIT, *more, "--run_dir", tmp_path).status == 0
    records = list(committed(RunDir(str(tmp_path))))
    assert any(reason in each.reason and each.position for each in records)
    assert len({each.step for each in records}) == len(records), "what is due at one step is one save"


@pytest.mark.parametrize("value", ["every_minutes=0", "every_n_steps=0", "storage_budget=-1"])
def test_numbers_out_of_range_are_named(app: App, tmp_path: Path, value: str) -> None:
    ended = app(*FIT, f"--checkpoints.{value}", "--run_dir", tmp_path)
    assert ended.status == 2
    assert f"checkpoints.{value} must be" in ended.err


def test_all_that_is_out_of_range_is_named_at_once() -> None:
    with pytest.raises(UserError) as raised:
        Checkpoints(mode="best", every_n_epochs=0, every_minutes=-1.0, keep_last=0, storage_budget=-2.0)
    names = [problem.removeprefix("checkpoints.").partition("=")[0] for problem in raised.value.problems]
    assert names == ["mode", "every_n_epochs", "every_minutes", "keep_last", "storage_budget"]


def test_the_best_is_the_one_with_the_least_value_and_none_before_a_commit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(monitor="val_loss")
    assert checkpoints.best_model_path == ""
    checkpoints.run = run = RunDir(str(tmp_path))
    assert checkpoints.best_model_path == ""
    for step, value in ((1, 0.5), (2, 0.25), (3, 0.75)):
        commit(run, step, value)
    assert checkpoints.best_model_path == run.url_of(RunDir.checkpoint(2))


def test_the_session_saves_and_deletes_what_the_flags_ask_for(tmp_path: Path) -> None:
    run, trainer = RunDir(str(tmp_path / "run")), Trainer(max_epochs=1, logger=False, enable_checkpointing=False)
    install(trainer)
    checkpoints = Checkpoints("val_loss", "max", every_n_steps=4, keep_last=1)
    session = checkpoints.open_session(run, TrainerState(trainer), StopVote(Preemption()), AttemptLog(), None)
    trainer.callbacks[:0] = [SessionHooks(session)]  # type: ignore[attr-defined]
    trainer.callbacks.append(checkpoints)  # type: ignore[attr-defined]
    trainer.fit(Regression(), Own())
    assert session.saver is not None
    values = {step: found.monitor for step in run.steps()["json"] if (found := read_record(run, step)) is not None}
    assert sorted(values) == [15], "the newest is the best too, for only it comes after a validation"
    assert values[15] is not None
    assert (values[15].name, values[15].mode) == ("val_loss", "max")
    assert checkpoints.best_model_path == run.url_of(RunDir.checkpoint(15))
