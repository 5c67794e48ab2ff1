"""Lightning's way to checkpoint files on any fsspec URL."""

from collections.abc import Callable
from typing import Any

import fsspec
import torch
from lightning.pytorch.plugins import CheckpointIO

from pipeline.checkpoint.commit import CommitRecord, read_record
from pipeline.checkpoint.load import load
from pipeline.checkpoint.serializable import plain
from pipeline.run.run_dir import RunDir


class RunIO(CheckpointIO):
    """Loads without ever executing pickled code, and writes what others than the session save.

    The run's own checkpoints are not written here: the session hands them to a `Saver`. Lightning's own IO builds the
    whole file in memory first, and once more for S3, while all ranks wait.

    Args:
        run: The run directory, None without one.
        verified: The commit record of the checkpoint that this start loads: its bytes have been verified already.
    """

    def __init__(self, run: RunDir | None = None, verified: CommitRecord | None = None) -> None:
        self.run = run
        self.verified = verified

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint of somebody else's, such as a second ModelCheckpoint.

        Raises:
            UserError: Something in it would not load again.
            TypeError: `storage_options` is given; the URL says everything.
        """
        if storage_options is not None:
            raise TypeError("storage_options are not supported: fsspec reads them from the environment and its config")
        safe = plain(checkpoint)  # before the file is there
        with fsspec.open(str(path), "wb", auto_mkdir=True) as file:
            torch.save(safe, file)

    def load_checkpoint(
        self, path: str | Any, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint from any URL; one that the run has committed only as its commit record describes it.

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

    def _record(self, url: str) -> CommitRecord | None:
        """Return the commit record of one of the run's own checkpoints."""
        run = self.run
        if run is None or not url.startswith(f"{run.url}/"):
            return None
        step = RunDir.checkpoint_step(url.removeprefix(f"{run.url}/"))
        if self.verified is not None and self.verified.step == step:
            return self.verified
        return None if step is None else read_record(run, step)
