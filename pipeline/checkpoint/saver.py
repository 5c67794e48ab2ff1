"""Write checkpoints in the background: one at a time, durable before the commit, retried while the storage fails."""

import hashlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO, cast

import torch

from pipeline.checkpoint.commit import CommitRecord, write_record
from pipeline.checkpoint.load import check
from pipeline.checkpoint.snapshot import Snapshots
from pipeline.checkpoint.transfer import PART, open_writer, part_size
from pipeline.errors import LeaseLost
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

_PIECE = PART // 16
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_STALLED = 10.0
"""Seconds without upload progress after which training does not wait for its storage."""


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
        after_commit: Called after each commit.
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
        if self._waited:
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

    def _commit(self, snapshot: dict[str, Any], record: CommitRecord, stopped: float) -> None:
        began, pause = time.monotonic(), _FIRST_PAUSE
        self._moved = began
        self._snapshots.wait()
        written: CommitRecord | None = None
        while True:
            try:
                written = written or self._write(snapshot, record)
                if self.after_first_commit is not None:
                    self.after_first_commit(written)
                    self.after_first_commit = None
                break
            except LeaseLost as error:
                self._fatal = error
                return
            except Exception as error:  # noqa: BLE001 - every storage has errors of its own
                now = time.monotonic()
                self._failing_since = self._failing_since or now
                if now - self._failing_since + pause > self.budget:
                    self._fatal = SaveFailed(
                        f"checkpoint at step {record.step} could not be saved in {self.run} for {self.failing:.0f} s "
                        f"(checkpoints.storage_budget={self.budget:g} s): {storage_error(error)}"
                    )
                    self._fatal.__cause__ = error
                    return
                log.warning("checkpoint at step %d failed, retrying: %s", record.step, storage_error(error))
                # With jitter: all runs of a cluster see the same outage end.
                time.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._failing_since = None
        self.committed = record.step
        value = f", {record.monitor.name} {record.monitor.value:.6g}" if record.monitor else ""
        self._figures["behind"] = seconds = time.monotonic() - began
        log.info(
            "saved checkpoint step %d%s (upload %.1f s in background, training paused %.0f ms)",
            record.step,
            value,
            seconds,
            1000 * stopped,
        )
        try:
            self.after_commit(written)
        except Exception as error:  # noqa: BLE001 - the checkpoint is committed, whatever happens after
            log.warning("after the commit of step %d: %s", record.step, storage_error(error))

    def _moves(self) -> None:
        self._moved = time.monotonic()

    def _write(self, snapshot: dict[str, Any], record: CommitRecord) -> CommitRecord:
        """Try once: bytes, then their verification, then the record."""
        run, name = self.run, record.name
        self.before_commit()  # also before: a stale writer must not touch the file of a newer one
        tagged = run.is_s3 and self._knows_tags
        part = part_size(self._snapshots.bytes)
        file = HashingWriter(open_writer(run, name, part), tagged, self._moves, part)
        try:
            torch.save(snapshot, cast("BinaryIO", file))
        except RuntimeError as error:
            # torch reports a failed write as a position that it did not expect.
            raise file.error or error from error
        file.close()
        run.sync(name)
        stored, tag = run.size_and_tag(name)
        if stored != file.bytes:
            raise OSError(f"{run.url_of(name)}: wrote {file.bytes} bytes, the storage reports {stored}")
        written = replace(record, bytes=file.bytes, sha256=f"sha256:{file.digest.hexdigest()}")
        if tagged and tag is not None and tag != file.tag:
            # Damaged in transit; or the storage computes its ETags otherwise (encrypted, in other parts).
            check(run, written)
            log.info("%s: ETags there are not MD5; from now on only lengths are compared", run)
            self._knows_tags = False
        self.before_commit()
        if not write_record(run, written):
            # A stale writer was faster, or this one, whose answer was lost; only one of them may still commit.
            self.before_commit()
            write_record(run, written, overwrite=True)
        return written


class HashingWriter:
    """A write-only file that hashes and counts what is written; torch.save needs no more of a file.

    Args:
        file: Takes the bytes.
        tagged: Whether to compute the ETag that an object store should report.
        written: Called after each piece.
        part: Bytes of a part, in which the store gets the file.
    """

    def __init__(
        self, file: Any, tagged: bool = False, written: Callable[[], None] | None = None, part: int = PART
    ) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: BaseException | None = None
        self._tagged = tagged
        self._written = written
        self._part = part
        self._parts: list[Any] = []

    def write(self, data: Any) -> int:
        """Write bytes, in pieces small enough that the interpreter lock is never held for long."""
        view = memoryview(data)
        start = 0
        while start < len(view):
            # A piece ends where a part ends.
            piece = view[start : start + _PIECE - self.bytes % _PIECE]
            self.digest.update(piece)
            if self._tagged:
                if self.bytes % self._part == 0:
                    self._parts.append(hashlib.md5(usedforsecurity=False))
                self._parts[-1].update(piece)
            try:
                # A copy: torch reuses the memory at once, and obstore sends it later.
                self._file.write(bytes(piece))
            except BaseException as error:
                self.error = self.error or error
                raise
            if self._written is not None:
                self._written()
            self.bytes += len(piece)
            start += len(piece)
        return len(view)

    @property
    def tag(self) -> str:
        """The ETag in most S3-compatible stores: the MD5 of the file, or that of its parts' MD5s with their number.

        Source: the ETags of multipart uploads as Amazon S3 and Ceph make them.
        """
        if self.bytes < self._part:
            return str(self._parts[0].hexdigest()) if self._parts else ""
        digests = b"".join(part.digest() for part in self._parts)
        return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._parts)}"

    def flush(self) -> None:
        """Do nothing: closing finishes the file."""

    def close(self) -> None:
        """Finish the file."""
        self._file.close()
