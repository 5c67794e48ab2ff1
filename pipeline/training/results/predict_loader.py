"""A loader to predict on, whose samples go in order over all processes: what is left, and the batches of each."""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.sample_ids import IdentifiedBatch, fingerprint, is_indexed, makes_own_batches, user_dataset
from pipeline.training import compat

Range = tuple[int, int]
"""Samples from the first one up to, but without, the second one."""


class RangeBatches:
    """A batch sampler that goes through ranges of indices in order; no batch reaches over the end of a range."""

    def __init__(self, ranges: list[Range], batch_size: int) -> None:
        self.ranges, self.batch_size = ranges, batch_size

    def __len__(self) -> int:
        return sum(-((start - stop) // self.batch_size) for start, stop in self.ranges)

    def __iter__(self) -> Iterator[list[int]]:
        for start, stop in self.ranges:
            for first in range(start, stop, self.batch_size):
                yield list(range(first, min(first + self.batch_size, stop)))


class RangeIndices:
    """A sampler for a loader without batches: each index of the ranges in order."""

    def __init__(self, ranges: list[Range]) -> None:
        self.ranges = ranges

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for start, stop in self.ranges:
            yield from range(start, stop)


def uncovered(samples: int, done: list[Range]) -> list[Range]:
    """Return the ranges of `samples` samples that `done`, sorted and without overlaps, leaves out."""
    edges = [0, *(edge for each in done for edge in each), samples]
    return [(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop]


def share(ranges: list[Range], rank: int, world_size: int) -> list[Range]:
    """Return the rank's piece of ranges that go over all ranks as evenly as possible, contiguous each."""
    total = sum(stop - start for start, stop in ranges)
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    found, passed = [], 0
    for start, stop in ranges:
        begin, end = max(start, start + first - passed), min(stop, start + last - passed)
        if begin < end:
            found.append((begin, end))
        passed += stop - start
    return found


@dataclass
class PredictLoader:
    """One of the loaders to predict on, and what was written of it.

    Attributes:
        loader: As the user made it.
        folder: Where its parts go, in the run directory.
        dataset: The user's own dataset, None where there is none to be seen.
        samples: Of the dataset, None: not known.
        reason: Why its samples are taken as the loader gives them, None: they go in ascending order.
        identifies: Whether the index of each sample is known.
        pending: Outputs that no part holds yet, with the indices of their samples.
        start: The position of the first of them.
        withheld: How many samples their collate function left out.
        unknown: Why it cannot be told which prediction is of which sample.
    """

    loader: Any
    folder: str
    dataset: Any = None
    samples: int | None = None
    reason: str | None = None
    identifies: bool = True
    in_flight: deque[IdentifiedBatch] = field(default_factory=deque)
    pending: list[tuple[npt.NDArray[np.int64] | None, Any]] = field(default_factory=list)
    start: int = 0
    stop: int = 0
    withheld: int = 0
    unknown: str | None = None
    bytes: int = 0
    since: float = 0.0

    @staticmethod
    def of(loader: Any, folder: str) -> "PredictLoader":
        """Look at a loader, without asking it for a batch."""
        dataset, name = user_dataset(loader), type(loader).__name__
        if not is_indexed(loader) or makes_own_batches(loader):
            streams = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")
            what = f"the dataset {type(dataset).__name__}" if streams and dataset is not None else f"the loader {name}"
            return PredictLoader(loader, folder, dataset, None, f"{what} does not tell which samples it gives", False)
        plain = (SequentialSampler, RandomSampler, DistributedSampler)
        if type(loader.batch_sampler) not in (BatchSampler, type(None)) or type(loader.sampler) not in plain:
            return PredictLoader(loader, folder, dataset, len(dataset), f"the loader {name} has a sampler of its own")
        return PredictLoader(loader, folder, dataset, len(dataset))

    @cached_property
    def described(self) -> dict[str, Any]:
        """What tells this data from others; the fingerprint reads samples."""
        kind, found = (None, None) if self.samples is None else fingerprint(self.dataset)
        return {
            "dataset": f"{type(self.dataset).__module__}.{type(self.dataset).__qualname__}",
            "dataset_fingerprint": found,
            "fingerprint_kind": kind,
            "samples_expected": self.samples,
        }

    def ranged(self, ranges: list[Range]) -> DataLoader[Any]:
        """Return a loader of the same class that gives these samples in order."""
        twin: DataLoader[Any] = copy.copy(self.loader)
        if self.loader.batch_sampler is None:
            twin.__dict__["sampler"] = RangeIndices(ranges)
        else:
            batches = RangeBatches(ranges, self.loader.batch_size)
            twin.__dict__["batch_sampler"] = compat.recorded_batches(batches)
        return twin
