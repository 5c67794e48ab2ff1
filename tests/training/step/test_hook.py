"""The hooks of a batch: who has overridden one is called, callbacks first, as Lightning calls them."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor

from pipeline.training.step.hook import Called, Hook, Transfer
from tests.support.hook_calls import quiet_trainer


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
    trainer = quiet_trainer(callbacks=list(callbacks), **named)
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


@pytest.mark.parametrize(
    "batch", [[torch.ones(2)], (torch.ones(2),), {"x": [torch.ones(2)]}], ids=["list", "tuple", "dict"]
)
def test_a_batch_that_is_where_it_should_be_is_repacked_and_its_tensors_stay(batch: Any) -> None:
    made = Transfer(running(Model()))(batch)
    assert type(made) is type(batch)
    assert isinstance(batch, tuple) or made is not batch, "a dataset may keep what it hands out"
    ours, its = (each["x"] if isinstance(each, dict) else each for each in (made, batch))
    assert ours[0] is its[0]


def test_a_tensor_is_handed_on_as_it_is() -> None:
    batch = torch.ones(2)
    assert Transfer(running(Model()))(batch) is batch


class Doubled(SingleDeviceStrategy):
    def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        return batch * 2


def test_a_batch_goes_the_way_of_a_strategy_of_the_users_own() -> None:
    assert Transfer(running(Model(), strategy=Doubled(device="cpu")))(torch.ones(2)).tolist() == [2.0, 2.0]


def test_a_callback_that_only_looks_like_one_and_a_patched_class_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    class Alike:
        def on_train_batch_end(self, *_: Any) -> None:
            called.append("callback")

    trainer = running(Model())
    trainer.callbacks.append(Alike())  # type: ignore[attr-defined]
    patched = lambda *_: called.append("class")  # noqa: E731
    monkeypatch.setattr(pl.LightningModule, "on_train_batch_end", patched)
    Hook("on_train_batch_end", trainer)(None, None, 0)
    assert called == ["callback", "class"]


class Equal(pl.Callback):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    __hash__ = pl.Callback.__hash__


def test_what_was_looked_up_holds_while_callbacks_and_methods_are_the_same() -> None:
    model = Told()
    trainer: Any = running(model, Equal())
    called = Called(trainer, ("on_train_batch_start", "on_train_batch_end"))
    assert called.holds
    trainer.callbacks.append(pl.Callback())
    assert not called.holds
    trainer.callbacks.pop()
    assert called.holds
    trainer.callbacks[-1] = Equal()
    assert not called.holds, "another one, though it is equal"
    called = Called(trainer, ("on_train_batch_start", "on_train_batch_end"))
    model.on_train_batch_end = lambda *_: None  # type: ignore[method-assign]
    assert not called.holds


def test_a_batch_goes_through_the_hooks_of_whoever_has_them_and_the_precision() -> None:
    moved, index = Transfer(running(Doubling()))(torch.ones(2), 3)
    assert moved.tolist() == [2.0, 2.0]
    assert index == 3
    assert Transfer(running(Model(), precision="bf16-true"))(torch.ones(2)).dtype is torch.bfloat16
