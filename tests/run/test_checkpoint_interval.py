"""How often to save: the formula against brute force, on simulated failures."""

import random

import pytest

from pipeline.run.checkpoint_interval import RunCosts, compare, duration, lost_share, optimal_interval, suggest

CASES = [(0.02, 600.0, 8.0), (1.0, 3600.0, 30.0), (30.0, 3600.0, 120.0), (20.0, 200.0, 10.0)]


@pytest.mark.parametrize(("stop", "mtbf", "restart"), CASES)
def test_no_other_interval_loses_noticeably_less(stop: float, mtbf: float, restart: float) -> None:
    best = optimal_interval(stop, mtbf)
    found = lost_share(best, stop, mtbf, restart)
    others = [lost_share(best * 1.02**power, stop, mtbf, restart) for power in range(-150, 150)]
    assert found <= min(others) * 1.01 + 1e-4


@pytest.mark.parametrize(("stop", "mtbf", "restart"), CASES[1:])
def test_what_is_lost_is_what_a_simulated_run_loses(stop: float, mtbf: float, restart: float) -> None:
    chance = random.Random(5)
    for every in (optimal_interval(stop, mtbf), 3 * optimal_interval(stop, mtbf)):
        useful = wall = 0.0
        failure = chance.expovariate(1 / mtbf)
        for _ in range(40_000):
            segment = every + stop
            while failure < segment:
                wall += failure
                # A failure in a restart starts the restart again.
                failure = chance.expovariate(1 / mtbf)
                while failure < restart:
                    wall += failure
                    failure = chance.expovariate(1 / mtbf)
                wall += restart
                failure -= restart
            wall += segment
            failure -= segment
            useful += every
        assert 1 - useful / wall == pytest.approx(lost_share(every, stop, mtbf, restart), rel=0.05)


def test_it_is_young_s_square_root_where_stops_are_short_and_never_shorter_than_an_upload() -> None:
    assert optimal_interval(0.5, 10_000) == pytest.approx((2 * 0.5 * 10_000) ** 0.5, rel=0.01)
    assert optimal_interval(0.02, 600.0, upload=90.0) == 90.0
    assert optimal_interval(0.0, 600.0) == 1.0, "a save costs more than its stop"
    assert optimal_interval(500.0, 100.0) == 100.0
    assert lost_share(1e9, 1.0, 10.0, 1.0) == 1.0


def test_it_is_said_with_what_it_rests_on() -> None:
    costs = RunCosts(pause=0.5, upload=4.0, restart=20.0, interval=1800.0, wall=7200.0, failures=2)
    text = suggest(costs)
    assert text.startswith("suggested checkpoint interval: 1 min 00 s (overhead ")
    assert "a save pauses training for 0.5 s and uploads for 4 s, a restart takes 20 s" in text
    assert "mean time between failures 1 h 00 min (2 seen)" in text
    assert "; current: 30 min 00 s (overhead " in text
    assert compare(costs) == "1 min 00 s (now 30 min 00 s)"
    given = suggest(costs, mtbf_hours=100.0)
    assert "interval: 10 min" in given
    assert "(given)" in given
    assert "mean time between failures 24 h 00 min (assumed, none seen)" in suggest(
        RunCosts(pause=0.5, upload=4.0, restart=20.0, interval=None, wall=7200.0, failures=0)
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
