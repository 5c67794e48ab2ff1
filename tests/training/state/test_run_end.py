"""Training is over by what the run has done against what is asked for now, never because configurations are equal."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.checkpoint.commit import newest
from pipeline.run.run_dir import RunDir
from pipeline.training.state.run_end import is_still_asked, limit_reached, stop_request, why_over
from tests.support.checkpoints import a_record
from tests.support.commands import Ended
from tests.support.resumes import equal, state
from tests.support.runs import fit, listing

App = Callable[..., Ended]
EARLY = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val_loss", "patience": 2}}
OTHER = {"class_path": "lightning.pytorch.callbacks.RichModelSummary"}
STOPPING = (*("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--model.learning_rate=0"),)
"""The validation loss never gets better, so that patience decides."""


def asked(**trainer: Any) -> dict[str, Any]:
    return {"model": {"class_path": "own.Model"}, "trainer": {"max_epochs": None, "max_steps": -1, **trainer}}


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        ({"max_epochs": 2}, "max_epochs=2 is reached"),
        ({"max_epochs": 1}, "max_epochs=1 is reached"),
        ({"max_epochs": 3}, ""),
        ({"max_epochs": -1}, ""),
        ({}, ""),
        ({"max_steps": 12}, "max_steps=12 is reached"),
        ({"max_steps": 12, "max_epochs": 9}, "max_steps=12 is reached"),
        ({"max_steps": 13}, ""),
        ({"max_time": "00:01:00:00"}, ""),
    ],
)
def test_a_limit_is_compared_with_what_is_done(trainer: dict[str, Any], why: str) -> None:
    assert why_over(replace(a_record(12), epoch=2), asked(**trainer)) == why


def test_lightnings_own_limit_counts_where_nothing_is_limited() -> None:
    assert why_over(replace(a_record(12), epoch=1000), asked()) == "max_epochs=1000 is reached"
    assert why_over(replace(a_record(12), epoch=1000), asked(max_time="00:01:00:00")) == ""


@pytest.mark.parametrize(
    ("callbacks", "more", "over"),
    [
        ([EARLY], {}, True),
        ([OTHER, EARLY], {}, True),
        ([EARLY], {"max_epochs": 50}, True),
        ([{**EARLY, "init_args": {"monitor": "val_loss", "patience": 5}}], {}, False),
        ([OTHER], {}, False),
        (None, {}, False),
        ([EARLY], {"min_epochs": 5}, False),
        ([EARLY], {"min_epochs": 2}, True),
        ([EARLY], {"min_steps": 13}, False),
    ],
)
def test_a_callback_that_ended_training_keeps_it_ended_while_it_is_asked_for_unchanged(
    callbacks: Any, more: dict[str, Any], over: bool
) -> None:
    ended = stop_request("EarlyStopping", asked(callbacks=EARLY))
    record = replace(a_record(12), epoch=2, ended=ended)
    assert bool(why_over(record, asked(callbacks=callbacks, **more))) is over


def test_an_epoch_whose_rest_was_skipped_is_done_by_the_limit_that_had_ended_training() -> None:
    record = replace(a_record(2), epoch=0, ended=limit_reached("max_epochs", 1))
    assert why_over(record, asked(max_epochs=1)) == "max_epochs=1 is reached"
    assert why_over(record, asked(max_epochs=2)) == ""
    assert why_over(record, asked(max_steps=2)) == "max_steps=2 is reached"


def test_time_that_was_up_is_over_until_there_is_more_of_it() -> None:
    ended = stop_request("Timer", asked(max_time={"seconds": 3}))
    assert is_still_asked(ended, asked(max_time={"seconds": 3}, callbacks=[OTHER]))
    assert not is_still_asked(ended, asked(max_time={"seconds": 9}))
    assert not is_still_asked(ended, asked(max_time=None))


def test_a_model_or_a_function_that_ended_training_is_compared_as_far_as_it_is_known() -> None:
    assert stop_request("Model", asked(callbacks=[OTHER]))["asked"] == {"model": {"class_path": "own.Model"}}
    unknown = stop_request("", asked(callbacks=[OTHER]))
    assert is_still_asked(unknown, asked(callbacks=[OTHER]))
    assert not is_still_asked(unknown, asked(callbacks=[EARLY]))
    assert not is_still_asked(None, asked())


def crashed(app: App, run: Path, epochs: int, *more: str, step: int) -> None:
    """Extend a run, which crashes before it has committed anything new."""
    flag = run.parent / "crash"
    flag.touch()
    with pytest.raises(ZeroDivisionError, match=f"crashed after step {step}"):
        fit(app, str(run), epochs, *crashing(run, step), *more)
    flag.unlink()


def crashing(run: Path, step: int) -> tuple[str, ...]:
    """The callback of `crashed`, which must be asked for each time: it is part of the configuration."""
    return (
        *("--trainer.callbacks+=tests.support.callbacks.Crashes", f"--trainer.callbacks.step={step}"),
        f"--trainer.callbacks.while_there={run.parent / 'crash'}",
    )


def test_more_epochs_are_trained_although_the_first_try_crashed_before_its_first_save(app: App, tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    assert fit(app, str(straight), 4).status == 0
    assert fit(app, str(run), 2, *crashing(run, 16)).status == 0
    before = (run / "fit.yaml").read_text()
    crashed(app, run, 4, step=16)
    assert (run / "fit.yaml").read_text() == before, "it says how the newest checkpoint was trained"
    ended = fit(app, str(run), 4, *crashing(run, 16))
    assert ended.status == 0, ended.err
    assert "nothing to train" not in ended.err
    assert yaml.safe_load((run / "fit.yaml").read_text())["trainer"]["max_epochs"] == 4
    assert equal(state(str(straight))["state_dict"], state(str(run))["state_dict"])
    assert state(str(run))["global_step"] == 28
    assert "max_epochs=4 is reached" in fit(app, str(run), 4, *crashing(run, 16)).err


def test_more_steps_are_trained_although_the_first_try_crashed(app: App, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fit(app, str(run), -1, "--trainer.max_steps=10", *crashing(run, 12)).status == 0
    crashed(app, run, -1, "--trainer.max_steps=16", step=12)
    assert fit(app, str(run), -1, "--trainer.max_steps=16", *crashing(run, 12)).status == 0
    assert state(str(run))["global_step"] == 16
    assert "max_steps=16 is reached" in fit(app, str(run), -1, "--trainer.max_steps=16").err


def test_a_limit_that_was_lowered_has_been_reached(app: App, tmp_path: Path) -> None:
    assert fit(app, str(tmp_path), 2).status == 0
    before = listing(str(tmp_path))
    ended = fit(app, str(tmp_path), 1)
    assert ended.status == 0, ended.err
    assert "is done at step 14; nothing to train (max_epochs=1 is reached)" in ended.err
    assert "max_epochs=2 is reached" in fit(app, str(tmp_path), 2, "--trainer.limit_train_batches=3").err
    assert listing(str(tmp_path)) == before


def test_other_arguments_than_those_that_end_training_do_not_train_on(app: App, tmp_path: Path) -> None:
    assert fit(app, str(tmp_path), 9, *STOPPING, "--trainer.callbacks.patience=1").status == 0
    record = newest(RunDir(str(tmp_path)))
    assert record is not None
    assert record.ended is not None
    assert (record.step, record.ended["by"]) == (14, "EarlyStopping")
    more = ("--trainer.callbacks+=tests.support.callbacks.Counts", "--trainer.log_every_n_steps=1")
    ended = fit(app, str(tmp_path), 12, *STOPPING, "--trainer.callbacks.patience=1", *more)
    assert "nothing to train (EarlyStopping ended it" in ended.err


def test_early_stopping_with_more_patience_trains_on_until_that_is_over(app: App, tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert fit(app, str(straight), 9, *STOPPING, "--trainer.callbacks.patience=3").status == 0
    assert fit(app, str(run), 9, *STOPPING, "--trainer.callbacks.patience=1").status == 0
    ended = fit(app, str(run), 9, *STOPPING, "--trainer.callbacks.patience=3")
    assert ended.status == 0, ended.err
    assert state(str(run))["global_step"] == state(str(straight))["global_step"] == 28
    assert "nothing to train" in fit(app, str(run), 9, *STOPPING, "--trainer.callbacks.patience=3").err
    assert fit(app, str(run), 6).status == 0, "without the callback nothing ends it but its limits"
    assert state(str(run))["global_step"] == 42


def test_time_that_is_up_ends_a_run_until_more_is_given(app: App, tmp_path: Path) -> None:
    limit = ("--trainer.max_time.seconds=0", "--trainer.max_time.milliseconds=1")
    assert fit(app, str(tmp_path), 3, *limit).status == 0
    assert state(str(tmp_path))["global_step"] == 1
    assert "nothing to train (Timer ended it" in fit(app, str(tmp_path), 3, *limit).err
    assert fit(app, str(tmp_path), 1, "--trainer.max_time.hours=1").status == 0
    assert state(str(tmp_path))["global_step"] == 7


def test_a_callback_of_the_users_own_that_stopped_training_stops_it_no_longer_once_it_is_left_out(
    app: App, tmp_path: Path
) -> None:
    stops = ("--trainer.callbacks+=tests.support.models.Stops",)
    assert fit(app, str(tmp_path), 1, *stops).status == 0
    assert state(str(tmp_path))["global_step"] == 5
    assert "nothing to train (Stops ended it" in fit(app, str(tmp_path), 1, *stops).err
    assert fit(app, str(tmp_path), 1).status == 0
    assert state(str(tmp_path))["global_step"] == 7
