"""Where an exported file goes: whole and durable, on any storage, and never over another one in silence."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from pipeline.checkpoint.foreign import is_folder
from pipeline.errors import UserError
from pipeline.run import run_dir as names
from pipeline.run import storage
from pipeline.run.retry import patiently
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import raise_for_user

EXPORTS = "exports"
"""The folder of a run where exported files go by default."""
_OF_RUNS = {names.CHECKPOINTS, names.ATTEMPTS, names.LOGS, names.PREDICTIONS, "evaluation"}
_FILES_OF_RUNS = {names.LEASE, names.NEWEST, names.REPORT}
_BLOCK = 8 << 20


class Destination:
    """One file.

    Args:
        url: A path or any fsspec URL.
        run: The run that is exported, whose own files nothing may take the place of.

    Raises:
        UserError: It is a folder, has no name, or is one of the run's own files.
    """

    def __init__(self, url: str, run: RunDir) -> None:
        self.url, self.run = url, run
        self.name = f"output={url!r}"
        if not url.strip() or url.endswith("/"):
            raise UserError(f"{self.name} names no file: give its whole name, such as exports/model.onnx")
        self.fs, self.path = storage.open_filesystem(url, self.name)
        if self._within(run):
            raise UserError(
                f"{self.name} is one of the run's own files: give another name, such as <run_dir>/{EXPORTS}/x"
            )
        if self._asked(lambda: is_folder(self.fs, self.path)):
            raise UserError(f"{self.name} is a folder: name the file in it")

    def differs(self, file: Path) -> bool | None:
        """Return whether another file is there; False where it has the same bytes, None where there is none."""
        return self._asked(lambda: self._differs(file))  # type: ignore[no-any-return]

    def put(self, file: Path) -> None:
        """Put a file there, in the place of any other.

        Raises:
            UserError: It cannot be written.
            StorageAway: The storage does not answer.
        """
        self._asked(lambda: self._put(file), "written")

    def refuse_another(self, file: Path) -> None:
        """Raise the error for another file that is there."""
        raise UserError(
            f"{self.name} is there already, with another content than the {file.stat().st_size:,} bytes to be written: "
            "give another --output, or --overwrite true"
        )

    def _within(self, run: RunDir) -> bool:
        """Return whether the run itself writes a file of this name."""
        path, root = (self.path, run.path)
        if type(self.fs) is not type(run.fs):
            return False
        if run.is_local:
            path, root = os.path.realpath(path), os.path.realpath(root)
        if not path.startswith(f"{root}/"):
            return False
        first, below, _ = path.removeprefix(f"{root}/").partition("/")
        return first in _OF_RUNS or (not below and (first in _FILES_OF_RUNS or first.endswith(".yaml")))

    def _differs(self, file: Path) -> bool | None:
        try:
            info = self.fs.info(self.path)
        except FileNotFoundError:
            return None
        if info["size"] != file.stat().st_size:
            return True
        digest = hashlib.sha256()
        with self.fs.open(self.path, "rb", block_size=_BLOCK) as there:
            while data := there.read(_BLOCK):
                digest.update(data)
        with open(file, "rb") as ours:
            return digest.digest() != hashlib.file_digest(ours, "sha256").digest()

    def _put(self, file: Path) -> None:
        with open(file, "rb") as source:
            storage.put(self.fs, self.path, lambda target: shutil.copyfileobj(source, target, _BLOCK))
        size = self.fs.info(self.path)["size"]
        if size != file.stat().st_size:
            raise OSError(f"the storage has {size} bytes of {file.stat().st_size}")

    def _asked(self, call: Any, verb: str = "read") -> Any:
        try:
            return patiently(self.name, call)
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            raise_for_user(
                error, f"{self.name} cannot be {verb}", "Name a file that this user may write, in a folder or bucket"
            )
