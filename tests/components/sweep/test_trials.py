"""Trials as real processes, each of which leaves the records of a run: order, failures, cuts and what is continued."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from torchx.runner import Runner, get_runner
from torchx.specs import AppDef, Role

from components import stages
from components.stages import LaunchTarget
from components.sweep import trials as trials_module
from components.sweep.folder import SweepFolder, TrialRecord, TrialState
from components.sweep.pool import StagePool
from components.sweep.preview import MonitoredMetric
from components.sweep.space import SweepSpace
from components.sweep.study import OptunaStudy
from components.sweep.trials import SweepTrials, TrialPlan
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir

LOSSES = {"1": "0.9,0.5", "2": "0.9,0.3", "3": "0.9,0.4"}
Flags = Callable[[TrialRecord], Mapping[str, object]]


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    with get_runner() as found:
        yield found


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials_module, "_LOOK", 0.1)
    monkeypatch.setattr(trials_module, "_WAIT", 0.05)
    monkeypatch.setattr(stages, "_LOCAL_POLL", 0.05)


def grid(values: str = "1,2,3") -> SweepSpace:
    return SweepSpace.parse([f"a={values}"], [], [], None, 0)


class Swept:
    """A sweep of stand-ins in a folder, which may be run again and again.

    Args:
        runner: TorchX's.
        url: The folder.
        flags: Of the stand-in, by the trial.
    """

    def __init__(self, runner: Runner, url: str, flags: Flags, space: SweepSpace | None = None) -> None:
        self.runner, self.url, self.space = runner, url, space or grid()
        self.flags = flags
        self.trials: SweepTrials | None = None

    def run(self, parallel: int = 2, study: OptunaStudy | None = None) -> list[TrialRecord]:
        folder = SweepFolder(self.url)
        folder.take()
        folder.begin({}, MonitoredMetric("val_loss", "min"), [])
        logs = str(Path(self.url).parent / "logs") if "://" not in self.url else ""
        pool = StagePool(LaunchTarget(self.runner, "local_cwd", {"log_dir": logs} if logs else {}))
        plan = TrialPlan(self.space, parallel, lambda trial, _: self.training(trial), named=False, study=study)
        try:
            self.trials = SweepTrials(folder, plan, pool, folder.records(self.space.keys))
            self.trials.run()
        finally:
            pool.close()
            folder.release()
        return folder.records(self.space.keys)

    def training(self, trial: TrialRecord) -> AppDef:
        flags = [f"--{name}={value}" for name, value in self.flags(trial).items()]
        args = ["-m", "tests.support.swept", f"{self.url}/{trial.name}", *flags]
        return AppDef("train", [Role("train", image="", entrypoint=sys.executable, args=args)])

    def attempts(self, trial: int) -> int:
        return len(RunDir(f"{self.url}/{trial:04d}").attempts())


def by_value(trial: TrialRecord) -> Mapping[str, object]:
    return {"values": LOSSES[str(trial.values["a"])]}


def test_each_trial_is_run_once_and_has_its_best_value(runner: Runner, storage: str) -> None:
    swept = Swept(runner, storage, by_value)
    found = swept.run()
    assert [(each.values["a"], each.state, each.status, each.value) for each in found] == [
        *(("1", TrialState.FINISHED, 0, 0.5), ("2", TrialState.FINISHED, 0, 0.3), ("3", TrialState.FINISHED, 0, 0.4)),
    ]
    assert swept.run() == found, "the same command again changes nothing"
    assert [swept.attempts(trial) for trial in (1, 2, 3)] == [1, 1, 1]


def test_as_many_at_once_as_asked_for_and_no_more(runner: Runner, tmp_path: Path) -> None:
    swept = Swept(runner, str(tmp_path / "s"), lambda _: {"values": "1", "seconds": 0.5}, grid("1,2,3,4,5"))
    most, over = [0], threading.Event()

    def count() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], len(list(tmp_path.glob("s/0*/lease.json"))))

    thread = threading.Thread(target=count)
    thread.start()
    swept.run(parallel=3)
    over.set()
    thread.join()
    assert 2 <= most[0] <= 3


def test_a_failed_trial_is_said_with_status_and_reason_and_ends_no_other(
    runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def flags(trial: TrialRecord) -> Mapping[str, object]:
        failing = {"status": 1, "reason": "crash: no memory", "values": ""}
        return failing if trial.values["a"] == "2" else by_value(trial)

    swept = Swept(runner, str(tmp_path / "s"), flags)
    found = swept.run()
    assert [each.state for each in found] == [TrialState.FINISHED, TrialState.FAILED, TrialState.FINISHED]
    assert (found[1].status, found[1].reason) == (1, "crash: no memory")
    assert "0002: failed with status 1: crash: no memory (" in capfd.readouterr().err
    swept.run()
    assert swept.attempts(2) == 1, "nor is it begun again, unless that is asked for"


def test_a_mistake_that_all_trials_share_ends_the_sweep_and_is_no_trials_fate(runner: Runner, tmp_path: Path) -> None:
    def wrong(_: TrialRecord) -> Mapping[str, object]:
        return {"status": 2, "reason": "user must change: no data at /data"}

    swept = Swept(runner, str(tmp_path / "s"), wrong, grid("1,2,3,4,5,6"))
    with pytest.raises(UserError, match="no data at /data"):
        swept.run(parallel=1)
    assert not (tmp_path / "s" / "0003").exists(), "two are enough to tell"
    swept.flags = lambda _: {"values": "0.5"}
    assert [each.state for each in swept.run()][1:] == [TrialState.FINISHED] * 5


def test_a_mistake_of_one_trial_alone_is_its_own(runner: Runner, tmp_path: Path) -> None:
    def flags(trial: TrialRecord) -> Mapping[str, object]:
        a = trial.values["a"]
        return {"status": 2, "reason": f"a={a} is too large"} if a in "12" else by_value(trial)

    states = [each.state for each in Swept(runner, str(tmp_path / "s"), flags).run(parallel=1)]
    assert states == [TrialState.FAILED, TrialState.FAILED, TrialState.FINISHED]


def test_a_metric_that_is_never_logged_ends_the_sweep_with_what_was(runner: Runner, tmp_path: Path) -> None:
    swept = Swept(runner, str(tmp_path / "s"), lambda _: {"values": "0.5", "name": "val_acc"})
    with pytest.raises(UserError, match=r"metric='val_loss': trial 0001 .* logged val_acc"):
        swept.run(parallel=1)


def test_a_trial_that_diverged_has_failed_and_the_others_count(runner: Runner, tmp_path: Path) -> None:
    def flags(trial: TrialRecord) -> Mapping[str, object]:
        return {"values": "nan,nan"} if trial.values["a"] == "1" else by_value(trial)

    found = Swept(runner, str(tmp_path / "s"), flags).run(parallel=1)
    assert [each.state for each in found] == [TrialState.FAILED, TrialState.FINISHED, TrialState.FINISHED]
    assert found[0].reason == "val_loss was never a number at a checkpoint"


def test_a_preempted_trial_begins_again_and_resumes(runner: Runner, tmp_path: Path) -> None:
    url = str(tmp_path / "s")

    def flags(trial: TrialRecord) -> Mapping[str, object]:
        return {"values": "0.9,0.5", **({"status": 75, "reason": "preempted"} if trial.starts == 1 else {})}

    swept = Swept(runner, url, flags, grid("1"))
    (found,) = swept.run()
    assert (found.state, found.starts, found.value) == (TrialState.FINISHED, 2, 0.5)
    assert swept.attempts(1) == 2


def test_trials_that_were_cut_begin_again_and_finished_ones_do_not(runner: Runner, tmp_path: Path) -> None:
    swept = Swept(runner, str(tmp_path / "s"), by_value)
    swept.run(parallel=1)
    # As if the sweep had been killed: before it knew the end of trial 2, and in the middle of trial 3.
    for trial in (2, 3):
        path = tmp_path / "s" / "trials" / f"{trial:04d}.json"
        path.write_text(path.read_text().replace('"finished"', '"running"').replace('"status": 0', '"status": null'))
    run = RunDir(f"{swept.url}/0003")
    run.remove(RunDir.record(2))
    run.write_json(RunDir.attempt(1), {"attempt": 1, "started": "2026-01-01T00:00:00Z", "ended": None})
    found = swept.run()
    assert [each.value for each in found] == [0.5, 0.3, 0.4]
    assert [swept.attempts(trial) for trial in (1, 2, 3)] == [1, 1, 2]


def test_a_trial_that_still_runs_is_waited_for_and_not_begun_twice(runner: Runner, tmp_path: Path) -> None:
    url = str(tmp_path / "s")
    swept = Swept(runner, url, by_value, grid("1"))
    folder = SweepFolder(url)
    folder.take()
    folder.begin({}, MonitoredMetric("val_loss", "min"), [])
    folder.write(TrialRecord(1, {"a": "1"}, starts=1))
    folder.release()
    left = subprocess.Popen([sys.executable, "-m", "tests.support.swept", f"{url}/0001", "--values=0.2", "--seconds=2"])
    try:
        while not Path(url, "0001", "lease.json").exists():
            time.sleep(0.05)
        (found,) = swept.run()
    finally:
        left.wait(20)
    assert (found.state, found.value, found.starts) == (TrialState.FINISHED, 0.2, 1)
    assert swept.attempts(1) == 1


def test_optuna_stops_what_is_worse_and_says_so(
    runner: Runner, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    space = SweepSpace.parse([], [], ["a=uniform:0:1"], 8, 3)

    def flags(trial: TrialRecord) -> Mapping[str, object]:
        bad = 5.0 if trial.trial > 6 else 0.0
        losses = [bad + 1 / step for step in range(1, 60 if bad else 4)]
        return {"values": ",".join(map(str, losses)), "seconds": 0.1 if bad else 0.0}

    study = OptunaStudy(space, "min", "median", parallel=True)
    found = Swept(runner, str(tmp_path / "s"), flags, space).run(parallel=3, study=study)
    assert [each.state for each in found] == [TrialState.FINISHED] * 6 + [TrialState.PRUNED] * 2
    assert all(len(each.reported) < 59 for each in found[6:])
    for each in found[6:]:
        record = RunDir(f"{tmp_path}/s/{each.name}").read_json(RunDir.attempt(1))
        assert record is not None
        assert record["status"] == 75, "asked to stop, not killed"
    assert "0007: pruned after" in capfd.readouterr().out


def test_a_cancelled_sweep_leaves_no_process_and_goes_on_later(runner: Runner, tmp_path: Path) -> None:
    swept = Swept(runner, str(tmp_path / "s"), lambda _: {"values": "0.9,0.8,0.7", "seconds": 1.0}, grid("1,2"))

    def interrupt(*_: Any) -> None:
        if len(list(tmp_path.glob("s/0*/checkpoints/*.json"))) >= 2:
            raise KeyboardInterrupt

    original = SweepTrials._watch
    SweepTrials._watch = interrupt  # type: ignore[assignment, method-assign]
    try:
        with pytest.raises(KeyboardInterrupt):
            swept.run()
    finally:
        SweepTrials._watch = original  # type: ignore[method-assign]
    assert not list(tmp_path.glob("s/0*/lease.json")), "all trials have ended"
    found = swept.run()
    assert [(each.state, each.value) for each in found] == [(TrialState.FINISHED, 0.7)] * 2
    assert [swept.attempts(trial) for trial in (1, 2)] == [2, 2]


def test_what_a_start_says_that_is_refused_is_the_reason(runner: Runner, tmp_path: Path) -> None:
    def flags(trial: TrialRecord) -> Mapping[str, object]:
        a = trial.values["a"]
        return by_value(trial) if a == "3" else {"refuse": f"trainer.strategy={a!r} must be ddp"}

    found = Swept(runner, str(tmp_path / "s"), flags).run(parallel=1)
    assert [(each.state, each.reason) for each in found[:2]] == [
        (TrialState.FAILED, f"trainer.strategy='{each}' must be ddp") for each in (1, 2)
    ]
    assert found[2].state is TrialState.FINISHED
