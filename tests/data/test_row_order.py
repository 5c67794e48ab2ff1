"""Rows that a collate function has put into another order than its samples' are told by their content, or said."""

import cProfile
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, default_collate

from pipeline.data.batch_rows import given
from pipeline.data.row_order import row_order
from pipeline.data.sample_ids import IdentifiedBatch, identified

Order = Callable[[list[Any]], list[Any]]

LENGTHS = (2, 5, 3, 1, 4)
TEXTS = [(torch.arange(length) + 10 * length, length % 2) for length in LENGTHS]
"""Tokens and a label that is not every sample's own."""

ORDERS: dict[str, Order] = {
    "sorted by length": lambda rows: sorted(rows, key=lambda row: len(row[0])),
    "longest first": lambda rows: sorted(rows, key=lambda row: -len(row[0])),
    "reversed": lambda rows: list(reversed(rows)),
    "shuffled": lambda rows: random.Random(3).sample(rows, len(rows)),
    "grouped by label": lambda rows: [row for label in (0, 1) for row in rows if row[1] == label],
    "as they came": list,
}


def padded(rows: list[Any], **how: Any) -> dict[str, Any]:
    ids = pad_sequence([row[0] for row in rows], batch_first=True, **how)
    return {"labels": torch.tensor([row[1] for row in rows]), "ids": ids, "lengths": [len(row[0]) for row in rows]}


@pytest.mark.parametrize("how", ORDERS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_collate_function_that_orders_a_copy_of_its_list_has_each_row_told(how: str, side: str) -> None:
    class Texts:
        def __len__(self) -> int:
            return len(TEXTS)

        def __getitem__(self, index: int) -> Any:
            return TEXTS[index]

    def collate(rows: list[Any]) -> Any:
        return padded(ORDERS[how](rows), padding_side=side)

    (batch,) = identified(DataLoader(Texts(), batch_size=5, collate_fn=collate))  # type: ignore[arg-type]
    assert isinstance(batch, IdentifiedBatch)
    assert batch.unknown is None
    assert [LENGTHS[index] for index in batch.indices] == batch.batch["lengths"]


@pytest.mark.parametrize("rows", [
    [{"x": torch.full((3, 4), float(at)), "y": at % 2} for at in range(4)],
    [(torch.full((2,), float(at)), {"boxes": torch.zeros(at + 1, 4)}) for at in range(4)],
    [f"text {at}" for at in range(4)],
    [[at, at + 1] for at in range(4)],
    list(range(4)),
])  # fmt: skip
def test_rows_of_any_kind_are_found_again(rows: list[Any]) -> None:
    def collate(some: list[Any]) -> Any:
        if isinstance(some[0], tuple):
            return tuple(zip(*some, strict=True))
        return torch.tensor(some) if isinstance(some[0], list) else default_collate(some)

    assert row_order(collate(rows), rows) == [0, 1, 2, 3]
    assert row_order(collate([rows[at] for at in (2, 0, 3, 1)]), rows) == [2, 0, 3, 1]


def test_another_order_that_only_labels_show_leaves_the_batch_unproven() -> None:
    rows = [("a long text", 0), ("text", 1), ("a text", 1)]
    tokenized = (torch.rand(3, 7), torch.tensor([1, 1, 0]))
    positions, why = given(tokenized, rows, rows)
    assert positions == [0, 1, 2]
    assert why is not None
    assert "another order" in why


def test_labels_that_are_changed_beside_inputs_in_order_are_in_order() -> None:
    rows = [(torch.full((2,), float(at)), label) for at, label in enumerate((0, 1, 1))]
    flipped = (torch.stack([x for x, _ in rows]), torch.tensor([1, 0, 0]))
    assert row_order(flipped, rows) == [0, 1, 2]


def test_content_that_is_not_found_again_shows_no_other_order() -> None:
    assert row_order(torch.rand(3, 7), ["a", "b", "c"]) == [0, 1, 2]


def test_what_a_sorted_batch_costs_grows_no_faster_than_the_batch() -> None:
    calls = {}
    for count in (50, 100):
        samples = [(torch.full((30,), float(at)), at) for at in range(count)]
        batch = [torch.stack([x for x, _ in samples[::-1]]), torch.arange(count).flip(0)]
        with cProfile.Profile() as profile:
            assert row_order(batch, samples) == list(range(count))[::-1]
        calls[count] = sum(entry.callcount for entry in profile.getstats())
    assert calls[100] < 2.2 * calls[50]


def test_rows_are_found_whatever_the_form_of_their_zeros_and_gaps() -> None:
    samples = [np.array([0.0, np.nan, 1.0], np.float32), np.array([-0.0, 2.0], np.float32)]
    batch = torch.tensor([[0.0, 2.0, 0.0], [-0.0, np.nan, 1.0]], dtype=torch.float64)
    assert row_order(batch, samples) == [1, 0]
