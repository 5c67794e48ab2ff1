"""Lightning's way to checkpoint files on any fsspec URL."""

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

from pipeline.checkpoint.commit import CommitRecord, read_record
from pipeline.checkpoint.foreign import load_file, local_copy
from pipeline.checkpoint.load import load
from pipeline.checkpoint.serializable import plain
from pipeline.errors import UserError
from pipeline.run import storage
from pipeline.run.run_dir import RunDir


class RunIO(CheckpointIO):
    """Loads without ever executing pickled code, and writes what others than the session save.

    The run's own checkpoints are not written here: the session hands them to a `Saver`. Lightning's own IO builds the
    whole file in memory first, and once more for S3, while all ranks wait.

    Args:
        run: The run directory, None without one.
        verified: The commit record of the checkpoint that this start loads: its bytes have been verified already.
        memory: The path of the state in memory that it loads instead.
    """

    def __init__(
        self, run: RunDir | None = None, verified: CommitRecord | None = None, memory: str | None = None
    ) -> None:
        self.run = run
        self.verified = verified
        self.memory = memory

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint of somebody else's, such as a second ModelCheckpoint.

        Raises:
            UserError: Something in it would not load again, or it has the name of one of the run's own.
            TypeError: `storage_options` is given; the URL says everything.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported: fsspec reads them from the environment and its config")
        self._refuse_own(str(path))
        safe = plain(checkpoint)  # before the file is there
        fs, inner = storage.open_filesystem(str(path), f"{path}")
        storage.put(fs, inner, lambda file: torch.save(safe, file))

    def load_checkpoint(
        self, path: str | Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint from any URL; one that the run has committed only as its commit record describes it.

        Raises:
            UserError: There is none, it is damaged or of another kind, or it would execute code.
            StorageAway: Its storage does not answer.
            Corrupt: Its bytes are not those of its record.
        """
        checkpoint: dict[str, Any]
        if str(path) == self.memory:  # a copy: the states that training keeps are written over it
            checkpoint = torch.load(self.memory, map_location=map_location or "cpu", weights_only=True)
            return checkpoint
        record = self._record(str(path))
        if self.run is not None and record is not None:
            return load(self.run, record, map_location, weights_only is not False)
        name = f"ckpt_path={str(path)!r}"
        with local_copy(str(path), name) as local:
            checkpoint = load_file(local, name, weights_only is not False, map_location or "cpu")
        return checkpoint

    def remove_checkpoint(self, path: str | Any) -> None:
        """Delete one checkpoint file; one that is not there is no error.

        Raises:
            UserError: It has the name of one of the run's own.
        """
        self._refuse_own(str(path))
        fs, inner = storage.open_filesystem(str(path), f"{path}")
        if fs.exists(inner):
            fs.rm(inner, recursive=True)

    def _record(self, url: str) -> CommitRecord | None:
        """Return the commit record of one of the run's own checkpoints."""
        step = self._step(url)
        if self.run is None or step is None:
            return None
        if self.verified is not None and self.verified.step == step:
            return self.verified
        return read_record(self.run, step)

    def _step(self, url: str) -> int | None:
        """Return the step of a checkpoint that is named as one of the run's own, None for any other name."""
        if self.run is None:
            return None
        fs, path = storage.open_filesystem(url, url)
        if type(fs) is not type(self.run.fs):
            return None
        root = self.run.path
        if self.run.is_local:  # as callbacks do, which resolve links
            path, root = os.path.realpath(path), os.path.realpath(root)
        return RunDir.checkpoint_step(path.removeprefix(f"{root}/")) if path.startswith(f"{root}/") else None

    def _refuse_own(self, url: str) -> None:
        if self._step(url) is not None:
            raise UserError(
                f"{url} is the name of one of the run's own checkpoints, which nothing else may write or delete: give "
                "the callback another filename or dirpath, such as <run_dir>/mine"
            )
