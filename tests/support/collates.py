"""Collate functions and hooks of users', which change which samples a batch holds."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from tests.support.models import Indexed, Regression


class Gaps(Indexed):
    """Rows whose first number is their index, two of which cannot be read."""

    def __getitem__(self, index: int) -> Any:
        return None if index in (2, 5) else super().__getitem__(index)


def without_none(samples: list[Any]) -> Any:
    """Leave out what could not be read."""
    return default_collate([sample for sample in samples if sample is not None])


def filled_up(samples: list[Any]) -> Any:
    """Put others in the place of what could not be read."""
    read = [sample for sample in samples if sample is not None]
    return default_collate([*read, *read[: len(samples) - len(read)]])


def packed(samples: list[Any]) -> Any:
    """One long row of all samples."""
    x, y = default_collate(samples)
    return x.reshape(1, -1), y.reshape(1, -1)


def sorted_in_place(samples: list[Any]) -> Any:
    """The last samples come first."""
    samples.sort(key=lambda sample: -sample[0][0])
    return default_collate(samples)


def uncollated(samples: list[Any]) -> Any:
    """As detectors take them."""
    return samples


class TakesAnything(Regression):
    """Trains on rows, packed rows and lists of samples alike, and returns the first number of each row."""

    def rows(self, batch: Any) -> tuple[Tensor, Tensor]:
        if isinstance(batch[0], (list, tuple)):
            batch = default_collate(batch)
        return batch[0].reshape(-1, 4), batch[1].reshape(-1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.rows(batch)
        return nn.functional.mse_loss(self(x), y)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return {"first": self.rows(batch)[0][:, 0]}

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.rows(batch)[0]


class DropsOnTheWay(TakesAnything):
    """A hook of its drops a sample of each batch."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [part[1:] for part in batch]


class TakesTwo(TakesAnything):
    """Takes two batches for each step."""

    def training_step(self, dataloader_iter: Any) -> Tensor:
        batches = [next(dataloader_iter)[0] for _ in range(2)]
        return torch.stack([super(TakesTwo, self).training_step(batch, 0) for batch in batches]).mean()
