"""Orders of an epoch that visit samples otherwise than once each in a permutation: by weight, by class, by length.

Each is a pure function of (seed, epoch, entry), as the permutation is, and depends beside that on one number for each
sample. So an epoch starts at any of its entries at once, and what it should have used can be computed again by whoever
has these numbers.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.data.permutation import Permutation, Permutations, mix

Entries = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""Takes some entries of an epoch, (n,) in 0..entries-1, and returns the indices of their samples, (n,)."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WINDOWS = 8
"""The fewest windows of similar lengths, as far as there are groups enough."""
_GROUPS = 64
"""The most groups of one window: among them samples change their places from epoch to epoch."""


class Order(Protocol):
    """What the epochs of one training set visit.

    Attributes:
        kind: What it is called.
        entries: How many samples an epoch visits, each time one is visited counted.
        values: (samples,) What it depends on: one number for each sample.
        repeats: Whether a sample may be visited more than once in an epoch.
        facts: What it is, as numbers and texts.
    """

    kind: str
    entries: int
    values: npt.NDArray[Any]
    repeats: bool
    facts: dict[str, Any]

    def of_epoch(self, seed: int, epoch: int) -> Entries:
        """Return the order of one epoch."""

    def describe(self) -> str:
        """Return in a sentence what it does."""


class WeightedOrder:
    """Samples drawn with replacement, each as probable as its share of the sum of all weights.

    Args:
        values: (samples,) float64: the weights, finite, >= 0, and not all 0.
        entries: How many are drawn in an epoch.
    """

    kind = "weights"

    def __init__(self, values: npt.NDArray[Any], entries: int) -> None:
        self.values, self.entries = values.astype("<f8", copy=False), entries
        self.repeats = True
        self.facts = {"kind": self.kind, "values": digest(self.values), "entries": entries}
        # Weights near the ends of what a number holds must not have a sum of infinity or zero.
        self._sums = np.cumsum(self.values / self.values.max())
        # Where to look for a number: between two of these. A power of two, so that shares of it are exact.
        self._parts = 1 << max(0, min(24, len(values).bit_length() - 1))
        shares = np.arange(self._parts + 1, dtype=np.float64) / self._parts
        found = np.searchsorted(self._sums, shares * self._sums[-1], side="right")
        self._first = np.minimum(found, len(values) - 1).astype(np.int64 if len(values) >> 31 else np.int32)
        self._most = np.nextafter(self._sums[-1], 0)

    def of_epoch(self, seed: int, epoch: int) -> Entries:
        """Return the order of one epoch."""
        key = _number(f"pipeline.orders weights {seed} {epoch}")

        def indices(entries: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            low: npt.NDArray[np.int64]
            share = (mix(key + entries.astype(np.uint64) * _GOLDEN) >> np.uint64(11)) * 2.0**-53
            sought = np.minimum(share * self._sums[-1], self._most)
            part = (share * self._parts).astype(np.int64)
            low, high = self._first[part].astype(np.int64), self._first[part + 1].astype(np.int64)
            while len(open_ := np.flatnonzero(low < high)):
                middle = (low[open_] + high[open_]) >> 1
                above = self._sums[middle] <= sought[open_]
                low[open_[above]] = middle[above] + 1
                high[open_[~above]] = middle[~above]
            return low

        return indices

    def describe(self) -> str:
        """Return in a sentence what it does."""
        return f"{self.entries:,} samples of {len(self.values):,} are drawn with replacement, in proportion to weights."


class LengthOrder:
    """Each sample once, in groups of similar lengths that come in a random order.

    Samples are sorted by their lengths once, and the sorted ones cut into windows of some groups. In each epoch the
    samples of a window are shuffled, and dealt out to its groups; then all groups are. A rest that fills no group, a
    piece of the sorted samples at another place each time, comes last.

    Args:
        values: (samples,) float64: the lengths.
        group: Samples of a group: those of one optimizer step.
    """

    kind = "group_by_length"

    def __init__(self, values: npt.NDArray[Any], group: int) -> None:
        self.values, self.entries, self.group = values.astype("<f8", copy=False), len(values), group
        self.repeats = False
        self.facts = {"kind": self.kind, "values": digest(self.values), "group": group}
        small = np.int64 if len(values) >> 31 else np.int32
        self._sorted = np.argsort(self.values, kind="stable").astype(small)
        self._groups = len(values) // group
        self._together = max(min(2, self._groups), min(_GROUPS, self._groups // _WINDOWS))

    def of_epoch(self, seed: int, epoch: int) -> Entries:
        """Return the order of one epoch."""
        key = f"pipeline.orders lengths {seed} {epoch} {self.entries} {self.group}"
        whole = self._groups * self.group
        rest = self.entries - whole
        drawn = mix(_number(key) + np.arange(2, dtype=np.uint64) * _GOLDEN)
        if not whole:
            return lambda entries: self._sorted[Permutation(rest, seed, epoch)(entries)].astype(np.int64)
        rest_at = int(drawn[0] % np.uint64(whole + 1)) if rest else 0
        edges = self._edges(int(drawn[1] % np.uint64(self._together)))
        inside = Permutations(np.diff(edges) * self.group, key)
        groups = Permutation(self._groups, seed, epoch)

        def indices(entries: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            place = np.empty_like(entries)
            is_rest = entries >= whole
            place[is_rest] = rest_at + entries[is_rest] - whole
            grouped = entries[~is_rest]
            number = groups(grouped // self.group)
            window = np.searchsorted(edges, number, side="right") - 1
            first = edges[window] * self.group
            at = first + inside(window, number * self.group + grouped % self.group - first)
            place[~is_rest] = at + rest * (at >= rest_at)
            return self._sorted[place].astype(np.int64)

        return indices

    def _edges(self, shift: int) -> npt.NDArray[np.int64]:
        """Return the first group of each window, and how many groups there are; the windows lie otherwise each time."""
        inner = np.arange(shift, self._groups, self._together, dtype=np.int64)
        return np.unique(np.concatenate([[0], inner, [self._groups]]))

    def describe(self) -> str:
        """Return in a sentence what it does."""
        return f"Shuffled in groups of {self.group:,} samples of similar lengths; each sample once."


class BalancedOrder:
    """Every class as often as any other, shuffled.

    With `oversample` each class comes as often as the largest one: each of its samples as often as any other of it, or
    once more. With `undersample` each comes as often as the smallest one: of larger ones other samples in each epoch,
    drawn without replacement.

    Args:
        values: (samples,) int32: the number of the class of each, from 0 on without gaps.
        kind: Of the two.
    """

    kind = "balance"

    def __init__(self, values: npt.NDArray[Any], how: str) -> None:
        self.values, self.how = values.astype("<i4", copy=False), how
        self._counts = np.bincount(values)
        self._share = int(self._counts.max() if how == "oversample" else self._counts.min())
        self.entries = self._share * len(self._counts)
        self.repeats = how == "oversample" and bool((self._counts < self._share).any())
        self.facts = {"kind": self.kind, "values": digest(self.values), "how": how}
        small = np.int64 if len(values) >> 31 else np.int32
        self._members = np.argsort(self.values, kind="stable").astype(small)
        self._first = np.concatenate([[0], np.cumsum(self._counts)[:-1]])

    def of_epoch(self, seed: int, epoch: int) -> Entries:
        """Return the order of one epoch."""
        shuffled = Permutation(self.entries, seed, epoch)
        inside = Permutations(self._counts, f"pipeline.orders classes {seed} {epoch} {len(self.values)}")

        def indices(entries: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
            kind, turn = np.divmod(shuffled(entries), self._share)
            return self._members[self._first[kind] + inside(kind, turn % self._counts[kind])].astype(np.int64)

        return indices

    def describe(self) -> str:
        """Return in a sentence what it does."""
        times = "the samples of smaller ones are repeated" if self.how == "oversample" else "others are left out"
        return f"Shuffled, each of {len(self._counts):,} classes {self._share:,} times: {times}."


def digest(values: npt.NDArray[Any]) -> str:
    """Return what tells some numbers from others."""
    hasher = hashlib.sha256(f"{values.dtype.str} {len(values)};".encode())
    hasher.update(np.ascontiguousarray(values).data)
    return f"sha256:{hasher.hexdigest()}"


def order_of(facts: Mapping[str, Any], values: npt.NDArray[Any]) -> Order:
    """Return the order that has these facts.

    Args:
        facts: As an order tells them.
        values: What it depends on.

    Raises:
        ValueError: They are no facts of an order, or the values are others.
    """
    kinds: dict[Any, Callable[[], Order]] = {
        WeightedOrder.kind: lambda: WeightedOrder(values, int(facts["entries"])),
        LengthOrder.kind: lambda: LengthOrder(values, int(facts["group"])),
        BalancedOrder.kind: lambda: BalancedOrder(values, str(facts["how"])),
    }
    try:
        if digest(values) != facts["values"]:
            raise ValueError("the numbers are not those that it was drawn from")
        return kinds[facts["kind"]]()
    except (KeyError, TypeError, IndexError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"not an order: {dict(facts)!r}") from error


def _number(text: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.shake_256(text.encode()).digest(8), "little"))
