"""Start Python programs of the tests as forks of a process that has imported everything already.

Importing torch and Lightning takes 4 s of CPU, and the tests start hundreds of processes. `install` makes
`subprocess.Popen` ask a warm server for each program of `PROGRAMS`; everything else starts as before. A fork is a real
process: a child of the process that started it (by CLONE_PARENT), with its own PID, session, working directory,
environment, signal dispositions, standard streams and exit status. It differs from a cold start in this: siblings have
the seed of `hash` in common, importing takes no time, and it ends without taking its modules apart. Where the kernel or
the C library do not support it, and within `cold`, programs start cold.
"""

import atexit
import ctypes
import json
import os
import platform
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "pipeline": False,
    "tests.support.rank_runner": False,
    "tests.support.statements": False,
    "pipeline.agent": True,
    "torch.distributed.run": True,
    "components.launch": True,
    "tests.benchmarks": True,
}
"""What is forked of a warm server (`python -m <name>`), and whether it starts others of them itself."""
FROZEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOGLEVEL", "TORCH_DISTRIBUTED_DEBUG", "LD_PRELOAD", "LD_LIBRARY_PATH")
"""Variables that are read by an import. Where they, or any PYTHON*, have other values, a program starts cold."""
SERVER = "tests.support.forkserver"
"""The command line of a server that is the child of a program, beside the children that the program knows of."""
_CLONE_PARENT, _CLONE_SETTID, _CLONE_CLEARTID = 0x8000, 0x01000000, 0x00200000
_PR_SET_PDEATHSIG = 1
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_ROOM = "-" * 4096  # overwritten by the command line of a fork, as `ps` shows it

_libc = ctypes.PyDLL(None, use_errno=True)  # keeps the interpreter's lock during a call
_real_fork_exec: Any = subprocess._fork_exec  # type: ignore[attr-defined]


class _Exec(BaseException):
    """A program is to be replaced by another one that can be run in its place."""

    def __init__(self, path: str, argv: list[str]) -> None:
        super().__init__(argv)
        self.path, self.argv = path, argv


# ---- the side that starts programs


class Client:
    """A warm server that is a child of this process, and starts siblings of itself.

    Args:
        channel: To the server; None starts one when the first program is asked for.
    """

    def __init__(self, channel: socket.socket | None = None) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._frozen = frozen(dict(os.environ))
        self.off = 0
        self.broken = False

    def fork_exec(
        self, argv: Any, executables: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any, *more: Any
    ) -> int:
        """Stand in for `_posixsubprocess.fork_exec`."""
        reads, _, _, writes, _, errs, _, errpipe, _, session, group, gid, groups, uid, umask, before, *_ = more
        argv = [os.fsdecode(each) for each in argv]
        path = next((os.fsdecode(each) for each in executables if os.path.exists(each)), "")
        variables = _variables(env)
        plain = tuple(pass_fds) == (errpipe,) and gid is groups is uid is before is None and umask < 0
        where = os.path.abspath(os.fsdecode(cwd) if cwd is not None else os.getcwd())
        if not (plain and close_fds and not self.off and not self.broken and os.path.isdir(where)):
            pass
        elif is_warm(path, argv) and frozen(variables) == self._frozen:
            request = {
                "path": path,
                "argv": argv,
                "cwd": where,
                "env": variables,
                "session": bool(session),
                "group": group,
                "ignored": [each for each in _signals() if signal.getsignal(each) is signal.SIG_IGN],
            }
            streams = [own if fd == -1 else fd for own, fd in enumerate((reads, writes, errs))]
            with self._lock:
                try:
                    return self._ask(request, streams)
                except OSError:
                    self.broken = True
        return int(_real_fork_exec(argv, executables, close_fds, pass_fds, cwd, env, *more))

    def _ask(self, request: dict[str, Any], streams: list[int]) -> int:
        if self._channel is None:
            self._channel = _start_server()
        data = json.dumps(request).encode("utf-8", "surrogateescape")
        socket.send_fds(self._channel, [struct.pack("=I", len(data))], streams)
        self._channel.sendall(data)
        answer = _received(self._channel, 8)
        pid: int = struct.unpack("=q", answer)[0]
        if pid <= 0:
            raise OSError(-pid, os.strerror(-pid))
        return pid


client: Client | None = None


def install() -> None:
    """Have this process start the programs from a warm server, which starts when it is needed first."""
    if os.environ.get("PIPELINE_TEST_COLD") or platform.machine() not in _SYS_CLONE or sys.platform != "linux":
        return
    _install(Client())


def _install(made: Client) -> None:
    global client  # noqa: PLW0603
    client = made
    subprocess._fork_exec = made.fork_exec  # type: ignore[attr-defined]


@contextmanager
def cold() -> Iterator[None]:
    """Start programs as they are started outside of the tests."""
    if client is None:
        yield
        return
    client.off += 1
    try:
        yield
    finally:
        client.off -= 1


def _start_server() -> socket.socket:
    ours, theirs = socket.socketpair()
    program = "from tests.support.forkserver import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with theirs, cold():
        subprocess.Popen(
            [sys.executable, "-c", program, str(theirs.fileno()), _ROOM],
            cwd=ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    if _received(ours, 5) != b"ready":
        raise OSError("the fork server does not work here")
    return ours


def _variables(env: Any) -> dict[str, str]:
    if env is None:
        return dict(os.environ)
    return dict(os.fsdecode(each).split("=", 1) for each in env)


def frozen(variables: dict[str, str]) -> dict[str, str]:
    """Of an environment, what cannot be changed any more once everything is imported."""
    return {
        name: value
        for name, value in variables.items()
        if name in FROZEN or (name.startswith("PYTHON") and name != "PYTHONUNBUFFERED")
    }


def is_warm(path: str, argv: list[str]) -> bool:
    """Whether a server can start this program: one of `PROGRAMS`, by itself or by what ties it to its agent."""
    python = Path(sys.executable)
    if not (path and Path(path).parent == python.parent and os.path.samefile(path, python)):
        return False
    flags, module, script, rest = parsed(argv)
    if module is not None:
        return module in PROGRAMS and flags <= {"-u"}
    # python -I -S pdeathsig.py <pid> python -m <one of the programs>
    if script is not None and Path(script).name == "pdeathsig.py" and len(rest) > 2:
        inner = rest[1] if os.path.dirname(rest[1]) else str(python.parent / rest[1])
        return os.path.exists(inner) and is_warm(inner, rest[1:])
    return False


def parsed(argv: list[str]) -> tuple[set[str], str | None, str | None, list[str]]:
    """The flags, the module or the script, and the arguments of Python's command line."""
    flags: set[str] = set()
    rest = argv[1:]
    while rest and rest[0].startswith("-") and rest[0] not in ("-m", "-c", "-"):
        flags.add(rest.pop(0))
    if rest[:1] == ["-m"] and len(rest) > 1:
        return flags, rest[1], None, rest[2:]
    if rest and not rest[0].startswith("-"):
        return flags, None, rest[0], rest[1:]
    return flags, None, None, rest


# ---- the server, and what it becomes


def main() -> None:
    """Import everything, serve; in a fork, become the program and end as it ends."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    tid = _tid_pointer()
    _arguments()
    _import_all()
    threads = len(os.listdir("/proc/self/task"))
    if tid is None or threads != 1:
        channel.sendall(b"no   ")
        return
    channel.sendall(b"ready")
    request = serve(channel, tid)
    if request is not None:
        become(request, tid)


def serve(channel: socket.socket, tid: int) -> dict[str, Any] | None:
    """Fork for each request. Returns the request in a fork, None in the server when nobody asks any more."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # of a group that it is in
    while True:
        head, streams, _, _ = socket.recv_fds(channel, 4, 3)
        if len(head) < 4:
            return None
        request: dict[str, Any] = json.loads(_received(channel, struct.unpack("=I", head)[0]))
        pid = _fork_sibling(tid)
        if pid == 0:
            for own, fd in enumerate(streams):
                os.dup2(fd, own)
            channel.detach()
            os.closerange(3, 1024)
            return request
        for fd in streams:
            os.close(fd)
        channel.sendall(struct.pack("=q", pid))


def become(request: dict[str, Any], tid: int) -> None:
    """Run the program of a request in this process, which was forked for it just now."""
    for number in _signals():
        default: Any = signal.SIG_DFL
        if number in request["ignored"] or number in (signal.SIGPIPE, signal.SIGXFSZ):
            default = signal.SIG_IGN
        elif number == signal.SIGINT:
            default = signal.default_int_handler
        signal.signal(number, default)
    _libc.prctl(_PR_SET_PDEATHSIG, 0)
    if request["session"]:
        os.setsid()
    elif request["group"] >= 0:
        os.setpgid(0, request["group"])
    else:
        os.setpgid(0, os.getpgid(os.getppid()))
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    tempfile.tempdir = None  # which TMPDIR names
    argv: list[str] = request["argv"]
    sys.executable = request["path"]
    while True:
        _show(argv)
        flags, module, script, rest = parsed(argv)
        sys.orig_argv = argv
        sys.argv = [script or "", *rest]
        at_once = "-u" in flags or bool(os.environ.get("PYTHONUNBUFFERED"))
        for stream in (sys.stdout, sys.stderr):
            buffers_lines = stream is sys.stderr or stream.isatty()
            stream.reconfigure(write_through=at_once, line_buffering=buffers_lines)  # type: ignore[union-attr]
        if script is None:
            break
        os.execvp = _in_place  # type: ignore[assignment]
        try:
            _to_the_end(lambda script=script: runpy.run_path(script, run_name="__main__"))
        except _Exec as asked:
            sys.executable, argv = asked.path, asked.argv
    assert module is not None
    if PROGRAMS[module]:
        _install(Client(_own_server(tid)))
    sys.modules.pop(module, None)  # it is run, not imported
    sys.path[0] = os.getcwd()
    _to_the_end(lambda: runpy._run_module_as_main(module))  # type: ignore[attr-defined]


def _to_the_end(run: Callable[[], object]) -> NoReturn:
    """Run, and end as Python ends, but without taking apart what is imported: that takes as long as a small test."""
    status, interrupted = 0, False
    try:
        run()
    except _Exec:
        raise
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(status & 0xFF)


def _in_place(path: str, argv: list[str]) -> NoReturn:
    """Stand in for `os.execvp` where the program is known to be one of ours."""
    raise _Exec(path if os.path.dirname(path) else str(Path(sys.executable).parent / path), argv)


def _own_server(tid: int) -> socket.socket:
    """Start a server for the programs that this one starts, while it has no threads."""
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        return ours
    ours.close()
    _show([SERVER])
    request = serve(theirs, tid)
    if request is None:
        os._exit(0)
    become(request, tid)
    raise SystemExit


def _fork_sibling(tid: int) -> int:
    """Fork a child of this process's parent. Returns its PID, 0 in the child itself, or a negative errno."""
    flags = _CLONE_PARENT | _CLONE_SETTID | _CLONE_CLEARTID | signal.SIGCHLD
    pointer, none = ctypes.c_void_p(tid), ctypes.c_void_p()
    last = (pointer, none) if platform.machine() == "x86_64" else (none, pointer)
    _libc.syscall.restype = ctypes.c_long
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _libc.syscall(ctypes.c_long(_SYS_CLONE[platform.machine()]), ctypes.c_ulong(flags), none, none, *last)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
    else:
        ctypes.pythonapi.PyOS_AfterFork_Parent()
    return pid if pid >= 0 else -ctypes.get_errno()


def _tid_pointer() -> int | None:
    """Where the C library keeps the ID of the main thread, which a fork that it does not know of must set."""
    _libc.pthread_self.restype = ctypes.c_void_p
    start = _libc.pthread_self()
    own = threading.get_native_id()
    found = [at for at in range(0, 1024, 4) if ctypes.c_int.from_address(start + at).value == own]
    return start + found[0] if len(found) == 1 else None


def _import_all() -> None:
    import gc
    import importlib
    import pkgutil
    import warnings

    import components
    import pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for package in (pipeline, components):
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                if not module.name.endswith(".__main__"):
                    importlib.import_module(module.name)
        for name in ("lightning.pytorch.cli", "torch.distributed.run", "torch.utils.tensorboard", "torchmetrics"):
            importlib.import_module(name)
        for name in ("obstore", "s3fs"):
            with suppress(ImportError):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()


@cache
def _arguments() -> tuple[int, int]:
    """Where the command line of this process stands in its memory; the forks have that in common."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[45]), int(fields[46])


def _show(argv: list[str]) -> None:
    """Show a command line in /proc/self/cmdline, as far as there is room; without the right to cut, NULs follow it."""
    start, end = _arguments()
    text = b"\0".join(map(os.fsencode, argv))[: end - start - 1] + b"\0"
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, text, len(text))


def _signals() -> list[int]:
    never = {signal.SIGKILL, signal.SIGSTOP}
    return sorted(int(number) for number in signal.valid_signals() - never)


def _received(channel: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = channel.recv(count - len(data))
        if not more:
            raise ConnectionResetError("the fork server has ended")
        data += more
    return data
