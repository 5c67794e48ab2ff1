"""What a drill knows of each step: a callback that notes it at once, and what reads the notes.

The notes lie outside the run directory, and are said by the environment, so that the run's configuration is the same
with and without a drill.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

FOLDER = "PIPELINE_DRILL_NOTES"
"""The environment variable with the folder of the notes; without it nothing is noted."""

_PACE = "pace"


class Notes(pl.Callback):
    """Notes each optimizer step of each rank with its losses as exact numbers, and keeps to the pace of the drill."""

    def __init__(self) -> None:
        folder = os.environ.get(FOLDER)
        self._folder = Path(folder) if folder else None
        self._file = -1
        self._step = 0
        self._losses: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin."""
        self._step = trainer.global_step
        if self._folder is not None:
            path = _path(self._folder, trainer.global_rank)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step, if the batch was the last one of it, in one write that outlasts a kill."""
        if self._folder is None:
            return
        self._losses.append(_exact(outputs))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        note = {"step": self._step, "losses": self._losses, "pid": os.getpid(), "at": time.time()}
        self._losses = []
        os.write(self._file, json.dumps(note).encode() + b"\n")
        time.sleep(pace(self._folder))


def _exact(outputs: Any) -> str:
    """The loss of a batch, bit for bit; "none" where the model has returned none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    if isinstance(loss, Tensor) and loss.numel() == 1:
        loss = loss.item()
    return float(loss).hex() if isinstance(loss, (int, float)) else "none"


def pace(folder: Path) -> float:
    """Seconds that each step waits."""
    try:
        return float((folder / _PACE).read_text())
    except FileNotFoundError:
        return 0.0


def set_pace(folder: Path, seconds: float) -> None:
    """Have each step wait from now on."""
    part = folder / f"{_PACE}.part"
    part.write_text(repr(seconds))
    part.replace(folder / _PACE)


def _path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.jsonl"


@dataclass(frozen=True)
class Note:
    """One step as one rank has noted it.

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


class Noted:
    """The notes of all ranks, as far as they have been read.

    Args:
        folder: Where they are.
        ranks: How many there are at most.

    Attributes:
        of: The notes of each rank, in the order in which they were written.
    """

    def __init__(self, folder: Path, ranks: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.of: list[list[Note]] = [[] for _ in range(ranks)]
        self._read = [0] * ranks

    def read(self) -> int:
        """Read what has come; returns how many notes there are."""
        for rank, notes in enumerate(self.of):
            try:
                with _path(self.folder, rank).open("rb") as file:
                    file.seek(self._read[rank])
                    data = file.read()
            except FileNotFoundError:
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._read[rank] += len(whole)
            for line in whole.splitlines():
                value = json.loads(line)
                notes.append(Note(value["step"], tuple(value["losses"]), value["pid"], value["at"]))
        return sum(map(len, self.of))

    @property
    def highest(self) -> int:
        """The highest step that rank 0 has done."""
        return max((note.step for note in self.of[0]), default=0)

    @property
    def repeated(self) -> int:
        """Steps that were done again, on the rank with the most."""
        return max(len(notes) - len({note.step for note in notes}) for notes in self.of)
