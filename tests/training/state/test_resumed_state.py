"""Nothing may replace what was loaded before training continues."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.training.state.resumed_state import ResumedState
from pipeline.training.trainer import Trainer
from tests.support.commands import Ended
from tests.support.models import WithoutHyperparameters
from tests.support.resumes import BASE, only, same_end
from tests.support.runs import fit, listing

App = Callable[..., Ended]

BACKBONED = "--model=tests.support.models.Backboned"


def meddling(what: str, hook: str) -> tuple[str, ...]:
    return (
        "--trainer.callbacks+=tests.support.callbacks.Meddles",
        f"--trainer.callbacks.what={what}",
        f"--trainer.callbacks.hook={hook}",
    )


@pytest.mark.parametrize(
    ("what", "hook", "words"),
    [
        ("weights", "on_fit_start", "1 of 4 weights (layers.0.weight)"),
        ("weights", "on_train_start", "1 of 4 weights (layers.0.weight)"),
        ("element", "on_train_start", "1 of 4 weights (layers.0.weight)"),
        ("moments", "on_train_start", "the state of Adam (optimizer 0)"),
        ("optimizer", "on_sanity_check_end", "the state of Adam (optimizer 0)"),
        ("step", "on_train_start", "the step (7 -> 3)"),
    ],
)
def test_a_callback_that_replaces_what_was_loaded_stops_the_fit(
    app: App, tmp_path: Path, what: str, hook: str, words: str
) -> None:
    more = meddling(what, hook)
    assert fit(app, str(tmp_path), 1, *more).status == 0, "where a run begins it may"
    before = {name: value for name, value in listing(str(tmp_path)).items() if "/logs/" not in name}
    ended = fit(app, str(tmp_path), 2, *more)
    assert ended.status == 2, ended.err
    assert f"something has changed {words}" in ended.err
    assert "Traceback" not in ended.err
    after = {name: value for name, value in listing(str(tmp_path)).items() if "/logs/" not in name}
    assert after == before
    assert fit(app, str(tmp_path), 2, *meddling("nothing", hook)).status == 0


def test_a_callback_that_changes_weights_at_an_epochs_start_may_do_so(app: App, tmp_path: Path) -> None:
    more = meddling("weights", "on_train_epoch_start")
    assert fit(app, str(tmp_path), 1, *more).status == 0
    assert fit(app, str(tmp_path), 2, *more).status == 0


def test_a_name_of_the_runs_own_is_refused_to_others(app: App, tmp_path: Path) -> None:
    other = ("--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path / 'run' / 'checkpoints'}")
    ended = fit(app, str(tmp_path / "run"), 1, *other, "--trainer.callbacks.filename=step-00000007")
    assert ended.status == 2
    assert "is the name of one of the run's own checkpoints" in ended.err


@pytest.mark.parametrize("what", ["weights", "element", "data", "buffers", "moments", "optimizer", "frozen", "eval"])
def test_what_a_callback_changes_as_an_epoch_starts_is_changed_once_also_where_it_resumes_in_its_middle(
    app: App, tmp_path: Path, what: str
) -> None:
    flags = (*BASE, *meddling(what, "on_train_epoch_start"))
    straight_equals_resumed(app, tmp_path, flags, 10)


@pytest.mark.parametrize("averaging", ["WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"])
def test_weights_that_are_averaged_as_well_are_changed_once(app: App, tmp_path: Path, averaging: str) -> None:
    swa = ("--trainer.callbacks.swa_lrs=0.01", "--trainer.callbacks.swa_epoch_start=1", BACKBONED)
    more = swa if averaging == "StochasticWeightAveraging" else ()
    flags = (*BASE, f"--trainer.callbacks+={averaging}", *more, *meddling("weights", "on_train_epoch_start"))
    straight_equals_resumed(app, tmp_path, flags, 17)


@pytest.mark.parametrize("step", [3, 10, 14])
def test_a_model_that_changes_itself_as_training_and_epochs_start_does_so_once(
    app: App, tmp_path: Path, step: int
) -> None:
    straight_equals_resumed(app, tmp_path, (*BASE, "--model=tests.support.callbacks.MeddlesItself"), step)


def test_what_a_model_and_a_callback_count_and_save_by_their_hooks_is_counted_once(app: App, tmp_path: Path) -> None:
    counts = (
        "--model=tests.support.callbacks.CountsEpochs",
        "--trainer.callbacks+=tests.support.callbacks.CountsEpochsToo",
    )
    straight_equals_resumed(app, tmp_path, (*BASE, *counts), 10)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_sanity_check_start", "on_sanity_check_end", "on_train_start"])
@pytest.mark.parametrize("step", [7, 10])
def test_buffers_that_change_before_training_resumes_are_put_back(
    app: App, tmp_path: Path, hook: str, step: int
) -> None:
    straight_equals_resumed(app, tmp_path, (*BASE, *meddling("buffers", hook)), step)


def straight_equals_resumed(app: App, folder: Path, flags: tuple[str, ...], step: int) -> None:
    straight, resumed = folder / "straight", folder / "resumed"
    ended = app(*flags, "--run_dir", straight)
    assert ended.status == 0, ended.err
    only(straight, resumed, step)
    ended = app(*flags, "--run_dir", resumed)
    assert ended.status == 0, ended.err
    assert f"resumed at step {step} " in ended.err
    assert "not exact" not in ended.err
    same_end(straight, resumed)


def test_weights_of_any_type_are_told_apart_by_their_bits_and_put_back(caplog: pytest.LogCaptureFixture) -> None:
    model = WithoutHyperparameters(width=5000)
    kinds = (torch.float64, torch.bfloat16, torch.complex64, torch.bool, torch.int8)
    names = [str(kind).replace("torch.", "of_") for kind in kinds]
    for kind in kinds:
        model.register_buffer(names[kinds.index(kind)], torch.ones(3, 2).to(kind).t())
    model.register_buffer("nan", torch.full((2,), float("nan")))
    model.register_buffer("zero", torch.zeros(()))
    caplog.set_level("INFO")
    trainer = Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    resumed = ResumedState({"state_dict": {name: value.clone() for name, value in saved.items()}})
    resumed.start_fit(trainer, {})
    assert resumed.changes(trainer) == []
    model.zero.neg_()
    for name in names:
        model.get_buffer(name)[-1, -1] = 0
    resumed.start_epoch(trainer, in_epoch=False)
    assert f"something has changed {len(names) + 1} buffers ({names[0]}, {names[1]}, {names[2]}, ...)" in caplog.text
    for name, value in model.state_dict().items():
        assert same_bits(value, saved[name]), name


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(*(each.contiguous().view(-1).view(torch.uint8) for each in (left, right)))


def test_a_weight_that_no_checkpoint_holds_is_compared_by_a_sample() -> None:
    model = WithoutHyperparameters(width=5000)
    trainer = Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    resumed = ResumedState({})
    resumed.start_fit(trainer, {})
    assert resumed.changes(trainer) == []
    model.layer.bias.data += 1
    assert resumed.changes(trainer) == ["1 of 2 weights (layer.bias)"]
