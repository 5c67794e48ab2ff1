"""Signals to an agent set a flag, and are forwarded as what asks workers to save."""

import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.agent.signals import STOP_SIGNALS, Signals, StopRequested


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
    assert (listening.name(), listening.interrupted, listening.first) == ("SIGUSR1", False, first)
    with pytest.raises(StopRequested):
        listening.check()


def test_a_signal_to_all_processes_of_a_node_which_is_also_forwarded_counts_once(
    listening: Signals,
) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert listening.received == [signal.SIGUSR1]
    listening.first -= 1.5
    os.kill(os.getpid(), signal.SIGTERM)
    assert listening.received == [signal.SIGUSR1, signal.SIGTERM], "somebody insists"


@pytest.mark.parametrize(
    ("received", "forwarded"),
    [
        ((signal.SIGUSR1,), signal.SIGTERM),
        ((signal.SIGINT,), signal.SIGINT),
        ((signal.SIGTERM, signal.SIGINT), signal.SIGTERM),
        ((signal.SIGINT, signal.SIGTERM), signal.SIGINT),
    ],
)
def test_the_first_signal_says_whether_workers_save(
    listening: Signals, received: tuple[int, ...], forwarded: int
) -> None:
    for number in received:
        os.kill(os.getpid(), number)
    assert listening.forwarded() == forwarded
    assert listening.interrupted == (forwarded == signal.SIGINT)
