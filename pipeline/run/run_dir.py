"""The names of everything that a run leaves behind, on any fsspec URL.

A run directory is a URL: `runs/x`, `s3://bucket/x`, `memory://x` (within one process). This module owns every name
in it and is the only one that speaks to its storage by name. It needs fsspec and the standard library only, so the
submitter can read results without torch.

    <run_dir>/
      fit.yaml  test.yaml ...         the resolved configuration of each subcommand
      lease.json                      who may write here now
      attempts/0001.json              one per start: when, and how it ended
      checkpoints/step-00000120.ckpt  a checkpoint; it exists once its commit record does
      checkpoints/step-00000120.json  the commit record, written last
      logs/                           TensorBoard events, hparams.yaml
      evaluation/receipt.json, evaluation/scores.csv
"""

import errno
import json
import os
import re
import socket
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.core import split_protocol, url_to_fs

from pipeline.errors import UserError, chain

_AWAY = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOTCONN)
_AWAY_CLIENTS = ("ConnectionError", "HTTPClientError", "ClientConnectionError")
"""Of botocore and aiohttp, which are there only where the extra for S3 is."""

SCHEMA = 1
"""The version of every JSON file in a run directory."""

RECEIPT = "evaluation/receipt.json"
SCORES = "evaluation/scores.csv"
LOGS = "logs"
LEASE = "lease.json"
ATTEMPTS = "attempts"
CHECKPOINTS = "checkpoints"
UNFINISHED = ".part"
"""Ends the name of a small file on a local disk until it is whole."""

_ATTEMPT = re.compile(r"(\d{4,})\.json")
_CHECKPOINT = re.compile(r"step-(\d{8,})\.(ckpt|json)")
_LOCAL = ("file", "local")
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


class RunDir:
    """One run's directory on any fsspec storage.

    Args:
        url: A local path or an fsspec URL. Nothing is created or asked before the first call.

    Raises:
        UserError: The URL's protocol is unknown, or what it needs is not installed.
    """

    def __init__(self, url: str) -> None:
        if not url or url.isspace():
            raise UserError(f"run_dir={url!r} is empty: give a local path or an fsspec URL such as s3://bucket/run")
        protocol, _ = split_protocol(url)
        self.is_local = protocol is None or protocol in _LOCAL
        self.is_memory = protocol == "memory"
        try:
            # Without a listing cache: another node's files must be seen the moment they are there.
            self.fs, path = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise UserError(
                f"run_dir={url!r}: storage of the kind {protocol!r} needs a package that is missing ({error}). "
                "For s3:// install the extra: pip install 'torchx-lightning-pipeline[s3]'"
            ) from error
        except ValueError as error:
            raise UserError(
                f"run_dir={url!r}: {error}. Allowed are a local path, s3:// and every protocol that fsspec knows here"
            ) from error
        self.is_s3 = "s3" in ([self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol)
        self.path = str(path).rstrip("/")
        self.url = str(self.fs.unstrip_protocol(self.path)) if not self.is_local else self.path
        # What a person reads and types again: local paths as they were given.
        self.label = url.rstrip("/")

    def __str__(self) -> str:
        return self.label

    def url_of(self, name: str) -> str:
        """The full URL (a plain path on a local disk) of one name in the run directory."""
        return f"{self.url}/{name}"

    def object_of(self, name: str) -> tuple[str, str]:
        """On an object store: the bucket, and the key of one name in the run directory ("" stands for its root)."""
        bucket, _, key = f"{self.path}/{name}".partition("/")
        return bucket, key

    @staticmethod
    def config(subcommand: str) -> str:
        """The name of the resolved configuration of a subcommand."""
        return f"{subcommand}.yaml"

    @staticmethod
    def checkpoint(step: int) -> str:
        """The name of the checkpoint of an optimizer step."""
        return f"{CHECKPOINTS}/step-{step:08d}.ckpt"

    @staticmethod
    def record(step: int) -> str:
        """The name of the commit record of an optimizer step."""
        return f"{CHECKPOINTS}/step-{step:08d}.json"

    @staticmethod
    def attempt(number: int) -> str:
        """The name of what is written down of one attempt."""
        return f"{ATTEMPTS}/{number:04d}.json"

    def attempts(self) -> list[int]:
        """The numbers of the attempts that have been written down, in no order."""
        try:
            names = self.fs.ls(f"{self.path}/{ATTEMPTS}", detail=False)
        except FileNotFoundError:
            return []
        matches = (_ATTEMPT.fullmatch(str(name).rsplit("/", 1)[-1]) for name in names)
        return [int(match[1]) for match in matches if match]

    @staticmethod
    def checkpoint_step(name: str) -> int | None:
        """The optimizer step whose checkpoint has this name, None for any other name."""
        match = _CHECKPOINT.fullmatch(name.rpartition("/")[2])
        return int(match[1]) if match and name == RunDir.checkpoint(int(match[1])) else None

    def steps(self) -> dict[str, dict[int, int]]:
        """What lies in `checkpoints/`: for `ckpt` and for `json` the size in bytes by step. One listing."""
        found: dict[str, dict[int, int]] = {"ckpt": {}, "json": {}}
        try:
            entries = self.fs.ls(f"{self.path}/{CHECKPOINTS}", detail=True)
        except FileNotFoundError:
            return found
        for entry in entries:
            match = _CHECKPOINT.fullmatch(str(entry["name"]).rsplit("/", 1)[-1])
            if match and entry.get("type") == "file":
                found[match[2]][int(match[1])] = int(entry["size"])
        return found

    def open_write(self, name: str) -> BinaryIO:
        """Open a new file for streaming bytes into it. On a local disk: `durable` makes it last."""
        if self.is_local:
            os.makedirs(os.path.dirname(f"{self.path}/{name}"), exist_ok=True)
        return cast("BinaryIO", self.fs.open(f"{self.path}/{name}", "wb"))

    def durable(self, name: str) -> None:
        """On a local disk: force the file and the entries of its folders to the disk. Object stores are durable."""
        if not self.is_local:
            return
        path = Path(self.path, name)
        for each in (path, path.parent, Path(self.path)):
            descriptor = os.open(each, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def size(self, name: str) -> int | None:
        """The length in bytes that the storage reports, or None where there is no such file."""
        return self.size_and_tag(name)[0]

    def size_and_tag(self, name: str) -> tuple[int | None, str | None]:
        """The length in bytes that the storage reports, and its ETag without quotes; None for what there is not."""
        try:
            info = self.fs.info(f"{self.path}/{name}")
        except FileNotFoundError:
            return None, None
        tag = info.get("ETag")
        return int(info["size"]), tag.strip('"') if isinstance(tag, str) else None

    def read(self, name: str) -> bytes | None:
        """The bytes of a file, or None where there is none."""
        try:
            return cast("bytes", self.fs.cat_file(f"{self.path}/{name}"))
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Write a small file whole and make it durable."""
        if self.is_local:
            self._place(name, data, os.replace)
        else:
            self.fs.pipe_file(f"{self.path}/{name}", data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a small file whole and make it durable, unless there is one of that name: then return False.

        At once where the storage can (a local disk, most object stores); elsewhere a look comes first.
        """
        if self.is_local:
            try:
                self._place(name, data, os.link)
                return True
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
        path = f"{self.path}/{name}"
        if self.is_s3:
            try:
                self.fs.pipe_file(path, data, mode="create")
                return True
            except Exception as error:
                if isinstance(error, FileExistsError) or http_status(error) in (409, 412):
                    return False
                if http_status(error) != 501:
                    raise
        if self.size(name) is not None:
            return False
        self.write(name, data)
        return True

    def _place(self, name: str, data: bytes, put: Callable[[str, str], None]) -> None:
        """On a local disk: a file of that name is whole at every moment, also of a power failure."""
        path = f"{self.path}/{name}"
        part = f"{path}.{uuid.uuid4().hex}{UNFINISHED}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(part, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            put(part, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
        self.durable(name)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file of this run, or None where it is missing, torn or of another schema."""
        data = self.read(name)
        return None if data is None else _parsed(data)

    def read_jsons(self, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
        """Several JSON files of this run by name, read at the same time where the storage can; each as `read_json`."""
        wanted = list(names)
        # Not `cat`, which takes brackets and stars in the run directory's own name for a pattern.
        came = self.fs.cat_ranges([f"{self.path}/{name}" for name in wanted], None, None, on_error="return")
        found: dict[str, dict[str, Any] | None] = {}
        for name, data in zip(wanted, came, strict=True):
            if isinstance(data, Exception) and not isinstance(data, FileNotFoundError):
                raise data
            found[name] = _parsed(data) if isinstance(data, bytes) else None
        return found

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file of this run, with its schema and without NaN."""
        self.write(name, _text(value))

    def create_json(self, name: str, value: dict[str, Any]) -> bool:
        """As `write_json`, unless there is a file of that name, see `create`."""
        return self.create(name, _text(value))

    def write_nonce(self) -> str:
        """Prove that this process may write here; another node proves with `sees` that it looks at the same place.

        Raises:
            UserError: The directory cannot be written.
        """
        name = f"nonce-{uuid.uuid4().hex}"
        try:
            self.write(name, name.encode())
        except Exception as error:
            raise UserError(
                f"run_dir={self.label!r} cannot be written: {storage_error(error)}. Give a folder or bucket that exists"
                " and that this user may write, or mend its permissions and credentials"
            ) from error
        return name

    def sees(self, nonce: str) -> bool:
        """Whether this node reads back what another one wrote."""
        try:
            return self.read(nonce) == nonce.encode()
        except Exception:  # noqa: BLE001 - every storage has errors of its own; whatever it is, it is not seen
            return False

    def remove(self, name: str) -> None:
        """Delete one file."""
        self.fs.rm_file(f"{self.path}/{name}")


def next_run_dir(name: str, base: str = "runs") -> str:
    """The first free `runs/<name>-<n>`, n counting up from 1."""
    entries = os.listdir(base) if os.path.isdir(base) else []
    taken = [int(entry[len(name) + 1 :]) for entry in entries if re.fullmatch(rf"{re.escape(name)}-\d+", entry)]
    return f"{base}/{name}-{max(taken, default=0) + 1}"


def now() -> str:
    """The time in UTC, RFC 3339."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: dict[str, Any]) -> bytes:
    return json.dumps({"schema": SCHEMA, **value}, indent=2, allow_nan=False).encode() + b"\n"


def http_status(error: BaseException) -> int | None:
    """The status of the answer that s3fs has made an error of, None for any other."""
    response = getattr(error.__cause__ or error, "response", None) or {}
    status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def is_away(error: BaseException) -> bool:
    """Whether an error says that the storage does not answer now: no name, no connection, too late, or a server's own.

    What a user must change (names, permissions, credentials) is told by an answer.
    """
    for each in chain(error):
        if isinstance(each, (ConnectionError, TimeoutError, socket.gaierror)) or (http_status(each) or 0) >= 500:
            return True
        if isinstance(each, OSError) and each.errno in _AWAY:
            return True
        if any(kind.__name__ in _AWAY_CLIENTS for kind in type(each).__mro__):
            return True
    return False


def _parsed(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def storage_error(error: BaseException) -> str:
    """An error of any storage in one line, with its kind, since many of them say little by themselves."""
    said, _, _ = str(error).partition("Debug source:")  # obstore says everything twice
    text = " ".join(said.split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
