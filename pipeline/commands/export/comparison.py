"""Whether an exported file computes the same as the module."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.training.inspection.step_watch import tensors_in

_RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""To the greatest number in an output, and to 1 at least: what another order of the same sums may cost."""


@dataclass(frozen=True)
class Difference:
    """How far outputs are from what they should be.

    Attributes:
        greatest: Over all numbers of all outputs; infinite where their form differs.
        allowed: The tolerance.
        numbers: How many were compared.
        where: Which output, and why, if it is too much.
    """

    greatest: float
    allowed: float
    numbers: int
    where: str = ""

    def require_small(self, what: str, advice: str) -> None:
        """Refuse what differs by more than the tolerance.

        Raises:
            UserError: It does; nothing is exported then.
        """
        if self.where:
            raise UserError(
                f"{what} does not compute the same as the module: {self.where}. Nothing was written. {advice}"
            )


def difference(expected: Any, found: Any, exact: bool) -> Difference:
    """Compare the tensors of two outputs, in order.

    Args:
        expected: The module's.
        found: The file's.
        exact: Whether every bit must be the same.
    """
    ours, theirs = list(tensors_in(expected)), list(tensors_in(found))
    if len(ours) != len(theirs):
        return Difference(torch.inf, 0, 0, f"it has {len(theirs)} outputs instead of {len(ours)}")
    greatest = allowed = 0.0
    where = ""
    for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one.shape != other.shape:
            return Difference(torch.inf, 0, 0, f"output {at} is {tuple(other.shape)} instead of {tuple(one.shape)}")
        off, bound = _distance(one, other), 0.0 if exact else _tolerance(one)
        greatest, allowed = max(greatest, off), max(allowed, bound)
        if not where and not off <= bound:
            where = f"output {at} differs by {off:.3g}, allowed are {bound:.3g}"
    return Difference(greatest, allowed, sum(each.numel() for each in ours), where)


def _distance(one: Tensor, other: Tensor) -> float:
    """Return the greatest difference of two tensors of one shape; of whole numbers that differ it is 1 at least."""
    if one.is_quantized:
        one, other = one.dequantize(), other.dequantize()
    whole = not one.is_floating_point() and not one.is_complex()
    wide = torch.complex128 if one.is_complex() else torch.float64
    left, right = one.detach().to(wide), other.detach().to(wide)
    same = one == other if whole else (left == right) | (left.isnan() & right.isnan())
    apart = (left - right).abs().clamp_min(1.0 if whole else 0.0)
    off = torch.where(same, torch.zeros((), dtype=torch.float64), apart)
    greatest = off.max().item() if off.numel() else 0.0
    return greatest if greatest == greatest else torch.inf  # noqa: PLR0124 - NaN


def _tolerance(tensor: Tensor) -> float:
    relative = _RELATIVE.get(tensor.dtype, _RELATIVE[torch.float32] if tensor.is_complex() else 0.0)
    if not relative:
        return 0.0
    sizes = tensor.detach().abs().double()
    finite = sizes[sizes.isfinite()]
    return relative * max(1.0, finite.max().item() if finite.numel() else 0.0)
