"""The signals that a node's agent receives: each sets a flag, and the agent's loop does the rest."""

import signal
import time
from collections.abc import Iterable
from types import FrameType

ASKING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
"""What ends an agent: SIGUSR1 is what Slurm sends some time before the end."""


class Asked(Exception):
    """A signal has asked this agent to end, while it had no workers."""


class Signals:
    """Whether this process has been asked to end.

    Attributes:
        received: The numbers of the signals, in their order.
        first: When the first one came, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.first = 0.0

    def listen(self, names: Iterable[str] = ASKING) -> None:
        """Take over these signals; only in a process's main thread. Names that this system does not know are left."""
        for name in names:
            number = getattr(signal, name.strip(), None)
            # nohup has SIGHUP ignored, so that what it starts outlives the terminal.
            kept = number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
            if isinstance(number, signal.Signals) and not kept:
                signal.signal(number, self._hear)

    @property
    def interrupted(self) -> bool:
        """Whether a person has pressed Ctrl-C."""
        return signal.SIGINT in self.received

    def check(self) -> None:
        """Raise `Asked` once a signal has come."""
        if self.received:
            raise Asked

    def name(self) -> str:
        """The first signal's name."""
        return signal.Signals(self.received[0]).name

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self.first = self.first or time.monotonic()
        self.received.append(number)


def passed_on(number: int) -> int:
    """What the workers get of a signal to their agent: Ctrl-C as it is, and for all else what asks them to save."""
    return signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
