"""The next start removes what a killed save left, and nothing else."""

import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.checkpoint.cleanup import open_uploads, remove_leftovers
from pipeline.checkpoint.commit import newest
from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import commit, steps, watched
from tests.support.commands import Ended
from tests.support.runs import fit


@pytest.fixture(autouse=True)
def _heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)


def open_upload(run: RunDir, name: str) -> str:
    bucket, _, key = run.path.partition("/")
    place = {"Bucket": bucket, "Key": f"{key}/{name}"}
    upload = str(run.fs.call_s3("create_multipart_upload", **place)["UploadId"])
    run.fs.call_s3("upload_part", **place, UploadId=upload, PartNumber=1, Body=b"x" * 100)
    return upload


def test_only_files_without_a_record_are_swept(storage: str) -> None:
    run = RunDir(storage)
    good = commit(run, 10)
    run.write(RunDir.checkpoint(5), b"torn")
    run.write(RunDir.checkpoint(20), b"torn")
    for name in ("checkpoints/mine.ckpt", "checkpoints/step-7.ckpt", "checkpoints/step-00000009.ckpt.bak", "fit.yaml"):
        run.write(name, b"mine")
    assert remove_leftovers(run) == [RunDir.checkpoint(5), RunDir.checkpoint(20)]
    assert sorted(run.steps()["ckpt"]) == [10]
    assert newest(run) == good
    for name in ("checkpoints/mine.ckpt", "checkpoints/step-7.ckpt", "checkpoints/step-00000009.ckpt.bak", "fit.yaml"):
        assert run.read(name) == b"mine"
    assert remove_leftovers(run) == []


def test_a_checkpoint_that_the_user_named_stays(storage: str) -> None:
    run = RunDir(storage)
    for step in (5, 6):
        run.write(RunDir.checkpoint(step), b"torn")
    assert remove_leftovers(run, spare=f"{storage}/{RunDir.checkpoint(6)}") == [RunDir.checkpoint(5)]
    assert sorted(run.steps()["ckpt"]) == [6]


def test_what_an_attempt_reports_as_committed_is_never_swept(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir(storage)
    commit(run, 10)
    run.write_json(RunDir.attempt(1), {"attempt": 1, "first_step": 0, "last_step": 7})
    for step in (7, 8):
        run.write(RunDir.checkpoint(step), b"whole")
    assert remove_leftovers(run) == [RunDir.checkpoint(8)]
    assert "(step 7) and are kept" in caplog.text


def test_nothing_is_swept_where_the_newest_record_or_many_are_missing(storage: str) -> None:
    run = RunDir(storage)
    commit(run, 10)
    run.write_json(RunDir.attempt(1), {"attempt": 1, "first_step": 0, "committed_step": 20})
    run.write(RunDir.checkpoint(15), b"torn")
    assert remove_leftovers(run) == []
    commit(run, 20)
    assert remove_leftovers(run) == [RunDir.checkpoint(15)]
    for step in (1, 2, 3):
        run.write(RunDir.checkpoint(step), b"whole")
    assert remove_leftovers(run) == [], "one attempt leaves no more than one save and one deletion"


def test_the_next_start_of_the_app_sweeps(app: Callable[..., Ended], storage: str) -> None:
    assert fit(app, storage, 1).status == 0
    run = RunDir(storage)
    run.write(RunDir.checkpoint(3), b"torn")
    assert f"removed leftovers of unfinished saves: {RunDir.checkpoint(3)}" in fit(app, storage, 2).err
    assert sorted(run.steps()["ckpt"]) == [7, 14]


def test_a_torn_record_with_its_file_is_evidence(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir(storage)
    commit(run, 10)
    commit(run, 20)
    run.write(RunDir.record(20), b'{"schema": 1, "st')
    assert remove_leftovers(run) == []
    assert sorted(run.steps()["ckpt"]) == [10, 20]
    assert "step 20 has a file, but its commit record is torn" in caplog.text


def test_a_sweep_of_a_run_that_is_not_there_does_nothing(storage: str) -> None:
    assert remove_leftovers(RunDir(storage)) == []


def test_a_neighbour_s_files_are_never_swept(storage: str) -> None:
    run, others = RunDir(storage), [RunDir(f"{storage}-2"), RunDir(f"{storage}/checkpoints"), RunDir(f"{storage}/in")]
    for each in (run, *others):
        each.write(RunDir.checkpoint(5), b"under way")
    assert remove_leftovers(run) == [RunDir.checkpoint(5)]
    for other in others:
        assert other.read(RunDir.checkpoint(5)) == b"under way"


def test_a_storage_that_fails_is_not_fatal(storage: str, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDir(storage)
    run.write(RunDir.checkpoint(5), b"torn")
    fs = watched(run, changes=0)
    assert remove_leftovers(run) == []
    assert "was not removed: OSError: the storage is away" in caplog.text
    fs.changes = None
    assert remove_leftovers(run) == [RunDir.checkpoint(5)]


def test_a_listing_that_fails_is_not_fatal(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(str(tmp_path))
    monkeypatch.setattr(run, "steps", lambda: (_ for _ in ()).throw(OSError("away")))
    assert remove_leftovers(run) == []
    assert "were not removed: OSError: away" in caplog.text


def test_a_start_asks_for_no_more_however_many_there_are(tmp_path: Any) -> None:
    run = RunDir(str(tmp_path))
    for step in range(1, 50):
        commit(run, step)
    fs = watched(run)
    remove_leftovers(run)
    assert fs.calls["ls"] == 1
    assert fs.calls["json"] == 1
    assert steps(run) == list(range(1, 50))


def test_open_uploads_of_this_run_are_aborted_and_never_a_neighbour_s(s3: str) -> None:
    url = f"{s3}/{uuid.uuid4().hex[:12]}/run"
    run, neighbour, inner = RunDir(url), RunDir(f"{url}-2"), RunDir(f"{url}/checkpoints")
    good = commit(run, 10)
    open_upload(run, RunDir.checkpoint(10))
    open_upload(run, RunDir.checkpoint(20))
    kept = {
        open_upload(neighbour, RunDir.checkpoint(20)),
        open_upload(inner, RunDir.checkpoint(20)),
        open_upload(run, "checkpoints/step-mine.ckpt"),
        open_upload(run, "logs/events"),
    }
    assert sorted(remove_leftovers(run)) == [f"{RunDir.checkpoint(step)} (an open upload)" for step in (10, 20)]
    left = {upload for each in (neighbour, run) for _, upload in open_uploads(each, "")}
    assert left == kept
    assert newest(run) == good
    for each in (neighbour, run):
        for name, upload in list(open_uploads(each, "")):
            bucket, _, key = each.path.partition("/")
            each.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=f"{key}/{name}", UploadId=upload)


def test_a_killed_save_of_a_large_checkpoint_leaves_an_upload_that_is_swept(s3: str) -> None:
    from pipeline.checkpoint.transfer import PART, open_writer

    run = RunDir(f"{s3}/{uuid.uuid4().hex[:12]}/run")
    writer = open_writer(run, RunDir.checkpoint(20))
    for _ in range(3):
        writer.write(b"x" * PART)
    del writer
    assert [name for name, _ in open_uploads(run, "")] == [RunDir.checkpoint(20)]
    assert remove_leftovers(run) == [f"{RunDir.checkpoint(20)} (an open upload)"]
    assert list(open_uploads(run, "")) == []


def test_more_uploads_than_one_page_holds_are_all_found() -> None:
    pages = [
        {"Uploads": [{"Key": "a/x", "UploadId": "1"}], "IsTruncated": True, "NextKeyMarker": "a/x"},
        {"Uploads": [{"Key": "a/x", "UploadId": "2"}], "IsTruncated": False},
    ]
    asked: list[dict[str, Any]] = []

    class Paged:
        protocol = ("s3", "s3a")

        def call_s3(self, method: str, **kwargs: Any) -> dict[str, Any]:
            asked.append(kwargs)
            return pages[len(asked) - 1]

    run = RunDir("s3://bucket/a")
    run.path, run.fs = "bucket/a", Paged()
    assert list(open_uploads(run, "")) == [("x", "1"), ("x", "2")]
    assert asked[1]["KeyMarker"] == "a/x"
