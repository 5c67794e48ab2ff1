"""Signals to a node's agent: each sets a flag on which the agent's loop acts; before there is one, the agent ends."""

import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType

from pipeline.process.held_signals import take_held_signals
from pipeline.process.preemption import DUPLICATE

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
"""Signals that stop an agent. Slurm sends SIGUSR1 some time before the end of a job."""


class StopRequested(Exception):
    """A signal has asked this agent to stop while it had no workers."""


class Signals:
    """Whether this process has been asked to stop.

    Args:
        exit_at_once: Called for the first signal while nothing has been started yet; None: never.

    Attributes:
        starting: Whether nothing has been started yet.
        received: The signal numbers, in order of arrival.
        first: When the first one arrived, by `time.monotonic`.
    """

    def __init__(self, exit_at_once: Callable[[], None] | None = None) -> None:
        self.starting = exit_at_once is not None
        self.received: list[int] = []
        self.first = 0.0
        self._exit_at_once = exit_at_once

    def listen(self, names: Iterable[str] = STOP_SIGNALS) -> None:
        """Install handlers, in the main thread only. Names that this system does not have are skipped."""
        for name in names:
            number = getattr(signal, name.strip(), None)
            # nohup ignores SIGHUP so that what it starts outlives the terminal.
            ignored = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if isinstance(number, signal.Signals) and not ignored:
                signal.signal(number, self._on_signal)
        take_held_signals()

    @property
    def interrupted(self) -> bool:
        """Whether a person has pressed Ctrl-C, before anything else has asked this process to stop."""
        return self.received[:1] == [signal.SIGINT]

    def check(self) -> None:
        """Raise `StopRequested` if a signal has arrived."""
        if self.received:
            raise StopRequested

    def name(self) -> str:
        """Return the name of the first signal."""
        return signal.Signals(self.received[0]).name

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received and number != signal.SIGINT and now - self.first <= DUPLICATE:
            return  # a launcher that signals all processes of a node also signals the one that forwards it to this one
        self.first = self.first or now
        self.received.append(number)
        if self.starting and self._exit_at_once is not None:
            self._exit_at_once()

    def forwarded(self) -> int:
        """Return what workers are sent for a signal: SIGINT if that came first, else SIGTERM, by which they save."""
        return signal.SIGINT if self.interrupted else signal.SIGTERM
