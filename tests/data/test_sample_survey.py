"""Samples are read as a training reads them, and what fails is named; nothing else changes."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from pipeline.data.sample_survey import survey, survey_stream
from pipeline.data.seeded import SeededDataset
from tests.support.models import Indexed, Noisy


class FailsAt(Dataset[Any]):
    """Some of its samples cannot be read."""

    def __init__(self, *indices: int, size: int = 100) -> None:
        self.indices, self.size = indices, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Any:
        if index in self.indices:
            raise ValueError(f"row {index} is torn")
        return {"index": index}


def test_samples_are_spread_over_the_set_and_the_first_ones_are_kept() -> None:
    found = survey(Indexed(1001), count=11, shown=3)
    field = found.fields.facts()[0]
    assert (field["min"] < 0, field["max"], found.fields.samples, found.whole) == (True, 1000.0, 11, False)
    assert sorted(found.first) == [0, 1, 2]
    assert [sample[0][0].item() for sample in found.first.values()] == [0, 1, 2]


def test_a_small_set_is_read_whole() -> None:
    found = survey(Indexed(5), count=1000, shown=8)
    assert (found.fields.samples, found.whole, len(found.first)) == (5, True, 5)


def test_a_sample_that_fails_is_named_and_the_others_count() -> None:
    found = survey(FailsAt(17, 60), count=100, shown=1)
    assert list(found.failures) == [17, 60]
    assert "raised by FailsAt[17]" in found.failures[17].__notes__
    assert found.fields.samples == 98


def test_a_set_of_which_nothing_can_be_read_is_given_up_soon() -> None:
    found = survey(FailsAt(*range(100)), count=100, shown=1)
    assert found.tried == len(found.failures) < 20


def test_augmented_samples_are_those_of_the_first_epoch_and_random_numbers_stay() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    found = survey(Noisy(20), count=20, shown=2, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    trained_on = SeededDataset(Noisy(20), 3)
    assert torch.equal(found.first[1][0], trained_on[1][0])


def test_an_empty_set_has_no_samples_and_fails_at_none() -> None:
    found = survey(Indexed(0), count=10, shown=3)
    assert (found.tried, found.failures, found.first, found.whole) == (0, {}, {}, True)


@pytest.mark.parametrize(("count", "whole"), [(3, False), (10, True)])
def test_of_a_stream_the_first_samples_are_read(count: int, whole: bool) -> None:
    found = survey_stream(range(7), count, shown=2)
    assert (found.tried, found.whole, found.first) == (min(count, 7), whole, {0: 0, 1: 1})


def test_a_stream_that_fails_says_at_which_sample() -> None:
    def stream() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the feed is torn")

    found = survey_stream(stream(), 10, shown=5)
    assert (list(found.failures), found.fields.samples) == ([2], 2)
