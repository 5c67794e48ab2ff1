"""A call that never returns is left running after its limit."""

import threading

from pipeline.process.timeout import within


def test_what_returns_in_time_is_returned() -> None:
    assert within(30, lambda: 7, "quick") == 7


def test_what_does_not_return_in_time_is_none() -> None:
    never = threading.Event()
    assert within(0.05, never.wait, "stuck") is None
    never.set()
