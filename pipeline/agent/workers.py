"""The processes of one node in one round: how they end, and how they are ended."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from pipeline.agent.signals import Signals, passed_on
from pipeline.errors import DONE, PREEMPTED
from pipeline.process.error_file import Report, read

HURRY = 5.0
"""Seconds that are left to the workers after a second signal."""
_LOOK = 0.05


@dataclass(frozen=True)
class Ended:
    """How a worker ended.

    Attributes:
        rank: Its rank.
        code: As `subprocess` says it: negative for a signal.
        report: What it has written down.
    """

    rank: int
    code: int
    report: Report | None

    @property
    def crashed(self) -> bool:
        """Whether it ended with neither 0 nor 75: by a crash or a user's mistake."""
        return self.code not in (DONE, PREEMPTED)


class Workers:
    """Looks after processes that have been started. torch's own context ends all as soon as one has failed.

    Args:
        context: Of the started processes.
        ranks: The rank of each by its local rank.

    Attributes:
        ended: Those that have ended so far, in the order in which that was seen.
        signalled: Whether this agent has asked them to end.
    """

    def __init__(self, context: SubprocessContext, ranks: Mapping[int, int]) -> None:
        self._context = context
        self._ranks = dict(ranks)
        self._processes = {local: handler.proc for local, handler in context.subprocess_handlers.items()}
        self._seen: set[int] = set()
        self.ended: list[Ended] = []
        self.signalled = False

    @property
    def running(self) -> bool:
        """Whether one of them still runs, as far as `poll` has seen."""
        return len(self._seen) < len(self._processes)

    def poll(self) -> list[Ended]:
        """Those that have ended since the last call; of several, the likely first one first."""
        new = []
        for local, process in self._processes.items():
            if local not in self._seen and (code := process.poll()) is not None:
                self._seen.add(local)
                report = read(self._context.error_files[local]) if code not in (DONE, PREEMPTED) else None
                new.append(Ended(self._ranks[local], code, report))
        # Who was killed has lost no peer; of reports, the earlier one.
        new.sort(key=lambda end: (end.code >= 0, end.report.time if end.report else 0.0))
        self.ended += new
        return new

    def send(self, number: int) -> None:
        """Send a signal to each that runs, and not to its children: a loader's worker would die of it."""
        self.signalled = True
        for local, process in self._processes.items():
            if local not in self._seen:
                process.send_signal(number)

    def kill(self) -> None:
        """Kill those that run, with all their children."""
        for process in self._processes.values():
            if process.poll() is None:
                self._kill_group(process.pid)
        # One that waits for a device in the kernel cannot be killed, and must not hold up the agent.
        self.wait(HURRY)

    def wait(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Wait until all have ended, for so long at most; returns whether they have."""
        deadline = time.monotonic() + seconds
        while True:
            self.poll()
            if not self.running:
                return True
            if time.monotonic() >= deadline:
                return False
            meanwhile()
            time.sleep(_LOOK)

    def stop(self, grace: float, signals: Signals, number: int = signal.SIGTERM) -> None:
        """Ask those that run to end, and kill what is left after the grace; a further signal to the agent hurries it.

        Args:
            grace: Seconds.
            signals: The agent's own.
            number: The signal.
        """
        self.poll()
        if self.running:
            self.send(number)
            self.let_end(grace, signals)
        self.close()

    def let_end(self, grace: float, signals: Signals) -> None:
        """Let those that run end by themselves, and kill what is left after the grace. See `stop`."""
        deadline, heard = time.monotonic() + grace, len(signals.received)
        while not self.wait(min(0.2, max(0.0, deadline - time.monotonic()))):
            for number in signals.received[heard:]:
                self.send(passed_on(number))
                deadline = min(deadline, time.monotonic() + HURRY)
            heard = len(signals.received)
            if time.monotonic() >= deadline:
                self.kill()
                return

    def close(self) -> None:
        """Clean up when all have ended: children that a worker left behind, and what copies the logs."""
        for local, process in self._processes.items():
            if local in self._seen and process.returncode != DONE:
                self._kill_group(process.pid)
        self._context.close(signal.SIGKILL, 1)

    @staticmethod
    def _kill_group(pid: int) -> None:
        # torch starts each worker in a session of its own.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
