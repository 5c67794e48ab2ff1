"""Which rank sees which sample when: a pure function of (seed, epoch, position, world size).

The order of an epoch is a seeded permutation, or one of `pipeline.data.orders`, that is computed, entry by entry, and
never stored: an epoch starts at any position at once, whatever the size of the dataset.

Rank r of W takes the entries position+r, position+r+W, ... Batches
that the ranks take side by side are therefore consecutive pieces of one global order, and what all ranks have consumed
is always a prefix of it. Its length, the position, means the same at any world size.
"""

from collections.abc import Iterator, Sized
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.orders import Entries, Order
from pipeline.data.permutation import Permutation

Tail = Literal["pad", "drop", "keep"]

_BLOCK = 8192
"""Entries computed at once: enough to hide numpy's overhead per call, little enough to stay in the cache."""


class PositionedSampler(DistributedSampler[Any]):
    """A DistributedSampler that starts at any position of an epoch, at once.

    Args:
        dataset: Anything with a length.
        num_replicas: World size.
        rank: Of this process.
        shuffle: Whether the order is drawn from (seed, epoch) or is that of the dataset.
        seed: Draws the order, with the epoch.
        tail: What becomes of samples that do not go evenly over the ranks, decided on what remains: `pad` repeats the
            first of the epoch, `drop` leaves them out, `keep` gives the first ranks one more than the others.
        epoch: The epoch to stand in.
        position: Samples of that epoch that all ranks together have consumed already.
        order: What an epoch visits in the place of each sample once; None: a permutation.

    Raises:
        ValueError: A rank outside the world, a position outside the epoch, or another tail.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        tail: Tail = "pad",
        epoch: int = 0,
        position: int = 0,
        order: Order | None = None,
    ) -> None:
        if num_replicas < 1:
            raise ValueError(f"num_replicas={num_replicas} must be >= 1")
        if tail not in get_args(Tail):
            raise ValueError(f"tail={tail!r} must be one of {', '.join(map(repr, get_args(Tail)))}")
        size = len(dataset) if order is None else order.entries
        if not 0 <= position <= size:
            raise ValueError(f"position={position} must be 0 to {size}, the length of the epoch")
        as_dataset: Dataset[Any] = dataset  # type: ignore[assignment]
        super().__init__(as_dataset, num_replicas, rank, shuffle=shuffle, seed=seed, drop_last=tail == "drop")
        self.size = size
        self.order = order
        self.tail = tail
        self.epoch = epoch
        self.position = position

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch: to its start, unless the sampler stands in it already."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        """Return this rank's samples in a whole epoch, whatever the position: Lightning's length of the epoch."""
        return self.count(0)

    def count(self, position: int) -> int:
        """Return the samples of this rank from a position to the epoch's end."""
        remaining = self.size - position
        each, over = divmod(remaining, self.num_replicas)
        if self.tail == "pad":
            return each + (over > 0)
        return each + (self.tail == "keep" and self.rank < over)

    def padded(self, position: int) -> int:
        """Return the samples that are repeated when an epoch resumes at a position, over all ranks."""
        return -(self.size - position) % self.num_replicas if self.tail == "pad" else 0

    @property
    def repeats(self) -> bool:
        """Whether an epoch may visit a sample more than once by its order, and not only to fill its tail."""
        return self.order is not None and self.order.repeats

    def of_epoch(self) -> Entries | None:
        """Return the order of the epoch; None: that of the dataset."""
        if self.order is not None:
            return self.order.of_epoch(self.seed, self.epoch)
        return Permutation(self.size, self.seed, self.epoch) if self.shuffle else None

    def blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the indices of this rank from the position on, some thousands at a time.

        Yields:
            (1, n) int64; (2, n) with the entries of the order below them, where it `repeats`.
        """
        position, count = self.position, self.count(self.position)
        order = self.of_epoch() if count else None
        for start in range(0, count, _BLOCK):
            steps = np.arange(start, min(start + _BLOCK, count), dtype=np.int64)
            entries = position + self.rank + steps * self.num_replicas
            # Only padding goes beyond the end: it takes the epoch's first entries once more.
            if entries[-1] >= self.size:
                entries %= self.size
            indices = entries if order is None else order(entries)
            yield np.stack([indices, entries]) if self.repeats else indices[np.newaxis]

    def __iter__(self) -> Iterator[int]:
        for block in self.blocks():
            yield from block[0].tolist()


class Indices(list[int]):
    """The indices of one batch. They carry their epoch: a loader worker outlives the one in which it was started.

    numpy takes them as the array that they came from, without a look at each number: `np.asarray(indices)`.

    Args:
        array: (1, n) int64, or (2, n) with the entries of the epoch's order where that repeats samples: each time
            that a sample is visited, it is to draw other random numbers.
        epoch: Counted from 0.
    """

    def __init__(self, array: npt.NDArray[np.int64], epoch: int) -> None:
        super().__init__(array[0].tolist())
        self.epoch = epoch
        self.entries = array[1] if len(array) > 1 else None
        self._array = array

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        # Always a copy: a caller that changes it must not change what others will read.
        return np.array(self._array[0], dtype)

    def __reduce__(self) -> Any:
        # As bytes: numpy's own way to pickle an array would take longer than all else that a worker is told.
        return _indices, (self._array.tobytes(), self.epoch, len(self._array))


def _indices(data: bytes, epoch: int, rows: int) -> Indices:
    return Indices(np.frombuffer(data, np.int64).reshape(rows, -1), epoch)


class Batches(Sampler[list[int]]):
    """Batches of a PositionedSampler, the same number of them on every rank.

    Args:
        sampler: Says which samples, in which order.
        batch_size: Samples per batch of this rank. With `tail="keep"` the last batch of a rank may hold one more.
        drop_last: Leave out a last batch that is not full on all ranks.

    Raises:
        ValueError: No samples per batch, or `tail="keep"` where samples would have to be left out: with `drop_last`, or
            with fewer samples than ranks.
    """

    def __init__(self, sampler: PositionedSampler, batch_size: int, drop_last: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be >= 1")
        if sampler.tail == "keep":
            if drop_last:
                raise ValueError("drop_last=True leaves samples out, and tail='keep' keeps all: choose one")
            fewest = min(sampler.size, sampler.size - sampler.position or sampler.size)
            if 0 < fewest < sampler.num_replicas:
                raise ValueError(
                    f"{fewest} samples for {sampler.num_replicas} ranks: with tail='keep' each rank needs one, or they "
                    "could not run the same number of batches"
                )
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        """Return the batches of a whole epoch, whatever the position."""
        return self.count(0)

    @property
    def done(self) -> int:
        """Return the batches of the epoch that the sampler's position stands for."""
        return len(self) - self.count(self.sampler.position)

    def count(self, position: int) -> int:
        """Return the batches of every rank from a position to the epoch's end."""
        sampler = self.sampler
        if sampler.tail == "keep":
            # What the rank with the fewest samples has; the others carry one more in their last batch.
            return -(-((sampler.size - position) // sampler.num_replicas) // self.batch_size)
        count = sampler.count(position)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def position(self, batches: int) -> int:
        """Return the position after so many batches of the epoch on every rank, counted from its start.

        Args:
            batches: From `done` to the length; less stands for `done`, since what is used stays used.
        """
        sampler = self.sampler
        if batches >= len(self) and sampler.tail == "keep":
            return sampler.size
        each = min(max(batches - self.done, 0) * self.batch_size, sampler.count(sampler.position))
        return min(sampler.size, sampler.position + each * sampler.num_replicas)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, size = self.sampler.epoch, self.batch_size
        left = self.count(self.sampler.position)
        held = np.empty((1 + self.sampler.repeats, 0), np.int64)
        for block in self.sampler.blocks():
            held = np.concatenate([held, block], axis=1)
            # The last one waits for the end: it holds what is left, less than a batch, or one sample more with `keep`.
            full = max(0, min(left - 1, held.shape[1] // size))
            for start in range(0, full * size, size):
                yield Indices(held[:, start : start + size], epoch)
            held = held[:, full * size :]
            left -= full
        if left:
            yield Indices(held if self.sampler.tail == "keep" else held[:, :size], epoch)
