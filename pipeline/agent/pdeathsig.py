"""Starts a worker that dies with its agent, even if the agent is killed by SIGKILL.

    python -I -S pipeline/agent/pdeathsig.py <pid of the agent> <program> <arguments...>

Asks the kernel to kill this process when the thread that started it ends, then becomes the program, which inherits
that. Only Linux supports it; elsewhere the program is just started. Run by path and with the standard library alone, so
that it costs a worker a few milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tied() -> tuple[str, ...]:
    """Return what goes before the command line of a process that is to die with the thread that starts it."""
    return sys.executable, "-I", "-S", __file__, str(os.getpid())


def main() -> None:
    """Become the program. Exits with 137 if the agent is gone already, with 2 if the program cannot be started."""
    agent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The agent may have died before the call.
    if os.getppid() != agent:
        os._exit(128 + signal.SIGKILL)
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is meant
    except OSError as error:
        print(f"error: {program[0]!r} cannot be started: {error.strerror}", file=sys.stderr)  # noqa: T201
        os._exit(2)


if __name__ == "__main__":
    main()
