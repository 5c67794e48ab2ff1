"""What data consist of reads well at 80 columns, whatever they are."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.commands.inspection.data_report import as_text
from pipeline.data.sample_survey import SampleSurvey
from pipeline.training.inspection.set_facts import DataQuestion, FirstBatches, SetFacts


def text(*samples: Any, **more: Any) -> str:
    survey = SampleSurvey(whole=True)
    for at, sample in enumerate(samples):
        survey.fields.add(sample)
        if at < 2:
            survey.first[at] = sample
    facts = SetFacts("train", "mine.Set", len(samples), survey=survey, **more)
    found = as_text([facts], DataQuestion(), ["A note."])
    assert found.endswith("\n\nA note.")
    assert max(map(len, found.splitlines())) <= 80
    return found


def test_columns_without_a_value_are_left_out() -> None:
    assert "NaN" not in text(torch.zeros(3))
    assert "NaN" in text(torch.tensor([float("nan"), 1.0]))
    assert " min " not in text("a", "b")


def test_classes_are_listed_and_many_values_are_counted() -> None:
    assert "2 classes: 0: 2, 1: 1" in text(0, 1, 0)
    assert "1 class: 5: 1" in text(5)
    assert "100 different values\n" in text(*range(100))
    assert "30 different values, most often 7: 3, " in text(*range(30), 7, 7)


def test_a_class_and_its_count_stand_on_one_line() -> None:
    found = text(*(f"class number {at}" for at in range(20)))
    assert all(f"class number {at}: 1" in found for at in range(20))


def test_a_field_that_some_lack_is_told() -> None:
    assert "y: in 1 of 2" in text({"x": 1, "y": 2}, {"x": 1})


def test_ranks_that_are_not_shown_are_counted() -> None:
    orders = [FirstBatches(0, rank, [[1, 2], [3]]) for rank in range(4)]
    found = text(1, world_size=64, batches=3, batch_size=2, first_batches=orders)
    assert "and so on: 60 more ranks" in found
    assert "3 of 2 samples on each of 64 ranks, in an epoch" in found
    assert "epoch 0 rank 3  1 2 | 3" in found


@pytest.mark.parametrize(
    "sample",
    [
        {"long": "word " * 100, "none": None, "bytes": b"\x00" * 50, "object": object(), "bool": True, "float": 1 / 3},
        torch.zeros(3, dtype=torch.complex64),
        torch.eye(3).to_sparse(),
        np.array(["a", "b"]),
        tuple(range(7)),
        {f"column {at}": torch.zeros(at) for at in range(30)},
        {"a very long name of a column that somebody chose to give": torch.tensor(-1234567.891)},
    ],
)
def test_samples_of_any_kind_have_a_line(sample: Any) -> None:
    assert "\n    0 " in text(sample)
