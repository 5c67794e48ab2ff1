"""`lease.json` on every storage: read with its age, and replaced only where it still is what was read.

- Ages are told by the storage's own clock: a file's time against that of another that was just written (disk), or
  against the answer's date (S3). Only other protocols are measured by this host's clock.
- On a disk a lease is created with O_EXCL, replaced and removed under a lock on the file itself, and renewed through
  its open file, which a newer lease of the same name does not share: who wakes up in the middle of a renewal, after
  any time, writes into a file that has no name any more.
- On S3 If-None-Match and If-Match do it. A store that takes neither, and every other protocol, is compared, written,
  waited for and read back, and the log says so.
"""

import fcntl
import json
import logging
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pipeline.run.run_dir import LEASE, RunDir, http_status, now

log = logging.getLogger(__name__)

EXPIRES = 60.0
"""Seconds, where a lease does not say."""

_SETTLE = 1.0
_REFUSED = (404, 409, 412)
_NOT_IMPLEMENTED = 501
_NOBODY = '"00000000000000000000000000000000"'
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Seen:
    """A lease as it lies on the storage.

    Attributes:
        value: What it says; empty where it is torn, as while it is being created.
        age: Seconds since it was written.
        version: What it is replaced by, if it is still that.
    """

    value: dict[str, Any]
    age: float
    version: Any

    @property
    def seconds(self) -> float:
        """How long it lasts without being written again."""
        return float(self.value.get("seconds", EXPIRES))

    def __str__(self) -> str:
        told = self.value.get
        return (
            f"launch {told('launch', 'unknown')!r} (attempt {told('attempt', 'unknown')}, process "
            f"{told('pid', 'unknown')} on {told('host', 'unknown')}, renewed {self.age:.0f} s ago)"
        )


class Disk:
    """The lease on a disk, also one that several hosts share."""

    def __init__(self, run: RunDir) -> None:
        self._folder = Path(run.path)
        self._path = self._folder / LEASE
        self._own: int | None = None

    def look(self) -> Seen | None:
        """The lease, or None where there is none."""
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
        return Seen(_parse(data), max(0.0, age), data)

    def adopt(self, seen: Seen) -> None:
        """Go on with a lease that is this process's own."""

    def put(self, data: bytes, old: Seen | None) -> bool:
        """Write a lease in the place of an old one, or of none; False where another was faster."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if old is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._write_new(os.open(self._path, flags, 0o666), data)
            except FileExistsError:
                return False
            return True
        with self._locked() as current:
            if current != old.version:
                return False
            new = f"{self._path}.{uuid.uuid4().hex}"
            self._write_new(os.open(new, flags, 0o666), data)
            os.replace(new, self._path)
        return True

    def renew(self, data: bytes, token: str) -> bool:
        """Write the own lease again; False where it is not the run's any more."""
        if not self._is_own():
            return False
        assert self._own is not None
        os.pwrite(self._own, data, 0)
        os.fsync(self._own)
        return self._is_own()

    def remove(self, token: str) -> None:
        """Remove the own lease."""
        with self._locked() as current:
            if current is not None and _parse(current).get("token") == token:
                self._path.unlink()

    def close(self) -> None:
        """Forget the own lease."""
        if self._own is not None:
            os.close(self._own)
            self._own = None

    def _write_new(self, file: int, data: bytes) -> None:
        self.close()
        self._own = file
        os.write(file, data)
        os.fsync(file)

    def _is_own(self) -> bool:
        assert self._own is not None
        try:
            # On a network disk only opening asks the server which file has the name now.
            with self._path.open("rb") as file:
                return os.path.samestat(os.fstat(file.fileno()), os.fstat(self._own))
        except FileNotFoundError:
            return False

    @contextmanager
    def _locked(self) -> Iterator[bytes | None]:
        """The lease's bytes while nobody else replaces or removes it; None where somebody just does."""
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
                log.warning(
                    "%s: no locks here (%s); two starts within a moment may not notice each other", LEASE, error
                )
            try:
                same = os.path.samestat(os.fstat(file.fileno()), self._path.stat())
            except FileNotFoundError:
                same = False
            yield file.read() if same else None


class Objects:
    """The lease on an object store, or on any other protocol as well as it goes."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._fs = run.fs
        self._path = f"{run.path}/{LEASE}"
        self._conditional = run.is_s3
        self._version: Any = None

    def look(self) -> Seen | None:
        """The lease, or None where there is none."""
        try:
            version, age = self._head() if self._run.is_s3 else (None, self._age())
            # After the head: if it has been written since, the version is too old to be replaced.
            data = self._fs.cat_file(self._path)
        except FileNotFoundError:
            return None
        return Seen(_parse(data), max(0.0, age), version if self._run.is_s3 else data)

    def adopt(self, seen: Seen) -> None:
        """Go on with a lease that is this process's own."""
        self._version = seen.version

    def put(self, data: bytes, old: Seen | None) -> bool:
        """Write a lease in the place of an old one, or of none; False where another was faster."""
        if not self._write(data, None if old is None else old.version):
            return False
        if self._run.is_memory or (self._conditional and not self._write(data, _NOBODY)):
            return True
        self._conditional = False
        log.warning("%s: no conditional writes there; two starts within a moment may not notice each other", self._run)
        time.sleep(_SETTLE)
        return bool(self._fs.cat_file(self._path) == data)

    def renew(self, data: bytes, token: str) -> bool:
        """Write the own lease again; False where it is not the run's any more."""
        if self._write(data, self._version):
            return True
        # A client repeats a request whose answer was lost, and is refused by its own success.
        seen = self.look()
        return seen is not None and seen.value.get("token") == token and self._write(data, seen.version)

    def remove(self, token: str) -> None:
        """Remove the own lease."""
        seen = self.look()
        if seen is not None and seen.value.get("token") == token:
            self._fs.rm_file(self._path)

    def close(self) -> None:
        """Forget the own lease."""

    def _write(self, data: bytes, old: Any) -> bool:
        """Write, if what lies there is still `old` (None: nothing)."""
        if not self._conditional:
            with _ONE_AT_A_TIME:
                seen = self.look()
                if old != (None if seen is None else seen.version):
                    return False
                answer = self._fs.pipe_file(self._path, data)
                self._version = answer["ETag"] if self._run.is_s3 else data
                return True
        # Ceph compares with what has no quotes, others want them.
        conditions = [{"mode": "create"}] if old is None else [{"IfMatch": old}, {"IfMatch": old.strip('"')}]
        for condition in conditions:
            try:
                answer = self._fs.pipe_file(self._path, data, **condition)
            except Exception as error:
                status = http_status(error)
                if status == _NOT_IMPLEMENTED:
                    self._conditional = False
                    return self._write(data, old)
                if not isinstance(error, FileExistsError) and status not in _REFUSED:
                    raise
            else:
                self._version = answer["ETag"]
                return True
        return False

    def _head(self) -> tuple[str, float]:
        bucket, key = self._run.object_of(LEASE)
        head = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
        date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
        age = (parsedate_to_datetime(date) if date else datetime.now(UTC)) - head["LastModified"]
        # Both are whole seconds: nothing expires too early.
        return head["ETag"], (age - timedelta(seconds=1)).total_seconds()

    def _age(self) -> float:
        try:
            written = self._fs.modified(self._path)
        except NotImplementedError:
            written = datetime.fromisoformat(_parse(self._fs.cat_file(self._path)).get("renewed", now()))
        return float((datetime.now(UTC) - written).total_seconds())


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
