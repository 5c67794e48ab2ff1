"""Samples per second out of a loader in one process: ours beside a stock one, on rows of 784 floats.

python -m tests.benchmarks.loading
"""

import random
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pipeline.data.datamodule import DataModule
from pipeline.data.sampler import Batches, PositionedSampler
from tests.benchmarks.sampler import interleaved, spread

ROWS = 60_000
BATCH = 64
BATCHES = -(-ROWS // BATCH)


class Rows(Dataset[Any]):
    """Rows in memory, fetched batch by batch."""

    deterministic = True

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        # index_select copies row by row, x[rows] number by number: three times as slow.
        rows = torch.from_numpy(np.asarray(indices))
        return self.x.index_select(0, rows), self.y.index_select(0, rows)


class OneByOne(Dataset[Any]):
    """The same rows, without batches: their randomness is keyed unless they say that there is none."""

    def __init__(self, x: Tensor, y: Tensor, deterministic: bool = False, draws: bool = False) -> None:
        self.x, self.y, self.deterministic, self.draws = x, y, deterministic, draws

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.draws:
            return self.x[index] + (torch.rand(()) + np.random.random() + random.random()), self.y[index]
        return self.x[index], self.y[index]


def through(loader: Iterable[Any]) -> Callable[[], float]:
    """Microseconds a batch, over an epoch."""

    def measure() -> float:
        begin = time.perf_counter()
        for _ in loader:
            pass
        return 1e6 * (time.perf_counter() - begin) / BATCHES

    return measure


def ours(dataset: Dataset[Any], accounted: bool = False) -> Any:
    data = DataModule(train=dataset, batch_size=BATCH)
    data.emit_sample_ids = accounted
    return data.train_dataloader()


def bare(dataset: Rows) -> Iterable[Any]:
    """No loader at all: what the memory and the order alone cost."""

    class Bare:
        def __iter__(self) -> Any:
            return map(dataset.__getitems__, Batches(PositionedSampler(dataset), BATCH))  # type: ignore[arg-type]

    return Bare()


def main() -> None:
    """Measure and print, with one thread and with as many as torch takes."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(ROWS, 784, generator=generator), torch.randint(10, (ROWS,), generator=generator)
    stock = "stock DataLoader(TensorDataset)"
    most = torch.get_num_threads()
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        found = interleaved(
            9,
            {
                stock: through(DataLoader(TensorDataset(x, y), BATCH, shuffle=True)),
                "ours, batched": through(ours(Rows(x, y))),
                "ours, batched, accounted": through(ours(Rows(x, y), accounted=True)),
                "no loader, only order and copying": through(bare(Rows(x, y))),
                "ours, one by one, deterministic": through(ours(OneByOne(x, y, deterministic=True))),
                "ours, one by one, keyed": through(ours(OneByOne(x, y))),
            },
        )
        print(f"{ROWS:,} rows of 784 floats, batches of {BATCH}, {threads} thread(s): us a batch, median [quartiles]")
        reference = np.array(found[stock])
        for name, values in found.items():
            ratios = reference / np.array(values)
            print(
                f"  {name:36}{spread(values):32}{BATCH * 1e6 / np.median(values):12,.0f} samples/s  "
                f"{np.median(ratios):5.2f} x stock ({ratios.min():.2f} .. {ratios.max():.2f})"
            )
    torch.set_num_threads(1)
    found = interleaved(
        9,
        {
            "deterministic": through(ours(OneByOne(x, y, deterministic=True))),
            "keyed": through(ours(OneByOne(x, y))),
            "keyed and drawing": through(ours(OneByOne(x, y, draws=True))),
        },
    )
    keyed = (np.array(found["keyed"]) - np.array(found["deterministic"])) / BATCH
    print(f"keying the three generators, one by one, us a sample: {spread(keyed.tolist())}")
    drawn = (np.array(found["keyed and drawing"]) - np.array(found["deterministic"])) / BATCH
    print(f"the same, with a draw from each of the three:         {spread(drawn.tolist())}")


if __name__ == "__main__":
    main()
