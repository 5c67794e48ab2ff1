"""Where the time goes: nothing is left out or counted twice, and a vanished attempt is known by its lease."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from pipeline.process.topology import Topology
from pipeline.run.attempts import AttemptLog
from pipeline.run.goodput import OTHER, REPEATED, SAVING, STARTING, USEFUL, VALIDATING, WAITING, Goodput
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.commands import Ended
from tests.support.processes import fit_process
from tests.support.runs import FIT, attempt, slow_saves

App = Callable[..., Ended]
FOREIGN = (*(each for each in FIT if not each.startswith("--data")), "--data=tests.support.models.Own")


def test_every_second_goes_to_one_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    goodput = Goodput()
    before = goodput.as_dict()["seconds"][STARTING]  # the age of this process

    def spend(seconds: float) -> None:
        clock[0] += seconds

    spend(5)
    goodput.known = 12
    goodput.enter(WAITING)  # the first batch belongs to starting
    spend(1)
    for step in (10, 11, 12, 13):
        goodput.steps(step)
        spend(2)
        goodput.enter(WAITING)
        spend(0.5)
    goodput.enter(VALIDATING)
    spend(3)
    with goodput.during(SAVING):
        spend(0.25)
    spend(3)
    goodput.enter(OTHER)
    goodput.ends(14)
    spend(0.125)
    found = goodput.as_dict()
    assert found["seconds"] == {
        STARTING: pytest.approx(before + 6),
        USEFUL: 4.0,
        REPEATED: 4.0,
        WAITING: 2.0,
        SAVING: 0.25,
        VALIDATING: 6.0,
        "other": 0.125,
    }
    assert found["share"] == pytest.approx(4 / sum(found["seconds"].values()), abs=1e-4)
    assert goodput.step == 14


@pytest.mark.timeout(90)
def test_an_attempt_that_was_killed_is_completed_from_its_lease_and_its_steps_count_as_repeated(
    app: App, tmp_path: Path
) -> None:
    slow = ("--model=tests.support.killable.Slowly", "--checkpoints.every_n_steps=6", "--trainer.max_epochs=2")
    with fit_process(tmp_path, *slow) as running:
        running.until("saved checkpoint step 6")
        running.process.send_signal(signal.SIGKILL)
        running.ended()
        run = running.run
    first = attempt(str(run), 1)
    assert first["ended"] is None
    assert (run / LEASE).exists()
    # As if it had been heard of a little later.
    lease = json.loads((run / LEASE).read_text())
    assert lease["reached_step"] == 6
    lease["reached_step"] = 8
    (run / LEASE).write_text(json.dumps(lease))
    os.utime(run / LEASE, (0, 0))
    assert app(*FIT, *slow, "--run_dir", run).status == 0
    first, second = attempt(str(run), 1), attempt(str(run), 2)
    assert first["ended"] == lease["renewed"]
    assert first["status"] is None
    assert first["reason"].startswith("vanished: last heard of at ")
    assert first["last_step"] == 6, "what it had committed"
    assert first["goodput"]["seconds"][USEFUL] > 0
    # Two of the eight steps from the sixth to the fourteenth had been done before, of a tenth of a second each.
    assert second["first_step"] == 6
    seconds = second["goodput"]["seconds"]
    assert 0.15 < seconds[REPEATED] < seconds[USEFUL] / 2
    ended = app("verify", "--run_dir", run)
    assert "goodput of 2 attempts" in ended.out
    assert "(1 seen)" in ended.out


def test_a_stop_is_not_the_wait_for_the_last_save(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_saves(monkeypatch, 1.0)
    assert app(*FIT, "--trainer.max_epochs=1", "--run_dir", tmp_path).status == 0
    found = attempt(str(tmp_path), 1)["goodput"]
    assert found["seconds"][SAVING] > 1, "it did wait"
    assert found["behind_seconds"] > 1
    assert found["stop_seconds"] < 0.5


def test_after_a_crash_nothing_is_a_useful_step(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_saves(monkeypatch, 1.0)
    with pytest.raises(RuntimeError, match="broken"):
        app(
            *FIT,
            "--model=tests.support.models.FailsToTrain",
            "--checkpoints.every_n_steps=1",
            "--run_dir",
            tmp_path,
        )
    found = attempt(str(tmp_path), 1)["goodput"]
    assert found["seconds"][USEFUL] < found["seconds"][SAVING]
    assert found["seconds"][SAVING] > 0.9
    assert found["behind_seconds"] > 1, "so that no interval shorter than that is advised"


def test_what_lies_between_epochs_is_no_useful_step(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DataLoader.__iter__

    def begin(self: Any) -> Any:
        time.sleep(0.5)
        return real(self)

    monkeypatch.setattr(DataLoader, "__iter__", begin)
    monkeypatch.setattr(
        "tests.support.models.Regression.on_train_epoch_end", lambda self: time.sleep(0.5), raising=False
    )
    assert app(*FOREIGN, "--trainer.limit_val_batches=0", "--trainer.max_epochs=3", "--run_dir", tmp_path).status == 0
    seconds = attempt(str(tmp_path), 1)["goodput"]["seconds"]
    assert seconds[WAITING] > 0.9, "a loader starts its workers for each epoch; for the first one that is starting"
    assert seconds[OTHER] > 1.4, "what a model does at the end of its epochs"
    assert seconds[USEFUL] < seconds[OTHER], "the steps themselves take next to nothing"


def test_what_attempts_before_the_last_had_reached_is_known_too(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    run.write_json(RunDir.attempt(1), {"reached_step": 12, "last_step": 7})
    run.write_json(RunDir.attempt(2), {"reached_step": 0, "last_step": None})  # killed before its first renewal
    writer = AttemptLog()
    writer.take(run, Topology.from_environment({}))
    assert writer.goodput.known == 12
    writer.__exit__(None, None, None)
