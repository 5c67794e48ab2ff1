"""Commit records: the small JSON files that make a checkpoint exist.

A `.ckpt` without its record does not exist. The record is written last, after the bytes are durable, and holds their
length and digest. Needs no torch, so the submitter can read results.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir

log = logging.getLogger(__name__)

UNCOMMITTED = "it has no commit record: its save did not finish"

_AT_ONCE = 64
"""Records that are read concurrently, at most."""
_SHOWN = 20
_SKIPPING = "skipping checkpoint step %d: %s"


class Corrupt(Exception):
    """The bytes of a checkpoint are not those of its commit record: what was expected, and what was found."""


@dataclass(frozen=True)
class Monitor:
    """The value that says which checkpoint is best: `mode` is `min` or `max`."""

    name: str
    value: float
    mode: str

    @staticmethod
    def of(name: str, value: float, mode: str) -> "Monitor | None":
        """Return a value that was logged; None for one that is never best, nor JSON."""
        if not math.isfinite(value):
            log.warning("%s is %s: this checkpoint cannot become the best", name, value)
            return None
        return Monitor(name, value, mode)


@dataclass(frozen=True)
class CommitRecord:
    """One committed checkpoint.

    Attributes:
        step: Optimizer steps done, Lightning's `global_step`.
        epoch: The epoch that training resumes in, counted from 0.
        position: Training samples of that epoch consumed by all ranks together; None for foreign data.
        bytes: Length of the `.ckpt`.
        sha256: Its digest, `sha256:<hex>`.
        monitor: The monitored value at this step; None without one.
        world_size: Processes that trained.
        created: RFC 3339, UTC.
        reason: Why it was due: `steps`, `minutes`, `validation`, `epoch`, `preemption`, `end`.
        ended: What ended training there, see `pipeline.training.state.run_end`; None: it had not ended.
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
    ended: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The name of the checkpoint file in its run directory."""
        return RunDir.checkpoint(self.step)

    @staticmethod
    def of_dict(value: dict[str, Any]) -> "CommitRecord":
        """Return what `dataclasses.asdict` made a mapping of.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is of another type.
            ValueError: A field is not a number.
        """
        monitor, position, ended = value["monitor"], value["position"], value.get("ended")
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
            ended=None if ended is None else {"by": str(ended["by"]), "asked": dict(ended["asked"])},
        )


Check = Callable[[CommitRecord], object]


def skip_verification(record: CommitRecord) -> None:
    """Accept a checkpoint by its record alone."""


def write_record(run: RunDir, record: CommitRecord, overwrite: bool = False) -> bool:
    """Commit: from now on the checkpoint exists.

    Args:
        run: The run directory.
        record: Of the checkpoint.
        overwrite: Whether to replace a record of the same step.

    Returns:
        Whether it was written: False where there is one already that must not be replaced.
    """
    name, value = RunDir.record(record.step), asdict(record)
    if record.ended is None:
        del value["ended"]
    if not overwrite:
        return run.create_json(name, value)
    run.write_json(name, value)
    return True


def read_record(run: RunDir, step: int) -> CommitRecord | None:
    """Return the record of a step, or None where it is missing or is not one."""
    return parse_record(step, run.read_json(RunDir.record(step)))


def examined(run: RunDir) -> Iterator[tuple[int, CommitRecord | str]]:
    """Yield every step that has left a file, newest first, with its record or with why there is no checkpoint of it.

    One listing, and the records as they are consumed: the first one alone, then growing batches.
    """
    found = run.steps()
    left = sorted({*found["json"], *found["ckpt"]}, reverse=True)
    at_once = 1
    while left:
        steps, left = left[:at_once], left[at_once:]
        at_once = min(2 * at_once, _AT_ONCE)
        values = run.read_jsons(RunDir.record(step) for step in steps if step in found["json"])
        for step in steps:
            record = parse_record(step, values.get(RunDir.record(step)))
            yield step, _assess(step, record, found)


def committed(run: RunDir, check: Check = skip_verification) -> Iterator[CommitRecord]:
    """Yield the committed checkpoints, newest first. One that differs from its record is skipped with a warning.

    Args:
        run: The run directory.
        check: Raises `Corrupt` for one whose bytes differ from its record.
    """
    for step, found in examined(run):
        if isinstance(found, CommitRecord):
            if _is_good(found, check):
                yield found
        elif found is not UNCOMMITTED:
            log.warning(_SKIPPING, step, found)


def newest(run: RunDir, check: Check = skip_verification) -> CommitRecord | None:
    """Return the newest good checkpoint, or None in a run directory that has never had one.

    Args:
        run: The run directory.
        check: As for `committed`.

    Raises:
        UserError: There are commits, but none is good: starting from scratch without a word would bury them.
    """
    record = next(committed(run, check), None)
    if record is None and run.steps()["json"]:
        raise UserError(
            f"run_dir={run.label!r} has commit records but no good checkpoint (the warnings above say why). "
            "Restore the files, or start a new run with another --run_dir"
        )
    return record


def select(run: RunDir, which: str | None = None, check: Check = skip_verification) -> CommitRecord:
    """Return the checkpoint to evaluate.

    Args:
        run: The run directory.
        which: `best` (by the monitor of the newest checkpoint that has one), `latest`, a step, or None: the best if
            there is a monitor, else the latest.
        check: As for `committed`.

    Raises:
        UserError: There is no such checkpoint, or the step that was asked for is damaged.
    """
    if which is not None and which.isdecimal():
        return _of_step(run, int(which), check)
    if which not in (None, "best", "latest"):
        raise UserError(f"checkpoint={which!r} must be 'best', 'latest' or a committed step")
    records = [] if which == "latest" else list(committed(run))
    for record in _best_first(records):
        if _is_good(record, check):
            return record
    if which == "best" and records:
        raise UserError(
            f"checkpoint='best': no good checkpoint of {run.label} has a monitored value. Use 'latest' or a step, or "
            "train with --checkpoints.monitor=<a logged metric>"
        )
    latest = newest(run, check)
    if latest is None:
        raise UserError(f"run_dir={run.label!r} has no checkpoint: train first, or name the right --run_dir")
    return latest


def _is_good(record: CommitRecord, check: Check) -> bool:
    """Return whether a checkpoint is as its record says; warn of one that is not."""
    try:
        check(record)
    except Corrupt as error:
        log.warning(_SKIPPING, record.step, error)
        return False
    return True


def _of_step(run: RunDir, step: int, check: Check) -> CommitRecord:
    found = run.steps()
    assessed = _assess(step, read_record(run, step), found) if step in found["json"] else UNCOMMITTED
    try:
        if isinstance(assessed, CommitRecord):
            check(assessed)
            return assessed
    except Corrupt as error:
        assessed = str(error)
    if assessed is UNCOMMITTED:
        steps = ", ".join(map(str, sorted(found["json"].keys() & found["ckpt"].keys())[-_SHOWN:])) or "none"
        raise UserError(f"checkpoint={step} must be 'best', 'latest' or a committed step, now {steps}")
    raise UserError(
        f"checkpoint={step} is damaged: {assessed}. Name another step, 'best' or 'latest', or restore the file"
    )


def _best_first(records: list[CommitRecord]) -> list[CommitRecord]:
    """Return those with a value of the newest one's monitor, best first, the newest of equals first."""
    monitored = [(each.monitor, each) for each in records if each.monitor is not None]
    if not monitored:
        return []
    name, mode = monitored[0][0].name, monitored[0][0].mode
    comparable = [(value.value, each) for value, each in monitored if (value.name, value.mode) == (name, mode)]
    sign = -1.0 if mode == "max" else 1.0
    # `records` comes newest first, and sorting keeps the order of equals.
    return [each for _, each in sorted(comparable, key=lambda pair: sign * pair[0])]


def _assess(step: int, record: CommitRecord | None, found: dict[str, dict[int, int]]) -> CommitRecord | str:
    size = found["ckpt"].get(step)
    if step not in found["json"]:
        return UNCOMMITTED
    if record is None:
        return "its commit record is torn or foreign"
    if size != record.bytes:
        has = "is missing" if size is None else f"has {size} bytes"
        return f"its file {has}, its record says {record.bytes} bytes"
    return record


def parse_record(step: int, value: dict[str, Any] | None) -> CommitRecord | None:
    """Return the record of a step that a JSON file holds, or None where it is not one."""
    if value is None:
        return None
    try:
        record = CommitRecord.of_dict(value)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return record if record.step == step else None
