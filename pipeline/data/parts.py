"""A part of a dataset, and several datasets as one, by class path; and what is known through them of what they hold.

torch's own `Subset` and `ConcatDataset` are looked through in the same way, unless a subclass of theirs changes the
samples.
"""

import hashlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch.utils.data
from torch.utils.data import ConcatDataset, Dataset

from pipeline.data.number_file import read_numbers
from pipeline.data.permutation import Permutations
from pipeline.data.sampler import Indices
from pipeline.data.whole_batch import joined, rows_of
from pipeline.errors import UserError

if TYPE_CHECKING:
    AnyDataset: TypeAlias = Dataset[Any]
else:
    # jsonargparse takes a parametrised generic for a type without arguments of its own.
    AnyDataset = Dataset
    torch.utils.data.Subset.__init__.__annotations__["dataset"] = Dataset

_BLOCK = 8192


class Subset(torch.utils.data.Subset[Any]):
    """Some samples of a dataset.

    Args:
        dataset: Of all of them.
        indices: Which, in their order; or the path or URL of a `.npy` file that holds them.
        first: Instead: so many of the first ones.

    Raises:
        UserError: Neither or both are given, or are out of range.
    """

    def __init__(self, dataset: AnyDataset, indices: list[int] | str | None = None, first: int | None = None) -> None:
        if (indices is None) == (first is None):
            raise UserError("pipeline.data.Subset takes either indices or first: give one of them")
        if first is not None and first < 0:
            raise UserError(f"pipeline.data.Subset: first={first} must be >= 0")
        self.dataset = dataset
        self._given, self._first = indices, first

    @cached_property
    def indices(self) -> Sequence[int]:  # type: ignore[override]
        """Which samples; the length of the dataset is asked for only now, when its data are prepared."""
        size = len(self.dataset)  # type: ignore[arg-type]
        name = f"pipeline.data.Subset of {type(self.dataset).__name__}, which has {size} samples"
        if self._first is not None:
            if self._first > size:
                raise UserError(f"{name}: first={self._first} are more than there are")
            return range(self._first)
        given = read_numbers(self._given, "indices") if isinstance(self._given, str) else np.asarray(self._given)
        if given.ndim != 1 or (given.dtype.kind not in "iu" and given.size):
            raise UserError(f"{name}: indices are {given.dtype} {given.shape}, and must be whole numbers in one row")
        wrong = np.flatnonzero((given < 0) | (given >= size))
        if len(wrong):
            raise UserError(f"{name}: indices must be 0 to {size - 1}; {len(wrong)} are not, first {given[wrong[0]]}")
        found: Any = given.astype(np.int64)
        return found  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The samples, one by one."""
        return [self[index] for index in indices]

    @property
    def fingerprint(self) -> str | None:
        """That of the dataset and of the indices, where the dataset has one of its own."""
        own = own_fingerprint(self.dataset)
        if own is None:
            return None
        chosen = np.asarray(self.indices, "<i8")
        return f"subset sha256:{hashlib.sha256(own.encode() + b';' + chosen.tobytes()).hexdigest()}"


class Split(Subset):
    """One of the parts into which a dataset is split at random: together they are all of it, and none overlap.

    Args:
        dataset: To be split.
        fractions: Of all parts, which sum up to 1: a list, or by name.
        part: Which one this is: its place in the list from 0 on, or its name.
        seed: Draws which sample belongs to which part. Give each part of a dataset the same one.

    Raises:
        UserError: The fractions are no fractions, or the part is none of them.
    """

    def __init__(
        self, dataset: AnyDataset, fractions: list[float] | dict[str, float], part: int | str, seed: int = 0
    ) -> None:
        names: list[Any] = list(fractions) if isinstance(fractions, Mapping) else list(range(len(fractions)))
        sizes = list(fractions.values()) if isinstance(fractions, Mapping) else list(fractions)
        problems = [
            f"pipeline.data.Split: fractions has {size!r}, and each must be a number > 0"
            for size in sizes
            if not 0 < size < math.inf
        ]
        if not problems and not math.isclose(math.fsum(sizes), 1, abs_tol=1e-6):
            problems.append(
                f"pipeline.data.Split: fractions {sizes} sum up to {math.fsum(sizes):.6g}, and must to 1: name the "
                "part that is left out as well"
            )
        if part not in names:
            problems.append(f"pipeline.data.Split: part={part!r} is none of {', '.join(map(repr, names)) or 'none'}")
        if problems:
            raise UserError(*problems)
        self.dataset = dataset
        self.seed = seed
        self._edges = [0.0, *accumulate(sizes)]
        self._part = names.index(part)

    @cached_property
    def indices(self) -> Sequence[int]:  # type: ignore[override]
        """Which samples, in ascending order."""
        size = len(self.dataset)  # type: ignore[arg-type]
        start, stop = (min(size, round(size * edge)) for edge in self._edges[self._part : self._part + 2])
        found = np.empty(stop - start, np.int64)
        if len(found):
            drawn = Permutations(np.array([size]), f"pipeline.split {self.seed} {size}")
            for at in range(0, len(found), _BLOCK):
                places = np.arange(start + at, min(start + at + _BLOCK, stop), dtype=np.int64)
                found[at : at + _BLOCK] = drawn(np.zeros(len(places), np.int64), places)
        found.sort()
        return found  # type: ignore[return-value]


class Concat(ConcatDataset[Any]):
    """Several datasets as one, one after the other.

    Args:
        datasets: At least one.

    Raises:
        UserError: There is none.
    """

    def __init__(self, datasets: list[AnyDataset]) -> None:
        if not datasets:
            raise UserError("pipeline.data.Concat: datasets is empty: name at least one")
        self.datasets = list(datasets)

    @cached_property
    def cumulative_sizes(self) -> list[int]:  # type: ignore[override]
        """Samples up to the end of each; lengths are asked for only now, when data are prepared."""
        return list(accumulate(len(each) for each in self.datasets))  # type: ignore[arg-type]

    @property
    def fingerprint(self) -> str | None:
        """Those of the datasets, where each has one of its own."""
        own = [own_fingerprint(each) for each in self.datasets]
        if any(each is None for each in own):
            return None
        return f"concat sha256:{hashlib.sha256(';'.join(map(str, own)).encode()).hexdigest()}"


def own_fingerprint(dataset: Any) -> str | None:
    """Return what a dataset itself says tells it from others, its attribute or method `fingerprint`; else None."""
    own = getattr(dataset, "fingerprint", None)
    own = own() if callable(own) else own
    return None if own is None else str(own)


def within(dataset: Any) -> list[Any]:
    """Return the datasets that one is a part of, or consists of; none where its samples are its own."""
    if isinstance(dataset, torch.utils.data.Subset) and _keeps_samples(dataset, torch.utils.data.Subset, Subset):
        return [dataset.dataset]
    if isinstance(dataset, ConcatDataset) and _keeps_samples(dataset, ConcatDataset, Concat):
        return list(dataset.datasets)
    return []


def _keeps_samples(dataset: Any, *kinds: type) -> bool:
    return type(dataset).__getitem__ in [getattr(kind, "__getitem__") for kind in kinds]  # noqa: B009


def everything_in(dataset: Any) -> Iterator[Any]:
    """Yield a dataset, and all that it consists of."""
    yield dataset
    for each in within(dataset):
        yield from everything_in(each)


def is_deterministic(dataset: Any) -> bool | None:
    """Return whether a dataset says that it draws no random numbers; None where it does not say."""
    said = getattr(dataset, "deterministic", None)
    if said is None and (parts := within(dataset)):
        found = set(map(is_deterministic, parts))
        return found.pop() if len(found) == 1 else False if False in found else None
    return None if said is None else bool(said)


def takes_seeds(dataset: Any) -> bool:
    """Return whether a dataset fetches whole batches, and takes a seed for each sample."""
    fetch = getattr(dataset, "__getitems__", None)
    return callable(fetch) and _names_seeds(getattr(fetch, "__func__", fetch))


@lru_cache(maxsize=64)
def _names_seeds(fetch: Callable[..., Any]) -> bool:
    return "seeds" in inspect.signature(fetch).parameters


def fetches_batches(dataset: Any) -> bool:
    """Return whether a dataset fetches whole batches, whose random numbers depend on their samples alone."""
    if parts := within(dataset):
        return all(map(fetches_batches, parts))
    return takes_seeds(dataset) or (
        callable(getattr(dataset, "__getitems__", None)) and bool(is_deterministic(dataset))
    )


def own_batches_unused(dataset: Any) -> str | None:
    """Return the class of a dataset, or of one within it, that has batches of its own which are not used; or None."""
    own = (each for each in everything_in(dataset) if not within(each) and not fetches_batches(each))
    return next((type(each).__name__ for each in own if callable(getattr(each, "__getitems__", None))), None)


def fetch_batch(dataset: Any, indices: list[int], seeds: Callable[[], npt.NDArray[np.uint64]]) -> Any:
    """Return a batch of a dataset that `fetches_batches`: a list of samples, or a whole batch.

    Args:
        dataset: Of the samples.
        indices: Of the batch; an `Indices` stays one.
        seeds: Returns one for each sample, (n,), if they are asked for.

    Raises:
        ValueError: The dataset returned another number of samples than it was asked for.
    """
    parts = within(dataset)
    if isinstance(dataset, torch.utils.data.Subset) and parts:
        chosen: Any = dataset.indices
        inner = chosen[np.asarray(indices)] if isinstance(chosen, np.ndarray) else [chosen[at] for at in indices]
        return fetch_batch(parts[0], _like(indices, inner), seeds)
    if parts:
        return _fetch_from_all(dataset, indices, seeds)
    given = indices if isinstance(indices, Indices) else list(indices)
    name = f"{type(dataset).__name__}.__getitems__"
    try:
        fetched = dataset.__getitems__(given, *([seeds()] if takes_seeds(dataset) else []))
    except Exception as error:
        error.add_note(f"raised by {name}({listed(indices)})")
        raise
    if (count := rows_of(fetched)) != len(indices):
        raise ValueError(
            f"{name} returned {count} samples for {len(indices)} indices: which of them are missing or double cannot "
            "be told"
        )
    return fetched


def _fetch_from_all(dataset: Any, indices: list[int], seeds: Callable[[], npt.NDArray[np.uint64]]) -> Any:
    """Return a batch of several datasets as one."""
    asked, ends = np.asarray(indices), np.asarray(dataset.cumulative_sizes)
    owners = np.searchsorted(ends, asked, side="right")
    pieces, places = [], []
    for owner in np.unique(owners).tolist():
        at = np.flatnonzero(owners == owner)
        inner = asked[at] - (ends[owner - 1] if owner else 0)
        pieces.append(
            fetch_batch(dataset.datasets[owner], _like(indices, inner), lambda at=at: seeds()[at])  # type: ignore[misc]
        )
        places.append(at)
    return pieces[0] if len(pieces) == 1 else joined(pieces, np.concatenate(places))


def _like(indices: list[int], inner: Any) -> list[int]:
    array = np.asarray(inner, np.int64)
    return Indices(array[np.newaxis], indices.epoch) if isinstance(indices, Indices) else array.tolist()


def listed(indices: Sequence[int]) -> str:
    """Return indices for a message, the first ones of many."""
    return f"[{', '.join(map(str, indices[:64]))}{', ...' if len(indices) > 64 else ''}]"
