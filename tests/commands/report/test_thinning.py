"""A thinned curve has few points, and every peak and every gap of the whole one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.report.thinning import CurveDigest, thinned


def test_a_million_points_keep_a_peak_of_one_of_them_and_both_ends() -> None:
    values = np.sin(np.arange(1_000_000) / 1e4)
    values[123_456], values[777_777] = 50.0, -50.0
    steps, shown = thinned(np.arange(len(values)), values, 2000)
    assert len(shown) <= 2100
    assert (max(v for v in shown if v is not None), min(v for v in shown if v is not None)) == (50.0, -50.0)
    assert steps[shown.index(50.0)] == 123_456
    assert (steps[0], steps[-1]) == (0, 999_999)


def test_what_is_not_finite_is_a_gap() -> None:
    values = np.ones(100_000)
    values[50_000] = math.nan
    values[70_000] = math.inf
    steps, shown = thinned(np.arange(len(values)), values, 300)
    assert [step for step, value in zip(steps, shown, strict=True) if value is None] == [50_000, 70_000]


def test_a_short_curve_is_shown_as_it_is() -> None:
    assert thinned(np.array([3, 1]), np.array([1.5, math.nan]), 10) == ([3, 1], [1.5, None])
    assert thinned(np.array([]), np.array([]), 10) == ([], [])


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=300), st.integers(4, 60))
def test_no_curve_loses_its_extremes(values: list[float], most: int) -> None:
    held = np.array(values, np.float64)
    steps, shown = thinned(np.arange(len(held)), held, most)
    assert steps == sorted(set(steps)), "in their order, each once"
    good = held[np.isfinite(held)]
    kept = [value for value in shown if value is not None]
    assert bool(kept) == bool(len(good))
    if len(good):
        assert (min(kept), max(kept)) == (good.min(), good.max())
    assert (None in shown) == (len(good) < len(held))
    assert len(shown) <= max(most + 2, 6)


def test_the_digest_of_a_curve_is_that_of_all_its_points() -> None:
    digest = CurveDigest.of(np.array([0, 10, 20, 30]), np.array([5.0, 1.0, math.nan, 3.0]))
    assert digest == CurveDigest(4, (3.0, 30.0), (1.0, 10.0), (5.0, 0.0), 1)
    assert CurveDigest.of(np.array([1]), np.array([math.inf])) == CurveDigest(1, None, None, None, 1)


@pytest.mark.parametrize("most", [4, 5, 7])
def test_the_fewest_points_are_possible(most: int) -> None:
    _, shown = thinned(np.arange(50), np.arange(50.0), most)
    assert (shown[0], shown[-1]) == (0.0, 49.0)
