"""A sweep's folder: one writer, and records that outlive it."""

from pathlib import Path

import pytest

from components.sweep.folder import SweepFolder, TrialRecord, TrialState, differences
from components.sweep.preview import MonitoredMetric
from pipeline.checkpoint.run_records import sketched, summarize
from pipeline.errors import UserError
from pipeline.run.lease import Lease
from pipeline.run.run_dir import RunDir, now
from pipeline.run.run_listing import RunTree

LOSS = MonitoredMetric("val_loss", "min")


def begun(url: str) -> SweepFolder:
    folder = SweepFolder(url)
    folder.take()
    folder.begin({"grid": {"a": ["1", "2"]}, "trials": 2}, LOSS, ["--x=1"])
    return folder


def test_what_was_asked_and_each_trial_are_read_back_on_any_storage(storage: str) -> None:
    folder = begun(storage)
    trials = [
        TrialRecord(1, {"a": "1"}, TrialState.FINISHED, 2, 0, None, 0.5, [0.7, None, 0.5]),
        TrialRecord(2, {"a": 2.5}),
    ]
    for each in trials:
        folder.write(each)
    folder.release()
    again = SweepFolder(storage)
    assert again.asked() == {"grid": {"a": ["1", "2"]}, "trials": 2}
    assert (again.name, again.metric, again.flags) == (folder.name, LOSS, ["--x=1"])
    assert again.records(["a"]) == trials


def test_two_sweeps_at_once_are_refused_and_the_next_one_may_come(tmp_path: Path) -> None:
    url = str(tmp_path / "sweep")
    folder = begun(url)
    with pytest.raises(UserError, match="another sweep runs here"):
        SweepFolder(url).take()
    folder.release()
    SweepFolder(url).take()


def test_the_folder_is_no_run_and_its_trials_are(storage: str) -> None:
    folder = begun(storage)
    run = RunDir(folder.url(TrialRecord(1, {})))
    run.write_json(RunDir.attempt(1), {"attempt": 1, "started": now(), "ended": now(), "status": 0})
    run.write_json("run.json", {"attempt": 1, "started": now(), "ended": now(), "status": 0})
    assert [each.url for each in summarize(storage)] == [run.url]
    assert [each.url for each in sketched(RunTree(storage))] == [run.url]
    folder.release()


def test_a_file_of_the_users_own_called_sweep_json_hides_no_run(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    run.write_json(RunDir.attempt(1), {"attempt": 1, "started": now(), "ended": now(), "status": 0})
    run.write("sweep.json", b"program: train.py")
    assert [each.url for each in summarize(str(tmp_path))] == [run.url]


def test_the_directory_of_a_run_or_one_with_foreign_numbers_is_refused(tmp_path: Path) -> None:
    RunDir(str(tmp_path / "run")).write_json(RunDir.attempt(1), {"attempt": 1})
    with pytest.raises(UserError, match="is the directory of a run"):
        SweepFolder(str(tmp_path / "run")).asked()
    (tmp_path / "other" / "0001").mkdir(parents=True)
    with pytest.raises(UserError, match="has 0001 in it"):
        SweepFolder(str(tmp_path / "other")).asked()
    assert not (tmp_path / "run" / "lease.json").exists()


@pytest.mark.parametrize("content", ["", "{", '{"schema": 1}', '{"schema": 2, "name": "a"}', "[]"])
def test_a_damaged_sweep_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        SweepFolder(str(tmp_path)).asked()


@pytest.mark.parametrize(
    "content",
    ["", '{"schema": 1}', '{"schema": 1, "trial": 2, "values": {"a": 1}, "state": "finished", "starts": 1}', "[1]"],
)
def test_each_damaged_record_is_named_and_how_to_go_on(tmp_path: Path, content: str) -> None:
    folder = begun(str(tmp_path))
    folder.write(TrialRecord(2, {"a": 1}))
    for name in ("0001", "0003"):
        (tmp_path / "trials" / f"{name}.json").write_text(content)
    with pytest.raises(UserError) as caught:
        folder.records(["a"])
    assert [("0001" in each, "0003" in each) for each in caught.value.problems] == [(True, False), (False, True)]
    assert "delete it" in str(caught.value)
    folder.release()


def test_a_sweep_that_lost_its_lease_writes_nothing_more(tmp_path: Path) -> None:
    folder = begun(str(tmp_path))
    (tmp_path / "lease.json").unlink()
    other = Lease.take(RunDir(str(tmp_path)), "other")
    with pytest.raises(Exception, match="lease of"):
        folder.write(TrialRecord(1, {"a": "1"}))
    assert not (tmp_path / "trials").exists()
    other.release()


def test_another_space_is_told_key_by_key_and_more_trials_are_none() -> None:
    before = {"grid": {"a": ["1"]}, "random": {"b": ["int", 1, 2]}, "trials": 5, "seed": 0}
    assert differences(before, {**before, "trials": 9}) == []
    assert differences(before, {**before, "trials": 4}) == ["trials: 5 before, 4 now"]
    now = {"grid": {"a": ["1", "2"], "c": ["3"]}, "random": {}, "trials": 5, "seed": 1}
    assert differences(before, now) == [
        "grid.a: ['1'] before, ['1', '2'] now",
        "grid.c: None before, ['3'] now",
        "random.b: ['int', 1, 2] before, None now",
        "seed: 0 before, 1 now",
    ]
