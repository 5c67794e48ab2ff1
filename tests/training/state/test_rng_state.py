"""What a dataset or a collate function draws at random is keyed by (seed, epoch, index), and put back."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from pipeline.data.sampler import Batches, PositionedSampler
from pipeline.data.seeded import SeededCollate, SeededDataset, sample_seeds
from tests.support.samples import SIZE, Drawn, draw, fetched

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


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
    keyed = SeededDataset(dataset, 0)
    for position in (1, 10, 22):
        batches = Batches(PositionedSampler(dataset, position=position), 4)
        for batch in DataLoader(keyed, batch_sampler=batches, collate_fn=SeededCollate(None)):
            for row in zip(*[part.tolist() for part in batch], strict=True):
                assert row == reference[int(row[0])]


def test_a_sample_by_itself_is_that_of_epoch_0() -> None:
    keyed = SeededDataset(Drawn(), 5)
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
        keyed = SeededDataset(Drawn(), 0)
        loader = DataLoader(
            keyed,
            batch_sampler=Batches(PositionedSampler(keyed), 4),
            collate_fn=SeededCollate(collate, keyed),
            num_workers=workers,
            generator=torch.Generator(),
        )
        for _ in loader:
            assert states() == before


@pytest.mark.parametrize(
    ("dataset", "collate"), [(Broken(), None), (Drawn(), failing)], ids=["dataset", "collate function"]
)
def test_the_training_process_keeps_its_random_numbers_after_an_error(dataset: Any, collate: Any) -> None:
    keyed = SeededDataset(dataset, 0)
    before = states()
    with pytest.raises(OSError, match=r"no such image|cannot be collated"):
        list(
            DataLoader(
                keyed,
                batch_sampler=[[1, 2], [5, 3]],
                collate_fn=SeededCollate(collate, keyed),
                generator=torch.Generator(),
            )
        )
    assert states() == before


def by_batch(workers: int, epochs: int = 1, position: int = 0, dataset: Any = None) -> list[Any]:
    keyed = SeededDataset(dataset or Drawn(), 0)
    sampler = PositionedSampler(keyed, position=position)
    loader = DataLoader(
        keyed,
        batch_sampler=Batches(sampler, 4),
        collate_fn=SeededCollate(drawing, keyed),
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
    SeededDataset(Still(), 0).__getitems__([1, 2])
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
