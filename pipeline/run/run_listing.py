"""Find the runs beneath a folder or bucket by one recursive listing, and read many of their small files at once.

A run directory is a folder that holds an attempt's record, a checkpoint's file, `lease.json` or `fit.yaml` under the
names that `pipeline.run.run_dir` gives them. It may lie at any depth, also within another run. Links to folders are
not followed. The folder of a sweep, which has a lease too, is none.
"""

import logging
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import StorageAway, UserError
from pipeline.run.retry import patiently
from pipeline.run.run_dir import ATTEMPTS, CHECKPOINTS, LEASE, NEWEST, SWEEP, RunDir, parse_json, run_dir_problem
from pipeline.run.s3_listing import S3Folder
from pipeline.run.storage_errors import is_away, raise_for_user, storage_error

log = logging.getLogger(__name__)

_MARKER = re.compile(
    r"(?:(.*)/)?(?:attempts/\d{4,}\.json|checkpoints/step-\d{8,}\.(?:ckpt|json)|lease\.json|fit\.yaml)", re.DOTALL
)
_ENDS = (".json", ".ckpt", "fit.yaml")
_FEW = 16
"""Folders without `run.json` that are listed one by one; where there are more, all is listed at once."""
_AT_ONCE = 32
"""Small files that are read concurrently."""
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
"""What fsspec's filesystems call the time at which a file was written."""


class StoredFile(NamedTuple):
    """A file as a listing has it.

    Attributes:
        size: In bytes.
        modified: When it was written, in seconds since 1970 by the storage's clock; None where it does not say.
    """

    size: int
    modified: float | None


@dataclass(frozen=True)
class RunListing:
    """What the storage holds of one run.

    Attributes:
        url: Of the run directory, a plain path on a local disk.
        label: The same as a person types it.
        files: By name within the run directory; without those of another run that lies within.
        now: The storage's clock at the listing, in seconds since 1970; None where only this host's is known.
        whole: Whether these are all of its files, or only those that were asked for.
    """

    url: str
    label: str
    files: Mapping[str, StoredFile]
    now: float | None
    whole: bool = True

    def age(self, name: str) -> float | None:
        """Return for how many seconds a file has not been written; None where the storage does not say."""
        modified = self.files[name].modified
        return None if modified is None or self.now is None else max(0.0, self.now - modified)


class RunTree:
    """A folder or bucket beneath which there are runs, or a run itself.

    Args:
        url: A local path or any fsspec URL. Nothing is asked before the first call.

    Raises:
        UserError: As for `RunDir`.
    """

    def __init__(self, url: str) -> None:
        if problem := run_dir_problem(url):
            raise UserError(problem.replace("run_dir=", "url=", 1))
        self._url = url
        self._name = f"url={url!r}"
        self._s3: S3Folder | None = None

    @cached_property
    def _base(self) -> RunDir:
        """The URL as fsspec reaches it; on S3 its client takes long to be imported."""
        try:
            return RunDir(self._url)
        except UserError as error:
            raise UserError(str(error).replace("run_dir=", "url=", 1)) from None

    @property
    def url(self) -> str:
        """The URL by which fsspec knows it, a plain path on a local disk."""
        return self._base.url if self._s3 is None else self._s3.url

    @property
    def label(self) -> str:
        """The same as a person types it."""
        return self._base.label if self._s3 is None else self._s3.url

    def listings(self) -> list[RunListing]:
        """Find every run by one listing, in the order of their names.

        Raises:
            UserError: There is nothing at the URL, or the storage refuses.
            StorageAway: The storage does not answer.
        """
        try:
            files, now = patiently(self._name, self._listed)
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            raise_for_user(
                error, f"{self._name} cannot be read", "Fix the name, or this user's permissions or credentials there"
            )
        if not files and not (self._s3 is None and self._base.is_local and Path(self._base.path).is_dir()):
            raise UserError(f"{self._name} does not exist: give a folder or bucket with runs in it, or a run directory")
        return [self._listing(root, of_run, now) for root, of_run in sorted(_by_run(files).items())]

    def _listing(self, root: str, files: Mapping[str, StoredFile], now: float | None, whole: bool = True) -> RunListing:
        return RunListing(_below(self.url, root), _below(self.label, root), files, now, whole)

    def sketches(self) -> tuple[list[tuple[RunListing, dict[str, bytes]]], list[RunListing]] | None:
        """Find the runs that say in `run.json` how they stand, by that name alone; their files are not listed.

        Returns:
            Those runs, each with `run.json` and, while it has not ended, with its lease; and the other runs, listed.
            None where all is to be listed: on another storage than S3, where the URL is a run itself, and where many
            folders have no `run.json`.

        Raises:
            StorageAway: The storage does not answer.
        """
        try:
            return patiently(self._name, self._sketched)
        except StorageAway:
            raise
        except Exception as error:  # noqa: BLE001 - the listing says it as every other command does
            log.debug("%s: %s", self._name, storage_error(error))
            return None

    def _sketched(self) -> tuple[list[tuple[RunListing, dict[str, bytes]]], list[RunListing]] | None:
        folder = self._s3 = S3Folder.open(self._url)
        if folder is None:
            return None
        below, files = folder.level("")
        newest = _came(folder, below, NEWEST) if not _may_be_run(below, files) else {}
        others = [name for name in below if name not in newest]
        if not newest or len(others) > _FEW:
            return None
        listed = {name: StoredFile(size, at) for other in others for name, size, at in folder.files(other)}
        listings = [self._listing(root, of_run, folder.now) for root, of_run in _by_run(listed).items()]
        return [self._sketch(folder, *each) for each in _with_leases(folder, newest)], listings

    def _sketch(
        self, folder: S3Folder, root: str, files: Mapping[str, tuple[bytes, float]]
    ) -> tuple[RunListing, dict[str, bytes]]:
        stored = {name: StoredFile(len(data), modified) for name, (data, modified) in files.items()}
        listing = self._listing(root, stored, folder.now, whole=False)
        return listing, {name: data for name, (data, _) in files.items()}

    def read(self, wanted: Iterable[tuple[RunListing, str]]) -> Iterator[tuple[RunListing, str, bytes | Exception]]:
        """Yield small files of runs with their bytes, or with why they cannot be read; they are read concurrently.

        Args:
            wanted: The run and the name of each file.

        Raises:
            UserError: The storage refuses all of them.
            StorageAway: The storage does not answer.
        """
        pairs = list(wanted)
        names = [f"{run.url.removeprefix(self.url)}/{name}".lstrip("/") for run, name in pairs]
        try:
            came = patiently(self._name, lambda: self._contents(names))
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            raise_for_user(error, f"{self._name} cannot be read", "Fix this user's permissions or credentials there")
        for (run, name), data in zip(pairs, came, strict=True):
            yield run, name, data

    def _listed(self) -> tuple[dict[str, StoredFile], float | None]:
        """Return each file by its name below the URL, and the storage's clock if it is known."""
        self._s3 = S3Folder.open(self._url)
        if self._s3 is not None:
            try:
                return {name: StoredFile(size, modified) for name, size, modified in self._s3.files()}, self._s3.now
            except Exception as error:  # noqa: BLE001 - whatever it is, s3fs says it as every other command does
                log.debug("%s: %s", self._name, storage_error(error))
                self._s3 = None
        if self._base.is_local:
            path = Path(self._base.path)
            return (dict(_walk(path, "")), self._clock()) if path.exists() else ({}, None)
        return dict(self._found()), None

    def _found(self) -> Iterator[tuple[str, StoredFile]]:
        try:
            found = self._base.fs.find(self._base.path, detail=True)
        except FileNotFoundError:
            return
        for path, info in found.items():
            name = str(path).removeprefix(self._base.path).lstrip("/")
            if name and info.get("type") == "file":
                yield name, StoredFile(int(info.get("size") or 0), _time(info))

    def _clock(self) -> float:
        """Return the clock of the disk, in seconds since 1970."""
        try:
            with tempfile.TemporaryFile(dir=self._base.path) as clock:
                return os.fstat(clock.fileno()).st_mtime
        except OSError:  # it may be read, but not written: most disks are this host's own
            return time.time()

    def _contents(self, names: list[str]) -> list[bytes | Exception]:
        if not names:
            return []
        if self._s3 is not None:
            found = [each if isinstance(each, Exception) else each[0] for each in self._s3.contents(names)]
        elif self._base.is_local:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                return list(pool.map(_read, (f"{self._base.path}/{name}" for name in names)))
        else:
            paths = [f"{self._base.path}/{name}" for name in names]
            found = list(self._base.fs.cat_ranges(paths, None, None, on_error="return"))
        if away := next((data for data in found if isinstance(data, Exception) and is_away(data)), None):
            raise away
        return found


def _walk(folder: Path, name: str) -> Iterator[tuple[str, StoredFile]]:
    """Yield each file below a folder; one that cannot be read is said, and harms no other."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        if not name:
            raise
        log.warning("%s is left out: %s", folder, storage_error(error))
        return
    for entry in entries:
        below = f"{name}/{entry.name}".lstrip("/")
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), below)
            elif not entry.is_dir():
                state = entry.stat(follow_symlinks=False)
                yield below, StoredFile(state.st_size, state.st_mtime)
        except OSError as error:  # removed meanwhile, as a run that is training does
            log.debug("%s: %s", entry.path, error)


def _read(path: str) -> bytes | Exception:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        return error


def _by_run(files: Mapping[str, StoredFile]) -> dict[str, dict[str, StoredFile]]:
    """Return the files of each run by their names in it; the run "" is the URL itself. Others belong to none."""
    names = (name for name in files if name.endswith(_ENDS))
    marked = [(match[1] or "", match[0]) for match in map(_MARKER.fullmatch, names) if match]
    sweeps = {name.rpartition("/")[0] for name in files if name.rpartition("/")[2] == SWEEP}
    roots = {root for root, name in marked if root not in sweeps or name.rpartition("/")[2] != LEASE}
    found: dict[str, dict[str, StoredFile]] = {root: {} for root in roots}
    run_of: dict[str, str | None] = {root: root for root in roots}

    def owner(folder: str) -> str | None:
        if folder not in run_of:
            run_of[folder] = owner(folder.rpartition("/")[0]) if folder else None
        return run_of[folder]

    for name, file in files.items():
        if (root := owner(name.rpartition("/")[0])) is not None:
            found[root][name[len(root) :].lstrip("/")] = file
    return found


def _came(folder: S3Folder, roots: Iterable[str], name: str) -> dict[str, tuple[bytes, float]]:
    """Return a file of several folders, of those that have it, with the time of each."""
    found: dict[str, tuple[bytes, float]] = {}
    each = list(roots)
    for root, answer in zip(each, folder.contents([f"{root}/{name}" for root in each]), strict=True):
        if isinstance(answer, tuple):
            found[root] = answer
        elif not isinstance(answer, FileNotFoundError):
            raise answer
    return found


def _with_leases(
    folder: S3Folder, newest: Mapping[str, tuple[bytes, float]]
) -> Iterator[tuple[str, dict[str, tuple[bytes, float]]]]:
    """Yield the files of each run: its newest record, and its lease where the run has not ended."""
    going = [root for root, (data, _) in newest.items() if (parse_json(data) or {}).get("ended") is None]
    leases = _came(folder, going, LEASE)
    # One that has none any more has ended meanwhile, or was killed long ago.
    again = _came(folder, (root for root in going if root not in leases), NEWEST)
    for root, record in {**newest, **again}.items():
        yield root, {NEWEST: record} | ({LEASE: leases[root]} if root in leases else {})


def _may_be_run(folders: Iterable[str], files: Collection[str]) -> bool:
    """Return whether a folder looks like a run itself, by what lies directly in it."""
    marks = {ATTEMPTS, CHECKPOINTS, NEWEST, RunDir.config("fit"), *([] if SWEEP in files else [LEASE])}
    return not marks.isdisjoint((*folders, *files))


def _below(base: str, name: str) -> str:
    return f"{base}/{name}" if name else base


def _time(info: Mapping[str, Any]) -> float | None:
    for value in map(info.get, _TIMES):
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return None
