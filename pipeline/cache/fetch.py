"""Files on any fsspec URL, fetched once a node, verified, and memory-mapped.

The cache is one folder on a disk of the node that processes, runs and users may share:

    <folder>/
      <key>.lock             who reads or fetches now; <key> stands for one URL
      <key>-<version>.part   a download under way, or what a killed one left
      <key>-<version>.bin    the bytes of one version of the file; never changed, only removed
      <key>-<version>.json   what they are, written last: bytes without it do not exist

Environment: PIPELINE_CACHE_DIR (default: the user's cache folder, or one of the user's own in the temporary folder),
PIPELINE_CACHE_BYTES (default: 50 GB; the least recently used files go first).
"""

import errno
import fcntl
import gzip
import hashlib
import io
import json
import logging
import os
import re
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipeline.cache.folder import CacheFolder
from pipeline.cache.mapping import Mapped, Source, map_file
from pipeline.errors import UserError
from pipeline.run.run_dir import SCHEMA, now
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

_CHUNK = 1 << 20
_TRIES = 3
_PAUSE = 0.2
_STALLED = 60.0
_GZIP = b"\x1f\x8b"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_RECORD = {"version": str, "bytes": int, "sha256": str, "source_sha256": str, "mtime_ns": int, "created": str}
# What storages call the content's tag, and where they have none, its times.
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "content_md5", "sha")
_TIMES = ("mtime", "LastModified", "Last-Modified", "last_modified", "updated", "modified", "created")


def mapped(url: str, sha256: str | None = None, decompress: bool = False) -> Mapped:
    """The bytes of a file, memory-mapped.

    A local file is mapped where it lies, and must not be changed as long as it is; any other comes from the cache,
    fetched if the cache has no copy of this version. Where the storage cannot be asked, the copy at hand is used.

    Args:
        url: A local path or any fsspec URL.
        sha256: The expected digest of the file at the URL, in hex. A copy of that digest is used without asking.
        decompress: Undo gzip, if it is gzip. Its content then lies in the cache, a local file's too.

    Returns:
        (n,) uint8, read-only.

    Raises:
        UserError: The digest is another one, the cache's settings are wrong, or the file does not fit.
        ValueError: Damaged gzip.
        OSError: The file could not be read.
    """
    wanted = _wanted(sha256)
    try:
        # Without a listing cache: a changed file must be seen.
        fs, path = url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url}: {error}. Allowed are a local path and every protocol that fsspec knows here; for s3:// install "
            "the extra: pip install 'torchx-lightning-pipeline[s3]'"
        ) from error
    if isinstance(fs, LocalFileSystem):
        url = str(path)
        array = map_file(Source(url, url, -1, 0))
        if not decompress or bytes(array[:2]) != _GZIP:
            if wanted and array.source is not None:
                _verify(url, array.source.sha256, wanted)
            return array
    return _Entry(url, decompress).mapped(fs, str(path), wanted)


class _Entry:
    """The copies of one file in the cache, one for each version.

    Args:
        url: Of the file.
        decompress: Whether its gzip is undone.
    """

    def __init__(self, url: str, decompress: bool) -> None:
        self.url = url
        self.decompress = decompress
        self.folder = CacheFolder()
        self.key = hashlib.sha256(f"{decompress} {url}".encode()).hexdigest()[:32]

    def mapped(self, fs: Any, path: str, wanted: str) -> Mapped:
        if wanted:
            with self.folder.lock(self.key, fcntl.LOCK_SH):
                array = self._find(source_sha256=wanted)
            if array is not None:
                return array
        try:
            info = _ask(fs, path)
        except PermissionError as error:
            raise PermissionError(f"{self.url} may not be read: {storage_error(error)}") from error
        except Exception as error:
            if _is_missing(error):
                raise FileNotFoundError(f"{self.url} does not exist") from error
            with self.folder.lock(self.key, fcntl.LOCK_SH):
                array = None if wanted else self._find()
            if array is None:
                raise OSError(f"{self.url} cannot be read: {storage_error(error)}") from error
            log.warning(
                "%s cannot be asked (%s): the copy in %s is used", self.url, storage_error(error), self.folder.path
            )
            return array
        version = _version(info)
        if not version or version.startswith("size="):
            log.warning("%s: its host tells neither tag nor time: a change may go unseen; sha256 pins it", self.url)
        for kind in (fcntl.LOCK_SH, fcntl.LOCK_EX):  # the processes of a node wait for the one that fetches
            with self.folder.lock(self.key, kind):
                array = self._find(wanted, version=version)
                if array is not None:
                    return array
                if kind == fcntl.LOCK_EX:
                    array = self._find(wanted, version=self._fetch(fs, path, info, wanted))
        if array is None:
            raise OSError(
                f"{self.url} was fetched, but its copy in {self.folder.path} is gone or damaged: what else writes?"
            )
        return array

    def _find(self, wanted: str = "", **having: str) -> Mapped | None:
        """The newest whole copy whose record has these values."""
        found: list[tuple[str, Path, dict[str, Any]]] = []
        for path in self.folder.path.glob(f"{self.key}-*.json"):
            record: Any = None
            with suppress(OSError, ValueError):
                record = json.loads(path.read_bytes())
            if (
                isinstance(record, dict)
                and all(type(record.get(name)) is kind for name, kind in _RECORD.items())
                and (record.get("schema"), record.get("url")) == (SCHEMA, self.url)
                and record["bytes"] >= 0
                and all(_DIGEST.fullmatch(record[name]) for name in ("sha256", "source_sha256"))
                and all(record[name] == value for name, value in having.items())
            ):
                found.append((record["created"], path.with_suffix(".bin"), record))
        for _, path, record in sorted(found, key=lambda each: each[0], reverse=True):
            array = None
            with suppress(OSError):
                array = map_file(Source(self.url, str(path), record["bytes"], 0, self.decompress, record["sha256"]))
            if array is None or array.source is None:
                continue
            # Hashing 50 GB again at every start would take each process half a minute and more of reading; a file
            # that somebody wrote to or copied betrays itself by its time, and only that one is hashed.
            touched = array.source.mtime_ns != record["mtime_ns"]
            if touched and f"sha256:{hashlib.sha256(array.data).hexdigest()}" != record["sha256"]:
                continue
            if wanted:
                _verify(self.url, record["source_sha256"], wanted)
            with suppress(OSError):  # another user's file; its own uses keep it
                os.utime(path, ns=(time.time_ns(), array.source.mtime_ns))
            return array
        return None

    def _fetch(self, fs: Any, path: str, info: dict[str, Any], wanted: str) -> str:
        """Download with a few retries; the version that came."""
        failure: Exception | None = None
        for attempt in range(_TRIES):
            try:
                if attempt:
                    time.sleep(_PAUSE * 4**attempt)
                    info = _ask(fs, path)
                self._download(fs, path, info, wanted)
                return _version(info)
            except (UserError, ValueError, FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise self.folder.no_space(self.url, _size(info)) from error
                failure = error
                log.warning("%s: try %d of %d failed: %s", self.url, attempt + 1, _TRIES, storage_error(error))
        assert failure is not None
        raise OSError(f"{self.url} was not fetched whole in {_TRIES} tries: {storage_error(failure)}") from failure

    def _download(self, fs: Any, path: str, info: dict[str, Any], wanted: str) -> None:
        version, size = _version(info), _size(info)
        stem = self.folder.path / f"{self.key}-{hashlib.sha256(version.encode()).hexdigest()[:16]}"

        def fill(file: BinaryIO) -> dict[str, Any]:
            with fs.open(path, "rb", **_streaming(fs)) as remote:
                digest, source_digest, source_bytes, length = self._copy(remote, file, size)
            file.truncate(length)
            if size is not None and source_bytes != size:
                raise OSError(f"{source_bytes} bytes came, the storage says {size}")
            if _version(_ask(fs, path)) != version:
                raise OSError("it was changed while it was fetched")
            if wanted:
                _verify(self.url, source_digest, wanted)
            known = {"version": version, "bytes": length, "sha256": digest}
            return {**known, "source_sha256": source_digest, "created": now()}

        self.folder.take_in(stem, self.url, size or 0, fill, durable=True)

    def _copy(self, remote: Any, file: Any, size: int | None) -> tuple[str, str, int, int]:
        """Copy in parts; the digests of what is kept and of what came, and how many bytes came and are kept."""
        raw, kept, length = _Hashed(remote), hashlib.sha256(), 0
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
                raise OSError(f"{raw.bytes} bytes came, the storage says {size}") from error
            raise ValueError(f"{self.url}: damaged gzip ({error})") from error
        came = raw.hasher.hexdigest()
        return f"sha256:{kept.hexdigest() if zipped else came}", f"sha256:{came}", raw.bytes, length


class _Hashed(io.RawIOBase):
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
    """Whether the storage said that there is no such file; over HTTP an unreachable host looks alike."""
    cause = error.__cause__
    over_http = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    answered = not over_http or getattr(cause, "status", None) in (404, 410)
    return isinstance(error, (FileNotFoundError, IsADirectoryError)) and answered


def _version(info: dict[str, Any]) -> str:
    """What changes with the content: the storage's tag or else its times, and the length."""
    tags = [f"{name}={info[name]}" for name in _TAGS if info.get(name)][:1]
    found = tags or [f"{name}={info[name]}" for name in _TIMES if info.get(name)]
    size = _size(info)
    return " ".join(found + ([] if size is None else [f"size={size}"]))


def _size(info: dict[str, Any]) -> int | None:
    size = info.get("size")
    return size if isinstance(size, int) and size >= 0 else None


def _streaming(fs: Any) -> dict[str, Any]:
    """How to read from the beginning to the end: over HTTP as one answer, since not every host knows ranges."""
    if "http" not in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol):
        return {}
    from aiohttp import ClientTimeout  # noqa: PLC0415 - there where fsspec speaks HTTP

    # aiohttp would end every answer after five minutes; without a size fsspec would ask for it once more.
    return {
        "block_size": 0,
        "size": -1,
        "timeout": ClientTimeout(total=None, sock_connect=_STALLED, sock_read=_STALLED),
    }


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
