"""A program that is forked of a warm server does as one that is started cold."""

import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT, Ended
from tests.support.forkserver import cold

WARM = "print(len(sys.modules) > 1000)"
STATEMENTS = [
    "",
    "print('out'); print('err', file=sys.stderr)",
    "print(sys.argv, sys.orig_argv, sys.executable, sys.path[0], __name__)",
    "import os; print(sorted(os.environ), os.getcwd())",
    "import os; print(os.getppid(), os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid())",
    "import os; print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))",
    "import os; print(os.isatty(0), sys.stdin.read())",
    "import signal; print([signal.getsignal(each) for each in range(1, 32)])",
    "sys.exit(75)",
    "sys.exit(300)",
    "sys.exit('a text')",
    "sys.exit()",
    "import os; os._exit(3)",
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "raise KeyboardInterrupt",
    "import atexit; atexit.register(print, 'at the end')",
    "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()",
    "import signal, threading; me = threading.main_thread().ident; "
    "signal.signal(signal.SIGUSR1, lambda *_: print('heard')); signal.pthread_kill(me, signal.SIGUSR1)",
]


def ended(statements: str, *flags: str, warm: bool = True, **named: Any) -> Ended:
    with nullcontext() if warm else cold():
        started = subprocess.run(  # noqa: PLW1510 - how it ends is what is tested
            [sys.executable, *flags, "-m", "tests.support.statements", statements, "more"],
            **{
                "cwd": ROOT,
                "env": dict(os.environ),
                "stdin": subprocess.DEVNULL,
                "capture_output": True,
                "text": True,
                **named,
            },
        )
    return Ended(started.returncode, started.stdout, started.stderr)


def test_it_is_warm() -> None:
    assert ended(WARM).out == "True\n"
    assert ended(WARM, warm=False).out == "False\n"


@pytest.mark.parametrize("statements", STATEMENTS)
@pytest.mark.parametrize("more", [{}, {"start_new_session": True}, {"env": {**os.environ, "MORE": "x"}}])
def test_it_starts_and_ends_like_a_cold_one(statements: str, more: dict[str, Any]) -> None:
    found, expected = ended(statements, **more), ended(statements, warm=False, **more)
    assert (found.status, found.out) == (expected.status, expected.out)
    assert found.err.splitlines()[-1:] == expected.err.splitlines()[-1:]


def test_an_exception_is_shown_with_its_traceback() -> None:
    found = ended("raise ZeroDivisionError('so')")
    assert found.status == 1
    assert found.err.startswith("Traceback (most recent call last):")
    assert found.err.endswith("ZeroDivisionError: so\n")


def test_a_signal_that_its_parent_ignores_is_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        assert ended("import os, signal; os.kill(os.getpid(), signal.SIGUSR1); print('lives')").out == "lives\n"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_other_flags_and_variables_of_imports_start_cold(tmp_path: Path) -> None:
    for flags, env in ((("-O",), {}), ((), {"OMP_NUM_THREADS": "3"}), ((), {"PYTHONPATH": str(tmp_path)})):
        assert ended(WARM, *flags, env={**os.environ, **env}).out == "False\n"
