"""What a drill knows of each step: a callback that logs it at once, and what reads the log.

The log is outside the run directory, in a folder that the environment names, so that the run's configuration is the
same with and without a drill.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from pipeline.run.storage import write_local

FOLDER = "PIPELINE_DRILL_STEP_LOG"
"""The environment variable with the folder of the logs; without it nothing is logged."""

_PACE = "pace"


class StepLogger(pl.Callback):
    """Logs each optimizer step of each rank with its losses as exact numbers, and waits as long as the drill asks."""

    def __init__(self) -> None:
        folder = os.environ.get(FOLDER)
        self._folder = Path(folder) if folder else None
        self._file = -1
        self._step = 0
        self._losses: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the log."""
        self._step = trainer.global_step
        if self._folder is not None:
            path = _path(self._folder, trainer.global_rank)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step after its last batch, in one write that survives a kill."""
        if self._folder is None:
            return
        self._losses.append(_exact(outputs))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        entry = {"step": self._step, "losses": self._losses, "pid": os.getpid(), "at": time.time()}
        self._losses = []
        os.write(self._file, json.dumps(entry).encode() + b"\n")
        time.sleep(pace(self._folder))


def _exact(outputs: Any) -> str:
    """Return the loss of a batch, bit for bit; "none" where the model returned none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if isinstance(loss, Tensor) and loss.numel() == 1:
        loss = loss.item()
    return float(loss).hex() if isinstance(loss, (int, float)) else "none"


def pace(folder: Path) -> float:
    """Return the seconds that each step waits."""
    try:
        return float((folder / _PACE).read_text())
    except FileNotFoundError:
        return 0.0


def set_pace(folder: Path, seconds: float) -> None:
    """Make each step wait from now on."""
    write_local(folder / _PACE, repr(seconds).encode())


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.jsonl"


@dataclass(frozen=True)
class StepEntry:
    """One step of one rank.

    Attributes:
        step: Optimizer steps done.
        losses: Those of its batches.
        pid: Of the process, and so of the start.
        at: When, in seconds since the epoch.
    """

    step: int
    losses: tuple[str, ...]
    pid: int
    at: float


class StepLog:
    """The logs of all ranks, as far as they have been read.

    Args:
        folder: Where they are.
        ranks: How many there are at most.

    Attributes:
        ranks: The entries of each rank, in the order in which they were written.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ranks: list[list[StepEntry]] = [[] for _ in range(ranks)]
        self._read = [0] * ranks

    def read(self) -> int:
        """Read what has been added; return the number of all entries."""
        for rank, entries in enumerate(self.ranks):
            path = _path(self.folder, rank)
            data = path.read_bytes()[self._read[rank] :] if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            self._read[rank] += len(whole)
            for value in map(json.loads, whole.splitlines()):
                entries.append(StepEntry(value["step"], tuple(value["losses"]), value["pid"], value["at"]))
        return sum(map(len, self.ranks))

    @property
    def first(self) -> list[StepEntry]:
        """The entries of rank 0."""
        return self.ranks[0]

    @property
    def highest(self) -> int:
        """The highest step that rank 0 has done."""
        return max((entry.step for entry in self.first), default=0)

    @property
    def repeated(self) -> int:
        """The number of steps that were done again, on the rank with the most."""
        return max(len(entries) - len({entry.step for entry in entries}) for entries in self.ranks)
