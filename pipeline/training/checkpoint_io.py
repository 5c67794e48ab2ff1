"""How a checkpoint becomes bytes on a storage, and comes back: a CheckpointIO for any fsspec URL."""

import re
from collections.abc import Callable
from typing import Any

import fsspec
import torch
from lightning.pytorch.plugins import CheckpointIO
from torch._subclasses.fake_tensor import FakeTensorMode

from pipeline.checkpoint.commit import CommitRecord, read_record
from pipeline.checkpoint.load import load
from pipeline.checkpoint.serializable import plain
from pipeline.errors import UserError
from pipeline.run.run_dir import SCHEMA, RunDir
from pipeline.run.storage_errors import is_away, raise_for_user, storage_error

OWN_KEY = "pipeline"
"""What this project adds to Lightning's checkpoint stands under this key."""

_HEAD = 1 << 16
"""Bytes asked of a storage at once, where only a small part is wanted."""


class RunIO(CheckpointIO):
    """Hands the run's own checkpoints to its `Saver`, and loads without ever executing pickled code.

    Lightning's own IO builds the whole file in memory first, and once more for S3, while all ranks wait.

    Attributes:
        taken: The checkpoint of the run that was saved last, until the Saver takes it; on rank 0.
    """

    def __init__(self, run: RunDir | None) -> None:
        self.run = run
        self.taken: dict[str, Any] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Any, storage_options: Any | None = None) -> None:
        """Take one of the run's own checkpoints for its `Saver`; write any other (of a second ModelCheckpoint) at once.

        Raises:
            UserError: Something in it would not load again.
            TypeError: `storage_options` is given; the URL says everything.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported: fsspec reads them from the environment and its config")
        url = str(path)
        if self._name(url) is not None:
            self.taken = plain(checkpoint)
            return
        with fsspec.open(url, "wb", auto_mkdir=True) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint from any URL; one that the run has committed only as its commit record says it is.

        Raises:
            FileNotFoundError: There is none.
            Corrupt: Its bytes are not those of its record.
        """
        record = self._record(str(path))
        if self.run is not None and record is not None:
            return load(self.run, record, map_location, weights_only is not False)
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

    def _record(self, url: str) -> CommitRecord | None:
        """The commit record of one of the run's own checkpoints."""
        step = RunDir.checkpoint_step(self._name(url) or "")
        return None if self.run is None or step is None else read_record(self.run, step)


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
        if is_away(error):
            raise_for_user(error, f"{url} cannot be read", "")
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
