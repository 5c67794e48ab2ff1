"""The record of an epoch: which samples it should have used and which it did, as counts and hashes.

What a checkpoint holds of its epochs is judged here, during training and afterwards.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.orders import Entries, LengthOrder
from pipeline.data.permutation import Permutation, mix

MISMATCH = "mismatch"
"""Closes an epoch that restarts from its beginning, since the user allowed another dataset or another order."""
_OLD_NAMES = {"drift": MISMATCH}
"""What earlier releases have written for it."""

_BLOCK = 8192


@dataclass(frozen=True)
class Tally:
    """Samples, as a count and an order-independent hash of their indices: sums over different samples add up.

    Attributes:
        count: Samples.
        hash: The sum of the mixed indices modulo 2**64. A sample in the place of another changes it, and so does one
            that is missing or double.
    """

    count: int = 0
    hash: int = 0

    @staticmethod
    def of(indices: npt.NDArray[np.int64]) -> "Tally":
        """Return the tally of some indices, (n,)."""
        return Tally(len(indices), int(mix(indices.astype(np.uint64)).sum(dtype=np.uint64)))

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.count + other.count, (self.hash + other.hash) % 2**64)


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: Counted from 0.
        seed: Draws the epoch's order.
        samples: Entries of the epoch's order: the size of the training set, unless `order` says otherwise.
        position: Samples of the epoch's order that all ranks together should have used.
        padded: Samples used once more, so that they went evenly over the ranks.
        dropped: Samples left out, so that the rest went evenly.
        consumed: What was used, over all ranks and attempts.
        withheld: What was not, since the collate function left it out, or returned None as a batch, which Lightning
            skips.
        unproven: What went into batches of which it cannot be told which samples they hold.
        order: The facts of an order by weights, lengths or classes, see `pipeline.data.orders`; None: the permutation.
        closed: What ended the epoch: `complete`, `limit_train_batches`, `skipped` (the model returned -1), `max_steps`,
            `stopped` (by a callback), `mismatch`, `loader` (it ended too early: never right); None while it is open.
    """

    epoch: int
    seed: int
    samples: int
    position: int = 0
    padded: int = 0
    dropped: int = 0
    consumed: Tally = Tally()
    closed: str | None = None
    withheld: Tally = Tally()
    unproven: Tally = Tally()
    order: Mapping[str, Any] | None = None

    @property
    def given(self) -> Tally:
        """All that the loader has given, whatever became of it."""
        return self.consumed + self.withheld + self.unproven

    @property
    def is_whole(self) -> bool:
        """Whether it should have used each sample exactly once, so that the order is not asked to know which."""
        return self._repeats_none and self.position == self.samples and not self.padded

    @property
    def _repeats_none(self) -> bool:
        return self.order is None or self.order["kind"] == LengthOrder.kind

    def expected(self, rank: int = 0, world_size: int = 1, entries: Entries | None = None) -> Tally:
        """Return what should have been used, from the order alone.

        Args:
            rank: Computes only this share of it; the shares of all ranks add up to the whole.
            world_size: Shares.
            entries: The epoch's order, where that is no permutation.
        """
        assert self.order is None or self.is_whole or entries is not None
        return sum(
            (_sum(self._entries(stop, rank, world_size, entries)) for stop in (self.position, self.padded)), Tally()
        )

    def problem(self, expected: Tally) -> str | None:
        """Return what is wrong between `expected` and `consumed`, in words; None if nothing is."""
        given = self.given
        if expected == given and self.closed != "loader":
            return None
        more = given.count - expected.count
        if more < 0 or (self.closed == "loader" and more == 0):
            cause = f"{-more or 'some'} samples were left out: a loader or a wrapper around it drops batches"
        elif more > 0:
            cause = f"{more} samples too many were used: a loader or a wrapper around it repeats batches"
        else:
            cause = (
                "the count is right but the samples are not: a loader or a wrapper around it uses some twice in place "
                "of others"
            )
        return (
            f"epoch {self.epoch} should have used {expected.count} samples (position {self.position}, {self.padded} "
            f"padded) and used {self.consumed.count}: {cause}"
        )

    def _entries(self, stop: int, rank: int, world_size: int, order: Entries | None) -> Iterator[npt.NDArray[np.int64]]:
        """Yield the share of the order's first `stop` entries, in blocks."""
        # All samples are all samples in any order: then it is not asked, and its own faults would show.
        every = stop == self.samples and self._repeats_none
        if order is None and not every:
            order = Permutation(self.samples, self.seed, self.epoch)
        for start in range(rank * _BLOCK, stop, world_size * _BLOCK):
            positions = np.arange(start, min(start + _BLOCK, stop), dtype=np.int64)
            yield positions if order is None or every else order(positions % self.samples)

    def as_dict(self) -> dict[str, Any]:
        """Return numbers, strings and a list, for a checkpoint."""
        tallies = {"consumed": self.consumed, "withheld": self.withheld, "unproven": self.unproven}
        # Not `asdict`, which takes ten times as long to copy what needs no copy; a save has a record of each epoch.
        told = {name: value for name, value in vars(self).items() if name != "order"}
        told |= {} if self.order is None else {"order": dict(self.order)}
        return {**told, **{name: [tally.count, f"{tally.hash:016x}"] for name, tally in tallies.items()}}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> "EpochRecord":
        """Parse what `as_dict` made.

        Raises:
            ValueError: It is something else.
        """
        try:
            epoch, seed, samples, position, padded, dropped = (
                int(value[name]) for name in ("epoch", "seed", "samples", "position", "padded", "dropped")
            )
            consumed, withheld = _tally(value["consumed"]), _tally(value["withheld"])
            unproven = _tally(value.get("unproven", (0, "0")))
            closed = None if value["closed"] is None else str(value["closed"])
            closed = _OLD_NAMES.get(closed or "", closed)
            order = value.get("order")
            if order is not None and not all(isinstance(order[name], str) for name in ("kind", "values")):
                raise ValueError("not an order")
            counts = (epoch, seed, samples, position, padded, dropped)
            record = EpochRecord(*counts, consumed, closed, withheld, unproven, order)
            sums = (record.padded, record.consumed.count, record.withheld.count, record.unproven.count)
            if not 0 <= record.position <= record.samples <= 2**62 or min(sums) < 0:
                raise ValueError("numbers out of range")
            return record
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not the record of an epoch: {value!r}") from error


def _tally(value: Any) -> Tally:
    count, digest = value
    return Tally(int(count), int(digest, 16))


def _sum(blocks: Iterator[npt.NDArray[np.int64]]) -> Tally:
    total = Tally()
    for block in blocks:
        total += Tally.of(block)
    return total
