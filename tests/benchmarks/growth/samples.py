"""Over the sizes of dataset and batch: the order of an epoch, the ledger, and the rows of a batch."""

import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pipeline.data.ledger import Ledger
from pipeline.data.row_order import row_order
from pipeline.data.sample_ids import IdentifiedBatch
from pipeline.data.sampler import Batches, PositionedSampler
from tests.benchmarks.growth.curve import counted, curve
from tests.benchmarks.saving import seconds
from tests.benchmarks.subject import Reading
from tests.benchmarks.workloads import BATCH, WIDTH

FIRST, RESUMED, MEMORY = "first 100 batches", "first batch after a resume in the middle", "memory of order and ledger"
_REPEATS = 10
_COUNTED = 1000
"""Batches that the ledger counts: more than it hashes at once."""


def batches(size: int, position: int = 0) -> Batches:
    return Batches(PositionedSampler(range(size), 2, 1, seed=1, position=position), BATCH)


def seconds_of(size: int, position: int, count: int) -> float:
    """Seconds from nothing to so many batches, on average."""
    began = time.perf_counter()
    for _ in range(_REPEATS):
        for _ in islice(batches(size, position), count):
            pass
    return (time.perf_counter() - began) / _REPEATS


def without_end(size: int) -> Iterator[IdentifiedBatch]:
    """The batches of epochs as a loader hands them out."""
    while True:
        for indices in batches(size):
            yield IdentifiedBatch(np.asarray(indices), [], [], True)


def counted_memory(size: int) -> int:
    """Bytes that Python holds at most for the order of an epoch and the ledger, while batches are counted."""
    model = SimpleNamespace(automatic_optimization=True)
    trainer: Any = SimpleNamespace(global_step=0, world_size=1, lightning_module=model)
    tracemalloc.start()
    data: Any = SimpleNamespace(trainer=None, batches=batches(size), reset_order=lambda: None)
    data.train_dataloader = lambda: without_end(size)
    ledger = Ledger(data)
    ledger.open(trainer, from_start=True)
    for _ in islice(data.train_dataloader(), _COUNTED):
        trainer.global_step += 1
        ledger.count(trainer)
    return tracemalloc.get_traced_memory()[1]


@curve(
    "samples",
    "samples",
    {FIRST: "s", RESUMED: "s", MEMORY: "bytes"},
    {
        "tiny": (1000, 10_000),
        "quick": tuple(10**power for power in range(3, 10)),
        "full": tuple(10**power for power in range(3, 10)),
    },
    rounds=5,
)
def samples(size: int, _: Path) -> Reading:
    """The order of an epoch, and the memory of order and ledger while 1,000 batches are counted."""
    seconds_of(100_000, 0, 100)  # what any order needs
    first, resumed = seconds_of(size, 0, 100), seconds_of(size, size // 2, 1)
    return {FIRST: first, RESUMED: resumed, MEMORY: counted_memory(size)}


IN_ORDER, MOVED, CHANGED = "rows in order", "rows in another order", "rows with other numbers"


@curve(
    "batch",
    "samples in a batch",
    {IN_ORDER: "s", MOVED: "s", CHANGED: "s"},
    {"tiny": (8, 16), "quick": counted(32, 1024), "full": counted(32, 1024)},
    rounds=5,
)
def batch(size: int, _: Path) -> Reading:
    """An evaluation finds out which row of a batch is which sample, where a collate function of the user's made it."""
    samples, order = [(torch.rand(WIDTH), at % 10) for at in range(size)], torch.randperm(size)
    x, y = torch.stack([each for each, _ in samples]), torch.tensor([each for _, each in samples])
    row_order([x, y], samples)  # what any batch needs
    batches = {IN_ORDER: [x, y], MOVED: [x[order], y[order]], CHANGED: [2 * x + 1, y]}
    return {name: seconds(partial(row_order, made, samples)) for name, made in batches.items()}
