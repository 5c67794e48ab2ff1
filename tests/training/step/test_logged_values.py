"""Values that are logged in the same way again are not looked at until somebody reads them; others are checked."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.training import epoch_loop
from pipeline.training.step import logged_values
from pipeline.training.trainer import Trainer


class LoggingModel(pl.LightningModule):
    """Logs the number of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("index", float(batch_idx))
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, kind: type[LoggingModel], *callbacks: pl.Callback) -> pl.Trainer:
    silent: dict[str, Any] = dict.fromkeys(
        ("enable_checkpointing", "enable_model_summary", "enable_progress_bar"), False
    )
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, default_root_dir=folder, callbacks=[*callbacks], **silent
    )
    epoch_loop.install(trainer)
    trainer.fit(kind(), DataLoader(torch.ones(10, 2), batch_size=2))  # type: ignore[arg-type]
    return trainer


def test_log_is_replaced_once() -> None:
    log = pl.LightningModule.log
    logged_values.install()
    logged_values.install()
    assert pl.LightningModule.log.__wrapped__ is getattr(log, "__wrapped__", log)  # type: ignore[attr-defined]
    assert log.__doc__ == pl.LightningModule.log.__doc__


def test_values_are_looked_at_when_they_are_read(tmp_path: Path) -> None:
    read: list[Any] = []

    class Reading(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (2, 4):
                read.append(float(trainer.callback_metrics["index"]))

    trainer = fit(tmp_path, LoggingModel, Reading())
    assert read == [1, 3]
    assert float(trainer.callback_metrics["index"]) == 4


def test_a_value_that_is_logged_otherwise_in_a_later_batch_is_refused(tmp_path: Path) -> None:
    class Fickle(LoggingModel):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("loss", torch.ones(()), prog_bar=batch_idx == 3)
            return super().training_step(batch, batch_idx)

    class Wide(LoggingModel):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.log("wide", torch.ones(1 + (batch_idx == 3)))
            return super().training_step(batch, batch_idx)

    with pytest.raises(MisconfigurationException, match="twice in"):
        fit(tmp_path / "fickle", Fickle)
    with pytest.raises(ValueError, match="single element"):
        fit(tmp_path / "wide", Wide)


def test_values_of_the_last_batch_are_there_after_an_interrupted_epoch(tmp_path: Path) -> None:
    class Failing(LoggingModel):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            if batch_idx == 3:
                raise ArithmeticError(
                    str({name: float(value) for name, value in self.trainer.callback_metrics.items()})
                )
            self.log("index", float(batch_idx))
            return super().training_step(batch, batch_idx)

    with pytest.raises(ArithmeticError, match=r"'index': 2\.0"):
        fit(tmp_path, Failing)
