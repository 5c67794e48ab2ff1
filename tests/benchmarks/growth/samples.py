"""Over the size of the dataset: the order of an epoch, which is never stored, and the ledger, which sums up."""

import time
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from pipeline.data.ledger import Ledger
from pipeline.data.sample_ids import IdentifiedBatch
from pipeline.data.sampler import Batches, PositionedSampler
from tests.benchmarks.growth.curve import curve
from tests.benchmarks.subject import Reading
from tests.benchmarks.workloads import BATCH

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
    seconds_of(1000, 0, 1)  # what any order needs
    first, resumed = seconds_of(size, 0, 100), seconds_of(size, size // 2, 1)
    return {FIRST: first, RESUMED: resumed, MEMORY: counted_memory(size)}
