"""How a dataset hands out samples: whole batches where it can, and randomness that depends on (seed, epoch, index).

A dataset that draws random numbers (augmentation, dropout of words) gets the same ones for a sample whatever the rank,
the loader worker or the number of either, so that a resumed or resized run sees the same data. A collate function that
draws (masking of words) gets the same ones for a batch.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from pipeline.data.permutation import mix
from pipeline.data.sample_seeding import SampleSeeding, fetch_samples, seeded
from pipeline.data.sampler import Indices
from pipeline.errors import UserError


class SeededDataset(Dataset[Any]):
    """A user's dataset, fetched batch by batch, with its randomness seeded.

    Datasets have three ways to be fetched, the first that fits:

    1. `__getitems__(indices, seeds)`: the dataset draws from `seeds`, (n,) uint64, one for each sample.
    2. `__getitems__(indices)` and `deterministic = True`: the dataset draws nothing.
    3. `__getitem__(index)`: torch's, numpy's and Python's global generators are seeded for each sample and put back
       afterwards, unless the dataset says `deterministic = True`. `pipeline.data.sample_seeding` leaves out the seeding
       that nobody sees; a dataset that says `deterministic = False` has all of it.

    `__getitems__` returns a list of samples, as torch has it, or a whole batch: a tensor, or a tuple or mapping of
    tensors and arrays with `len(indices)` rows each, which is not collated any more.

    Args:
        dataset: Map-style.
        seed: The run's.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        said = getattr(dataset, "deterministic", None)
        self.deterministic = bool(said)
        self._seeding = SampleSeeding(dataset, always=said is not None)
        fetch = getattr(dataset, "__getitems__", None)
        self.takes_seeds = callable(fetch) and "seeds" in inspect.signature(fetch).parameters
        self.whole = self.takes_seeds or (callable(fetch) and self.deterministic)
        self.fetched: list[int] = []
        """The indices of the batch that was fetched last in this process."""

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self._one_by_one([index])[0]

    def __getitems__(self, indices: list[int]) -> Any:
        """A list of samples, or a whole batch.

        Args:
            indices: Of one batch; an `Indices` also says of which epoch, others stand for epoch 0.

        Raises:
            ValueError: The dataset returned another number of samples than it was asked for.
        """
        self.fetched = indices
        if not self.whole:
            return self._one_by_one(indices)
        given = indices if isinstance(indices, Indices) else list(indices)
        seeds = [sample_seeds(self.seed, _epoch(indices), indices)] if self.takes_seeds else []
        try:
            fetched: Any = self.dataset.__getitems__(given, *seeds)
        except Exception as error:
            error.add_note(f"raised by {type(self.dataset).__name__}.__getitems__({_listed(indices)})")
            raise
        count = rows_of(fetched)
        if count != len(indices):
            raise ValueError(
                f"{type(self.dataset).__name__}.__getitems__ returned {count} samples for {len(indices)} indices: "
                "which of them are missing or double cannot be told"
            )
        return fetched

    def batch_seed(self) -> int:
        """A seed for the batch that was fetched last in this process: a function of seed, epoch and first index."""
        # Mixed once more: the collate function must not draw the numbers of the first sample again.
        return int(mix(sample_seeds(self.seed, _epoch(self.fetched), self.fetched[:1]))[0])

    def _one_by_one(self, indices: list[int]) -> list[Any]:
        if self.deterministic:
            return fetch_samples(self.dataset, indices)
        return self._seeding.fetch(indices, lambda: sample_seeds(self.seed, _epoch(indices), indices).tolist())


class SeededCollate:
    """Collates a list of samples; a whole batch is one already, and is taken apart for a function of the user's.

    Random numbers that a function of the user's draws depend on (seed, epoch, first index of the batch): the global
    generators are seeded for each batch and put back afterwards, as they are for a sample. Without that a batch would
    depend on what its loader worker had fetched before, which no resumed run could repeat. Other ranks or batch sizes
    make other batches, and draw otherwise.

    Args:
        collate: Makes a batch of a list of samples; None: torch's default, which draws nothing.
        seeded: The dataset whose batches are collated in the same process, right after they are fetched; None: the
            function draws from the generators as they stand.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None, seeded: SeededDataset | None = None) -> None:
        self.collate = collate or default_collate
        self.seeded = seeded

    def __call__(self, fetched: Any) -> Any:
        """The batch that was fetched."""
        if not isinstance(fetched, list):
            if self.collate is default_collate:
                return fetched
            fetched = rows(fetched)
        try:
            if self.seeded is None or self.collate is default_collate:
                return self.collate(fetched)
            with seeded(self.seeded.batch_seed()):
                return self.collate(fetched)
        except Exception as error:
            if self.seeded is not None:
                error.add_note(f"raised while the samples {_listed(self.seeded.fetched)} were collated")
            raise


class SeededLoader(DataLoader[Any]):
    """torch's loader, which without workers does no more than fetching and collating: a fifth of a small batch's time.

    Its dataset is a `SeededDataset`, or what hands out a SeededDataset's samples.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return super().__iter__() if self.num_workers or self.pin_memory else self._here()

    def _here(self) -> Iterator[Any]:
        dataset: Any = self.dataset
        assert self.batch_sampler is not None
        for indices in self.batch_sampler:
            yield self.collate_fn(dataset.__getitems__(indices))


def _listed(indices: Sequence[int]) -> str:
    return f"[{', '.join(map(str, indices[:64]))}{', ...' if len(indices) > 64 else ''}]"


def refuse_unsized(name: str, dataset: Any) -> str | None:
    """Return what is wrong with a dataset that is not map-style, or None."""
    if isinstance(dataset, Sized) and callable(getattr(dataset, "__getitem__", None)):
        return None
    return (
        f"data.{name}={type(dataset).__name__} is not map-style: it must have __len__ and __getitem__. "
        "A stream has no index by which a sample could be accounted for: bring a LightningDataModule of your own"
    )


def sample_seeds(seed: int, epoch: int, indices: Sequence[int]) -> npt.NDArray[np.uint64]:
    """One seed for each sample, a pure function of (seed, epoch, index).

    Returns:
        (n,) uint64.
    """
    return mix(np.asarray(indices, np.int64).astype(np.uint64) + _start(seed, epoch))


@lru_cache(maxsize=16)
def _start(seed: int, epoch: int) -> np.uint64:
    start: np.uint64 = mix(mix(np.array([seed % 2**64], np.uint64)) + np.uint64(epoch))[0]
    return start


def rows_of(fetched: Any) -> int:
    """Samples in a list of them or in a whole batch.

    Raises:
        UserError: It is neither.
    """
    counts = {_length(part) for part in _parts(fetched)}
    count = counts.pop() if len(counts) == 1 else None
    if count is None:
        raise UserError(
            f"__getitems__ returned {_described(fetched)}, which is no batch: it must be a list of samples, a tensor, "
            "or a tuple or mapping of tensors, arrays and lists with one row for each index"
        )
    return count


def rows(fetched: Any) -> list[Any]:
    """The samples of a whole batch, each as `__getitem__` would give it."""
    if isinstance(fetched, Mapping):
        return [dict(zip(fetched, values, strict=True)) for values in zip(*fetched.values(), strict=True)]
    if isinstance(fetched, tuple):
        return list(zip(*fetched, strict=True))
    return list(fetched)


def _parts(fetched: Any) -> list[Any]:
    if isinstance(fetched, tuple):
        return list(fetched)
    return list(fetched.values()) if isinstance(fetched, Mapping) else [fetched]


def _length(part: Any) -> int | None:
    """Rows of a part of a batch, None if it cannot have any."""
    if isinstance(part, (torch.Tensor, np.ndarray)):
        return part.shape[0] if part.ndim else None
    return len(part) if isinstance(part, list) else None


def _described(fetched: Any) -> str:
    kind = f"a {type(fetched).__name__}"
    if not isinstance(fetched, (tuple, Mapping)):
        return kind
    parts = [(type(part).__name__, _length(part)) for part in _parts(fetched)]
    named = [name if count is None else f"{name} with {count} rows" for name, count in parts]
    return f"{kind} of {', '.join(named[:8]) or 'nothing'}"


def _epoch(indices: list[int]) -> int:
    return indices.epoch if isinstance(indices, Indices) else 0
