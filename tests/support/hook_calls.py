"""What trainings and evaluations are compared by, hook for hook."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.training.trainer import Trainer


class Numbers(Dataset[Tensor]):
    """19 rows of 4 numbers."""

    def __init__(self) -> None:
        self.rows = torch.rand(19, 4, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]


def quiet_trainer(**named: Any) -> Trainer:
    """A trainer on the CPU that shows, logs and saves nothing but what is asked for."""
    off = ("logger", "enable_checkpointing", "enable_model_summary", "enable_progress_bar")
    return Trainer(accelerator="cpu", **{**dict.fromkeys(off, False), **named})


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


def assert_same_calls(lean: list[Any], stock: list[Any]) -> None:
    """The same hooks in the same order, with the same to be known in each; the second of a call is its name."""
    assert len(lean) == len(stock)
    for number, (one, other) in enumerate(zip(lean, stock, strict=True)):
        assert one == other, f"{number}: {one[1]}"


def assert_same_tables(lean: Path, stock: Path) -> None:
    """A CSV logger has written the same, or nothing, into both folders."""
    tables = [folder / "metrics.csv" for folder in (lean, stock)]
    assert [path.exists() for path in tables] in ([True] * 2, [False] * 2)
    if tables[0].exists():
        assert tables[0].read_text() == tables[1].read_text()
