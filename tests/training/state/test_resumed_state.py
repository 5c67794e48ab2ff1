"""Nothing may replace what was loaded before training continues."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.training.state.resumed_state import ResumedState
from pipeline.training.trainer import Trainer
from tests.support.commands import Ended
from tests.support.models import WithoutHyperparameters
from tests.support.runs import fit, listing

App = Callable[..., Ended]


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


def test_a_sample_tells_changed_weights_from_the_same_ones() -> None:
    model = WithoutHyperparameters(width=5000)
    trainer = Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.connect(model)
    resumed = ResumedState({})
    resumed.start_fit(trainer, {})
    assert sum(each.numel() for each in resumed.weights.values()) < 5000
    assert resumed.changes(trainer) == []
    model.layer.bias.data += 1
    assert resumed.changes(trainer) == ["1 of 2 weights (layer.bias)"]
