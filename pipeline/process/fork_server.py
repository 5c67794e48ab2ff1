"""The standby of an agent: a process that has imported everything, from which workers are forked.

It is started with the command line of a worker and `-X standby=<fd>`, and stops in `pipeline/__main__.py`, before
anything is run. What runs on from there in a fork is a worker. The agent gives it streams and an environment of its own
(`pipeline.agent.standby`), all else is what a cold start has, because the standby was started like one. A worker is a
child of the agent: the process that forks it ends at once, and the agent adopts orphans meanwhile.

Linux only. Nothing here may start a thread: a fork has none of them, but all of their locks.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

OPTION = "standby"
"""Python's -X option that makes a process a standby; its value is the socket to the agent."""
READY = "ready"
ANSWER = 4096
"""Bytes of an answer, at most."""

_PR_SET_PDEATHSIG, _PR_SET_MM, _PR_SET_MM_ARG_END = 1, 35, 9
_HARMLESS = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_MIDDLE_SECONDS = 10.0


def serve(import_all: Callable[[], Callable[[], object]]) -> None:
    """Fork a worker for each request of the agent; returns in each of them, and ends this process with the agent.

    Args:
        import_all: Returns what a worker calls that has its environment: imports have taken something of another one.
    """
    own = sys._xoptions[OPTION]
    channel = socket.socket(fileno=int(own))
    # Whoever looks for the workers by their command line finds only them.
    _show([sys.executable, "-X", f"{OPTION}={own}", "-m", "pipeline.agent.standby"])
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        renew = import_all()
    except Exception as error:  # noqa: BLE001 - the workers report it, for they start cold
        channel.send(f"imports have failed: {type(error).__name__}".encode())
        os._exit(1)
    sources = _sources()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):  # those of the agent may be pipes whose readers wait for their end
        os.dup2(null, fd)
    os.close(null)
    gc.collect()
    gc.freeze()  # or the collections of a worker copy each page that it shares
    if not os.fork():  # thread pools that support forks (OpenBLAS) end their threads before one
        os._exit(0)
    os.wait()
    channel.send((_taken() or READY).encode())
    while True:
        asked, given, _, _ = socket.recv_fds(channel, ANSWER, 4)
        if not asked:
            os._exit(0)
        try:
            problem = _changed(sources) or _taken()
            if not problem and _fork_orphan(channel):
                break
        except OSError as error:
            problem = str(error)
        for fd in given:
            os.close(fd)
        if problem:
            channel.send(problem.encode())
    problem = _become(*given)
    with suppress(OSError):  # the agent may have given up
        channel.send((problem or str(os.getpid())).encode())
    channel.close()
    if problem:
        os._exit(1)
    signal.signal(signal.SIGINT, interrupt)
    renew()


def _fork_orphan(channel: socket.socket) -> bool:
    """Fork a process whose parent ends at once. Returns whether this is the new one."""
    if (middle := os.fork()) == 0:
        middle = os.getpid()
        try:
            if os.fork():
                os._exit(0)
        except OSError as error:
            channel.send(str(error).encode())
            os._exit(1)
        deadline = time.monotonic() + _MIDDLE_SECONDS
        while os.getppid() == middle and time.monotonic() < deadline:
            time.sleep(0.0005)
        return True
    os.waitpid(middle, 0)
    return False


def _become(*given: int) -> str:
    """Take over what a worker is given, in the process that is to be it: its streams, and a file with all else.

    Returns:
        Why it cannot be one; empty if it is.
    """
    *streams, file = given
    request: dict[str, Any] = json.loads(os.pread(file, os.fstat(file).st_size, 0))
    os.close(file)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != request["agent"]:
        return "the agent has ended, or may not adopt a worker (PR_SET_CHILD_SUBREAPER)"
    os.setsid()
    for own, fd in enumerate(streams):
        os.dup2(fd, own)
        os.close(fd)
    since = _environment_since_start()
    os.environ.clear()
    os.environ.update(request["environment"])
    for name, value in since.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # As if Python had never seen the option.
    del sys._xoptions[OPTION]
    sys.orig_argv[:] = request["command"]
    start, length = _show(request["command"])
    # Where that is not permitted, NULs follow the command line.
    ctypes.CDLL(None).prctl(_PR_SET_MM, _PR_SET_MM_ARG_END, ctypes.c_void_p(start + length), 0, 0)
    return ""


def _environment_since_start() -> dict[str, str | None]:
    """Return what Python and imports have set in the environment; None for what they have removed."""
    given = os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0")
    began = dict(each.split("=", 1) for each in given if "=" in each)
    return {name: os.environ.get(name) for name in began.keys() | os.environ if began.get(name) != os.environ.get(name)}


def _show(command: list[str]) -> tuple[int, int]:
    """Show a command line as that of this process (`ps`), as far as that of its start leaves room.

    Returns:
        Where it is, and how long.
    """
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    text = b"\0".join([*map(os.fsencode, command), b""])[: end - start]
    # In one move: whoever looks meanwhile never finds it empty, nor without what both begin with.
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)
    return start, len(text)


def _sources() -> dict[str, tuple[int, int]]:
    """Return when each file that was imported had last changed, and its size."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return {file: _version(file) for file in files if isinstance(file, str)}


def _version(file: str) -> tuple[int, int]:
    try:
        found = os.stat(file)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _changed(sources: dict[str, tuple[int, int]]) -> str:
    """Return which imported file has changed since; empty for none."""
    return next((f"{file} has changed" for file, version in sources.items() if _version(file) != version), "")


def _taken() -> str:
    """Return what a fork would lack or have in common with its siblings: threads, devices; empty for none."""
    tasks = [int(each) for each in os.listdir("/proc/self/task") if int(each) != os.getpid()]
    if tasks:
        names = ", ".join(Path(f"/proc/self/task/{each}/comm").read_text().strip() for each in tasks)
        return f"imports have started {len(tasks)} threads ({names})"
    opened = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    devices = sorted(path for path in opened if path.startswith("/dev/") and path not in _HARMLESS)
    return f"imports have opened {', '.join(devices)}" if devices else ""
