"""When a line of one kind is due again, so that a log grows with what happened and not with how long it took."""

import time

LEAST, LONGEST = 10.0, 600.0
"""Seconds between two lines, at least and at most."""
SHARE = 0.05
"""Of a run, between two lines; of the time so far where its length is not known."""


class Pace:
    """Of one kind of line: every 10 s or 5 %, whichever is later, but at least every ten minutes.

    Args:
        at_once: Whether the first one is due at once.
    """

    def __init__(self, at_once: bool = False) -> None:
        self._began = time.monotonic()
        self._last = self._began - (LONGEST if at_once else 0.0)
        self._share = 0.0

    def is_due(self, share: float | None = None) -> bool:
        """Return whether the next line is due.

        Args:
            share: Of the run that is done; None where that is not known.
        """
        now = time.monotonic()
        seconds = now - self._last
        far_enough = seconds >= SHARE * (now - self._began) if share is None else share - self._share >= SHARE - 1e-9
        return seconds >= LONGEST or (seconds >= LEAST and far_enough)

    def mark(self, share: float | None = None) -> None:
        """Take note that one is written now."""
        self._last, self._share = time.monotonic(), share or 0.0
