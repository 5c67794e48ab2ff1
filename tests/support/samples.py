"""Datasets that draw random numbers, and what a loader fetches of them."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.data.permutation import Permutation
from pipeline.data.sampler import Batches, PositionedSampler
from pipeline.data.seeded import SeededCollate, SeededDataset

SIZE = 23


def order(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return Permutation(size, seed, epoch)(np.arange(size))


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
        keyed = SeededDataset(dataset, seed)
        loader = DataLoader(
            keyed,
            batch_sampler=Batches(sampler, batch_size),
            collate_fn=SeededCollate(collate, keyed),
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
