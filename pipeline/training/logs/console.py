"""What the user reads: progress bars on a terminal, elsewhere one plain line an epoch and one for each event."""

import logging
import os
import re
import socket
import sys
import time
import warnings
from contextlib import nullcontext, suppress
from typing import Any

import lightning.pytorch as pl

from pipeline.errors import Preempted, UserError
from pipeline.process.output import print_line
from pipeline.process.topology import Topology

log = logging.getLogger("pipeline")

_SECONDS_BETWEEN_LINES = 5.0

_HANDLED = (
    # (a regular expression that matches the start of a warning, why it can be ignored)
    r".*does not have many workers which may be a bottleneck",  # the user's --data.init_args.num_workers decides
    r".*is smaller than the logging interval",  # the epoch's values are logged all the same
    r".*Experiment logs directory .* exists and is not empty",  # `trainer.adapt` moves the table aside before
    r".*Checkpoint directory .* exists and is not empty",  # a resumed run saves beside what it saved before
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",  # inside Lightning
    r".*Using `DistributedSampler` with the dataloaders",  # evaluation proves with its receipt that it used none
    r".*Trying to infer the `batch_size` from an ambiguous collection",  # of the samples' own nesting
    r".*Starting from v1\.9\.0, `tensorboardX` has been removed",  # tensorboard is a dependency
    r".*You defined a `validation_step` but have no `val_dataloader`",
    r".*The `srun` command is available on your system but is not used",  # topology belongs to the launcher
    r".*Total length of `list` across ranks is zero",  # no validation set is named
    r".*barrier\(\): using the device under current context",
    r".*`enable_checkpointing=False`",
)


_SAID_OTHERWISE = re.compile(
    # Lightning's INFO lines that answer no question of the user's; whatever it adds is shown until it stands here.
    r"(GPU|TPU) available: |.*LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES"  # topology belongs to the launcher
    r"|-+\ndistributed_backend=|Initializing distributed: "
    r"|.*Tip: "
    r"|.*Seed set to "
    r"|Rest(ored|oring) (all )?states from |Loaded model weights from "  # the pipeline names the checkpoint itself
    r"|Trainer already configured with model summary callbacks"
    r"|Loading `train_dataloader` to estimate number of stepping batches"
    r"|`weights_only` was not set"
    r"|Your model can run with static graph optimizations"
)


class _Handler(logging.StreamHandler[Any]):
    """Writes whole lines to stderr as it is now, above a progress bar that is being drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; each bar of tqdm is cleared first and drawn again afterwards."""
        self.stream = sys.stderr  # which a bar of rich replaces while it is drawn
        # Not in a forked loader worker, which draws no bar and may have inherited tqdm's lock while it was held.
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None) if os.getpid() == self._process else None
        above = nullcontext() if tqdm is None else tqdm.external_write_mode(sys.stderr)
        with suppress(OSError), above:  # the terminal of a bar may be gone
            super().emit(record)


def set_up(rank: int) -> None:
    """Say each thing once: rank 0 speaks for all, and libraries speak only where this project does not handle it."""
    handler = _Handler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: not _is_noise(record))
    for logger in (log, *map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
        logger.propagate = False
    logging.getLogger("torch.distributed").setLevel(logging.WARNING if rank == 0 else logging.ERROR)
    for pattern in _HANDLED:
        warnings.filterwarnings("ignore", message=pattern)
    if rank != 0:
        warnings.simplefilter("ignore")


def _is_noise(record: logging.LogRecord) -> bool:
    lightnings = record.name.startswith("lightning.") and record.levelno == logging.INFO
    return lightnings and _SAID_OTHERWISE.match(record.getMessage()) is not None


def report(error: BaseException, topology: Topology | None = None) -> None:
    """Log why a process ends, where that is no crash.

    Args:
        error: What ended it.
        topology: Which process this is, None where that is not known.
    """
    if isinstance(error, UserError):
        _report_problems(error, topology)
    elif isinstance(error, Preempted):
        log.info("%s; rerun the same command to resume", error)
    elif not isinstance(error, KeyboardInterrupt):
        log.error("error: %s", error)


def _report_problems(error: UserError, topology: Topology | None) -> None:
    """Print a user's mistake once, though every rank finds it, and before any of them ends.

    The agent kills a node's other processes as soon as the first one ends, so the ranks wait until rank 0 has spoken;
    where it never does, the mistake was this rank's alone.
    """
    where = ""
    if topology is not None and topology.rank != 0:
        if topology.wait("reported", seconds=10):
            return
        where = f" (rank {topology.rank} on {socket.gethostname()})"
    for problem in error.problems:
        print_line(f"error{where}: {problem}")
    if topology is not None and topology.rank == 0:
        topology.signal("reported")


def on_terminal() -> bool:
    """Return whether a person watches, so that a progress bar makes sense."""
    return sys.stderr.isatty()


class Lines(pl.Callback):
    """One line an epoch with what the model put on its progress bar, but no more than one every few seconds."""

    def __init__(self) -> None:
        self._last = -_SECONDS_BETWEEN_LINES

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of this attempt."""
        self._started = time.monotonic()
        self._first_step = trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the epoch went."""
        if trainer.is_global_zero and time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            log.info("epoch %d%s: step %d%s", trainer.current_epoch + 1, of, trainer.global_step, _values(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how fast it was."""
        steps, seconds = trainer.global_step - self._first_step, time.monotonic() - self._started
        if trainer.is_global_zero and steps:
            log.info("trained %d steps in %.1f s (%.0f steps/s)", steps, seconds, steps / max(seconds, 1e-9))


def _values(trainer: pl.Trainer) -> str:
    metrics: dict[str, Any] = trainer.progress_bar_metrics
    return "".join(f", {name} {value:.6g}" for name, value in metrics.items() if isinstance(value, (int, float)))
