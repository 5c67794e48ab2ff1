"""Every private member of Lightning's that the work on one batch builds on, and why; see `pipeline.training.compat`."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from lightning.pytorch.trainer.connectors.data_connector import _DataConnector, _DataHookSelector
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _get_default_dtype,
    _ResultCollection,
    _ResultMetric,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from pipeline.training.compat import Member, check

MEMBERS = (
    Member(_TrainingEpochLoop, "advance", ("data_fetcher",), "trains on a batch; `LeanStep` does the same"),
    Member(_TrainingEpochLoop, "_batches_that_stepped", None, "is the step under which values are logged"),
    Member(_TrainingEpochLoop, "_skip_next_val", None, "tells that Lightning resumes behind a validation"),
    Member(_TrainingEpochLoop, "_warning_cache", None, "warns once of batches that are None"),
    Member(
        _EvaluationLoop,
        "_evaluation_step",
        ("batch", "batch_idx", "dataloader_idx", "dataloader_iter"),
        "evaluates a batch; `LeanEvaluation` does the same",
    ),
    Member(_EvaluationLoop, "on_run_start", (), "looks up who has anything to do in a batch"),
    Member(_EvaluationLoop, "on_run_end", (), "keeps nothing of it"),
    Member(_EvaluationLoop, "_has_run", None, "tells that there was a batch"),
    Member(_EvaluationLoop, "_seen_batches_per_dataloader", None, "is the step under which values are logged"),
    Member(_EvaluationLoop, "_data_fetcher", None, "has the batches"),
    Member(_EvaluationLoop, "_is_sequential", None, "tells whether loaders come one after the other"),
    Member(_EvaluationLoop, "_results", None, "holds what is logged"),
    Member(_AutomaticOptimization, "_optimizer_step", ("batch_idx", "train_step_and_backward_closure"), "is a step"),
    Member(_AutomaticOptimization, "_skip_backward", None, "leaves the backward pass out"),
    Member(_AutomaticOptimization, "optim_progress", None, "counts optimizer steps"),
    Member(ClosureResult, "from_training_step_output", ("training_step_output", "normalize"), "takes what a step gave"),
    Member(Strategy, "_lightning_optimizers", None, "are what `optimizer_step` of a model is given"),
    Member(DDPStrategy, "_model_averager", None, "averages the weights after a step"),
    Member(DDPStrategy, "_ddp_kwargs", None, "are the arguments of torch's DistributedDataParallel"),
    Member(MixedPrecision, "scaler", None, "scales the loss; without one a step is that of full precision"),
    Member(pl.Trainer, "_data_connector", None, "has _datahook_selector"),
    Member(_DataConnector, "_datahook_selector", None, "tells whose hooks move a batch"),
    Member(_DataHookSelector, "get_instance", ("hook_name",), "tells whose hook moves a batch"),
    Member(pl.LightningModule, "_current_fx_name", None, "is the hook in which `log` is called"),
    Member(_LoggerConnector, "_first_loop_iter", None, "tells the first batch of an epoch"),
    Member(_LoggerConnector, "_current_fx", None, "is the hook that logged last"),
    Member(_LoggerConnector, "on_batch_start", ("batch", "dataloader_idx"), "takes note of a batch"),
    Member(_LoggerConnector, "on_batch_end", (), "takes note of the values of a batch"),
    Member(_LoggerConnector, "update_eval_step_metrics", ("step",), "sends the values of a batch to the loggers"),
    Member(_LoggerConnector, "update_train_step_metrics", (), "sends the values of a batch to the loggers"),
    Member(_ResultCollection, "dataloader_idx", None, "is the loader of which values are logged"),
    Member(_ResultCollection, "_extract_batch_size", ("value", "batch_size", "meta"), "weighs a logged value"),
    Member(_ResultMetric, "_forward_cache", None, "is the value of the newest batch"),
    Member(_ResultMetric, "update", ("value", "batch_size"), "adds a value to a sum"),
)

check(MEMBERS)

EvaluationLoop = _EvaluationLoop
"""Lightning's loop over the batches of a validation or a test."""
default_dtype = _get_default_dtype
"""Returns what a number is logged as."""
CURRENT_HOOK = "_current_fx_name"
"""The attribute of a model that names the hook in which it logs."""
TRAINING = "training_step"
"""The hook that trains on a batch."""
blocked_sync = _block_parallel_sync_behavior
"""Keeps DDP from summing gradients that are accumulated for a later step."""


def is_stock(trainer: pl.Trainer, fetcher: Any) -> bool:
    """Return whether everything around a batch is Lightning's own, and such that `LeanStep` does what it would.

    Args:
        trainer: In its fit.
        fetcher: Of its training batches.
    """
    strategy, precision, module = trainer.strategy, trainer.precision_plugin, trainer.lightning_module
    return (
        is_plain(trainer, fetcher)
        and type(strategy) in (SingleDeviceStrategy, DDPStrategy)
        and getattr(strategy, "_model_averager", None) is None
        and (type(precision) is Precision or (type(precision) is MixedPrecision and precision.scaler is None))
        and module.automatic_optimization
        and len(trainer.optimizers) == 1
        and not trainer.fit_loop.epoch_loop.automatic_optimization._skip_backward
        and type(trainer.fit_loop.epoch_loop.automatic_optimization) is _AutomaticOptimization
    )


def is_plain_evaluation(loop: Any) -> bool:
    """Return whether `LeanEvaluation` does what Lightning's loop would.

    Its step is the strategy's own, and `Transfer` looks at precision and strategy itself.
    """
    return is_plain(loop.trainer, loop._data_fetcher)


def is_plain(trainer: pl.Trainer, fetcher: Any) -> bool:
    """Return whether batches come one by one, and nobody wants to know how long each hook takes."""
    profiler = trainer.profiler  # type: ignore[attr-defined]
    return type(profiler) is PassThroughProfiler and not isinstance(fetcher, _DataLoaderIterDataFetcher)


def runs_in_full_precision(trainer: pl.Trainer) -> bool:
    """Return whether a training step needs no context of its precision."""
    return type(trainer.precision_plugin) is Precision


def clipping(trainer: pl.Trainer) -> tuple[float | None, Any]:
    """Return the limit of gradients, None or 0 for none, and the algorithm by which they are clipped."""
    return trainer.gradient_clip_val, trainer.gradient_clip_algorithm


def takes_batch_index(module: pl.LightningModule, step: str = TRAINING) -> bool:
    """Return whether a step has a second parameter."""
    return is_param_in_hook_signature(getattr(module, step), "batch_idx", min_args=2)


def moves_batches(trainer: pl.Trainer) -> bool:
    """Return whether a model, its data or a strategy have a way of their own to the device."""
    selector = trainer._data_connector._datahook_selector
    assert selector is not None
    if getattr(trainer.strategy.batch_to_device, "__func__", None) is not Strategy.batch_to_device:
        return True
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    return any(overridden(selector.get_instance(hook), hook) is not None for hook in hooks)


_KINDS = (pl.Callback, pl.LightningModule, pl.LightningDataModule)
_STOCK = {kind: {name: getattr(kind, name) for name in dir(kind)} for kind in _KINDS}
"""What they consist of before anybody has patched them."""


def overridden(owner: Any, hook: str) -> Any:
    """Return a hook of a callback, a model or data, bound to it; None where it is Lightning's own."""
    method = getattr(owner, hook)
    stock = next((_STOCK[kind][hook] for kind in _KINDS if isinstance(owner, kind)), None)
    return None if stock is not None and getattr(method, "__func__", method) is stock else method


def loss_and_outputs(output: Any, batches: int) -> tuple[Tensor | None, dict[str, Any]]:
    """Return the loss to be differentiated, and what `on_train_batch_end` is given.

    Args:
        output: What `training_step` returned.
        batches: Over which the gradients of a step are averaged.
    """
    if type(output) is Tensor:
        loss = output if batches == 1 else output / batches
        return loss, {"loss": loss.detach().clone()}
    result = ClosureResult.from_training_step_output(output, batches)
    return result.closure_loss, {} if result.loss is None else result.asdict()


def warn_once(trainer: pl.Trainer, text: str) -> None:
    """Warn of something that may come with many batches."""
    trainer.fit_loop.epoch_loop._warning_cache.warn(text)


def moved(trainer: pl.Trainer, batch: Any, dataloader_idx: int = 0) -> Any:
    """Return a batch on its device, having gone through the hooks that move it."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx)


def lightning_optimizer(trainer: pl.Trainer) -> Any:
    """Return what `optimizer_step` of a model is given."""
    return trainer.strategy._lightning_optimizers[0]


def begin_batch(trainer: pl.Trainer, batch: Any, dataloader_idx: int | None = None) -> None:
    """Have values logged from here on as those of a batch."""
    trainer._logger_connector.on_batch_start(batch, dataloader_idx)


def results_of(loop: Any) -> Any:
    """Return what is logged in a loop, by key."""
    return loop._results


def tells_loader(loop: Any) -> bool:
    """Return whether an evaluation goes through several loaders, and its hooks are told which one a batch is of."""
    return bool(loop._is_sequential and loop.num_dataloaders > 1)


def forget_batch(loop: Any) -> None:
    """Keep no batch beyond its step."""
    loop._results.batch = loop._results.batch_size = None


def end_evaluated_batch(loop: Any) -> None:
    """Have the trainer keep the values of a batch, where any is logged batch by batch."""
    if _logs_steps(loop):
        loop.trainer._logger_connector.on_batch_end()
    else:
        forget_batch(loop)


def count_evaluated_batch(loop: Any, dataloader_idx: int) -> None:
    """Count a batch, and send its values to the loggers, where any is logged batch by batch."""
    if loop.trainer.sanity_checking:
        return
    loop._has_run = True
    if _logs_steps(loop):
        loop.trainer._logger_connector.update_eval_step_metrics(loop._seen_batches_per_dataloader[dataloader_idx])
    loop._seen_batches_per_dataloader[dataloader_idx] += 1


def _logs_steps(loop: Any) -> bool:
    """Return whether there is any value of a batch: Lightning's dictionaries of them are empty otherwise."""
    return any(metric.meta.on_step for metric in loop._results.values())


def stop_on_sigterm(trainer: Any) -> None:
    """Raise what Lightning's own handler of SIGTERM has it raise after a batch."""
    if trainer.received_sigterm:
        raise SIGTERMException


def loop_of(trainer: Any, hook: str | None) -> Any:
    """Return the loop that calls a step; None where a hook is no step in which values are logged."""
    if hook == TRAINING:
        return trainer.fit_loop.epoch_loop
    if hook == "test_step":
        return trainer.test_loop
    if hook == "validation_step":
        fits = trainer.state.fn is TrainerFn.FITTING
        return trainer.fit_loop.epoch_loop.val_loop if fits else trainer.validate_loop
    return None


def keep_values(trainer: pl.Trainer) -> None:
    """Have the trainer keep the values of the last batch, whatever is logged later."""
    trainer._logger_connector.on_batch_end()


def send_values(trainer: Any) -> None:
    """Send the values of a batch to the loggers, where that is due."""
    every = trainer.log_every_n_steps
    due = every and (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % every == 0
    if due or trainer.should_stop or trainer.fast_dev_run:
        trainer._logger_connector.update_train_step_metrics()


def in_first_batch(trainer: pl.Trainer) -> bool:
    """Return whether this is the first batch of an epoch, or none."""
    return trainer._logger_connector._first_loop_iter is not False


def add_to_sum(trainer: pl.Trainer, hook: str, results: Any, metric: Any, value: Any, batch_size: int | None) -> None:
    """Add what a step logs, as `_ResultMetric.update` does without torchmetrics' wrapper around it.

    Args:
        trainer: In a batch.
        hook: The step.
        results: What its loop sums up.
        metric: The value's sum; all batches of it were logged in the same way.
        value: A tensor without dimensions, which is a copy, or a torchmetric.
        batch_size: Its weight; None: the batch tells.
    """
    meta = metric.meta
    metric._computed = None
    metric._update_count += 1
    if metric.is_tensor and meta.on_step and not meta.on_epoch and not meta.sync.should:
        metric.value = metric._forward_cache = value
    else:
        type(metric).update(metric, value, results._extract_batch_size(metric, batch_size, meta))
    metric.has_reset = False
    trainer._logger_connector._current_fx = hook


def share_gradient_memory(trainer: pl.Trainer) -> None:
    """Let gradients be views of the buckets that DDP sums up, unless a configured strategy says otherwise.

    They have the same values, without a copy of each in both directions and without memory for it (torch's
    `gradient_as_bucket_view`).
    """
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
