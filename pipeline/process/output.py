"""What this process prints, also where its terminal or the reader of its pipe is gone: nothing fails for that."""

import os
import select
import sys
from contextlib import suppress
from typing import TextIO

from pipeline.process import log_format

_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


def print_line(text: str, stream: TextIO | None = None, level: str = "info", logger: str = "pipeline") -> None:
    """Print a line at once, to stderr by default; where nobody can read it any more, it is dropped.

    Args:
        text: What it says.
        stream: Where; None: stderr.
        level: Of a line for machines.
        logger: Who says it there.
    """
    if log_format.OWN.is_json:
        text = log_format.json_line(text, level, logger)
    try:
        print(text, file=stream or sys.stderr, flush=True)
    except (OSError, ValueError, RuntimeError):  # the last one from within a signal handler
        drop_lost_output()


def drop_lost_output() -> None:
    """Send stdout and stderr to /dev/null where their terminal or reader is gone.

    Otherwise whatever prints next, the user's code or Python's own end, fails with EIO or EPIPE in mid-save.
    """
    for fd in (1, 2):
        lost = select.poll()
        lost.register(fd, 0)
        with suppress(OSError):
            if any(event & _GONE for _, event in lost.poll(0)):
                null = os.open(os.devnull, os.O_WRONLY)
                if null != fd:
                    os.dup2(null, fd)
                    os.close(null)


def flush_output() -> None:
    """Flush stdout and stderr before a process ends; Python itself would end it with status 120 where that fails."""
    drop_lost_output()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
