"""Requests to stop: SIGTERM, or SIGUSR1 as Slurm sends it. A signal sets a flag here, and nothing else.

Training polls the flag between two steps, where all ranks agree on one (`pipeline.training.stop_vote`), saves there and
exits with status 75. A thread watches that: Python's C code wakes it for a signal even while the main thread is blocked
in a collective whose peers are lost. It ends the process if the main thread has not within the launcher's grace.

Imported before torch and Lightning, so that a signal in the seconds of their import is not missed.
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
"""The environment variable by which torch's agent tells its processes how many seconds they have after SIGTERM."""

LIMIT = 5.0
"""Seconds in which a process with nothing to save must have exited, and in which peers must have answered."""

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
_DUPLICATE = 1.0
"""Seconds within which a second signal counts as the first one: a launcher that signals all processes also signals the
agent, which forwards it."""


class Preemption:
    """Whether this process is asked to stop, within a `with` block. One per process.

    Attributes:
        grace: Seconds between the signal and SIGKILL.
        durable: Describes on rank 0 what is durable, for an exit that the last save has not reached.
        saving: Whether an upload is in progress.
    """

    def __init__(self) -> None:
        self.grace = 30.0
        self.durable: Callable[[], str] = lambda: "there was nothing to save"
        self.saving: Callable[[], bool] = lambda: False
        self._asked: float | None = None
        self._signalled: float | None = None
        self._interrupted: float | None = None
        self._training = self._final_save = False
        self._last_batch = self._longest_batch = 0.0
        self._old_handlers: dict[int, Any] = {}
        self._wakeup_sockets: tuple[socket.socket, socket.socket] | None = None

    @property
    def asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._asked is not None

    def ask(self) -> None:
        """Ask this process to stop, because other ranks have been asked."""
        self._asked = self._asked or time.monotonic()

    def check(self) -> None:
        """Stop here if asked to, while there is nothing to save yet.

        Raises:
            Preempted: This process has been asked to stop.
        """
        if self.asked:
            raise Preempted("preempted before training began: nothing to save")

    def mark_training(self) -> None:
        """Allow a stop from now on the time of a step, a save and its upload."""
        self._training, self._last_batch = True, time.monotonic()

    def heartbeat(self) -> None:
        """Note that training has reached its next batch, which tells a slow step from one with lost peers."""
        now = time.monotonic()
        self._longest_batch, self._last_batch = max(self._longest_batch, now - self._last_batch), now

    def begin_final_save(self) -> None:
        """Allow the whole grace from now on: all ranks stop at this step, and what remains is to save it."""
        self.ask()
        self._final_save = True

    def __enter__(self) -> Self:
        """Install signal handlers; only in a process's main thread."""
        sockets = self._wakeup_sockets = socket.socketpair()
        for end in sockets:
            end.setblocking(False)
        signal.set_wakeup_fd(sockets[1].fileno(), warn_on_full_buffer=False)
        # SIGINT keeps its own handler, which raises KeyboardInterrupt.
        self._old_handlers = {number: signal.signal(number, self._ask_at_once) for number in _STOP_SIGNALS}
        os.register_at_fork(after_in_child=self._in_child)
        threading.Thread(target=self._watch, args=(sockets[0],), name="preemption", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the old signal handlers; the process is about to exit."""
        if self._wakeup_sockets is not None:
            self._restore_handlers()
            self._wakeup_sockets[1].close()  # which ends the thread
            self._wakeup_sockets = None

    def _restore_handlers(self) -> None:
        if self._old_handlers:
            signal.set_wakeup_fd(-1)
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            self._old_handlers = {}

    def _in_child(self) -> None:
        """Restore the handlers in a forked child, such as a loader worker; Slurm's SIGUSR1 to all must not kill it."""
        if self._old_handlers:
            self._restore_handlers()
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def _ask_at_once(self, number: int, frame: FrameType | None) -> None:
        """Set the flag from the main thread too: before its next boundary, and if other code took the wakeup fd."""
        self.ask()

    def _watch(self, wakeups: socket.socket) -> None:
        while True:
            waiting = self.asked or self._interrupted is not None
            readable, _, _ = select.select([wakeups], [], [], 0.1 if waiting else None)
            if readable:
                numbers = wakeups.recv(64)
                if not numbers:
                    wakeups.close()
                    return
                for number in numbers:
                    self._on_signal(number)
            self._exit_in_time()

    def _on_signal(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted is not None:
                self._exit(INTERRUPTED)
            self._interrupted = now
        elif number in _STOP_SIGNALS:
            # Only signals to this process count: a stop that another rank has asked for is no first signal.
            if self._signalled is not None and now - self._signalled > _DUPLICATE:
                self._exit(PREEMPTED)
            self._signalled = self._signalled or now
            self.ask()

    def _exit_in_time(self) -> None:
        """Exit if the main thread has not by now."""
        start, status = (self._asked, PREEMPTED) if self._asked is not None else (self._interrupted, INTERRUPTED)
        if start is None:
            return
        now = time.monotonic()
        # A little before SIGKILL.
        if now - start > self.grace - min(2.0, self.grace / 10):
            self._exit(status)
        if self._training and (self._final_save or self.saving()):
            return
        # A main thread that stands still for three times its longest batch waits for lost peers.
        if now - max(start, self._last_batch) > LIMIT + 3 * self._longest_batch:
            self._exit(status)

    def _exit(self, status: int) -> NoReturn:
        try:
            if os.environ.get("RANK", "0") == "0":  # which reports for all
                print(f"exiting now: {self.durable()}", file=sys.stderr, flush=True)  # noqa: T201
        finally:
            os._exit(status)


def default_grace(environment: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that the launcher gives after SIGTERM: those of torch's agent, whose own default is 30.

    Raises:
        UserError: The variable is not a whole number above 0.
    """
    text = environment.get(GRACE, "30")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{GRACE}={text!r} must be whole seconds >= 1, such as 30")
    return float(text)
