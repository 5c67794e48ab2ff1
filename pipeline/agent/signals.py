"""Signals to a node's agent: each sets a flag, and the agent's loop acts on it."""

import signal
import time
from collections.abc import Iterable
from types import FrameType

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
"""Signals that stop an agent. Slurm sends SIGUSR1 some time before the end of a job."""


class StopRequested(Exception):
    """A signal has asked this agent to stop while it had no workers."""


class Signals:
    """Whether this process has been asked to stop.

    Attributes:
        received: The signal numbers, in order of arrival.
        first: When the first one arrived, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.first = 0.0

    def listen(self, names: Iterable[str] = STOP_SIGNALS) -> None:
        """Install handlers, in the main thread only. Names that this system does not have are skipped."""
        for name in names:
            number = getattr(signal, name.strip(), None)
            # nohup ignores SIGHUP so that what it starts outlives the terminal.
            ignored = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if isinstance(number, signal.Signals) and not ignored:
                signal.signal(number, self._on_signal)

    @property
    def interrupted(self) -> bool:
        """Whether a person has pressed Ctrl-C."""
        return signal.SIGINT in self.received

    def check(self) -> None:
        """Raise `StopRequested` if a signal has arrived."""
        if self.received:
            raise StopRequested

    def name(self) -> str:
        """Return the name of the first signal."""
        return signal.Signals(self.received[0]).name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or time.monotonic()
        self.received.append(number)


def forwarded(number: int) -> int:
    """Return what workers are sent for a signal to their agent: SIGINT as it is, SIGTERM for all others."""
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
