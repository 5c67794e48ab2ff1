"""How often to save: the formula against brute force, on simulated failures."""

import random

import pytest

from pipeline.run.checkpoint_interval import Costs, advice, duration, interval, lost

CASES = [(0.02, 600.0, 8.0), (1.0, 3600.0, 30.0), (30.0, 3600.0, 120.0), (20.0, 200.0, 10.0)]


@pytest.mark.parametrize(("stop", "mtbf", "restart"), CASES)
def test_no_other_interval_loses_noticeably_less(stop: float, mtbf: float, restart: float) -> None:
    best = interval(stop, mtbf)
    found = lost(best, stop, mtbf, restart)
    others = [lost(best * 1.02**power, stop, mtbf, restart) for power in range(-150, 150)]
    assert found <= min(others) * 1.01 + 1e-4


@pytest.mark.parametrize(("stop", "mtbf", "restart"), CASES[1:])
def test_what_is_lost_is_what_a_simulated_run_loses(stop: float, mtbf: float, restart: float) -> None:
    chance = random.Random(5)
    for every in (interval(stop, mtbf), 3 * interval(stop, mtbf)):
        useful = wall = 0.0
        failure = chance.expovariate(1 / mtbf)
        for _ in range(40_000):
            segment = every + stop
            while failure < segment:
                wall += failure
                # A failure in a restart begins the restart anew.
                failure = chance.expovariate(1 / mtbf)
                while failure < restart:
                    wall += failure
                    failure = chance.expovariate(1 / mtbf)
                wall += restart
                failure -= restart
            wall += segment
            failure -= segment
            useful += every
        assert 1 - useful / wall == pytest.approx(lost(every, stop, mtbf, restart), rel=0.05)


def test_it_is_young_s_square_root_where_stops_are_short_and_never_shorter_than_an_upload() -> None:
    assert interval(0.5, 10_000) == pytest.approx((2 * 0.5 * 10_000) ** 0.5, rel=0.01)
    assert interval(0.02, 600.0, behind=90.0) == 90.0
    assert interval(0.0, 600.0) == 1.0, "a save costs more than its stop"
    assert interval(500.0, 100.0) == 100.0
    assert lost(1e9, 1.0, 10.0, 1.0) == 1.0


def test_it_is_said_with_what_it_rests_on() -> None:
    costs = Costs(stop=0.5, behind=4.0, restart=20.0, interval=1800.0, wall=7200.0, failures=2)
    text = advice(costs)
    assert text.startswith("saving every 1 min 00 s would lose least, ")
    assert "stops training for 0.5 s and takes 4 s behind it, a restart takes 20 s" in text
    assert "one failure in 1 h 00 min (2 seen)" in text
    assert "it is saved every 30 min 00 s now, which loses " in text
    given = advice(costs, mtbf_hours=100.0)
    assert "saving every 10 min" in given
    assert "(as given)" in given
    assert "one failure in 24 h 00 min (assumed: none was seen)" in advice(
        Costs(stop=0.5, behind=4.0, restart=20.0, interval=None, wall=7200.0, failures=0)
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0213, "0.021 s"),
        (9.0, "9 s"),
        (12.4, "12 s"),
        (59.7, "1 min 00 s"),
        (200.0, "3 min 20 s"),
        (3599.8, "1 h 00 min"),
        (7500.0, "2 h 05 min"),
    ],
)
def test_durations_are_read_by_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
