"""Where the time of a step goes, on one rank."""

import time
from typing import Any

import pytest
import torch

from pipeline.training.telemetry.step_clock import StepClock, samples_in


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (torch.zeros(5, 3), 5),
        ([torch.zeros(4, 3), torch.zeros(4)], 4),
        ({"x": (torch.zeros(3, 2),), "name": ["a", "b", "c"]}, 3),
        (torch.tensor(1.0), 1),
        (["a", "b"], 0),
        ([], 0),
        (None, 0),
    ],
)
def test_the_first_tensor_of_a_batch_tells_its_samples(batch: Any, samples: int) -> None:
    assert samples_in(batch) == samples


def batch_of(clock: StepClock, optimizes: bool = True) -> None:
    clock.waits()
    time.sleep(0.004)
    clock.starts(torch.zeros(8, 2))
    time.sleep(0.008)
    if optimizes:
        clock.has_gradients()
        time.sleep(0.002)
    clock.ends()


def test_the_parts_of_steps_are_told_from_one_another() -> None:
    clock = StepClock()
    clock.reached(10)
    for step in (11, 12, 13):
        batch_of(clock)
        clock.reached(step)
    found = clock.take()
    assert (found.steps, found.samples) == (3, 24)
    assert found.data >= 3 * 0.004
    assert found.forward_backward >= 3 * 0.008
    assert found.optimizer >= 3 * 0.002
    assert found.p50 >= 0.014
    assert found.p50 <= found.p95 <= found.longest


def test_batches_that_are_accumulated_make_one_step() -> None:
    clock = StepClock()
    clock.reached(0)
    batch_of(clock, optimizes=False)
    clock.reached(0)
    batch_of(clock)
    clock.reached(1)
    found = clock.take()
    assert (found.steps, found.samples) == (1, 16)
    assert found.p50 >= 0.026


def test_what_lies_between_two_batches_counts_for_no_step() -> None:
    clock = StepClock()
    clock.reached(0)
    batch_of(clock)
    clock.reached(1)
    time.sleep(0.3)  # a validation, say
    batch_of(clock)
    clock.reached(2)
    assert clock.take().longest < 0.3


def test_a_window_begins_where_the_last_one_was_taken() -> None:
    clock = StepClock()
    clock.reached(0)
    batch_of(clock)
    clock.reached(1)
    clock.take()
    assert clock.take() == (0, 0, 0, 0, 0, 0, 0, 0)


def test_a_model_with_two_optimizers_makes_two_steps_of_a_batch() -> None:
    clock = StepClock()
    clock.reached(0)
    batch_of(clock)
    clock.reached(2)
    assert clock.take().steps == 2
