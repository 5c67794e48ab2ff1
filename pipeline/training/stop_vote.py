"""All ranks agree on the step at which they end, whichever of them was asked to.

About once a second each rank says whether it was asked, by one small MAX over a group of its own on the CPU: started
between two batches and read between the next two, when it has long been there, so that no step and no device waits for
it. What is read is the same everywhere, so all ranks stop between the same two batches.
"""

import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from pipeline.errors import Preempted
from pipeline.process.preemption import LIMIT, Preemption

_SECONDS = 1.0
_MOST = 64
"""Batches after which the ranks speak again, however fast those were: the next ones may be slow."""


class Agreement:
    """Knows whether the ranks end, from `begin` on.

    Args:
        preemption: Of this process.
    """

    def __init__(self, preemption: Preemption) -> None:
        self.preemption = preemption
        self._group: Any = None
        self._ranks = 1
        self._work: Any = None
        self._said = torch.zeros(2, dtype=torch.int64)
        self._left = self._batches = 1
        self._anew = False
        self._began = 0.0
        self._ending = False

    def begin(self, trainer: pl.Trainer) -> None:
        """Make the ranks' group. All ranks must call it.

        Args:
            trainer: With its process group, about to fit.
        """
        self._ranks = trainer.world_size
        if self._ranks > 1:
            # The same patience as the ranks have for each other's gradients.
            timeout = getattr(trainer.strategy, "_timeout", None)
            self._group = dist.new_group(backend="gloo", timeout=timeout)

    def least(self, number: float) -> int:
        """The least of all ranks' numbers of batches, 0 where one of them knows it not. All ranks must call it."""
        own = torch.tensor([int(number) if number < 1 << 62 else 0])
        if self._ranks > 1:
            dist.all_reduce(own, op=dist.ReduceOp.MIN, group=self._group)
        return int(own)

    def restart(self) -> None:
        """Batches of another kind begin, which may take longer: speak at once. All ranks must call it."""
        self._left, self._anew = 1, self._work is not None
        self._batches, self._began = 1, 0.0

    def ending(self) -> bool:
        """Whether all ranks end here. All ranks must call it, between the same batches.

        Raises:
            Preempted: This rank was asked to end, and the others have not answered in time: they are gone.
        """
        self.preemption.heartbeat()
        if self._ranks == 1:
            self._ending = self.preemption.asked
        elif self._work is not None and not self._ending:
            self._ending = self._read()
        if self._ending:
            self.preemption.begin_final_save()
        elif self._ranks > 1:
            self._left -= 1
            if self._left <= 0:
                self._speak()
        return self._ending

    def _speak(self) -> None:
        now = time.monotonic()
        a_batch = (now - self._began) / self._batches
        # No more than twice as far as the last time: a first batch says little of the next ones.
        most = min(_MOST, 2 * self._batches)
        apart = max(1, min(most, int(_SECONDS / max(a_batch, 1e-6)))) if self._began else 1
        self._began = now
        self._said[0], self._said[1] = int(self.preemption.asked), apart
        self._work = dist.all_reduce(self._said, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _read(self) -> bool:
        work, self._work = self._work, None
        try:
            if self.preemption.asked:
                work.wait(timedelta(seconds=LIMIT))
            else:
                work.wait()
        except RuntimeError as error:
            if self.preemption.asked:
                raise Preempted("the other ranks do not answer any more, so that nothing could be saved") from error
            raise
        asked, self._batches = self._said.tolist()
        self._left = 1 if self._anew else self._batches
        self._anew = False
        return bool(asked)
