"""Kill a run: its curves go on without a gap, an overlap or a second run."""

import sys
from pathlib import Path

import pytest

from pipeline.run.run_dir import LOGS, RunDir
from tests.support.commands import Ended, command
from tests.support.curves import curves

ARGUMENTS = (
    *("fit", "--model=tests.support.curves.Talkative", "--data=pipeline.data.DataModule", "--data.batch_size=16"),
    *("--data.train=tests.support.models.Rows", "--data.val=tests.support.models.Rows"),
    *("--trainer.max_epochs=4", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=2"),
    *("--checkpoints.every_n_steps=5", "--trainer.callbacks+=LearningRateMonitor"),
)


def trained(url: str, *more: str) -> Ended:
    return command(sys.executable, "-m", "pipeline", *ARGUMENTS, "--run_dir", url, *more)


def shown(url: str, copy: Path) -> dict[str, list[tuple[int, float]]]:
    run = RunDir(url)
    run.fs.get(f"{run.path}/{LOGS}/", str(copy), recursive=True)
    return curves(next(copy.rglob("events.*")).parent)


def straight(tmp_path: Path) -> dict[str, list[tuple[int, float]]]:
    assert trained(str(tmp_path / "straight")).status == 0
    return shown(str(tmp_path / "straight"), tmp_path / "of-straight")


@pytest.mark.timeout(180)
def test_the_curves_of_a_run_that_is_killed_are_those_of_a_straight_one(storage: str, tmp_path: Path) -> None:
    """Kills in an epoch, after a validation and before its save, and twice within one step of the same checkpoint."""
    kills = (
        "--trainer.callbacks+=tests.support.curves.Killed",
        f"--trainer.callbacks.notes={tmp_path}/notes",
        "--trainer.callbacks.at=step 4,step 13,step 14,validating 2",
    )
    for _ in range(4):
        assert trained(storage, *kills).status == -9
    ended = trained(storage, *kills)
    assert ended.status == 0, ended.text
    expected = straight(tmp_path)
    assert {"loss_step", "loss_epoch", "train_loss", "val_loss", "own", "by_epoch", "epoch"} <= expected.keys()
    assert any(tag.startswith("lr-") for tag in expected)
    assert shown(storage, tmp_path / "copy") == expected
    folders = {path.parent for path in (tmp_path / "copy").rglob("events.*")}
    assert len(folders) == 1, "one run in TensorBoard"


@pytest.mark.timeout(180)
def test_the_curves_of_a_run_that_is_preempted_in_a_validation_and_killed_after_it(tmp_path: Path) -> None:
    run, notes = str(tmp_path / "run"), f"--trainer.callbacks.notes={tmp_path}/notes"
    stops = "--trainer.callbacks+=tests.support.curves.Killed", notes, "--trainer.callbacks.at=validating 1"
    kills = "--trainer.callbacks+=tests.support.curves.Killed", notes, "--trainer.callbacks.at=step 16"
    assert trained(run, *stops, "--trainer.callbacks.stop=true", "--checkpoints.every_n_steps=100").status == 75
    assert trained(run, *kills, "--checkpoints.every_n_steps=100").status == -9
    ended = trained(run, "--checkpoints.every_n_steps=100")
    assert ended.status == 0, ended.text
    assert shown(run, tmp_path / "copy") == straight(tmp_path)
