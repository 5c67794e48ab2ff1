"""Files on any fsspec URL, fetched once per node and verified.

The cache is one folder on a disk of the node that processes, runs and users may share:

    <folder>/
      <key>.lock             held by readers and fetchers; <key> stands for one URL
      <key>-<version>.part   a download in progress, or the leftover of a killed one
      <key>-<version>.bin    the bytes of one version of the file; never changed, only removed
      <key>-<version>.json   their record, written last: bytes without it do not exist

Environment: PIPELINE_CACHE_DIR (default: the user's cache folder, or one of the user's own in the temporary folder),
PIPELINE_CACHE_BYTES (default: 50 GB; the least recently used files are removed first).
"""

import fcntl
import gzip
import hashlib
import io
import logging
import os
import re
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, BinaryIO

from pipeline.cache.folder import CacheFolder
from pipeline.errors import StorageAway, UserError
from pipeline.run.retry import patiently
from pipeline.run.run_dir import now
from pipeline.run.storage import is_local, open_filesystem, speaks
from pipeline.run.storage_errors import http_status, is_away, storage_error

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TRIES = 3
_PAUSE = 0.2
_STALLED = 60.0
_GZIP = b"\x1f\x8b"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What storages call the content's tag, and where they have none, its times.
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "sha")
_TIMES = ("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified", "created")


@dataclass(frozen=True)
class Source:
    """A file on this node.

    Attributes:
        url: As the user gave it; an absolute path for a local file.
        path: The local file itself, or its copy in the cache.
        bytes: Its length.
        mtime_ns: When its content was last written.
        decompress: Whether gzip was undone.
        known: The digest of the copy in the cache, empty for a local file.
    """

    url: str
    path: str
    bytes: int
    mtime_ns: int
    decompress: bool = False
    known: str = ""

    @cached_property
    def sha256(self) -> str:
        """The digest of the content; a local file's is computed when first asked for."""
        if self.known:
            return self.known
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if os.fstat(file.fileno()).st_mtime_ns != self.mtime_ns:
                raise OSError(f"{self.url} was changed since it was opened: start again")
        return f"sha256:{digest}"


@contextmanager
def fetched(url: str, sha256: str | None = None, decompress: bool = False) -> Iterator[Source]:
    """Yield a file as it is on this node, verified; a copy stays in the cache until the block ends.

    Arguments and errors are those of `pipeline.cache.mapped`.
    """
    wanted = _wanted(sha256)
    fs, path = open_filesystem(url, url)
    if is_local(fs):
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{path} is not a file")
        source, url = Source(path, path, state.st_size, state.st_mtime_ns), path
        with open(path, "rb") as file:
            in_place = not decompress or file.read(2) != _GZIP
        if in_place:
            if wanted:
                _verify(url, source.sha256, wanted)
            yield source
            return
    with _CachedFile(url, decompress).held(fs, path, wanted) as source:
        yield source


class _CachedFile:
    """The copies of one file in the cache, one for each version.

    Args:
        url: Of the file.
        decompress: Whether to undo gzip.
    """

    def __init__(self, url: str, decompress: bool) -> None:
        self.url = url
        self.decompress = decompress
        self.folder = CacheFolder()
        self.key = hashlib.sha256(f"{decompress} {url}".encode()).hexdigest()[:32]

    @contextmanager
    def held(self, fs: Any, path: str, wanted: str) -> Iterator[Source]:
        """Yield a copy of what the storage holds now, which no process removes until the block ends."""
        if wanted:
            with self.folder.lock(self.key, fcntl.LOCK_SH):
                if (copy := self._find(source_sha256=wanted)) is not None:
                    yield copy
                    return
        ask = partial(_ask, fs, path)
        try:
            # While it is away a copy is good enough; without one it is waited for.
            info = ask() if not wanted and self._find() is not None else patiently(self.url, ask)
        except StorageAway:
            raise
        except PermissionError as error:
            raise PermissionError(f"{self.url} may not be read: {storage_error(error)}") from error
        except Exception as error:
            if _is_missing(error):
                raise FileNotFoundError(f"{self.url} does not exist") from error
            reason, failure = storage_error(error), error
        else:
            version = version_of(info)
            if not version or version.startswith("size="):
                log.warning(
                    "%s: its host reports neither tag nor time: changes may be missed; sha256 pins it", self.url
                )

            def fetch() -> None:
                nonlocal version
                version = patiently(self.url, lambda: self._fetch(fs, path, info, wanted))

            with self.folder.hold(self.key, self.url, lambda: self._find(wanted, version=version), fetch) as copy:
                yield copy
            return
        with self.folder.lock(self.key, fcntl.LOCK_SH):
            if (copy := None if wanted else self._find()) is None:
                raise OSError(f"{self.url} cannot be read: {reason}") from failure
            log.warning("%s cannot be reached (%s): using the copy in %s", self.url, reason, self.folder.path)
            yield copy

    def _find(self, wanted: str = "", **having: str) -> Source | None:
        """Return the newest whole copy whose record has these values."""
        stems = [path.with_suffix("") for path in self.folder.path.glob(f"{self.key}-*.json")]
        records = [(stem, self.folder.read_record(stem, self.url, **having)) for stem in stems]
        found = [(str(record.get("created")), stem, record) for stem, record in records if record is not None]
        for _, stem, record in sorted(found, key=lambda each: each[0], reverse=True):
            if (mtime_ns := self.folder.mtime_if_whole(stem, record)) is None:
                continue
            if wanted:
                _verify(self.url, str(record.get("source_sha256")), wanted)
            path, sha256 = stem.with_suffix(".bin"), str(record.get("sha256"))
            return Source(self.url, str(path), record["bytes"], mtime_ns, self.decompress, sha256)
        return None

    def _fetch(self, fs: Any, path: str, info: dict[str, Any], wanted: str) -> str:
        """Download with a few retries; return the version that came."""
        failure: Exception | None = None
        for attempt in range(_TRIES):
            try:
                if attempt:
                    time.sleep(_PAUSE * 4**attempt)
                    info = _ask(fs, path)
                self._download(fs, path, info, wanted)
                return version_of(info)
            except (UserError, ValueError, FileNotFoundError, PermissionError):
                raise
            except Exception as error:  # noqa: BLE001 - every storage has errors of its own
                failure = error
                log.warning("%s: attempt %d of %d failed: %s", self.url, attempt + 1, _TRIES, storage_error(error))
        assert failure is not None
        raise OSError(f"{self.url} was not fetched whole in {_TRIES} tries: {storage_error(failure)}") from failure

    def _download(self, fs: Any, path: str, info: dict[str, Any], wanted: str) -> None:
        version, size = version_of(info), _size(info)
        stem = self.folder.path / f"{self.key}-{hashlib.sha256(version.encode()).hexdigest()[:16]}"

        def fill(file: BinaryIO) -> dict[str, Any]:
            with fs.open(path, "rb", **_streaming(fs)) as remote:
                digest, source_digest, source_bytes, length = self._copy(remote, file, size)
            file.truncate(length)
            if size is not None and source_bytes != size:
                raise _short(source_bytes, size)
            if version_of(_ask(fs, path)) != version:
                raise ConnectionError("it was changed while it was fetched")
            if wanted:
                _verify(self.url, source_digest, wanted)
            known = {"version": version, "bytes": length, "sha256": digest}
            return {**known, "source_sha256": source_digest, "created": now()}

        self.folder.take_in(stem, self.url, size or 0, fill, durable=True)

    def _copy(self, remote: Any, file: Any, size: int | None) -> tuple[str, str, int, int]:
        """Copy in parts; return the digests of the kept and received bytes, and the received and kept lengths."""
        raw, kept, length = _HashingReader(remote), hashlib.sha256(), 0
        stream = io.BufferedReader(raw, _CHUNK)
        zipped = self.decompress and stream.peek(2)[:2] == _GZIP
        reader = io.BufferedReader(gzip.GzipFile(fileobj=stream), _CHUNK) if zipped else stream
        try:
            while chunk := reader.read(_CHUNK):
                length += len(chunk)
                if length > self.folder.limit:
                    raise self.folder.too_large(self.url, length)
                file.write(chunk)
                if zipped:
                    kept.update(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            if isinstance(error, EOFError) and size is not None and raw.bytes != size:
                raise _short(raw.bytes, size) from error
            raise ValueError(f"{self.url}: damaged gzip ({error})") from error
        came = raw.hasher.hexdigest()
        return f"sha256:{kept.hexdigest() if zipped else came}", f"sha256:{came}", raw.bytes, length


class _HashingReader(io.RawIOBase):
    """Counts and hashes what is read."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.hasher = hashlib.sha256()
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer) and (data := self.file.read(len(buffer) - filled)):
            buffer[filled : filled + len(data)] = data
            self.hasher.update(data)
            filled += len(data)
        self.bytes += filled
        return filled


def _ask(fs: Any, path: str) -> dict[str, Any]:
    info = fs.info(path)
    if not isinstance(info, dict) or info.get("type") == "directory":
        raise IsADirectoryError(f"{path} is a folder, not a file")
    return info


def _is_missing(error: Exception) -> bool:
    """Return whether the storage answered that there is no such file; over HTTP every failure raises the same class."""
    missing = isinstance(error, (FileNotFoundError, IsADirectoryError))
    return missing and not is_away(error) and http_status(error) in (None, 404, 410)


def _short(came: int, size: int) -> ConnectionError:
    return ConnectionError(f"{came} bytes came, the storage says {size}")


def version_of(info: dict[str, Any]) -> str:
    """Return what changes with the content: the storage's tag or else its times, and the length."""
    tags = [f"{name}={info[name]}" for name in _TAGS if info.get(name)][:1]
    found = tags or [f"{name}={info[name]}" for name in _TIMES if info.get(name)]
    size = _size(info)
    return " ".join(found + ([] if size is None else [f"size={size}"]))


def _size(info: dict[str, Any]) -> int | None:
    size = info.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def _streaming(fs: Any) -> dict[str, Any]:
    """Return how to read from start to end: over HTTP as one answer, since not every host supports ranges."""
    if not speaks(fs, "http"):
        return {}
    from aiohttp import ClientTimeout  # noqa: PLC0415 - installed where fsspec speaks HTTP

    # aiohttp would end every answer after five minutes; without a size fsspec would ask for it once more.
    timeout = ClientTimeout(total=None, sock_connect=_STALLED, sock_read=_STALLED)
    return {"block_size": 0, "size": -1, "timeout": timeout}


def _wanted(sha256: str | None) -> str:
    if sha256 is None:
        return ""
    wanted = f"sha256:{sha256.strip().lower().removeprefix('sha256:')}"
    if not _DIGEST.fullmatch(wanted):
        raise UserError(f"sha256={sha256!r} must be 64 hexadecimal digits, as `sha256sum <file>` prints them")
    return wanted


def _verify(url: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise UserError(
            f"sha256={wanted!r} is expected of {url}, but it has {found}: it is another file or a damaged one. "
            "Upload it again, or correct sha256"
        )
