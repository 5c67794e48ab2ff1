"""Requests to stop: SIGTERM, SIGUSR1 as Slurm sends it, SIGHUP of a closed terminal. A signal sets a flag, no more.

Training polls the flag between two steps, where all ranks agree on one (`pipeline.training.stop_vote`), saves there and
exits with status 75. A thread watches that: Python's C code wakes it for a signal even while the main thread is blocked
in a collective whose peers are lost. It ends the process if the main thread has not within the launcher's grace; before
the first step, when there is nothing to save, within a second.

Imported before torch and Lightning, so that a signal in the seconds of their import is not missed.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn, Self

from pipeline.errors import INTERRUPTED, PREEMPTED, Preempted, UserError
from pipeline.process import bottom_rows, error_file
from pipeline.process.held_signals import STOP_SIGNALS, take_held_signals
from pipeline.process.output import drop_lost_output, print_line
from pipeline.process.timeout import within

GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""The environment variable by which torch's agent tells its processes how many seconds they have after SIGTERM."""

LIMIT = 5.0
"""Seconds in which a process with nothing to save must have exited, and in which peers must have answered."""

_START_LIMIT = 1.0
"""Seconds that the main thread has to end by itself before the first step is done, and then the end of its attempt."""
DUPLICATE = 1.0
"""Seconds within which a second signal counts as the first one: a launcher that signals all processes also signals the
agent, which forwards it."""
_REARM = 1.0
"""Seconds between two looks whether other code has replaced the handlers."""


class Preemption:
    """Whether this process is asked to stop, from `listen` on, or within a `with` block. One per process.

    Attributes:
        grace: Seconds between the signal and SIGKILL.
        durable: Describes on rank 0 what is durable, for an exit that the last save has not reached.
        saving: Whether an upload is in progress.
        leaving: Records the end of the attempt, where this process exits before its first step while its main thread
            is blocked.
    """

    def __init__(self) -> None:
        self.grace = 30.0
        self.durable: Callable[[], str] = lambda: "there was nothing to save"
        self.saving: Callable[[], bool] = lambda: False
        self.leaving: Callable[[], None] = lambda: None
        self._asked: float | None = None
        self._first: tuple[int, float] | None = None
        self._opened = self._training = self._stepped = self._final_save = False
        self._last_batch = self._longest_batch = 0.0
        self._rearmed = 0.0
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

    def mark_opened(self) -> None:
        """Leave the end to the main thread from now on, for a second at least: it may hold a lease or write a file."""
        self._opened = True

    def mark_training(self) -> None:
        """Allow a stop from now on the time of a step, a save and its upload."""
        self._opened, self._training, self._last_batch = True, True, time.monotonic()

    def heartbeat(self) -> None:
        """Note that training has reached its next batch, which tells a slow step from one with lost peers."""
        now = time.monotonic()
        self._longest_batch, self._last_batch = max(self._longest_batch, now - self._last_batch), now
        if self._old_handlers and now - self._rearmed > _REARM:
            self._rearmed = now
            self._rearm()

    def batch_ended(self) -> None:
        """Note that a batch has ended: from now on there may be something to save."""
        self._stepped = True

    def begin_final_save(self) -> None:
        """Allow the whole grace from now on: all ranks stop at this step, and what remains is to save it."""
        self.ask()
        self._final_save = True

    def __enter__(self) -> Self:
        """Listen; only in a process's main thread."""
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the old signal handlers."""
        if self._wakeup_sockets is not None:
            self._restore_handlers()
            self._wakeup_sockets[1].close()  # which ends the thread
            self._wakeup_sockets = None

    def listen(self) -> None:
        """Install signal handlers, and take those that `hold_signals` has kept."""
        sockets = self._wakeup_sockets = socket.socketpair()
        for end in sockets:
            end.setblocking(False)
        signal.set_wakeup_fd(sockets[1].fileno(), warn_on_full_buffer=False)
        # nohup ignores SIGHUP so that what it starts outlives the terminal.
        heard = [each for each in STOP_SIGNALS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
        self._old_handlers = {number: signal.signal(number, self._ask_at_once) for number in heard}
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._old_handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        os.register_at_fork(after_in_child=self._in_child)
        threading.Thread(target=self._watch, args=(sockets[0],), name="preemption", daemon=True).start()
        take_held_signals()

    def end(self) -> None:
        """Ignore signals from now on: how this process ends is decided, and Python would restore handlers that kill it.

        Python keeps a signal ignored while it takes itself apart, but not one that has a handler.
        """
        numbers = list(self._old_handlers)
        self._old_handlers = {}
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        self.__exit__()

    def _rearm(self) -> None:
        """Listen again where other code, such as asyncio, has reset a handler or the file descriptor to none."""
        assert self._wakeup_sockets is not None
        own = self._wakeup_sockets[1].fileno()
        if (other := signal.set_wakeup_fd(own, warn_on_full_buffer=False)) not in (own, -1):
            signal.set_wakeup_fd(other)  # an event loop is running
        for number in self._old_handlers:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, self._interrupt if number == signal.SIGINT else self._ask_at_once)

    def _restore_handlers(self) -> None:
        if self._old_handlers:
            signal.set_wakeup_fd(-1)
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            self._old_handlers = {}

    def _in_child(self) -> None:
        """Restore the handlers in a forked child, such as a loader worker; what is sent to a group must not kill it.

        SIGTERM must: by it a loader ends its workers.
        """
        if self._old_handlers:
            self._restore_handlers()
            for number in (signal.SIGUSR1, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)

    def _ask_at_once(self, number: int, frame: FrameType | None) -> None:
        """Set the flag from the main thread too: before its next boundary, and if other code took the wakeup fd."""
        self.ask()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Interrupt the main thread for a person, unless it is stopping already: it may be saving."""
        if not self.asked:
            signal.default_int_handler(number, frame)

    def _watch(self, wakeups: socket.socket) -> None:
        while True:
            # Also asked where nothing has woken it: the main thread sets the flag by itself.
            readable, _, _ = select.select([wakeups], [], [], 0.1 if self.asked or self._first else 1.0)
            if readable:
                numbers = wakeups.recv(64)
                if not numbers:
                    wakeups.close()
                    return
                for number in numbers:
                    self._on_signal(number)
            self._exit_in_time()

    def _on_signal(self, number: int) -> None:
        if number != signal.SIGINT and number not in STOP_SIGNALS:
            return
        now = time.monotonic()
        if self._first is None:
            # Only signals to this process count: a stop that another rank has asked for is no first signal.
            self._first = number, now
            drop_lost_output()
        elif now - self._first[1] > DUPLICATE:
            self._exit()
        if self._first[0] != signal.SIGINT:
            self.ask()

    def _exit_in_time(self) -> None:
        """Exit if the main thread has not by now."""
        start = self._asked if self._asked is not None else self._first[1] if self._first else None
        if start is None:
            return
        seconds = time.monotonic() - start
        # A little before SIGKILL.
        if not self._opened or seconds > self.grace - min(2.0, self.grace / 10):
            self._exit()
        if self._training and (self._final_save or self.saving()):
            return
        if not self._stepped and self.asked:
            # Other code that handles SIGTERM, such as a drill's, ends this process by itself.
            own = signal.getsignal(signal.SIGTERM) == self._ask_at_once
            if seconds > (_START_LIMIT if own else LIMIT):
                self._exit()
        # A main thread that stands still for three times its longest batch waits for lost peers.
        elif time.monotonic() - max(start, self._last_batch) > LIMIT + 3 * self._longest_batch:
            self._exit()

    def _exit(self) -> NoReturn:
        status = INTERRUPTED if self._first and self._first[0] == signal.SIGINT else PREEMPTED
        try:
            if not self._stepped:
                with suppress(Exception):  # of a storage that is away: this process ends all the same
                    within(_START_LIMIT, self.leaving, "leaving")
                self.report_unsaved(status)
            if os.environ.get("RANK", "0") == "0":  # which reports for all
                bottom_rows.release(2)
                print_line(f"exiting now: {self.durable()}")
        finally:
            os._exit(status)

    def report_unsaved(self, status: int) -> None:
        """Tell the agent that this process was preempted before its first step: its peers have not agreed to stop."""
        if status == PREEMPTED and not self._stepped and (path := os.environ.get(error_file.FILE)):
            error_file.write_report(path, status, "preempted before the first step: nothing to save")


def default_grace(environment: Mapping[str, str] = os.environ) -> float:
    """Return the seconds that the launcher gives after SIGTERM: those of torch's agent, whose own default is 30.

    Raises:
        UserError: The variable is not a whole number above 0.
    """
    text = environment.get(GRACE, "30")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{GRACE}={text!r} must be whole seconds >= 1, such as 30")
    return float(text)
