"""The processes of one node in one round: how they end, and how they are ended."""

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.api import SubprocessContext

from pipeline.agent.signals import Signals
from pipeline.errors import DONE, PREEMPTED
from pipeline.process.error_file import ErrorReport, read_report

HURRY = 5.0
"""Seconds that workers have after a second signal."""
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended.

    Attributes:
        rank: Its rank.
        code: As `subprocess` returns it: negative for a signal. 75 also for SIGTERM, which ends a process that has no
            handler for it yet, or none at all.
        report: Its error file.
        unsaved: Whether it was preempted before its first step, so that its peers have not agreed to stop.
    """

    rank: int
    code: int
    report: ErrorReport | None
    unsaved: bool = False

    @classmethod
    def of(cls, rank: int, code: int, error_file: str) -> "WorkerExit":
        """Return how a worker ended that `subprocess` returns a code for, and that may have left an error file."""
        if code == -signal.SIGTERM:
            return cls(rank, PREEMPTED, None, unsaved=True)
        report = None if code == DONE else read_report(error_file)
        return cls(rank, code, report, unsaved=code == PREEMPTED and report is not None)

    @property
    def crashed(self) -> bool:
        """Whether it exited with neither 0 nor 75: by a crash or a user's mistake."""
        return self.code not in (DONE, PREEMPTED)


class Workers:
    """Watches started processes. torch's own context ends all of them as soon as one has failed.

    Args:
        context: Of the started processes.
        ranks: The rank of each by its local rank.
        grace: Seconds that they have after SIGTERM.
        signals: The agent's own; a further one is forwarded, and leaves HURRY seconds.

    Attributes:
        ended: The exits so far, in the order in which they were seen.
        signalled: Whether this agent has asked them to stop.
    """

    def __init__(self, context: SubprocessContext, ranks: Mapping[int, int], grace: float, signals: Signals) -> None:
        self._context = context
        self._grace = grace
        self._signals = signals
        self._ranks = dict(ranks)
        self._processes = {local: handler.proc for local, handler in context.subprocess_handlers.items()}
        self._seen: set[int] = set()
        self.ended: list[WorkerExit] = []
        self.signalled = False

    @property
    def running(self) -> bool:
        """Whether one of them still runs, as far as `poll` has seen."""
        return len(self._seen) < len(self._processes)

    def poll(self) -> list[WorkerExit]:
        """Return the exits since the last call, the likely first one first."""
        new = []
        for local, process in self._processes.items():
            if local not in self._seen and (code := process.poll()) is not None:
                self._seen.add(local)
                new.append(WorkerExit.of(self._ranks[local], code, self._context.error_files[local]))
        # A killed process has not failed because of a peer; of error files, the earlier one.
        new.sort(key=lambda end: (end.code >= 0, end.report.time if end.report else 0.0))
        self.ended += new
        return new

    def send(self, number: int) -> None:
        """Send a signal to each that runs, but not to its children: it would kill loader workers."""
        self.signalled = True
        for local, process in self._processes.items():
            if local not in self._seen:
                process.send_signal(number)

    def stop(self, grace: float | None = None) -> None:
        """Send SIGTERM to those that run, and `finish`."""
        self.poll()
        if self.running:
            self.send(signal.SIGTERM)
        self.finish(grace)

    def finish(self, grace: float | None = None, ask_after: float | None = None) -> None:
        """Wait for those that run, kill what is left after the grace, and clean up.

        Args:
            grace: Seconds, if they are others than those after SIGTERM.
            ask_after: Seconds after which those that still run are sent SIGTERM, unless they have been; None: never.
        """
        received = self._signals.received
        began, count = time.monotonic(), len(received)
        deadline = began + (self._grace if grace is None else grace)
        while not self._wait(min(0.2, max(0.0, deadline - time.monotonic()))):
            if ask_after is not None and not self.signalled and time.monotonic() - began >= ask_after:
                self.send(signal.SIGTERM)
            if len(received) > count:
                count = len(received)
                self.send(self._signals.forwarded())
                deadline = min(deadline, time.monotonic() + HURRY)
            if time.monotonic() >= deadline:
                self._kill()
                break
        for local, process in self._processes.items():
            if local in self._seen and process.returncode != DONE:
                self._kill_group(process.pid)  # orphaned children
        self._context.close(signal.SIGKILL, 1)  # torch's log readers

    def _kill(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                self._kill_group(process.pid)
        # A process that waits for a device in the kernel cannot be killed, and must not block the agent.
        self._wait(HURRY)

    def _wait(self, seconds: float) -> bool:
        """Wait until all have ended; returns False after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            self.poll()
            if not self.running:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)

    @staticmethod
    def _kill_group(pid: int) -> None:
        # torch starts each worker in a session of its own.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
