"""How a dataset hands out samples: whole batches where it can, and randomness that depends on (seed, epoch, index).

A dataset that draws random numbers (augmentation, dropout of words) gets the same ones for a sample whatever the rank,
the loader worker or the number of either, so that a resumed or resized run sees the same data. A collate function that
draws (masking of words) gets the same ones for a batch.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, Dataset, default_collate

from pipeline.data.batch_problem import misfits
from pipeline.data.parts import fetch_batch, fetches_batches, is_deterministic, listed
from pipeline.data.permutation import mix
from pipeline.data.sample_seeding import SampleSeeding, fetch_samples, seeded
from pipeline.data.sampler import Indices
from pipeline.data.whole_batch import rows
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
    tensors and arrays with `len(indices)` rows each, which is not collated any more. A part of a dataset, or several as
    one (`pipeline.data.parts`), are fetched as what they consist of.

    Args:
        dataset: Map-style.
        seed: The run's.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        said = is_deterministic(dataset)
        self.deterministic = bool(said)
        self._seeding = SampleSeeding(dataset, always=said is not None)
        self.whole = fetches_batches(dataset)
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
        return fetch_batch(self.dataset, indices, lambda: _seeds(self.seed, indices))

    def batch_seed(self) -> int:
        """A seed for the batch that was fetched last in this process: a function of seed, epoch and first index."""
        # Mixed once more: the collate function must not draw the numbers of the first sample again.
        return int(mix(_seeds(self.seed, self.fetched)[:1])[0])

    def _one_by_one(self, indices: list[int]) -> list[Any]:
        if self.deterministic:
            return fetch_samples(self.dataset, indices)
        return self._seeding.fetch(indices, lambda: _seeds(self.seed, indices).tolist())


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
            indices = None if self.seeded is None else self.seeded.fetched
            # torch's function refuses what does not fit together; what one of the user's raises is a fault in it.
            if self.collate is default_collate and (problem := misfits(fetched, indices)) is not None:
                raise UserError(problem) from error
            if indices is not None:
                error.add_note(f"raised while the samples {listed(indices)} were collated")
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


def _seeds(seed: int, indices: list[int]) -> npt.NDArray[np.uint64]:
    """One seed for each sample of a batch; where an epoch's order repeats samples, another one each time."""
    if not isinstance(indices, Indices):
        return sample_seeds(seed, 0, indices)
    seeds = sample_seeds(seed, indices.epoch, indices)
    return seeds if indices.entries is None else mix(seeds + indices.entries.astype(np.uint64))


@lru_cache(maxsize=16)
def _start(seed: int, epoch: int) -> np.uint64:
    start: np.uint64 = mix(mix(np.array([seed % 2**64], np.uint64)) + np.uint64(epoch))[0]
    return start
