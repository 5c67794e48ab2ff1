"""The order of an epoch: a keyed permutation that is computed, entry by entry, and never stored."""

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST = 2**62
"""Entries of the largest permutation: beyond, pairs of numbers would no longer fit into 64 bits with room to spare."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


class Permutation:
    """A seeded permutation of 0..size-1, computed entry by entry.

    A Feistel network over pairs (left, right) of numbers below `a` and `b` with a x b a little above `size`: each round
    rotates one half by a seeded hash of the other, which can be undone, so the whole is a permutation of the pairs.
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
            raise ValueError(f"size={size} must be 1 to 2**62 entries")
        self.size = size
        self._a, self._b = _ranges(size)
        # The text is part of the order of every run in progress: it never changes.
        self._keys = _keys(f"pipeline.sampler {seed} {epoch} {size}", _rounds(size))

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the entries at some positions.

        Args:
            positions: (n,) int64 in 0..size-1; each block of at most a few thousand.

        Returns:
            (n,) int64 in 0..size-1, all different where the positions are.
        """
        value = _encrypt(positions.astype(np.uint64), self._a, self._b, self._keys)
        while len(outside := np.flatnonzero(value >= self.size)):
            value[outside] = _encrypt(value[outside], self._a, self._b, self._keys)
        return value.astype(np.int64)


class Permutations:
    """Seeded permutations of 0..size-1 for many sizes at once, drawn and computed as `Permutation`'s are.

    Args:
        sizes: (k,) int64, each 1 to 2**62.
        key: A text from which they are drawn; those of equal sizes are equal.
    """

    def __init__(self, sizes: npt.NDArray[np.int64], key: str) -> None:
        self.sizes = sizes.astype(np.uint64)
        ranges = [_ranges(size) for size in sizes.tolist()]
        self._a, self._b = (np.array(each, np.uint64) for each in zip(*ranges, strict=True))
        self._keys = _keys(key, _rounds(int(sizes.min())))

    def __call__(self, which: npt.NDArray[np.int64], positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the entries at some positions.

        Args:
            which: (n,) int64 in 0..k-1, the permutation of each.
            positions: (n,) int64, each in 0..size-1 of its permutation.

        Returns:
            (n,) int64, each in 0..size-1 of its permutation.
        """
        a, b, sizes = self._a[which], self._b[which], self.sizes[which]
        value = _encrypt(positions.astype(np.uint64), a, b, self._keys)
        while len(outside := np.flatnonzero(value >= sizes)):
            value[outside] = _encrypt(value[outside], a[outside], b[outside], self._keys)
        return value.astype(np.int64)


def _ranges(size: int) -> tuple[int, int]:
    """Return the ranges of the two halves of a number below `size`."""
    root = math.isqrt(size - 1) + 1
    # An odd rotation of an odd number of values is an even permutation: one half must have an even range, or half
    # of all permutations could never come out.
    a = root + root % 2
    return a, -(-size // a)


def _rounds(size: int) -> int:
    # A few values need many rounds to mix: with 8 rounds the neighbours of 7 entries are visibly biased.
    return 12 if size >= 1024 else 32


def _keys(text: str, rounds: int) -> npt.NDArray[np.uint64]:
    key = hashlib.shake_256(text.encode()).digest(16 * rounds)
    keys: npt.NDArray[np.uint64] = np.frombuffer(key, "<u8").reshape(rounds, 2)
    return keys | np.array([0, 1], np.uint64)


def _encrypt(value: npt.NDArray[np.uint64], a: Any, b: Any, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Apply all rounds to the pairs that numbers stand for.

    Args:
        value: (n,)
        a: The range of the left halves, one for all or (n,).
        b: That of the right halves.
        keys: (rounds, 2)
    """
    a, b = np.asarray(a, np.uint64), np.asarray(b, np.uint64)
    right: npt.NDArray[np.uint64] = value // a
    left = value - right * a
    hashed, shifted = np.empty_like(left), np.empty_like(left)
    for number, (add, multiply) in enumerate(keys):
        source, target, limit = (right, left, a) if number % 2 == 0 else (left, right, b)
        np.add(source, add, out=hashed)
        np.multiply(hashed, _GOLDEN, out=hashed)
        np.right_shift(hashed, _HALF, out=shifted)
        np.bitwise_xor(hashed, shifted, out=hashed)
        np.multiply(hashed, multiply, out=hashed)
        # The upper 32 bits, scaled to 0..limit-1 without a division.
        np.right_shift(hashed, _HALF, out=hashed)
        np.multiply(hashed, limit, out=hashed)
        np.right_shift(hashed, _HALF, out=hashed)
        # target = (target + hashed) mod limit: an unsigned number below zero is a huge one.
        np.add(target, hashed, out=target)
        np.subtract(target, limit, out=shifted)
        np.minimum(target, shifted, out=target)
    found: npt.NDArray[np.uint64] = right * a + left
    return found


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers whose every output bit depends on every input bit.

    G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
