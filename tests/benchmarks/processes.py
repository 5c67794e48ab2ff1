"""Fresh processes for what is measured, and their clocks.

The runner imports everything and computes nothing; each round of a contender is a fork of it, so that none meets the
threads, caches or memory that another one has left behind, and none pays for imports.
"""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.subject import Reading
from tests.support.agent_harness import free_port

_FORK = multiprocessing.get_context("fork")
_PR_SET_PDEATHSIG = 1
_TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds() -> float:
    """User and system time of this process, all its threads, and its children, also of those that still run."""
    running = 0.0
    for child in multiprocessing.active_children():  # waits for those that have ended
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            running += (int(fields[11]) + int(fields[12])) / _TICK
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) + running


def peak_memory(reset: bool = False) -> int:
    """The most bytes that this process has held in memory, since the last reset; getrusage would count its parent's."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


class ForkFailed(RuntimeError):
    """A fork did not end well; `statuses` are the exit statuses of all ranks, negative for a signal."""

    def __init__(self, message: str, statuses: list[int | None]) -> None:
        super().__init__(message)
        self.statuses = statuses


class Clock:
    """Stops the time from one tick to another, of a loop that ticks once in each step.

    It is called by the model or the loop that is measured, for whatever else could call it costs some of them more than
    others.
    """

    def __init__(self) -> None:
        self.ticks, self.first, self.last = 0, 0, -1
        self.began = self.ended = (0.0, 0.0)

    def set_window(self, first: int, last: int) -> None:
        """Measure from the `first` tick to the `last` one, counted from 0."""
        self.ticks, self.first, self.last = 0, first, last

    def tick(self) -> None:
        """Note that a step begins."""
        if self.ticks == self.first:
            self.began = time.perf_counter(), cpu_seconds()
        elif self.ticks == self.last:
            self.stop()
        self.ticks += 1

    def stop(self) -> None:
        """End the window here."""
        self.ended = time.perf_counter(), cpu_seconds()

    def reading(self, count: int | None = None) -> Reading:
        """Microseconds of wall and CPU time, each of so many units; None: of the window's steps."""
        count = self.last - self.first if count is None else count
        assert self.ended > self.began, f"{self.ticks} steps do not reach the end of the window, {self.last}"
        wall, cpu = (1e6 * (end - begin) / count for begin, end in zip(self.began, self.ended, strict=True))
        return {"wall": wall, "cpu": cpu}


clock = Clock()
"""Of this process."""


def timed(function: Callable[[], Any], count: int = 1) -> Reading:
    """Microseconds of wall and CPU time that a call takes, each of so many units."""
    own = Clock()
    own.set_window(0, 1)
    own.tick()
    function()
    own.tick()
    return own.reading(count)


def forked(function: Callable[..., Any], *arguments: Any, ranks: int = 1, log: Path, limit: float = 900) -> Any:
    """Call a function in a fork of this process for each rank, with one thread and the variables of a launcher.

    Args:
        function: What it returns must be picklable.
        arguments: Its arguments.
        ranks: How many processes; 1: without the variables.
        log: Where their output goes.
        limit: Seconds that all of it may take.

    Returns:
        What it returned on rank 0.

    Raises:
        ForkFailed: One of them failed; with the end of its output.
    """
    port, (receiver, sender) = free_port(), _FORK.Pipe(duplex=False)
    processes = [
        _FORK.Process(target=_run, args=(r, ranks, port, log, sender, function, arguments)) for r in range(ranks)
    ]
    for process in processes:
        process.start()
    sender.close()
    answer, end = None, time.monotonic() + limit
    try:
        with contextlib.suppress(EOFError):
            if receiver.poll(limit):
                answer = receiver.recv()
        left = {process.sentinel: process for process in processes}
        while left and time.monotonic() < end and not any(process.exitcode for process in processes):
            for sentinel in wait(left, timeout=1):
                left.pop(int(str(sentinel)))
    finally:  # a signal included: what is removed then must not be written again
        for process in processes:
            process.kill() if process.exitcode is None else None
            process.join()
    statuses = [process.exitcode for process in processes]
    if answer is None or any(statuses):
        raise ForkFailed(f"{function.__name__}{arguments} failed:\n{log.read_text()[-4000:]}", statuses)
    return answer[0]


def _run(
    rank: int, ranks: int, port: int, log: Path, sender: Connection, function: Callable[..., Any], arguments: Any
) -> None:
    """Be one rank; it dies with the runner, and ends without waiting for threads or workers that are left."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with log.open("a") as file:
        sys.stdout.flush()
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "GROUP_RANK": "0",
            "GROUP_WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "benchmark",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
    torch.set_num_threads(1)
    try:
        found = function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if rank == 0:
        sender.send((found,))
    sender.close()
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(0)
