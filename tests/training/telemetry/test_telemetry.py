"""The telemetry of whole fits: in the run directory, in loggers, and where Prometheus finds it."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.run.run_dir import RunDir
from pipeline.run.telemetry_record import TELEMETRY, read_telemetry
from tests.support.commands import Ended, torchrun
from tests.support.runs import FIT, logged
from tests.support.slow_steps import SHORT, slow_fit

App = Callable[..., Ended]
_SHARES = ("data", "forward_backward", "optimizer", "all_reduce", "saves", "validation", "other")


def test_each_window_is_kept_in_the_run_directory_and_logged(app: App, storage: str) -> None:
    ended = app(*slow_fit(), SHORT, "--trainer.max_epochs=10", "--run_dir", storage)
    assert ended.status == 0, ended.err
    (found,) = read_telemetry(RunDir(storage))
    assert found.header["world_size"] == 1
    assert len(found.windows) >= 3
    assert sum(window["steps"] for window in found.windows) == 70
    assert sum(window["samples"] for window in found.windows) == 1010
    assert found.windows[-1]["step"] == 70
    for window in found.windows:
        assert sum(window[f"share_{name}"] for name in _SHARES) == pytest.approx(1, abs=0.02)
    at_most = 1 / 0.01
    assert found.windows[-1]["upload_bytes_per_second"] > 0
    assert 0 < found.windows[1]["steps_per_second"] <= at_most
    assert found.windows[1]["step_p50"] >= 0.01
    assert found.windows[1]["flops_per_second"] == pytest.approx(1e6 * found.windows[1]["steps_per_second"], rel=0.01)
    if "://" not in storage:
        assert logged(storage, "telemetry/step_p50") == pytest.approx(
            {window["step"]: window["step_p50"] for window in found.windows}
        )


def test_a_resumed_run_has_the_windows_of_each_attempt(app: App, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    for epochs in (1, 3):
        ended = app(*slow_fit(seconds=0.001), SHORT, f"--trainer.max_epochs={epochs}", "--run_dir", run)
        assert ended.status == 0, ended.err
    found = read_telemetry(RunDir(run))
    assert [sum(window["steps"] for window in attempt.windows) for attempt in found] == [7, 14]
    assert [attempt.windows[-1]["step"] for attempt in found] == [7, 21]


@pytest.mark.parametrize("more", [("--telemetry_every=0",), ("--trainer.fast_dev_run=true",)])
def test_it_can_be_turned_off(app: App, tmp_path: Path, more: tuple[str, ...]) -> None:
    ended = app(*FIT, *more, "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert not (tmp_path / "run" / TELEMETRY).exists()


def test_a_run_with_another_logger_or_none_has_it_all_the_same(app: App, tmp_path: Path) -> None:
    table = ("--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}")
    for number, more in enumerate((("--trainer.logger=false",), table)):
        run = str(tmp_path / f"run-{number}")
        ended = app(*FIT, *more, "--run_dir", run)
        assert ended.status == 0, ended.err
        assert read_telemetry(RunDir(run))[0].windows
    (found,) = tmp_path.rglob("metrics.csv")
    assert "telemetry/samples_per_second" in found.read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--metrics_port=70000", "metrics_port=70000 must be a port between 1 and 65535"),
        ("--telemetry_every=-1", "telemetry_every=-1 must be a number of seconds >= 0"),
        ("--telemetry_every=.inf", "telemetry_every=inf must be a number of seconds >= 0"),
    ],
)
def test_what_cannot_be_is_refused(app: App, tmp_path: Path, flag: str, words: str) -> None:
    ended = app(*FIT, flag, "--run_dir", tmp_path / "run")
    assert ended.status == 2
    assert words in ended.err


@pytest.mark.timeout(120)
def test_all_ranks_are_summed_up_and_the_slow_one_is_named(tmp_path: Path) -> None:
    ended = torchrun(
        *(2, "-m", "pipeline", *slow_fit(seconds=0.05, rank=1), "--telemetry_every=1.5"),
        *("--trainer.max_steps=300", "--trainer.max_epochs=-1", "--run_dir", tmp_path / "run"),
    )
    assert ended.status == 0, ended.text
    (found,) = read_telemetry(RunDir(str(tmp_path / "run")))
    assert found.header["world_size"] == 2
    assert sum(window["steps"] for window in found.windows) == 300
    slow = [window for window in found.windows if window.get("slowest_rank") == 1]
    assert len(slow) > len(found.windows) / 2
    assert max(window["slowest_behind"] for window in slow) > 0.3
    assert max(window["share_all_reduce"] for window in slow) > 0.1
    assert ended.text.count("is slow: the other ranks wait for it") == 1
    assert f"rank 1 on {socket.gethostname()} is slow" in ended.text


def test_telemetry_changes_nothing_that_training_computes(app: App, tmp_path: Path) -> None:
    weights = []
    for every in (0, 0.05):
        run = tmp_path / f"every-{every}"
        ended = app(*FIT, f"--telemetry_every={every}", "--run_dir", run)
        assert ended.status == 0, ended.err
        newest = sorted((run / "checkpoints").glob("*.ckpt"))[-1]
        weights.append(torch.load(newest, weights_only=False)["state_dict"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
