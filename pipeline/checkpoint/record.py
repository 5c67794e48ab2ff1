"""Commit records: the small JSON files that make a checkpoint exist.

A `.ckpt` without its record does not exist. The record is written last, after the bytes are durable, and says what
they must be. Needs no torch, so the submitter reads results with it.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.run_dir import RunDir

log = logging.getLogger(__name__)

UNCOMMITTED = "it has no commit record: its save did not come to its end"


@dataclass(frozen=True)
class Monitor:
    """The value that tells which checkpoint is best: `mode` says whether the least or the greatest is."""

    name: str
    value: float
    mode: str


@dataclass(frozen=True)
class CommitRecord:
    """One committed checkpoint.

    Attributes:
        step: Optimizer steps done, Lightning's `global_step`.
        epoch: The epoch that training goes on with, counted from 0.
        position: Training samples of that epoch consumed by all ranks together; None where the data is foreign.
        bytes: Length of the `.ckpt`.
        sha256: Its digest, `sha256:<hex>`.
        monitor: The monitored value at this step; None without one.
        world_size: Processes that trained.
        created: RFC 3339, UTC.
        reason: Why it was due: `steps`, `minutes`, `validation`, `epoch`, `end`.
    """

    step: int
    epoch: int
    position: int | None
    bytes: int
    sha256: str
    monitor: Monitor | None
    world_size: int
    created: str
    reason: list[str]

    @property
    def name(self) -> str:
        """The name of the checkpoint file in its run directory."""
        return RunDir.checkpoint(self.step)


def write_record(run: RunDir, record: CommitRecord) -> None:
    """Commit: from here on the checkpoint exists."""
    run.write_json(RunDir.record(record.step), asdict(record))


def read_record(run: RunDir, step: int) -> CommitRecord | None:
    """The record of a step, or None where it is missing or is not one."""
    value = run.read_json(RunDir.record(step))
    if value is None:
        return None
    try:
        record = _parse(value)
    except (KeyError, TypeError, ValueError):
        return None
    return record if record.step == step else None


def examined(run: RunDir) -> Iterator[tuple[int, CommitRecord | str]]:
    """Every step that has left a file, newest first: its record, or why there is no checkpoint of it."""
    found = run.steps()
    for step in sorted({*found["json"], *found["ckpt"]}, reverse=True):
        size = found["ckpt"].get(step)
        record = read_record(run, step) if step in found["json"] else None
        if step not in found["json"]:
            yield step, UNCOMMITTED
        elif record is None:
            yield step, "its commit record is torn or foreign"
        elif size != record.bytes:
            has = "is missing" if size is None else f"has {size} bytes"
            yield step, f"its file {has}, its record says {record.bytes} bytes"
        else:
            yield step, record


def committed(run: RunDir) -> Iterator[CommitRecord]:
    """The committed checkpoints, newest first. One that its record does not match is passed over with a warning."""
    for step, found in examined(run):
        if isinstance(found, CommitRecord):
            yield found
        elif found is not UNCOMMITTED:
            log.warning("passing over step %d: %s", step, found)


def newest(run: RunDir) -> CommitRecord | None:
    """The newest good checkpoint, or None in a run directory that has never had one.

    Raises:
        UserError: There are commits, but none is good: starting afresh in silence would bury them.
    """
    record = next(committed(run), None)
    if record is None and run.steps()["json"]:
        raise none_good(run)
    return record


def none_good(run: RunDir) -> UserError:
    """There are commits, but none is good."""
    return UserError(
        f"run_dir={run.label!r} has commit records but no good checkpoint (the warnings above say why). "
        "Mend the files, or start a new run with another --run_dir"
    )


def select(run: RunDir, which: str | None) -> CommitRecord:
    """The checkpoint to evaluate.

    Args:
        run: The run directory.
        which: `best` (by the monitored value), `latest`, a step, or None: the best where one was monitored, else
            the latest.

    Raises:
        UserError: There is none such.
    """
    return choose(run, list(committed(run)), which)


def choose(run: RunDir, records: list[CommitRecord], which: str | None) -> CommitRecord:
    """The one of these checkpoints, newest first, that `select` means.

    Raises:
        UserError: There is none such.
    """
    if not records and run.steps()["json"]:
        raise none_good(run)
    if not records:
        raise UserError(f"run_dir={run.label!r} has no checkpoint: train first, or name the right --run_dir")
    monitored = [(record.monitor, record) for record in records if record.monitor is not None]
    if which == "best" and not monitored:
        raise UserError(
            f"checkpoint='best': no checkpoint of {run.label} has a monitored value. Use 'latest' or a step, or train "
            "with --checkpoints.monitor=<a logged metric>"
        )
    if which == "latest" or (which is None and not monitored):
        return records[0]
    if which in (None, "best"):
        sign = -1.0 if monitored[0][0].mode == "max" else 1.0
        # The newest of equals: `records` comes newest first and min() keeps the first.
        return min(monitored, key=lambda pair: sign * pair[0].value)[1]
    assert which is not None
    for record in records:
        if which.isdecimal() and record.step == int(which):
            return record
    steps = ", ".join(str(record.step) for record in reversed(records[:20]))
    raise UserError(f"checkpoint={which!r}: allowed are 'best', 'latest' and the committed steps {steps}")


def _parse(value: dict[str, Any]) -> CommitRecord:
    monitor = value["monitor"]
    position = value["position"]
    return CommitRecord(
        step=int(value["step"]),
        epoch=int(value["epoch"]),
        position=None if position is None else int(position),
        bytes=int(value["bytes"]),
        sha256=str(value["sha256"]),
        monitor=None
        if monitor is None
        else Monitor(str(monitor["name"]), float(monitor["value"]), str(monitor.get("mode", "min"))),
        world_size=int(value["world_size"]),
        created=str(value["created"]),
        reason=[str(reason) for reason in value["reason"]],
    )
