"""Models and datasets of users, reached by class path, as the pipeline reaches theirs."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from jsonargparse.typing import Path_fr
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler
from torchmetrics import MeanMetric

from pipeline.data.datamodule import DataModule


def die(trainer: pl.Trainer) -> None:
    """Die as by kill -9, but not before the save that is under way is committed: which one that is must be known."""
    finish_saves(trainer)
    os.kill(os.getpid(), 9)


def finish_saves(trainer: pl.Trainer) -> None:
    """Wait until the save that is under way is committed."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        session = getattr(callback, "session", None)
        if session is not None and session.saver is not None:
            session.saver.finish()


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """n rows of four numbers and a target, drawn from a fixed seed."""

    def __init__(self, n: int = 101) -> None:
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(n, 4, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True) + 0.1 * torch.randn(n, 1, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


class Regression(pl.LightningModule):
    """A plain LightningModule: its test_step only logs."""

    def __init__(self, learning_rate: float = 0.05, dropout: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)]


class Thorough(Regression):
    """Everything that a resume could get wrong: dropout, batch norm, sums over an epoch, a metric, two schedules."""

    def __init__(
        self, out: str = "", dropout: float = 0.3, skip_after: int | None = None, die_at: int | None = None
    ) -> None:
        super().__init__(dropout=dropout)
        self.save_hyperparameters()
        self.die_at = die_at
        self.norm = nn.BatchNorm1d(4)
        self.mean = MeanMetric()
        self.out = out
        self.skip_after = skip_after
        self.seen: dict[int, Any] = {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == self.skip_after else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self(self.norm(x)), y)
        self.mean(loss)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_mean", self.mean, on_step=False, on_epoch=True)
        self.log("train_max", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.seen[self.trainer.fit_loop.epoch_loop.total_batch_idx] = (loss.item(), x.sum().item())
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.global_step == self.die_at and self.global_rank == 0:
            die(self.trainer)

    def on_train_end(self) -> None:
        if self.out:
            torch.save(self.seen, f"{self.out}-{self.global_rank}.pt")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        steps, epochs = (
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step),
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
        )
        return [optimizer], [
            {"scheduler": steps, "interval": "step"},
            {"scheduler": epochs, "interval": "epoch", "monitor": "val_loss", "strict": False},
        ]


class Estimating(Thorough):
    """Asks how many steps there will be, for which Lightning builds the loader before it restores its counters."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05)
        total = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total), "interval": "step"}
        ]


class Recording(Regression):
    """Writes each rank's losses and final parameters beside the run."""

    def __init__(self, out: str, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.save_hyperparameters()
        self.out = out
        self.losses: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss

    def on_train_end(self) -> None:
        torch.save({"losses": self.losses, "state": self.state_dict()}, f"{self.out}-{self.global_rank}.pt")


class Returning(Regression):
    """Returns what belongs into scores.csv, and what does not."""

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        prediction = self(batch[0])
        loss = nn.functional.mse_loss(prediction, batch[1])
        self.log("test_loss", loss)
        return {"loss": loss, "prediction": prediction.flatten(), "x": batch[0], "note": "not a tensor"}


class LogsNaN(Regression):
    """Its losses are not a number from the fifth step on."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step >= 4 else loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", torch.tensor(float("nan")))


class LogsOnRank0(Regression):
    """Logs the number of the epoch, from 1, on rank 0 only."""

    def on_train_epoch_end(self) -> None:
        if self.global_rank == 0:
            self.log("mine", self.current_epoch + 1.0, rank_zero_only=True)


class FailsToTrain(Regression):
    """Raises in its second step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise RuntimeError("the model is broken")
        return super().training_step(batch, batch_idx)


class SkipsTheRest(Regression):
    """Gives up an epoch after its second batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 2 else None


class WritesAsItIsRead(pl.Callback):
    """Loaded by class path: says that it was."""

    def __init__(self, word: str = "hello") -> None:
        self.word = word

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        print(f"callback says {self.word}", file=sys.stderr)


class Stops(pl.Callback):
    """Stops training in the middle of the first epoch."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        trainer.should_stop = batch_idx == 4


class _Drops(DataLoader[Any]):
    def __iter__(self) -> Any:
        return (batch for number, batch in enumerate(super().__iter__()) if number != 1)


class _Augments(DataLoader[Any]):
    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield x + 0.1, y


class _Doubles(DataLoader[Any]):
    def __iter__(self) -> Any:
        for number, batch in enumerate(super().__iter__()):
            yield batch
            if number == 1:
                yield batch


class _Swaps(DataLoader[Any]):
    """The second batch is the first one again: the number of batches and of samples is right."""

    def __iter__(self) -> Any:
        first = None
        for number, batch in enumerate(super().__iter__()):
            first = batch if first is None else first
            yield first if number == 1 else batch


class _DropsRows(Rows):
    """Fetches whole batches, but forgets a sample."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices][: 6 if 50 in indices else None]


class Normalized(Regression):
    """A model with BatchNorm."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.norm = nn.BatchNorm1d(4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((self.norm(batch[0]), batch[1]), batch_idx)


class RowsOfFile(Rows):
    """As many rows as a file says."""

    def __init__(self, file: Path_fr) -> None:
        super().__init__(int(Path(file).read_text()))


class _Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.zeros(4), torch.zeros(1))])


class _Wrapped:
    """No loader of torch's."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)


class Own(pl.LightningDataModule):
    """A user's own data module, whose test loader is right or wrong in the way that `kind` names."""

    def __init__(self, kind: str = "plain", n: int = 101, batch_size: int = 7, num_workers: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.rows = Rows(n)
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=self.batch_size)

    def test_dataloader(self) -> Any:
        rows, more = self.rows, {"batch_size": self.batch_size, "num_workers": self.num_workers}
        weights = torch.ones(len(rows))
        return {
            "plain": lambda: DataLoader(rows, **more),
            "list of one": lambda: [DataLoader(rows, **more)],
            "shuffled": lambda: DataLoader(rows, shuffle=True, **more),
            "one by one": lambda: DataLoader(rows, batch_size=None),
            "one replica": lambda: DataLoader(rows, sampler=DistributedSampler(rows, 1, 0), **more),
            "loader drops": lambda: _Drops(rows, **more),
            "loader augments": lambda: _Augments(rows, **more),
            "loader doubles": lambda: _Doubles(rows, **more),
            "loader swaps": lambda: _Swaps(rows, **more),
            "dataset drops": lambda: DataLoader(_DropsRows(), **more),
            "drop_last": lambda: DataLoader(rows, drop_last=True, **more),
            "replacement": lambda: DataLoader(rows, sampler=RandomSampler(rows, replacement=True), **more),
            "more samples": lambda: DataLoader(rows, sampler=RandomSampler(rows, num_samples=150), **more),
            "weighted": lambda: DataLoader(rows, sampler=WeightedRandomSampler(weights.tolist(), len(rows)), **more),
            "two replicas": lambda: DataLoader(rows, sampler=DistributedSampler(rows, 2, 0), **more),
            "own batches": lambda: DataLoader(rows, batch_sampler=[[0, 1], [1, 2]]),
            "stream": lambda: DataLoader(_Stream(), batch_size=2),
            "two loaders": lambda: [DataLoader(rows), DataLoader(rows)],
            "a list": lambda: [(rows.x, rows.y)],
            "no torch loader": lambda: _Wrapped(DataLoader(rows, **more)),
            "empty": lambda: DataLoader(Rows(0), **more),
        }[self.kind]()


class _Tampered:
    """Whatever a user may wrap around a loader."""

    def __init__(self, loader: Any, kind: str) -> None:
        self.loader = loader
        self.kind = kind

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        first = None
        for number, batch in enumerate(self.loader):
            first = batch if first is None else first
            if self.kind == "drops" and number == 1:
                continue
            yield first if self.kind == "swaps" and number == 1 else batch
            if self.kind == "doubles" and number == 1:
                yield batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)


class Tampering(DataModule):
    """A user's own data module that wraps the training loader in something that is wrong."""

    def __init__(self, kind: str = "plain", **named: Any) -> None:
        super().__init__(**named)
        self.kind = kind

    def train_dataloader(self) -> Any:
        return _Tampered(super().train_dataloader(), self.kind)


class Indexed(Rows):
    """Rows whose first number is their own index."""

    def __init__(self, n: int = 101, shift: float = 0.0) -> None:
        super().__init__(n)
        self.x = torch.cat([torch.arange(n).float().reshape(-1, 1), self.x[:, 1:] + shift], dim=1)


class OwnGenerator(Rows):
    """Draws from a generator of its own, so that its samples are others each time they are read."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + float(np.random.default_rng().random()), self.y[index]


class Mixed(Dataset[Any]):
    """Samples of every kind that a collate function may meet."""

    def __init__(self, n: int = 10, twist: float = 0.0) -> None:
        self.n = n
        self.twist = twist

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((4,), float(index)), "name": f"sample {index}", "nested": [index, {"f": self.twist}]}


class Noisy(Rows):
    """Adds noise from each of the three global generators, as augmentations do."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()) + float(np.random.random()) + random.random()
        return self.x[index] + noise, self.y[index]


class Drawing(Rows):
    """Adds noise, as an augmentation does."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + random.random(), self.y[index]


class WithoutHyperparameters(pl.LightningModule):
    """Saves no hyperparameters."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(4, width)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class KeywordHyperparameters(WithoutHyperparameters):
    """Hyperparameters from **kwargs."""

    def __init__(self, width: int = 3, **kwargs: Any) -> None:
        super().__init__(width)
        self.save_hyperparameters()


class LogsInEveryWay(WithoutHyperparameters):
    """Logs in every way that Lightning documents."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        value = torch.tensor(float(batch_idx))
        for reduce in ("min", "max", "mean", "sum"):
            self.log(
                f"by_{reduce}", value, on_step=False, on_epoch=True, reduce_fx=reduce, sync_dist=True, batch_size=1
            )
        self.log("on_bar", value, prog_bar=True)
        self.log_dict({"first": value, "second": 2 * value})
        return super().training_step(batch, batch_idx)


class ScriptedValLoss(WithoutHyperparameters):
    """Its val_loss follows a script, an epoch a value."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.values[min(self.current_epoch, len(self.values) - 1)])


class BlankImages(Dataset[Any]):
    """Four blank images."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.zeros(28, 28), index


class UnsavedGenerator(Regression):
    """Draws from a generator that no checkpoint knows: what comes after a restart is not what would have come."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": 0.05, "dropout": 0.0})
        self.generator = torch.Generator().manual_seed(1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step((batch[0], batch[1] + torch.rand(1, generator=self.generator)), batch_idx)


class Backboned(Thorough):
    """A backbone that finetuning callbacks freeze, and a head that is trained from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3))
        self.layers = nn.Sequential(nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.backbone(x))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([each for each in self.parameters() if each.requires_grad], lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def batch_rows(batch: Any) -> int:
    """Samples in a batch."""
    return len(batch[0])


class Optimized(Regression):
    """Its optimizer and learning rate schedule are chosen by flags.

    Args:
        optimizer: A class of `torch.optim`.
        groups: Into how many groups its parameters go.
        schedule: A class of `torch.optim.lr_scheduler`; OneCycleLR is as long as training.
        weight_decay: Of the optimizer.
        step_size: Of StepLR, in optimizer steps.
    """

    def __init__(
        self,
        learning_rate: float = 0.05,
        optimizer: str = "Adam",
        groups: int = 1,
        schedule: str | None = None,
        weight_decay: float = 0.0,
        step_size: int = 5,
    ) -> None:
        super().__init__(learning_rate)
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        asked: Any = self.hparams
        parameters = list(self.parameters())
        groups = [{"params": parameters[start :: asked.groups]} for start in range(asked.groups)]
        kind = getattr(torch.optim, asked.optimizer)
        optimizer = kind(groups, lr=asked.learning_rate, weight_decay=asked.weight_decay)
        if asked.schedule is None:
            return optimizer
        schedules = torch.optim.lr_scheduler
        schedule: Any = {
            "StepLR": lambda: schedules.StepLR(optimizer, asked.step_size, gamma=0.5),
            "ExponentialLR": lambda: schedules.ExponentialLR(optimizer, 0.9),
            "OneCycleLR": lambda: schedules.OneCycleLR(
                optimizer, asked.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
            ),
        }[asked.schedule]()
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]
