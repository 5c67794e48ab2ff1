"""Move large files to and from a run's storage, without the interpreter lock where the storage allows it.

On S3 the bytes go through obstore (Rust), which needs a quarter of s3fs's CPU time and none of it under the lock that
training holds; every other protocol goes through fsspec.

An obstore client hangs in a process that was forked from one that had used it. So it is created only here, for one
file, in the process that saves or loads, never in a loader worker, and is not kept.
"""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, Protocol

from pipeline.run.run_dir import RunDir

PART = 16 << 20
"""Bytes of a part, up and down, at least."""
_MOST_PARTS = 9_000
"""Of a file; its size is an estimate."""

_PIECE = PART // 16
_PIECES_BEHIND = 16
_CORES_PER_PART = 4
_PARTS_PER_IDLE_CORE = 3
_LOOK_SECONDS = 0.1
_MOST_AT_ONCE = 8


class ObjectWriter(Protocol):
    """A file that is being written; it exists once it is closed."""

    def write(self, data: Any) -> Any:
        """Write bytes, or anything that shares its memory as bytes."""

    def close(self) -> Any:
        """Finish it.

        Raises:
            Exception: Any error of the storage; the file does not exist then.
        """


def part_size(total: int) -> int:
    """Return the bytes of a part of a file of `total` bytes: stores take 10,000 parts at most."""
    return max(PART, -(-total // (_MOST_PARTS * PART)) * PART)


def open_writer(run: RunDir, name: str, part: int = PART) -> ObjectWriter:
    """Open a new file for streaming bytes into it, in parts of this size."""
    store = _object_store(run)
    if store is None:
        if run.is_local:  # a stopped process that wakes up later writes into its own file, which has no name any more
            Path(run.path, name).unlink(missing_ok=True)
        writer: ObjectWriter = run.open_write(name, part)
        return writer
    import obstore  # noqa: PLC0415 - part of the extra for S3

    at_once = parts_at_once(len(os.sched_getaffinity(0)), _idle_cores())
    opened: ObjectWriter = obstore.open_writer(store, run.object_of(name)[1], buffer_size=part, max_concurrency=at_once)
    return opened


def parts_at_once(cores: int, idle: float) -> int:
    """Return how many parts an upload sends at once.

    Uploading takes cores from training: on two of them, one part at a time cost training half of what four did (a fifth
    with the server on the other core), and the upload two fifths of its speed. So it takes more where nobody else does.

    Args:
        cores: Of this process.
        idle: How many of the machine's stand idle.
    """
    return min(max(cores // _CORES_PER_PART, int(_PARTS_PER_IDLE_CORE * idle), 1), _MOST_AT_ONCE)


def _idle_cores() -> float:
    """Return how many cores of this machine stand idle right now; 0 where the system does not say."""
    try:
        before, began = _idle_seconds(), time.monotonic()
        time.sleep(_LOOK_SECONDS)
        return max(0.0, (_idle_seconds() - before) / (time.monotonic() - began))
    except (OSError, ValueError, IndexError):
        return 0.0


def _idle_seconds() -> float:
    """Return the seconds for which cores have stood idle, all together (proc(5), the fourth field of `cpu`)."""
    return int(Path("/proc/stat").read_text().split()[4]) / os.sysconf("SC_CLK_TCK")


def open_ranges(run: RunDir, name: str) -> Callable[[int, int], Any]:
    """Return a function of (start, end) in bytes that reads a range of a file, safe to call from several threads.

    It returns the bytes, or what shares its memory as bytes.
    """
    store = _object_store(run)
    if store is None:
        path = f"{run.path}/{name}"
        return lambda start, end: run.fs.cat_file(path, start=start, end=end)
    import obstore  # noqa: PLC0415

    _, key = run.object_of(name)
    return lambda start, end: obstore.get_range(store, key, start=start, end=end)


def _object_store(run: RunDir) -> Any:
    """Return an obstore client for a run on S3 that reaches it as s3fs does, or None where only s3fs does."""
    try:
        import obstore.store  # noqa: F401, PLC0415 - part of the extra for S3
    except ImportError:
        return None
    # Made again for each file: one that a forked child inherits hangs there.
    return None if run.s3 is None else run.s3.object_store()


def _update(digest: Any, piece: bytes, behind: BoundedSemaphore) -> None:
    digest.update(piece)
    behind.release()


class HashingWriter:
    """A write-only file that hashes and counts what is written; torch.save needs no more of a file.

    Each digest is made in a thread of its own, beside the upload: on a core that stands idle it takes no time.

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
        self.bytes = 0
        self.error: BaseException | None = None
        self._tagged = tagged
        self._written = written
        self._part = part
        self._digest = hashlib.sha256()
        self._parts: list[Any] = []
        self._threads = [ThreadPoolExecutor(1, f"digest-{kind}") for kind in ("sha256", *["md5"] * tagged)]
        self._behind = [BoundedSemaphore(_PIECES_BEHIND) for _ in self._threads]

    def write(self, data: Any) -> int:
        """Write bytes, in pieces small enough that the interpreter lock is never held for long."""
        view = memoryview(data)
        start = 0
        while start < len(view):
            # A piece ends where a part ends.
            # A copy: torch reuses the memory at once, while the digests and obstore take it later.
            piece = bytes(view[start : start + _PIECE - self.bytes % _PIECE])
            self._hash(piece)
            try:
                self._file.write(piece)
            except BaseException as error:
                self.error = self.error or error
                raise
            if self._written is not None:
                self._written()
            self.bytes += len(piece)
            start += len(piece)
        return len(view)

    def _hash(self, piece: bytes) -> None:
        """Have the threads take a piece; they may be some pieces behind the file."""
        if self._tagged and self.bytes % self._part == 0:
            self._parts.append(hashlib.md5(usedforsecurity=False))
        for thread, behind, digest in zip(self._threads, self._behind, (self._digest, *self._parts[-1:]), strict=True):
            behind.acquire()
            thread.submit(_update, digest, piece, behind)

    @property
    def sha256(self) -> str:
        """The digest of all, in hexadecimal digits, once `finish` has been called."""
        return self._digest.hexdigest()

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

    def finish(self) -> None:
        """Wait until all is hashed; nothing more is written."""
        for thread in self._threads:
            thread.shutdown()

    def close(self) -> None:
        """Finish the file."""
        self.finish()
        self._file.close()
