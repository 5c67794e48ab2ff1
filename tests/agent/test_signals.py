"""Signals to an agent set a flag, and are forwarded as what asks workers to save."""

import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.agent.signals import STOP_SIGNALS, Signals, StopRequested, forwarded


@pytest.fixture
def listening() -> Iterator[Signals]:
    numbers = [getattr(signal, name) for name in STOP_SIGNALS]
    before = [signal.getsignal(number) for number in numbers]
    signals = Signals()
    signals.listen([*STOP_SIGNALS, "SIGNOTHERE"])
    yield signals
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_signals_are_kept_in_their_order_and_the_first_one_is_named(listening: Signals) -> None:
    listening.check()
    os.kill(os.getpid(), signal.SIGUSR1)
    first = listening.first
    os.kill(os.getpid(), signal.SIGINT)
    assert listening.received == [signal.SIGUSR1, signal.SIGINT]
    assert (listening.name(), listening.interrupted, listening.first) == ("SIGUSR1", True, first)
    with pytest.raises(StopRequested):
        listening.check()


def test_all_but_ctrl_c_are_forwarded_as_sigterm() -> None:
    assert [forwarded(getattr(signal, name)) for name in STOP_SIGNALS] == [
        signal.SIGTERM,
        signal.SIGINT,
        *[signal.SIGTERM] * 3,
    ]
