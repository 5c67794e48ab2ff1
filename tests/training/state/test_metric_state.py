"""Sums of an open epoch are captured as plain values, and put back whether or not their name is logged again."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torchmetrics import MeanMetric, MinMaxMetric

from pipeline.data.datamodule import DataModule
from pipeline.training.state import metric_state
from pipeline.training.state.metric_state import RunningSums
from pipeline.training.trainer import Trainer
from tests.support.models import Regression, Rows


class Summing(Regression):
    """Logs the batch's number in each way that can be resumed; `only` names what is logged in batch 0 alone."""

    def __init__(self, only: str = "") -> None:
        super().__init__()
        self.metric, self.wrapped = MeanMetric(), MinMaxMetric(MeanMetric())
        self.only = only

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        number = float(batch_idx)
        self.metric(number)
        self.wrapped.update(number)
        self.wrapped.compute()  # which is when it looks for the least and the greatest
        logged = {"mean": "mean", "total": "sum", "least": "min", "most": "max"}
        for name, reduce in logged.items():
            if name != self.only or batch_idx == 0:
                self.log(name, number, on_step=False, on_epoch=True, reduce_fx=reduce, batch_size=batch_idx + 1)
        if self.only != "metric" or batch_idx == 0:
            self.log("metric", self.metric, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


class Interrupts(pl.Callback):
    """Captures after batch 1, forgets what was summed as a new process does, and puts it back."""

    def __init__(self, interrupts: bool) -> None:
        self.interrupts = interrupts
        self.sums = RunningSums({"logged": {}, "torchmetrics": {}})
        self.captured: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.sums.after_batch(trainer)
        if batch_idx == 1 and self.interrupts:
            self.captured = metric_state.capture(trainer)
            trainer.fit_loop.epoch_loop._results.clear()
            pl_module.metric.reset()
            pl_module.wrapped.reset()
            pl_module.wrapped.min_val, pl_module.wrapped.max_val = torch.tensor([torch.inf, -torch.inf])
            self.sums = RunningSums(self.captured)
            self.sums.before_first_batch(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.sums.at_epoch_end(trainer)


def trained(only: str, interrupts: bool) -> tuple[dict[str, float], Interrupts]:
    """What an epoch of 4 batches has logged."""
    model, callback = Summing(only), Interrupts(interrupts)
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    trainer.fit(model, DataModule(train=Rows(12), batch_size=3))
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    found.update({f"wrapped/{name}": float(value) for name, value in model.wrapped.compute().items()})
    del found["train_loss"]
    return found, callback


@pytest.mark.parametrize("only", ["", "mean", "total", "least", "most", "metric"])
def test_an_interrupted_epoch_sums_up_to_what_a_straight_one_does(only: str) -> None:
    straight, _ = trained(only, interrupts=False)
    interrupted, _ = trained(only, interrupts=True)
    assert interrupted == straight
    if not only:
        assert straight == {
            "mean": 2.0,
            "total": 6.0,
            "least": 0.0,
            "most": 3.0,
            "metric": 1.5,
            "wrapped/raw": 1.5,
            "wrapped/min": straight["wrapped/min"],
            "wrapped/max": straight["wrapped/max"],
        }


def test_what_is_captured_is_a_copy_of_tensors_numbers_and_strings() -> None:
    _, callback = trained("", interrupts=True)
    entry = callback.captured["logged"]["training_step.mean"]
    assert (float(entry["value"]), entry["weight"], entry["reduce"]) == (2.0, 3, "mean")
    assert callback.captured["logged"]["training_step.metric"]["value"] is None
    assert callback.captured["logged"]["training_step.metric"]["attribute"] == "metric"
    metric = callback.captured["torchmetrics"]["metric"]
    assert metric["count"] == 2
    assert float(metric["states"]["mean_value"]) == 1.0


def entry(value: float | None, weight: int, reduce: str) -> dict[str, Any]:
    return {"value": None if value is None else torch.tensor(value), "weight": weight, "reduce": reduce}


def test_the_sums_of_all_ranks_become_those_of_one() -> None:
    def rank(number: float) -> dict[str, Any]:
        logged = {
            "mean": entry(number, 2, "mean"),
            "least": entry(number, 1, "min"),
            "most": entry(number, 1, "max"),
            "metric": entry(None, 0, "mean"),
        }
        return {"logged": logged, "torchmetrics": {"metric": {"count": 1, "states": {}}}}

    ranks = [rank(3.0), rank(1.0), {"logged": {"late": entry(5.0, 1, "sum")}, "torchmetrics": {}}]
    found = metric_state.combine(ranks)
    values = {name: (each["value"], each["weight"]) for name, each in found["logged"].items()}
    assert values == {"mean": (4.0, 4), "least": (1.0, 2), "most": (3.0, 2), "metric": (None, 0), "late": (5.0, 1)}
    assert found["torchmetrics"] == {}
    assert float(ranks[0]["logged"]["mean"]["value"]) == 3.0, "what was captured is not changed"
