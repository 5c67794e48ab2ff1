"""Datasets of users' that are only there once they have been prepared, and functions that make datasets."""

import os
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, random_split

from pipeline.cache import mapped
from pipeline.data import DataModule
from tests.support.models import Rows


class Downloads(Rows):
    """Is in a file that `prepare_data` writes; each call leaves a line beside it."""

    def __init__(self, path: str, n: int = 24) -> None:
        self.path, self.n = Path(path), n
        self.rows: Any = None

    def prepare_data(self) -> None:
        with Path(f"{self.path}.calls").open("a") as file:
            file.write(f"{os.environ.get('RANK', '0')}\n")
        torch.save(Rows(self.n).x, self.path)

    def read(self) -> Any:
        if self.rows is None:
            self.rows = torch.load(self.path)
        return self.rows

    def __len__(self) -> int:
        return len(self.read())

    def __getitem__(self, index: int) -> Any:
        return self.read()[index], self.read()[index].sum(0, keepdim=True)


class Local(Downloads):
    """Is in a file that somebody has to write before."""

    prepare_data = None  # type: ignore[assignment]


class Fetched(Rows):
    """Is in a file behind a URL, which its constructor fetches."""

    def __init__(self, url: str, n: int = 101) -> None:
        super().__init__(n)
        self.x = torch.tensor(mapped(url)[: 4 * n].reshape(n, 4)) / 255


class Splits(DataModule):
    """Makes its datasets in `setup`, by a random split, as Lightning's documentation has it."""

    def prepare_data(self) -> None:
        self.prepared = True

    def setup(self, stage: str) -> None:
        assert self.prepared
        self.datasets["train"], self.datasets["val"] = random_split(Rows(32), [24, 8])


class Unreadable(Rows):
    """One of its samples cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 17:
            raise ValueError("not an image")
        return super().__getitem__(index)


class UnreadableBatch(Rows):
    """The same, of one that hands out whole batches."""

    deterministic = True

    def __getitems__(self, indices: list[int]) -> Any:
        if 17 in indices:
            raise ValueError("not an image")
        return self.x[indices], self.y[indices]


def cannot_collate(samples: list[Any]) -> Any:
    """Fail for a sample."""
    raise ValueError("ragged")


def unannotated(n: int = 24):  # type: ignore[no-untyped-def]
    return Rows(n)


def annotated(n: int = 24) -> Dataset[Any]:
    return Rows(n)
