"""`lease.json` on every storage: read with its age, and replaced only while it still is what was read.

- On a disk a lease is created by a link, replaced and removed under a lock on the file itself, and renewed through its
  open file: a process that is stopped in the middle of a renewal and wakes up later writes into a file that has no name
  any more, never into a newer lease.
- On S3, If-None-Match and If-Match do it. A store that has neither, and every other protocol, is read, compared and
  written, which does not exclude two writers at the same moment; the log says so.
- Ages are measured by the storage's own clock on a disk (a file's time against that of another that was just written)
  and on S3 (against the date of the answer), by this host's clock on other protocols.
"""

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pipeline.run import storage
from pipeline.run.run_dir import LEASE, RunDir, now

log = logging.getLogger(__name__)

EXPIRES = 60.0
"""Seconds, where a lease does not say."""

_LONGEST = 86_400.0
_NO_ETAG = '"00000000000000000000000000000000"'


@dataclass(frozen=True)
class StoredLease:
    """A lease as the storage holds it.

    Attributes:
        value: Its content; empty where it is torn, as while it is being created.
        age: Seconds since it was written.
        version: What it must still be when it is replaced: its ETag on S3, else its bytes.
    """

    value: dict[str, Any]
    age: float
    version: Any

    @property
    def seconds(self) -> float:
        """How long it lasts without being renewed."""
        seconds = self.value.get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) and 0 <= seconds < _LONGEST else EXPIRES

    @property
    def attempt(self) -> int:
        """The number of its attempt, 0 where it does not say."""
        number = self.value.get("attempt")
        return number if isinstance(number, int) else 0

    def __str__(self) -> str:
        get = self.value.get
        return (
            f"launch {get('launch', 'unknown')!r} (attempt {get('attempt', 'unknown')}, process "
            f"{get('pid', 'unknown')} on {get('host', 'unknown')}, renewed {self.age:.0f} s ago)"
        )


class LeaseFile:
    """The lease on a disk, which several hosts may share."""

    def __init__(self, run: RunDir) -> None:
        self._fs = run.fs
        self._folder = Path(run.path)
        self._path = self._folder / LEASE
        self._own: int | None = None

    def look(self) -> StoredLease | None:
        """Return the lease, or None where there is none."""
        try:
            with self._path.open("rb") as file:
                data, written = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        with tempfile.TemporaryFile(dir=self._folder) as clock:
            clock.write(b"now")
            clock.flush()
            os.fsync(clock.fileno())
            age = os.fstat(clock.fileno()).st_mtime - written
        return StoredLease(parse_lease(data), max(0.0, age), data)

    def put(self, data: bytes, old: StoredLease | None) -> bool:
        """Write a lease in the place of an old one, or of none; return False where another process was faster."""
        if old is None:
            return storage.create(self._fs, str(self._path), data)
        with self._locked() as current:
            if current != old.version:
                return False
            storage.write(self._fs, str(self._path), data)
        return True

    def renew(self, data: bytes, token: str) -> bool:
        """Write this process's lease again; return False where it is no longer the run's."""
        if not self._is_own(token):
            return False
        assert self._own is not None
        os.pwrite(self._own, data, 0)
        os.fsync(self._own)
        return self._is_own(token)

    def remove(self, token: str) -> None:
        """Remove this process's lease."""
        with self._locked() as current:
            if current is not None and parse_lease(current).get("token") == token:
                self._path.unlink()

    def close(self) -> None:
        """Close this process's lease."""
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _is_own(self, token: str) -> bool:
        try:
            # On a network disk only opening asks the server which file has the name now.
            with self._path.open("r+b") as file:
                if self._own is None and parse_lease(file.read()).get("token") == token:
                    self._own = os.dup(file.fileno())
                return self._own is not None and os.path.samestat(os.fstat(file.fileno()), os.fstat(self._own))
        except FileNotFoundError:
            return False

    @contextmanager
    def _locked(self) -> Iterator[bytes | None]:
        """Yield the lease's bytes while no other process replaces or removes it; None where another one does."""
        try:
            file = self._path.open("r+b")
        except FileNotFoundError:
            yield None
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            except OSError as error:
                _warn(self._folder, f"no file locks ({error})")
            try:
                same = os.path.samestat(os.fstat(file.fileno()), self._path.stat())
            except FileNotFoundError:
                same = False
            yield file.read() if same else None


class LeaseObject:
    """The lease on S3, or on any other storage as far as it can."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._fs = run.fs
        self._path = f"{run.path}/{LEASE}"
        self._conditional = run.is_s3
        self._version: Any = None

    def look(self) -> StoredLease | None:
        """Return the lease, or None where there is none."""
        try:
            etag, age = self._head() if self._run.is_s3 else (None, 0.0)
            # After the head: if it has been written since, the ETag is too old to be replaced.
            data = self._fs.cat_file(self._path)
        except FileNotFoundError:
            return None
        value = parse_lease(data)
        if etag is None:
            with suppress(TypeError, ValueError):  # its age is not known then, but that it is not renewed
                age = (datetime.now(UTC) - datetime.fromisoformat(value.get("renewed", now()))).total_seconds()
        return StoredLease(value, max(0.0, age), etag or data)

    def put(self, data: bytes, old: StoredLease | None) -> bool:
        """Write a lease in the place of an old one, or of none; return False where another process was faster."""
        if not (storage.create(self._fs, self._path, data) if old is None else self._replace(data, old.version)):
            return False
        # Some stores ignore a condition that they do not know.
        if self._conditional and self._replace(data, _NO_ETAG):
            self._conditional = False
        if not self._conditional:
            _warn(self._run, "no conditional writes")
        return True

    def renew(self, data: bytes, token: str) -> bool:
        """Write this process's lease again; return False where it is no longer the run's."""
        if self._version is not None and self._replace(data, self._version):
            return True
        # A client repeats a request whose answer was lost, and is refused because it succeeded: that of the first line,
        # or the first one here.
        for _ in range(2):
            seen = self.look()
            if seen is None or seen.value.get("token") != token:
                return False
            if self._replace(data, seen.version):
                return True
        return False

    def remove(self, token: str) -> None:
        """Remove this process's lease."""
        seen = self.look()
        if seen is not None and seen.value.get("token") == token:
            self._fs.rm_file(self._path)

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def _replace(self, data: bytes, version: Any) -> bool:
        """Write where the storage still holds that version."""
        if self._conditional:
            try:
                etag = storage.replace(self._fs, self._path, data, version)
            except NotImplementedError:
                self._conditional = False
            else:
                self._version = etag or self._version
                return etag is not None
        seen = self.look()
        if seen is None or seen.version != version:
            return False
        self._fs.pipe_file(self._path, data)
        self._version = None
        return True

    def _head(self) -> tuple[str, float]:
        bucket, key = self._run.object_of(LEASE)
        head = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
        date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        age = (parsedate_to_datetime(date) if date else datetime.now(UTC)) - head["LastModified"]
        # Both are whole seconds: nothing expires too early.
        return head["ETag"], (age - timedelta(seconds=1)).total_seconds()


def _warn(where: object, what: str) -> None:
    log.warning("%s: %s there: two writers that start at the same moment are not excluded", where, what)


def parse_lease(data: bytes) -> dict[str, Any]:
    """Return the content of a lease, empty where it is torn."""
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
