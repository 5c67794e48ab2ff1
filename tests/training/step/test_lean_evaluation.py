"""A lean evaluation is Lightning's own: the same hooks in the same order, the same values logged, the same results."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pipeline.training import epoch_loop, evaluation_loop
from pipeline.training.step.lean_evaluation import LeanEvaluation
from tests.support.hook_calls import Numbers, assert_same_calls, assert_same_tables, plain, quiet_trainer

KINDS = ("validation", "test")
OF_BOTH = tuple(f"on_{kind}_{when}" for kind in KINDS for when in ("batch_start", "batch_end", "epoch_end", "end"))
OF_MODEL = (*OF_BOTH, "on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class Model(pl.LightningModule):
    """Logs in all ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)
        self.mean = torchmetrics.MeanMetric()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def _evaluated(self, batch: Tensor, batch_idx: int, kind: str) -> dict[str, Tensor]:
        errors = self.layer(batch).square().mean(dim=1)
        self.log(f"{kind}_loss", errors.mean(), prog_bar=True)
        self.log(f"{kind}_both", errors.mean(), on_step=True, on_epoch=True, batch_size=len(batch))
        self.log(f"{kind}_largest", errors.max(), False, True, False, True, "max")
        self.log(f"{kind}_double", errors.double().sum(), reduce_fx="sum", logger=False)
        self.log_dict({f"{kind}_number": float(batch_idx), f"{kind}_whole": torch.tensor(batch_idx)})
        self.mean.update(errors.detach())
        self.log(f"{kind}_metric", self.mean)
        if batch_idx == 2:
            self.log(f"{kind}_rare", errors.mean().reshape(1))
        return {"error": errors}

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self._evaluated(batch, batch_idx, "val")

    def test_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self._evaluated(batch, batch_idx, "test")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PerEpoch(Model):
    """Logs nothing batch by batch."""

    def _evaluated(self, batch: Tensor, batch_idx: int, kind: str) -> dict[str, Tensor]:
        errors = self.layer(batch).square().mean(dim=1)
        self.log(f"{kind}_loss", errors.mean())
        return {"error": errors}


class Indexed(Model):
    """Of several loaders."""

    def validation_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int) -> Any:  # type: ignore[override]
        if dataloader_idx == 0:  # names that look like those that Lightning makes of a name and a loader
            self.log("once", batch.mean(), add_dataloader_idx=False)
            self.log("once.0", 2.0 + batch_idx, add_dataloader_idx=False)
        return self._evaluated(batch, batch_idx, "val")

    def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int) -> Any:  # type: ignore[override]
        return self._evaluated(batch, batch_idx, "test")


class WithoutIndex(Model):
    """Takes the batch alone, and moves it in its own way."""

    def validation_step(self, batch: Tensor) -> Any:  # type: ignore[override]
        return self._evaluated(batch, 0, "val")

    def test_step(self, batch: Tensor) -> Any:  # type: ignore[override]
        return self._evaluated(batch, 0, "test")

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch * 2


class InTurn(Model):
    """Logs the same name in two ways, in different batches, which is refused; and changes what it has logged."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        shown = batch.mean()
        self.log("shown", shown)
        shown.zero_()
        self.log("in_turn", batch.mean(), on_step=batch_idx == 3)


class MetricOrNumber(Model):
    """Logs a metric and its value under one name, which is refused."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.mean.update(batch)
        self.log("in_turn", self.mean if batch_idx != 2 else self.mean.compute())


class Changing(Model):
    """Becomes another while it is evaluated."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> Any:  # type: ignore[override]
        self.log("first", batch.mean())
        if batch_idx == 1:
            self.on_validation_batch_end = lambda *_: self.log("late", 1.0)  # type: ignore[method-assign]
            self.validation_step = self.another  # type: ignore[assignment, method-assign]

    def another(self, batch: Tensor) -> Any:
        self.log("then", batch.sum())


class Unpacking(Model):
    """Changes the batches that its dataset keeps."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        x = batch.pop("x")
        batch["y"][0] = batch["y"][0] + 1
        self.log("sum", x.sum() + batch["y"][0].sum())

    test_step = validation_step


def situation(trainer: Any, module: Any) -> Any:
    """All that a hook may look at."""
    loop = trainer._evaluation_loop
    return (
        module._current_fx_name,
        loop.batch_progress.state_dict(),
        loop.batch_progress.is_last_batch,
        dict(loop._seen_batches_per_dataloader),
        plain(dict(trainer.callback_metrics)),
        plain(dict(trainer.logged_metrics)),
        plain(dict(trainer.progress_bar_metrics)),
        (module.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    )


class Recorder(pl.Callback):
    """Writes down each hook that is called, with what can be known in it."""

    def __init__(self, hooks: tuple[str, ...], seen: list[Any]) -> None:
        for name in hooks:
            setattr(self, name, self._hook(name, seen))

    @staticmethod
    def _hook(name: str, seen: list[Any]) -> Callable[..., None]:
        def hook(trainer: Any, module: Any, *more: Any) -> None:
            seen.append(("callback", name, situation(trainer, module), plain(more)))
            if name.endswith(("batch_start", "batch_end")):
                module.log(f"of_{name}", torch.tensor(1.0 + len(seen)))

        return hook


def watched(model: pl.LightningModule, seen: list[Any]) -> None:
    """Have a model write down its hooks, and call them."""
    for name in OF_MODEL:
        stock = getattr(model, name)

        def hook(*given: Any, name: str = name, stock: Callable[..., Any] = stock, **named: Any) -> Any:
            if not model.trainer.training:
                seen.append(("model", name, situation(model.trainer, model), plain(given), plain(named)))
            return stock(*given, **named)

        setattr(model, name, hook)


def evaluated(
    folder: Path, kind: type[Model], how: str, loaders: int, seen: list[Any], watch: bool = True, **named: Any
) -> tuple[Any, pl.Trainer]:
    """What an evaluation returns, or, within a fit, the metrics that it leaves."""
    model = kind()
    if watch:
        watched(model, seen)
    trainer = quiet_trainer(
        logger=CSVLogger(folder, "", ""),
        callbacks=[Recorder(OF_BOTH, seen)] if watch else [],
        **{"max_epochs": 2, **named},
    )
    epoch_loop.install(trainer)
    evaluation_loop.install(trainer)
    sets = [DataLoader(Numbers(), batch_size=4 + number) for number in range(loaders)]
    if how == "fit":
        trainer.fit(model, DataLoader(Numbers(), batch_size=8), sets)
        return plain(dict(trainer.callback_metrics)), trainer
    return getattr(trainer, how)(model, sets, verbose=False), trainer


CASES: dict[str, tuple[type[Model], int, dict[str, Any]]] = {
    "plain": (Model, 1, {}),
    "values of the whole alone": (PerEpoch, 1, {}),
    "several loaders": (Indexed, 3, {}),
    "no index of the batch": (WithoutIndex, 1, {}),
    "limited": (Model, 1, {"limit_val_batches": 2, "limit_test_batches": 2, "num_sanity_val_steps": 0}),
    "bf16": (Model, 1, {"precision": "bf16-mixed"}),
    "bf16 alone": (Model, 1, {"precision": "bf16-true"}),
    "gradients allowed": (Model, 1, {"inference_mode": False}),
    "a run to try it out": (Model, 1, {"fast_dev_run": 2}),
    "in mid-epoch": (Model, 1, {"val_check_interval": 1}),
}


@pytest.fixture
def leave(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Leave each batch to Lightning."""
    return lambda: monkeypatch.setattr(LeanEvaluation, "of", staticmethod(lambda loop: None))


@pytest.mark.parametrize("how", ["fit", "validate", "test"])
@pytest.mark.parametrize("case", CASES)
def test_a_lean_evaluation_is_lightnings(case: str, how: str, tmp_path: Path, leave: Callable[[], None]) -> None:
    kind, loaders, named = CASES[case]
    seen: list[list[Any]] = [[], []]
    results = []
    for which in range(2):
        result, trainer = evaluated(tmp_path / str(which), kind, how, loaders, seen[which], **named)
        loops: Any = trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop
        assert [loop.logged for loop in loops] == [None] * 3, "it ends with the evaluation"
        results.append(result)
        leave()
    assert_same_calls(*seen)
    assert any(name.endswith("batch_end") for _, name, *_ in seen[0])
    assert results[0] == results[1]
    assert_same_tables(tmp_path / "0", tmp_path / "1")


def test_lean_evaluations_are_made_where_nobody_measures_hooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = itertools.count()
    stock = LeanEvaluation.evaluate

    def evaluate(self: LeanEvaluation, *arguments: Any) -> None:
        next(made)
        stock(self, *arguments)

    monkeypatch.setattr(LeanEvaluation, "evaluate", evaluate)
    evaluated(tmp_path / "one", Model, "test", 1, [], watch=False)
    assert next(made) == 5
    evaluated(tmp_path / "two", Model, "test", 1, [], watch=False, profiler="simple")
    assert next(made) == 6


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("kind", [InTurn, MetricOrNumber])
def test_the_same_name_logged_in_two_ways_is_refused(
    kind: type[Model], lean: bool, tmp_path: Path, leave: Callable[[], None]
) -> None:
    if not lean:
        leave()
    with pytest.raises(Exception, match=r"twice in `validation_step` with different arguments"):
        evaluated(tmp_path, kind, "validate", 1, [], watch=False)


def test_a_model_that_becomes_another_is_evaluated_as_that(tmp_path: Path, leave: Callable[[], None]) -> None:
    results = []
    for which in range(2):
        results.append(evaluated(tmp_path / str(which), Changing, "validate", 1, [], watch=False)[0])
        leave()
    assert results[0] == results[1]
    assert results[0][0].keys() == {"first", "late", "then"}


def test_what_a_step_does_to_a_batch_is_not_done_to_the_dataset(leave: Callable[[], None]) -> None:
    results = []
    for _ in range(2):
        kept = [{"x": row, "y": [row]} for row in Numbers().rows]
        trainer = quiet_trainer()
        evaluation_loop.install(trainer)
        loader = DataLoader(kept, batch_size=None, collate_fn=lambda batch: batch)
        results.append([trainer.validate(Unpacking(), loader, verbose=False) for _ in range(2)])
        leave()
    assert results[0] == results[1]
    assert results[0][0] == results[0][1]
