"""The running sums of self.log(on_epoch=True) and of the model's torchmetrics in the middle of an epoch.

Lightning forgets them, so that the mean of a resumed epoch would be the mean of its rest.
"""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

from pipeline.training import compat

_HOW = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")


def capture(trainer: pl.Trainer) -> dict[str, Any]:
    """Return this rank's sums of the open epoch, as tensors, numbers and strings."""
    results = compat.logged_results(trainer)
    return {
        "logged": {
            key: {
                "value": metric.value.detach().cpu().clone() if metric.is_tensor else None,
                "weight": int(getattr(metric, "cumulated_batch_size", 0)),
                "how": {name: getattr(metric.meta, name) for name in _HOW},
                "reduce": str(metric.meta.reduce_fx.__name__),
                "attribute": metric.meta.metric_attribute,
                "sync": bool(metric.meta.sync.should),
                "rank_zero_only": bool(metric.meta.sync.rank_zero_only),
            }
            for key, metric in results.items()
            if metric.meta.on_epoch and not metric.has_reset
        },
        "torchmetrics": {
            name: {
                "count": compat.update_count(module),
                "states": _cpu(
                    {each: getattr(module, each) for each in (*compat.state_names(module), *_plain(module))}
                ),
            }
            for name, module in _metrics(trainer)
            if (compat.update_count(module) or isinstance(module, WrapperMetric))
        },
    }


def combine(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the logged sums of all ranks as those of one; torchmetrics, which cannot be combined, restart."""
    logged: dict[str, Any] = {}
    for each in ranks:
        for key, entry in each["logged"].items():
            if key not in logged:
                logged[key] = dict(entry)
            elif entry["value"] is not None:
                values = torch.stack([logged[key]["value"], entry["value"]])
                reduce = {"min": torch.amin, "max": torch.amax}.get(entry["reduce"], torch.sum)
                logged[key]["value"] = reduce(values, dim=0)
                logged[key]["weight"] += entry["weight"]
    return {"logged": logged, "torchmetrics": {}}


class RunningSums:
    """Puts captured sums back.

    Args:
        captured: Of this rank.
    """

    def __init__(self, captured: dict[str, Any]) -> None:
        self._pending = dict(captured["logged"])
        self._torchmetrics = captured["torchmetrics"]

    def before_first_batch(self, trainer: pl.Trainer) -> None:
        """Put the torchmetrics back: what the model logs next is added to them."""
        for name, module in _metrics(trainer):
            if name in self._torchmetrics:
                for state, value in self._torchmetrics[name]["states"].items():
                    setattr(module, state, _on(module.device, value))
                compat.set_update_count(module, self._torchmetrics[name]["count"])

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Add to what the epoch's later batches log. Before they did, Lightning would have reset it."""
        results = compat.logged_results(trainer)
        for key in [key for key in self._pending if key in results]:
            entry, metric = self._pending.pop(key), results[key]
            if entry["value"] is not None:
                before = entry["value"].to(metric.value)
                metric.value = (
                    metric.meta.reduce_fx(torch.stack([before, metric.value]))
                    if _extreme(metric)
                    else before + metric.value
                )
                if metric.meta.is_mean_reduction:
                    metric.cumulated_batch_size = metric.cumulated_batch_size + entry["weight"]
                compat.set_update_count(metric, compat.update_count(metric))

    def at_epoch_end(self, trainer: pl.Trainer) -> None:
        """Log what no later batch of the epoch has logged."""
        results = compat.logged_results(trainer)
        for key, entry in self._pending.items():
            how = {**entry["how"], "reduce_fx": entry["reduce"], "metric_attribute": entry["attribute"]}
            metric = compat.result_metric(
                trainer, how, entry["sync"], entry["rank_zero_only"], is_tensor=entry["value"] is not None
            )
            if entry["value"] is not None:
                metric.value = entry["value"].to(trainer.strategy.root_device)
                if metric.meta.is_mean_reduction:
                    metric.cumulated_batch_size = metric.cumulated_batch_size + entry["weight"]
            else:
                metric.value = trainer.lightning_module.get_submodule(str(entry["attribute"]))
            compat.set_update_count(metric, 1)
            results[key] = metric
        self._pending = {}


def _metrics(trainer: pl.Trainer) -> Iterator[tuple[str, Metric]]:
    """Yield the torchmetrics of the model and of callbacks, by name."""
    owners: dict[str, nn.Module] = {"": trainer.lightning_module}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        own = ((name, each) for name, each in vars(callback).items() if isinstance(each, Metric))
        owners |= {f"{callback.state_key}.{name}": each for name, each in own}
    for owner, root in owners.items():
        for name, module in root.named_modules(prefix=owner):
            if isinstance(module, Metric):
                yield name, module


def _extreme(metric: Any) -> bool:
    return bool(metric.meta.is_max_reduction or metric.meta.is_min_reduction)


def _plain(metric: Metric) -> list[str]:
    """Return what wrappers (MinMaxMetric, Running) keep in plain attributes instead of states."""
    return [
        name
        for name, value in vars(metric).items()
        if name not in ("_computed", "_update_count") and type(value) in (torch.Tensor, int, float)
    ]


def _cpu(states: dict[str, Any]) -> dict[str, Any]:
    return {name: _on(torch.device("cpu"), value, copy=True) for name, value in states.items()}


def _on(device: torch.device, value: Any, copy: bool = False) -> Any:
    if isinstance(value, list):
        return [_on(device, each, copy) for each in value]
    return value.detach().to(device, copy=copy) if isinstance(value, torch.Tensor) else value
