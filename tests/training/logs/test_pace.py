"""Lines come every 10 s or 5 %, whichever is later, and at least every ten minutes."""

import time

import pytest

from pipeline.training.logs.pace import Pace


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def lines(clock: Clock, seconds: float, known: bool = True) -> list[float]:
    """The seconds at which lines are written of a run that takes so many."""
    pace, began, written = Pace(), clock.now, []
    while clock.now < began + seconds:
        clock.now += 0.5
        share = (clock.now - began) / seconds if known else None
        if pace.is_due(share):
            pace.mark(share)
            written.append(clock.now - began)
    return written


def test_a_run_of_a_minute_has_a_line_every_ten_seconds(clock: Clock) -> None:
    assert lines(clock, 60) == [10, 20, 30, 40, 50, 60]


def test_a_run_of_an_hour_has_one_every_five_percent(clock: Clock) -> None:
    assert lines(clock, 3600) == pytest.approx([180 * number for number in range(1, 21)], abs=1)


def test_a_run_of_days_has_one_every_ten_minutes(clock: Clock) -> None:
    assert lines(clock, 86_400) == [600 * number for number in range(1, 145)]


def test_where_the_length_is_not_known_they_become_seldom_with_time(clock: Clock) -> None:
    written = lines(clock, 7200, known=False)
    assert written[:3] == [10, 20, 30]
    assert 300 < written[-1] - written[-2] < 400
    assert len(written) < 100


def test_the_first_one_may_come_at_once(clock: Clock) -> None:
    pace = Pace(at_once=True)
    assert pace.is_due()
    pace.mark()
    assert not pace.is_due()
