"""The order of an epoch: a keyed permutation that is computed, entry by entry, and never stored."""

import hashlib
import math

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
        """Return the entries at some positions.

        Args:
            positions: (n,) int64 in 0..size-1; each block of at most a few thousand.

        Returns:
            (n,) int64 in 0..size-1, all different where the positions are.
        """
        value = self._encrypt(positions.astype(np.uint64))
        while len(outside := np.flatnonzero(value >= self.size)):
            value[outside] = self._encrypt(value[outside])
        return value.astype(np.int64)

    def _encrypt(self, value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Apply all rounds to the pairs that numbers stand for."""
        a = np.uint64(self._a)
        right = value // a
        left = value - right * a
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
        return right * a + left


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser: a bijection of 64-bit numbers whose every output bit depends on every input bit.

    G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
