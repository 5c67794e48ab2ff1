"""Training on one batch: Lightning's calls in Lightning's order, as far as somebody has given them something to do.

Lightning 2.6.6 spends more than the work of a small model on each batch: it calls about sixteen hooks of the model and
of every callback through a profiler's context, asks the signature of `training_step`, walks the batch to move it to
where it is, and sums logged values up in copies. Which of these hooks anybody overrides is known before an epoch.
Where more than hooks is the user's own (a profiler, another strategy or precision, manual optimization), Lightning's
loop does the work itself.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.training.compat import TrainingEpochLoop, epoch_is_over, is_accumulating
from pipeline.training.step import step_compat as compat
from pipeline.training.step.hook import OF_MODEL, OF_TRAINING, Called, Hook, Transfer, within
from pipeline.training.step.logged_values import LoggedValues


class LeanStep:
    """Trains on the batches of one epoch.

    Args:
        loop: Of the trainer, which is in its fit.

    Attributes:
        logged: What the batches log.
    """

    def __init__(self, loop: TrainingEpochLoop) -> None:
        trainer = loop.trainer
        self.logged = LoggedValues(loop)
        self._loop, self._trainer, self._module = loop, trainer, trainer.lightning_module
        self._called = Called(trainer, (compat.TRAINING, *OF_TRAINING, *OF_MODEL))
        self._hooks = {name: Hook(name, trainer) for name in (*OF_TRAINING, *OF_MODEL)}
        self._moved = Transfer(trainer)
        self._takes_index = compat.takes_batch_index(self._module)
        self._full_precision = compat.runs_in_full_precision(trainer)
        model = trainer.strategy.model
        self._wrapper = None if model is self._module else model

    @staticmethod
    def of(loop: TrainingEpochLoop, fetcher: Any) -> "LeanStep | None":
        """Return how to train on the batches of this epoch; None where that is Lightning's to do.

        Args:
            loop: At the start of an epoch.
            fetcher: Of its batches.
        """
        return LeanStep(loop) if compat.is_stock(loop.trainer, fetcher) else None

    @property
    def holds(self) -> bool:
        """Whether what was looked up still is so."""
        return self._called.holds and self._module.automatic_optimization

    def advance(self, fetcher: Any) -> None:
        """Train on the next batch.

        Args:
            fetcher: Has it.

        Raises:
            StopIteration: There is none, or a hook has returned -1: the rest of the epoch is skipped.
        """
        loop, trainer = self._loop, self._trainer
        progress: Any = loop.batch_progress
        loop.val_loop.restarting = False
        batch, _, _ = next(fetcher)
        index = progress.current.ready
        progress.is_last_batch = fetcher.done
        batch = self._moved(batch)
        progress.increment_ready()
        compat.begin_batch(trainer, batch)
        outputs: Any = None
        skips = False
        if batch is None:
            compat.warn_once(trainer, "the training loader gave None in the place of a batch: it is left out")
        else:
            skips = self._hooks["on_train_batch_start"](batch, index) == -1
            if skips:
                progress.increment_by(0, is_last_batch=True)
            else:
                progress.increment_started()
                outputs = self._optimize((batch, index) if self._takes_index else (batch,), index)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if epoch_is_over(trainer):
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skips:
            raise StopIteration
        self._hooks["on_train_batch_end"](outputs, batch, index)
        self.logged.end_batch()
        progress.increment_completed()
        self.logged.send()

    def _optimize(self, arguments: tuple[Any, ...], index: int) -> dict[str, Any]:
        """Accumulate the gradients of a batch, and make a step of them where it is the last one of a step.

        Args:
            arguments: Of `training_step`.
            index: Of the batch.

        Returns:
            The detached loss and the other outputs of `training_step`.
        """
        trainer, optimizer = self._trainer, self._trainer.optimizers[0]
        outputs: dict[str, Any] = {}

        def closure() -> Tensor | None:
            with torch.enable_grad():
                return self._backward(arguments, index, optimizer, outputs)

        if trainer.accumulate_grad_batches > 1 and is_accumulating(trainer):
            with compat.blocked_sync(trainer.strategy, block=True):
                closure()
            return outputs
        done = self._loop.automatic_optimization.optim_progress.optimizer.step
        done.increment_ready()
        if self._hooks["optimizer_step"].overridden:
            wrapped = compat.lightning_optimizer(trainer)
            self._hooks["optimizer_step"](trainer.current_epoch, index, wrapped, closure)
        else:
            step = partial(optimizer.step, closure=lambda: self._stepping(closure, optimizer))
            within(self._module, "optimizer_step", step)
        done.increment_completed()
        return outputs

    def _stepping(self, closure: Callable[[], Tensor | None], optimizer: Any) -> Tensor | None:
        """Return the loss, with gradients as the optimizer's step is to find them."""
        loss = closure()
        self._hooks["on_before_optimizer_step"](optimizer)
        name, (clip, algorithm) = "configure_gradient_clipping", compat.clipping(self._trainer)
        if clip or self._hooks[name].overridden:
            module: Any = self._module
            given = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
            within(module, name, partial(module.configure_gradient_clipping, optimizer, **given))
        return loss

    def _backward(
        self, arguments: tuple[Any, ...], index: int, optimizer: Any, outputs: dict[str, Any]
    ) -> Tensor | None:
        """Compute the loss and its gradients.

        Args:
            arguments: Of `training_step`.
            index: Of the batch.
            optimizer: Whose gradients are zeroed before the first batch of a step.
            outputs: Receives what `training_step` returned.

        Returns:
            The detached loss.
        """
        trainer = self._trainer
        batches = trainer.accumulate_grad_batches
        output = self._training_step(arguments)
        if output is None and trainer.world_size > 1:
            raise RuntimeError(
                "training_step returned None, which leaves a step out; with several processes that is not supported, "
                "for the others wait for this one's gradients: return a loss of zero that depends on the weights"
            )
        loss, values = compat.loss_and_outputs(output, batches)
        outputs.update(values)
        if loss is None:
            compat.warn_once(trainer, "training_step returned None: no step is made with such a batch")
        if index % batches == 0:
            self._zero_gradients(index, optimizer)
        if loss is None:
            return None
        self._hooks["on_before_backward"](loss)
        if self._hooks["backward"].overridden:
            self._hooks["backward"](loss)
        else:
            loss.backward()  # type: ignore[no-untyped-call]
        self._hooks["on_after_backward"]()
        return outputs["loss"]  # type: ignore[no-any-return]

    def _zero_gradients(self, index: int, optimizer: Any) -> None:
        """Zero what the last step has left."""
        zeroed = self._loop.automatic_optimization.optim_progress.optimizer.zero_grad
        zeroed.increment_ready()
        self._hooks["on_before_zero_grad"](optimizer)
        zeroed.increment_started()
        if self._hooks["optimizer_zero_grad"].overridden:
            self._hooks["optimizer_zero_grad"](self._trainer.current_epoch, index, optimizer)
        else:
            optimizer.zero_grad()
        zeroed.increment_completed()

    def _training_step(self, arguments: tuple[Any, ...]) -> Any:
        """Return what `training_step` returns."""
        with nullcontext() if self._full_precision else self._trainer.precision_plugin.train_step_context():
            step = self._module.training_step if self._wrapper is None else self._by_wrapper
            return within(self._module, "training_step", step, *arguments)

    def _by_wrapper(self, *arguments: Any) -> Any:
        """Call `training_step` in the place of the model's `forward`, so that DDP sees the backward pass coming."""
        module, attributes = self._module, vars(self._module)
        forward = module.forward

        def redirected(*given: Any, **named: Any) -> Any:
            attributes["forward"] = forward
            return module.training_step(*given, **named)

        attributes["forward"] = redirected
        return self._wrapper(*arguments)  # type: ignore[misc]
