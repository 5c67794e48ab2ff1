"""All ranks stop between the same two batches, whichever of them was asked to.

About once a second each rank casts a ballot, by one small MAX over a process group of its own on the CPU: started
between two batches and read between the next two, when it has long arrived, so that no step and no device waits for it.
Where a batch takes half a second or longer, a ballot costs nothing beside it and is read at once: a stop that is asked
for in a batch comes at its end. The result is the same everywhere. On the same ballot rank 0 says that a save by time
is due, a state to be kept in memory, or a window of telemetry over.
"""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pipeline.errors import Preempted
from pipeline.process.preemption import LIMIT, Preemption

_SECONDS = 1.0
"""Between two ballots."""
_SLOW = 0.5
"""Seconds of a batch from which on a ballot is read at once."""
_MOST = 64
"""Batches after which the ranks vote again, however fast those were: the next ones may be slow."""


class Due(NamedTuple):
    """What is due by rank 0's clock.

    Attributes:
        minutes: To save, because `every_minutes` have passed.
        memory: To keep a state in memory.
        telemetry: To end a window of it.
    """

    minutes: bool = False
    memory: bool = False
    telemetry: bool = False

    def without(self, other: "Due") -> "Due":
        """Return what is due here and not there."""
        return Due(*(mine and not theirs for mine, theirs in zip(self, other, strict=True)))

    def __or__(self, other: "Due") -> "Due":
        return Due(*(mine or theirs for mine, theirs in zip(self, other, strict=True)))


class Vote(NamedTuple):
    """What all ranks have agreed on: whether to stop here, and what is due."""

    stop: bool
    due: Due = Due()


class StopVote:
    """Decides for all ranks whether they stop here, from `begin` on.

    Args:
        preemption: Of this process.
    """

    def __init__(self, preemption: Preemption) -> None:
        self.preemption = preemption
        self.group: Any = None
        """The process group of the ballots, on the CPU; None for one rank."""
        self._ranks = 1
        self._work: Any = None
        self._ballot = torch.zeros(3 + len(Due._fields), dtype=torch.int64)
        """Whether to stop, batches until the next ballot, whether batches are short, what is due."""
        self._left = self._batches = 1
        self._slow = False
        self._vote_again = False
        self._done_since = Due()
        self._cast_at = 0.0
        self._stop = False

    def begin(self, ranks: int, timeout: timedelta | None) -> None:
        """Make the process group of the ballots. All ranks must call it.

        Args:
            ranks: World size.
            timeout: Of one ballot: as long as the ranks wait for each other's gradients.
        """
        self._ranks = ranks
        if ranks > 1:
            self.group = dist.new_group(backend="gloo", timeout=timeout)

    def least(self, number: float) -> int:
        """Return the least of all ranks' numbers of batches, 0 where a rank cannot tell. All ranks must call it."""
        own = torch.tensor([int(number) if number < 1 << 62 else 0])
        if self._ranks > 1:
            dist.all_reduce(own, op=dist.ReduceOp.MIN, group=self.group)
        return int(own)

    def restart(self) -> None:
        """Vote at the next boundary: batches of another kind begin, which may take longer. All ranks must call it."""
        self._left, self._vote_again = 1, self._work is not None
        self._batches, self._cast_at, self._slow = 1, 0.0, False

    def done(self, due: Due) -> None:
        """Ignore what the ballot under way says of this: it has just been done. All ranks must call it."""
        if self._work is not None:
            self._done_since |= due

    def poll(self, due: Callable[[], Due] = Due) -> Vote:
        """Return what all ranks have agreed on. All ranks must call it, at the same boundary.

        Args:
            due: Returns what is; rank 0's answer counts.

        Raises:
            Preempted: This rank was asked to stop, and the others have not answered in time: they are gone.
        """
        self.preemption.heartbeat()
        agreed = Due()
        if self._ranks == 1:
            self._stop, agreed = self.preemption.asked, due()
        elif not self._stop:
            if self._work is not None:
                agreed = self._read_ballot()
            if not self._stop:
                self._cast(due)
            # All ranks read at once, or none: the last ballot has told them so.
            if self._slow and self._work is not None:
                agreed |= self._read_ballot()
        if self._stop:
            self.preemption.begin_final_save()
        return Vote(self._stop, agreed)

    def _cast(self, due: Callable[[], Due]) -> None:
        """Start the next ballot, if it is time for one."""
        self._left -= 1
        if self._left > 0:
            return
        now = time.monotonic()
        a_batch = (now - self._cast_at) / self._batches
        # No more than twice as far as the last time: a first batch says little about the next ones.
        most = min(_MOST, 2 * self._batches)
        apart = max(1, min(most, int(_SECONDS / max(a_batch, 1e-6)))) if self._cast_at else 1
        short = not self._cast_at or a_batch < _SLOW
        self._cast_at = now
        self._ballot.copy_(torch.tensor([self.preemption.asked, apart, short, *due()]))
        self._work = dist.all_reduce(self._ballot, op=dist.ReduceOp.MAX, group=self.group, async_op=True)

    def _read_ballot(self) -> Due:
        """Take the result of the ballot under way; return what is due."""
        work, self._work = self._work, None
        try:
            if self.preemption.asked:
                work.wait(timedelta(seconds=LIMIT))
            else:
                work.wait()
        except RuntimeError as error:
            if self.preemption.asked:
                raise Preempted("the other ranks no longer answer: nothing could be saved") from error
            raise
        stop, self._batches, short, *found = self._ballot.tolist()
        self._slow = not (short or self._vote_again)
        self._left = 1 if self._vote_again else self._batches
        due = Due(*map(bool, found)).without(self._done_since)
        self._vote_again, self._done_since = False, Due()
        self._stop = bool(stop)
        return due
