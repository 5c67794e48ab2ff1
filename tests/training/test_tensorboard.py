"""Logs reach every storage, and a log that cannot be written is a warning."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pipeline.run.run_dir import LOGS, RunDir
from pipeline.training import tensorboard
from pipeline.training.tensorboard import RunLogger
from tests.support.commands import Ended
from tests.support.runs import fit

App = Callable[..., Ended]


def test_logs_reach_every_storage_and_keep_what_earlier_attempts_logged(app: App, storage: str) -> None:
    run = RunDir(storage)
    for epochs in (1, 2):
        fit(app, storage, epochs)
    names = [name.rsplit("/", 1)[-1] for name in run.fs.ls(f"{run.path}/logs", detail=False)]
    assert sum(name.startswith("events.out.tfevents") for name in names) == 2
    assert "hparams.yaml" in names


def values(folder: Path) -> dict[int, float]:
    found = {}
    for path in folder.rglob("events.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found[event.step] = value.tensor.float_val[0]
    return found


def test_what_is_logged_is_in_the_runs_own_folder_or_copied_there(storage: str, tmp_path: Path) -> None:
    run = RunDir(storage)
    logger = RunLogger(run)
    for step in (1, 2):
        logger.log_metrics({"loss": step / 4}, step)
    logger.save()
    logger.finalize("success")
    run.fs.get(f"{run.path}/{LOGS}/", str(tmp_path / "copy"), recursive=True)
    assert values(tmp_path / "copy") == {1: 0.25, 2: 0.5}


def test_a_copy_is_made_behind_training_once_the_last_one_is_old(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(f"{s3}/{tmp_path.name}/run")
    logger = RunLogger(run)
    logger.log_metrics({"loss": 0.5}, 1)
    logger.save()
    assert logger._copying is None, "the last copy is young"
    monkeypatch.setattr(tensorboard, "_SECONDS_BETWEEN_COPIES", 0.0)
    logger.save()
    assert logger._copying is not None
    logger._copying.join(20)
    run.fs.get(f"{run.path}/{LOGS}/", str(tmp_path / "copy"), recursive=True)
    assert values(tmp_path / "copy") == {1: 0.5}


def test_a_folder_that_cannot_be_written_is_one_warning_and_any_other_error_is_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / LOGS).write_text("a file in the place of the folder")
    logger = RunLogger(RunDir(str(tmp_path)))
    for step in range(3):
        logger.log_metrics({"loss": 0.5}, step)
    logger.finalize("success")
    assert caplog.text.count("logs are not written: ") == 1
    (tmp_path / LOGS).unlink()
    logger.log_metrics({"loss": 0.25}, 7)
    logger.finalize("success")
    assert values(tmp_path) == {7: 0.25}, "once it can be written again, it is"
    with pytest.raises(ValueError, match="not supported"):
        logger.log_metrics({"loss": 0.5}, "x")  # type: ignore[arg-type]


def test_a_storage_that_refuses_a_copy_is_a_warning(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(f"{s3}-no-such-bucket/{tmp_path.name}")
    logger = RunLogger(run)
    logger.log_metrics({"loss": 0.5}, 1)
    logger.finalize("success")
    assert f"logs were not copied to {run.url_of(LOGS)}/events.out.tfevents." in caplog.text
