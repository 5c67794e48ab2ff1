"""A call that may never come back: a stopped server, a full store and a lost network answer nobody."""

import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def within(seconds: float, do: Callable[[], _T], name: str) -> _T | None:
    """What a call returns within a limit; None where it has not come back, and is left behind.

    Args:
        seconds: The limit.
        do: The call, which raises nothing.
        name: Of its thread.
    """
    returned: list[_T] = []
    thread = threading.Thread(target=lambda: returned.append(do()), name=name, daemon=True)
    thread.start()
    thread.join(seconds)
    return returned[0] if returned else None
