"""Starts a worker that dies with its agent, even where the agent is killed by SIGKILL.

    python -I -S pipeline/agent/pdeathsig.py <pid of the agent> <program> <arguments...>

The kernel is asked to kill this process when the thread that started it ends; the program that takes its place inherits
that. Only Linux has it; elsewhere this just starts the program. Run by path and by the standard library alone, so that
it costs a worker a few milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the program. Ends with 137 where the agent is gone already, with 2 where there is no such program."""
    agent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The agent may have ended before the kernel was asked.
    if os.getppid() != agent:
        os._exit(128 + signal.SIGKILL)
    try:
        os.execvp(program[0], program)  # noqa: S606 - no shell is meant
    except OSError as error:
        print(f"error: {program[0]!r} cannot be started: {error.strerror}", file=sys.stderr)  # noqa: T201
        os._exit(2)


if __name__ == "__main__":
    main()
