"""A checkpoint exists once its commit record does, and only while the record tells the truth."""

import logging
from pathlib import Path

import pytest

from pipeline.checkpoint.commit import CommitRecord, Monitor, committed, newest, read_record, select, write_record
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir


def commit(run: RunDir, step: int, value: float | None = None, mode: str = "min") -> CommitRecord:
    data = b"x" * step
    run.write(RunDir.checkpoint(step), data)
    record = CommitRecord(
        step=step,
        epoch=1,
        position=0,
        bytes=len(data),
        sha256="sha256:00",
        monitor=None if value is None else Monitor("val_loss", value, mode),
        world_size=2,
        created="2026-11-24T12:00:00.000Z",
        reason=["epoch"],
    )
    write_record(run, record)
    return record


def test_a_record_is_read_back_as_it_was_written(storage: str) -> None:
    run = RunDir(storage)
    record = commit(run, 12, 0.5)
    assert read_record(run, 12) == record
    assert newest(run) == record
    written = run.read_json(RunDir.record(12)) or {}
    assert set(written) == {
        *("schema", "step", "epoch", "position", "bytes", "sha256", "monitor", "world_size", "created", "reason")
    }


def test_what_a_later_version_adds_to_a_record_is_not_looked_at(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    record = commit(run, 12, 0.5)
    run.write_json(RunDir.record(12), {**(run.read_json(RunDir.record(12)) or {}), "added": {"later": 1}})
    assert newest(run) == record


def test_a_checkpoint_without_its_record_does_not_exist(storage: str) -> None:
    run = RunDir(storage)
    run.write(RunDir.checkpoint(5), b"12345")
    assert newest(run) is None


@pytest.mark.parametrize("damage", ["torn record", "foreign record", "short file", "no file", "another step's record"])
def test_a_damaged_newest_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    run = RunDir(str(tmp_path))
    good = commit(run, 10)
    commit(run, 20)
    if damage == "torn record":
        run.write(RunDir.record(20), b'{"schema": 1, "step": 20')
    elif damage == "foreign record":
        run.write_json(RunDir.record(20), {"step": 20, "bytes": "many"})
    elif damage == "short file":
        run.write(RunDir.checkpoint(20), b"short")
    elif damage == "no file":
        run.remove(RunDir.checkpoint(20))
    else:
        run.write(RunDir.record(20), run.read(RunDir.record(10)) or b"")
    assert newest(run) == good
    assert "skipping checkpoint step 20" in caplog.text


def test_commits_without_a_good_one_never_start_afresh_in_silence(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    commit(run, 10)
    run.remove(RunDir.checkpoint(10))
    with pytest.raises(UserError, match="no good checkpoint"):
        newest(run)


def test_best_latest_and_steps_are_selected_from_the_records(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    for step, value in ((10, 0.5), (20, 0.2), (30, 0.2), (40, 0.9)):
        commit(run, step, value)
    assert [record.step for record in committed(run)] == [40, 30, 20, 10]
    assert select(run, "latest").step == 40
    assert select(run, "best").step == 30, "the newest of equals"
    assert select(run, None).step == 30
    assert select(run, "10").step == 10
    with pytest.raises(UserError, match=r"checkpoint=11.*10, 20, 30, 40"):
        select(run, "11")


def test_the_greatest_is_best_where_the_mode_says_so(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    for step, value in ((10, 0.5), (20, 0.9), (30, 0.2)):
        commit(run, step, value, "max")
    assert select(run, "best").step == 20


def test_without_a_monitored_value_best_is_refused_and_the_default_is_the_latest(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    commit(run, 10)
    commit(run, 20)
    assert select(run, None).step == 20
    with pytest.raises(UserError, match=r"checkpoints\.monitor"):
        select(run, "best")


def test_an_empty_run_has_nothing_to_select(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint"):
        select(RunDir(str(tmp_path)), None)
