"""Ranges of samples go over all processes evenly, each once, and batches never reach over a gap."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from pipeline.training.results.predict_loader import PredictLoader, RangeBatches, RangeIndices, share, uncovered


@given(samples=st.integers(0, 60), edges=st.sets(st.integers(0, 60)), world=st.integers(1, 7), size=st.integers(1, 9))
def test_all_ranks_together_go_through_what_is_left_once_in_order(
    samples: int, edges: set[int], world: int, size: int
) -> None:
    ordered = sorted(edge for edge in edges if edge <= samples)
    done = list(zip(ordered[::2], ordered[1::2], strict=False))
    left = uncovered(samples, done)
    covered = {index for start, stop in done for index in range(start, stop)}
    shares = [share(left, rank, world) for rank in range(world)]
    batches = [RangeBatches(each, size) for each in shares]
    assert [len(list(each)) for each in batches] == [len(each) for each in batches]
    gone = [index for each in batches for batch in each for index in batch]
    assert gone == [index for index in range(samples) if index not in covered]
    lengths = [len(RangeIndices(each)) for each in shares]
    assert max(lengths) - min(lengths) <= 1
    assert [index for each in shares for index in RangeIndices(each)] == gone
    for each in batches:
        for batch in each:
            assert batch == list(range(batch[0], batch[-1] + 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_ranged_loader_is_the_users_with_other_batches(workers: int) -> None:
    loader = DataLoader(
        TensorDataset(torch.arange(20)), batch_size=4, shuffle=True, drop_last=True, num_workers=workers
    )
    ranged = PredictLoader.of(loader, "predictions").ranged([(2, 8), (19, 20)])
    assert [batch[0].tolist() for batch in ranged] == [[2, 3, 4, 5], [6, 7], [19]]
    assert len(ranged) == 3
    assert len(loader) == 5


def test_a_loader_whose_order_is_its_own_keeps_it() -> None:
    dataset = TensorDataset(torch.arange(20))
    found = PredictLoader.of(DataLoader(dataset, sampler=WeightedRandomSampler([1.0] * 20, 5)), "predictions")
    assert (found.samples, found.identifies) == (20, True)
    assert found.reason == "the loader DataLoader has a sampler of its own"
