"""How a checkpoint becomes bytes on a storage, and comes back: a CheckpointIO for any fsspec URL."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import fsspec
import torch
from lightning.pytorch.plugins import CheckpointIO
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.checkpoint.plain import plain
from pipeline.errors import UserError
from pipeline.run_dir import SCHEMA, RunDir, storage_error

OWN_KEY = "pipeline"
"""What this project adds to Lightning's checkpoint stands under this key."""

_HEAD = 1 << 16
"""Bytes asked of a storage at once, where only a small part is wanted."""


@dataclass(frozen=True)
class Written:
    """What was written: the length in bytes and `sha256:<hex>` of exactly those bytes."""

    bytes: int
    sha256: str


class StreamingIO(CheckpointIO):
    """Streams a checkpoint to its URL while hashing it, and loads without ever executing pickled code.

    Lightning's own IO builds the whole file in memory first, and once more for S3. `written` holds what the last
    save of this process put there; only the process that writes (rank 0) has one.
    """

    def __init__(self, run: RunDir | None) -> None:
        self.run = run
        self.written: dict[str, Written] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Any, storage_options: Any | None = None) -> None:
        """Write one checkpoint; inside the run directory also force it to the disk and compare its length.

        Raises:
            UserError: Something in it would not load again.
            TypeError: `storage_options` is given; the URL says everything.
            OSError: The storage failed, or reports another length than was written.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported: fsspec reads them from the environment and its config")
        url = str(path)
        name = self._name(url)
        if name is None:
            # Somebody else's checkpoint, say of a second ModelCheckpoint: streamed all the same.
            with fsspec.open(url, "wb", auto_mkdir=True) as file:
                torch.save(checkpoint, file)
            return
        assert self.run is not None
        checkpoint = plain(checkpoint)
        with self.run.open_write(name) as file:
            hashing = _Hashing(file)
            try:
                torch.save(checkpoint, cast("BinaryIO", hashing))
            except RuntimeError as error:
                # torch reports a failed write as a position that it did not expect.
                raise hashing.error or error from error
        self.run.durable(name)
        stored = self.run.size(name)
        if stored != hashing.bytes:
            raise OSError(f"{url}: wrote {hashing.bytes} bytes, the storage reports {stored}")
        self.written[url] = Written(hashing.bytes, f"sha256:{hashing.digest.hexdigest()}")

    def load_checkpoint(
        self, path: str | Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint from any URL.

        Raises:
            FileNotFoundError: There is none.
        """
        with fsspec.open(str(path), "rb") as file:
            checkpoint: dict[str, Any] = torch.load(
                file, map_location=map_location or "cpu", weights_only=weights_only is not False
            )
        return checkpoint

    def remove_checkpoint(self, path: str | Any) -> None:
        """Delete one checkpoint file; one that is not there is no error."""
        fs, inner = fsspec.core.url_to_fs(str(path), use_listings_cache=False)
        if fs.exists(inner):
            fs.rm(inner, recursive=True)

    def _name(self, url: str) -> str | None:
        if self.run is None or not url.startswith(self.run.url + "/"):
            return None
        return url[len(self.run.url) + 1 :]


def read_own(url: str) -> dict[str, Any] | None:
    """What this project added to a checkpoint, of which only the first few kilobytes' worth is read.

    Returns:
        Numbers and strings as they are, tensors without their content; None in somebody else's checkpoint.

    Raises:
        UserError: The file cannot be read, or is no checkpoint.
    """
    try:
        fs, inner = fsspec.core.url_to_fs(url, use_listings_cache=False)
        with fs.open(inner, "rb", block_size=_HEAD) as file, FakeTensorMode():
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        own = checkpoint.get(OWN_KEY)
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds a {code[1]}, which only executes as code" if code else storage_error(error)
        raise UserError(f"{url} cannot be read as a checkpoint: {why}") from error
    if own is None:
        return None
    require_schema(own, url)
    return dict(own)


def require_schema(own: Any, url: str = "the checkpoint") -> None:
    """Refuse what another version of this project added to a checkpoint.

    Raises:
        UserError: It is of another schema, or nothing of ours.
    """
    if not isinstance(own, dict) or own.get("schema") != SCHEMA:
        found = own.get("schema") if isinstance(own, dict) else type(own).__name__
        raise UserError(
            f"{url} holds a state of this project of schema {found!r}; this version reads {SCHEMA}. Go on with the "
            "version that wrote it, or start a new run"
        )


class _Hashing:
    """A write-only file that hashes and counts what goes through it; torch.save needs no more of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.bytes += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        return len(data)

    def flush(self) -> None:
        self._file.flush()
