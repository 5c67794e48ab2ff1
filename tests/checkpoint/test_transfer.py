"""A storage that fails, stalls or damages what it is given costs a warning; training goes on within the budget."""

import errno
import os
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint import saver as saving
from pipeline.checkpoint import transfer
from pipeline.checkpoint.commit import committed, newest
from pipeline.checkpoint.load import check
from pipeline.checkpoint.saver import SaveFailed, Saver
from pipeline.checkpoint.transfer import open_writer, parts_at_once
from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import a_record, tensors
from tests.support.commands import Ended
from tests.support.runs import FIT

App = Callable[..., Ended]


class Faulty:
    """A writer that fails as often as it is told to."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.opened = 0

    def __call__(self, run: RunDir, name: str, part: int = 0) -> Any:
        self.opened += 1
        if self.opened <= self.failures:
            raise self.error
        return run.open_write(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(saving, "_LONGEST_PAUSE", 0.05)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("timed out"),
        OSError(503, "Slow Down"),
        OSError(errno.ENOSPC, "No space left"),
        RuntimeError("500"),
        PermissionError("forbidden, until somebody mends it"),
    ],
)
def test_a_storage_that_fails_for_a_while_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    faulty = Faulty(3, error)
    monkeypatch.setattr(saving, "open_writer", faulty)
    saver = Saver(RunDir(str(tmp_path)), 30)
    saver.save(tensors(), a_record(1))
    saver.finish()
    assert faulty.opened == 4
    assert [each.step for each in committed(saver.run)] == [1]


@pytest.mark.usefixtures("impatient")
def test_training_goes_on_while_the_storage_fails_and_the_next_save_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(RunDir(str(tmp_path)), 30)
    healed = threading.Event()

    def open_writer(run: RunDir, name: str, part: int = 0) -> Any:
        if not healed.is_set():
            raise OSError("away")
        return run.open_write(name)

    monkeypatch.setattr(saving, "open_writer", open_writer)
    assert saver.save(tensors(), a_record(1))
    began = time.monotonic()
    while not saver.failing:
        assert time.monotonic() - began < 10
        time.sleep(0.005)
    assert not saver.save(tensors(), a_record(2)), "left out at once"
    healed.set()
    saver.finish()
    assert saver.save(tensors(), a_record(3))
    saver.finish()
    assert [each.step for each in committed(saver.run)] == [3, 1]


def test_training_does_not_wait_for_a_storage_that_takes_nothing_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_STALLED", 0.3)
    healed = threading.Event()

    def open_writer(run: RunDir, name: str, part: int = 0) -> Any:
        healed.wait(30)
        return run.open_write(name)

    monkeypatch.setattr(saving, "open_writer", open_writer)
    saver = Saver(RunDir(str(tmp_path)), 30)
    assert saver.save(tensors(), a_record(1))
    assert not saver.save(tensors(), a_record(2)), "left out, and not waited for"
    assert saver.figures["checkpoint/failing_seconds"] > 0.3
    healed.set()
    saver.finish()
    assert saver.save(tensors(), a_record(3))
    saver.finish()
    assert [each.step for each in committed(saver.run)] == [3, 1]


@pytest.mark.usefixtures("impatient")
def test_a_failure_beyond_the_budget_is_fatal_at_the_next_save_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "open_writer", Faulty(1000, OSError(errno.ENOSPC, "No space left on device")))
    saver = Saver(RunDir(str(tmp_path)), 0.2)
    saver.save(tensors(), a_record(1))
    for _ in range(2):
        with pytest.raises(SaveFailed, match=r"step 1 could not be saved .* No space left on device"):
            saver.finish()
    with pytest.raises(SaveFailed):
        saver.save(tensors(), a_record(2))


def large(fill: float = 1.0) -> dict[str, Any]:
    """Of more than two parts."""
    return {"weights": torch.full((9_000_000,), fill)}


@pytest.mark.parametrize("what", [tensors, large])
def test_an_object_store_s_own_checksum_is_compared(s3: str, monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    read_back = []
    monkeypatch.setattr(saving, "check", lambda *given: read_back.append(given))
    run = RunDir(f"{s3}/{uuid.uuid4().hex}")
    saver = Saver(run, 0)
    saver.save(what(), a_record(1))
    saver.finish()
    assert newest(run)
    assert not read_back, "the tags are equal"


@pytest.mark.usefixtures("impatient")
def test_bytes_that_are_damaged_on_their_way_are_sent_again(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    class Damaging:
        def __init__(self, file: Any) -> None:
            self.file = file
            sent.append(self)

        def write(self, data: bytes) -> None:
            flipped = bytes([data[0] ^ 1]) + data[1:] if len(sent) == 1 and len(data) > 1000 else data
            self.file.write(flipped)

        def close(self) -> None:
            self.file.close()

    monkeypatch.setattr(saving, "open_writer", lambda *given: Damaging(open_writer(*given)))
    run = RunDir(f"{s3}/{uuid.uuid4().hex}")
    saver = Saver(run, 30)
    saver.save(large(), a_record(1))
    saver.finish()
    assert len(sent) == 2
    found = newest(run)
    assert found is not None
    check(run, found)


def test_a_store_with_tags_of_its_own_is_read_back_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunDir, "size_and_tag", lambda run, name: (run.fs.info(f"{run.path}/{name}")["size"], "own"))
    read_back = []
    monkeypatch.setattr(saving, "check", lambda *given: read_back.append(check(*given)))
    saver = Saver(RunDir(f"{s3}/{uuid.uuid4().hex}"), 0)
    for step in (1, 2):
        saver.save(tensors(), a_record(step))
        saver.finish()
    assert len(list(committed(saver.run))) == 2
    assert read_back == [None]


def test_a_failed_save_surfaces_before_the_process_ends_well(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "open_writer", Faulty(1000, OSError("away")))
    with pytest.raises(SaveFailed, match="away"):
        app(*FIT, "--run_dir", tmp_path, "--checkpoints.storage_budget=0")


@pytest.mark.parametrize(
    ("cores", "idle", "parts"),
    [(2, 0.0, 1), (2, 0.3, 1), (2, 2.0, 6), (64, 0.0, 8), (16, 0.0, 4), (16, 1.5, 4), (1, 100.0, 8), (1, 0.0, 1)],
)
def test_an_upload_takes_more_parts_at_once_where_cores_stand_idle(cores: int, idle: float, parts: int) -> None:
    assert parts_at_once(cores, idle) == parts


def test_idle_cores_are_those_that_do_nothing() -> None:
    assert 0 <= transfer._idle_cores() <= (os.cpu_count() or 1) + 0.5
