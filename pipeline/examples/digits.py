"""UCI's handwritten digits, embedded: 1,797 images of 8 x 8.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
https://doi.org/10.24432/C50P49, licence CC BY 4.0; the file is the copy that scikit-learn ships as
`datasets/data/digits.csv.gz`.
"""

import gzip
import math
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

_SIZES = {"train": 1257, "val": 180, "test": 360}


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """One split of the digits: (pixels, label), float32 numbers in 0..1 and an int64 in 0..9.

    The split is fixed: 1,257 training, 180 validation and 360 test images, drawn once by numpy's frozen legacy
    generator with seed 0.

    Args:
        split: `train`, `val` or `test`.
        shape: Of the 64 pixels: [1, 8, 8] makes images of one channel. Default: a row of 64.

    Raises:
        ValueError: Another split is named, or a shape that has no 64 pixels.
    """

    deterministic = True

    def __init__(self, split: str = "train", shape: list[int] | None = None) -> None:
        if split not in _SIZES:
            raise ValueError(f"split={split!r} must be one of {', '.join(map(repr, _SIZES))}")
        if shape is not None and math.prod(shape) != 64:
            raise ValueError(f"shape={shape} must have 64 pixels, such as [1, 8, 8]")
        data = gzip.decompress(files("pipeline.examples").joinpath("data/digits.csv.gz").read_bytes())
        table = np.loadtxt(data.decode().splitlines(), delimiter=",", dtype=np.float32)
        order = np.random.RandomState(0).permutation(len(table))
        bounds = np.cumsum(list(_SIZES.values()))[:-1]
        rows = table[dict(zip(_SIZES, np.split(order, bounds), strict=True))[split]]
        self.pixels = torch.from_numpy(rows[:, :64] / 16).view(-1, *(shape or [64]))
        self.labels = torch.from_numpy(rows[:, 64].astype(np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A whole batch at once: (n, ...) pixels and (n,) labels."""
        rows = torch.from_numpy(np.asarray(indices))
        # Unlike self.pixels[rows] it copies row by row.
        return self.pixels.index_select(0, rows), self.labels[rows]

    def picture(self, index: int) -> Tensor:
        """The image for the report: (8, 8) in 0..1."""
        return self.pixels[index].view(8, 8)


class DigitTokens(Dataset[tuple[Tensor, Tensor]]):
    """One split of the digits as sequences: (tokens, label), 64 int64 in 0..16, row by row, and an int64 in 0..9.

    Args:
        split: `train`, `val` or `test`.

    Raises:
        ValueError: Another split is named.
    """

    deterministic = True

    def __init__(self, split: str = "train") -> None:
        digits = Digits(split)
        self.tokens = (digits.pixels * 16).long()
        self.labels = digits.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tokens[index], self.labels[index]
