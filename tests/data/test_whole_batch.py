"""Whole batches are joined as their samples would be."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.whole_batch import joined, rows


@pytest.mark.parametrize(
    "make",
    [
        torch.tensor,
        lambda at: (torch.tensor(at), np.array(at) * 2),
        lambda at: {"x": torch.tensor(at), "name": [str(each) for each in at]},
        list,
    ],
)
def test_the_rows_of_several_batches_stand_where_they_belong(make: Any) -> None:
    found = joined([make([4, 0]), make([2]), make([1, 3])], np.array([4, 0, 2, 1, 3]))
    assert type(found) is type(make([0]))
    assert str(rows(found)) == str(rows(make([0, 1, 2, 3, 4])))


@pytest.mark.parametrize(
    "other",
    [
        torch.ones(2, 3),
        torch.ones(2, dtype=torch.int64),
        np.ones(2),
        [1.0, 2.0],
        (torch.ones(2),),
        {"x": torch.ones(2)},
    ],
)
def test_batches_of_different_kinds_are_a_list_of_their_samples(other: Any) -> None:
    found = joined([torch.zeros(1), other], np.array([1, 0, 2]))
    assert isinstance(found, list)
    assert len(found) == 3
    assert str(found[1]) == "tensor(0.)"
