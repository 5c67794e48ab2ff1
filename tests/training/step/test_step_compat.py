"""What is overridden is found, wherever it stands."""

from types import MethodType
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import LambdaCallback

from pipeline.training import compat
from pipeline.training.step import step_compat


class Own(pl.Callback):
    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """Of this class."""


class Child(Own):
    """Has it from its parent."""


def on_instance() -> pl.Callback:
    callback = pl.Callback()
    callback.on_train_batch_end = MethodType(lambda self, *_: None, callback)  # type: ignore[method-assign]
    return callback


@pytest.mark.parametrize(
    "callback", [Own(), Child(), on_instance(), LambdaCallback(on_train_batch_end=lambda *_: None)]
)
def test_a_hook_is_found_where_it_is_overridden(callback: pl.Callback) -> None:
    assert step_compat.overridden(callback, "on_train_batch_end") is not None
    assert step_compat.overridden(callback, "on_train_batch_start") is None


@pytest.mark.parametrize("owner", [pl.Callback(), pl.LightningModule(), pl.LightningDataModule()])
def test_lightnings_own_hooks_are_not_overridden(owner: Any) -> None:
    hook = "on_train_epoch_start" if not isinstance(owner, pl.LightningDataModule) else "on_before_batch_transfer"
    assert step_compat.overridden(owner, hook) is None


def test_each_private_member_is_there() -> None:
    assert list(compat.missing(step_compat.MEMBERS)) == []
