"""What samples consist of is told field by field, whatever a sample is made of."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pipeline.data.sample_fields import SampleFields, leaves, spread


def facts(*samples: Any) -> dict[str, dict[str, Any]]:
    """What is found in some samples, by field, having gone through JSON."""
    found = SampleFields()
    for sample in samples:
        found.add(sample)
    assert found.samples == len(samples)
    return {each.pop("field"): each for each in json.loads(json.dumps(found.facts()))}


def test_ranges_are_those_of_finite_numbers_and_the_others_are_counted() -> None:
    x = torch.tensor([1.0, float("nan"), -3.0, float("inf")], dtype=torch.bfloat16)
    assert facts((x, 1), (x, 2))["[0]"] == {
        "type": "tensor",
        "samples": 2,
        "dtype": "bfloat16",
        "shape": [4],
        "min": -3.0,
        "max": 1.0,
        "mean": -1.0,
        "nan": 2,
        "inf": 2,
    }


def test_a_field_without_any_finite_number_has_no_range() -> None:
    found = facts({"x": torch.full((2,), float("nan"))})["x"]
    assert found["nan"] == 2
    assert "min" not in found


def test_labels_are_counted_by_class() -> None:
    found = facts(*((torch.zeros(2), torch.tensor(label)) for label in (3, 1, 3, 0)))["[1]"]
    assert (found["classes"], found["distinct"]) == ({"0": 1, "1": 1, "3": 2}, 3)
    assert facts(*(True, False, True))[""]["classes"] == {"False": 1, "True": 2}
    assert facts(*(np.int16(-5), np.int16(7)))[""]["classes"] == {"-5": 1, "7": 1}


def test_a_mask_is_counted_pixel_by_pixel_and_floating_point_numbers_have_no_classes() -> None:
    assert facts(np.array([[0, 1], [1, 1]], np.uint8))[""]["classes"] == {"0": 1, "1": 3}
    assert "classes" not in facts(torch.zeros(3), torch.zeros(3))[""]


def test_too_many_values_are_no_classes() -> None:
    assert "classes" not in facts(torch.arange(5000))[""]
    assert "classes" not in facts(torch.arange(3000) - 1, torch.arange(3000, 6000))[""]


def test_dimensions_that_vary_are_told_with_their_bounds() -> None:
    assert facts(torch.zeros(3, 28, 5), torch.zeros(3, 512, 5), torch.zeros(3, 30, 5))[""]["shape"] == [3, [28, 512], 5]
    assert facts(torch.zeros(3), torch.zeros(3, 1))[""]["shape"] == "1 to 2 dimensions"


def test_texts_have_lengths_and_values() -> None:
    found = facts({"name": "cat"}, {"name": "horse"}, {"name": "cat"})["name"]
    assert (found["type"], found["length"], found["classes"]) == ("str", [3, 5], {"cat": 2, "horse": 1})


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Boxed:
    corner: Any
    name: str


@pytest.mark.parametrize(
    ("sample", "paths"),
    [
        (torch.zeros(1), [""]),
        ((1, {"x": 2, "y": [3, {"z": "a"}]}), ["[0]", "[1].x", "[1].y[0]", "[1].y[1].z"]),
        (Pair(1, Boxed(torch.zeros(2), "b")), ["left", "right.corner", "right.name"]),
        ({"boxes": [torch.zeros(4)] * 9}, ["boxes[*]"] * 9),
        ({"tokens": [5, 6, 7]}, ["tokens"]),
        ({"empty": [], "none": None}, ["empty", "none"]),
    ],
)
def test_every_field_of_a_nested_sample_has_a_path(sample: Any, paths: list[str]) -> None:
    assert [path for path, _ in leaves(sample)] == paths


def test_a_sample_that_holds_itself_comes_to_an_end() -> None:
    sample: dict[str, Any] = {}
    sample["self"] = sample
    assert len(list(leaves(sample))) == 1


def test_a_field_that_some_samples_lack_says_in_how_many_it_is() -> None:
    found = facts({"x": 1, "boxes": [None] * 9}, {"x": None}, {"y": object()})
    assert (found["x"]["samples"], found["x"]["type"]) == (2, "int or None")
    assert found["boxes[*]"]["samples"] == 1
    assert found["y"]["type"] == "object"


@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64), b"ab", {1, 2}])
def test_what_has_no_range_is_named_all_the_same(value: Any) -> None:
    assert facts(value)[""]["samples"] == 1


@pytest.mark.parametrize(("size", "count"), [(100, 7), (100, 100), (5, 9), (1, 1), (0, 4), (10, 1), (9, 0), (10**9, 3)])
def test_indices_are_spread_over_the_whole_set_without_repeats(size: int, count: int) -> None:
    found = spread(size, count)
    assert len(found) == len(set(found)) == min(size, count)
    if count > 1 and size:
        assert (found[0], found[-1]) == (0, size - 1)
        steps = np.diff(found)
        assert not len(steps) or steps.max() - steps.min() <= 1
