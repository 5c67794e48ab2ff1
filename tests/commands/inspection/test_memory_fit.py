"""Whether a training fits is arithmetic on a measured step, and the largest batch is one that would."""

from typing import Any

import pytest

from pipeline.commands.inspection.asked_devices import AskedDevices
from pipeline.commands.inspection.memory_fit import USABLE, MemoryFit
from pipeline.training.inspection.step_measurement import StepFacts


def step(**more: Any) -> StepFacts:
    """300 bytes that stay, 100 for each of ten samples."""
    facts = {"batch_size": 10, "weights": 50, "gradients": 50, "optimizer": 200, "peak": 1300, "buckets": 50}
    return StepFacts("cpu", "32-true", **{**facts, **more})


def fit(memory: int | None, world_size: int = 1, shares: bool = True, **more: Any) -> MemoryFit:
    return MemoryFit.of(step(**more), AskedDevices("cpu", world_size, 1, memory, "here", shares))


@pytest.mark.parametrize(("memory", "fits"), [(2000, True), (1445, True), (1444, False), (1300, False)])
def test_a_share_of_the_memory_is_left_to_the_device(memory: int, fits: bool) -> None:
    found = fit(memory)
    assert (found.fits, found.needed, found.usable) == (fits, 1300, int(memory * USABLE))


def test_the_largest_batch_would_fit_and_a_tenth_more_would_not() -> None:
    found = fit(100_000)
    assert found.largest_batch == 890  # (90,000 - 300) / 100
    assert fit(100_000, batch_size=890, peak=300 + 890 * 100).fits
    assert not fit(100_000, batch_size=980, peak=300 + 980 * 100).fits


def test_no_batch_fits_where_the_weights_do_not() -> None:
    found = fit(300)
    assert (found.fits, found.largest_batch) == (False, 0)


@pytest.mark.parametrize(("world_size", "shares", "buckets"), [(1, False, 0), (8, True, 0), (8, False, 50)])
def test_buckets_take_memory_where_gradients_are_not_views_of_them(world_size: int, shares: bool, buckets: int) -> None:
    found = fit(10_000, world_size, shares)
    assert (found.buckets, found.needed) == (buckets, 1300 + buckets)


def test_what_a_gpu_was_seen_to_take_counts_where_it_is_more() -> None:
    assert fit(10_000, allocated=1500).needed == 1500
    assert fit(10_000, allocated=1200).needed == 1300


def test_what_is_not_known_is_not_guessed() -> None:
    assert fit(None).fits is None
    assert fit(None).largest_batch is None
    assert fit(10_000, peak=None) == MemoryFit(None, 9000, 0, None, None)
    assert fit(10_000, batch_size=None).fits is True
    assert fit(10_000, batch_size=None).largest_batch is None
