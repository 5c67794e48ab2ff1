"""Write checkpoints in the background: one at a time, durable before the commit, retried while the storage fails."""

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar, cast

import torch

from pipeline.checkpoint.cleanup import abort, open_uploads
from pipeline.checkpoint.commit import CommitRecord, read_record, write_record
from pipeline.checkpoint.load import check
from pipeline.checkpoint.snapshot import Snapshots
from pipeline.checkpoint.transfer import HashingWriter, open_writer, part_size
from pipeline.errors import LeaseLost
from pipeline.process.patience import JITTER
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import is_away, storage_error

log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_STALLED = 10.0
"""Seconds without upload progress after which training does not wait for its storage."""
_WORTH_A_LINE = 0.1
"""Seconds for which a save was blocked by the one before."""
_SLOW_END = 60.0
"""Seconds more that completing an upload, fsync or the record may take: nothing tells how far they are."""

T = TypeVar("T")


class SaveFailed(Exception):
    """A checkpoint could not be made durable within the user's `storage_budget`."""


class Saver:
    """Takes a snapshot of a checkpoint and commits it in a background thread.

    Memory holds one snapshot. A save that is due during another one blocks until that is durable. A save that is due
    while the storage fails is skipped, so that training continues: the last good checkpoint stands, the next is newer.

    Args:
        run: The run directory.
        budget: Seconds for which the storage may fail before that is fatal.
        before_commit: Called before a commit record is written; raises LeaseLost if this process may not commit.
        after_commit: Called after each commit, and again when its record has been amended.
        after_first_commit: Called once, after the first commit; retried while the storage fails.

    Attributes:
        committed: The newest step that is known to be durable.
    """

    def __init__(
        self,
        run: RunDir,
        budget: float,
        before_commit: Callable[[], None] = lambda: None,
        after_commit: Callable[[CommitRecord], None] = lambda _: None,
        after_first_commit: Callable[[CommitRecord], None] | None = None,
    ) -> None:
        self.run = run
        self.budget = budget
        self.before_commit = before_commit
        self.after_commit = after_commit
        self.after_first_commit = after_first_commit
        self.committed: int | None = None
        self._taken: int | None = None
        self._snapshots = Snapshots()
        self._thread: threading.Thread | None = None
        self._failing_since: float | None = None
        self._fatal: BaseException | None = None
        self._figures: dict[str, float] = {}
        self._speed: float | None = None
        self._knows_tags = True
        self._moved = time.monotonic()
        self._warned = -math.inf
        self._waited = 0.0

    @property
    def figures(self) -> dict[str, float]:
        """Seconds by name, of the last save: for telemetry.

        `stopped`: training was paused for the snapshot. `waited`: it was blocked on the previous save. `behind`: from
        the snapshot to the last commit. `failing`: how long the storage has been failing.
        """
        return {f"checkpoint/{name}_seconds": value for name, value in self._figures.items()} | {
            "checkpoint/failing_seconds": self.failing
        }

    @property
    def uploads(self) -> dict[str, float]:
        """Saves in progress (0 or 1), and bytes a second of the last one that was committed, if there was one."""
        known = {} if self._speed is None else {"upload_bytes_per_second": self._speed}
        return {"uploads_in_progress": float(self.saving), **known}

    def save(self, checkpoint: dict[str, Any], record: CommitRecord) -> bool:
        """Take a snapshot and return; the rest happens in the background.

        Args:
            checkpoint: What `torch.save` is to write.
            record: Its commit record, whose `bytes` and `sha256` are found while it is written.

        Returns:
            Whether it was taken: False while the storage fails.

        Raises:
            SaveFailed: An earlier one failed for longer than the budget.
        """
        self.finish(or_failing=True)
        assert record.step > max(self.committed or 0, self._taken or 0), "a committed step is never written again"
        if self.saving:
            # A client may retry by itself for minutes, and say nothing.
            why = "no upload progress" if self._failing_since is None else "storage failing"
            if time.monotonic() - self._warned > _LONGEST_PAUSE:
                log.warning("checkpoint at step %d skipped: %s for %.0f s", record.step, why, self.failing)
                self._warned = time.monotonic()
            return False
        if self._waited >= _WORTH_A_LINE:
            log.info("checkpoint at step %d blocked %.1f s on the previous upload", record.step, self._waited)
        self._figures["waited"], self._waited, began = self._waited, 0.0, time.monotonic()
        snapshot = self._snapshots.take(checkpoint)
        self._figures["stopped"] = stopped = time.monotonic() - began
        self._taken = record.step
        self._thread = threading.Thread(
            target=self._commit, args=(snapshot, record, stopped), name=f"save-{record.step}", daemon=True
        )
        self._thread.start()
        return True

    @property
    def saving(self) -> bool:
        """Whether a save is in progress."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def durable(self) -> str:
        """Which steps are durable, in words. Safe in any thread."""
        known = "nothing is durable yet" if self.committed is None else f"step {self.committed} is durable"
        return known + (f", step {self._taken} was still being uploaded" if self.saving else "")

    def finish(self, seconds: float = math.inf, *, or_failing: bool = False) -> bool:
        """Wait until no save is in progress.

        Args:
            seconds: For so long at most.
            or_failing: Whether a storage that fails ends the wait, too: `save` would not block then.

        Returns:
            Whether that is so.

        Raises:
            SaveFailed: A save failed for longer than the budget.
        """
        if self._thread is not None and self.saving:
            began = time.monotonic()
            while self.saving and not (or_failing and self.failing) and time.monotonic() - began < seconds:
                self._thread.join(0.1)
            self._waited += time.monotonic() - began
        if self._fatal is not None:
            raise self._fatal
        return not self.saving or (or_failing and self.failing > 0)

    @property
    def failing(self) -> float:
        """For how many seconds the storage has failed, or has made no progress if that is long."""
        since = self._failing_since
        if since is not None:
            return time.monotonic() - since
        still = time.monotonic() - self._moved if self.saving else 0.0
        return still if still >= _STALLED else 0.0

    def amend(self, step: int, change: Callable[[CommitRecord], CommitRecord]) -> None:
        """Write the record of a committed step again, in the background, as a save is written; none may be in progress.

        Args:
            step: The step.
            change: Returns what its record must be.
        """

        def write(_: bool) -> None:
            record = read_record(self.run, step)
            if record is not None and (known := change(record)) != record:
                self.before_commit()
                write_record(self.run, known, overwrite=True)
                self._report_commit(known)

        self._thread = threading.Thread(target=self._retried, args=(step, write), name=f"amend-{step}", daemon=True)
        self._thread.start()

    def _retried(self, step: int, write: Callable[[bool], T]) -> T | None:
        """Call what writes, with whether it is a retry, until it succeeds; return None where that is given up."""
        pause, retry = _FIRST_PAUSE, False
        self._moves()
        while True:
            try:
                result = write(retry)
            except LeaseLost as error:
                self._fatal = error
                return None
            except Exception as error:  # noqa: BLE001 - every storage has errors of its own
                now, retry = time.monotonic(), True
                self._failing_since = self._failing_since or now
                if now - self._failing_since + pause > self.budget:
                    self._fatal = SaveFailed(
                        f"checkpoint at step {step} could not be saved in {self.run} for {self.failing:.0f} s "
                        f"(checkpoints.storage_budget={self.budget:g} s): {storage_error(error)}"
                    )
                    self._fatal.__cause__ = error
                    with suppress(Exception):
                        self._abort_uploads(RunDir.checkpoint(step))
                    return None
                log.warning("checkpoint at step %d failed, retrying: %s", step, storage_error(error))
                # With jitter: all runs of a cluster see the same outage end.
                time.sleep(pause * JITTER.uniform(0.5, 1.0))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._failing_since = None
                return result

    def _commit(self, snapshot: dict[str, Any], record: CommitRecord, stopped: float) -> None:
        began = time.monotonic()
        self._snapshots.wait()
        done: list[CommitRecord] = []

        def write(retry: bool) -> CommitRecord:
            if not done:
                if retry:
                    self._abort_uploads(record.name)
                done.append(self._write(snapshot, record))
            if self.after_first_commit is not None:
                self.after_first_commit(done[0])
                self.after_first_commit = None
            return done[0]

        written = self._retried(record.step, write)
        if written is None:
            return
        self.committed = record.step
        value = f", {record.monitor.name} {record.monitor.value:.6g}" if record.monitor else ""
        self._figures["behind"] = seconds = time.monotonic() - began
        self._speed = written.bytes / max(seconds, 1e-9)
        log.info(
            "saved checkpoint step %d%s (upload %.1f s in background, training paused %.0f ms)",
            record.step,
            value,
            seconds,
            1000 * stopped,
            extra={
                "folds": True,
                "figures": {"event": "checkpoint", "step": record.step, "seconds": seconds, "paused": stopped},
            },
        )
        self._report_commit(written)

    def _report_commit(self, record: CommitRecord) -> None:
        try:
            self.after_commit(record)
        except Exception as error:  # noqa: BLE001 - the checkpoint is committed, whatever happens after
            log.warning("after the commit of step %d: %s", record.step, storage_error(error))

    def _abort_uploads(self, name: str) -> None:
        """Abort what failed tries have left open; where the storage does not let it, the next start says so."""
        if not self.run.is_s3:
            return
        try:
            for each, upload in list(open_uploads(self.run, name)):
                if each == name:
                    abort(self.run, name, upload)
        except Exception as error:
            if is_away(error):
                raise
            log.debug("uploads of %s were not aborted: %s", name, storage_error(error))

    def _moves(self, more: float = 0.0) -> None:
        """Note a sign of progress, and that the next one may take so much longer."""
        self._moved = time.monotonic() + more

    def _write(self, snapshot: dict[str, Any], record: CommitRecord) -> CommitRecord:
        """Try once: bytes, then their verification, then the record."""
        run, name = self.run, record.name
        self.before_commit()  # also before: a stale writer must not touch the file of a newer one
        run.clear(name)
        run.clear(RunDir.record(record.step))
        tagged = run.is_s3 and self._knows_tags
        part = part_size(self._snapshots.bytes)
        file = HashingWriter(open_writer(run, name, part), tagged, self._moves, part)
        try:
            torch.save(snapshot, cast("BinaryIO", file))
        except RuntimeError as error:
            # torch reports a failed write as a position that it did not expect.
            raise file.error or error from error
        finally:
            file.finish()
        self._moves(_SLOW_END)
        file.close()
        run.sync(name)
        self._moves(_SLOW_END)
        stored, tag = run.size_and_tag(name)
        if stored != file.bytes:
            raise OSError(f"{run.url_of(name)}: wrote {file.bytes} bytes, the storage reports {stored}")
        written = replace(record, bytes=file.bytes, sha256=f"sha256:{file.sha256}")
        if tagged and tag is not None and tag != file.tag:
            # Damaged in transit; or the storage computes its ETags otherwise (encrypted, in other parts).
            check(run, written, self._moves)
            self._moves(_SLOW_END)
            log.info("%s: ETags there are not MD5; from now on only lengths are compared", run)
            self._knows_tags = False
        self.before_commit()
        if not write_record(run, written):
            # A stale writer was faster, or this one, whose answer was lost; only one of them may still commit.
            self.before_commit()
            write_record(run, written, overwrite=True)
        return written
