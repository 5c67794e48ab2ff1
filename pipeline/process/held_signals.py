"""Requests to stop that come while a program starts: imported first, and so with as few modules as can be."""

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""SIGUSR1 is sent by Slurm some time before the end of a job, SIGHUP by a terminal that is closed."""


def hold_signals() -> None:
    """Have the kernel keep requests to stop until handlers are installed: by default each kills the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def take_held_signals() -> None:
    """Have the handlers called, from now on, and for what has been kept."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
