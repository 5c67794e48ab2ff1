"""How a dataset hands out samples: whole batches where it can, and randomness keyed by (seed, epoch, index)."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate, get_worker_info

from pipeline.errors import UserError
from pipeline.fetching import Collate, Keyed, refuse_unsized, rows, rows_of, sample_seeds
from pipeline.sampler import Batches, PositionedSampler
from tests.cases import _Stream

SIZE = 23

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def draw() -> list[float]:
    """One number from each of the three global generators."""
    return [torch.rand(()).item(), float(np.random.random()), random.random()]


class Drawn(Dataset[Any]):
    """Draws from each generator: how many times depends on the index, as for a rejection loop."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> list[float]:
        drawn = [float(index), *draw(), torch.randn(()).item(), float(np.random.randn()), random.gauss(0, 1)]
        for _ in range(index % 3):
            draw()
            np.random.randn()
            random.gauss(0, 1)
        return drawn


class DrawnWhole(Dataset[Any]):
    """Draws from the seeds that it is given."""

    def __len__(self) -> int:
        return SIZE

    def __getitems__(self, indices: list[int], seeds: np.ndarray) -> tuple[Any, Any]:
        assert seeds.dtype == np.uint64
        drawn = [np.random.Generator(np.random.Philox(int(seed))).random() for seed in seeds]
        return torch.tensor(indices), torch.tensor(drawn, dtype=torch.float64)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("asked for one sample")


def fetched(
    dataset: Any,
    seed: int = 0,
    epochs: int = 1,
    workers: int = 0,
    ranks: int = 1,
    batch_size: int = 4,
    collate: Callable[[list[Any]], Any] | None = None,
) -> list[dict[int, Any]]:
    """What every sample is in every epoch, over all ranks and persistent workers."""
    found: list[dict[int, Any]] = [{} for _ in range(epochs)]
    for rank in range(ranks):
        sampler = PositionedSampler(dataset, ranks, rank, seed=seed, tail="drop" if ranks == 1 else "pad")
        keyed = Keyed(dataset, seed)
        loader = DataLoader(
            keyed,
            batch_sampler=Batches(sampler, batch_size),
            collate_fn=Collate(collate, keyed),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                columns = [part.tolist() for part in batch]
                for row in zip(*columns, strict=True):
                    index = int(row[0])
                    assert found[epoch].setdefault(index, row) == row, "padding is the same sample again"
    return found


# ---- randomness


@pytest.mark.parametrize("dataset", [Drawn(), DrawnWhole()], ids=["single", "batched"])
def test_a_sample_is_the_same_on_any_worker_rank_and_batch(dataset: Any) -> None:
    reference = fetched(dataset, epochs=2)
    assert [sorted(epoch) for epoch in reference] == [list(range(SIZE))] * 2
    for more in (
        {"workers": 1},
        {"workers": 2},
        {"workers": 3, "batch_size": 2},
        {"ranks": 2},
        {"ranks": 3, "batch_size": 5},
        {"ranks": 2, "workers": 2},
        {"batch_size": SIZE},
        {"batch_size": 1},
    ):
        assert fetched(dataset, epochs=2, **more) == reference, more


@pytest.mark.parametrize("dataset", [Drawn(), DrawnWhole()], ids=["single", "batched"])
def test_another_epoch_seed_or_index_draws_other_numbers(dataset: Any) -> None:
    first, second = fetched(dataset, epochs=2)
    (other,) = fetched(dataset, seed=1)
    numbers = [number for epoch in (first, second, other) for row in epoch.values() for number in row[1:]]
    assert len(set(numbers)) == len(numbers)


def test_a_sample_does_not_depend_on_where_its_epoch_went_on() -> None:
    dataset = Drawn()
    (reference,) = fetched(dataset)
    keyed = Keyed(dataset, 0)
    for position in (1, 10, 22):
        batches = Batches(PositionedSampler(dataset, position=position), 4)
        for batch in DataLoader(keyed, batch_sampler=batches, collate_fn=Collate(None)):
            for row in zip(*[part.tolist() for part in batch], strict=True):
                assert row == reference[int(row[0])]


def test_a_sample_by_itself_is_that_of_epoch_0() -> None:
    keyed = Keyed(Drawn(), 5)
    (reference,) = fetched(Drawn(), seed=5)
    assert tuple(keyed[3]) == reference[3]
    assert [tuple(row) for row in keyed.__getitems__([7, 3])] == [reference[7], reference[3]]


def states() -> tuple[Any, ...]:
    kind, words, *rest = np.random.get_state()  # type: ignore[misc]
    return torch.get_rng_state().tolist(), kind, words.tolist(), rest, random.getstate()


class Broken(Drawn):
    """Draws, and fails at a sample."""

    def __getitem__(self, index: int) -> Any:
        draw()
        if index == 5:
            raise OSError("no such image")
        return index


def drawing(samples: list[Any]) -> list[Any]:
    """A collate function that draws, as one that masks words does."""
    return [default_collate([sample[0] for sample in samples]), torch.tensor([draw()] * len(samples))]


def failing(samples: list[Any]) -> Any:
    draw()
    raise OSError("cannot be collated")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_process_keeps_its_own_random_numbers(workers: int) -> None:
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(11)
    # A second normal number waits in numpy's and Python's generators.
    np.random.randn()
    random.gauss(0, 1)
    before = states()
    for collate in (None, drawing):
        keyed = Keyed(Drawn(), 0)
        loader = DataLoader(
            keyed,
            batch_sampler=Batches(PositionedSampler(keyed), 4),
            collate_fn=Collate(collate, keyed),
            num_workers=workers,
            generator=torch.Generator(),
        )
        for _ in loader:
            assert states() == before


@pytest.mark.parametrize(
    ("dataset", "collate"), [(Broken(), None), (Drawn(), failing)], ids=["dataset", "collate function"]
)
def test_the_training_process_keeps_its_random_numbers_after_an_error(dataset: Any, collate: Any) -> None:
    keyed = Keyed(dataset, 0)
    before = states()
    with pytest.raises(OSError, match=r"no such image|cannot be collated"):
        list(
            DataLoader(
                keyed,
                batch_sampler=[[1, 2], [5, 3]],
                collate_fn=Collate(collate, keyed),
                generator=torch.Generator(),
            )
        )
    assert states() == before


def by_batch(workers: int, epochs: int = 1, position: int = 0, dataset: Any = None) -> list[Any]:
    keyed = Keyed(dataset or Drawn(), 0)
    sampler = PositionedSampler(keyed, position=position)
    loader = DataLoader(
        keyed,
        batch_sampler=Batches(sampler, 4),
        collate_fn=Collate(drawing, keyed),
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found += [[part.tolist() for part in batch] for batch in loader]
    return found


def test_a_collate_function_draws_the_same_for_a_batch_on_any_worker() -> None:
    reference = by_batch(0, epochs=2)
    for workers in (1, 2, 3):
        assert by_batch(workers, epochs=2) == reference
    drawn = [number for _, numbers in reference for number in numbers[0]]
    assert len(set(drawn)) == len(drawn) == 3 * len(reference)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_function_draws_the_same_after_a_resume(workers: int) -> None:
    assert by_batch(workers, position=8) == by_batch(0)[2:]


def test_a_collate_function_draws_other_numbers_than_the_samples() -> None:
    samples = {number for row in fetched(Drawn())[0].values() for number in row[1:]}
    assert not samples & {number for _, numbers in by_batch(0) for number in numbers[0]}


class Still(Drawn):
    """Says that it draws nothing, which the test then sees not to be true."""

    deterministic = True


def test_a_collate_function_is_keyed_for_a_deterministic_dataset_too() -> None:
    class Deterministic(Dataset[Any]):
        deterministic = True

        def __len__(self) -> int:
            return SIZE

        def __getitem__(self, index: int) -> Any:
            return [float(index)]

    drawn = [numbers for _, numbers in by_batch(0, dataset=Deterministic())]
    assert drawn == [numbers for _, numbers in by_batch(0)]


def test_a_deterministic_dataset_is_not_seeded() -> None:
    before = torch.get_rng_state()
    Keyed(Still(), 0).__getitems__([1, 2])
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, 2**64 - 1, 2**70 + 1])
def test_any_number_is_a_seed(seed: int) -> None:
    seeds = sample_seeds(seed, 3, [0, 1, 10**12])
    assert seeds.dtype == np.uint64
    assert len(set(seeds.tolist())) == 3
    assert len(fetched(Drawn(), seed=seed)[0]) == SIZE


GOLDEN = {
    (0, 0): ["238275bc38fcbe91", "421daf3033e887a3", "9328be5eff96922f"],
    (42, 7): ["149e5012006c4a4a", "8b622083ee62dfdc", "0bcf0c3d8e424a50"],
}


def test_the_seed_of_a_sample_never_changes() -> None:
    # Whoever changes these changes what a run in progress sees after its next start.
    assert [f"{seed:016x}" for seed in sample_seeds(0, 0, [0, 1, 2]).tolist()] == GOLDEN[0, 0]
    assert [f"{seed:016x}" for seed in sample_seeds(42, 7, [0, 1, 59_999]).tolist()] == GOLDEN[42, 7]


def test_seeds_of_samples_epochs_and_runs_do_not_meet() -> None:
    found = np.concatenate([sample_seeds(seed, epoch, range(500)) for seed in range(20) for epoch in range(20)])
    assert len(np.unique(found)) == len(found)
    # numpy takes the upper 32 bits, torch the lower ones: each bit is set half of the time.
    bits = (found[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / len(found) ** 0.5


# ---- whole batches


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
    keyed = Keyed(dataset, 0)

    def never(samples: list[Any]) -> Any:
        raise AssertionError("a whole batch was collated")

    batches = Batches(PositionedSampler(dataset, shuffle=False), 10)
    found = list(DataLoader(keyed, batch_sampler=batches, collate_fn=Collate(never, keyed)))
    expected = [FORMS[form](torch.arange(start, min(start + 10, SIZE))) for start in (0, 10, 20)]
    assert [repr(batch) for batch in found] == [repr(batch) for batch in expected]
    assert dataset.asked == [list(range(10)), list(range(10, 20)), [20, 21, 22]]
    assert [rows_of(batch) for batch in found] == [10, 10, 3]
    assert all(len(rows(batch)) == rows_of(batch) for batch in found)


def test_a_list_of_samples_is_collated_by_the_users_function() -> None:
    dataset = Whole(lambda indices: [{"x": index} for index in indices.tolist()])
    keyed = Keyed(dataset, 0)
    collate = Collate(lambda samples: [sample["x"] * 2 for sample in samples], keyed)
    assert list(DataLoader(keyed, batch_sampler=[[1, 2], [3]], collate_fn=collate)) == [[2, 4], [6]]
    (batch,) = DataLoader(keyed, batch_sampler=[[1, 2]], collate_fn=Collate(None))
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
        Keyed(Whole(form), 0).__getitems__([4, 5, 6])


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
        Keyed(Whole(form), 0).__getitems__([4, 5, 6])


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
    found = list(DataLoader(Keyed(dataset, 0), batch_sampler=batches, collate_fn=Collate(None), num_workers=2))
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
    assert problem.startswith(f"data.train={type(dataset).__name__} is not map-style: allowed are datasets with")


@pytest.mark.parametrize("dataset", [[1, 2], range(3), Drawn(), np.zeros(3), torch.zeros(3)])
def test_a_dataset_that_is_map_style_is_taken(dataset: Any) -> None:
    assert refuse_unsized("train", dataset) is None
    assert len(Keyed(dataset, 0)) == len(dataset)
    assert len(Keyed(dataset, 0).__getitems__([0, 1])) == 2
