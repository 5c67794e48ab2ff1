"""`runs rm` deletes whole runs and nothing else, and what an interrupted one leaves is never taken for a good run."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint.cleanup import open_uploads
from pipeline.checkpoint.commit import CommitRecord, examined
from pipeline.checkpoint.run_records import summarize
from pipeline.checkpoint.run_summary import RunCondition
from pipeline.errors import UserError
from pipeline.run.lease import Lease
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.commands import Ended
from tests.support.recorded import attempt, lease, recorded

App = Callable[..., Ended]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def files(url: str) -> list[str]:
    run = RunDir(url)
    return sorted(name.removeprefix(run.path).lstrip("/") for name in run.fs.find(run.path))


def test_a_run_is_deleted_with_all_that_lies_in_it_and_nothing_else(app: App, storage: str) -> None:
    for name in ("one", "one-more", "group/two"):
        recorded(f"{storage}/{name}", attempt()).write("logs/deep/own.txt", b"x")
    ended = app("runs", "rm", f"{storage}/one", f"{storage}/group/two", f"{storage}/one", "--yes")
    assert ended.status == 0, ended.text
    assert [name.split("/")[0] for name in files(storage)] == ["one-more"] * 7
    assert ended.out.count("to be deleted: ") == 2
    assert f"{RunDir(storage).label}/one  finished  7 files, 2 checkpoints, " in ended.out
    assert ended.out.count("\ndeleted: ") == 2


def test_no_folder_is_left_on_a_disk(app: App, tmp_path: Path) -> None:
    recorded(f"{tmp_path}/one", attempt())
    (tmp_path / "one/empty/folder").mkdir(parents=True)
    (tmp_path / "one/link").symlink_to(tmp_path)
    (tmp_path / "one/attempts/link").symlink_to(tmp_path / "one/fit.yaml")
    (tmp_path / "beside").mkdir()
    assert app("runs", "rm", tmp_path / "one", "--yes").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["beside"]


def test_uploads_that_were_never_completed_are_aborted(app: App, s3: str) -> None:
    run = recorded(f"{s3}/removed-uploads/run", attempt())
    bucket, key = run.object_of("checkpoints/step-00000009.ckpt")
    run.fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert list(open_uploads(run, ""))
    assert app("runs", "rm", run.url, "--yes").status == 0
    assert list(open_uploads(run, "")) == []


def test_a_run_within_the_run_stays(app: App, storage: str) -> None:
    recorded(storage, attempt())
    recorded(f"{storage}/inner/run", attempt())
    before = files(f"{storage}/inner/run")
    ended = app("runs", "rm", storage, "--yes")
    assert ended.status == 0
    assert "the runs within it stay: " in ended.out
    assert files(storage) == [f"inner/run/{name}" for name in before]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "there are 2 beneath it, name those"),
        ("config", "not a run directory: it holds no attempts and no checkpoints"),
        ("notes", "not a run directory"),
        ("none", "does not exist"),
        ("link", "is a link: name the run directory itself"),
    ],
)
def test_what_is_no_run_directory_is_refused_and_nothing_is_deleted(
    app: App, tmp_path: Path, name: str, said: str
) -> None:
    recorded(f"{tmp_path}/good", attempt())
    (tmp_path / "config").mkdir()
    (tmp_path / "config/fit.yaml").write_text("a: 1")
    (tmp_path / "notes").mkdir()
    (tmp_path / "link").symlink_to("good")
    before = files(str(tmp_path))
    ended = app("runs", "rm", tmp_path / "good", tmp_path / name, "--yes")
    assert ended.status == 2
    assert said in ended.err
    assert files(str(tmp_path)) == before


def test_a_run_that_is_written_to_is_never_deleted(app: App, storage: str) -> None:
    lease(recorded(storage, attempt(1, None)))
    before = files(storage)
    ended = app("runs", "rm", storage, "--yes")
    assert ended.status == 2
    assert "is running: stop it first" in ended.err
    assert files(storage) == before
    lease(RunDir(storage), seconds=0)
    assert app("runs", "rm", storage, "--yes").status == 0, "its writer is lost"


def test_nobody_can_be_asked_without_a_terminal(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded(f"{tmp_path}/run", attempt())
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    ended = app("runs", "rm", run.url)
    assert ended.status == 2
    assert "Give --yes to delete" in ended.err
    assert "to be deleted: " in ended.out, "it says what it would have deleted"
    assert len(files(run.url)) == 6


@pytest.mark.parametrize(
    ("answer", "deleted"), [("y\n", True), ("yes\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_a_person_is_asked(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, deleted: bool
) -> None:
    recorded(f"{tmp_path}/run", attempt())
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    ended = app("runs", "rm", tmp_path / "run")
    assert ended.status == 0
    assert "delete 1 run, 1.1 kB" in ended.out or "delete 1 run, " in ended.out
    assert (tmp_path / "run").exists() is not deleted
    assert ("nothing was deleted" in ended.out) is not deleted


@pytest.mark.parametrize("deletions", range(8))
def test_an_interrupted_deletion_leaves_no_checkpoint_that_only_looks_good_and_can_be_repeated(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    run = recorded(f"{tmp_path}/run", attempt(1, 75), attempt(2, 0))
    run.write("logs/events", b"x")
    left, real = [deletions], RunDir.remove

    def remove(self: RunDir, name: str) -> None:
        with pytest.raises(UserError, match="has a writer already"):
            Lease.take(run, "a fit that starts meanwhile")
        if not left[0]:
            raise PermissionError(13, "interrupted")
        left[0] -= 1
        real(self, name)

    monkeypatch.setattr(RunDir, "remove", remove)
    ended = app("runs", "rm", run.url, "--yes")
    assert ended.status == 1
    assert "is not deleted as a whole: " in ended.err
    assert run.read(LEASE) is None
    found = list(examined(run))
    assert all(isinstance(record, CommitRecord) for step, record in found if step in run.steps()["json"])
    steps = run.steps()["json"]
    assert not steps or max(steps) == 4, "as long as there is a checkpoint, the newest is there"
    (summary,) = summarize(run.url)
    assert (summary.state is RunCondition.UNKNOWN) == (deletions >= 2)
    monkeypatch.setattr(RunDir, "remove", real)
    assert app("runs", "rm", run.url, "--yes").status == 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_written_meanwhile_is_said(app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recorded(f"{tmp_path}/run", attempt())
    real = Lease.release

    def release(self: Lease) -> None:
        run.write("attempts/0007.json", b"x")
        real(self)

    monkeypatch.setattr(Lease, "release", release)
    ended = app("runs", "rm", run.url, "--yes")
    assert ended.status == 1
    assert "was written to meanwhile: 1 files are left" in ended.err
