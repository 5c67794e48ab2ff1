"""What self.log(on_epoch=True) and the model's torchmetrics have summed up when an epoch is left in its middle.

Lightning forgets it, so that the mean of a resumed epoch would be that of its rest.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torchmetrics import Metric
from torchmetrics.wrappers.abstract import WrapperMetric

_HOW = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")


def collect(trainer: pl.Trainer) -> dict[str, Any]:
    """This rank's sums of the current epoch, as tensors, numbers and strings."""
    results = trainer.fit_loop.epoch_loop._results
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
                "count": module._update_count,
                "states": _cpu({each: getattr(module, each) for each in (*module._defaults, *_plain(module))}),
            }
            for name, module in trainer.lightning_module.named_modules()
            if isinstance(module, Metric) and (module._update_count or isinstance(module, WrapperMetric))
        },
    }


def combine(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """The logged sums of all ranks as those of one; torchmetrics, which say not how to be combined, begin anew."""
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


class Sums:
    """Puts collected sums back.

    Args:
        collected: Of this rank.
    """

    def __init__(self, collected: dict[str, Any]) -> None:
        self._pending = dict(collected["logged"])
        self._torchmetrics = collected["torchmetrics"]

    def before_first_batch(self, trainer: pl.Trainer) -> None:
        """Put the torchmetrics back: what the model logs next is added to them."""
        for name, module in trainer.lightning_module.named_modules():
            if isinstance(module, Metric) and name in self._torchmetrics:
                module._update_count = self._torchmetrics[name]["count"]
                for state, value in self._torchmetrics[name]["states"].items():
                    setattr(module, state, _on(module.device, value))
                module._computed = None

    def after_batch(self, trainer: pl.Trainer) -> None:
        """Add to what the epoch's later batches log. Before they did, Lightning would have reset it."""
        results = trainer.fit_loop.epoch_loop._results
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
                metric._computed = None

    def at_epoch_end(self, trainer: pl.Trainer) -> None:
        """Log what no later batch of the epoch has logged."""
        results = trainer.fit_loop.epoch_loop._results
        for key, entry in self._pending.items():
            meta = _Metadata(**entry["how"], reduce_fx=entry["reduce"], metric_attribute=entry["attribute"])
            meta.sync = _Sync(
                _should=entry["sync"], fn=trainer.strategy.reduce, rank_zero_only=entry["rank_zero_only"], _group=None
            )
            metric = _ResultMetric(meta, is_tensor=entry["value"] is not None).to(trainer.strategy.root_device)
            if entry["value"] is not None:
                metric.value = entry["value"].to(trainer.strategy.root_device)
                if meta.is_mean_reduction:
                    metric.cumulated_batch_size = metric.cumulated_batch_size + entry["weight"]
            else:
                metric.value = trainer.lightning_module.get_submodule(str(entry["attribute"]))
            metric._update_count = 1
            results[key] = metric
        self._pending = {}


def _extreme(metric: Any) -> bool:
    return bool(metric.meta.is_max_reduction or metric.meta.is_min_reduction)


def _plain(metric: Metric) -> list[str]:
    """What wrappers (MinMaxMetric, Running) keep in plain attributes instead of states."""
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
