"""What users' models, callbacks and data modules do that a resume in the middle of an epoch could get wrong."""

import datetime
import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.wrappers import MinMaxMetric, Running

from pipeline.data.datamodule import DataModule
from tests.support.models import Rows, Thorough, finish_saves


class ManualSteps(Thorough):
    """Steps by itself after every `n`-th batch; those at the epoch's end wait for the next epoch's."""

    def __init__(self, n: int = 4, steps: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.n, self.steps = n, steps

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        if (batch_idx + 1) % self.n:
            return
        for _ in range(self.steps if self.global_step else 1):
            loss = nn.functional.mse_loss(self(self.norm(batch[0])), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


class TwoOptimizers(Thorough):
    """As adversarial training has them, with random numbers in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        loss = nn.functional.mse_loss(self(self.norm(batch[0])), batch[1])
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        for _ in range(1 + batch_idx % 2):
            more = (self.other(batch[0]) ** 2).mean() * torch.rand(())
            second.zero_grad()
            self.manual_backward(more)
            second.step()
        for schedule in self.lr_schedulers():  # type: ignore[union-attr]
            schedule.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam([*self.layers.parameters(), *self.norm.parameters()], lr=0.05)
        second = torch.optim.RMSprop(self.other.parameters(), lr=0.01)
        schedules: Any = torch.optim.lr_scheduler
        return [first, second], [schedules.CosineAnnealingLR(first, 100), schedules.ExponentialLR(second, 0.99)]


class NumpySchedule(Thorough):
    """Its learning rate is one of numpy's numbers."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + np.cos(np.pi * step / 100)))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ListsItsOutputs(Thorough):
    """Sets a list up at the epoch's start, as Lightning's migration guide has it, and logs and draws there."""

    def on_train_epoch_start(self) -> None:
        self.outputs: list[Tensor] = []
        self.log("epoch_start", torch.rand(()).item(), on_epoch=True)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss.detach())
        return loss


class WrappedMetrics(Thorough):
    """Metrics that keep what they know beside their states."""

    def __init__(self) -> None:
        super().__init__()
        self.best, self.running, self.extremes = MaxMetric(), Running(MeanMetric(), 3), MinMaxMetric(MeanMetric())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for metric in (self.best, self.running, self.extremes):
            metric.update(loss.detach())
        found = self.extremes.compute()
        self.log("lowest", found["min"])
        self.log("highest", found["max"])
        self.log("running", self.running.compute())
        self.log("best", self.best.compute())
        return loss


class Crashes(pl.Callback):
    """Raises after a step, for as long as a file is there.

    Args:
        step: After which optimizer step.
        while_there: The file.
    """

    def __init__(self, step: int, while_there: str) -> None:
        self.step, self.while_there = step, Path(while_there)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step and self.while_there.exists():
            raise ZeroDivisionError(f"crashed after step {self.step}")


class Meddles(pl.Callback):
    """Changes what training starts with, as a callback does that loads or resets something.

    Args:
        what: `weights`, `element`, `data`, `buffers`, `moments`, `optimizer`, `frozen`, `eval`, `step` or `nothing`.
        hook: In which hook.
    """

    def __init__(self, what: str, hook: str) -> None:
        self.what = what
        setattr(self, hook, self._meddle)

    def _meddle(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        first = next(pl_module.parameters())
        if self.what == "weights":
            first.data.mul_(0.5)
        elif self.what == "element":
            first.data.view(-1)[-1] += 0.5
        elif self.what == "data":
            first.data = first.data.flip(0)
        elif self.what == "buffers":
            pl_module.norm.running_mean.add_(1)
        elif self.what == "moments":
            for state in trainer.optimizers[0].state.values():
                state["exp_avg"].neg_()
        elif self.what == "optimizer":
            trainer.optimizers[0].state.clear()
        elif self.what == "frozen":
            first.requires_grad_(not first.requires_grad)
        elif self.what == "eval":
            pl_module.norm.train(not pl_module.norm.training)
        elif self.what == "step":
            trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed //= 2


class MeddlesItself(Thorough):
    """A module whose own hooks do so: shrinks and perturbs its weights as an epoch starts, and counts in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def on_train_start(self) -> None:
        self.epochs.zero_()

    def on_train_epoch_start(self) -> None:
        self.epochs += 1
        self.scale.fill_(1 / (1 + self.current_epoch))
        for parameter in self.parameters():
            parameter.data.mul_(0.9).add_(0.1 * torch.randn_like(parameter))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.scale * self.epochs * super().training_step(batch, batch_idx)


class CountsEpochs(Thorough):
    """Counts its epochs in an attribute that its own hooks save and load, and in the extra state of a layer."""

    def __init__(self, shares: bool = False) -> None:
        super().__init__()
        self.counting, self.epochs, self.shares = CountingLayer(), 0, shares

    def on_train_epoch_start(self) -> None:
        self.epochs += 1
        self.counting.count += 1

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.epochs * self.counting.count * super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epochs"] = self.epochs
        if self.shares:
            checkpoint["weights"] = len(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.epochs = checkpoint.pop("epochs")


class CountingLayer(nn.Module):
    """A layer with a count in its extra state."""

    count = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"count": self.count}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class CountsEpochsToo(pl.Callback):
    """Counts epochs beside the model, and shrinks a weight by that."""

    epochs = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs += 1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any) -> None:
        next(pl_module.parameters()).data.mul_(0.9**self.epochs)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["epochs too"] = self.epochs

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.epochs = checkpoint["epochs too"]


class LosesTheRun(pl.Callback):
    """Moves the run directory away after a step, and dies as by kill -9, once.

    Args:
        run: The run directory.
        step: After which optimizer step.
    """

    def __init__(self, run: str, step: int) -> None:
        self.run, self.step = Path(run), step

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        away = self.run.with_name("away")
        if trainer.global_step == self.step and not away.exists():
            finish_saves(trainer)
            self.run.rename(away)
            os.kill(os.getpid(), 9)


class MilestoneFinder(LearningRateFinder):
    """As Lightning's documentation has it: searches at the start of some epochs.

    Args:
        milestones: Which epochs.
    """

    def __init__(self, milestones: list[int], num_training_steps: int = 100) -> None:
        super().__init__(num_training_steps=num_training_steps)
        self.milestones = milestones

    def on_fit_start(self, *arguments: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch in self.milestones:
            self.lr_find(trainer, pl_module)


class Counts(pl.Callback):
    """Counts how often each hook is called, and keeps the counts."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, hook: str) -> None:
        self.counts[hook] = self.counts.get(hook, 0) + 1

    def on_train_epoch_start(self, *arguments: Any) -> None:
        self.count("epoch start")

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.count("batch start")

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.count("batch end")

    def on_train_epoch_end(self, *arguments: Any) -> None:
        self.count("epoch end")

    def state_dict(self) -> dict[str, Any]:
        return dict(self.counts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = dict(state)


class AveragesAtStart(pl.Callback):
    """An exponential moving average that is taken before the step."""

    def __init__(self) -> None:
        self.average: dict[str, Tensor] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for name, value in pl_module.named_parameters():
            self.average[name] = 0.9 * self.average.get(name, value.detach()) + 0.1 * value.detach()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average = dict(state)


class MixesUp(pl.Callback):
    """Draws for each batch and each epoch, before the step."""

    def on_train_epoch_start(self, *arguments: Any) -> None:
        torch.rand(())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        batch[0].mul_(1 + 0.1 * torch.rand(()))


class HoldsAPath(Thorough):
    """A hyperparameter that would not load again."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"folder": Path("x"), "rate": 0.1})


class SavesAnArray(Thorough):
    """Something in the checkpoint that would not load again."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = {"array": np.arange(3)}


class KeepsDates(pl.Callback):
    """Keeps of each batch what would not load again."""

    def __init__(self) -> None:
        self.days: list[datetime.date] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.days.append(datetime.date(2026, 1, 1))

    def state_dict(self) -> dict[str, Any]:
        return {"days": self.days}


class SavesWhatAValidationFound(Thorough):
    """Can be saved after a validation only."""

    def on_validation_epoch_end(self) -> None:
        self.found = 7

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["found"] = self.found


def now_and_then(samples: list[Any]) -> Any:
    """A collate function that gives up a batch by its content."""
    batch = default_collate(samples)
    return None if batch[0].sum() > 5 else batch


class Shorter(DataModule):
    """Wraps the loader in one that leaves the last batch out, and says so."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()

        class Wrapper:
            def __len__(self) -> int:
                return len(loader) - 1

            def __iter__(self) -> Any:
                return (batch for number, batch in enumerate(loader) if number < len(self))

            def __getattr__(self, name: str) -> Any:
                return getattr(loader, name)

        return Wrapper()


class BringsLoaders(DataModule):
    """Brings a loader of its own, or ours among others, as `kind` says."""

    def __init__(self, kind: str = "own", **named: Any) -> None:
        super().__init__(**named)
        self.kind = kind

    def train_dataloader(self) -> Any:
        own = DataLoader(Rows(), batch_size=16)
        if self.kind == "own":
            return own
        if self.kind == "dict":
            return {"a": super().train_dataloader(), "b": own}
        if self.kind == "list":
            return [super().train_dataloader(), own]
        return CombinedLoader({"a": super().train_dataloader(), "b": own}, "min_size")


class TakesTheFirst(Thorough):
    """Trains on the first of several loaders."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        return super().training_step(parts[0] if isinstance(parts[0], (list, tuple)) else batch, batch_idx)


class AskedToEnd(pl.Callback):
    """Has this process asked to end, once, in the validation after an epoch."""

    def __init__(self, marker: str, epoch: int = 1) -> None:
        self.marker, self.epoch = Path(marker), epoch

    def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == self.epoch and not trainer.sanity_checking and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGTERM)
