"""Where the time of an attempt goes: a stopwatch that always runs for one purpose, so that nothing is left out."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STARTING = "starting"
USEFUL = "useful"
REPEATED = "repeated"
WAITING = "waiting_for_data"
SAVING = "stopped_by_saves"
VALIDATING = "validating"
OTHER = "other"
PURPOSES = (USEFUL, REPEATED, STARTING, WAITING, SAVING, VALIDATING, OTHER)
"""Starting lasts until the first batch is there, including the imports before this module; `other` is none of these:
between epochs, around validations, and after training. A step is repeated if an earlier attempt had already done it."""


class Goodput:
    """Counts the seconds of this process by purpose.

    Attributes:
        step: The newest optimizer step that is done; 0 before training.
        known: The newest one that an earlier attempt had done: steps up to it are repeated.
        saves: How often training has stopped for a save.
        stop: Seconds for which it has, all saves together, without the waits for an earlier save or for the last one.
        behind: Seconds that the last save needed in the background until it was durable, None before there was one.
    """

    def __init__(self) -> None:
        self.step = 0
        self.known = 0
        self.saves = 0
        self.stop = 0.0
        self.behind: float | None = None
        self._seconds = dict.fromkeys(PURPOSES, 0.0)
        self._purpose = STARTING
        self._since = time.perf_counter() - _age()

    def enter(self, purpose: str) -> None:
        """Count what follows for this purpose, such as waiting for data; before the first batch all is starting."""
        if self._purpose != STARTING:
            self._switch(purpose)

    def steps(self, step: int) -> None:
        """Count what follows as a step: a batch is there.

        Args:
            step: Optimizer steps that are done.
        """
        self.step = step
        self._switch(REPEATED if step < self.known else USEFUL)

    def saved(self, seconds: float) -> None:
        """Count a save that was handed over.

        Args:
            seconds: For which training was paused for it.
        """
        self.saves += 1
        self.stop += seconds

    def ends(self, step: int) -> None:
        """Count what follows as other: training has ended, in whatever way."""
        self.step = step
        self._switch(OTHER)

    @contextmanager
    def during(self, purpose: str) -> Iterator[None]:
        """Count what happens within the block for this purpose."""
        before = self._purpose
        self._switch(purpose)
        try:
            yield
        finally:
            self._switch(before)

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by purpose. Safe in any thread."""
        seconds = dict(self._seconds)
        seconds[self._purpose] += time.perf_counter() - self._since
        return seconds

    def as_dict(self) -> dict[str, Any]:
        """Return the seconds so far, their useful share, and what saves have cost, for JSON. Safe in any thread."""
        seconds = self.seconds()
        whole = sum(seconds.values())
        return {
            "share": round(seconds[USEFUL] / whole, 4) if whole else 0.0,
            "seconds": {purpose: round(value, 3) for purpose, value in seconds.items()},
            "saves": self.saves,
            "stop_seconds": round(self.stop, 3),
            "behind_seconds": None if self.behind is None else round(self.behind, 3),
        }

    def _switch(self, purpose: str) -> None:
        now = time.perf_counter()
        self._seconds[self._purpose] += now - self._since
        self._purpose, self._since = purpose, now


def _age() -> float:
    """Return the seconds since this process started; 0 where the system does not say."""
    try:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
    return max(age, 0.0)
