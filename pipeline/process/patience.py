"""How long this thread waits for what is away: a storage, a network, a peer.

A start waits, since nothing is lost by it. Training does not: it continues while its storage is away, and so do the
threads behind it, for a thread begins without patience.
"""

import argparse
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pipeline.errors import UserError

AWAY_LIMIT = 600.0
"""Seconds, where the user says nothing else."""
AWAY_LIMIT_HELP = (
    "Seconds that a start waits for a storage, a network or a peer that does not answer before it fails (and is "
    f"retried by its launcher). Default: {AWAY_LIMIT:g}."
)

JITTER = random.Random()  # noqa: S311 - no secret
"""Spreads retries. Of its own: the numbers of the global generator are the user's, and part of a run's state."""


@dataclass(frozen=True)
class Patience:
    """What a wait is bound by.

    Attributes:
        seconds: How long one outage is waited for.
        check: Called again and again meanwhile; raises if this process is to stop.
    """

    seconds: float = 0.0
    check: Callable[[], None] = lambda: None


_current: ContextVar[Patience | None] = ContextVar("patience", default=None)


def current() -> Patience | None:
    """Return what waits of this thread are bound by; None: it does not wait."""
    return _current.get()


@contextmanager
def patience(bound: Patience | None) -> Iterator[None]:
    """Let this thread wait within a `with` block for what is away."""
    token = _current.set(bound)
    try:
        yield
    finally:
        _current.reset(token)


def end() -> None:
    """Stop waiting in this thread: training begins."""
    _current.set(None)


def add_away_limit(parser: argparse.ArgumentParser) -> None:
    """Add the flag that bounds the waits of a start."""
    parser.add_argument("--away_limit", type=float, default=AWAY_LIMIT, help=AWAY_LIMIT_HELP)


def given_away_limit(arguments: Sequence[str]) -> float:
    """Return the seconds that a command line gives, before it is parsed: already its configuration is read somewhere.

    Raises:
        UserError: They are no number of seconds.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_away_limit(finder)
    try:
        seconds: float = finder.parse_known_args(arguments)[0].away_limit
    except argparse.ArgumentError as error:
        raise UserError(f"{error}: must be a number of seconds >= 0") from error
    if problem := away_limit_problem(seconds):
        raise UserError(problem)
    return seconds


def away_limit_problem(seconds: float) -> str:
    """Return what is wrong with a limit, "" for nothing."""
    return "" if 0 <= seconds < math.inf else f"away_limit={seconds:g} must be a number of seconds >= 0"
