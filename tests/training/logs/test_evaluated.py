"""What a test found stands among the curves of its run, once."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.run.run_dir import LOGS, RECEIPT, RunDir
from pipeline.training.logs.evaluated import log_evaluation
from tests.support.commands import Ended
from tests.support.runs import fit

App = Callable[..., Ended]


def shown(run: RunDir, folder: Path, tag: str) -> list[tuple[int, float]]:
    run.fs.get(f"{run.path}/{LOGS}/", str(folder), recursive=True)
    found = EventAccumulator(str(next(folder.rglob("events.*")).parent)).Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_a_test_adds_its_metrics_to_the_curves_of_its_run_at_the_checkpoints_step(
    app: App, storage: str, tmp_path: Path
) -> None:
    run = RunDir(storage)
    assert fit(app, storage, 1).status == 0
    for _ in range(2):
        ended = app("test", "--run_dir", storage, *("--data.test", "tests.support.models.Rows"))
        assert ended.status == 0, ended.text
    receipt = run.read_json(RECEIPT)
    assert receipt is not None
    ((name, value),) = receipt["metrics"].items()
    (step,) = run.steps()["json"]
    assert shown(run, tmp_path / "copy", name) == [(step, pytest.approx(value, rel=1e-6))]


def test_a_test_with_another_result_is_shown_beside_the_first(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    for value in (0.25, 0.25, 0.5):
        log_evaluation(run, {"test_loss": value, "test_nan": None}, 7)
    assert shown(run, tmp_path / "copy", "test_loss") == [(7, 0.25), (7, 0.5)]


def test_logs_that_cannot_be_written_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / LOGS).write_text("a file in the place of the folder")
    log_evaluation(RunDir(str(tmp_path)), {"test_loss": math.pi}, 7)
    assert f"the test metrics are not logged in {tmp_path}/{LOGS}: " in caplog.text
