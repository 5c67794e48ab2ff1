"""Logs reach every storage, and a log that cannot be written is a warning."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.checkpoint import saver
from pipeline.process.topology import Topology
from pipeline.run.run_dir import LOGS, RunDir
from pipeline.training.logs import mirror
from pipeline.training.logs.event_files import read_events
from pipeline.training.logs.tensorboard import RunLogger, of_fit
from tests.support.commands import Ended
from tests.support.models import Regression
from tests.support.runs import fit, written_sizes

App = Callable[..., Ended]


def test_logs_reach_every_storage_and_keep_what_earlier_attempts_logged(app: App, storage: str) -> None:
    run = RunDir(storage)
    for epochs in (1, 2):
        fit(app, storage, epochs)
    names = [name.rsplit("/", 1)[-1] for name in run.fs.ls(f"{run.path}/logs", detail=False)]
    assert sum(name.startswith("events.out.tfevents") for name in names) == 2
    assert "hparams.yaml" in names


def values(folder: Path) -> dict[int, float]:
    """What a TensorBoard that is started on the folder shows of the loss."""
    found = EventAccumulator(str(next(folder.rglob("events.*")).parent)).Reload()
    return {event.step: event.value for event in found.Scalars("loss")}


def ended(logger: RunLogger) -> None:
    """End as a trainer does."""
    logger.finalize("success")
    if logger.mirror is not None:
        logger.mirror.finish(20)


def test_what_is_logged_is_in_the_runs_own_folder_or_copied_there(storage: str, tmp_path: Path) -> None:
    run = RunDir(storage)
    logger = RunLogger(run)
    for step in (1, 2):
        logger.log_metrics({"loss": step / 4}, step)
    logger.save()
    ended(logger)
    run.fs.get(f"{run.path}/{LOGS}/", str(tmp_path / "copy"), recursive=True)
    assert values(tmp_path / "copy") == {1: 0.25, 2: 0.5}


def test_of_a_long_run_each_byte_is_sent_once_and_tensorboard_reads_all_of_it(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "_SECONDS_BETWEEN_COPIES", 0.0)
    run = RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/run")
    logger = RunLogger(run)
    assert logger.mirror is not None
    sent = written_sizes(monkeypatch)
    for interval in range(12):
        for step in range(100):
            logger.log_metrics({"loss": float(interval)}, 100 * interval + step)
        logger.save()
        if logger.mirror._thread is not None:
            logger.mirror._thread.join(20)
        if interval == 10:  # as by kill -9: what is lost is less than one interval
            run.fs.get(f"{run.path}/{LOGS}/", str(tmp_path / "killed"), recursive=True)
            assert len(values(tmp_path / "killed")) == 1100
    ended(logger)
    stored = run.fs.find(f"{run.path}/{LOGS}", detail=True).values()
    assert sum(sent) == sum(int(info["size"]) for info in stored)
    run.fs.get(f"{run.path}/{LOGS}/", str(tmp_path / "copy"), recursive=True)
    assert values(tmp_path / "copy") == {step: float(step // 100) for step in range(1200)}


def test_the_url_is_where_lightning_puts_checkpoints_and_the_log_dir_can_be_written_by_open(storage: str) -> None:
    logger = RunLogger(RunDir(storage))
    assert logger.save_dir == RunDir(storage).url_of(LOGS)
    assert "://" not in logger.log_dir


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
    ended(logger)
    assert values(tmp_path) == {7: 0.25}, "once it can be written again, it is"
    with pytest.raises(ValueError, match="not supported"):
        logger.log_metrics({"loss": 0.5}, "x")  # type: ignore[arg-type]


def test_a_storage_that_refuses_a_copy_is_a_warning(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(f"{s3}-no-such-bucket/{tmp_path.name}")
    logger = RunLogger(run)
    logger.log_metrics({"loss": 0.5}, 1)
    ended(logger)
    assert f"logs were not copied to {run.url_of(LOGS)}/events.out.tfevents." in caplog.text


def protos(run: RunDir) -> list[Any]:
    """All events of a run, in order."""
    names = sorted(name for name in run.names(LOGS) if "tfevents" in name)
    return [event for name in names for event in read_events(run.read(f"{LOGS}/{name}") or b"")]


class Traced(Regression):
    """Has an example, and draws a random number for it."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 4)
        self.fails = fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise ZeroDivisionError("no such example")
        return self.layers(x + torch.rand(1))


def test_the_graph_of_a_model_with_an_example_is_logged_once_a_run_and_draws_no_random_number(tmp_path: Path) -> None:
    run, model = RunDir(str(tmp_path)), Traced()
    for step in (0, 7):
        logger, before = RunLogger(run, step=step), torch.get_rng_state()
        logger.log_graph(model)
        assert torch.equal(torch.get_rng_state(), before)
        logger.finalize("success")
    (graph,) = (event.graph_def for event in protos(run) if event.graph_def)
    assert b"addmm" in graph or b"linear" in graph


def test_a_model_that_cannot_be_traced_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    RunLogger(RunDir(str(tmp_path)), step=0).log_graph(Traced(fails=True))
    assert "no graph of Traced in TensorBoard: ZeroDivisionError: no such example" in caplog.text
    assert capsys.readouterr().out == ""


def test_what_was_logged_before_a_commit_is_in_the_store_before_it(
    app: App, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by kill -9 right after each commit: its values are there."""
    run, seen = RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/run"), []
    real = saver.write_record

    def write_record(where: RunDir, record: Any, **more: Any) -> Any:
        steps = [event.step for event in protos(where) if any(v.tag == "train_loss" for v in event.summary.value)]
        seen.append((record.step, max(steps)))
        return real(where, record, **more)

    monkeypatch.setattr(saver, "write_record", write_record)
    assert fit(app, run.url, 1, "--checkpoints.every_n_steps=2", "--trainer.log_every_n_steps=1").status == 0
    assert len(seen) >= 3
    assert all(reached >= step - 1 for step, reached in seen), seen


def test_what_a_killed_attempt_had_not_sent_is_sent_by_the_next_one_on_this_machine(s3: str) -> None:
    run = RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/run")
    topology = Topology.from_environment({})
    killed = of_fit(run, topology, 0)()
    killed.log_metrics({"loss": 0.5}, 0)
    killed.save()
    assert run.names(LOGS) == []
    next_one = of_fit(run, topology, 0)()
    assert [name for name in run.names(LOGS) if "tfevents" in name]
    ended(next_one)
