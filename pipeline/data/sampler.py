"""Which rank sees which sample when: a pure function of (seed, epoch, position, world size).

The order of an epoch is a keyed permutation that is computed, entry by entry, and never stored: an epoch starts at any
position at once, whatever the size of the dataset. Rank r of W takes the entries position+r, position+r+W, ... Batches
that the ranks take side by side are therefore consecutive pieces of one global order, and what all ranks have consumed
is always a prefix of it. Its length, the position, means the same at any world size.
"""

import hashlib
import math
from collections.abc import Iterator, Sized
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset, Sampler
from torch.utils.data.distributed import DistributedSampler

Tail = Literal["pad", "drop", "keep"]

_BLOCK = 8192
"""Entries computed at once: enough to hide numpy's overhead per call, little enough to stay in the cache."""

_LARGEST = 2**62
"""Entries of the largest permutation: beyond, pairs of numbers would no longer fit into 64 bits with room to spare."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


class Permutation:
    """A keyed permutation of 0..size-1, computed entry by entry.

    A Feistel network over pairs (left, right) of numbers below `a` and `b` with a x b a little above `size`: each round
    rotates one half by a keyed hash of the other, which can be undone, so the whole is a permutation of the pairs.
    Entries that fall beyond `size` walk on along their cycle until they fall inside, which keeps it one (J. Black and
    P. Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002: the generalised Feistel cipher and cycle walking).

    Args:
        size: Number of entries, 1 to 2**62.
        seed: With the epoch, the key.
        epoch: With the seed, the key.

    Raises:
        ValueError: A size out of its range.
    """

    def __init__(self, size: int, seed: int, epoch: int) -> None:
        if not 1 <= size <= _LARGEST:
            raise ValueError(f"size={size}: allowed are 1 to 2**62 entries")
        self.size = size
        root = math.isqrt(size - 1) + 1
        # An odd rotation of an odd number of values is an even permutation: one half must have an even range, or half
        # of all permutations could never come out.
        self._a = root + root % 2
        self._b = -(-size // self._a)
        # A few values need many rounds to mix: with 8 rounds the neighbours of 7 entries are visibly biased.
        rounds = 12 if size >= 1024 else 32
        # The text is part of the order of every run in progress: it never changes.
        key = hashlib.shake_256(f"pipeline.sampler {seed} {epoch} {size}".encode()).digest(16 * rounds)
        self._keys = np.frombuffer(key, "<u8").reshape(rounds, 2) | np.array([0, 1], np.uint64)

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The entries at some positions.

        Args:
            positions: (n,) int64 in 0..size-1; each block of at most a few thousand.

        Returns:
            (n,) int64 in 0..size-1, all different where the positions are.
        """
        a = np.uint64(self._a)
        value = positions.astype(np.uint64)
        right = value // a
        left = value - right * a
        self._encrypt(left, right)
        value = right * a + left
        while len(outside := np.flatnonzero(value >= self.size)):
            left, right = left[outside], right[outside]
            walking = value[outside]
            while True:
                right = walking // a
                left = walking - right * a
                self._encrypt(left, right)
                walking = right * a + left
                inside = walking < self.size
                value[outside[inside]] = walking[inside]
                outside, walking = outside[~inside], walking[~inside]
                if not len(outside):
                    break
        return value.astype(np.int64)

    def _encrypt(self, left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> None:
        """Apply all rounds, in place."""
        hashed, shifted = np.empty_like(left), np.empty_like(left)
        for number, (add, multiply) in enumerate(self._keys):
            source, target, limit = (right, left, self._a) if number % 2 == 0 else (left, right, self._b)
            np.add(source, add, out=hashed)
            np.multiply(hashed, _GOLDEN, out=hashed)
            np.right_shift(hashed, _HALF, out=shifted)
            np.bitwise_xor(hashed, shifted, out=hashed)
            np.multiply(hashed, multiply, out=hashed)
            # The upper 32 bits, scaled to 0..limit-1 without a division.
            np.right_shift(hashed, _HALF, out=hashed)
            np.multiply(hashed, np.uint64(limit), out=hashed)
            np.right_shift(hashed, _HALF, out=hashed)
            # target = (target + hashed) mod limit: an unsigned number below zero is a huge one.
            np.add(target, hashed, out=target)
            np.subtract(target, np.uint64(limit), out=shifted)
            np.minimum(target, shifted, out=target)


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

    Raises:
        ValueError: A rank outside the world, a position outside the dataset, or another tail.
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
    ) -> None:
        if num_replicas < 1:
            raise ValueError(f"num_replicas={num_replicas}: allowed are 1 and more processes")
        if tail not in get_args(Tail):
            raise ValueError(f"tail={tail!r}: allowed are {', '.join(map(repr, get_args(Tail)))}")
        if not 0 <= position <= len(dataset):
            raise ValueError(f"position={position}: allowed are 0 to {len(dataset)}, the length of the dataset")
        as_dataset: Dataset[Any] = dataset  # type: ignore[assignment]
        super().__init__(as_dataset, num_replicas, rank, shuffle=shuffle, seed=seed, drop_last=tail == "drop")
        self.size = len(dataset)
        self.tail = tail
        self.epoch = epoch
        self.position = position

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch: to its start, unless the sampler stands in it already."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch, whatever the position: Lightning takes it for the epoch's length."""
        return self.count(0)

    def count(self, position: int) -> int:
        """Samples of this rank from a position to the epoch's end."""
        remaining = self.size - position
        each, over = divmod(remaining, self.num_replicas)
        if self.tail == "pad":
            return each + (over > 0)
        return each + (self.tail == "keep" and self.rank < over)

    def padded(self, position: int) -> int:
        """Samples that are repeated when an epoch goes on at a position, over all ranks."""
        return -(self.size - position) % self.num_replicas if self.tail == "pad" else 0

    def blocks(self) -> Iterator[npt.NDArray[np.int64]]:
        """The indices of this rank from the position on, some thousands at a time."""
        position, count = self.position, self.count(self.position)
        permutation = Permutation(self.size, self.seed, self.epoch) if self.shuffle and count else None
        for start in range(0, count, _BLOCK):
            steps = np.arange(start, min(start + _BLOCK, count), dtype=np.int64)
            entries = position + self.rank + steps * self.num_replicas
            # Only padding goes beyond the end: it takes the epoch's first entries once more.
            if entries[-1] >= self.size:
                entries %= self.size
            yield entries if permutation is None else permutation(entries)

    def __iter__(self) -> Iterator[int]:
        for block in self.blocks():
            yield from block.tolist()


class Indices(list[int]):
    """The indices of one batch. They carry their epoch: a loader worker outlives the one in which it was started.

    numpy takes them as the array that they came from, without a look at each number: `np.asarray(indices)`.

    Args:
        array: (n,) int64.
        epoch: Counted from 0.
    """

    def __init__(self, array: npt.NDArray[np.int64], epoch: int) -> None:
        super().__init__(array.tolist())
        self.epoch = epoch
        self._array = array

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        # Always a copy: whoever changes it must not change what others will read.
        return np.array(self._array, dtype)

    def __reduce__(self) -> Any:
        # As bytes: numpy's own way to pickle an array would take longer than all else that a worker is told.
        return _indices, (self._array.tobytes(), self.epoch)


def _indices(data: bytes, epoch: int) -> Indices:
    return Indices(np.frombuffer(data, np.int64), epoch)


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
            raise ValueError(f"batch_size={batch_size}: allowed are 1 and more samples")
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
        """Batches of a whole epoch, whatever the position."""
        return self.count(0)

    @property
    def done(self) -> int:
        """Batches of the epoch that the sampler's position stands for."""
        return len(self) - self.count(self.sampler.position)

    def count(self, position: int) -> int:
        """Batches of every rank from a position to the epoch's end."""
        sampler = self.sampler
        if sampler.tail == "keep":
            # What the rank with the fewest samples has; the others carry one more in their last batch.
            return -(-((sampler.size - position) // sampler.num_replicas) // self.batch_size)
        count = sampler.count(position)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def position(self, batches: int) -> int:
        """The position after so many batches of the epoch on every rank, counted from its start.

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
        held = np.empty(0, np.int64)
        for block in self.sampler.blocks():
            held = np.concatenate([held, block])
            # The last one waits for the end: it holds what is left, less than a batch, or one sample more with `keep`.
            full = max(0, min(left - 1, len(held) // size))
            for start in range(0, full * size, size):
                yield Indices(held[start : start + size], epoch)
            held = held[full * size :]
            left -= full
        if left:
            yield Indices(held if self.sampler.tail == "keep" else held[:size], epoch)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers whose every output bit depends on every input bit.

    G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
