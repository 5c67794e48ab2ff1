"""What a node has against what a training needs, each told in words with what to do."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.preflight import node
from pipeline.commands.preflight.job import Job, Node, _ring, _turns
from pipeline.commands.preflight.node import Finding, Needs, Verdict, devices, disk, findings, memory, shm, storage
from pipeline.commands.preflight.report import told
from tests.support.agent_harness import free_port
from tests.support.commands import Ended

MB = 1 << 20
App = Callable[..., Ended]


@pytest.mark.parametrize(
    ("finding", "verdict", "words"),
    [
        (memory(0, 100 * MB), Verdict.FINE, "0.1 GB free"),
        (memory(200, 100 * MB), Verdict.MUST_CHANGE, "200 MB are needed"),
        (memory(200, None), Verdict.FINE, "unknown"),
        (shm(0, 64 * MB, 64 * MB), Verdict.DOUBTFUL, "bus error"),
        (shm(0, 65 * MB, 1 * MB), Verdict.FINE, "1 of 65 MB free"),
        (shm(64, 64 * MB, 64 * MB), Verdict.FINE, "64 of 64 MB free"),
        (shm(128, 64 * MB, 64 * MB), Verdict.MUST_CHANGE, "ask for more by --shm"),
        (disk(0, "/tmp", 5000 * MB), Verdict.FINE, "4.9 GB free in /tmp"),
        (disk(0, "/tmp", 100 * MB), Verdict.DOUBTFUL, "set TMPDIR"),
        (disk(200, "/tmp", 100 * MB), Verdict.MUST_CHANGE, "200 MB are needed"),
    ],
)
def test_what_is_there_is_held_against_what_is_needed(finding: Finding, verdict: Verdict, words: str) -> None:
    assert finding.verdict is verdict
    assert words in f"{finding.found} {finding.advice}"
    assert bool(finding.advice) == (verdict is not Verdict.FINE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without GPUs")
def test_gpus_that_are_not_there_must_be_asked_for_or_done_without() -> None:
    (asked,) = devices(2, 1)
    assert (asked.verdict, asked.found) == (Verdict.MUST_CHANGE, "0 of 2 GPUs")
    assert [one.verdict for one in devices(0, 4)] == [one.verdict for one in devices(None, 4)] == [Verdict.FINE]


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        (None, None, "torch is built without CUDA here: build the image with TORCH=cuda"),
        ("13.0", None, "no NVIDIA driver is seen here: ask the launcher for GPUs (--gpu)"),
        ("13.0", "535.183.01", "the driver 535.183 is too old for CUDA 13.0, for which torch is built: 580 or newer"),
        ("13.0", "580.65.06", "the driver gives this container none"),
        ("12.8", "535.183.01", "the driver gives this container none"),
    ],
)
def test_why_there_are_no_gpus_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, driver: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(node, "_DRIVER_SAYS", tmp_path / "version")
    if driver:
        text = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build  (builder)  Fri\n"
        (tmp_path / "version").write_text(text)
    (found,) = devices(1, 1)
    assert words in found.advice


def test_a_storage_that_keeps_is_fine_and_nothing_stays_there(storage: str) -> None:
    from pipeline.run.run_dir import RunDir

    found = node.storage(storage)
    assert [one.verdict for one in found] == [Verdict.FINE], found
    run = RunDir(storage)
    assert not run.fs.exists(run.path) or not run.fs.ls(run.path)


def test_a_storage_that_does_not_keep_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = storage(str(tmp_path / "file/run"))
    assert found.verdict is Verdict.MUST_CHANGE
    assert "NotADirectoryError" in found.found


@pytest.mark.usefixtures("s3")
def test_a_bucket_that_is_not_there_is_the_users_to_mend() -> None:
    (found,) = storage("s3://no-such-bucket-here/run")
    assert found.verdict is Verdict.MUST_CHANGE


def test_a_storage_that_is_away_may_be_back_at_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()
    (found,) = storage("s3://bucket/run")
    kind.clear_instance_cache()
    assert found.verdict is Verdict.BROKEN
    assert "s3://bucket/run does not answer" in found.advice


@pytest.mark.parametrize(("off", "words"), [(3600.0, "3600 s ahead of"), (-3600.0, "3600 s behind"), (2.0, "")])
def test_a_clock_that_is_off_from_the_storages_is_told(tmp_path: Path, off: float, words: str) -> None:
    found = storage(str(tmp_path), lambda: time.time() + off)
    told = [one for one in found if one.about == "clock"]
    assert len(told) == bool(words)
    for one in told:
        assert one.found.startswith(words[:4])
        assert words[5:] in one.found


@given(st.integers(2, 40))
def test_every_link_of_the_ring_is_tried_once_and_no_node_has_two_at_a_time(nodes: int) -> None:
    turns = list(_turns(nodes))
    assert sorted(link for turn in turns for link in turn) == sorted(_ring(nodes))
    assert len(turns) <= 3
    for turn in turns:
        busy = [number for link in turn for number in link]
        assert len(busy) == len(set(busy))
    assert {number for link in _ring(nodes) for number in link} == set(range(nodes))


def test_the_report_has_a_line_for_each_node_and_for_each_trouble() -> None:
    job = Job(
        [
            Node("a", [Finding("memory", "8.0 GB free"), Finding("devices", "CPU")], link=2e9),
            Node("b", [Finding("clock", "7 s behind", Verdict.DOUBTFUL, "set it")], link=1.5e9),
        ],
        reduced=(1e9, 32 << 20),
    )
    assert told(job, 2, 0).splitlines() == [
        "preflight of 2 nodes x 2 processes: ready",
        "  node 0 (a)  memory: 8.0 GB free; devices: CPU; best link: 2000 MB/s",
        "  node 1 (b)  best link: 1500 MB/s",
        "  all-reduce of 32 MB: 1000 MB/s",
        "doubtful: node 1 (b): clock: 7 s behind: set it",
    ]


def test_alone_it_looks_at_this_machine(app: App, tmp_path: Path) -> None:
    ended = app("preflight", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.text
    assert "preflight of 1 node x 1 process: ready" in ended.out
    for word in ("devices: ", "memory: ", "shared memory: ", "disk: ", "storage: "):
        assert word in ended.out
    ended = app("preflight", "--run_dir", tmp_path / "run", "--memory", 1 << 30)
    assert ended.status == 2
    assert "preflight of 1 node x 1 process: you must change something" in ended.out
    assert f"{1 << 30} MB are needed: ask for more (--memory), or take a node that has it" in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--gpus", "-1", "--shm", "-2"], ["gpus=-1", "shm=-2"]), (["--seconds", "0"], ["seconds=0"])],
)
def test_a_mistake_is_said(app: App, arguments: list[str], words: list[str]) -> None:
    ended = app("preflight", "--run_dir", "runs/x", *arguments)
    assert ended.status == 2
    for word in words:
        assert word in ended.err


def test_all_of_a_node_is_looked_at(tmp_path: Path) -> None:
    about = [one.about for one in findings(Needs(), str(tmp_path), 1, 30.0) if one.about != "disk"]
    assert about == ["devices", "memory", "shared memory", "storage"]


def test_a_storage_that_never_answers_is_left_after_its_limit() -> None:
    over = threading.Event()

    def look() -> list[Finding]:
        over.wait()
        return []

    (found,) = node.in_time(look, "s3://bucket/run", 0.1)
    over.set()
    assert found.verdict is Verdict.BROKEN
    assert "s3://bucket/run does not answer" in found.advice


def test_rank_0_out_of_reach_is_said_without_a_traceback(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    where = {"GROUP_RANK": "1", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in {**topology, **where}.items():
        monkeypatch.setenv(name, value)
    ended = app("preflight", "--run_dir", tmp_path / "run", "--seconds", 1)
    assert ended.status == 1, ended.text
    assert f"127.0.0.1:{where['MASTER_PORT']} cannot be reached: [Errno 111] Connection refused" in ended.out
    assert "Traceback" not in ended.text
