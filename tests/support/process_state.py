"""What a process has been given by whoever started it; and a program that shows it, cold or forked from a standby.

python -m tests.support.process_state show <file>
python -m tests.support.process_state exit <status>
python -m tests.support.process_state kill <signal>
"""

import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.process.held_signals import hold_signals

os.environ["SET_BY_AN_IMPORT"] = "1"
os.environ.pop("REMOVED_BY_AN_IMPORT", None)

_PR_GET_PDEATHSIG, _PR_GET_CHILD_SUBREAPER = 2, 37


def process_state() -> dict[str, Any]:
    """Everything about this process that a program, or who looks at it from outside, can tell."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    death, main = ctypes.c_int(), sys.modules["__main__"]
    ctypes.CDLL(None).prctl(_PR_GET_PDEATHSIG, ctypes.byref(death))
    umask = os.umask(0)
    os.umask(umask)
    return {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "command line": Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0"),
        "name": Path("/proc/self/comm").read_text(),
        "flags": repr(sys.flags),
        "options": dict(sys._xoptions),
        "path": sys.path,
        "executable": sys.executable,
        "main": [main.__name__, main.__file__, main.__spec__ and main.__spec__.name, sorted(vars(main))],
        "environment": dict(os.environ),
        "C environment": {name: _getenv(name) for name in ("RANK", "OMP_NUM_THREADS", "TORCHELASTIC_X")},
        "folder": os.getcwd(),
        "umask": umask,
        "limits": [resource.getrlimit(each) for each in limits],
        "priority": [os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), sorted(os.sched_getaffinity(0))],
        "out of memory": Path("/proc/self/oom_score_adj").read_text(),
        "cgroup": Path("/proc/self/cgroup").read_text(),
        "signals": {name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt", "ShdPnd", "SigPnd")},
        "handlers": [str(signal.getsignal(number)).partition(" at 0x")[0] for number in sorted(signal.valid_signals())],
        "session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
        "parent": os.getppid(),
        "dies with its parent": death.value,
        "adopts": ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(ctypes.c_int())),
        "files": {
            fd: os.fstat(int(fd)).st_mode for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/dev/fd/{fd}")
        },
        "streams": [
            [each.name, each.encoding, each.errors, each.line_buffering, each.isatty(), each.seekable()]
            for each in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "faulthandler": faulthandler.is_enabled(),
        "threads": [threading.current_thread() is threading.main_thread(), threading.main_thread().name],
        "main thread": threading.get_native_id() == os.getpid(),
    }


def _getenv(name: str) -> str | None:
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    found: bytes | None = libc.getenv(name.encode())
    return found.decode() if found is not None else None


def show(path: Path) -> None:
    """Write the state of this process to a file, whole at any moment."""
    path.with_suffix(".new").write_text(json.dumps(process_state()))
    path.with_suffix(".new").rename(path)


def main() -> None:
    """Do as the command line says."""
    what, value = sys.argv[1:]
    if what == "show":
        print("shown", flush=True)
        show(Path(value))
        time.sleep(60)
    elif what == "kill":
        os.kill(os.getpid(), int(value))
    sys.exit(int(value))


def stand_by() -> None:
    """As `python -m pipeline` does."""
    from pipeline.process import fork_server

    def import_all() -> Callable[[], None]:
        if sys.argv[1] == "thread":
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        if sys.argv[1] == "fail":
            raise RuntimeError("as the workers will say")
        if sys.argv[1] == "full":
            fork, own = os.fork, os.getpid()
            os.fork = lambda: fork() if os.getpid() == own else os.read(-1, 1)  # type: ignore[assignment, return-value]
        return lambda: None

    fork_server.serve(import_all)


if __name__ == "__main__":
    hold_signals()
    if "standby" in sys._xoptions:
        stand_by()
    main()
