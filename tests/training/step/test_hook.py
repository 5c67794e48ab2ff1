"""The hooks of a batch: who has overridden one is called, callbacks first, as Lightning calls them."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor

from pipeline.training.step.hook import Hook, Transfer


class Model(pl.LightningModule):
    """Has nothing to do."""


class Told(Model):
    """Returns what it is called with."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        return self._current_fx_name, batch, batch_idx


class Doubling(Model):
    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Any:
        return batch * 2, dataloader_idx


def running(model: pl.LightningModule, *callbacks: pl.Callback, **named: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **named,
    )
    trainer.strategy._lightning_module = model
    trainer._data_connector.attach_data(model)
    model.trainer = trainer
    return trainer


def test_callbacks_are_called_before_the_model_whose_answer_counts() -> None:
    seen: list[Any] = []
    model = Told()
    model._current_fx_name = "outside"
    told = LambdaCallback(on_train_batch_start=lambda trainer, module, *more: seen.append((module, *more)))
    hook = Hook("on_train_batch_start", running(model, told, pl.Callback(), told))
    assert hook.overridden
    assert hook("a batch", 3) == ("on_train_batch_start", "a batch", 3)
    assert seen == [(model, "a batch", 3)] * 2
    assert model._current_fx_name == "outside"


def test_a_hook_that_nobody_has_overridden_does_nothing() -> None:
    hook = Hook("on_train_batch_end", running(Model(), pl.Callback()))
    assert not hook.overridden
    assert hook(None, None, 0) is None


def test_hooks_of_the_model_alone_are_not_looked_for_in_callbacks() -> None:
    assert not Hook("optimizer_zero_grad", running(Model(), pl.Callback())).overridden


@pytest.mark.parametrize("batch", [torch.ones(2), [torch.ones(2)], {"x": (torch.ones(2), torch.zeros(1))}], ids=type)
def test_a_batch_that_is_where_it_should_be_is_not_touched(batch: Any) -> None:
    assert Transfer(running(Model()))(batch) is batch


def test_a_batch_goes_through_the_hooks_of_whoever_has_them_and_the_precision() -> None:
    moved, index = Transfer(running(Doubling()))(torch.ones(2), 3)
    assert moved.tolist() == [2.0, 2.0]
    assert index == 3
    assert Transfer(running(Model(), precision="bf16-true"))(torch.ones(2)).dtype is torch.bfloat16
