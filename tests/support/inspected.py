"""Models and data to be looked at: of the kinds that a first look may stumble over."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.demos.transformer import Transformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.support.models import Regression, Rows


class Gan(pl.LightningModule):
    """Optimizes by hand: a generator in each batch, a discriminator in each, a third network in each tenth one."""

    def __init__(self, width: int = 8, seldom: int = 10) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = nn.Linear(4, 4, bias=False), nn.Linear(4, 1, bias=False)
        self.seldom_trained = nn.Linear(4, width, bias=False)
        self.seldom = seldom

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        made = self.generator(torch.randn_like(batch[0]))
        losses = [
            -self.discriminator(made).mean(),
            self.discriminator(made.detach()).square().mean() + self.discriminator(batch[0]).mean(),
        ]
        for optimizer, loss in zip(optimizers[:2], losses, strict=True):
            self.toggle_optimizer(optimizer)
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
        if batch_idx % self.seldom == self.seldom - 1:
            optimizers[2].step()
        self.log_dict({"generator": losses[0], "discriminator": losses[1]}, prog_bar=True)

    def configure_optimizers(self) -> Any:
        networks = (self.generator, self.discriminator, self.seldom_trained)
        return [torch.optim.Adam(network.parameters()) for network in networks], []


class Mappings(Dataset[Any]):
    """Samples as mappings: numbers, a text, a label, something nested."""

    def __init__(self, n: int = 40) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        words = ("cat", "horse", "ant")
        values = np.full((2, 3), index, np.float32)
        return {
            "x": torch.full((4,), float(index)),
            "word": words[index % 3],
            "label": index % 2,
            "more": {"v": values},
        }


class OfMappings(Regression):
    """Trains on mappings, moves them by a hook of its own, and logs to whatever logger it has."""

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return {**batch, "x": batch["x"].to(device), "moved": True}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert batch["moved"]
        self.logger.experiment.add_scalar("mine", 1.0, self.global_step)  # type: ignore[union-attr]
        self.trainer.callback_metrics.get("anything")
        loss = self(batch["x"]).square().mean()
        self.log("loss", loss, batch_size=len(batch["word"]))
        return loss


class Plans(Regression):
    """Its schedules ask how long training is, and monitor what only a validation logs."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        total = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total), "interval": "step"},
            {"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer), "monitor": "val_loss"},
        ]


class Deep(pl.LightningModule):
    """Many layers, whose activations are kept or computed again."""

    def __init__(self, recompute: bool = False, layers: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Tanh()) for _ in range(layers))
        self.recompute = recompute

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = batch[0]
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
        return x.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Words(Dataset[Any]):
    """Token ids: (16 tokens, the 16 after them)."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens = torch.randint(100, (17,), generator=torch.Generator().manual_seed(index))
        return tokens[:-1], tokens[1:]


class LanguageModel(pl.LightningModule):
    """Lightning's transformer, as its demo trains it."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=100, ninp=16, nhead=2, nhid=32, nlayers=2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        output = self.model(inputs, targets)
        return nn.functional.nll_loss(output, targets.view(-1))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Transforms(Regression):
    """Takes gradients by a transform of torch's, which does not go together with hooks on what is kept."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        values = dict(self.named_parameters())

        def loss(parameters: Any) -> Tensor:
            output: Tensor = torch.func.functional_call(self, parameters, (batch[0],))
            return nn.functional.mse_loss(output, batch[1])

        torch.func.grad(loss)({name: each.detach() for name, each in values.items()})
        return loss(values)


class EndsBadly(Regression):
    """Would write at the end of training, and fails to if that comes."""

    def on_train_epoch_end(self) -> None:
        raise AssertionError("an epoch has ended")

    def on_train_end(self) -> None:
        raise AssertionError("training has ended")

    def on_validation_start(self) -> None:
        raise AssertionError("a validation has begun")


class Breaks(Regression):
    """Its training step fails, at the batch that is named."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": 0.05, "dropout": 0.0})
        self.at = at

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == self.at:
            raise KeyError("no such column")
        return super().training_step(batch, batch_idx)


class Refuses(Rows):
    """Cannot be built here."""

    def __init__(self) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/nowhere/rows")


class Torn(Rows):
    """One of its samples cannot be read."""

    def __init__(self, at: int = 17, n: int = 50) -> None:
        super().__init__(n)
        self.at = at

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == self.at:
            raise ValueError("the row is torn")
        return super().__getitem__(index)


class Pictured(Dataset[Any]):
    """Small pictures with their labels."""

    def __init__(self, n: int = 6, wrong: bool = False) -> None:
        self.n, self.wrong = n, wrong

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 4, 4), index / self.n), index % 3

    def picture(self, index: int) -> Any:
        return "no picture" if self.wrong else self[index][0]


class PairStream(IterableDataset[Any]):
    """A stream of pairs."""

    def __init__(self, n: int = 30) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        return ((torch.full((4,), float(at)), torch.ones(1)) for at in range(self.n))


class Streams(pl.LightningDataModule):
    """A stream for training; validation in two loaders; a test set that cannot be set up."""

    def setup(self, stage: str) -> None:
        if stage == "test":
            raise RuntimeError("the test set is not for you")

    def train_dataloader(self) -> Any:
        return DataLoader(PairStream(), batch_size=8)

    def val_dataloader(self) -> Any:
        return {"small": DataLoader(Rows(10), batch_size=4), "large": DataLoader(Rows(30), batch_size=4)}

    def test_dataloader(self) -> Any:
        return DataLoader(Rows(10))


class BringsItsOwn(Regression):
    """A model with its own training loader."""

    def train_dataloader(self) -> Any:
        return DataLoader(Rows(50), batch_size=10, shuffle=True)
