"""The training loop that an expert writes by hand: what this pipeline is measured against.

It has what makes DDP fast (a fused optimizer, gradients that live in the buckets that are reduced, a graph that is
known to stay the same, batches gathered in one call) and nothing else: no hooks, no logging, no checkpoints, no way
back after a crash, no account of the samples. Run it by itself, on 60,000 rows of 784 numbers:

torchrun --nproc_per_node 2 -m tests.benchmarks.handwritten
"""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data.distributed import DistributedSampler


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    before_step: Callable[[], None] = lambda: None,
) -> float:
    """Train an autoencoder, by DDP where there is more than one process.

    Args:
        model: Gives each of (batch, width) rows back.
        x: The rows, (samples, width), on every rank.
        y: Their labels, (samples,): no autoencoder looks at them, but they are part of a batch.
        steps: How many.
        batch_size: Samples per step and process.
        learning_rate: Of Adam.
        before_step: Called when a batch is there.

    Returns:
        The loss of the last step.
    """
    world_size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    replica = model
    if world_size > 1:
        replica = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    samples: Any = range(len(x))
    sampler = DistributedSampler(samples, world_size, rank, drop_last=True)
    loss, done, epoch = torch.zeros(()), 0, 0
    while done < steps:
        sampler.set_epoch(epoch)
        for indices in torch.tensor(list(sampler)).split(batch_size):
            batch, _ = x.index_select(0, indices), y.index_select(0, indices)
            before_step()
            loss = functional.mse_loss(replica(batch), batch, reduction="none").mean(dim=1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done == steps:
                break
        epoch += 1
    return float(loss.detach())


def train_in_bf16(
    model: nn.Module,
    samples: Tensor,
    steps: int,
    batch_size: int,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor],
    before_step: Callable[[], None] = lambda: None,
    learning_rate: float = 3e-4,
) -> float:
    """Train a language model in one process, on the device that it is on, in mixed precision.

    Args:
        model: Of float32 weights.
        samples: Tokens on the CPU, (samples, length + 1).
        steps: How many.
        batch_size: Samples per step.
        loss_of: Of the model, its tokens and those that follow them, (batch, length) each.
        before_step: Called when a batch is there.
        learning_rate: Of AdamW.

    Returns:
        The loss of the last step.
    """
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    loss, done = torch.zeros(()), 0
    while done < steps:
        for indices in torch.randperm(len(samples)).split(batch_size):
            batch = samples.index_select(0, indices).to(device, non_blocking=True)
            before_step()
            with torch.autocast(device.type, torch.bfloat16):
                loss = loss_of(model, batch[:, :-1], batch[:, 1:])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            if done == steps:
                break
    return float(loss)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Tensor], before_step: Callable[[], None] = lambda: None
) -> tuple[float, Tensor]:
    """Score rows in their order, in one process.

    Args:
        model: Gives each of (batch, width) rows back.
        batches: Of those rows.
        before_step: Called when a batch is there.

    Returns:
        The mean error, and each row's, (samples,).
    """
    model.eval()
    errors = []
    for batch in batches:
        before_step()
        errors.append(functional.mse_loss(model(batch), batch, reduction="none").mean(dim=1))
    scores = torch.cat(errors)
    return float(scores.mean()), scores


def main() -> None:
    """Train for a thousand steps, and say how long they took."""
    from tests.benchmarks.workloads import Autoencoder, images

    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    began = time.perf_counter()
    loss = train(Autoencoder(), *images(60_000), steps=1000)
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"loss {loss:.4f}, {1000 / (time.perf_counter() - began):.0f} steps/s")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
