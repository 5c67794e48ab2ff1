"""Kill a run: its curves go on without a gap, an overlap or a second run."""

import sys
import uuid
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


def trained_by_an_agent(url: str, *more: str) -> Ended:
    agent = (sys.executable, "-m", "pipeline.agent", "--nproc_per_node", "2", "--max_restarts", "5", "-m", "pipeline")
    rare = ("--checkpoints.every_n_steps=1000", "--checkpoints.every_n_epochs=1000", "--trainer.accelerator=cpu")
    return command(*agent, *ARGUMENTS, *rare, "--run_dir", url, *more, timeout=170)


def shown(url: str, copy: Path) -> dict[str, list[tuple[int, float]]]:
    run = RunDir(url)
    run.fs.get(f"{run.path}/{LOGS}/", str(copy), recursive=True)
    return curves(next(copy.rglob("events.*")).parent)


def straight(tmp_path: Path) -> dict[str, list[tuple[int, float]]]:
    assert trained(str(tmp_path / "straight")).status == 0
    return shown(str(tmp_path / "straight"), tmp_path / "of-straight")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", [pytest.param("folder", marks=pytest.mark.slow), "s3"])
def test_the_curves_of_a_run_that_is_killed_are_those_of_a_straight_one(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Kills in an epoch, in a validation, and twice from the same checkpoint."""
    storage = str(tmp_path / "run")
    if kind == "s3":
        storage = f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex[:12]}/run"
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


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_curves_of_a_run_that_is_preempted_in_a_validation_and_killed_after_it(tmp_path: Path) -> None:
    run, notes = str(tmp_path / "run"), f"--trainer.callbacks.notes={tmp_path}/notes"
    stops = "--trainer.callbacks+=tests.support.curves.Killed", notes, "--trainer.callbacks.at=validating 1"
    kills = "--trainer.callbacks+=tests.support.curves.Killed", notes, "--trainer.callbacks.at=step 16"
    assert trained(run, *stops, "--trainer.callbacks.stop=true", "--checkpoints.every_n_steps=100").status == 75
    assert trained(run, *kills, "--checkpoints.every_n_steps=100").status == -9
    ended = trained(run, "--checkpoints.every_n_steps=100")
    assert ended.status == 0, ended.text
    assert shown(run, tmp_path / "copy") == straight(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_curves_of_a_run_that_resumes_from_memory_and_logs_to_a_store(s3: str, tmp_path: Path) -> None:
    """What the killed process had not sent is still on its machine."""
    url = f"{s3}/{uuid.uuid4().hex[:12]}/run"
    kills = ("--trainer.callbacks+=tests.support.curves.Killed", f"--trainer.callbacks.notes={tmp_path}/notes")
    ended = trained_by_an_agent(url, *kills, "--trainer.callbacks.at=step 7,step 12", "--model.pause=0.5")
    assert ended.status == 0, ended.text
    run = RunDir(url)
    records = [run.read_json(RunDir.attempt(number)) or {} for number in sorted(run.attempts())]
    assert "memory" in [record["resumed_from"] for record in records], "else this shows nothing"
    assert trained_by_an_agent(str(tmp_path / "straight")).status == 0
    assert shown(url, tmp_path / "copy") == shown(str(tmp_path / "straight"), tmp_path / "of-straight")
