"""A run's lineage, as TorchX's own tracker reads it: train, then evaluate and predict, whose source is the training."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from torchx.tracker.backend.fsspec import FsspecTracker

from pipeline.run import lineage
from tests.support.commands import ROOT, Ended, command
from tests.support.models import Regression
from tests.support.runs import FIT

App = Callable[..., Ended]
TRAIN, EVALUATE, PREDICT = (f"local_cwd://torchx/{name}-x1" for name in ("train", "evaluate", "predict"))
FACTORY = "torchx.tracker.backend.fsspec:create"
"""What an entry point names; TorchX takes the module's name as well."""


class Predicts(Regression):
    """A model of rows that predicts."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


@pytest.fixture
def as_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this process one of a TorchX job, for which a tracker is configured."""
    (tmp_path / "tracker").mkdir()
    (tmp_path / "tracker.conf").write_text(f"# ours\nprotocol=file\nroot_path={tmp_path}/tracker\n")
    monkeypatch.setattr(lineage, "_said", set())
    monkeypatch.setenv("TORCHX_TRACKERS", "fsspec")
    monkeypatch.setenv("TORCHX_TRACKER_FSSPEC_CONFIG", str(tmp_path / "tracker.conf"))
    return lambda job: monkeypatch.setenv("TORCHX_JOB_ID", job)


def tracker(folder: Path) -> FsspecTracker:
    return FsspecTracker(fsspec.filesystem("file"), str(folder / "tracker"))


def sources(folder: Path, job: str) -> list[tuple[str, Any]]:
    return [(each.source_run_id, each.artifact_name) for each in tracker(folder).sources(job)]


def test_torchx_reads_what_was_trained_evaluated_and_predicted(
    app: App, as_job: Callable[[str], None], tmp_path: Path
) -> None:
    run, rows = str(tmp_path / "run"), "tests.support.models.Rows"
    as_job(TRAIN)
    model = "--model=tests.run.test_lineage.Predicts"
    more = (model, "--data.val", rows, "--data.test", rows, "--data.predict", rows, "--checkpoints.monitor=val_loss")
    ended = app(*FIT, *more, "--run_dir", run)
    assert ended.status == 0, ended.err
    as_job(EVALUATE)
    assert app("test", "--run_dir", run).status == 0
    as_job(PREDICT)
    ended = app("predict", "--run_dir", run)
    assert ended.status == 0, ended.err

    read = tracker(tmp_path)
    assert sorted(read.run_ids()) == sorted([TRAIN, EVALUATE, PREDICT])
    assert sorted(read.run_ids(parent_run_id=TRAIN)) == sorted([EVALUATE, PREDICT])
    assert sources(tmp_path, EVALUATE) == sources(tmp_path, PREDICT) == [(TRAIN, "checkpoint")]
    assert sources(tmp_path, TRAIN) == []
    trained = read.metadata(TRAIN)
    assert (trained["status"], trained["command"], trained["last_step"]) == (0, "fit", 14)
    assert str(trained["config_digest"]).startswith("sha256:")
    assert isinstance(trained["val_loss"], float)
    assert read.artifacts(TRAIN)["run_dir"].path == run
    assert Path(read.artifacts(TRAIN)["checkpoint"].path).exists()
    assert isinstance(read.metadata(EVALUATE)["test_loss"], float)
    assert Path(read.artifacts(EVALUATE)["receipt"].path).exists()
    assert read.metadata(PREDICT)["samples_predicted"] == 101
    assert Path(read.artifacts(PREDICT)["receipt"].path).exists()


def test_a_later_attempt_takes_the_place_of_the_one_before_it(
    app: App, as_job: Callable[[str], None], tmp_path: Path
) -> None:
    as_job(TRAIN)
    line = (*FIT, "--run_dir", tmp_path / "run")
    with pytest.raises(RuntimeError):
        app(*line, "--model=tests.support.models.FailsToTrain")
    assert tracker(tmp_path).metadata(TRAIN)["status"] == 1
    assert app(*line).status == 0
    found = tracker(tmp_path).metadata(TRAIN)
    assert (found["status"], found["attempt"], found["reason"]) == (0, 2, "done")


def test_a_parent_that_torchx_names_is_a_source(
    as_job: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHX_PARENT_RUN_ID", "sweep://a/b")
    as_job(TRAIN)
    lineage._record({"command": "fit"}, {}, None)
    assert sources(tmp_path, TRAIN) == [("sweep://a/b", None)]


def test_nothing_is_recorded_unless_torchx_asks_for_it(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHX_TRACKERS", raising=False)
    monkeypatch.setattr(lineage, "_record", lambda *_: pytest.fail("nobody has asked"))
    assert app(*FIT, "--run_dir", tmp_path / "run", "--trainer.max_steps=1").status == 0


@pytest.mark.parametrize("config", ["missing", "other", "unwritable", "unknown"])
def test_a_tracker_that_cannot_be_written_is_one_line_and_fails_nothing(
    config: str, app: App, as_job: Callable[[str], None], tmp_path: Path
) -> None:
    as_job(TRAIN)
    texts = {"other": "url=http://mlflow\n", "unwritable": "protocol=file\nroot_path=/proc/none\n"}
    texts["unknown"] = "protocol=nope\nroot_path=x\n"
    if config == "missing":
        (tmp_path / "tracker.conf").unlink()
    else:
        (tmp_path / "tracker.conf").write_text(texts[config])
    ended = app(*FIT, "--run_dir", tmp_path / "run", "--trainer.max_steps=1")
    assert ended.status == 0, ended.err
    lines = [line for line in ended.err.splitlines() if "recorded" in line]
    assert len(lines) == 1, ended.err


def test_a_file_of_settings_is_read_as_torchx_reads_it(tmp_path: Path) -> None:
    (tmp_path / "s").write_text(
        "# no=thing\nprotocol = s3\nclient_kwargs.endpoint_url=http://h:1\nroot_path=b/t\nempty=\n"
    )
    assert lineage._settings(str(tmp_path / "s")) == {
        "protocol": "s3",
        "root_path": "b/t",
        "client_kwargs": {"endpoint_url": "http://h:1"},
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_torchxs_own_commands_list_what_its_components_have_run(tmp_path: Path) -> None:
    (tmp_path / "tracker").mkdir()
    (tmp_path / "tracker.conf").write_text(f"protocol=file\nroot_path={tmp_path}/tracker\n")
    (tmp_path / ".torchxconfig").write_text(
        f"[torchx:tracker]\nfsspec=\n\n[tracker:fsspec]\nconfig={tmp_path}/tracker.conf\n"
    )
    run, log = f"--run_dir={tmp_path}/run", f"log_dir={tmp_path}/logs"
    env = {"PYTHONPATH": str(ROOT)}
    config = f"--config={ROOT}/pipeline/configs/digits.yaml"
    for line in (("train", run, config, "--cpu=1", "--", "--trainer.max_epochs=1"), ("evaluate", run)):
        ended = command("torchx", "run", "-s", "local_cwd", "-cfg", log, *line, cwd=tmp_path, env=env, timeout=100)
        assert ended.status == 0, ended.text
    asked = {**env, "TORCHX_TRACKERS": FACTORY, f"TORCHX_TRACKER_{FACTORY.upper()}_CONFIG": f"{tmp_path}/tracker.conf"}

    def listed(*what: str) -> str:
        ended = command("torchx", "tracker", "list", *what, cwd=tmp_path, env=asked)
        assert ended.status == 0, ended.text
        return ended.out

    jobs = [line.strip() for line in listed("jobs").splitlines() if "://" in line]
    (trained,) = [job for job in jobs if "/train-" in job]
    (evaluated,) = [job for job in jobs if "/evaluate-" in job]
    assert [line.strip() for line in listed("jobs", "--parent-run-id", trained).splitlines()[2:]] == [evaluated]
    assert "test_loss" in listed("metadata", evaluated)
    assert f"{tmp_path}/run/checkpoints/step-" in listed("artifacts", trained)
    assert os.path.exists(tmp_path / "run/evaluation/receipt.json")
