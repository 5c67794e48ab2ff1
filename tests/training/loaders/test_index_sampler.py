"""The order of a pass is drawn again as it was, whatever draws it."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SubsetRandomSampler

from pipeline.training.loaders.index_sampler import IndicesFrom, generator_owners, same_order
from tests.support.loaders import NumpyOrder
from tests.support.models import Rows


class Counting(Sampler[int]):
    """Counts how often it is iterated."""

    def __init__(self) -> None:
        self.passes = 0

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        return iter(range(5))


def test_the_first_pass_begins_later_and_the_next_ones_at_their_start() -> None:
    sampler = Counting()
    indices = IndicesFrom(sampler, 3)
    assert len(indices) == 5
    assert [list(indices) for _ in range(3)] == [[3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert sampler.passes == 3


def test_an_order_that_was_begun_is_not_drawn_once_more() -> None:
    sampler = Counting()
    indices = IndicesFrom(sampler, 0)
    indices.begin()
    indices.begin()
    iter(indices)  # as a loader with workers does, which iterates its sampler twice
    assert list(indices) == [0, 1, 2, 3, 4]
    assert sampler.passes == 1
    assert list(IndicesFrom(Counting(), 7)) == [], "nothing is left after more than there are"


def test_every_holder_of_a_generator_is_found_also_behind_lightnings_wrapper() -> None:
    rows, own = Rows(6), NumpyOrder(6)
    names = {
        "loader, sampler": DataLoader(rows, shuffle=True, generator=torch.Generator()),
        "batch_sampler.sampler": DataLoader(rows, batch_sampler=BatchSampler(own, 2, False)),
        "sampler.sampler": DataLoader(rows, sampler=DistributedSamplerWrapper(own, num_replicas=1, rank=0)),
    }
    for expected, loader in names.items():
        found = {name for name, holder in generator_owners(loader).items() if _generators(holder)}
        assert set(expected.split(", ")) <= found, (expected, found)
    assert "dataset" in generator_owners(DataLoader(rows))
    assert "dataset" not in generator_owners(DataLoader(rows, num_workers=2))


def _generators(holder: Any) -> list[Any]:
    return [each for each in vars(holder).values() if "Generator" in type(each).__name__]


def test_a_sampler_that_draws_for_all_ranks_draws_the_same_each_time() -> None:
    rows = Rows(20)
    loader: Any = DataLoader(rows, sampler=DistributedSamplerWrapper(RandomSampler(rows), num_replicas=1, rank=0))
    with same_order(loader, lambda: torch.manual_seed(3) and None):
        orders = [list(loader.batch_sampler) for _ in range(3)]
    assert orders[0] == orders[1] == orders[2]
    assert isinstance(loader.batch_sampler.sampler, DistributedSamplerWrapper), "put back"
    for other in (DataLoader(rows, sampler=SubsetRandomSampler(range(9))), DataLoader(rows, batch_size=None), [1, 2]):
        with same_order(other, lambda: None):
            pass
