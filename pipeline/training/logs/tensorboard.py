"""TensorBoard logs of a run, on any storage: written to a local disk and mirrored from time to time.

Written straight to an object store, each flush of an events file would send the whole file again. Here each copy ends
the events file, so that every byte is sent once; TensorBoard reads all files of a folder. Logs are worth a warning,
never the training: where they cannot be written (a full disk, a network folder that is away) training continues without
them.
"""

import logging
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from pipeline.errors import chain
from pipeline.run.run_dir import LOGS, RunDir
from pipeline.run.storage_errors import storage_error
from pipeline.training import compat
from pipeline.training.logs.mirror import Mirror

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_WARNINGS = 30.0


class RunLogger(TensorBoardLogger):
    """Logs to `<run_dir>/logs`, and keeps what earlier attempts logged there.

    Where the run directory is no local one, `log_dir` is a local folder all the same, so that whatever callbacks and
    profilers write there by plain `open` arrives in the run as well; `save_dir`, below which Lightning puts checkpoints
    of the user's own, is the URL.

    Args:
        run: The run directory.
        spool: The local folder to mirror, which all processes of a node share; None: a new one, where one is needed.
        mirrors: Whether this process is the one of its node that mirrors.
    """

    def __init__(self, run: RunDir, spool: str | None = None, mirrors: bool = True) -> None:
        self._url = run.url_of(LOGS)
        self.mirror: Mirror | None = None
        folder = self._url if run.is_local else spool
        if not run.is_local and mirrors:
            self.mirror = Mirror(run.fs, f"{run.path}/{LOGS}", self._url, spool)
            folder = self.mirror.folder
        super().__init__(save_dir=str(folder), name="", version="")
        self._warned = -math.inf
        _silence_writers()

    @property
    def save_dir(self) -> str:
        """The URL of the logs."""
        return self._url

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
        """Flush; where the last copy is old, have this events file ended and sent, behind training."""
        with self._never_fatal():
            super().save()
            if self.mirror is not None and self.mirror.is_due:
                self.experiment.close()  # the next value begins another file
                self.mirror.start()

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


def _silence_writers() -> None:
    """TensorBoard's threads raise again where the next value is logged what they print a traceback of."""
    known = threading.excepthook
    if getattr(known, "__module__", "") == __name__:
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            known(failed)

    threading.excepthook = hook
