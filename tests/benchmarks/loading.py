"""A loader in one process: ours, which accounts for each sample, beside torch's stock one."""

import random
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pipeline.data.datamodule import DataModule
from tests.benchmarks.processes import clock, forked
from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject
from tests.benchmarks.workloads import BATCH, Rows, images

GATHER = "numpy's gather"
STOCK = "stock DataLoader"
WARM_UP = 12
"""Batches: a dataset whose draws are watched, one worker or two, is known by then."""


class OneByOne(Dataset[Any]):
    """Rows fetched sample by sample; where they draw, each of the three global generators is drawn from."""

    def __init__(self, count: int, draws: bool = False, deterministic: bool = False) -> None:
        self.x, self.y = images(count)
        self.draws = draws
        if deterministic:  # False would say that it draws from all three
            self.deterministic = True

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.draws:
            return self.x[index] + (torch.rand(()) + np.random.random() + random.random()), self.y[index]
        return self.x[index], self.y[index]


def accounted(dataset: Dataset[Any], workers: int = 0) -> Any:
    """The loader that training sees, whose batches carry the identities of their samples for the ledger."""
    data = DataModule(train=dataset, batch_size=BATCH, num_workers=workers)
    data.emit_sample_ids = True
    return data.train_dataloader()


def gathered(count: int) -> Iterator[Any]:
    """No loader at all: what the memory and a random order alone cost."""
    x, y = (each.numpy() for each in images(count))
    order = np.random.default_rng(0).permutation(count)
    for start in range(0, count, BATCH):
        rows = order[start : start + BATCH]
        yield torch.from_numpy(x[rows]), torch.from_numpy(y[rows])


def through(make: Callable[[], Iterable[Any]], batches: int) -> Reading:
    """Microseconds a sample, in the midst of an epoch."""
    clock.set_window(WARM_UP, batches - 1)
    for _ in islice(make(), batches):
        clock.tick()
    return clock.reading(BATCH * (batches - 1 - WARM_UP))


def turns(ways: dict[str, Callable[[], Iterable[Any]]], batches: int, context: Context) -> Contenders:
    log = context.folder / "log.txt"
    return {name: (lambda make=make: forked(through, make, batches, log=log)) for name, make in ways.items()}


@subject(
    "loader",
    unit="us a sample",
    reference=GATHER,
    bars=(Bar(OURS, "cpu", 0.80), Bar(OURS, "wall", 0.80)),
    rounds=(1, 7, 15),
)
def loader(context: Context) -> Contenders:
    """Rows of 784 floats out of a loader, fetched batch by batch, one process."""
    count = BATCH * context.pick(16, 400, 900)
    images(count)
    ways = {
        GATHER: lambda: gathered(count),
        OURS: lambda: accounted(Rows(count)),
        STOCK: lambda: DataLoader(TensorDataset(*images(count)), BATCH, shuffle=True),
    }
    return turns(ways, count // BATCH, context)


def per_sample(context: Context, workers: int, draws: bool) -> Contenders:
    count = BATCH * context.pick(16, 200, 600)
    images(count)
    ways = {
        STOCK: lambda: DataLoader(OneByOne(count, draws), BATCH, shuffle=True, num_workers=workers),
        OURS: lambda: accounted(OneByOne(count, draws), workers),
        f"{OURS}, deterministic = True": lambda: accounted(OneByOne(count, draws, True), workers),
    }
    return turns(ways, count // BATCH, context)


SAMPLE_BARS = (Bar(OURS, "cpu", 0.90), Bar(OURS, "wall", 0.90))


@subject("samples", "us a sample", STOCK, SAMPLE_BARS, (1, 5, 11))
def samples(context: Context) -> Contenders:
    """Rows fetched sample by sample, randomness kept, in the process itself."""
    return per_sample(context, workers=0, draws=False)


@subject("samples_drawn", "us a sample", STOCK, SAMPLE_BARS, (1, 5, 11))
def samples_drawn(context: Context) -> Contenders:
    """The same, where each sample draws from torch, numpy and Python."""
    return per_sample(context, workers=0, draws=True)


@subject("samples_workers", "us a sample", STOCK, SAMPLE_BARS, (1, 3, 11))
def samples_workers(context: Context) -> Contenders:
    """Rows fetched sample by sample, randomness kept, with 2 workers."""
    return per_sample(context, workers=2, draws=False)
