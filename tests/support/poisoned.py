"""Data with samples that are not a number, and models that meet them."""

from typing import Any

import torch
from torch import Tensor

from tests.support.models import Normalized, Rows


class PoisonedRows(Rows):
    """Rows of which some are not a number."""

    def __init__(self, bad: list[int], n: int = 48) -> None:
        super().__init__(n)
        self.x[bad] = float("nan")


class LeavesOut(Normalized):
    """A model with BatchNorm and weight decay that leaves some steps out by itself, before their forward pass."""

    def __init__(self, out: str, steps: list[int] | None = None, die_at: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.out, self.steps, self.die_at = out, steps or [], die_at

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.global_step + 1 not in self.steps:
            optimizer.step(closure=optimizer_closure)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step == self.die_at:
            raise RuntimeError("killed")

    def on_train_end(self) -> None:
        optimizer: Any = self.optimizers()
        torch.save(
            {"model": self.state_dict(), "optimizer": optimizer.state_dict()}, f"{self.out}-{self.global_rank}.pt"
        )

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.1)


class ByHand(LeavesOut):
    """The same by manual optimization."""

    def __init__(self, out: str) -> None:
        super().__init__(out)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()

    def optimizer_step(self, *_: Any) -> None:
        raise AssertionError("automatic optimization")


class SteepAtZero(Normalized):
    """The loss of its third step is finite, and its gradients are not."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + (self.layers[0].weight * 0).abs().sum().sqrt() if batch_idx == 2 else loss


class ByLBFGS(Normalized):
    """Its optimizer evaluates the loss several times in a step."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters())
