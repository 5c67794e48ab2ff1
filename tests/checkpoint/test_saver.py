"""Saving stops training for a copy only; what comes behind is durable before it is visible, or is tried again."""

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint import saver as saving
from pipeline.checkpoint.cleanup import open_uploads, remove_leftovers
from pipeline.checkpoint.commit import CommitRecord, Monitor, committed, newest, read_record
from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.transfer import PART, HashingWriter, open_writer, part_size
from pipeline.errors import LeaseLost
from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import a_record, tensors
from tests.support.commands import Ended
from tests.support.runs import FIT, slow_saves

App = Callable[..., Ended]
ROWS = "tests.support.models.Rows"


def test_what_is_committed_is_what_was_saved_on_every_storage(storage: str) -> None:
    run = RunDir(storage)
    saver = Saver(run, 0)
    for step in (1, 2, 3):
        source = tensors(step)
        assert saver.save(source, a_record(step))
        source["weights"].zero_()
    saver.finish()
    assert [each.step for each in committed(run)] == [3, 2, 1]
    for each in committed(run):
        data = run.read(each.name)
        assert data is not None
        assert each.bytes == len(data)
        assert each.sha256 == f"sha256:{hashlib.sha256(data).hexdigest()}"
        with run.fs.open(f"{run.path}/{each.name}") as file:
            assert torch.load(file, weights_only=True)["weights"].unique().tolist() == [each.step]


def test_a_record_that_a_stale_writer_has_left_is_written_over_and_a_newer_one_never_is(storage: str) -> None:
    run, asked = RunDir(storage), []
    stale = Saver(run, 0)
    stale.save(tensors(1.0), a_record(1))
    stale.finish()
    fresh = Saver(run, 0, before_commit=lambda: asked.append(1))
    fresh.save(tensors(2.0), a_record(1))
    fresh.finish()
    first = next(committed(run))
    assert first.sha256 == f"sha256:{hashlib.sha256(run.read(first.name) or b'').hexdigest()}"
    assert len(asked) == 3, "asked once more before it writes over a record"

    def lost() -> None:
        asked.append(1)
        if len(asked) == 6:  # between its last question and the record another one has committed
            raise LeaseLost("another attempt writes here now")

    woken = Saver(run, 0, before_commit=lost)
    woken.save(tensors(3.0), a_record(1))
    with pytest.raises(LeaseLost):
        woken.finish()
    assert read_record(run, 1) == first


def test_what_saving_costs_and_a_storage_that_fails_are_logged(app: App, tmp_path: Path) -> None:
    more = ("--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={tmp_path}")
    assert app(*FIT, *more, "--run_dir", tmp_path / "run").status == 0
    (logged,) = tmp_path.rglob("metrics.csv")
    header = logged.read_text().splitlines()[0].split(",")
    assert {f"checkpoint/{name}_seconds" for name in ("stopped", "waited", "behind", "failing")} <= set(header)


def test_who_may_not_commit_any_more_does_not(tmp_path: Path) -> None:
    def lost() -> None:
        raise LeaseLost("another attempt writes here now")

    saver = Saver(RunDir(str(tmp_path)), 1000, before_commit=lost)
    saver.save(tensors(), a_record(1))
    with pytest.raises(LeaseLost):
        saver.finish()
    assert not list(committed(saver.run))


class Cut(BaseException):
    """The process dies here."""


OPERATIONS = ("open", "write", "close", "info", "ls", "find", "cat_file", "pipe_file", "fsync", "link", "unlink")


class Dying:
    """A filesystem, or a file of it, on which the process dies at the n-th operation, its write half done."""

    def __init__(self, inner: Any, left: list[int]) -> None:
        self._inner = inner
        self._left = left

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in (
            "open",
            "write",
            "close",
            "info",
            "ls",
            "find",
            "cat_file",
            "pipe_file",
            "fsync",
            "link",
            "unlink",
        ):
            return found

        def operation(*arguments: Any, **named: Any) -> Any:
            self._left[0] -= 1
            if self._left[0] < 0:
                if name == "write":
                    self._inner.write(bytes(arguments[0])[: len(arguments[0]) // 2])
                raise Cut
            result = found(*arguments, **named)
            return Dying(result, self._left) if name == "open" and not isinstance(result, int) else result

        return operation

    def __enter__(self) -> "Dying":
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is not Cut:
            self.close()


@pytest.mark.timeout(300)  # a real server takes half a second a save
def test_cut_at_any_operation_a_save_leaves_a_whole_checkpoint_or_nothing(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for count in range(300):
        run = RunDir(f"{storage}/{count}")
        run.write("fit.yaml", b"")
        left = [count]
        with monkeypatch.context() as patched:
            patched.setattr(run, "fs", Dying(run.fs, left))
            # What goes past fsspec: obstore's writer, and the record on a local disk.
            if run.is_s3:
                patched.setattr(saving, "open_writer", lambda *given: Dying(open_writer(*given), left))  # noqa: B023
            patched.setattr("pipeline.run.run_dir.os", Dying(os, left))
            try:
                Saver(run, 0)._write(tensors(), a_record(5))
                done = True
            except Cut:
                done = False
        found = list(committed(RunDir(run.url)))
        for each in found:
            data = run.read(each.name)
            assert data is not None
            assert each.sha256 == f"sha256:{hashlib.sha256(data).hexdigest()}"
        # What a start makes of it: nothing that is left keeps it from beginning.
        remove_leftovers(run)
        assert newest(run) == (found[0] if found else None)
        outcomes.append((done, len(found)))
        if done:
            break
    assert outcomes[-1] == (True, 1)
    assert len(outcomes) > 10, "every operation was cut once"
    assert outcomes[0] == (False, 0)


def test_loader_workers_that_are_forked_after_an_upload_live_on(app: App, s3: str) -> None:
    more = ("--data.val=tests.support.models.Rows", "--data.num_workers=2", "--checkpoints.every_n_steps=1")
    ended = app(*FIT, *more, "--trainer.val_check_interval=2", "--run_dir", f"{s3}/{uuid.uuid4().hex}")
    assert ended.status == 0, ended.err


def test_the_last_save_is_waited_for_also_if_it_was_due_before_the_end(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_saves(monkeypatch, 0.3)
    # The sixth batch is left out, so that the last step is saved before training ends.
    more = ("--model=tests.support.models.SkipsTheRest", "--checkpoints.every_n_steps=1", "--trainer.max_epochs=1")
    assert app(*FIT, *more, "--run_dir", tmp_path).status == 0
    assert next(committed(RunDir(str(tmp_path)))).step == 2


@pytest.mark.parametrize("total", [0, 1, 10**9, 140 * 10**9, 160 * 10**9, 10**12, 3 * 10**12])
def test_a_checkpoint_of_any_size_fits_into_the_parts_that_a_store_takes(total: int) -> None:
    part = part_size(total)
    assert part >= PART
    assert part % PART == 0
    assert total <= 9_000 * part
    assert part == PART or total > 9_000 * (part - PART)


def test_the_tag_of_a_file_in_larger_parts_is_the_stores_own(s3: str) -> None:
    run = RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/run")
    file = HashingWriter(open_writer(run, "x.ckpt", 2 * PART), tagged=True, part=2 * PART)
    file.write(bytes(5 * PART))
    file.close()
    assert run.size_and_tag("x.ckpt") == (5 * PART, file.tag)
    assert file.tag.endswith("-3")


@pytest.mark.parametrize("name", [RunDir.checkpoint(1), RunDir.record(1)])
def test_a_folder_at_the_name_of_a_step_is_moved_aside_and_later_steps_are_saved(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "theirs").mkdir(parents=True)
    saver = Saver(RunDir(str(tmp_path)), 0)
    for step in (1, 2):
        saver.save(tensors(), a_record(step))
        saver.finish()
    assert [each.step for each in committed(saver.run)] == [2, 1]
    assert [path.name for path in tmp_path.glob(f"{name}.aside-*/*")] == ["theirs"]


def test_an_amendment_is_retried_like_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_FIRST_PAUSE", 0.01)
    saver = Saver(RunDir(str(tmp_path)), 30)
    saver.save(tensors(), a_record(1))
    saver.finish()
    failures = [OSError("503"), TimeoutError()]
    real = saving.write_record

    def write_record(*given: Any, **named: Any) -> bool:
        if failures:
            raise failures.pop()
        return real(*given, **named)

    monkeypatch.setattr(saving, "write_record", write_record)
    saver.amend(1, lambda record: replace(record, reason=[*record.reason, "end"]))
    saver.finish()
    record = read_record(saver.run, 1)
    assert record is not None
    assert (record.reason, failures, saver.failing) == (["epoch", "end"], [], 0.0)


def test_whoever_follows_commits_hears_of_an_amendment(tmp_path: Path) -> None:
    heard: list[CommitRecord] = []
    saver = Saver(RunDir(str(tmp_path)), 30, after_commit=heard.append)
    saver.save(tensors(), a_record(1))
    saver.finish()
    saver.amend(1, lambda record: replace(record, monitor=Monitor("val_loss", 0.5, "min")))
    saver.finish()
    saver.amend(1, lambda record: record)
    saver.finish()
    assert [record.monitor and record.monitor.value for record in heard] == [None, 0.5], (
        "but not of one that changes nothing"
    )


def test_what_takes_long_after_the_last_byte_is_no_stalled_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_STALLED", 0.2)
    run = RunDir(str(tmp_path))
    monkeypatch.setattr(run, "sync", lambda name: time.sleep(1.0))
    saver = Saver(run, 30)
    saver.save(tensors(), a_record(1))
    time.sleep(0.7)
    assert (saver.saving, saver.failing) == (True, 0.0)
    assert saver.save(tensors(), a_record(2))
    saver.finish()
    assert [each.step for each in committed(run)] == [2, 1]


def test_a_failed_upload_leaves_nothing_that_is_paid_for(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_FIRST_PAUSE", 0.01)
    run = RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/run")
    bucket, key = run.object_of(RunDir.checkpoint(1))
    real, opened = saving.open_writer, []

    def open_writer(*given: Any) -> Any:
        opened.append(run.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key))
        if len(opened) < 3:
            raise ConnectionResetError("in the middle of an upload")
        return real(*given)

    monkeypatch.setattr(saving, "open_writer", open_writer)
    saver = Saver(run, 30)
    saver.save(tensors(), a_record(1))
    saver.finish()
    assert [each.step for each in committed(run)] == [1]
    assert len(list(open_uploads(run, ""))) == 1  # the one that this test has opened beside the good one
