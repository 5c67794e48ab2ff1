"""One writer per run, through the whole app: two that start at once, and one that wakes up after its lease is gone."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.checkpoint.commit import CommitRecord, committed
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.commands import ROOT
from tests.support.runs import FIT

SLOW = (*FIT, "--model=tests.support.killable.Slowly", "--checkpoints.every_n_steps=2", "--trainer.max_epochs=2")


def started(run: Path, name: str) -> tuple[subprocess.Popen[str], Path]:
    """A fit in the background, and where it writes what it says."""
    said = run.parent / f"{name}.txt"
    with said.open("w") as file:
        program = [sys.executable, "-m", "pipeline", *SLOW, "--run_dir", str(run)]
        return subprocess.Popen(program, cwd=ROOT, stdout=file, stderr=file, text=True), said


def records(run: Path) -> list[CommitRecord]:
    """All checkpoints, each of them with the bytes that its record names."""
    found = list(committed(RunDir(str(run))))
    for each in found:
        assert each.sha256 == f"sha256:{hashlib.sha256((run / each.name).read_bytes()).hexdigest()}"
    return found


def until(seen: Path, pattern: str) -> None:
    began = time.monotonic()
    while not list(seen.glob(pattern)):
        assert time.monotonic() - began < 60, f"{pattern} did not come"
        time.sleep(0.02)


@pytest.mark.timeout(120)
def test_of_two_that_start_at_once_one_trains_and_the_other_is_told_who(tmp_path: Path) -> None:
    both = [started(tmp_path / "run", name) for name in ("one", "other")]
    statuses = [process.wait(90) for process, _ in both]
    assert sorted(statuses) == [0, 2], [said.read_text() for _, said in both]
    refused = both[statuses.index(2)][1].read_text()
    assert "has a writer already, launch" in refused
    assert "Traceback" not in refused
    assert records(tmp_path / "run")[0].step == 14


@pytest.mark.timeout(120)
def test_a_writer_that_was_stopped_until_its_lease_was_gone_commits_nothing_more(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stale, said = started(run, "stale")
    try:
        until(run, "checkpoints/*.json")
        os.kill(stale.pid, signal.SIGSTOP)
        # As if a minute had passed.
        old = time.time() - 120
        os.utime(run / LEASE, (old, old))
        fresh, news = started(run, "fresh")
        until(run, "attempts/0002.json")
        os.kill(stale.pid, signal.SIGCONT)
        assert fresh.wait(60) == 0, news.read_text()
        assert stale.wait(60) == 1, said.read_text()
    finally:
        stale.kill()
    assert "takes over from" in news.read_text()
    assert "is no longer the writer" in said.read_text()
    assert records(run)[0].step == 14
    first, second = (RunDir(str(run)).read_json(RunDir.attempt(number)) for number in (1, 2))
    assert first is not None
    assert second is not None
    assert (second["status"], second["last_step"]) == (0, 14)
    assert first["status"] == 1
    assert "lease lost" in first["reason"]
