"""Models and data to be exported: what a file format, a tracer or a loader may stumble over."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pipeline.commands.export.description import Description
from tests.support.models import Own, Regression

SAID = Description(
    "s3://b/run", 7, "checkpoints/step-00000007.ckpt", "sha256:ab", "2026-01-01T00:00:00Z", "a.B", "", "x"
)
RUN = ("--trainer.max_steps=2", "--trainer.enable_model_summary=false", "--trainer.limit_val_batches=0")
OWN = "--data=tests.support.models.Own"


def of(name: str, *flags: str) -> tuple[str, ...]:
    """The flags of a short fit of one of these models on rows of four numbers."""
    return "fit", f"--model=tests.support.exported.{name}", OWN, *flags, *RUN


class Configured(Own):
    """Data that save their hyperparameters."""

    def __init__(self, rows: int = 101, kind: str = "plain") -> None:
        super().__init__(kind, rows)
        self.save_hyperparameters()


class Trained(pl.LightningModule):
    """Trains a layer; subclasses bring a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.layer(batch[0]), batch[1].expand(-1, 3))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Peculiar(Trained):
    """Tied weights, a transposed and a sliced tensor, buffers, a compiled and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.head.weight = self.embedding.weight
        whole = torch.arange(12.0).reshape(3, 4)
        self.register_buffer("turned", whole.t())
        self.register_buffer("piece", whole[1])
        self.register_buffer("forgotten", torch.ones(3), persistent=False)
        self.compiled = torch.compile(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x) + self.embedding(x) * self.piece[0] + self.turned[0] + self.forgotten  # type: ignore[index,operator]
        return self.frozen(self.compiled(found + self.layer(x)))  # type: ignore[operator]


class Branching(Trained):
    """Its control flow depends on the numbers that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found if found.sum() > 0 else -found


class Noisy(Trained):
    """Draws random numbers also in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found + torch.randn_like(found)


class Complicated(Trained):
    """Holds complex numbers, and an extra state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phases", torch.ones(3, dtype=torch.complex64))

    def get_extra_state(self) -> Any:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"version": 3}


class Quantized(Trained):
    """Holds a quantised tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("eighths", torch.quantize_per_tensor(torch.ones(3), 0.125, 0, torch.qint8))


class Adapted(Trained):
    """Saves what it trains alone: the rest comes from its constructor, as with LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.backbone = nn.Linear(4, 3).requires_grad_(False)
        nn.init.constant_(self.backbone.weight, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x) + self.backbone(x)
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in ("backbone.weight", "backbone.bias"):
            del checkpoint["state_dict"][name]


class LateLayers(Trained):
    """Makes its layers late: one in configure_model, one in setup from what the data are."""

    def __init__(self) -> None:
        super().__init__()
        self.first: nn.Module | None = None
        self.second: nn.Module | None = None

    def configure_model(self) -> None:
        self.first = self.first or nn.Linear(4, 3)

    def setup(self, stage: str) -> None:
        width = self.trainer.datamodule.rows.x.shape[1]  # type: ignore[attr-defined]
        self.second = self.second or nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert self.first is not None
        assert self.second is not None
        found: Tensor = self.layer(x) + self.first(x) + self.second(x)
        return found


class MovesItsBatches(Trained):
    """Its forward takes what a hook of the model makes of a batch, and what its setup has set."""

    def setup(self, stage: str) -> None:
        self.shift = 1.0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"rows": batch[0], "target": batch[1]}

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.layer(rows) + self.shift
        return found

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch["rows"]) - batch["target"]).square().mean()


class WithoutForward(pl.LightningModule):
    """Has parts and a training step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.generator, self.judge = nn.Linear(4, 4), nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.judge(self.generator(batch[0])).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Normed(Regression):
    """With statistics of batches."""

    def __init__(self, learning_rate: float = 0.05) -> None:
        super().__init__(learning_rate)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


class OfTexts(pl.LightningModule):
    """Takes named token ids and a mask, as models of texts do, and answers by a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        found = self.words(input_ids)
        if mask is not None:
            found = found * mask.unsqueeze(-1)
        logits = self.head(found.mean(1))
        return {"logits": logits, "best": logits.argmax(1)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found: Tensor = self(batch["input_ids"], mask=batch["mask"])["logits"].square().mean()
        return found

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Texts(Dataset[Any]):
    """Token ids, a mask and the text that they stand for."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return {"input_ids": torch.arange(6) + index, "mask": torch.ones(6), "text": f"text {index}"}


class TextData(pl.LightningDataModule):
    """Of texts."""

    def train_dataloader(self) -> Any:
        return DataLoader(Texts(), batch_size=5)


class Gone(Own):
    """Data that cannot be built after the training: what they read is not there any more."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        with open(marker, encoding="utf-8"):
            pass


class WithExample(Trained):
    """Sets the example that Lightning documents."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 4)
