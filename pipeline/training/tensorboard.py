"""TensorBoard logs of a run, on any storage: written to a local disk and copied up from time to time.

Written straight to an object store, each flush of an events file sends the whole file again. Logs are worth a warning,
never the training: where they cannot be written (a full disk, a network folder that is away) training continues without
them.
"""

import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.errors import chain
from pipeline.run.run_dir import LOGS, RunDir
from pipeline.run.storage_errors import storage_error
from pipeline.training import compat

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_COPIES = 30.0
_SECONDS_BETWEEN_WARNINGS = 30.0


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
        self._warned = -math.inf
        _silence_writers()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values."""
        with self._never_fatal():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        """Log hyperparameters."""
        with self._never_fatal():
            super().log_hyperparams(*arguments, **named)

    @rank_zero_only
    def save(self) -> None:
        """Flush, and have it copied up, behind training, if the last copy is old."""
        with self._never_fatal():
            super().save()
        if time.monotonic() - self._last_copy >= _SECONDS_BETWEEN_COPIES and not self._is_copying():
            self._last_copy = time.monotonic()
            # A storage that is away may take minutes to say so.
            self._copying = threading.Thread(target=self._copy_up, name="logs", daemon=True)
            self._copying.start()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the events file and copy it up."""
        with self._never_fatal():
            super().finalize(status)
        if self._copying is not None:
            self._copying.join()
        self._copy_up()

    @contextmanager
    def _never_fatal(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Lightning makes a ValueError of it.
            if not any(isinstance(each, OSError) for each in chain(error)):
                raise
            compat.drop_writer(self)
            if time.monotonic() - self._warned >= _SECONDS_BETWEEN_WARNINGS:
                self._warned = time.monotonic()
                log.warning("logs are not written: %s", storage_error(chain(error)[-1]))

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


def _silence_writers() -> None:
    """TensorBoard's threads raise again where the next value is logged what they print a traceback of."""
    known = threading.excepthook
    if getattr(known, "__module__", "") == __name__:
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            known(failed)

    threading.excepthook = hook
