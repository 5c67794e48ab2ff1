"""A mirrored folder arrives whole, without sending what grows again and again, and never holds up the end for long."""

import os
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest

from pipeline.run import storage as small_files
from pipeline.run.run_dir import RunDir
from pipeline.training.logs import mirror
from pipeline.training.logs.mirror import Mirror, mirrored
from tests.support.runs import written_sizes


@pytest.fixture
def run(other_storage: str) -> RunDir:
    return RunDir(other_storage)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return written_sizes(monkeypatch)


def a_mirror(run: RunDir) -> Mirror:
    return Mirror(run.fs, f"{run.path}/logs", run.url_of("logs"))


def test_a_file_that_changes_is_sent_again_and_one_that_does_not_is_sent_once(run: RunDir, sent: list[int]) -> None:
    kept = a_mirror(run)
    first, second = Path(kept.folder, "first"), Path(kept.folder, "deep", "second")
    first.write_text("one")
    second.parent.mkdir()
    second.write_text("two")
    kept.start().join(20)
    assert (run.read("logs/first"), run.read("logs/deep/second")) == (b"one", b"two")
    first.write_text("three")
    kept.start().join(20)
    kept.finish(20)
    assert run.read("logs/first") == b"three"
    assert sorted(sent) == [3, 3, 5]


def test_a_file_that_grows_without_end_is_sent_a_few_times_its_size(run: RunDir, sent: list[int]) -> None:
    kept = a_mirror(run)
    path = Path(kept.folder, "log.txt")
    for _ in range(100):
        with path.open("ab") as file:
            file.write(bytes(100_000))
        os.utime(path)
        kept.start().join(20)
    kept.finish(20)
    assert run.size("logs/log.txt") == 10_000_000
    assert sum(sent) < 6 * 10_000_000


def test_a_storage_that_takes_nothing_holds_the_end_up_no_longer_than_the_limit(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    release = threading.Event()
    monkeypatch.setattr(small_files, "write", lambda *_: release.wait(30))
    kept = a_mirror(run)
    Path(kept.folder, "x").write_text("x")
    began = time.monotonic()
    kept.finish(0.2)
    assert time.monotonic() - began < 10
    assert "not all logs were copied to" in caplog.text
    release.set()


def test_what_is_asked_for_during_a_copy_is_sent_by_it_and_waiting_has_an_end(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, real = threading.Event(), small_files.write
    monkeypatch.setattr(small_files, "write", lambda *given: release.wait(30) and real(*given))
    kept = a_mirror(run)
    path = Path(kept.folder, "x")
    path.write_text("one")
    kept.request()
    began = time.monotonic()
    kept.wait(0.3)
    kept.wait(0.3)
    assert time.monotonic() - began < 5, "both together no longer than one"
    path.write_text("one, two")
    kept.request()
    release.set()
    kept.wait(20)
    assert run.read("logs/x") == b"one, two"


def test_a_saver_may_wait_while_a_copy_is_being_started(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, real = a_mirror(run), threading.Thread.start

    def start(thread: threading.Thread) -> None:
        kept.wait(20)  # as a saver's thread does, whenever it commits
        real(thread)

    Path(kept.folder, "x").write_text("x")
    monkeypatch.setattr(threading.Thread, "start", start)
    for _ in range(2):
        kept.start()
    kept.wait(20)
    assert run.read("logs/x") == b"x"


def test_what_a_killed_process_left_is_sent_by_the_next(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "x").write_text("left")
    Mirror(run.fs, f"{run.path}/logs", "here", str(tmp_path / "spool")).recover()
    assert run.read("logs/x") == b"left"


def test_copies_of_a_long_run_are_rarer(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, now = a_mirror(run), [0.0]
    kept._began = kept._last = 0.0
    monkeypatch.setattr(mirror.time, "monotonic", lambda: now[0])
    due = []
    for second in range(0, 100_000, 10):
        now[0] = float(second)
        if kept.is_due:
            due.append(second)
            kept._last = now[0]
    assert due[:3] == [30, 60, 90]
    assert due[-1] - due[-2] == 300


def test_the_folder_is_removed_with_its_mirror(run: RunDir) -> None:
    kept = a_mirror(run)
    folder = Path(kept.folder)
    assert folder.is_dir()
    del kept
    assert not folder.exists()


def test_what_was_written_is_sent_also_after_an_error(run: RunDir) -> None:
    kept = a_mirror(run)
    logger = pl.loggers.CSVLogger(kept.folder)
    logger.mirror = kept  # type: ignore[attr-defined]
    trainer = pl.Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)

    def train() -> None:
        with mirrored(trainer):
            Path(kept.folder, "x").write_text("x")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        train()
    assert run.read("logs/x") == b"x"
