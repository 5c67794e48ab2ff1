"""What a node has against what the job requires, each finding with what to do."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from pipeline.commands.preflight import node
from pipeline.commands.preflight.node import (
    CheckStatus,
    NodeFinding,
    NodeRequirements,
    check_disk,
    check_gpus,
    check_memory,
    check_node,
    check_shm,
    check_storage,
)
from tests.support.commands import Ended

MB = 1 << 20
App = Callable[..., Ended]


@pytest.mark.parametrize(
    ("finding", "status", "words"),
    [
        (check_memory(0, 100 * MB), CheckStatus.OK, "0.1 GB free"),
        (check_memory(200, 100 * MB), CheckStatus.ACTION_REQUIRED, "200 MB are required"),
        (check_memory(200, None), CheckStatus.OK, "unknown"),
        (check_shm(0, 64 * MB, 64 * MB), CheckStatus.WARNING, "bus error"),
        (check_shm(0, 65 * MB, 1 * MB), CheckStatus.OK, "1 of 65 MB free"),
        (check_shm(64, 64 * MB, 64 * MB), CheckStatus.OK, "64 of 64 MB free"),
        (check_shm(128, 64 * MB, 64 * MB), CheckStatus.ACTION_REQUIRED, "request more by --shm"),
        (check_disk(0, "/tmp", 5000 * MB), CheckStatus.OK, "4.9 GB free in /tmp"),
        (check_disk(0, "/tmp", 100 * MB), CheckStatus.WARNING, "set TMPDIR"),
        (check_disk(200, "/tmp", 100 * MB), CheckStatus.ACTION_REQUIRED, "200 MB are required"),
    ],
)
def test_what_is_there_is_held_against_what_is_needed(finding: NodeFinding, status: CheckStatus, words: str) -> None:
    assert finding.status is status
    assert words in f"{finding.found} {finding.advice}"
    assert bool(finding.advice) == (status is not CheckStatus.OK)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without GPUs")
def test_gpus_that_are_not_there_must_be_asked_for_or_done_without() -> None:
    (asked,) = check_gpus(2, 1)
    assert (asked.status, asked.found) == (CheckStatus.ACTION_REQUIRED, "0 of 2 GPUs")
    if torch.version.cuda is None:
        assert asked.advice.startswith("Torch not compiled with CUDA enabled: request GPUs from the launcher (--gpu)")
    assert [one.status for one in check_gpus(0, 4)] == [one.status for one in check_gpus(None, 4)] == [CheckStatus.OK]


@pytest.mark.parametrize(
    "why",
    [
        "Torch not compiled with CUDA enabled",
        "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
        "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver",
        "No CUDA GPUs are available",
    ],
)
def test_why_there_are_no_gpus_is_said(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    def init() -> None:
        raise RuntimeError(why)

    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (found,) = check_gpus(1, 1)
    assert found.advice.startswith(f"{why.partition('. ')[0]}: request GPUs from the launcher (--gpu)")
    assert "TORCH=cuda" in found.advice


def test_a_storage_that_keeps_is_fine_and_nothing_stays_there(storage: str) -> None:
    from pipeline.run.run_dir import RunDir

    found = node.check_storage(storage)
    assert [one.status for one in found] == [CheckStatus.OK], found
    run = RunDir(storage)
    assert not run.fs.exists(run.path) or not run.fs.ls(run.path)


def test_a_storage_that_does_not_keep_is_the_users_to_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = check_storage(str(tmp_path / "file/run"))
    assert found.status is CheckStatus.ACTION_REQUIRED
    assert "NotADirectoryError" in found.found


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_the_users_to_fix() -> None:
    (found,) = check_storage("s3://no-such-bucket-here/run")
    assert found.status is CheckStatus.ACTION_REQUIRED


def test_a_storage_that_is_away_may_be_back_at_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    (found,) = check_storage("s3://bucket/run")
    kind.clear_instance_cache()
    assert found.status is CheckStatus.FAILED
    assert "s3://bucket/run does not answer" in found.advice


@pytest.mark.parametrize(("off", "words"), [(3600.0, "3600 s ahead of"), (-3600.0, "3600 s behind"), (2.0, "")])
def test_a_clock_that_is_off_from_the_storages_is_told(tmp_path: Path, off: float, words: str) -> None:
    found = check_storage(str(tmp_path), lambda: time.time() + off)
    told = [one for one in found if one.check == "clock"]
    assert len(told) == bool(words)
    for one in told:
        assert one.found.startswith(words[:4])
        assert words[5:] in one.found


def test_all_of_a_node_is_looked_at(tmp_path: Path) -> None:
    about = [one.check for one in check_node(NodeRequirements(), str(tmp_path), 1, 30.0) if one.check != "disk"]
    assert about == ["devices", "memory", "shared memory", "storage"]


def test_a_storage_that_never_answers_is_left_after_its_limit() -> None:
    over = threading.Event()

    def look() -> list[NodeFinding]:
        over.wait()
        return []

    (found,) = node.storage_within(0.1, look, "s3://bucket/run")
    over.set()
    assert found.status is CheckStatus.FAILED
    assert "s3://bucket/run does not answer" in found.advice
