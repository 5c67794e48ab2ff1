"""A user's own code, which the image is patched with."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class Paced(pl.Callback):
    """Takes its time, so that a test can come between two steps."""

    def on_train_batch_end(self, *_: Any) -> None:
        time.sleep(0.05)


class Hungry(pl.Callback):
    """Takes memory until there is no more, on rank 1, in the third step."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        taken = []
        while trainer.global_rank == 1 and trainer.global_step == 3:
            taken.append(bytearray(b"x" * (64 << 20)))


class Fault(pl.Callback):
    """Harms the last rank at the end of a step, in so many starts.

    Args:
        kind: `crash` raises, `rank` kills this process, `agent` the one that has started it, `preempt` asks to stop.
        marks: A folder that outlives the process, where each harm leaves a file.
        times: How many starts are harmed.
        step: After which the harm is done.
    """

    def __init__(self, kind: str, marks: str, times: int = 1, step: int = 25) -> None:
        self.kind, self.marks, self.times, self.step = kind, Path(marks), times, step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step < self.step or trainer.global_rank != trainer.world_size - 1:
            return
        self.marks.mkdir(parents=True, exist_ok=True)
        done = len(list(self.marks.iterdir()))
        if done >= self.times:
            return
        (self.marks / str(done)).touch()
        if self.kind == "crash":
            raise RuntimeError("a fault of the model's own")
        os.kill(os.getppid() if self.kind == "agent" else os.getpid(), self._signal())

    def _signal(self) -> int:
        return signal.SIGTERM if self.kind == "preempt" else signal.SIGKILL
