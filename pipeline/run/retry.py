"""Wait for a storage that is away: the one place where a start retries, whatever it reads or writes."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from pipeline.errors import StorageAway, chain
from pipeline.process import patience
from pipeline.run.storage_errors import describe_outage, is_away, raise_for_user

log = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 10.0
_BETWEEN_LINES = 30.0
_BETWEEN_CHECKS = 0.2

T = TypeVar("T")
P = ParamSpec("P")


def patiently(what: str, call: Callable[[], T], undo: Callable[[], None] = lambda: None) -> T:
    """Call a function until it does not fail by an outage, as long as this thread's patience lasts.

    Args:
        what: What does not answer, for the log, such as `run_dir='s3://b/x'`.
        call: The function; may be called again after any of its errors that means an outage.
        undo: Called before it is called again.

    Raises:
        StorageAway: The outage outlasts the patience.
        Exception: Any other error of the function; an outage's, too, in a thread without patience.
    """
    bound = patience.current()
    if bound is None:
        return call()
    began, wait, said = time.monotonic(), _FIRST_PAUSE, 0.0
    while True:
        try:
            with _reported(what, began):
                result = call()
        except Exception as error:
            if not is_away(error) or any(isinstance(each, StorageAway) for each in chain(error)):
                raise
            now = time.monotonic()
            left = began + bound.seconds - now
            if left <= 0:
                raise StorageAway(
                    f"{what} has not answered for {bound.seconds:g} s (--away_limit): {describe_outage(error)}. Is its "
                    "address right, and is it up?"
                ) from error
            if not said or now - said >= _BETWEEN_LINES:
                log.warning(
                    "%s does not answer, retrying for another %.0f s (--away_limit): %s",
                    what,
                    left,
                    describe_outage(error),
                )
                said = now
        else:
            if said:
                log.info("%s answers again after %.0f s", what, time.monotonic() - began)
            return result
        undo()
        # With jitter: all jobs of a cluster see the same outage end.
        _sleep(min(left, wait * patience.JITTER.uniform(0.5, 1.0)), bound.check)
        wait = min(2 * wait, _LONGEST_PAUSE)


@contextmanager
def _reported(what: str, began: float) -> Iterator[None]:
    """Log now and then that a call is under way: a client may hang for minutes within one request, and say nothing."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(_BETWEEN_LINES):
            log.warning("still waiting for %s after %.0f s", what, time.monotonic() - began)

    threading.Thread(target=report, name="waiting", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def patient(method: Callable[Concatenate[Any, str, P], T]) -> Callable[Concatenate[Any, str, P], T]:
    """Have a method of a run directory called patiently, with the name of its file or folder as the first argument.

    Its effect must be the same when it is repeated. What the storage refuses meanwhile is the user's to change; without
    patience each error passes through, for whoever saves to judge.
    """

    @wraps(method)
    def retried(self: Any, name: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        what = f"run_dir={self.label!r}"
        try:
            return patiently(what, lambda: method(self, name, *args, **kwargs))
        except FileNotFoundError:
            raise
        except OSError as error:
            if patience.current() is None or is_away(error):
                raise
            verb = "written" if method.__name__ in ("write", "create") else "read"
            raise_for_user(
                error, f"{what}: {name} cannot be {verb}", "Fix this user's permissions or credentials there"
            )

    return retried


def pause(seconds: float) -> None:
    """Sleep, unless this process is asked to stop, as this thread's patience knows."""
    bound = patience.current()
    _sleep(seconds, (lambda: None) if bound is None else bound.check)


def _sleep(seconds: float, check: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, _BETWEEN_CHECKS))
    check()
