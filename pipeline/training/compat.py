"""Every private member of Lightning, torch, torchmetrics and jsonargparse that this project builds on, and why.

Look here first when one of them is upgraded: each member is checked at import, and a missing one names itself, the
version that is installed and what it is for. Code elsewhere calls the functions of this module. The methods of
Lightning's that `EpochLoop` and `CommandLine` override are checked here as well, for an override of a method that no
longer exists is silently dead. (`loader_compat` does the same for training loaders, `pipeline.agent.compat` for torch's
elastic agent.)
"""

import dis
import inspect
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.metadata import version
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder, ModelPruning
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.connectors.logger_connector import _LoggerConnector
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from lightning.pytorch.utilities.parsing import lightning_hasattr
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from pipeline.errors import UserError

TrainingEpochLoop = _TrainingEpochLoop
"""Lightning's loop over the batches of an epoch. Its hooks end too early or too late for an exact resume."""


class Member(NamedTuple):
    """One private member, and what it is for.

    Attributes:
        owner: The class or module that has it.
        name: Of the member: a method, a function, or an attribute that the constructor sets.
        parameters: The names of its parameters, without `self`; None for an attribute.
        reason: What this project needs it for.
    """

    owner: Any
    name: str
    parameters: tuple[str, ...] | None
    reason: str


MEMBERS = (
    # The epoch loop: overridden, or asked where training stands.
    Member(_TrainingEpochLoop, "reset", (), "starts an epoch, or resumes one at an exact batch"),
    Member(_TrainingEpochLoop, "run", ("data_fetcher",), "closes the ledger of an epoch"),
    Member(_TrainingEpochLoop, "on_run_start", ("data_fetcher",), "runs a validation that a preemption cut short"),
    Member(_TrainingEpochLoop, "advance", ("data_fetcher",), "calls the session between two batches"),
    Member(_TrainingEpochLoop, "on_advance_end", ("data_fetcher",), "runs a validation that a preemption cut short"),
    Member(_TrainingEpochLoop, "_should_check_val_fx", ("data_fetcher",), "calls the session before a validation"),
    Member(_TrainingEpochLoop, "_broadcast_sigterm_tensor", (), "is turned off: the stop vote costs no step"),
    Member(_TrainingEpochLoop, "_num_ready_batches_reached", (), "tells whether an epoch is over"),
    Member(_TrainingEpochLoop, "_should_accumulate", (), "tells whether a step is half done"),
    Member(_TrainingEpochLoop, "_results", None, "holds what self.log has summed up in the open epoch"),
    Member(_FitLoop, "_restarting", None, "would have Lightning guess where an exact checkpoint stands"),
    # The trainer's connectors.
    Member(_CheckpointConnector, "dump_checkpoint", ("weights_only",), "captures a checkpoint without writing it"),
    Member(
        _CheckpointConnector,
        "_restore_modules_and_callbacks",
        ("checkpoint_path", "weights_only"),
        "is the moment to load initial weights: the model has all its layers, and neither DDP nor optimizers",
    ),
    Member(pl.Trainer, "_checkpoint_connector", None, "has dump_checkpoint and _restore_modules_and_callbacks"),
    Member(_SignalConnector, "register_signal_handlers", (), "is turned off: its SIGTERM handler can hang"),
    Member(pl.Trainer, "_signal_connector", None, "has register_signal_handlers"),
    Member(_LoggerConnector, "_callback_metrics", None, "holds the metrics that schedules and callbacks monitor"),
    Member(pl.Trainer, "_logger_connector", None, "has _callback_metrics"),
    Member(call, "_call_callbacks_load_state_dict", ("trainer", "checkpoint"), "puts callbacks back in mid-epoch"),
    # Callbacks.
    Member(ModelPruning, "_original_layers", None, "holds what a lottery ticket is reset to"),
    Member(ModelPruning, "_parameters_to_prune", None, "names what is pruned"),
    Member(BatchSizeFinder, "_batch_arg_name", None, "names the attribute that a resume puts back"),
    Member(LearningRateFinder, "_attr_name", None, "names the attribute that a resume puts back"),
    Member(LearningRateFinder, "_update_attr", None, "tells whether there is such an attribute"),
    # Running sums of self.log and torchmetrics, which no state_dict holds.
    Member(
        _Metadata,
        "__init__",
        (
            *("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph"),
            *("add_dataloader_idx", "dataloader_idx", "metric_attribute", "_sync"),
        ),
        "describes a logged value",
    ),
    Member(_Sync, "__init__", ("fn", "_should", "rank_zero_only", "_op", "_group"), "reduces a logged value"),
    Member(_ResultMetric, "__init__", ("metadata", "is_tensor"), "sums up a logged value"),
    Member(_ResultMetric, "has_reset", None, "tells a value that was not logged in this epoch"),
    Member(Metric, "_update_count", None, "is part of a torchmetric's state"),
    Member(Metric, "_defaults", None, "names a torchmetric's states"),
    Member(Metric, "_computed", None, "caches a torchmetric's value"),
    # Prediction.
    Member(_IndexBatchSamplerWrapper, "__init__", ("batch_sampler",), "tells prediction writers the indices"),
    # Strategies, DDP and loggers.
    Member(DDPStrategy, "_timeout", None, "is the timeout of the strategy's process group"),
    Member(DDPStrategy, "reduce", ("tensor", "group", "reduce_op"), "is given doubles: it truncates mean counts"),
    Member(DistributedDataParallel, "require_backward_grad_sync", None, "tells which batches are reduced"),
    Member(DistributedDataParallel, "reducer", None, "rebuilds its buckets in the order of gradients"),
    Member(DistributedDataParallel, "_comm_hooks", None, "tells whether gradients are summed by a hook with a state"),
    Member(TensorBoardLogger, "_experiment", None, "is replaced after a writer has failed"),
    # The command line.
    Member(LightningCLI, "_prepare_subcommand_parser", ("klass", "subcommand", "kwargs"), "adds this project's flags"),
    Member(LightningCLI, "_add_arguments", ("parser",), "adds Lightning's flags to a subcommand of this project's"),
    Member(LightningCLI, "_subcommand_method_arguments", None, "says that such a subcommand has no others"),
    Member(LightningCLI, "_add_instantiators", (), "keeps hyperparameters that load without jsonargparse"),
    Member(LightningCLI, "_instantiate_trainer", ("config", "callbacks"), "leaves a callback out outside of fit"),
    Member(LightningCLI, "_run_subcommand", ("subcommand",), "is turned off: running comes after building"),
    Member(LightningCLI, "_prepare_subcommand_kwargs", ("subcommand",), "gathers the arguments of trainer.fit"),
    Member(LightningCLI, "_get", ("config", "key", "default"), "reads the configuration of the subcommand"),
    Member(LightningArgumentParser, "_actions", None, "names the options that a misspelt one may stand for"),
    Member(LightningCLI, "_subcommand_parsers", None, "explains what a subcommand's parser has refused"),
)


def missing(members: tuple[Member, ...] = MEMBERS) -> Iterator[str]:
    """Yield one sentence for each member that is not there, or has other parameters than expected."""
    for owner, name, parameters, reason in members:
        where = f"{getattr(owner, '__module__', None) or owner.__name__}.{getattr(owner, '__qualname__', '')}.{name}"
        package = where.partition(".")[0]
        if not (hasattr(owner, name) or (parameters is None and _sets(owner, name))):
            found = "is missing"
        elif parameters is not None and parameters != (now := _parameters(getattr(owner, name))):
            found = f"takes ({', '.join(now)}) instead of ({', '.join(parameters)})"
        else:
            continue
        yield f"{package} {version(package)}: {where.replace('..', '.')} {found}; it {reason}"


def check(members: tuple[Member, ...] = MEMBERS) -> None:
    """Refuse versions of libraries on which a resume would not be exact.

    Raises:
        UserError: One sentence for each private member that is not as expected.
    """
    if found := list(missing(members)):
        raise UserError(
            *(
                f"{each}. Install versions within the ranges of pyproject.toml; constraints.txt is tested"
                for each in found
            )
        )


def _sets(owner: Any, name: str) -> bool:
    """Return whether a method of a class sets an attribute of that name on its objects."""
    methods = [each for kind in getattr(owner, "__mro__", ()) for each in vars(kind).values() if callable(each)]
    codes = [getattr(inspect.unwrap(each), "__code__", None) for each in methods if not isinstance(each, type)]
    return any(
        step.opname == "STORE_ATTR" and step.argval == name
        for code in codes
        if code is not None and name in code.co_names
        for step in dis.get_instructions(code)
    )


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(function).parameters if name != "self")


def option_names(parser: LightningArgumentParser) -> set[str]:
    """Return the names of a parser's options, without dashes."""
    return {name.lstrip("-") for action in parser._actions for name in (action.dest, *action.option_strings)}


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what `trainer.save_checkpoint` would write. All ranks must call it, for hooks may be collective."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def at_restore(trainer: pl.Trainer, do: Callable[[], None]) -> None:
    """Call a function where Lightning would load the weights of a checkpoint."""
    connector = trainer._checkpoint_connector
    stock = connector._restore_modules_and_callbacks

    def restore(*arguments: Any, **named: Any) -> None:
        do()
        stock(*arguments, **named)

    connector._restore_modules_and_callbacks = restore  # type: ignore[method-assign]


def load_no_checkpoint(trainer: pl.Trainer) -> None:
    """Keep Lightning from loading what it finds by itself: the file of an OnExceptionCheckpoint, or one of Slurm's."""
    trainer._checkpoint_connector._user_managed = True


def load_callbacks(trainer: pl.Trainer, states: Any) -> None:
    """Load the callbacks' states once more, from `checkpoint["callbacks"]`."""
    call._call_callbacks_load_state_dict(trainer, {"callbacks": states})


def found_attribute(finder: BatchSizeFinder | LearningRateFinder, model: pl.LightningModule) -> str | None:
    """Return the name of the attribute that a finder sets, of the model, its hyperparameters or the data."""
    if isinstance(finder, BatchSizeFinder):
        return finder._batch_arg_name
    if not finder._update_attr:
        return None
    usual = (name for name in ("lr", "learning_rate") if lightning_hasattr(model, name))
    return finder._attr_name or next(usual, None)


def lottery_copies(pruning: ModelPruning) -> Iterator[tuple[Any, Any, str]]:
    """Yield each module that ModelPruning resets, its copy from before training, and the name of the weight."""
    for layer in (pruning._original_layers or {}).values():
        for index, name in layer["names"]:
            yield pruning._parameters_to_prune[index][0], layer["data"], name


def monitored_metrics(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return the metrics behind `trainer.callback_metrics`, to be changed in place."""
    return trainer._logger_connector._callback_metrics


def logged_results(trainer: pl.Trainer) -> Any:
    """Return what self.log has summed up in the open epoch, by key."""
    return trainer.fit_loop.epoch_loop._results


def result_metric(trainer: pl.Trainer, how: dict[str, Any], sync: bool, rank_zero_only: bool, is_tensor: bool) -> Any:
    """Return an empty sum of a logged value.

    Args:
        trainer: Whose strategy reduces it.
        how: How it was logged, as the parameters of Lightning's metadata.
        sync: Whether it is reduced over ranks.
        rank_zero_only: Whether it is logged on rank 0 only.
        is_tensor: Whether it is a number and not a torchmetric.
    """
    meta = _Metadata(**how)
    meta.sync = _Sync(_should=sync, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only, _group=None)
    return _ResultMetric(meta, is_tensor=is_tensor).to(trainer.strategy.root_device)


def update_count(metric: Metric) -> int:
    """Return how often a torchmetric was updated since its last reset."""
    return int(metric._update_count)


def set_update_count(metric: Metric, count: int) -> None:
    """Set how often a torchmetric was updated, and have its value computed again."""
    metric._update_count, metric._computed = count, None


def state_names(metric: Metric) -> tuple[str, ...]:
    """Return the names of a torchmetric's states."""
    return tuple(metric._defaults)


def epoch_is_over(trainer: pl.Trainer) -> bool:
    """Return whether the epoch has had its last batch: the data's, a limit's or the model's choice.

    Otherwise training was stopped within it, and can resume within it.
    """
    return bool(trainer.fit_loop.epoch_loop._num_ready_batches_reached())


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Return whether the last batch was accumulated for a step that is still to come."""
    return bool(trainer.fit_loop.epoch_loop._should_accumulate())


def end_restart(trainer: pl.Trainer) -> None:
    """Tell the fit loop that its counters are exact, so that it guesses nothing."""
    trainer.fit_loop._restarting = False


def ignore_signals(trainer: pl.Trainer) -> None:
    """Leave SIGTERM to `pipeline.process.preemption`.

    Lightning's own handler talks to the other ranks from inside the signal and hangs when they got one, too.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def set_collective_timeout(trainer: pl.Trainer, seconds: float) -> None:
    """Limit each collective operation of DDP, unless a strategy that the user configured sets a limit of its own."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy) and strategy._timeout == default_pg_timeout:
        strategy._timeout = timedelta(seconds=seconds)


def collective_timeout(trainer: pl.Trainer) -> timedelta | None:
    """Return the limit of a collective operation; None for a strategy without ranks, or torch's default."""
    strategy = trainer.strategy
    return strategy._timeout if isinstance(strategy, DDPStrategy) else None


def reduce_counts_exactly(trainer: pl.Trainer) -> None:
    """Have self.log(sync_dist=True) reduce counts as exactly as values.

    Lightning 2.6.6 cuts the mean over ranks of whole numbers of samples off to a whole number, so that a metric over
    ranks with unequal numbers of samples comes out wrong.
    """
    stock = trainer.strategy.reduce

    def reduce(tensor: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(tensor, Tensor) and not tensor.is_floating_point():
            tensor = tensor.double()
        return stock(tensor, *arguments, **named)

    trainer.strategy.reduce = reduce  # type: ignore[method-assign]


def stateful_comm_hooks(model: DistributedDataParallel) -> list[str]:
    """Return the names of the communication hooks that keep a state, such as PowerSGD's."""
    hooks = [(hook, state) for hook, state in model._comm_hooks if state is not None]
    return [hook.__name__ for hook, state in hooks if not isinstance(state, torch.distributed.ProcessGroup)]


def backward_in_order(model: DistributedDataParallel, parameters: list[Tensor], order: list[int]) -> None:
    """Let gradients of zero arrive in an order, by which the next forward of DDP rebuilds its buckets.

    No code of the user's runs, no random number is drawn, and no gradient stays.
    """
    model.reducer.prepare_for_backward([])
    for index in order:
        torch.autograd.backward(parameters[index], torch.zeros_like(parameters[index]))
    for parameter in parameters:
        parameter.grad = None


def recorded_batches(batches: Any) -> Any:
    """Return a batch sampler that remembers the indices of each batch, where a BasePredictionWriter looks for them."""
    return _IndexBatchSamplerWrapper(batches)


def drop_writer(logger: TensorBoardLogger) -> None:
    """Have the next value begin a new events file: a writer is of no use after its first error."""
    logger._experiment = None


check()
