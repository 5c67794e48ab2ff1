"""What one training step takes: operations and memory, measured in a real one on the first training batch.

Lightning runs it as in a fit, so that whatever a module does in a fit works: hooks that move a batch, `self.log`,
manual optimization, precision, the optimizers that `configure_optimizers` returns. It trains twice on the same batch,
and the second step is measured: by then the optimizers have their states, and gradients of the step before are there.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from pipeline.errors import UserError, in_one_line
from pipeline.training.inspection.layer_record import LayerFacts, LayerRecord, sizes
from pipeline.training.inspection.step_watch import KeptTensors, StepWatch, bytes_of, flop_counter, tensors_in

_LENGTH = 4
"""Batches of the epoch that is begun, and not ended: what comes at an epoch's end must not be reached."""
_MEASURED = 1
"""Which of them."""

MEASURING: dict[str, Any] = {
    **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    **dict.fromkeys(("barebones", "sync_batchnorm", "use_distributed_sampler", "fast_dev_run"), False),
    **dict.fromkeys(("callbacks", "profiler", "max_time", "min_epochs", "min_steps"), None),
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "accumulate_grad_batches": 1,
    "overfit_batches": 0.0,
    "limit_train_batches": None,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "reload_dataloaders_every_n_epochs": 0,
}
"""Arguments of a trainer that takes steps and leaves no trace; the others are as the user set them."""


@dataclass
class StepFacts:
    """What one process needs in one step. Memory is in bytes, each storage counted once.

    Attributes:
        device: Where it was measured.
        precision: In which.
        batch_size: Samples of the batch, None where that cannot be told.
        batch_sizes: The sizes of its tensors.
        layers: In the order of the model.
        forward_flops: Multiplications and additions of matrix products, convolutions and attention.
        backward_flops: Those of the backward passes, recomputed activations included.
        parameters: Numbers in the parameters.
        trained: Those of them that are trained.
        weights: Memory of the parameters.
        buffers: Of the model's buffers.
        gradients: Of the gradients that a step has.
        optimizer: Of the optimizers' states.
        optimizers: The classes of the optimizers.
        batch: Of the batch.
        activations: The most that autograd keeps at one moment for the backward pass.
        peak: The most that all tensors take at one moment.
        allocated: The most that torch has taken from a CUDA device at one moment; None elsewhere.
        buckets: What DDP's buckets take: as much as all parameters that are trained.
        notes: What is not measured, a sentence each.
    """

    device: str
    precision: str
    batch_size: int | None = None
    batch_sizes: Any = None
    layers: list[LayerFacts] = field(default_factory=list)
    forward_flops: int | None = None
    backward_flops: int | None = None
    parameters: int = 0
    trained: int = 0
    weights: int = 0
    buffers: int = 0
    gradients: int = 0
    optimizer: int = 0
    optimizers: list[str] = field(default_factory=list)
    batch: int = 0
    activations: int | None = None
    peak: int | None = None
    allocated: int | None = None
    buckets: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.buffers + self.gradients + self.optimizer


def measure_step(trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule | None) -> StepFacts:
    """Train two steps on the first training batch, and return what the second one takes.

    Args:
        trainer: Built with `MEASURING`, for nothing else.
        model: It is trained: give it a model that nobody needs any more.
        data: Brings the training batches; None: the model does.

    Raises:
        UserError: There is no batch.
        Exception: What the user's own code raises.
    """
    trainer.loggers = [DummyLogger()]  # what a model does with its logger, goes nowhere
    source = model if data is None else data
    with _first_batch_again_and_again(source), isolate_rng():
        try:
            return _measured(trainer, model, data, watches=True)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # noqa: BLE001
            # Either the step fails, and does so again, or what watches it has hindered it.
            facts = _measured(trainer, model, data, watches=False)
            facts.notes.append(f"Activations and operations are not measured: {in_one_line(error)}.")
            return facts


def _measured(
    trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule | None, watches: bool
) -> StepFacts:
    measuring = _Measuring(watches)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [measuring]
    try:
        with torch.compiler.set_stance("force_eager"):  # what a compiler has fused, nobody sees
            trainer.fit(model, datamodule=data)
    except _Measured:
        pass
    finally:
        measuring.watching.close()
    if measuring.facts is None:
        raise UserError(
            f"{type(model).__name__} takes no two training steps in an epoch: its hooks end it before, or all training"
        )
    return measuring.facts


class _Measured(Exception):
    """The step is measured: ends the fit where nothing of the user's comes after it."""


class _Repeated:
    """A loader that gives one batch a few times."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return _LENGTH

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch] * _LENGTH)


@contextmanager
def _first_batch_again_and_again(source: Any) -> Iterator[None]:
    original, had = source.train_dataloader, "train_dataloader" in vars(source)
    held: list[_Repeated] = []

    def train_dataloader() -> Any:
        if not held:
            held.append(_Repeated(first_batch(original())))
        return held[0]

    source.train_dataloader = train_dataloader
    try:
        yield
    finally:
        if had:
            source.train_dataloader = original
        else:
            del source.train_dataloader


def first_batch(loaders: Any) -> Any:
    """Return the first batch of what `train_dataloader` returns, as the trainer combines it.

    Raises:
        UserError: There is none.
    """
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "max_size_cycle")
    for batch, _, _ in combined:
        return batch
    raise UserError("train_dataloader gives no batch: the training set is empty, or smaller than a batch it drops")


class _Measuring(pl.Callback):
    """Enters what watches a step before the one that counts, and takes everything down behind it."""

    def __init__(self, watches: bool) -> None:
        self.facts: StepFacts | None = None
        self.watching = ExitStack()
        self._watches = watches
        self._gradients: dict[int, int] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to watch."""
        if batch_idx != _MEASURED:
            return
        device = trainer.strategy.root_device
        living = [*pl_module.parameters(), *pl_module.buffers(), *_gradients(pl_module)]
        self._weights = [*pl_module.parameters(), *pl_module.buffers()]
        self._states = bytes_of(_states(trainer.optimizers))
        living += [*_states(trainer.optimizers), *tensors_in(batch)]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        for at, parameter in enumerate(pl_module.parameters()):
            if parameter.requires_grad:
                watched: Any = parameter
                hook = watched.register_post_accumulate_grad_hook(self._note_gradient(at))
                self.watching.callback(hook.remove)
        if self._watches:
            self._watch(pl_module, living)

    def _watch(self, model: pl.LightningModule, living: list[Tensor]) -> None:
        counter = self.watching.enter_context(flop_counter())
        self._flops = counter.get_total_flops
        self._layers = self.watching.enter_context(LayerRecord(model, self._flops))
        self._kept = KeptTensors(self._weights, self._layers.kept)
        self._step = StepWatch(living, self._flops)
        self.watching.enter_context(self._kept)
        self.watching.enter_context(self._step)

    def _note_gradient(self, at: int) -> Any:
        def note(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self._gradients[at] = bytes_of([parameter.grad])

        return note

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take everything down, and end the fit."""
        if batch_idx != _MEASURED:
            return
        self.watching.close()
        self.facts = self._taken_down(trainer, pl_module, batch)
        raise _Measured

    def _taken_down(self, trainer: pl.Trainer, model: pl.LightningModule, batch: Any) -> StepFacts:
        device = trainer.strategy.root_device
        parameters = list(model.parameters())
        facts = StepFacts(
            str(device),
            str(trainer.precision),
            *(_batch_size(batch), sizes(batch)),
            parameters=sum(each.numel() for each in parameters),
            trained=sum(each.numel() for each in parameters if each.requires_grad),
            weights=bytes_of(parameters),
            buffers=bytes_of(model.buffers()),
            gradients=sum(self._gradients.values()),
            optimizers=[type(each).__name__ for each in trainer.optimizers],
            batch=bytes_of(tensors_in(batch)),
            buckets=sum(each.numel() * each.element_size() for each in parameters if each.requires_grad),
        )
        if device.type == "cuda":
            facts.allocated = torch.cuda.max_memory_allocated(device)
        if self._watches:
            facts.layers, facts.activations = self._layers.facts(), self._kept.peak
            facts.backward_flops = self._step.backward_flops
            facts.forward_flops = self._flops() - facts.backward_flops
            facts.peak = self._step.peak
            if self._step.uncounted:
                named = ", ".join(sorted(self._step.uncounted))
                facts.notes.append(f"Not counted, for torch knows no number for them, are the FLOPs of {named}.")
        facts.notes += _fill_states(trainer.optimizers)
        facts.optimizer = bytes_of(_states(trainer.optimizers))
        if facts.peak is not None:
            facts.peak += max(0, facts.optimizer - self._states)
        return facts


def _batch_size(batch: Any) -> int | None:
    try:
        return int(extract_batch_size(batch))
    except (MisconfigurationException, RecursionError, TypeError):
        return None


def _gradients(model: pl.LightningModule) -> list[Tensor]:
    return [each.grad for each in model.parameters() if each.grad is not None]


def _states(optimizers: Iterable[Any]) -> list[Tensor]:
    return [tensor for optimizer in optimizers for tensor in tensors_in(list(optimizer.state.values()))]


def _fill_states(optimizers: Iterable[Any]) -> list[str]:
    """Have optimizers that took no step in two batches make their states by one without gradients; say where not."""
    notes = []
    for optimizer in optimizers:
        if optimizer.state:
            continue
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        try:
            optimizer.step()
        except Exception as error:  # noqa: BLE001 - an optimizer of anybody's, asked for what it may not expect
            notes.append(f"The states of {type(optimizer).__name__} are not measured: {in_one_line(error)}.")
    return notes
