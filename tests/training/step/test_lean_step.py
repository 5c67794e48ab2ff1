"""A lean step is Lightning's own: the same hooks in the same order, the same values logged, the same weights."""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, LambdaCallback
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.training import epoch_loop
from pipeline.training.step.lean_step import LeanStep
from tests.support.hook_calls import Numbers, assert_same_calls, assert_same_tables, plain, quiet_trainer

OF_MODEL = (
    *("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping", "optimizer_step"),
    *("on_train_epoch_start", "on_train_epoch_end", "on_validation_model_zero_grad", "lr_scheduler_step"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
)
OF_CALLBACK = (*OF_MODEL[:6], "on_train_epoch_start", "on_train_epoch_end", "on_validation_end")


class Model(pl.LightningModule):
    """Logs in all ways."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.mean = torchmetrics.MeanMetric()
        self.lr = lr

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.layers(batch).square().mean()
        self.log("loss", loss, prog_bar=True)
        self.log("both", loss, on_step=True, on_epoch=True, batch_size=len(batch))
        self.log("largest", loss, False, True, False, True, "max")
        self.log_dict({"epoch_only": loss * 2, "number": float(batch_idx)}, on_step=False, on_epoch=True)
        self.mean.update(loss.detach())
        self.log("metric", self.mean)
        if batch_idx == 2:
            self.log("rare", loss.reshape(1))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layers(batch).square().mean(), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Scheduled(Model):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Plateau(Model):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}


class WarmUp(Model):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + batch_idx)
        optimizer.step(closure=optimizer_closure)


class Searching(Model):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), max_iter=3)


class Told(Model):
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return {"loss": super().training_step(batch, batch_idx), "rows": batch}


class Picky(Model):
    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> Any:
        return -1 if self.current_epoch == 1 and batch_idx == 2 else None


class WithoutIndex(Model):
    def training_step(self, batch: Tensor) -> Any:  # type: ignore[override]
        loss = self.layers(batch).square().mean()
        self.log("loss", loss)
        loss_later = loss * 1
        loss.data.mul_(1)
        return loss_later


class Changed(Model):
    """Changes in place what it has logged, and the batch on its way."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.layers(batch).square().mean()
        shown = loss.detach().clone()
        self.log("shown", shown)
        shown.zero_()
        return loss

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch * 2


class Recorder(pl.Callback):
    """Writes down each hook that is called, with what can be known in it."""

    def __init__(self, hooks: tuple[str, ...], seen: list[Any]) -> None:
        self.seen = seen
        for name in hooks:
            setattr(self, name, functools.partial(self._seen, name))

    def _seen(self, name: str, trainer: Any, module: Any, *more: Any) -> None:
        self.seen.append(("callback", name, situation(trainer, module), plain(more)))
        if name in ("on_train_batch_start", "on_train_batch_end"):
            module.log(f"of_{name}", float(trainer.global_step))


def situation(trainer: Any, module: Any) -> Any:
    """All that a hook may look at."""
    loop = trainer.fit_loop.epoch_loop
    return (
        module._current_fx_name,
        (trainer.global_step, trainer.current_epoch, trainer.is_last_batch, loop.batch_progress.state_dict()),
        loop.automatic_optimization.optim_progress.state_dict(),
        plain(dict(trainer.callback_metrics)),
        plain(dict(trainer.logged_metrics)),
        plain(dict(trainer.progress_bar_metrics)),
        [None if each.grad is None else plain(each.grad) for each in module.parameters()],
    )


def watched(model: pl.LightningModule, seen: list[Any]) -> None:
    """Have a model write down its hooks, and call them."""
    for name in OF_MODEL:
        stock = getattr(model, name)

        def hook(*given: Any, name: str = name, stock: Callable[..., Any] = stock, **named: Any) -> Any:
            seen.append(("model", name, situation(model.trainer, model), plain(given), plain(named)))
            return stock(*given, **named)

        setattr(model, name, hook)


def fit(
    folder: Path, kind: type[Model], callbacks: list[pl.Callback], seen: list[Any], watch: bool, **named: Any
) -> tuple[Model, pl.Trainer]:
    model = kind()
    if watch:
        watched(model, seen)
    trainer = quiet_trainer(
        logger=CSVLogger(folder, "", ""),
        callbacks=[Recorder(OF_CALLBACK if watch else ("on_train_batch_end",), seen), *callbacks],
        **{"max_epochs": 2, "log_every_n_steps": 2, **named},
    )
    epoch_loop.install(trainer)
    loader = DataLoader(Numbers(), batch_size=4)
    trainer.fit(model, loader, DataLoader(Numbers(), batch_size=8))
    return model, trainer


CASES: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "plain": (Model, {}),
    "a dictionary of outputs": (Told, {}),
    "batches and epochs that are left out": (Picky, {}),
    "no index of the batch": (WithoutIndex, {}),
    "what is changed in place": (Changed, {}),
    "a schedule by steps": (Scheduled, {"accumulate_grad_batches": 2}),
    "a schedule by a metric": (Plateau, {}),
    "an optimizer step of the model's": (WarmUp, {"gradient_clip_val": 0.1}),
    "an optimizer that calls its closure again": (Searching, {}),
    "accumulated gradients": (Model, {"accumulate_grad_batches": 3}),
    "clipped norms": (Model, {"gradient_clip_val": 0.01}),
    "clipped values": (Model, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "bf16": (Model, {"precision": "bf16-mixed"}),
    "a validation every other batch": (Model, {"val_check_interval": 2}),
    "so many steps": (Model, {"max_steps": 7, "limit_train_batches": 3, "max_epochs": 9}),
    "a run to try it out": (Model, {"fast_dev_run": 2}),
    "no logging": (Model, {"log_every_n_steps": 0}),
}


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leave each batch to Lightning."""
    return lambda: monkeypatch.setattr(LeanStep, "of", staticmethod(lambda loop, fetcher: None))


@pytest.mark.parametrize("watch", [pytest.param(False, marks=pytest.mark.slow), True], ids=["few hooks", "all hooks"])
@pytest.mark.parametrize("case", CASES)
def test_a_lean_step_is_lightnings(case: str, watch: bool, tmp_path: Path, leave: Callable[[], None]) -> None:
    kind, named = CASES[case]
    seen: list[list[Any]] = [[], []]
    ends = []
    for which in range(2):
        callbacks = [EarlyStopping("val_loss", patience=5), GradientAccumulationScheduler({0: 1})]
        more = [] if "accumulate_grad_batches" in named else callbacks
        model, trainer = fit(tmp_path / str(which), kind, more, seen[which], watch, **named)
        assert which or trainer.fit_loop.epoch_loop.logged is None  # it ends with the epoch
        ends.append((plain(model.state_dict()), plain(dict(trainer.callback_metrics)), trainer.global_step))
        leave()
    assert_same_calls(*seen)
    assert seen[0]
    assert ends[0] == ends[1]
    assert_same_tables(tmp_path / "0", tmp_path / "1")


def test_lean_steps_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = itertools.count()
    stock = LeanStep.advance

    def advance(self: LeanStep, fetcher: Any) -> None:
        next(taken)
        stock(self, fetcher)

    monkeypatch.setattr(LeanStep, "advance", advance)
    fit(tmp_path / "one", Model, [], [], watch=False)
    assert next(taken) == 10
    for named in ({"profiler": "simple"}, {"precision": "bf16-true"}):
        fit(tmp_path / "more", Model, [], [], watch=False, **named)
        assert next(taken) == 11 + (named != {"profiler": "simple"})


def test_a_callback_that_comes_in_mid_epoch_is_called(tmp_path: Path) -> None:
    called: list[int] = []

    def add(trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            late = LambdaCallback(on_train_batch_start=lambda trainer, *_: called.append(trainer.global_step))
            trainer.callbacks.append(late)

    fit(tmp_path, Model, [LambdaCallback(on_train_batch_end=add)], [], watch=False)
    assert called == list(range(2, 10))
