"""Load checkpoints verified: downloaded once per node, hashed as they arrive, memory-mapped by all its processes.

A checkpoint on a local disk is read in place. Any other goes into the cache folder of `pipeline.cache`, under
names that its eviction knows; <key> stands for one URL, <digest> for that of its commit record:

    <key>-<digest>.part   a download in progress, or the leftover of a killed one
    <key>-<digest>.bin    the bytes, as their record says; for a local checkpoint an empty note that it was hashed
    <key>-<digest>.json   from which version they came, written last: bytes without it do not exist

Nothing here is fsynced, which would cost a third of the time: bytes that were fetched before the machine went down are
hashed again.
"""

import fcntl
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from pipeline.cache.folder import CacheFolder
from pipeline.checkpoint.commit import CommitRecord, Corrupt, newest, select
from pipeline.checkpoint.transfer import PART, open_ranges
from pipeline.errors import UserError
from pipeline.process import patience
from pipeline.run.retry import patiently
from pipeline.run.run_dir import RunDir

log = logging.getLogger(__name__)

_AT_ONCE = 4
_AHEAD = 6
"""Parts that are in flight or wait for those before them."""


def newest_verified(run: RunDir) -> tuple[CommitRecord, Path] | None:
    """Find the newest checkpoint whose bytes match its record, as `commit.newest`, and the local path of its bytes.

    Raises:
        UserError: There are commits, but none is good: starting from scratch without a word would bury them.
        Exception: The storage failed, which says nothing about the checkpoint.
    """
    verified = _Verified(run)
    record = newest(run, verified)
    return None if record is None else (record, verified.paths[record.step])


def select_verified(run: RunDir, which: str | None) -> tuple[CommitRecord, Path]:
    """Select a checkpoint as `commit.select` does, one whose bytes match its record, with the local path of its bytes.

    Raises:
        UserError: There is no such checkpoint, or the step that was asked for is damaged.
        Exception: The storage failed.
    """
    verified = _Verified(run)
    record = select(run, which, verified)
    return record, verified.paths[record.step]


def fetch_verified(run: RunDir, record: CommitRecord, revalidate: bool = False) -> Path:
    """Return the local path of a checkpoint's bytes, which match its record: the file of a local run, else a copy.

    The copy may be evicted later; `load` keeps it while it maps it.

    Args:
        run: The run directory.
        record: Of the checkpoint.
        revalidate: Ask the storage whatever this node has verified before: hash a local file again, and download a
            remote one again if its version has changed.

    Raises:
        Corrupt: They do not match.
        UserError: The cache cannot hold them.
        Exception: The storage failed.
    """
    with _held(run, record, revalidate) as path:
        return path


class _Verified:
    """Verifies the checkpoints that a search asks about, and remembers where their bytes are."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.paths: dict[int, Path] = {}

    def __call__(self, record: CommitRecord) -> None:
        self.paths[record.step] = fetch_verified(self.run, record, revalidate=True)


def load(run: RunDir, record: CommitRecord, map_location: Any = None, weights_only: bool = True) -> dict[str, Any]:
    """Load a checkpoint whose bytes match its record, memory-mapped: what is not used is not read.

    The mapping is private: writing to a tensor changes memory only, and it outlives its file's name. Parameters are
    copied out of it; on a CPU the optimizer uses its tensors as they are.

    Raises:
        Corrupt: The bytes do not match.
        UserError: The cache cannot hold them.
        Exception: The storage failed.
    """
    import torch  # noqa: PLC0415 - takes a second, which `verify` and `prune` do not need in order to hash

    with _held(run, record) as path:
        checkpoint: dict[str, Any] = torch.load(
            path, map_location=map_location or "cpu", weights_only=weights_only, mmap=True
        )
    return checkpoint


def check(run: RunDir, record: CommitRecord, progress: Callable[[], None] = lambda: None) -> None:
    """Compare the bytes of a checkpoint with its record, without keeping them.

    Args:
        run: The run directory.
        record: Of the checkpoint.
        progress: Called after each part that has come from a remote storage.

    Raises:
        Corrupt: They do not match.
        Exception: The storage failed.
    """
    if run.is_local:
        _hash_file(Path(run.path, record.name), record)
        return
    _version(run, record)
    _stream(run, record, lambda *_: progress())


@contextmanager
def _held(run: RunDir, record: CommitRecord, revalidate: bool = False) -> Iterator[Path]:
    """Yield the path of verified bytes, which the cache keeps until the block ends."""
    url = run.url_of(record.name)
    if run.is_local:
        yield _noted(run, record, revalidate)
        return
    folder, version = CacheFolder(), _version(run, record) if revalidate else ""
    key = _digest(f"checkpoint {url}")[:32]
    stem = folder.path / f"{key}-{_digest(record.sha256)[:16]}"
    expected = {"sha256": record.sha256, **({"version": version} if version else {})}

    def find() -> Path | None:
        known = folder.read_record(stem, url, **expected)
        whole = known is not None and folder.mtime_if_whole(stem, known) is not None
        return stem.with_suffix(".bin") if whole else None

    def download() -> None:
        came = {"bytes": record.bytes, "sha256": record.sha256, "version": version or _version(run, record)}

        def fill(file: BinaryIO) -> dict[str, Any]:
            _stream(run, record, lambda start, data: _write(file.fileno(), start, data))
            return came

        folder.take_in(stem, url, record.bytes, fill, durable=False)

    with folder.hold(key, url, find, download) as path:
        yield path


def _noted(run: RunDir, record: CommitRecord, revalidate: bool) -> Path:
    """Return the path of a file on a local disk: one process of the node hashes it, the others find its note."""
    path = Path(run.path, record.name).absolute()
    try:
        state = path.stat()
    except FileNotFoundError as error:
        raise Corrupt("its file is missing") from error
    key = _digest(f"checkpoints {path.parent}")[:32]  # one note per run, not per checkpoint
    seen = (path, record.sha256, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    note: Path | None = None
    with ExitStack() as locked:
        with suppress(UserError, OSError):  # without a cache it only takes longer
            folder = CacheFolder()
            locked.enter_context(folder.lock(key, fcntl.LOCK_EX))
            note = folder.path / f"{key}-{_digest(repr(seen))[:16]}.bin"
        if note is None:
            _hash_file(path, record)
        elif revalidate or not note.exists():
            for other in note.parent.glob(f"{key}-*.bin"):
                other.unlink(missing_ok=True)
            _hash_file(path, record)
            with suppress(OSError):
                note.touch()
    return path


def _hash_file(path: Path, record: CommitRecord) -> None:
    try:
        with open(path, "rb") as file:
            _compare(record, os.fstat(file.fileno()).st_size, None)
            _compare(record, record.bytes, hashlib.file_digest(file, "sha256").hexdigest())
    except FileNotFoundError as error:
        raise Corrupt("its file is missing") from error


def _compare(record: CommitRecord, length: int, digest: str | None) -> None:
    if length != record.bytes:
        raise Corrupt(f"its file has {length} bytes, its record says {record.bytes} bytes")
    if digest is not None and f"sha256:{digest}" != record.sha256:
        raise Corrupt(f"its bytes have sha256:{digest}, its record says {record.sha256}")


def _version(run: RunDir, record: CommitRecord) -> str:
    """Return what changes when the storage gets another file of that name: its tag or times, whatever it reports."""
    info = run.info(record.name)
    if info is None:
        raise Corrupt("its file is missing")
    _compare(record, int(info["size"]), None)
    return _digest(repr(sorted((name, str(value)) for name, value in info.items())))


def _write(descriptor: int, start: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, start)
        start, data = start + written, data[written:]


def _stream(run: RunDir, record: CommitRecord, place: Callable[[int, memoryview], None] | None = None) -> None:
    """Read a file in parallel parts and hash them in order; only a few are in memory at a time.

    Args:
        run: The run directory.
        record: Of the checkpoint.
        place: Called in a thread with the start and the bytes of each part.

    Raises:
        Corrupt: The bytes do not match the record.
    """
    bound, url = patience.current(), run.url_of(record.name)
    read, digest, length = patiently(url, lambda: open_ranges(run, record.name)), hashlib.sha256(), 0
    placing = Lock()  # threads that write to one file would only wait for one another

    def fetch(start: int) -> memoryview:
        with patience.patience(bound):
            data = memoryview(patiently(url, lambda: read(start, min(start + PART, record.bytes))))
        if place is not None:
            with placing:
                place(start, data)
        return data

    pool = ThreadPoolExecutor(_AT_ONCE, "checkpoint")
    try:
        parts = (pool.submit(fetch, start) for start in range(0, record.bytes, PART))
        coming = deque(islice(parts, _AHEAD))
        while coming:
            data = coming.popleft().result()
            coming.extend(islice(parts, 1))
            digest.update(data)
            length += len(data)
    finally:
        pool.shutdown(cancel_futures=True)
    _compare(record, length, digest.hexdigest())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
