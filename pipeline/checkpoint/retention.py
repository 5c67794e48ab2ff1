"""Keep the last k checkpoints, the best k by the monitored value, and one for every m steps; delete the others.

Nothing is deleted before a newer commit is durable. Deleting starts with the commit record, so that at no instant a
reader accepts a checkpoint that is not whole; the next start removes a `.ckpt` that a crash leaves without its record.
Needs no torch, except for hashing in `prune`.
"""

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pipeline.checkpoint.commit import CommitRecord, committed
from pipeline.errors import UserError
from pipeline.run.run_dir import CHECKPOINTS, RunDir
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

_AT_ONCE = 50
"""Checkpoints deleted after one commit: the next save waits for them."""


@dataclass(frozen=True)
class Keep:
    """Which checkpoints of a run are kept; the newest one and the best one always are.

    Attributes:
        last: How many of the newest; None keeps everything.
        best: How many of the best by the monitored value.
        every_n_steps: Also the first one at or after each multiple of this; None: none for its step.
    """

    last: int | None = None
    best: int = 1
    every_n_steps: int | None = None

    def problems(self, prefix: str = "checkpoints.keep_") -> list[str]:
        """Return what the user must change, one sentence for each mistake.

        Args:
            prefix: What precedes `last`, `best` and `every_n_steps` in the name that the user gave.
        """
        found = [
            f"{prefix}{name}={value} must be >= 1"
            for name, value in (("last", self.last), ("best", self.best), ("every_n_steps", self.every_n_steps))
            if value is not None and value < 1
        ]
        if self.last is None:
            found += [
                f"{prefix}{name}={value} has no effect without {prefix}last: everything is kept. Give {prefix}last, "
                f"or leave {prefix}{name} out"
                for name, value, default in (("best", self.best, 1), ("every_n_steps", self.every_n_steps, None))
                if value != default
            ]
        return found


def surplus(records: Iterable[CommitRecord], keep: Keep, protected_steps: Collection[int] = ()) -> list[CommitRecord]:
    """Return the checkpoints that may be deleted, oldest first.

    What may be deleted once may be deleted after any newer commit, too.

    Args:
        records: All good checkpoints, in any order.
        keep: Which of them to keep.
        protected_steps: Steps to keep whatever `keep` says.
    """
    if keep.last is None:
        return []
    ordered = sorted(records, key=lambda record: record.step)
    kept = {*protected_steps, *(record.step for record in ordered[-max(keep.last, 1) :])}
    kept.update(_best(ordered, max(keep.best, 1)))
    if keep.every_n_steps is not None:
        passed = 0
        for record in ordered:
            # A save seldom falls on a multiple itself: epochs end where they end.
            if record.step // keep.every_n_steps > passed:
                passed = record.step // keep.every_n_steps
                kept.add(record.step)
    return [record for record in ordered if record.step not in kept]


def delete(run: RunDir, record: CommitRecord) -> bool:
    """Delete a checkpoint: first its record, then its bytes. May be repeated until nothing is left.

    Returns:
        Whether all of it is gone; an error of the storage is logged.
    """
    try:
        _remove(run, RunDir.record(record.step))
        # Else a power failure could leave a record whose file is gone.
        run.sync(CHECKPOINTS)
        _remove(run, record.name)
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        log.warning("checkpoint step %d not deleted yet: %s", record.step, storage_error(error))
        return False
    log.info("deleted checkpoint step %d (%d bytes)", record.step, record.bytes)
    return True


class Retention:
    """Deletes surplus checkpoints after each commit of this process. The records are read from the storage once.

    Args:
        run: The run directory, of which this process is the only writer.
        keep: Which checkpoints to keep.
        resumed_step: The step that this process resumed from, if the run itself committed it.
    """

    def __init__(self, run: RunDir, keep: Keep, resumed_step: int | None = None) -> None:
        self.run = run
        self.keep = keep
        self.resumed_step = resumed_step
        self._records: dict[int, CommitRecord] = {}
        self._has_read = False
        self._deleting: dict[int, CommitRecord] = {}

    def after_commit(self, record: CommitRecord) -> None:
        """Delete what may be deleted, now that this commit is durable; failures are retried after the next one."""
        if self.keep.last is None:
            return
        self._records[record.step] = record
        self._deleting.pop(record.step, None)
        if not self._has_read:
            try:
                self._records = {**self._read(), **self._records}
            except Exception as error:  # noqa: BLE001 - every storage has errors of its own
                log.warning("no checkpoint is deleted yet, the commit records cannot be read: %s", storage_error(error))
                return
            self._has_read = True
        protected = {record.step}
        if self.resumed_step is not None and max(self._records) <= self.resumed_step:
            protected.add(self.resumed_step)
        for each in surplus(self._records.values(), self.keep, protected):
            self._deleting[each.step] = self._records.pop(each.step)
        for step in sorted(self._deleting)[:_AT_ONCE]:
            if not delete(self.run, self._deleting[step]):
                return  # the next save must not wait for a storage that fails
            del self._deleting[step]

    def _read(self) -> dict[int, CommitRecord]:
        """Return what the run had committed before.

        What comes after the resumed step was skipped: it is damaged, though its record may look good, and must never
        cause a good one to be deleted.
        """
        return {
            record.step: record
            for record in committed(self.run)
            if self.resumed_step is None or record.step <= self.resumed_step
        }


def prune(run: RunDir, keep: Keep, dry_run: bool = False) -> tuple[str, bool]:
    """Delete surplus checkpoints by hand, or only list them.

    The newest checkpoint is hashed before anything is deleted: a damaged one counts for nothing, and is kept.

    Returns:
        A text to read: each deleted step with its bytes, and the sum; and whether all of them are gone.

    Raises:
        UserError: `keep` is invalid, or there is no good checkpoint.
        Exception: The storage failed before anything was deleted.
    """
    problems = keep.problems("keep_")
    if problems:
        raise UserError(*problems)
    if keep.last is None:
        return f"nothing to delete in {run}: without keep_last everything is kept", True
    records = _good(run)
    if not records:
        raise UserError(f"run_dir={run.label!r} has no good checkpoint: there is nothing to prune")
    surplus_records = surplus(records, keep)
    verb, gone, lines = "would be deleted" if dry_run else "deleted", [], []
    for record in surplus_records:
        words = "FAILED (the warning above says why; prune again)"
        if dry_run or delete(run, record):
            words = verb
            gone.append(record)
        lines.append(f"step {record.step}  {record.bytes} bytes  {words}")
    remaining = len(records) - len(surplus_records)
    lines.append(f"{verb}: {len(gone)} of {len(records)} checkpoints, {sum(each.bytes for each in gone)} bytes")
    lines.append(f"kept: {remaining} checkpoint{'s' * (remaining != 1)}, the newest at step {records[0].step}")
    return "\n".join(lines), len(gone) == len(surplus_records)


def _good(run: RunDir) -> list[CommitRecord]:
    """Return the good checkpoints, newest first; the bytes of the first one match its record."""
    from pipeline.checkpoint.load import check  # noqa: PLC0415 - it needs torch, deciding what to delete does not

    records: list[CommitRecord] = []

    def check_first(record: CommitRecord) -> None:
        if not records:
            check(run, record)

    for record in committed(run, check_first):
        records.append(record)
    return records


def _best(ordered: list[CommitRecord], count: int) -> list[int]:
    """Return the steps of the best ones, the newest of equals first; different monitors are never compared."""
    monitors: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for record in ordered:
        if record.monitor is not None:
            value = -record.monitor.value if record.monitor.mode == "max" else record.monitor.value
            monitors.setdefault((record.monitor.name, record.monitor.mode), []).append((value, -record.step))
    return [-step for values in monitors.values() for _, step in sorted(values)[:count]]


def _remove(run: RunDir, name: str) -> None:
    try:
        run.remove(name)
    except FileNotFoundError:
        log.debug("%s is gone already", run.url_of(name))
