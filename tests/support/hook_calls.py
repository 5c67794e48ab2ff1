"""What trainings and evaluations are compared by, hook for hook."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Numbers(Dataset[Tensor]):
    """19 rows of 4 numbers."""

    def __init__(self) -> None:
        self.rows = torch.rand(19, 4, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


def plain(value: Any) -> Any:
    """What two trainings can be compared by."""
    if isinstance(value, Tensor):
        return value.detach().clone().tolist()
    if isinstance(value, (tuple, list)):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, (int, float, str, type(None))):
        return value
    return "a function" if callable(value) else type(value).__name__
