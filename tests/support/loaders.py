"""Training loaders of users' own, of every kind, and how each is given to the trainer."""

import itertools
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)
from torch.utils.data.distributed import DistributedSampler

from tests.support.models import Noisy, Rows, Thorough


class Stream(IterableDataset[Any]):
    """Rows without a length, shared among the loader's workers."""

    def __init__(self, rows: Dataset[Any], shuffled: bool = False) -> None:
        self.rows: Any = rows
        self.shuffled = shuffled

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        first, every = (info.id, info.num_workers) if info is not None else (0, 1)
        order = torch.randperm(len(self.rows)).tolist() if self.shuffled else list(range(len(self.rows)))
        return (self.rows[index] for index in order[first::every])


class NumpyOrder(Sampler[int]):
    """A sampler with a generator of its own, which draws on from epoch to epoch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rng = np.random.default_rng(5)

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(self.rng.permutation(self.size).tolist())


class MegatronSampler:
    """As Megatron-LM's MegatronPretrainingSampler: begins after what was consumed, and is as long as all samples."""

    def __init__(
        self,
        total_samples: int,
        consumed_samples: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        drop_last: bool = True,
    ) -> None:
        self.total_samples, self.consumed_samples = total_samples, consumed_samples
        self.micro_batch_size, self.rank, self.ranks = micro_batch_size, data_parallel_rank, data_parallel_size
        self.micro_batch_times_data_parallel_size = micro_batch_size * data_parallel_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        return self.total_samples

    def __iter__(self) -> Iterator[list[int]]:
        batch = []
        for index in range(self.consumed_samples, self.total_samples):
            batch.append(index)
            if len(batch) == self.micro_batch_times_data_parallel_size:
                yield batch[self.rank * self.micro_batch_size :][: self.micro_batch_size]
                batch = []
        if batch and not self.drop_last:
            yield batch[self.rank * self.micro_batch_size :][: self.micro_batch_size]


class MegatronRandomSampler(MegatronSampler):
    """As MegatronPretrainingRandomSampler: an order for each epoch, and a count that goes on as it is iterated."""

    def __iter__(self) -> Iterator[list[int]]:
        step = self.micro_batch_times_data_parallel_size
        active = self.total_samples - self.total_samples % step
        epoch, used = divmod(self.consumed_samples, active)
        bucket = self.total_samples // step * self.micro_batch_size
        order = torch.randperm(bucket, generator=torch.Generator().manual_seed(epoch)).tolist()
        batch = []
        for index in order[used // self.ranks :]:
            batch.append(self.rank * bucket + index)
            if len(batch) == self.micro_batch_size:
                self.consumed_samples += step
                yield batch
                batch = []


class NeMoSampler(MegatronSampler):
    """As NeMo's: as long as the batches that are left."""

    def __len__(self) -> int:
        return max(self.total_samples - self.consumed_samples, 0) // self.micro_batch_times_data_parallel_size


class Batches:
    """No DataLoader at all: batches in an order that is drawn each time."""

    def __init__(self, rows: Any, sized: bool = True) -> None:
        self.rows = rows
        if sized:
            self.__class__ = SizedBatches

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.rows))
        for indices in order.split(16):
            yield default_collate([self.rows[index] for index in indices.tolist()])


class SizedBatches(Batches):
    """The same, with a length."""

    def __len__(self) -> int:
        return (len(self.rows) + 15) // 16


class OwnState:
    """A loader that says itself where it stands: an order by epoch, and batches of it."""

    def __init__(self, rows: Any, sized: bool = True) -> None:
        self.rows = rows
        self.epoch, self.batch, self._resumes = -1, 0, False
        if sized and type(self) is OwnState:
            self.__class__ = SizedOwnState

    def __iter__(self) -> Iterator[Any]:
        if self._resumes:
            self._resumes = False
        else:
            self.epoch, self.batch = self.epoch + 1, 0
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(self.epoch)).split(16)
        while self.batch < len(order):
            self.batch += 1
            yield default_collate([self.rows[index] for index in order[self.batch - 1].tolist()])

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.batch, self._resumes = state["epoch"], state["batch"], True


class SizedOwnState(OwnState):
    """The same, with a length."""

    def __len__(self) -> int:
        return (len(self.rows) + 15) // 16


class RestoresUntilItsEnd(SizedOwnState):
    """Begins each pass from the state that it was given until one has come to its end, as litdata's loader does.

    A state at the end of a pass is the start of the next one.
    """

    restored: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self.restored is not None:
            over = self.restored["batch"] == len(self)
            self.epoch, self.batch = (self.restored["epoch"] + over, 0 if over else self.restored["batch"])
            self._resumes = True
        yield from super().__iter__()
        self.restored = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restored = state


def loader(kind: str, num_workers: int = 0, n: int = 101, noise: bool = True, batch_size: int = 16) -> Any:
    """Return a training loader of a kind; without workers its samples draw from the generators that the model uses."""
    rows: Any = Noisy(n) if noise and not num_workers else Rows(n)
    more: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers}
    if kind.startswith("torchdata"):
        from torchdata.stateful_dataloader import StatefulDataLoader

        seeded = torch.Generator().manual_seed(3)
        return {
            "torchdata shuffled": lambda: StatefulDataLoader(rows, shuffle=True, **more),
            "torchdata seeded": lambda: StatefulDataLoader(rows, shuffle=True, generator=seeded, **more),
            "torchdata persistent": lambda: StatefulDataLoader(rows, shuffle=True, persistent_workers=True, **more),
            "torchdata distributed": lambda: StatefulDataLoader(rows, sampler=DistributedSampler(rows, 1, 0), **more),
            "torchdata stream": lambda: StatefulDataLoader(Stream(rows), **more),
        }[kind]()
    return {
        "in order": lambda: DataLoader(rows, **more),
        "shuffled": lambda: DataLoader(rows, shuffle=True, **more),
        "persistent": lambda: DataLoader(rows, shuffle=True, persistent_workers=True, **more),
        "seeded": lambda: DataLoader(rows, shuffle=True, generator=torch.Generator().manual_seed(3), **more),
        "seeded persistent": lambda: DataLoader(
            rows, shuffle=True, generator=torch.Generator().manual_seed(3), persistent_workers=True, **more
        ),
        "replacement": lambda: DataLoader(rows, sampler=RandomSampler(rows, replacement=True), **more),
        "weighted": lambda: DataLoader(rows, sampler=WeightedRandomSampler(rows.y.exp().flatten(), n), **more),
        "own sampler": lambda: DataLoader(rows, sampler=NumpyOrder(n), **more),
        "one by one": lambda: DataLoader(rows, batch_size=None, shuffle=True, num_workers=num_workers),
        "distributed": lambda: DataLoader(rows, sampler=DistributedSampler(rows, 1, 0), **more),
        "own batches": lambda: DataLoader(
            rows, batch_sampler=BatchSampler(NumpyOrder(n), 16, drop_last=False), num_workers=num_workers
        ),
        "stream": lambda: DataLoader(Stream(rows), **more),
        "shuffled stream": lambda: DataLoader(Stream(rows, shuffled=True), **more),
        "no DataLoader": lambda: Batches(rows),
        "no length": lambda: Batches(rows, sized=False),
        "own state": lambda: OwnState(rows),
        "own state until its end": lambda: RestoresUntilItsEnd(rows),
        "own state, no length": lambda: OwnState(rows, sized=False),
        "two": lambda: {"a": loader("shuffled", num_workers), "b": loader("seeded", num_workers, 33)},
        "two by the shorter": lambda: CombinedLoader(
            {"a": loader("shuffled", num_workers), "b": loader("own state", num_workers, 85)}, "min_size"
        ),
        "two by the longer": lambda: CombinedLoader(
            {"a": loader("shuffled", num_workers), "b": loader("own state", num_workers, 41)}, "max_size"
        ),
    }[kind]()


class Loaders(pl.LightningDataModule):
    """A data module that brings a loader of a kind."""

    def __init__(self, kind: str, num_workers: int = 0, noise: bool = True) -> None:
        super().__init__()
        self.kind, self.num_workers, self.noise = kind, num_workers, noise

    def train_dataloader(self) -> Any:
        return loader(self.kind, self.num_workers, noise=self.noise)

    def val_dataloader(self) -> Any:
        return DataLoader(Rows(20), batch_size=16)


class Trains(Thorough):
    """Trains on all of several loaders, and on samples as well as on batches of them."""

    def __init__(self, out: str = "") -> None:
        super().__init__(out=out)
        self.order: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if isinstance(batch, dict):
            given = [each for each in batch.values() if each is not None]
            batch = [torch.cat(parts) for parts in zip(*given, strict=True)]
        batch = [part.reshape(-1, part.shape[-1]) for part in batch]
        self.order.append(batch[0].sum().item())
        # A batch norm takes no single sample.
        return super().training_step([part if len(part) > 1 else part.repeat(2, 1) for part in batch], batch_idx)


class BringsItsLoader(Trains):
    """Its loader is its own."""

    def __init__(self, kind: str, batch_size: int = 16, num_workers: int = 0, out: str = "") -> None:
        super().__init__(out=out)
        self.kind, self.more = kind, {"batch_size": batch_size, "num_workers": num_workers}

    def train_dataloader(self) -> Any:
        return loader(self.kind, noise=False, **self.more)


class SkipsBatches(BatchSampler):
    """Leaves out the first batches, as Accelerate's SkipBatchSampler."""

    def __init__(self, batches: BatchSampler, skip: int) -> None:
        self.batches, self.skip = batches, skip

    def __len__(self) -> int:
        return len(self.batches) - self.skip

    def __iter__(self) -> Iterator[list[int]]:
        return itertools.islice(iter(self.batches), self.skip, None)


class SkipsByItself(Trains):
    """Its loader begins where training stands, in the first epoch."""

    def train_dataloader(self) -> Any:
        batches = BatchSampler(SequentialSampler(Rows()), 16, drop_last=False)
        skip = self.trainer.global_step % len(batches)
        return DataLoader(Rows(), batch_sampler=SkipsBatches(batches, skip))


class TrainsAsMegatron(Trains):
    """Has a sampler of Megatron-LM's or NeMo's begin where training stands, as their users do.

    Args:
        sampler: Its class here.
        how: What they hand it: the samples of all steps (`all`), of this epoch's (`epoch`), or none (`none`).
    """

    def __init__(self, sampler: str, how: str = "epoch", num_workers: int = 0, out: str = "") -> None:
        super().__init__(out=out)
        self.sampler, self.how, self.num_workers = sampler, how, num_workers

    def train_dataloader(self) -> Any:
        rows, ranks = Rows(), self.trainer.world_size
        consumed = self.trainer.global_step * 16 * ranks * (self.how != "none")
        if self.how == "epoch":
            consumed %= 101 // (16 * ranks) * 16 * ranks
        batches = globals()[self.sampler](len(rows), consumed, 16, self.global_rank, ranks)
        return DataLoader(rows, batch_sampler=batches, num_workers=self.num_workers)


class From(Sampler[int]):
    """What is left of an epoch, whose length is that of all of it."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.size))


class Positions(Loaders):
    """A data module that begins its loader itself where it stood."""

    def __init__(self, kind: str = "in order") -> None:
        super().__init__(kind)
        self.first = 0

    def train_dataloader(self) -> Any:
        return DataLoader(Rows(), batch_size=16, sampler=From(self.first, 101))

    def state_dict(self) -> dict[str, Any]:
        return {"first": 16 * self.trainer.fit_loop.epoch_loop.batch_progress.current.completed}  # type: ignore[union-attr]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = state["first"]
