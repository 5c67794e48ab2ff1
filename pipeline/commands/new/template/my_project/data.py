"""Where the samples come from: any map-style dataset, one object for each split."""

import math

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Spirals(Dataset[tuple[Tensor, Tensor]]):
    """Points on two spirals in the plane: (2 coordinates, label 0 or 1).

    Args:
        n: How many.
        seed: Each split has one of its own, so that no point is in two of them.
    """

    def __init__(self, n: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(n) % 2
        turn = torch.rand(n, generator=generator).sqrt() * 2 * math.pi
        angle = turn + math.pi * self.labels
        points = torch.stack([angle.cos(), angle.sin()], dim=1) * turn[:, None] / (2 * math.pi)
        self.points = points + 0.01 * torch.randn(n, 2, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.points[index], self.labels[index]
