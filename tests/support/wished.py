"""Datasets that have lengths, classes and weights, and parts of them, reached by class path."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.support.models import Regression, die

SIZE = 101


class Uneven(Dataset[tuple[Tensor, Tensor]]):
    """n rows whose first number is the index, with a length, a class of four and a weight each."""

    classes = ("a", "b", "c", "d")

    def __init__(self, n: int = SIZE, seed: int = 7) -> None:
        generator = np.random.default_rng(seed)
        self.x = torch.from_numpy(generator.normal(size=(n, 4)).astype(np.float32))
        self.x[:, 0] = torch.arange(n)
        self.lengths = generator.integers(1, 50, n)
        self.targets = torch.from_numpy(generator.choice(4, n, p=[0.6, 0.2, 0.15, 0.05]))
        self.other = [1.0] * (n - 1)
        self.weight = generator.exponential(size=n) * (np.arange(n) % 5 > 0)

    def weights(self) -> list[float]:
        """A method serves as well."""
        return [float(each) for each in self.weight]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.x[index].sum(dim=0, keepdim=True)


class Batched(Uneven):
    """The same, fetched in whole batches."""

    deterministic = True
    fingerprint = "batched"

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        x = self.x[torch.from_numpy(np.asarray(indices))]
        return x, x.sum(dim=1, keepdim=True)

    def picture(self, index: int) -> Any:
        """One pixel, as dark as the index is high."""
        return np.full((1, 1), index, np.uint8)


class Seeded(Uneven):
    """The same, with a column that is drawn from the seed of each sample."""

    def __getitems__(self, indices: list[int], seeds: Any) -> tuple[Tensor, Tensor]:
        x = self.x[torch.from_numpy(np.asarray(indices))].clone()
        x[:, 1] = torch.from_numpy((seeds >> np.uint64(40)).astype(np.float32))
        return x, x.sum(dim=1, keepdim=True)


class PreparedFirst(Uneven):
    """Reads what its class method has made, once a node, before any constructor."""

    def __init__(self, root: str, n: int = SIZE) -> None:
        self.root = root
        if not (Path(root) / "made").is_file():
            raise ValueError("it was not prepared before the constructor")
        super().__init__(n)

    @classmethod
    def prepare_data(cls, root: str) -> None:
        """Fail if it was called twice."""
        with (Path(root) / "calls").open("a") as file:
            file.write(f"{cls.__name__}\n")
        (Path(root) / "made").touch()


class PreparedLate(Uneven):
    """Has no length before its data are prepared."""

    ready = False

    def prepare_data(self) -> None:
        """Be ready."""
        type(self).ready = True

    def __len__(self) -> int:
        assert self.ready
        return super().__len__()


class PerSet(Regression):
    """Logs one number of each validation set: the mean of the indices."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_index", batch[0][:, 0].mean(), sync_dist=True, batch_size=len(batch[0]))
        self.log("val_loss", nn.functional.mse_loss(self(batch[0] / 100), batch[1]), sync_dist=True)


class Ragged(Uneven):
    """One sample is of another shape."""

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return {"x": x[:3] if index == 17 else x, "y": y}


class Small(Regression):
    """A network of which a step shows each exchange of samples; dies as by kill -9 where it is told to."""

    def __init__(self, learning_rate: float = 0.05, die_at: int | None = None) -> None:
        super().__init__(learning_rate, dropout=0.3)
        self.die_at = die_at

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0] / 100, batch[1] / 100), batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.die_at and self.global_rank == 0:
            die(self.trainer)
