"""When a save by time is due: rank 0's clock decides, and all ranks hear of it at the same step."""

import time

import lightning.pytorch as pl

_SECONDS = 1.0
"""About how often rank 0 tells the others: a message a second costs nothing, one a step would."""


class Clock:
    """Counts the time since the last save.

    Args:
        seconds: After how many seconds one is due; None: never.
    """

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._next_look = 1
        self._steps = 0
        self._looked = time.monotonic()
        self.restart()

    def restart(self) -> None:
        """A save has just been taken."""
        self._began = time.monotonic()

    def due(self, trainer: pl.Trainer) -> bool:
        """Whether one is due, the same on all ranks. All ranks must call it after every step."""
        if self.seconds is None:
            return False
        self._steps += 1
        if self._steps < self._next_look:
            return False
        now = time.monotonic()
        a_step = (now - self._looked) / self._next_look
        found = [now - self._began >= self.seconds, max(1, int(min(_SECONDS, self.seconds) / max(a_step, 1e-6)))]
        due, self._next_look = trainer.strategy.broadcast(found) if trainer.world_size > 1 else found
        self._steps, self._looked = 0, now
        return bool(due)
