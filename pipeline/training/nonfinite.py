"""What `--on_nan` asks for beyond a warning: a step that is not finite stops training, or is left out.

All ranks decide alike without a collective. A loss that is not finite makes every gradient of its rank NaN, and DDP's
sum carries that to all ranks: each finds it before the optimizer's step, by a look at its gradients. Only then do the
ranks tell each other whose loss and whose samples they were.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.data.ledger import Ledger
from pipeline.errors import UserError

log = logging.getLogger(__name__)

STOP, SKIP, CONTINUE = "stop", "skip", "continue"
CHOICES = (STOP, SKIP, CONTINUE)
"""The values of `--on_nan`; with the last one nothing here is used."""
IN_A_ROW = 100
"""Steps left out one after the other from which on nothing is trained any more."""
_SHOWN = 20
"""Indices of samples in a message."""
_SAID = 10
"""Left out steps of which each is logged; later on every hundredth is."""


@dataclass(frozen=True)
class BadLoss:
    """A loss that is not finite.

    Attributes:
        rank: Whose.
        loss: As text: `nan`, `inf` or `-inf`.
        epoch: In which.
        batch: Its number in the epoch.
        samples: Indices of its first samples in the training set; None where they are not known.
        more: How many samples it has beside those.
    """

    rank: int
    loss: str
    epoch: int
    batch: int
    samples: list[int] | None
    more: int = 0

    def __str__(self) -> str:
        which = ""
        if self.samples is not None:
            which = f", samples {', '.join(map(str, self.samples))}" + (f" and {self.more} more" if self.more else "")
        return f"the loss of rank {self.rank} is {self.loss} (batch {self.batch} of epoch {self.epoch}{which})"


class NonFiniteGuard(pl.Callback):
    """Looks at each loss and at the gradients of each step.

    Args:
        mode: STOP or SKIP.
        ledger: Knows which samples are in a batch; None: nobody does.
        note: Called on every rank for a step that is left out: its number, and the losses that are not finite.
        group: Returns a process group of all ranks on the CPU; None for one rank.
    """

    def __init__(
        self,
        mode: str,
        ledger: Ledger | None,
        note: Callable[[int, list[dict[str, Any]]], None],
        group: Callable[[], Any],
    ) -> None:
        self.mode = mode
        self._ledger, self._note, self._group = ledger, note, group
        self._losses: list[tuple[Tensor, int, Any]] = []
        """Of the step under way: a loss, the number of its batch, its samples."""
        self._buffers: dict[str, Tensor] = {}
        """The model's, before the step under way."""
        self._left_out = self._in_a_row = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse an optimizer that has moved the weights before a gradient is found not to be finite.

        Raises:
            UserError: It is LBFGS.
        """
        if self.mode == SKIP and any(isinstance(each, torch.optim.LBFGS) for each in trainer.optimizers):
            raise UserError(
                "on_nan='skip': LBFGS moves the weights several times in one step, which cannot be left out "
                "afterwards. Use --on_nan stop, or another optimizer"
            )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember the buffers before a step: its forward pass may leave NaN in those of BatchNorm."""
        manual = not pl_module.automatic_optimization
        if manual or batch_idx % trainer.accumulate_grad_batches == 0:
            self._losses.clear()
            if self.mode == SKIP:
                self._buffers = {name: buffer.detach().clone() for name, buffer in pl_module.named_buffers()}

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Have a loss that is not finite make all gradients NaN; those of any other stay the same, bit for bit."""
        known = loss.detach()
        if loss.requires_grad:
            factor = known - known + 1  # NaN for a loss that is not finite, else 1
            loss.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
        samples = None if self._ledger is None else self._ledger.samples_of_batch()
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress
        self._losses.append((known, batches.current.ready - 1, samples))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Stop before a step whose gradients are not finite, or leave it out. All ranks decide alike.

        Raises:
            UserError: Training stops here, or nothing is trained any more.
        """
        parameters = [each for group in optimizer.param_groups for each in group["params"] if each.grad is not None]
        if _are_finite([each.grad for each in parameters]):
            self._in_a_row = 0
            return
        found, step = self._found(trainer), trainer.global_step + 1
        if getattr(trainer.precision_plugin, "scaler", None) is not None and not found:
            return  # it looks for its scale in this way, and leaves the step out by itself
        if self.mode == STOP:
            raise UserError(
                f"step {step}: {_causes(found)}. Training stops before this step changes the weights (on_nan=stop); "
                "checkpoints of the steps before it are whole. --trainer.detect_anomaly=true finds the operation that "
                "made it, --on_nan skip leaves such steps out"
            )
        for each in parameters:
            each.grad = None  # torch's optimizers leave out what has no gradient: no decay, no momentum, no count
        self._put_back(pl_module)
        self._leave_out(step, found)

    def _leave_out(self, step: int, found: list[BadLoss]) -> None:
        """Log and record a step without an update.

        Raises:
            UserError: It is one too many.
        """
        self._left_out += 1
        self._in_a_row += 1
        if self._left_out <= _SAID or self._left_out % IN_A_ROW == 0:
            log.warning("step %d is left out, %d so far: %s", step, self._left_out, _causes(found))
        self._note(step, [asdict(each) for each in found])
        if self._in_a_row >= IN_A_ROW:
            raise UserError(
                f"step {step}: {IN_A_ROW} steps in a row were left out (on_nan=skip), so that nothing is trained any "
                f"more. The last one: {_causes(found)}"
            )

    def _put_back(self, module: pl.LightningModule) -> None:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                before = self._buffers.get(name)
                if before is not None and before.shape == buffer.shape:
                    buffer.copy_(before)

    def _found(self, trainer: pl.Trainer) -> list[BadLoss]:
        """Return the losses of all ranks that are not finite in this step."""
        rank, epoch = trainer.global_rank, trainer.current_epoch
        own = [_bad(rank, epoch, *each) for each in self._losses if not bool(torch.isfinite(each[0]).all())]
        if trainer.world_size == 1:
            return own
        gathered: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(gathered, own, group=self._group())
        return [each for of_rank in gathered for each in of_rank]


def _bad(rank: int, epoch: int, loss: Tensor, batch: int, samples: Any) -> BadLoss:
    value = f"{float(loss.sum()):g}"
    if samples is None:
        return BadLoss(rank, value, epoch, batch, None)
    return BadLoss(rank, value, epoch, batch, samples[:_SHOWN].tolist(), max(0, len(samples) - _SHOWN))


def _causes(found: list[BadLoss]) -> str:
    """Return why a step's gradients are not finite."""
    return "; ".join(map(str, found)) or "gradients are not finite, though the loss of each rank is"


def _are_finite(gradients: list[Tensor]) -> bool:
    """Return whether all numbers are finite. A norm is: that settles it, and costs least; else its squares overflow."""
    dense = [each.coalesce().values() if each.is_sparse else each for each in gradients]
    dense = [each for each in dense if each.numel()]
    if not dense or bool(torch.isfinite(torch.nn.utils.get_total_norm(dense))):
        return True
    return all(bool(torch.isfinite(each).all()) for each in dense)
