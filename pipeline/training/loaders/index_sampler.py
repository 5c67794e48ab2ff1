"""What draws the indices of a DataLoader's batches, so that a pass can be drawn again as it was."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler


class IndicesFrom:
    """The indices of a loader's batches, whose first pass begins later, in the order that it had.

    Args:
        sampler: The loader's own.
        skip: Batches that the first pass leaves out.
    """

    def __init__(self, sampler: Any, skip: int) -> None:
        self.sampler = sampler
        self._skip: int | None = skip
        self._indices: Iterator[Any] | None = None
        self._used = False

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        if self._used:  # by workers that live for another pass
            again: Iterator[Any] = iter(self.sampler)
            return again
        if self._skip is not None:
            self._indices = iter(self.sampler)
        return self

    def __next__(self) -> Any:
        self.begin()
        self._used = True
        assert self._indices is not None
        return next(self._indices)

    def begin(self) -> None:
        """Draw the order now, and skip."""
        skip, self._skip = self._skip, None
        if skip is not None:
            indices = iter(self.sampler) if self._indices is None else self._indices
            self._indices = chain(list(islice(indices, skip, skip + 1)), indices)


class _SameOrder:
    """A sampler that draws the same order each time that it is iterated.

    Args:
        sampler: The loader's own.
        rewind: Puts the generators that it draws from back.
    """

    def __init__(self, sampler: Any, rewind: Callable[[], None]) -> None:
        self.sampler = sampler
        self.rewind = rewind

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self.rewind()
        return iter(self.sampler)


@contextmanager
def same_order(loader: Any, rewind: Callable[[], None] | None) -> Iterator[None]:
    """Have each iteration draw the same order, where Lightning has wrapped a sampler that draws one for all ranks.

    torchdata's loader does not see that sampler behind Lightning's, so that it does not keep its state, and iterates
    it three times to find its place.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    holder = loader if batch_sampler is None else batch_sampler
    sampler = getattr(holder, "sampler", None)
    if rewind is None or not isinstance(sampler, DistributedSampler) or _inner(sampler) is None:
        yield
        return
    vars(holder)["sampler"] = _SameOrder(sampler, rewind)
    try:
        yield
    finally:
        vars(holder)["sampler"] = sampler


def generator_owners(loader: Any) -> dict[str, Any]:
    """Return what may hold random number generators for a loader, by name: itself, its samplers, its dataset."""
    owners = {"loader": loader}
    for name in ("sampler", "batch_sampler"):
        path, holder = name, getattr(loader, name, None)
        while holder is not None and all(holder is not each for each in owners.values()):
            owners[path] = holder
            path, holder = f"{path}.sampler", _inner(holder)
    if not getattr(loader, "num_workers", 0):  # each worker has a copy of its own, which nobody can ask
        owners["dataset"] = getattr(loader, "dataset", None)
    return owners


def _inner(holder: Any) -> Any:
    """Return the sampler within a batch sampler or a wrapper of Lightning's, which holds it as its dataset's."""
    wrapped = getattr(getattr(holder, "dataset", None), "_sampler", None)
    found = (getattr(holder, "sampler", None), wrapped)
    return next((each for each in found if isinstance(each, Sampler)), None)
