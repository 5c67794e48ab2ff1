"""Models and data of users who predict: every form that `predict_step` may return, and loaders of their own."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler

from tests.support.models import Regression


class Numbers(Dataset[Tensor]):
    """n samples, each of which is four times its own index."""

    def __init__(self, n: int = 101) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), float(index))


class Found(NamedTuple):
    value: Tensor
    label: list[str]


class Predicts(Regression):
    """Returns the samples' indices in the way that PREDICT names; fails or is asked to stop where PREDICT_* say so."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        if str(batch_idx) == os.environ.get("PREDICT_FAILS_AT"):
            raise RuntimeError("on purpose")
        if str(batch_idx) == os.environ.get("PREDICT_STOPS_AT"):
            os.kill(os.getpid(), 15)
        values = batch[..., 0]
        return {
            "a number": lambda: float(values),
            "tensor": lambda: values,
            "matrix": lambda: batch,
            "mapping": lambda: {"value": values, "name": [f"sample {int(each)}" for each in values]},
            "ragged": lambda: [torch.arange(int(each) % 3) for each in values],
            "nested": lambda: {"boxes": [{"box": each} for each in values], "loss": values.mean()},
            "named tuple": lambda: Found(values, [str(int(each)) for each in values]),
            "array": values.numpy,
            "nothing": lambda: None,
            "object": lambda: Path("x"),
        }[os.environ.get("PREDICT", "tensor")]()


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([torch.full((4,), float(index)) for index in range(10)])


class _Loader:
    """No loader of torch's."""

    def __iter__(self) -> Any:
        return iter([torch.zeros(2, 4), torch.ones(3, 4)])


class _Halves(DataLoader[Any]):
    """Makes two batches of each."""

    def __iter__(self) -> Any:
        for batch in super().__iter__():
            yield from batch.chunk(2)

    def __len__(self) -> int:
        return 2 * super().__len__()


class BringsPredictLoaders(pl.LightningDataModule):
    """A user's own data module, whose predict loaders are those that `kind` names."""

    def __init__(self, kind: str = "plain", num_workers: int = 0) -> None:
        super().__init__()
        self.kind, self.num_workers = kind, num_workers

    def train_dataloader(self) -> Any:
        from tests.support.models import Rows

        return DataLoader(Rows(), batch_size=16)

    def predict_dataloader(self) -> Any:
        numbers, more = Numbers(), {"num_workers": self.num_workers}
        return {
            "plain": lambda: DataLoader(numbers, batch_size=7, **more),
            "shuffled, without the last": lambda: DataLoader(numbers, 7, shuffle=True, drop_last=True),
            "one by one": lambda: DataLoader(numbers, batch_size=None),
            "two": lambda: [DataLoader(numbers, batch_size=7), DataLoader(Numbers(10), batch_size=3)],
            "a subset": lambda: DataLoader(numbers, 2, sampler=SubsetRandomSampler([4, 2, 8])),
            "a stream": lambda: DataLoader(_Stream(), batch_size=4),
            "own": _Loader,
            "halves": lambda: _Halves(Numbers(8), batch_size=4),
        }[self.kind]()


class Writes(BasePredictionWriter):
    """A user's own writer."""

    def __init__(self, folder: str) -> None:
        super().__init__("batch")
        self.folder = Path(folder)

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.folder.mkdir(exist_ok=True)
        torch.save((batch_indices, prediction), self.folder / f"{trainer.global_rank}-{batch_idx}.pt")
