"""Over the length of a run: its checkpoints, its epochs, its attempts."""

import hashlib
import io
import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from pipeline.checkpoint.commit import CommitRecord, write_record
from pipeline.checkpoint.load import newest_verified
from pipeline.checkpoint.retention import Keep, Retention
from pipeline.checkpoint.serializable import plain
from pipeline.checkpoint.snapshot import Snapshots
from pipeline.data.epoch_record import EpochRecord, Tally
from pipeline.data.ledger import Ledger
from pipeline.process.topology import Topology
from pipeline.run.attempts import AttemptLog, reported_commits
from pipeline.run.goodput import PURPOSES
from pipeline.run.goodput_report import GoodputReport
from pipeline.run.run_dir import ATTEMPTS, CHECKPOINTS, SCHEMA, RunDir
from pipeline.training.state.run_state import RunState
from tests.benchmarks.growth.curve import curve
from tests.benchmarks.saving import record, seconds
from tests.benchmarks.subject import Reading
from tests.support import ram
from tests.support.checkpoints import watched

_PAGE = 1000
"""Names that S3 lists at once."""
_CALLS = ("ls", "open", "info", "rm_file")
_CONTENT = b"a tiny checkpoint"
FIND, REQUESTS, FIRST_PASS, PASS = (
    "the newest good one is found",
    "requests for that on S3",
    "first retention pass after a start",
    "each later pass",
)


def committed(step: int) -> CommitRecord:
    return replace(record(step), bytes=len(_CONTENT), sha256=f"sha256:{hashlib.sha256(_CONTENT).hexdigest()}")


def fill(run: RunDir, count: int) -> None:
    """Leave so many checkpoints."""
    run.write(RunDir.checkpoint(1), _CONTENT)
    write_record(run, committed(1))
    for step in range(2, count + 1):  # as those, but without waiting for the disk each time
        text = json.dumps({"schema": SCHEMA, **asdict(committed(step))}).encode()
        put(run, {RunDir.checkpoint(step): _CONTENT, RunDir.record(step): text})


def put(run: RunDir, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        run.fs.pipe_file(f"{run.path}/{name}", content)


def elsewhere(size: int) -> RunDir:
    """A run on a storage that is reached as a remote one is."""
    return RunDir(f"{ram.RamFileSystem.protocol}://growth-{size}/run")


def requests(run: RunDir, folder: str, act: Any) -> int:
    """The requests that a call makes; a folder is listed in pages."""
    names, fs = len(run.names(folder)), watched(run)
    act(run)
    return sum(fs.calls[each] for each in _CALLS) + fs.calls["ls"] * (math.ceil(names / _PAGE) - 1)


@curve(
    "checkpoints",
    "checkpoints",
    {FIND: "s", REQUESTS: "requests", FIRST_PASS: "s", PASS: "s"},
    {"tiny": (10, 20), "quick": (10, 30, 100, 300, 1000), "full": (10, 30, 100, 300, 1000, 2000, 5000)},
    rounds=3,
)
def checkpoints(size: int, folder: Path) -> Reading:
    """So many checkpoints are in the run directory, of which all but the oldest are kept."""
    run, far = RunDir(str(folder / "run")), elsewhere(size)
    fill(run, size)
    fill(far, size)
    found = seconds(lambda: newest_verified(run))
    asked = requests(far, CHECKPOINTS, newest_verified)
    passes = []
    retention = Retention(run, Keep(last=size))
    for newer in map(committed, (size + 1, size + 2)):
        run.write(newer.name, _CONTENT)
        write_record(run, newer)
        passes.append(seconds(partial(retention.after_commit, newer)))
    assert len(run.steps()["ckpt"]) == size
    return {FIND: found, REQUESTS: asked, FIRST_PASS: passes[0], PASS: passes[1]}


BYTES, STOPS, CONTINUES = "the run state in a checkpoint", "each save stops for it", "a resume continues it"


def closed(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, 1, 10**6, 10**6, consumed=Tally(10**6, hash(str(epoch)) % 2**64), closed="complete")


@curve(
    "epochs",
    "epochs",
    {BYTES: "bytes", STOPS: "s", CONTINUES: "s"},
    {"tiny": (10, 100), "quick": (10, 100, 1000, 10_000), "full": (10, 30, 100, 300, 1000, 3000, 10_000)},
    rounds=5,
)
def epochs(size: int, _: Path) -> Reading:
    """So many epochs are in the ledger."""
    data: Any = SimpleNamespace(trainer=None, train_dataloader=None, batches=object())
    ledger, trainer, snapshots = Ledger(data), SimpleNamespace(), Snapshots()
    ledger.closed = [closed(epoch) for epoch in range(size)]

    def capture() -> dict[str, Any]:
        told: Any = ledger.state(trainer, size, 0)  # type: ignore[arg-type]
        state = RunState(facts={}, epoch=size, batches=0, position=0, ledger=told, ranks=[], metrics={})
        return snapshots.take(plain({"pipeline": state.to_dict()}))

    made = capture()
    stops = median(seconds(capture) for _ in range(5))
    file = io.BytesIO()
    torch.save(made, file)
    records = RunState.of_checkpoint(made)
    assert records is not None
    assert records.ledger is not None
    continues = seconds(lambda: Ledger(data).load(records.ledger or [], size))
    return {BYTES: file.tell(), STOPS: stops, CONTINUES: continues}


REPORT, START, ASKED = "GoodputReport.of", "a start reads them and takes the lease", "requests of that start on S3"


def attempt(number: int) -> dict[str, Any]:
    """The record of an attempt that was killed after an hour."""
    goodput = {"share": 0.9, "saves": 10, "stop_seconds": 1.0, "behind_seconds": 2.0}
    return {
        "attempt": number,
        "launch": "job",
        "first_step": number,
        "last_step": number + 1,
        "reached_step": number + 1,
        "ended": "2026-01-01T00:00:00.000Z",
        "status": None,
        "goodput": {**goodput, "seconds": dict.fromkeys(PURPOSES, 500.0)},
    }


def start(run: RunDir) -> None:
    """What rank 0 of a start reads of the attempts before it, and writes."""
    writer = AttemptLog()
    writer.take(run, Topology(0, 0, 1, 1, 0, 1))
    reported_commits(run)
    writer.__exit__(None, None, None)


@curve(
    "attempts",
    "attempts",
    {REPORT: "s", START: "s", ASKED: "requests"},
    {"tiny": (1, 5), "quick": (1, 10, 100, 1000), "full": (1, 3, 10, 30, 100, 300, 1000)},
    rounds=3,
)
def attempts(size: int, folder: Path) -> Reading:
    """So many attempts were made at the run."""
    run, far = RunDir(str(folder / "run")), elsewhere(size)
    for each in (run, far):
        each.write_json(RunDir.attempt(1), attempt(1))
        for number in range(2, size + 1):
            put(each, {RunDir.attempt(number): json.dumps({"schema": SCHEMA, **attempt(number)}).encode()})
    reported = seconds(lambda: GoodputReport.of(run))
    started = seconds(lambda: start(run))
    return {REPORT: reported, START: started, ASKED: requests(far, ATTEMPTS, start)}
