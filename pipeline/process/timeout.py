"""A limit on a call that may never return: a stopped server, a full store and a lost network answer nothing."""

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def within(seconds: float, call: Callable[[], _T], name: str) -> _T | None:
    """Return what a call returns within a limit; None if it has not returned, and is left running.

    Args:
        seconds: The limit.
        call: Must not raise.
        name: Of its thread.
    """
    returned: list[_T] = []
    thread = threading.Thread(target=lambda: returned.append(call()), name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    return returned[0] if returned else None
