"""The models and the data that subjects are measured on: made from a seed, nothing is downloaded."""

import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pipeline.examples.autoencoder import LitAutoEncoder
from tests.benchmarks.processes import clock, cpu_seconds

WIDTH = 784
BATCH = 64


@lru_cache(maxsize=1)
def images(count: int, width: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Rows of the shape of MNIST's: (count, width) float32 in 0..1, and (count,) labels in 0..9.

    The runner asks for them first: its forks share them.
    """
    generator = np.random.default_rng(0)
    pixels = generator.random((count, width), np.float32)
    return torch.from_numpy(pixels), torch.from_numpy(generator.integers(10, size=count))


class Rows(Dataset[Any]):
    """Those rows, fetched batch by batch, as a dataset of this pipeline may."""

    deterministic = True

    def __init__(self, count: int, width: int = WIDTH) -> None:
        self.x, self.y = images(count, width)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        # index_select copies row by row, x[rows] number by number: three times as slow.
        rows = torch.from_numpy(np.asarray(indices))
        return self.x.index_select(0, rows), self.y.index_select(0, rows)


class Autoencoder(LitAutoEncoder):
    """The example, each of whose steps ticks; Adam is fused for all contenders.

    Args:
        hidden: Units of the hidden layers.
        width: Numbers per sample.
    """

    def __init__(self, hidden: int = 64, width: int = WIDTH) -> None:
        super().__init__(input_dim=width)
        if hidden != 64:
            self.encoder.l1 = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 3))
            self.decoder.l1 = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        clock.tick()
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        clock.tick()
        return super().test_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)


class FirstStep(Autoencoder):
    """Notes when its first step is done, and how much CPU time this process has used until then.

    Args:
        notes: A file.
    """

    def __init__(self, notes: str) -> None:
        super().__init__()
        self.notes = Path(notes)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.global_step == 1:
            self.notes.write_text(json.dumps({"wall": time.time(), "cpu": cpu_seconds()}))
        return super().training_step(batch, batch_idx)
