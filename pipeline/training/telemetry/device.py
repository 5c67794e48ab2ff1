"""What a device and DDP say of a step: its floating-point operations, their peak, the unhidden sum of gradients."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.compat import Member, check

MEMBERS = (
    Member(DistributedDataParallel, "_get_ddp_logging_data", (), "tells how long the sum of gradients has taken"),
)

check(MEMBERS)


def waited_for_gradients(trainer: pl.Trainer) -> float | None:
    """Return the seconds for which a step waited for the sum of gradients with nothing left to compute.

    As DDP measured it in the last step that it looked at: of the first ten, and of each hundredth. On all ranks but the
    slowest one that includes the wait for the slowest one.

    Returns:
        None where there is no DDP, or nothing was measured.
    """
    model = trainer.strategy.model
    if not isinstance(model, DistributedDataParallel):
        return None
    try:
        found: Any = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        waited = (found["backward_comm_time"] - found["backward_compute_comm_overlap_time"]) / 1e9
    except (KeyError, TypeError, RuntimeError):
        return None
    return waited if found["backward_comm_time"] > 0 and waited >= 0 else None


def flops_per_batch(module: pl.LightningModule) -> float:
    """Return the floating-point operations of one batch, forward and backward, as the model says it; 0: it does not.

    `flops_per_batch` is the attribute that Lightning's ThroughputMonitor looks at as well.
    """
    value = getattr(module, "flops_per_batch", None)
    return float(value) if isinstance(value, int | float) and value > 0 else 0.0


def peak_flops(trainer: pl.Trainer) -> float | None:
    """Return the operations a second that one device can do in the precision of this training; None: not known."""
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    half = {"bf16": torch.bfloat16, "16": torch.float16}
    dtype = half.get(str(trainer.precision).split("-")[0], torch.float32)
    peak = get_available_flops(device, dtype)
    return None if peak is None else float(peak)
