"""The names of everything that a run leaves behind, on any fsspec URL.

A run directory is a URL: `runs/x`, `s3://bucket/x`. This module owns every name in it. It needs fsspec and the standard
library only, so the submitter can read results without torch.

    <run_dir>/
      fit.yaml  test.yaml ...         the resolved configuration of each subcommand
      lease.json                      who may write here now
      attempts/0001.json              one per start: when, and how it ended; run.json: the newest one again
      checkpoints/step-00000120.ckpt  a checkpoint; it exists once its commit record does
      checkpoints/step-00000120.json  the commit record, written last
      logs/                           TensorBoard events, hparams.yaml, telemetry
      evaluation/receipt.json, evaluation/scores.csv, evaluation/pictures/
      predictions/  report.html       what `predict` wrote; the page to look at
"""

import json
import logging
import os
import re
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.errors import StorageAway, UserError
from pipeline.run import storage
from pipeline.run.retry import patient, patiently
from pipeline.run.s3_client import S3Location, locate
from pipeline.run.storage_errors import is_away, raise_for_user, storage_error

log = logging.getLogger(__name__)

SCHEMA = 1
"""The version of every JSON file in a run directory."""

RECEIPT, SCORES = "evaluation/receipt.json", "evaluation/scores.csv"
OUTPUTS, PICTURES = "evaluation/outputs.pt", "evaluation/pictures"
PREDICTIONS, REPORT = "predictions", "report.html"
LOGS = "logs"
LEASE = "lease.json"
NEWEST = "run.json"
SWEEP = "sweep.json"
"""Beside `trials` and a lease of its own in the folder of a sweep, in which the run directories of its trials lie."""
ATTEMPTS = "attempts"
CHECKPOINTS = "checkpoints"

_ATTEMPT = re.compile(r"attempts/(\d{4,})\.json")
_CHECKPOINT = re.compile(r"checkpoints/step-(\d{8,})\.(ckpt|json)")


class RunDir:
    """One run's directory on any fsspec storage.

    Args:
        url: A local path or an fsspec URL. Nothing is created or asked before the first call.

    Raises:
        UserError: The URL is empty, its protocol is unknown, what it needs is not installed, or it is `memory://`.
    """

    def __init__(self, url: str) -> None:
        if problem := run_dir_problem(url):
            raise UserError(problem)
        self.fs, path = storage.open_filesystem(url, f"run_dir={url!r}")
        self.is_local = storage.is_local(self.fs)
        self.is_s3 = storage.speaks(self.fs, "s3")
        if not self.is_local and "://" not in path:
            # One name for one place: an empty segment is a folder to s3fs, and an error to obstore.
            root = "/" if path.startswith("/") else ""
            path = root + "/".join(each for each in path.split("/") if each not in ("", "."))
        self.path = path.rstrip("/")
        self.url = self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))
        # What a person reads and types again: as it was given, but for S3, where one place has one name.
        self.label = self.url if self.is_s3 else url.rstrip("/")

    def __str__(self) -> str:
        return self.label

    def url_of(self, name: str) -> str:
        """Return the full URL (a plain path on a local disk) of one name in the run directory."""
        return f"{self.url}/{name}"

    def object_of(self, name: str) -> tuple[str, str]:
        """On an object store: return the bucket, and the key of one name in the run directory ("" for its root)."""
        bucket, _, key = f"{self.path}/{name}".partition("/")
        return bucket, key

    @staticmethod
    def config(subcommand: str) -> str:
        """Return the name of the resolved configuration of a subcommand."""
        return f"{subcommand}.yaml"

    @staticmethod
    def checkpoint(step: int) -> str:
        """Return the name of the checkpoint of an optimizer step."""
        return f"{CHECKPOINTS}/step-{step:08d}.ckpt"

    @staticmethod
    def record(step: int) -> str:
        """Return the name of the commit record of an optimizer step."""
        return f"{CHECKPOINTS}/step-{step:08d}.json"

    @staticmethod
    def attempt(number: int) -> str:
        """Return the name of the record of one attempt."""
        return f"{ATTEMPTS}/{number:04d}.json"

    @patient
    def _entries(self, folder: str) -> list[dict[str, Any]]:
        try:
            return cast("list[dict[str, Any]]", self.fs.ls(f"{self.path}/{folder}", detail=True))
        except FileNotFoundError:
            return []

    def names(self, folder: str) -> list[str]:
        """Return the names in one of the run's folders, without the folder, in no order; none where it is missing."""
        return [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in self._entries(folder)]

    def attempts(self) -> list[int]:
        """Return the numbers of the recorded attempts, in no order."""
        return [found for name in self.names(ATTEMPTS) if (found := RunDir.attempt_number(f"{ATTEMPTS}/{name}"))]

    @staticmethod
    def attempt_number(name: str) -> int | None:
        """Return the number of the attempt, from 1, whose record has this name in a run directory; None for others."""
        return int(match[1]) if (match := _ATTEMPT.fullmatch(name)) else None

    @staticmethod
    def checkpoint_step(name: str) -> int | None:
        """Return the optimizer step whose checkpoint has this name, None for any other name."""
        return file[0] if (file := RunDir.checkpoint_file(name)) and name == RunDir.checkpoint(file[0]) else None

    @staticmethod
    def checkpoint_file(name: str) -> tuple[int, str] | None:
        """Return the optimizer step and the kind, `ckpt` or `json`, of a name in a run directory; None for others."""
        return (int(match[1]), match[2]) if (match := _CHECKPOINT.fullmatch(name)) else None

    def steps(self) -> dict[str, dict[int, int]]:
        """Return the size in bytes by step, for `ckpt` and for `json` files, by one listing."""
        found: dict[str, dict[int, int]] = {"ckpt": {}, "json": {}}
        for entry in self._entries(CHECKPOINTS):
            file = RunDir.checkpoint_file(f"{CHECKPOINTS}/{str(entry['name']).rpartition('/')[2]}")
            if file and entry.get("type") == "file":
                found[file[1]][file[0]] = int(entry["size"])
        return found

    @cached_property
    def s3(self) -> S3Location | None:
        """How its bucket is reached; None on another storage, and where fsspec's own configuration says it.

        Raises:
            Exception: The storage does not answer.
        """
        configured = self.fs.storage_options != storage.options(self.url)
        return locate(self.object_of("")[0]) if self.is_s3 and not configured else None

    def open_write(self, name: str, block: int | None = None) -> BinaryIO:
        """Open a new file for streaming bytes into it; on a local disk, `sync` makes it durable.

        Args:
            name: Of the file.
            block: Bytes of a part, on a storage that takes files in parts.
        """
        if self.is_local:
            storage.make_folder(Path(self.path, name).parent)
        return cast("BinaryIO", self.fs.open(f"{self.path}/{name}", "wb", block_size=block))

    def clear(self, name: str) -> None:
        """On a local disk: move a folder aside that has the name of a file to be written; no folder is the run's."""
        path = Path(self.path, name)
        if self.is_local and path.is_dir():
            aside = path.with_name(f"{path.name}.aside-{uuid.uuid4().hex[:8]}")
            path.rename(aside)
            log.warning("%s is a folder: moved to %s", self.url_of(name), aside.name)

    def sync(self, name: str) -> None:
        """On a local disk: force a file and its folder's entries to the disk. Object stores are durable."""
        if self.is_local:
            storage.sync(Path(self.path, name))
            storage.sync(Path(self.path, name).parent)

    def size(self, name: str) -> int | None:
        """Return the length in bytes that the storage reports, or None where there is no such file."""
        return self.size_and_tag(name)[0]

    @patient
    def info(self, name: str) -> dict[str, Any] | None:
        """Return what the storage tells of a file, its `size` at least, or None where there is none."""
        try:
            return cast("dict[str, Any]", self.fs.info(f"{self.path}/{name}"))
        except FileNotFoundError:
            return None

    def size_and_tag(self, name: str) -> tuple[int | None, str | None]:
        """Return the length in bytes that the storage reports and the ETag without quotes; None for what is missing."""
        info = self.info(name)
        tag = None if info is None else info.get("ETag")
        return None if info is None else int(info["size"]), tag.strip('"') if isinstance(tag, str) else None

    @patient
    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file, or None where there is none."""
        return storage.read(self.fs, f"{self.path}/{name}")

    @patient
    def write(self, name: str, data: bytes) -> None:
        """Write a small file, whole and durable."""
        storage.write(self.fs, f"{self.path}/{name}", data)

    @patient
    def create(self, name: str, data: bytes) -> bool:
        """Write a small file unless there is one of that name, see `storage.create`."""
        return storage.create(self.fs, f"{self.path}/{name}", data)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file of this run, or None where it is missing, torn or of another schema."""
        data = self.read(name)
        return None if data is None else parse_json(data)

    def read_jsons(self, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """Return several JSON files of this run by name, each as `read_json`, concurrently if the storage can."""
        return {name: None if data is None else parse_json(data) for name, data in self.read_all(names).items()}

    def read_all(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """Return the bytes of several files by name, None where there is none, concurrently if the storage can."""
        wanted = list(names)
        return dict(zip(wanted, self._read_several(", ".join(wanted), wanted), strict=True)) if wanted else {}

    @patient
    def _read_several(self, _: str, names: list[str]) -> list[bytes | None]:
        # Not `cat`, which takes brackets and stars in the run directory's own name for a pattern.
        came = self.fs.cat_ranges([f"{self.path}/{name}" for name in names], None, None, on_error="return")
        for data in came:
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise data
        return [data if isinstance(data, bytes) else None for data in came]

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file of this run, with its schema and without NaN."""
        self.write(name, _text(value))

    def create_json(self, name: str, value: dict[str, Any]) -> bool:
        """Write a JSON file unless there is one of that name, see `create`."""
        return self.create(name, _text(value))

    def write_nonce(self) -> str:
        """Prove that this process may write here; another node proves with `sees` that it looks at the same place.

        Raises:
            UserError: The directory cannot be written.
            StorageAway: The storage does not answer.
        """
        name = f"nonce-{uuid.uuid4().hex}"
        try:
            patiently(f"run_dir={self.label!r}", lambda: storage.write(self.fs, f"{self.path}/{name}", name.encode()))
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            raise_for_user(
                error,
                f"run_dir={self.label!r} cannot be written",
                "Give a folder or bucket that exists and that this user may write, or fix its permissions and "
                "credentials",
            )
        return name

    def sees(self, nonce: str) -> bool:
        """Return whether this node reads back what another one wrote.

        Raises:
            StorageAway: The storage does not answer here.
        """
        try:
            return self.read(nonce) == nonce.encode()
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            if is_away(error):
                raise_for_user(error, f"run_dir={self.label!r} cannot be read", "")
            return False  # whatever it is, it is not seen

    def remove_nonce(self, name: str) -> None:
        """Remove what `write_nonce` wrote. What the storage refuses is logged: the file does no harm.

        Raises:
            StorageAway: The storage does not answer.
        """
        try:
            self.remove(name)
        except StorageAway:
            raise
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            log.warning("%s was not removed: %s", self.url_of(name), storage_error(error))

    def remove(self, name: str) -> None:
        """Delete one file."""
        patiently(f"run_dir={self.label!r}", lambda: self.fs.rm_file(f"{self.path}/{name}"))


def run_dir_problem(url: str) -> str | None:
    """Return what is wrong with a run directory's URL by itself, or None; no storage is asked."""
    example = "give a local path or an fsspec URL such as s3://bucket/run"
    protocol, found, rest = url.partition("://")
    if not url.strip():
        return f"run_dir={url!r} is empty: {example}"
    if url != url.strip() or not url.isprintable():
        return f"run_dir={url!r} has spaces around it or a character that cannot be printed: {example}"
    if url.startswith("memory:"):
        return (
            f"run_dir={url!r} lives within one process and is gone with it: give a folder or a URL such as "
            "s3://bucket/run"
        )
    if found and protocol not in ("file", "local") and (".." in rest.split("/") or not rest.split("/")[0]):
        why = "has '..' in it, which object stores take for a name" if rest.split("/")[0] else "names no bucket"
        return f"run_dir={url!r} {why}: {example}"
    if not found and re.match(r"[a-z][a-z0-9]+:/", url):
        return f"run_dir={url!r} has one slash where a URL has two: give {url.replace(':/', '://', 1)!r}"
    return None


def next_run_dir(name: str, base: str = "runs") -> str:
    """Create the first free `runs/<name>-<n>`, n counting up from 1, and return it: no other start chooses it, too."""
    os.makedirs(base, exist_ok=True)
    taken = [
        int(entry[len(name) + 1 :]) for entry in os.listdir(base) if re.fullmatch(rf"{re.escape(name)}-\d+", entry)
    ]
    number = max(taken, default=0) + 1
    while True:
        try:
            os.mkdir(f"{base}/{name}-{number}")
            return f"{base}/{name}-{number}"
        except FileExistsError:
            number += 1


def now() -> str:
    """Return the time in UTC, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: dict[str, Any]) -> bytes:
    return json.dumps({"schema": SCHEMA, **value}, indent=2, allow_nan=False).encode() + b"\n"


def parse_json(data: bytes) -> dict[str, Any] | None:
    """Return what a JSON file of a run holds, or None where it is torn or of another schema."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None
