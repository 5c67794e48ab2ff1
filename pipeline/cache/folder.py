"""The folder of the cache: where it is, who reads or writes there now, and what is removed when it is full."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.errors import UserError
from pipeline.run.run_dir import SCHEMA
from pipeline.run.storage import write_local
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

_NAME = "torchx-lightning-pipeline"
_BYTES = 50_000_000_000
_TRIES = 3
_FILE = re.compile(r"([0-9a-f]{32})-[0-9a-f]{16}\.(?:bin|part)")

T = TypeVar("T")


class CacheFolder:
    """The folder and its limit, from the environment.

    Raises:
        UserError: A setting is wrong.
    """

    def __init__(self) -> None:
        self.path = cache_folder()
        self.limit = cache_bytes()

    @contextmanager
    def lock(self, key: str, kind: int, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of a key's files, which is released when its process dies.

        Args:
            key: Of one URL.
            kind: `fcntl.LOCK_SH` to read, `fcntl.LOCK_EX` to write or remove.
            wait: Until it is free; else yield False where it is not.
        """
        path = self.path / f"{key}.lock"
        while True:
            descriptor = _open_lock(path)
            try:
                try:
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    if not wait:
                        yield False
                        return
                    log.info("waiting for the process that holds %s", path)
                    fcntl.flock(descriptor, kind)
                with suppress(FileNotFoundError):
                    # It may have been removed with its files while this process waited.
                    if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                        yield True
                        return
            finally:
                # Closing alone would leave the lock with a child that was forked in between.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    @contextmanager
    def hold(self, key: str, url: str, find: Callable[[], T | None], fetch: Callable[[], None]) -> Iterator[T]:
        """Yield what is in the cache, fetched if need be by one process of the node; it stays until the block ends.

        Args:
            key: Of one URL.
            url: The URL itself.
            find: Returns it, or None where the cache has no whole copy.
            fetch: Puts it into the cache.

        Raises:
            OSError: It is gone again each time.
        """
        for _ in range(_TRIES):  # another process may make room between the two locks
            with self.lock(key, fcntl.LOCK_SH):
                if (found := find()) is not None:
                    yield found
                    return
            with self.lock(key, fcntl.LOCK_EX):  # the other processes of the node wait here
                if find() is None:
                    fetch()
        raise OSError(f"{url} was fetched, but its copy in {self.path} is gone or damaged: what else writes there?")

    def make_room(self, needed: int, url: str, held: str, keep: str = "") -> None:
        """Remove the least recently used files until `needed` more bytes fit, but none that is in use.

        Args:
            needed: Bytes to come.
            url: Of which file.
            held: The key that this process has locked.
            keep: Files whose names start with this are kept.

        Raises:
            UserError: They will never fit, or other files fill the disk.
        """
        if needed > self.limit:
            raise self.too_large(url, needed)
        files = []
        for entry in os.scandir(self.path):
            match = _FILE.fullmatch(entry.name)
            with suppress(FileNotFoundError):
                if match and entry.is_file(follow_symlinks=False):
                    state = entry.stat(follow_symlinks=False)
                    files.append((entry.name.endswith(".bin"), state.st_atime_ns, state.st_size, entry.name, match[1]))
        total = sum(size for _, _, size, _, _ in files)
        if shutil.disk_usage(self.path).free + total < needed:
            raise self.no_space(url, needed)
        for _, _, size, name, key in sorted(files):  # leftovers of killed downloads first
            if total + needed <= self.limit and shutil.disk_usage(self.path).free >= needed:
                break
            if keep and name.startswith(keep):
                continue
            # Its readers and fetchers hold its lock. Once mapped, a file may lose its name.
            with nullcontext(True) if key == held else self.lock(key, fcntl.LOCK_EX, wait=False) as free:
                if free:
                    total -= self._remove(key, name, size, alone=key != held)
        if shutil.disk_usage(self.path).free < needed:
            raise self.no_space(url, needed)

    def read_record(self, stem: Path, url: str, **expected: str) -> dict[str, Any] | None:
        """Return the record of a copy of this URL; None where there is none with these values, or it is torn."""
        try:
            record = json.loads(stem.with_suffix(".json").read_bytes())
        except (OSError, ValueError):
            return None
        wanted = {"schema": SCHEMA, "url": url, **expected}
        return record if isinstance(record, dict) and wanted.items() <= record.items() else None

    def mtime_if_whole(self, stem: Path, record: dict[str, Any]) -> int | None:
        """Return when a copy was last written, and note that it is used now; None where its record says otherwise."""
        path = stem.with_suffix(".bin")
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
                state = os.fstat(file.fileno())
                if not stat.S_ISREG(state.st_mode) or state.st_size != record["bytes"]:
                    return None
                # Hashing 50 GB again at every start would cost each process half a minute and more of reading. Another
                # time tells a file that was written to or copied; another boot, one that may not have reached the disk.
                known = state.st_mtime_ns == record["mtime_ns"] and record.get("boot") in (None, _boot())
                if not known and f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != record["sha256"]:
                    return None
        except (OSError, KeyError):
            return None
        with suppress(OSError):  # another user's file
            os.utime(path, ns=(time.time_ns(), state.st_mtime_ns))
        return state.st_mtime_ns

    def take_in(
        self, stem: Path, url: str, size: int, fill: Callable[[BinaryIO], dict[str, Any]], durable: bool
    ) -> None:
        """Put a file into the cache. A kill leaves nothing that counts.

        Args:
            stem: Its path without `.bin`: the key, of which this process holds the lock, and the version.
            url: Where it comes from.
            size: Bytes to come, 0 where that is not known.
            fill: Writes the bytes, and returns what the record says of them, with their `bytes` and `sha256`.
            durable: Whether to fsync them; else they are hashed again once the machine has been restarted.

        Raises:
            UserError: There is no room.
        """
        key, part = stem.name.partition("-")[0], stem.with_suffix(".part")
        for leftover in self.path.glob(f"{key}-*.part"):
            leftover.unlink(missing_ok=True)
        self.make_room(size, url, key)
        try:
            with open(part, "xb") as file:
                file.truncate(size)  # other processes that make room count it
                record = fill(file)
                os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~0o222)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
                mtime_ns = os.fstat(file.fileno()).st_mtime_ns
            stem.with_suffix(".json").unlink(missing_ok=True)  # an older record must not describe these bytes
            os.replace(part, stem.with_suffix(".bin"))
            known = {"schema": SCHEMA, "url": url, **record, "mtime_ns": mtime_ns, "boot": None if durable else _boot()}
            write_local(stem.with_suffix(".json"), f"{json.dumps(known, indent=2)}\n".encode())
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self.no_space(url, size) from error
            raise
        finally:
            part.unlink(missing_ok=True)
        self.make_room(0, url, key, keep=stem.name)

    def too_large(self, url: str, size: int) -> UserError:
        """Return the error for a file that exceeds the limit."""
        return UserError(
            f"PIPELINE_CACHE_BYTES={self.limit}: {url} has {size} bytes or more and does not fit. Raise it, or copy "
            "the file to a local path and name that"
        )

    def no_space(self, url: str, size: int) -> UserError:
        """Return the error for a disk that is full of other files."""
        return UserError(
            f"PIPELINE_CACHE_DIR={self.path}: {shutil.disk_usage(self.path).free} bytes are free there, not enough for "
            f"{url} ({f'{size} bytes' if size else 'of unknown size'}). Make room, or name a folder on a larger disk"
        )

    def _remove(self, key: str, name: str, size: int, alone: bool) -> int:
        path = self.path / name
        try:
            if path.suffix == ".bin":
                path.with_suffix(".json").unlink(missing_ok=True)  # first: without it the bytes do not exist
            path.unlink(missing_ok=True)
            if alone and not any(self.path.glob(f"{key}-*")):
                (self.path / f"{key}.lock").unlink(missing_ok=True)
        except OSError:  # another user's
            return 0
        return size


def cache_folder() -> Path:
    """Return the folder of the cache, which exists and can be written.

    Raises:
        UserError: It cannot be, or another user's is in its place.
    """
    named = os.environ.get("PIPELINE_CACHE_DIR", "")
    if named:
        folder = Path(named).expanduser().absolute()
        if problem := _unwritable(folder):
            raise UserError(
                f"PIPELINE_CACHE_DIR={named!r} cannot be written: {problem}. Name a folder on a disk of this node that "
                "this user may write"
            )
        return folder
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), _NAME)
    if folder.is_absolute() and not _unwritable(folder):
        return folder
    # Read-only images and containers with any user id have no home to write.
    folder = Path(tempfile.gettempdir(), f"{_NAME}-{os.getuid()}")
    problem = _unwritable(folder)
    if not problem:
        state = os.lstat(folder)
        mine = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o077
        problem = "" if mine else "it is a link, another user's, or open to others"
    if problem:
        raise UserError(f"{folder} cannot hold the cache: {problem}. Name another folder by PIPELINE_CACHE_DIR")
    return folder


def cache_bytes() -> int:
    """Return how many bytes the cache may hold.

    Raises:
        UserError: The setting is no number of bytes.
    """
    text = os.environ.get("PIPELINE_CACHE_BYTES", "") or str(_BYTES)
    if not re.fullmatch(r"0*[1-9][0-9]*", text, re.ASCII) or len(text) > 18:
        raise UserError(f"PIPELINE_CACHE_BYTES={text!r} must be a whole number of bytes >= 1, such as {_BYTES}")
    return int(text)


def _open_lock(path: Path) -> int:
    while True:
        for flags in (os.O_RDWR, os.O_RDONLY):  # another user's lock opens for reading, and locks as well
            with suppress(PermissionError, FileNotFoundError):
                return os.open(path, flags | os.O_NOFOLLOW)
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)


def _boot() -> str:
    """Return what changes when the machine is restarted; where the system does not say, with every call."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return uuid.uuid4().hex


def _unwritable(folder: Path) -> str:
    """Return why a folder cannot be created or written, or nothing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return storage_error(error)
