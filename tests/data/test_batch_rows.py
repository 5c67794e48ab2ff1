"""Which samples a batch holds is told from the batch, not from what went into the collate function."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_sequence

from pipeline.data.batch_rows import described, given, holds, rows_of_parts

Pair = namedtuple("Pair", ["x", "y"])


@dataclass
class Columns:
    x: torch.Tensor
    name: str = "n"


class Custom:
    """An object of the user's own, as a graph library has them."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.itself = x, self


def rows(*counts: int) -> list[torch.Tensor]:
    return [torch.zeros(count, 2) for count in counts]


HOLD: list[tuple[Any, int]] = [
    (torch.zeros(3, 2), 3),
    (np.zeros(3), 3),
    (rows(3, 3), 3),
    ({"x": torch.zeros(3), "scale": torch.tensor(1.0), "names": ["a", "b", "c"], "classes": ["cat"]}, 3),
    (Columns(torch.zeros(3)), 3),
    (Pair(torch.zeros(3), None), 3),
    (Custom(torch.zeros(3)), 3),
    ([rows(3, 3), torch.zeros(3)], 3),  # two views and a label
    ((tuple(rows(4, 4)), ({"boxes": torch.zeros(5, 4)}, {"boxes": torch.zeros(0, 4)})), 2),  # a detector's
    (["a", "b", "c"], 3),
    (torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (3, 4)), 3),
    (torch.nested.nested_tensor(rows(1, 2, 3)), 3),
]
DO_NOT: list[tuple[Any, int]] = [
    (torch.zeros(2, 2), 3),
    (rows(1, 1), 2),  # two columns of one row
    ((tuple(rows(4)), ({"boxes": torch.zeros(5, 4)},)), 2),  # one of two images
    ({"x": torch.zeros(6), "y": torch.zeros(3)}, 3),
    ({"input_ids": torch.zeros(1, 30), "position_ids": torch.zeros(1, 30)}, 3),
    (pack_sequence(rows(4, 3, 2)), 3),
    (["a", "b"], 3),
    ("text", 4),
    (7, 1),
    (None, 1),
    ([], 0),
    (torch.tensor(1.0), 1),
]


@pytest.mark.parametrize(("batch", "samples"), HOLD)
def test_a_batch_with_a_row_for_each_sample_holds_them(batch: Any, samples: int) -> None:
    assert holds(batch, samples)
    assert given(batch, range(samples), range(samples)) == (list(range(samples)), None)


@pytest.mark.parametrize(("batch", "samples"), DO_NOT)
def test_a_batch_with_other_rows_or_none_does_not(batch: Any, samples: int) -> None:
    assert not holds(batch, samples)


def test_a_batch_that_holds_itself_is_none_that_can_be_told() -> None:
    batch: list[Any] = [torch.zeros(3)]
    batch.append(batch)
    assert not holds(batch, 3)
    assert rows_of_parts(batch) == []


def items(*lengths: int) -> list[Any]:
    return [None if length < 0 else torch.full((length,), float(length)) for length in lengths]


def test_samples_that_were_filtered_out_are_those_that_were_none() -> None:
    before = items(1, -1, 2, -1)
    made = pad_sequence([each for each in before if each is not None], batch_first=True)
    assert given(made, before, before) == ([0, 2], None)
    again = torch.cat([made, made])  # filled up with others, as a well-known recipe has it
    assert given(again, before, before) == ([0, 1, 2, 3], "a batch with 4 rows of 4 samples")


def test_a_list_that_was_sorted_or_shortened_in_place_says_which_samples_are_left() -> None:
    before = items(1, 3, 2)
    after = sorted(before, key=len, reverse=True)
    assert given(pad_sequence(after, batch_first=True), before, after) == ([1, 2, 0], None)
    assert given(pad_sequence(after[:2], batch_first=True), before, after[:2]) == ([1, 2], None)


def test_samples_that_were_not_collated_are_known_one_by_one() -> None:
    before = items(1, 3, 2)
    assert given([before[2], before[0]], before, before) == ([2, 0], None)
    assert given((before[1], before[1]), before, before) == ([1, 1], None)


def test_what_cannot_be_told_is_described() -> None:
    before = items(1, 3, 2)
    packed = {"ids": torch.cat(before)[None], "starts": torch.zeros(4)}
    assert given(packed, before, before) == ([0, 1, 2], "a batch whose parts have 1 and 4 rows of 3 samples")
    assert described("text") == "a str without rows"
    assert described(torch.zeros(1)) == "a batch with 1 row"
