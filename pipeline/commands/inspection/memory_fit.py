"""Whether a training fits into the memory of its devices, and the largest batch that would: arithmetic on a step."""

from dataclasses import dataclass

from pipeline.commands.inspection.asked_devices import AskedDevices
from pipeline.training.inspection.step_measurement import StepFacts

USABLE = 0.9
"""The share of a device's memory that a training can count on: the rest is the driver's, kernels' and fragments'."""


@dataclass(frozen=True)
class MemoryFit:
    """What a process needs of its device.

    Attributes:
        needed: Bytes at one moment, those of DDP among them; None where that is not measured.
        usable: Bytes of the device that can be counted on, None where its memory is not known.
        buckets: Bytes that DDP's buckets take beside the gradients.
        fits: Whether it does, None where either is not known.
        largest_batch: Samples of each process that would fit, two digits of it; 0 for none, None where not known. An
            estimate: it takes memory to grow in step with the batch.
    """

    needed: int | None
    usable: int | None
    buckets: int
    fits: bool | None
    largest_batch: int | None

    @staticmethod
    def of(step: StepFacts, devices: AskedDevices) -> "MemoryFit":
        """Compare a measured step with the devices that are asked for."""
        buckets = step.buckets if devices.world_size > 1 and not devices.shares_gradients else 0
        usable = None if devices.memory is None else int(devices.memory * USABLE)
        if step.peak is None:
            return MemoryFit(None, usable, buckets, None, None)
        needed = max(step.peak, step.allocated or 0) + buckets
        fits = None if usable is None else needed <= usable
        largest = None
        if usable is not None and step.batch_size:
            fixed = step.fixed + buckets
            each = max(1, needed - fixed) / step.batch_size
            largest = _two_digits(max(0, usable - fixed) / each)
        return MemoryFit(needed, usable, buckets, fits, largest)


def _two_digits(value: float) -> int:
    """Return the greatest whole number that is not more and has two digits before its zeros."""
    whole = int(value)
    factor: int = 10 ** max(0, len(str(whole)) - 2)
    return whole // factor * factor
