"""What a process says to people or machines: whole lines on stderr, each once for all ranks."""

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any, TextIO

from pipeline.errors import Preempted, UserError
from pipeline.process.log_format import OWN, json_line
from pipeline.process.output import print_line
from pipeline.process.topology import Topology
from pipeline.training.logs.one_voice import OneVoice
from pipeline.training.logs.pace import Pace

log = logging.getLogger("pipeline")

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


class _Folded:
    """Lines of one kind that follow one another, as commits do: the first one at once, then the newest now and then."""

    def __init__(self) -> None:
        self._pace = Pace(at_once=True)
        self._newest: logging.LogRecord | None = None

    def take(self, record: logging.LogRecord) -> None:
        """Take the next one, in the place of one that has not been said yet."""
        self._newest = record

    def said(self, at_once: bool = False) -> logging.LogRecord | None:
        """Return the newest one if it is time, or if that does not matter; None: there is none."""
        record = self._newest
        if record is None or not (at_once or self._pace.is_due()):
            return None
        self._newest = None
        self._pace.mark()
        return record


class _Handler(logging.StreamHandler[Any]):
    """Writes whole lines to stderr as it is now, above a progress bar of the user's that is being drawn.

    Attributes that a record gets by `extra`: `folds`, of a line that stands for those of its kind before it; `ends`, of
    one after which nothing more is expected; `figures`, fields for machines.

    Args:
        topology: Which rank this is.
        level: The least that is said.
    """

    def __init__(self, topology: Topology, level: int = logging.NOTSET) -> None:
        super().__init__()
        self.setLevel(level)
        self.setFormatter(_LineFormatter(topology.rank))
        self.addFilter(lambda record: not _is_noise(record))
        self._speaks = topology.rank == 0
        self._voice = OneVoice(topology, self._write) if topology.world_size > 1 else None
        self._folded = _Folded()
        self._process = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Say one thing, unless another rank does, or it can wait."""
        if self._voice is not None and record.levelno >= logging.WARNING:
            self._voice.add(record)
        if self._speaks:
            folds = getattr(record, "folds", False)
            if folds:
                self._folded.take(record)
            ends = getattr(record, "ends", False) or record.levelno >= logging.WARNING
            if (waiting := self._folded.said(at_once=ends)) is not None:
                self._write(waiting)
            if not folds:
                self._write(record)

    def settle(self) -> None:
        """Say what has waited: this process ends."""
        if (waiting := self._folded.said(at_once=True)) is not None:
            self._write(waiting)
        if self._voice is not None:
            self._voice.settle()

    def _write(self, record: logging.LogRecord) -> None:
        """Write one line; each bar of tqdm is cleared first and drawn again afterwards."""
        self.stream = sys.stderr  # which a bar of rich replaces while it is drawn
        # Not in a forked loader worker, which draws no bar and may have inherited tqdm's lock while it was held.
        tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None) if os.getpid() == self._process else None
        above = nullcontext() if tqdm is None else tqdm.external_write_mode(sys.stderr)
        with suppress(OSError), above:  # the terminal of a bar may be gone
            super().emit(record)


class _LineFormatter(logging.Formatter):
    """Makes a line of a record: of its text, which names any other rank than 0, or a JSON object with its figures."""

    def __init__(self, rank: int) -> None:
        super().__init__("%(message)s")
        self._rank = rank

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        text = super().format(record)
        if OWN.is_json:
            figures: Mapping[str, Any] = getattr(record, "figures", {})
            return json_line(text, record.levelname.lower(), record.name, record.created, **figures)
        return f"rank {self._rank}: {text}" if self._rank else text


def set_up(topology: Topology) -> None:
    """Say each thing once: rank 0 speaks for all, others of problems that are theirs alone.

    Libraries speak only where this project does not handle what they say.

    Args:
        topology: Which rank this is.
    """
    handler, speaks = _Handler(topology), topology.rank == 0
    warned = logging.getLogger("py.warnings")
    for logger in (log, warned, *map(logging.getLogger, ("lightning.pytorch", "lightning.fabric"))):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO if speaks else logging.WARNING)
        logger.propagate = False
    # What other libraries log that nobody has configured.
    logging.lastResort = _Handler(topology, logging.WARNING)
    logging.getLogger("torch.distributed").setLevel(logging.WARNING if speaks else logging.ERROR)
    for pattern in _HANDLED:
        warnings.filterwarnings("ignore", message=pattern)
    if topology.world_size > 1:
        warnings.showwarning = _log_warning


def write_as(log_format: str | None) -> None:
    """Write for people or machines from here on.

    Args:
        log_format: One of `FORMATS`; None: as before.
    """
    OWN.name = log_format or OWN.name
    if OWN.is_json:
        warnings.showwarning = _log_warning


def settle() -> None:
    """Say what has waited for a better moment: this process ends."""
    for handler in (*log.handlers, logging.lastResort):
        if isinstance(handler, _Handler):
            handler.settle()


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Log what would be written to stderr, as it would be."""
    text = warnings.formatwarning(str(message), category, filename, lineno, line)
    if file is not None:
        file.write(text)
    else:
        logging.getLogger("py.warnings").warning("%s", text.rstrip("\n"))


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
        log.info("%s; rerun the same command to resume", error, extra={"ends": True})
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
        print_line(f"error{where}: {problem}", level="error")
    if topology is not None and topology.rank == 0:
        topology.signal("reported")


def on_terminal() -> bool:
    """Return whether a person watches, so that a progress bar makes sense."""
    return sys.stderr.isatty()
