"""A limit on a call that may never return: a stopped server, a full store and a lost network answer nothing."""

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def within(seconds: float, call: Callable[[], _T], name: str) -> _T | None:
    """Return what a call returns within a limit; None if it has not returned, and is left running.

    Args:
        seconds: The limit.
        call: Runs in a thread of its own.
        name: Of that thread.

    Raises:
        Exception: What the call raises within the limit.
    """
    returned: list[_T] = []
    raised: list[Exception] = []

    def run() -> None:
        try:
            returned.append(call())
        except Exception as error:  # noqa: BLE001 - for the thread that waits
            raised.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return returned[0] if returned else None
