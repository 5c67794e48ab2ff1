"""TensorBoard logs of a run, on any storage: written to a local disk and copied up from time to time.

Written straight to an object store, each flush of an events file sends the whole file again.
"""

import logging
import os
import tempfile
import threading
import time
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.run_dir import LOGS, RunDir, storage_error

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_COPIES = 30.0


class RunLogger(TensorBoardLogger):
    """Logs to `<run_dir>/logs`, and keeps what earlier attempts logged there.

    Args:
        run: The run directory.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        if run.is_local:
            folder = f"{run.path}/{LOGS}"
        else:
            self._spool = tempfile.TemporaryDirectory(prefix="pipeline-logs-")
            folder = self._spool.name
        super().__init__(save_dir=folder, name="", version="")
        self._copied: dict[Path, tuple[int, int]] = {}
        self._last_copy = time.monotonic()
        self._copying: threading.Thread | None = None

    @rank_zero_only
    def save(self) -> None:
        """Flush, and have it copied up, behind training, if the last copy is old."""
        super().save()
        if time.monotonic() - self._last_copy >= _SECONDS_BETWEEN_COPIES and not self._is_copying():
            self._last_copy = time.monotonic()
            # A storage that is away may take minutes to say so.
            self._copying = threading.Thread(target=self._copy_up, name="logs", daemon=True)
            self._copying.start()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the events file and copy it up."""
        super().finalize(status)
        if self._copying is not None:
            self._copying.join()
        self._copy_up()

    def _is_copying(self) -> bool:
        return self._copying is not None and self._copying.is_alive()

    def _copy_up(self) -> None:
        if self._spool is None:
            return
        for path in Path(self._spool.name).rglob("*"):
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            if path.is_file() and self._copied.get(path) != state:
                name = f"{LOGS}/{path.relative_to(self._spool.name)}".replace(os.sep, "/")
                try:
                    self._run.write(name, path.read_bytes())
                    self._copied[path] = state
                except Exception as error:  # noqa: BLE001 - logs are worth a warning, never the training
                    log.warning("logs were not copied to %s: %s", self._run.url_of(name), storage_error(error))
