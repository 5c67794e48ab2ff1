"""What keeps samples from being one batch is named: which samples, which field, what they hold."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from pipeline.data.batch_problem import misfits

BASE: dict[str, Any] = {"x": torch.zeros(3, 4), "y": 1, "name": "a"}


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (
            {"x": torch.zeros(3, 5)},
            "field 'x': sample 30 has a tensor of float32 (3, 5), but sample 10 has a tensor of float32 (3, 4)",
        ),
        ({"x": np.zeros((3, 4))}, "sample 30 has an array of float64 (3, 4)"),
        ({"y": None}, "field 'y': sample 30 has nothing (None), but sample 10 has a number"),
        ({"y": "b"}, "field 'y': sample 30 has a str, but sample 10 has a number"),
    ],
)
def test_the_sample_that_is_otherwise_is_named(odd: dict[str, Any], words: str) -> None:
    samples = [BASE, BASE, {**BASE, **odd}, BASE]
    with pytest.raises(Exception):  # noqa: B017, PT011 - torch's own, of any kind
        default_collate(samples)
    found = misfits(samples, [10, 20, 30, 40])
    assert found is not None
    assert words in found
    assert "--data.collate_fn=<import path>" in found


def test_a_field_that_some_lack_and_lists_of_other_lengths_are_named() -> None:
    found = misfits([{"x": 1}, {"x": 1, "z": 2}, {"x": 1, "z": 2}], [7, 8, 9])
    assert found is not None
    assert "field 'z': sample 7 lacks it, but sample 8 has a number" in found
    found = misfits([[[1, 2, 3], 0], [[1, 2], 0], [[1, 2, 3], 0]], None)
    assert found is not None
    assert "sample 1 has an array of int64 (2,), but sample 0 has an array of int64 (3,)" in found


def test_what_no_batch_is_made_of_is_named_by_its_type() -> None:
    found = misfits([{"x": object()}] * 3, [0, 1, 2])
    assert found is not None
    assert "field 'x' is an object in all samples" in found


def test_many_are_counted_and_samples_that_fit_are_no_problem() -> None:
    found = misfits([torch.zeros(at) for at in (1, *range(2, 12), 1)], list(range(12)))
    assert found is not None
    assert "the sample: sample 1 has" in found
    assert "and 6 more, but sample 0" in found
    assert misfits([BASE, BASE], [0, 1]) is None
