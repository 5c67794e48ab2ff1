"""TensorBoard logs of a run, on any storage: written to a local disk and mirrored from time to time.

Written straight to an object store, each flush of an events file would send the whole file again. Here each copy ends
the events file, so that nearly every byte is sent once; TensorBoard reads all files of a folder. Before a checkpoint is
committed, all that was logged until then is copied as well. Logs are worth a warning, never the training: where they
cannot be written (a full disk, a network folder that is away) training continues without them.
"""

import hashlib
import io
import logging
import math
import os
import tempfile
import threading
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from pipeline.errors import chain, in_one_line
from pipeline.process.topology import Topology
from pipeline.run.run_dir import LOGS, RunDir
from pipeline.run.storage_errors import storage_error
from pipeline.training import compat
from pipeline.training.logs import event_files, hparams, writer_compat
from pipeline.training.logs.event_files import Restart
from pipeline.training.logs.mirror import Mirror
from pipeline.training.save_policy import Boundary

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_WARNINGS = 30.0
_LARGE = 1 << 19
"""Bytes of an events file that is sent again with what a later copy adds; a larger one is ended."""
_BEFORE_COMMIT = 5.0
"""Seconds that a commit waits for the copy of what was logged before it."""


class RunLogger(TensorBoardLogger):
    """Logs to `<run_dir>/logs`, and keeps what earlier attempts logged there.

    Where the run directory is no local one, `log_dir` is a local folder all the same, so that whatever callbacks and
    profilers write there by plain `open` arrives in the run as well; `save_dir`, below which Lightning puts checkpoints
    of the user's own, is the URL.

    Args:
        run: The run directory.
        spool: The local folder to mirror, which all processes of a node share; None: a new one, where one is needed.
        mirrors: Whether this process is the one of its node that mirrors.
        step: At which training resumes, 0 where it begins: from there on earlier values are logged again. None on a
            rank that does not log.
    """

    def __init__(self, run: RunDir, spool: str | None = None, mirrors: bool = True, step: int | None = None) -> None:
        self._url = run.url_of(LOGS)
        self.mirror: Mirror | None = None
        folder = self._url if run.is_local else spool
        if not run.is_local and mirrors:
            self.mirror = Mirror(run.fs, f"{run.path}/{LOGS}", self._url, spool)
            folder = self.mirror.folder
        super().__init__(save_dir=str(folder), name="", version="", log_graph=True, default_hp_metric=False)
        self.muted = False
        self._warned = -math.inf
        self._step = step
        self._restart: Restart | None = None
        if step is not None:
            self._restart = _restart(run, step, self.mirror)
        _silence_writers()

    @property
    def save_dir(self) -> str:
        """The URL of the logs."""
        return self._url

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Torch's SummaryWriter."""
        writer: Any = super().experiment
        if self._restart is not None:
            restart, self._restart = self._restart, None
            for event in event_files.beginning(restart):
                writer_compat.write_event(writer, event)
            writer_compat.write_event(writer, event_files.mark(int(self._step or 0)))
        return writer

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values."""
        if self.muted:
            return
        with self._never_fatal():
            super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Log hyperparameters, as those of this run in TensorBoard's table over all runs."""
        with self._never_fatal():
            super().log_hyperparams(params, metrics, step)
            if not metrics:
                known = self.hparams
                hparams.start(self.experiment, vars(known) if isinstance(known, Namespace) else known)

    @rank_zero_only
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Log the layers of a model that sets example_input_array, once a run; one that cannot be traced is one line.

        Args:
            model: That trains.
            input_array: What to trace it with; None: its own example.
        """
        if self._step != 0 or (input_array is None and model.example_input_array is None):
            return
        with warnings.catch_warnings(), isolate_rng(), redirect_stdout(io.StringIO()):  # torch prints its errors there
            warnings.simplefilter("ignore")  # of the tracer, which are about using what it traces
            try:
                super().log_graph(model, input_array)
            except Exception as error:  # noqa: BLE001 - the user's forward may raise anything
                log.info("no graph of %s in TensorBoard: %s", type(model).__name__, in_one_line(error))

    @rank_zero_only
    def save(self) -> None:
        """Flush; where the last copy is old, have this events file ended and sent, behind training."""
        with self._never_fatal():
            super().save()
            if self.mirror is not None and self.mirror.is_due:
                self.experiment.close()  # the next value begins another file
                self.mirror.start()

    @rank_zero_only
    def mark(self, step: int) -> None:
        """Note among the values that a state of training is captured here.

        Args:
            step: Optimizer steps that are done.
        """
        with self._never_fatal():
            writer_compat.write_event(self.experiment, event_files.mark(step))
            super().save()

    @rank_zero_only
    def copy(self) -> None:
        """Have all that was logged sent, behind training."""
        if self.mirror is None:
            return
        with self._never_fatal():
            if os.path.getsize(writer_compat.file_of(self.experiment)) > _LARGE:
                self.experiment.close()  # the next value begins another file, so that this one is not sent again
        self.mirror.request()

    @rank_zero_only
    def wait(self) -> None:
        """Wait for the copy that is under way, but not for long."""
        if self.mirror is not None:
            self.mirror.wait(_BEFORE_COMMIT)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the file; where training has come to its end, so has the run's entry in the table over all runs."""
        with self._never_fatal():
            if status == "success" and self._experiment is not None:
                hparams.end(self.experiment)
            super().finalize(status)

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


def of_fit(run: RunDir, topology: Topology, step: int) -> Callable[[], RunLogger]:
    """Return what makes the logger of a fit; where logs are mirrored, all processes write to the same local folder.

    Args:
        run: The run directory.
        topology: Where the launcher put this process.
        step: At which training resumes.
    """
    spool = None if run.is_local else topology.agree("spool", lambda: _spool(run))
    return lambda: RunLogger(run, spool, topology.local_rank == 0, step if topology.rank == 0 else None)


def of(trainer: pl.Trainer) -> list[RunLogger]:
    """Return the run's own among the loggers of a trainer."""
    return [each for each in trainer.loggers if isinstance(each, RunLogger)]


def mark(trainer: pl.Trainer, at: Boundary) -> None:
    """Note in the run's own logs where training stands: what comes later is logged again by an attempt from there.

    Args:
        trainer: In its fit.
        at: Where. Within a validation none is noted: its values are logged again.
    """
    if not at.accumulating and at.kind != "validation":
        for logger in of(trainer):
            logger.mark(at.step)


def mute(trainer: pl.Trainer, muted: bool = True) -> None:
    """Log nothing: the hooks of an epoch's start are called once more where it resumes in its middle.

    Args:
        trainer: In its fit.
        muted: Whether that begins, or is over.
    """
    for logger in of(trainer):
        logger.muted = muted


def log_save(trainer: pl.Trainer, figures: dict[str, float], step: int) -> None:
    """Send figures of a save to every logger, and all that was logged to where the checkpoint goes.

    Args:
        trainer: In its fit.
        figures: By name.
        step: That is saved.
    """
    for logger in trainer.loggers:
        logger.log_metrics(figures, step=step)
    for own in of(trainer):
        if not trainer.validating:  # else its values are logged again
            own.mark(step)
        own.copy()


def _spool(run: RunDir) -> str:
    """Return the local folder of a run's logs: that of the attempt before where that was killed on this machine."""
    name = hashlib.sha256(run.url.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir(), f"pipeline-logs-{os.getuid()}-{name}")
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if not folder.is_symlink() and folder.stat().st_uid == os.getuid():
            return str(folder)
    return tempfile.mkdtemp(prefix="pipeline-logs-")


def _restart(run: RunDir, step: int, mirror: Mirror | None) -> Restart:
    """Read what earlier attempts have logged, as far back as an attempt that resumes logs it again."""
    try:
        if mirror is not None:
            mirror.recover()
        names = sorted((name for name in run.names(LOGS) if "tfevents" in name), reverse=True)
        return event_files.restart_at(step, ((name, run.read(f"{LOGS}/{name}") or b"") for name in names))
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        log.warning("what was logged before could not be read: %s", storage_error(error))
        return Restart(step if step > 0 else None)


def _silence_writers() -> None:
    """TensorBoard's threads raise again where the next value is logged what they print a traceback of."""
    known = threading.excepthook
    if getattr(known, "__module__", "") == __name__:
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        if type(failed.thread).__name__ != "_AsyncWriterThread":
            known(failed)

    threading.excepthook = hook
