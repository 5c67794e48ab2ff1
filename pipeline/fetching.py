"""How a dataset hands out samples: whole batches where it can, and randomness that depends on (seed, epoch, index).

A dataset that draws random numbers (augmentation, dropout of words) gets the same ones for a sample whatever the rank,
the loader worker or the number of either, so that a resumed or resized run sees the same data.
"""

import inspect
import random
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from pipeline.errors import UserError
from pipeline.sampler import Indices, mix


class Keyed(Dataset[Any]):
    """A user's dataset, fetched batch by batch, with its randomness keyed.

    Datasets have three ways to be fetched, the first that fits:

    1. `__getitems__(indices, seeds)`: the dataset draws from `seeds`, (n,) uint64, one for each sample.
    2. `__getitems__(indices)` and `deterministic = True`: the dataset draws nothing.
    3. `__getitem__(index)`: torch's, numpy's and Python's global generators are seeded for each sample and put back
       afterwards, unless the dataset says `deterministic = True`.

    `__getitems__` returns a list of samples, as torch has it, or a whole batch: a tensor, or a tuple or mapping of
    tensors and arrays with `len(indices)` rows each, which is not collated any more.

    Args:
        dataset: Map-style.
        seed: The run's.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.deterministic = bool(getattr(dataset, "deterministic", False))
        self.whole = callable(getattr(dataset, "__getitems__", None))
        self.takes_seeds = self.whole and "seeds" in inspect.signature(dataset.__getitems__).parameters
        self.whole = self.takes_seeds or (self.whole and self.deterministic)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._one_by_one(Indices([index], 0))[0]

    def __getitems__(self, indices: list[int]) -> Any:
        """A list of samples, or a whole batch.

        Args:
            indices: Of one batch; an `Indices` also says of which epoch, others stand for epoch 0.

        Raises:
            ValueError: The dataset returned another number of samples than it was asked for.
        """
        if not self.whole:
            return self._one_by_one(indices)
        fetched: Any = (
            self.dataset.__getitems__(list(indices), sample_seeds(self.seed, _epoch(indices), indices))
            if self.takes_seeds
            else self.dataset.__getitems__(list(indices))
        )
        count = rows_of(fetched)
        if count != len(indices):
            raise ValueError(
                f"{type(self.dataset).__name__}.__getitems__ returned {count} samples for {len(indices)} indices: "
                "which of them are missing or double cannot be told"
            )
        return fetched

    def _one_by_one(self, indices: list[int]) -> list[Any]:
        if self.deterministic:
            return [self.dataset[index] for index in indices]
        samples = []
        # A loader worker's own generators serve nobody else.
        keep: AbstractContextManager[None] = _PutBack() if get_worker_info() is None else nullcontext()
        with keep:
            for index, key in zip(indices, sample_seeds(self.seed, _epoch(indices), indices).tolist(), strict=True):
                torch.default_generator.manual_seed(key)
                np.random.seed(key >> 32)
                random.seed(key)
                samples.append(self.dataset[index])
        return samples


class Collate:
    """Collates a list of samples; a whole batch is one already.

    Args:
        collate: Makes a batch of a list of samples; None: torch's default.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self.collate = collate or default_collate

    def __call__(self, fetched: Any) -> Any:
        return self.collate(fetched) if isinstance(fetched, list) else fetched


def refuse_unsized(name: str, dataset: Any) -> str | None:
    """What is wrong with a dataset that is not map-style, or None."""
    if isinstance(dataset, Sized) and callable(getattr(dataset, "__getitem__", None)):
        return None
    return (
        f"data.{name}={type(dataset).__name__} is not map-style: allowed are datasets with __len__ and __getitem__. "
        "A stream has no index by which a sample could be accounted for: bring a LightningDataModule of your own"
    )


def sample_seeds(seed: int, epoch: int, indices: Sequence[int]) -> npt.NDArray[np.uint64]:
    """One seed for each sample, a pure function of (seed, epoch, index).

    Returns:
        (n,) uint64.
    """
    start = mix(mix(np.array([seed], np.int64).astype(np.uint64)) + np.uint64(epoch))
    return mix(np.asarray(indices, np.int64).astype(np.uint64) + start)


def rows_of(fetched: Any) -> int:
    """Samples in a list of them or in a whole batch.

    Raises:
        UserError: It is neither.
    """
    parts = _parts(fetched)
    counts = {len(part) for part in parts if isinstance(part, Sized)} if parts else set()
    if len(counts) != 1 or not all(isinstance(part, (torch.Tensor, np.ndarray, list)) for part in parts):
        raise UserError(
            f"__getitems__ returned a {type(fetched).__name__} that is no batch: allowed are a list of samples, a "
            "tensor, or a tuple or mapping of tensors, arrays and lists with one row for each index"
        )
    return int(counts.pop())


def rows(fetched: Any) -> list[Any]:
    """The samples of a whole batch, each as `__getitem__` would give it."""
    if isinstance(fetched, Mapping):
        return [dict(zip(fetched, values, strict=True)) for values in zip(*fetched.values(), strict=True)]
    if isinstance(fetched, tuple):
        return list(zip(*fetched, strict=True))
    return list(fetched)


def _parts(fetched: Any) -> list[Any]:
    if isinstance(fetched, Mapping):
        return list(fetched.values())
    return list(fetched) if isinstance(fetched, tuple) else [fetched]


def _epoch(indices: list[int]) -> int:
    return indices.epoch if isinstance(indices, Indices) else 0


class _PutBack:
    """Leaves torch's, numpy's and Python's global generators as they were."""

    def __enter__(self) -> None:
        self.torch = torch.get_rng_state()
        self.numpy = np.random.get_state()
        self.python = random.getstate()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)
        random.setstate(self.python)
