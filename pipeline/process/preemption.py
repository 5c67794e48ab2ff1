"""A request to end: SIGTERM, or SIGUSR1 as Slurm sends it. A signal sets a flag here, and nothing else.

Training looks at the flag between two steps, where all ranks agree on one (`pipeline.training.stop_vote`), saves there
and ends with status 75. A thread watches over that: Python's own C code tells it of a signal even while the main
thread stands in a collective whose peers are gone. It leaves where the main thread does not within the grace that the
launcher gives.

This module is imported before torch and Lightning, so that a signal in the seconds that those take is heard, too.
"""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, NoReturn, Self

from pipeline.errors import INTERRUPTED, PREEMPTED, Preempted, UserError

GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""The environment variable by which torch's agent says how many seconds its processes have after SIGTERM."""

LIMIT = 5.0
"""Seconds in which who has nothing to save must have ended, and in which peers must have answered."""

_ASKING = (signal.SIGTERM, signal.SIGUSR1)
_SAME = 1.0
"""Seconds within which a second signal is the first one once more: who signals all processes signals the agent, too,
and that passes it on."""


class Preemption:
    """Whether this process is asked to end, from the beginning of the `with` block to its end. One for a process.

    Attributes:
        grace: Seconds between the signal and the end that somebody else would put.
        durable: Says on rank 0 what is safe, for an end that the last save has not reached.
        saving: Whether an upload is under way.
    """

    def __init__(self) -> None:
        self.grace = 30.0
        self.durable: Callable[[], str] = lambda: "there was nothing to save"
        self.saving: Callable[[], bool] = lambda: False
        self._asked: float | None = None
        self._signalled: float | None = None
        self._interrupted: float | None = None
        self._trains = self._agreed = False
        self._moved = self._longest = 0.0
        self._before: dict[int, Any] = {}
        self._ears: tuple[socket.socket, socket.socket] | None = None

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to end."""
        return self._asked is not None

    def ask(self) -> None:
        """Ask this process to end, for the others have been."""
        self._asked = self._asked or time.monotonic()

    def check(self) -> None:
        """Leave if asked to, while there is nothing yet to save.

        Raises:
            Preempted: It is.
        """
        if self.asked:
            raise Preempted("preempted before training began: nothing to save")

    def trains(self) -> None:
        """From now on an end takes a step, a save and its upload."""
        self._trains, self._moved = True, time.monotonic()

    def moved(self) -> None:
        """Training has come to its next batch; from this the thread knows a slow step from peers that are gone."""
        now = time.monotonic()
        self._longest, self._moved = max(self._longest, now - self._moved), now

    def agreed(self) -> None:
        """All ranks end here: what remains is to save, for which the whole grace is there."""
        self.ask()
        self._agreed = True

    def __enter__(self) -> Self:
        """Listen to signals; only in a process's main thread."""
        ears = self._ears = socket.socketpair()
        for end in ears:
            end.setblocking(False)
        signal.set_wakeup_fd(ears[1].fileno(), warn_on_full_buffer=False)
        # SIGINT keeps its own handler, which raises KeyboardInterrupt.
        self._before = {number: signal.signal(number, _only_wake) for number in _ASKING}
        os.register_at_fork(after_in_child=self._in_child)
        threading.Thread(target=self._watch, args=(ears[0],), name="preemption", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Listen no more; the process is about to end."""
        if self._ears is not None:
            self._forget()
            self._ears[1].close()  # which ends the thread
            self._ears = None

    def _forget(self) -> None:
        """Give signals back."""
        if self._before:
            signal.set_wakeup_fd(-1)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._before = {}

    def _in_child(self) -> None:
        """A child that was forked, such as a loader's worker, is not asked; Slurm's SIGUSR1 to all must not end it."""
        if self._before:
            self._forget()
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _watch(self, ear: socket.socket) -> None:
        while True:
            waiting = self.asked or self._interrupted is not None
            heard, _, _ = select.select([ear], [], [], 0.1 if waiting else None)
            if heard:
                numbers = ear.recv(64)
                if not numbers:
                    ear.close()
                    return
                for number in numbers:
                    self._hear(number)
            self._leave_in_time()

    def _hear(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted is not None:
                self._leave(INTERRUPTED)
            self._interrupted = now
        elif number in _ASKING:
            # Only what this process was sent itself: that the ranks agree because of another one is no first signal.
            if self._signalled is not None and now - self._signalled > _SAME:
                self._leave(PREEMPTED)
            self._signalled = self._signalled or now
            self.ask()

    def _leave_in_time(self) -> None:
        """Where the main thread has not ended, end the process."""
        began, status = (self._asked, PREEMPTED) if self._asked is not None else (self._interrupted, INTERRUPTED)
        if began is None:
            return
        now = time.monotonic()
        # A little before somebody else does it.
        if now - began > self.grace - min(2.0, self.grace / 10):
            self._leave(status)
        if self._trains and (self._agreed or self.saving()):
            return
        # Three times the longest batch so far: who stands still for longer waits for peers that are gone.
        if now - max(began, self._moved) > LIMIT + 3 * self._longest:
            self._leave(status)

    def _leave(self, status: int) -> NoReturn:
        try:
            if os.environ.get("RANK", "0") == "0":  # which speaks for all
                print(f"leaving now: {self.durable()}", file=sys.stderr, flush=True)  # noqa: T201
        finally:
            os._exit(status)


def default_grace(environment: Mapping[str, str] = os.environ) -> float:
    """Seconds that the launcher gives after SIGTERM: those of torch's agent, whose own default is 30.

    Raises:
        UserError: The variable is no number above 0.
    """
    text = environment.get(GRACE, "30")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{GRACE}={text!r}: allowed are whole seconds above 0, such as 30")
    return float(text)


def _only_wake(number: int, frame: FrameType | None) -> None:
    """Nothing: the thread has been told already."""
