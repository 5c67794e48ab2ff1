"""The standby of a node: a process that has imported everything, from which its workers are forked.

It starts with the agent, so that it imports while the agent itself does and while the nodes find each other; the first
workers are forked from it, and after a restart the next ones, which saves them seconds of imports. Whatever it cannot
do is said in one line, and the workers start cold. `pipeline.process.fork_server` is the process itself.
"""

import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.agent import pdeathsig
from pipeline.agent.signals import Signals
from pipeline.process import started_runs
from pipeline.process.fork_server import ANSWER, OPTION, READY
from pipeline.process.output import print_line

AUTO = "auto"
CHOICES = (AUTO, "true", "false")
_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_PR_SET_CHILD_SUBREAPER = 36
_ANSWER_SECONDS = 10.0
_END_SECONDS = 5.0
_RENEW_AFTER = 10.0
"""Seconds between the end of a standby and the next one, which training pays with a core for some seconds."""
_RENEWALS = 10
_OF_A_RANK = (
    *("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_", "GROUP_", "ROLE_", "TORCHELASTIC_"),
    *("TORCH_ELASTIC_", "TORCH_NCCL_ASYNC_ERROR_HANDLING", started_runs.FOLDER),
)
"""How variables begin that no import may depend on: each worker has its own."""


class ForkedWorker:
    """A worker that the standby has forked: a child of this process, with what torch and we use of `Popen`.

    Attributes:
        pid: Of the process.
        args: Its command line.
        returncode: As `Popen` has it; None while it runs, as far as `poll` has seen.
    """

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid, self.args = pid, args
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return how it has ended, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end.

        Raises:
            TimeoutExpired: It runs for so many seconds.
        """
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal to it, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Standby:
    """Keeps a standby for one command line, and forks workers from it.

    Args:
        command: Of a worker; empty for a program of which there is no standby.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._environment: dict[str, str] = {}
        self._ready = False
        self._started = 0
        self._ended = 0.0

    def start(self) -> None:
        """Start it unless there is one, in the thread with whose end the kernel kills it."""
        if not self._command or self._process is not None or self._started > _RENEWALS:
            return
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._environment = _fixed(os.environ)
        self._started += 1
        python, *arguments = self._command
        with theirs:
            self._process = subprocess.Popen(
                [*pdeathsig.tied(), python, "-X", f"{OPTION}={theirs.fileno()}", *arguments],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def await_ready(self, signals: Signals) -> None:
        """Wait until there is one that has imported everything, or none to wait for.

        Raises:
            StopRequested: This agent has received a signal meanwhile.
        """
        if self._ready:
            self.tend()
        self.start()
        while self._channel is not None and not self._ready:
            signals.check()
            if select.select([self._channel], [], [], 0.05)[0]:
                answer = self._channel.recv(ANSWER).decode()
                self._ready = answer == READY
                if not self._ready:
                    self._give_up(answer or "it has ended while it imported", again=False)

    def fork(self, command: Sequence[str], environment: dict[str, str], streams: Sequence[int]) -> ForkedWorker | None:
        """Fork a worker.

        Args:
            command: Of the worker.
            environment: Of the worker, whole.
            streams: Its stdin, stdout and stderr.

        Returns:
            The worker; None where it must start cold.
        """
        if not self._ready or list(command) != self._command or self._channel is None:
            return None
        if other := dict(_fixed(environment).items() ^ self._environment.items()):
            self._give_up(f"{min(other)} is another one for the workers", again=False)
            return None
        request = {"environment": environment, "command": self._command, "agent": os.getpid()}
        try:
            _adopt_orphans(True)
            answer = self._ask(self._channel, request, streams)
        except OSError as error:
            answer = str(error)
        finally:
            _adopt_orphans(False)
        if answer.isdecimal():
            return ForkedWorker(int(answer), command)
        self._give_up(answer or "it has ended")
        return None

    @staticmethod
    def _ask(channel: socket.socket, request: object, streams: Sequence[int]) -> str:
        # In a file, for an environment may be larger than a message.
        with open(os.memfd_create("request"), "w", encoding="utf-8") as file:
            json.dump(request, file)
            file.flush()
            socket.send_fds(channel, [b"fork"], [*streams, file.fileno()])
        channel.settimeout(_ANSWER_SECONDS)
        return channel.recv(ANSWER).decode()

    def tend(self) -> None:
        """Start the next one some time after the last one has ended."""
        if self._process is not None and (code := self._process.poll()) is not None:
            print_line(f"standby: ended with status {code}")
            self.end()
        elif self._process is None and self._ended and time.monotonic() - self._ended > _RENEW_AFTER:
            self.start()

    def end(self) -> None:
        """End it."""
        self._ready, self._ended = False, time.monotonic()
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):  # it may wait for a disk in the kernel
                self._process.wait(_END_SECONDS)
            self._process = None

    def _give_up(self, reason: str, again: bool = True) -> None:
        """Start the workers cold, and a new standby later unless that would come to the same."""
        print_line(f"standby: {reason}: starting the workers cold")
        self.end()
        if not again:
            self._command = []


def command_of(options: Namespace) -> list[str]:
    """Return the command line of a worker if a standby can be started for it before torch is imported; else nothing."""
    wanted = options.standby == "true" or (options.standby == AUTO and not _has_gpu())
    if not (wanted and sys.platform == "linux" and options.module and options.training_script == "pipeline"):
        return []
    if options.no_python or options.virtual_local_rank or options.numa_binding:
        return []
    if options.training_script_args[:1] not in [[each] for each in _SUBCOMMANDS]:
        return []
    return [os.getenv("PYTHON_EXEC", sys.executable), "-u", "-m", "pipeline", *options.training_script_args]


def is_standby(pid: int) -> bool:
    """Return whether a child of an agent is its standby, and no worker."""
    with suppress(OSError):
        return f"-X\0{OPTION}=".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _has_gpu() -> bool:
    """Return whether there is a GPU, on which a process may be forked only before anything has asked for it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_OF_A_RANK)}


def _adopt_orphans(wanted: bool) -> None:
    """Make this process the parent of processes below it whose own parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)
