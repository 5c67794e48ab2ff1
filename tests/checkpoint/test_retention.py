"""What need not stay goes after a newer commit, and at no instant is there less than a good checkpoint."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.checkpoint.commit import CommitRecord, examined, newest
from pipeline.checkpoint.retention import Keep, Retention, delete, prune, surplus
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import a_record, commit, steps, watched
from tests.support.commands import without


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)


records_of = st.lists(
    st.builds(
        a_record,
        st.integers(1, 400),
        st.none() | st.sampled_from([0.1, 0.2, 0.3, 0.4]),
        st.sampled_from(["min", "max"]),
        st.sampled_from(["val_loss", "val_accuracy"]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda record: record.step,
)
keeps = st.builds(Keep, st.integers(1, 6), st.integers(1, 4), st.none() | st.integers(1, 100))


@given(records_of, keeps, st.sets(st.integers(1, 400), max_size=3))
def test_the_last_the_best_the_every_mth_and_the_protected_stay(
    records: list[CommitRecord], keep: Keep, protected: set[int]
) -> None:
    going = surplus(records, keep, protected)
    gone = {record.step for record in going}
    assert [record.step for record in going] == sorted(gone), "oldest first"
    assert not gone & protected
    assert keep.last is not None
    assert not gone & set(sorted(record.step for record in records)[-keep.last :])
    for name, mode in {(each.monitor.name, each.monitor.mode) for each in records if each.monitor}:
        values = [
            ((-1 if mode == "max" else 1) * each.monitor.value, -each.step)
            for each in records
            if each.monitor and (each.monitor.name, each.monitor.mode) == (name, mode)
        ]
        assert not gone & {-step for _, step in sorted(values)[: keep.best]}
    if keep.every_n_steps:
        for multiple in range(keep.every_n_steps, 401, keep.every_n_steps):
            after = [each.step for each in records if multiple <= each.step < multiple + keep.every_n_steps]
            assert min(after, default=0) not in gone


@given(records_of, keeps, records_of)
def test_what_may_go_may_go_after_every_newer_commit_too(
    records: list[CommitRecord], keep: Keep, later: list[CommitRecord]
) -> None:
    going = {record.step for record in surplus(records, keep)}
    end = max(record.step for record in records)
    newer = [replace(record, step=end + record.step) for record in later]
    assert going <= {record.step for record in surplus([*records, *newer], keep)}
    left = [record for record in records if record.step not in going]
    assert surplus(left, keep) == [], "deleting twice deletes no more"


@given(records_of, st.integers(1, 4))
def test_without_a_number_to_keep_everything_stays(records: list[CommitRecord], best: int) -> None:
    assert surplus(records, Keep(None, best)) == []


def test_epochs_that_miss_the_multiples_still_leave_one_for_each() -> None:
    records = [a_record(step) for step in range(47, 500, 47)]
    gone = {record.step for record in surplus(records, Keep(last=1, every_n_steps=100))}
    assert [record.step for record in records if record.step not in gone] == [141, 235, 329, 423, 470]


def test_every_mistake_in_what_to_keep_is_named_at_once() -> None:
    assert Keep(3, 2, 100).problems() == []
    assert Keep().problems() == []
    found = Keep(0, 0, -1).problems()
    assert [problem.split(" must")[0] for problem in found] == [
        "checkpoints.keep_last=0",
        "checkpoints.keep_best=0",
        "checkpoints.keep_every_n_steps=-1",
    ]
    assert "no effect without keep_last" in Keep(None, 3).problems("keep_")[0]


def test_deleting_leaves_nothing_of_that_step_and_all_of_the_others(storage: str) -> None:
    run = RunDir(storage)
    gone = commit(run, 10)
    commit(run, 20)
    assert delete(run, gone)
    assert run.steps() == {"ckpt": {20: 20}, "json": {20: run.size(RunDir.record(20))}}
    assert delete(run, gone), "what is gone already is gone"


@pytest.mark.parametrize("changes", [0, 1])
def test_a_crash_after_any_deletion_leaves_a_whole_checkpoint_or_none(storage: str, changes: int) -> None:
    run = RunDir(storage)
    going, stays = commit(run, 10), commit(run, 20)
    broken = RunDir(storage)
    watched(broken, changes)
    assert not delete(broken, going)
    found = dict(examined(run))
    assert found[20] == stays
    assert found[10] == going if changes == 0 else "no commit record" in str(found[10])
    assert newest(run) == stays
    assert delete(run, going), "the next call goes on"
    assert steps(run) == [20]


def test_each_commit_deletes_what_it_makes_surplus(storage: str) -> None:
    run = RunDir(storage)
    retention = Retention(run, Keep(last=2, best=1))
    for step, value in ((1, 0.5), (2, 0.1), (3, 0.4), (4, 0.3), (5, 0.2)):
        retention.after_commit(commit(run, step, value))
    assert steps(run) == [2, 4, 5]
    assert sorted(run.steps()["ckpt"]) == [2, 4, 5]


def test_the_resumed_checkpoint_goes_only_after_a_newer_commit(storage: str) -> None:
    run = RunDir(storage)
    for step in (10, 20, 30):
        commit(run, step)
    retention = Retention(run, Keep(last=1), resumed_step=30)
    assert steps(run) == [10, 20, 30], "a start deletes nothing"
    retention.after_commit(commit(run, 40))
    assert steps(run) == [40]


def test_a_damaged_checkpoint_that_was_passed_over_makes_no_good_one_go(storage: str) -> None:
    run = RunDir(storage)
    for step in (10, 20, 30):
        commit(run, step)
    run.write(RunDir.checkpoint(30), b"y" * 30)  # as long as its record says: only its hash tells
    retention = Retention(run, Keep(last=2), resumed_step=20)
    retention.after_commit(commit(run, 25))
    assert steps(run) == [20, 25, 30], "two good ones, and the evidence"


def test_without_a_number_to_keep_nothing_is_even_listed(tmp_path: Any) -> None:
    run = RunDir(str(tmp_path))
    fs = watched(run)
    Retention(run, Keep()).after_commit(a_record(5))
    assert not fs.calls


def test_records_are_read_once_in_a_process(storage: str) -> None:
    run = RunDir(storage)
    for step in (1, 2, 3):
        commit(run, step)
    retention = Retention(run, Keep(last=2), resumed_step=3)
    retention.after_commit(commit(run, 4))
    later = [commit(run, step) for step in (5, 6, 7)]
    fs = watched(run)
    for record in later:
        retention.after_commit(record)
    assert fs.calls["ls"] == fs.calls["open"] == 0
    assert fs.calls["rm_file"] == 6
    assert steps(run) == [6, 7]


def test_a_storage_that_fails_is_not_fatal_and_the_next_commit_tries_again(
    storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(storage)
    retention = Retention(run, Keep(last=1))
    retention.after_commit(commit(run, 1))
    whole, fs = run.fs, watched(run, changes=1)
    retention.after_commit(commit(run, 2))
    assert "checkpoint step 1 not deleted yet: OSError: the storage is away" in caplog.text
    fs.changes = None
    retention.after_commit(commit(run, 3))
    run.fs = whole
    assert sorted(run.steps()["ckpt"]) == sorted(run.steps()["json"]) == [3]


def test_records_that_cannot_be_read_are_read_after_the_next_commit(tmp_path: Any, monkeypatch: Any) -> None:
    run = RunDir(str(tmp_path))
    commit(run, 1)
    retention = Retention(run, Keep(last=1), resumed_step=1)
    second = commit(run, 2)
    with monkeypatch.context() as patch:
        patch.setattr(run, "steps", lambda: (_ for _ in ()).throw(OSError("away")))
        retention.after_commit(second)
    assert steps(run) == [1, 2]
    retention.after_commit(commit(run, 3))
    assert steps(run) == [3]


def test_a_run_never_deletes_what_lies_in_its_neighbour(storage: str) -> None:
    run, neighbour, inner = RunDir(storage), RunDir(f"{storage}-2"), RunDir(f"{storage}/inner")
    for other in (neighbour, inner):
        for step in (1, 2, 3):
            commit(other, step)
    retention = Retention(run, Keep(last=1))
    for step in (1, 2, 3):
        retention.after_commit(commit(run, step))
    prune(run, Keep(last=1))
    assert steps(run) == [3]
    assert steps(neighbour) == steps(inner) == [1, 2, 3]


def test_a_dry_run_lists_what_would_go_with_its_bytes_and_deletes_nothing(storage: str) -> None:
    run = RunDir(storage)
    for step in (100, 200, 300):
        commit(run, step)
    text, done = prune(run, Keep(last=1), dry_run=True)
    assert done
    assert text.splitlines() == [
        "step 100  100 bytes  would be deleted",
        "step 200  200 bytes  would be deleted",
        "would be deleted: 2 of 3 checkpoints, 300 bytes",
        "kept: 1 checkpoint, the newest at step 300",
    ]
    assert steps(run) == [100, 200, 300]
    assert "deleted: 2 of 3 checkpoints, 300 bytes" in prune(run, Keep(last=1))[0]
    assert steps(run) == [300]


def test_pruning_by_hand_looks_at_the_bytes_of_the_newest_first(
    storage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "cache"))
    run = RunDir(storage)
    for step in (10, 20, 30):
        commit(run, step)
    run.write(RunDir.checkpoint(30), b"y" * 30)
    prune(run, Keep(last=1))
    assert steps(run) == [20, 30], "20 is the newest good one, 30 is left for somebody to look at"
    assert "skipping checkpoint step 30" in caplog.text


def test_pruning_says_what_it_cannot_do(tmp_path: Any) -> None:
    run = RunDir(str(tmp_path))
    with pytest.raises(UserError, match="keep_last=0"):
        prune(run, Keep(0))
    with pytest.raises(UserError, match="no good checkpoint"):
        prune(run, Keep(1))
    assert "everything is kept" in prune(run, Keep())[0]
    commit(run, 1)
    commit(run, 2)
    watched(run, changes=0)
    text, done = prune(run, Keep(1))
    assert "step 1  1 bytes  FAILED" in text
    assert not done


@pytest.fixture
def two_thousand(other_storage: str) -> Iterator[RunDir]:
    run = RunDir(other_storage)
    for step in range(1, 2001):
        commit(run, step)
    yield run
    run.fs.rm(run.path, recursive=True)


@pytest.mark.parametrize("before", [0, 1900])
def test_the_newest_of_2000_is_found_with_one_listing_and_one_record(two_thousand: RunDir, before: int) -> None:
    for step in range(1, before + 1):
        assert delete(two_thousand, a_record(step))
    fs = watched(two_thousand)
    record = newest(two_thousand)
    assert record is not None
    assert record.step == 2000
    assert fs.calls["ls"] == fs.calls["open"] == fs.calls["json"] == 1
    assert fs.calls["ckpt"] == 0


def test_retention_decides_without_torch() -> None:
    without(("torch", "lightning"), "import pipeline.checkpoint.retention, pipeline.checkpoint.cleanup")
