"""Where the time of each step goes on one rank: a few readings of a clock, no device is asked."""

import time
from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_EVERY = 50
"""Steps of which one is timed on a CUDA device: three events, which are read when they have long passed."""


class StepTimes(NamedTuple):
    """The steps of one window on one rank. Times are in seconds, sums over the window but for p50, p95 and longest."""

    steps: float = 0.0
    samples: float = 0.0
    data: float = 0.0
    forward_backward: float = 0.0
    optimizer: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    longest: float = 0.0


class StepClock:
    """Times the steps of this rank. What lies between two of them (saves, validations) counts for none.

    On a CUDA device the host is ahead of it: the time of whole steps is right where a step waits for an earlier one,
    and how it divides into gradients and optimizer is read from events of the device.

    Args:
        device: That computes.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._events = _Events() if device is not None and device.type == "cuda" else None
        self._began = self._started = self._gradients_at = 0.0
        self._step: int | None = None
        self._spent = 0.0
        """Of the step that is not complete: time of its batches so far."""
        self._reset()

    def _reset(self) -> None:
        self._durations = array("d")
        self._steps = self._samples = 0
        self._data = self._forward_backward = self._optimizer = 0.0

    def waits(self) -> None:
        """Take note that the loop asks for the next batch."""
        self._began = time.perf_counter()

    def starts(self, batch: Any) -> None:
        """Take note that a batch is there.

        Args:
            batch: Any nesting of tensors; the first one tells the number of samples.
        """
        self._started, self._gradients_at = time.perf_counter(), 0.0
        self._samples += samples_in(batch)
        if self._events is not None and len(self._durations) % _EVERY == 0:
            self._events.starts()

    def has_gradients(self) -> None:
        """Take note that the gradients of a step are there, and an optimizer is about to use them."""
        if not self._gradients_at:
            self._gradients_at = time.perf_counter()
            if self._events is not None:
                self._events.has_gradients()

    def ends(self) -> None:
        """Take note that a batch is over."""
        if not self._started:
            return
        now = time.perf_counter()
        gradients_at = self._gradients_at or now
        self._data += self._started - self._began if self._began else 0.0
        self._forward_backward += gradients_at - self._started
        self._optimizer += now - gradients_at
        self._spent += now - (self._began or self._started)
        self._began = self._started = 0.0
        if self._events is not None:
            self._events.ends()

    def reached(self, step: int) -> None:
        """Take note of how many optimizer steps are done, between two batches."""
        if step != self._step:
            if self._spent and self._step is not None:
                self._steps += max(step - self._step, 0)
                self._durations.append(self._spent)
            self._step, self._spent = step, 0.0

    def take(self) -> StepTimes:
        """Return the steps since the last call."""
        durations = np.frombuffer(self._durations, np.float64) if self._durations else np.zeros(1)
        p50, p95, longest = np.quantile(durations, (0.5, 0.95, 1.0)).tolist()
        gradients, optimizer = self._forward_backward, self._optimizer
        if self._events is not None and (share := self._events.share_of_optimizer()) is not None:
            gradients, optimizer = (1 - share) * (gradients + optimizer), share * (gradients + optimizer)
        found = StepTimes(self._steps, self._samples, self._data, gradients, optimizer, p50, p95, longest)
        self._reset()
        return found


class _Events:
    """Three moments of one step on a CUDA device, for which nothing waits."""

    def __init__(self) -> None:
        self._next: list[torch.cuda.Event] = []
        self._last: list[torch.cuda.Event] = []

    def starts(self) -> None:
        self._next = [_recorded()]

    def has_gradients(self) -> None:
        if len(self._next) == 1:
            self._next.append(_recorded())

    def ends(self) -> None:
        if len(self._next) == 2:
            self._last, self._next = [*self._next, _recorded()], []

    def share_of_optimizer(self) -> float | None:
        """Return it as of the last step that was timed; None before one has passed."""
        if not self._last or not self._last[-1].query():  # type: ignore[no-untyped-call]
            return None
        start, gradients, end = self._last
        whole = start.elapsed_time(end)
        return gradients.elapsed_time(end) / whole if whole > 0 else None


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def samples_in(batch: Any) -> int:
    """Return the length of the first tensor of a batch; 0 where there is none."""
    while not isinstance(batch, Tensor):
        if isinstance(batch, Mapping):
            batch = next(iter(batch.values()), None)
        elif isinstance(batch, (list, tuple)) and batch:
            batch = batch[0]
        else:
            return 0
    return batch.shape[0] if batch.dim() else 1
