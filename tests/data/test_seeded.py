"""How a dataset hands out samples: whole batches where it can, and what is refused."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, get_worker_info

from pipeline.data.sampler import Batches, PositionedSampler
from pipeline.data.seeded import SeededCollate, SeededDataset, refuse_unsized
from pipeline.data.whole_batch import rows, rows_of
from pipeline.errors import UserError
from tests.support.models import _Stream
from tests.support.samples import SIZE, Drawn, fetched

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


class Point(NamedTuple):
    x: Any
    y: Any


class Whole(Dataset[Any]):
    """Fetches whole batches of the form that `form` makes."""

    deterministic = True

    def __init__(self, form: Callable[[torch.Tensor], Any]) -> None:
        self.form = form
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("asked for one sample")

    def __getitems__(self, indices: list[int]) -> Any:
        self.asked.append(list(indices))
        return self.form(torch.tensor(indices))


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda rows: rows[:, None] * torch.ones(3),
    "array": lambda rows: rows.numpy(),
    "tuple": lambda rows: (rows.float(), rows.numpy(), [f"sample {row}" for row in rows.tolist()]),
    "named tuple": lambda rows: Point(rows, -rows),
    "mapping": lambda rows: {"x": rows.float(), "name": [str(row) for row in rows.tolist()]},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_whole_batch_reaches_the_model_as_the_dataset_made_it(form: str) -> None:
    dataset = Whole(FORMS[form])
    keyed = SeededDataset(dataset, 0)

    batches = Batches(PositionedSampler(dataset, shuffle=False), 10)
    found = list(DataLoader(keyed, batch_sampler=batches, collate_fn=SeededCollate(None, keyed)))
    expected = [FORMS[form](torch.arange(start, min(start + 10, SIZE))) for start in (0, 10, 20)]
    assert [repr(batch) for batch in found] == [repr(batch) for batch in expected]
    assert dataset.asked == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    assert [rows_of(batch) for batch in found] == [10, 10, 3]
    assert all(len(rows(batch)) == rows_of(batch) for batch in found)


def test_a_list_of_samples_is_collated_by_the_users_function() -> None:
    dataset = Whole(lambda indices: [{"x": index} for index in indices.tolist()])
    keyed = SeededDataset(dataset, 0)
    collate = SeededCollate(lambda samples: [sample["x"] * 2 for sample in samples], keyed)
    assert list(DataLoader(keyed, batch_sampler=[[1, 2], [3]], collate_fn=collate)) == [[2, 4], [6]]
    (batch,) = DataLoader(keyed, batch_sampler=[[1, 2]], collate_fn=SeededCollate(None))
    assert batch["x"].tolist() == [1, 2]
    assert dataset.asked == [[1, 2], [3], [1, 2]]


def test_rows_are_what_single_samples_would_be() -> None:
    assert rows({"x": [1, 2], "y": [3, 4]}) == [{"x": 1, "y": 3}, {"x": 2, "y": 4}]
    assert rows(([1, 2], [3, 4])) == [(1, 3), (2, 4)]
    assert [row.tolist() for row in rows(torch.eye(2))] == [[1, 0], [0, 1]]
    assert rows([5, 6]) == [5, 6]


@pytest.mark.parametrize(
    ("form", "count"),
    [
        (lambda rows: rows[:-1], 2),
        (lambda rows: (rows[1:], rows[1:]), 2),
        (lambda rows: {"x": torch.zeros(4)}, 4),
        (lambda rows: [0], 1),
    ],
)
def test_another_number_of_samples_than_asked_for_is_refused(form: Any, count: int) -> None:
    with pytest.raises(ValueError, match=f"Whole.__getitems__ returned {count} samples for 3 indices"):
        SeededDataset(Whole(form), 0).__getitems__([4, 5, 6])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda rows: (rows, rows[1:]), "a tuple of Tensor with 3 rows, Tensor with 2 rows, which is no batch"),
        (lambda rows: {"x": rows, "y": {"z": rows}}, "a dict of Tensor with 3 rows, dict, which is no batch"),
        (lambda rows: (), "a tuple of nothing, which is no batch"),
        (lambda rows: torch.tensor(3.0), "a Tensor, which is no batch"),
        (lambda rows: None, "a NoneType, which is no batch"),
        (lambda rows: (rows, 1), "a tuple of Tensor with 3 rows, int, which is no batch"),
    ],
)
def test_what_is_no_batch_is_refused(form: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SeededDataset(Whole(form), 0).__getitems__([4, 5, 6])


class Both(Drawn):
    """Can fetch whole batches, but neither takes seeds nor says that it draws nothing."""

    def __getitems__(self, indices: list[int]) -> Any:
        raise AssertionError("asked for a whole batch, whose randomness nobody keyed")


def test_whole_batches_of_unkeyed_randomness_are_fetched_one_by_one() -> None:
    assert fetched(Both()) == fetched(Drawn())


def test_torchs_own_datasets_are_fetched_as_they_are() -> None:
    plain = TensorDataset(torch.arange(SIZE), torch.arange(SIZE) * 2)
    (found,) = fetched(plain)
    assert found == {index: (index, 2 * index) for index in range(SIZE)}
    half = Subset(plain, range(0, SIZE, 2))
    assert fetched(half)[0] == {index: (index, 2 * index) for index in range(0, SIZE, 2)}


def test_a_whole_batch_is_fetched_in_one_go_from_workers_too() -> None:
    class Where(Whole):
        def __getitems__(self, indices: list[int]) -> Any:
            info = get_worker_info()
            return torch.tensor(indices), torch.tensor([info.id if info else -1] * len(indices)), np.asarray(indices)

    dataset = Where(lambda indices: indices)
    batches = Batches(PositionedSampler(dataset), 4)
    found = list(
        DataLoader(SeededDataset(dataset, 0), batch_sampler=batches, collate_fn=SeededCollate(None), num_workers=2)
    )
    assert torch.cat([batch[0] for batch in found]).tolist() == list(batches.sampler)
    assert {number for batch in found for number in batch[1].tolist()} == {0, 1}
    assert all(batch[0].tolist() == batch[2].tolist() for batch in found)


class Sized:
    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("dataset", [_Stream(), Sized(), iter([1])], ids=["stream", "no getitem", "iterator"])
def test_a_dataset_that_is_not_map_style_is_named(dataset: Any) -> None:
    problem = refuse_unsized("train", dataset)
    assert problem is not None
    assert problem.startswith(f"data.train={type(dataset).__name__} is not map-style: it must have")


@pytest.mark.parametrize("dataset", [[1, 2], range(3), Drawn(), np.zeros(3), torch.zeros(3)])
def test_a_dataset_that_is_map_style_is_taken(dataset: Any) -> None:
    assert refuse_unsized("train", dataset) is None
    assert len(SeededDataset(dataset, 0)) == len(dataset)
    assert len(SeededDataset(dataset, 0).__getitems__([0, 1])) == 2
