"""A call that never returns is left running after its limit."""

import threading

import pytest

from pipeline.process.timeout import within


def test_what_returns_in_time_is_returned() -> None:
    assert within(30, lambda: 7, "quick") == 7


def test_what_does_not_return_in_time_is_none() -> None:
    never = threading.Event()
    assert within(0.05, never.wait, "stuck") is None
    never.set()


def test_what_it_raises_in_time_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 // 0, "wrong")
