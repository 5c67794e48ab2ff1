"""A training step: this pipeline, Lightning's Trainer with its defaults, and a loop written by hand.

All three train the same model with the same fused Adam on the same rows, in batches of the same size, each process with
one thread. This pipeline runs as a user runs it, `fit` with a run directory: session, ledger, stop vote, checkpoints
and logs are on. Time is taken on rank 0, from one step to another one after warm-up, in the midst of one epoch.
"""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset

from pipeline.__main__ import main as app
from pipeline.process.preemption import Preemption
from tests.benchmarks import handwritten
from tests.benchmarks.processes import clock, forked
from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject
from tests.benchmarks.workloads import BATCH, Autoencoder, images

HAND = "hand-written loop"
LIGHTNING = "Lightning, defaults"


class Work:
    """So many steps of one model.

    Args:
        warm_up: Steps that are not measured.
        measured: Steps that are.
        ranks: Processes.
        hidden: Units of the model's hidden layers.
        batch_size: Samples per step and process.
    """

    def __init__(self, warm_up: int, measured: int, ranks: int, hidden: int = 64, batch_size: int = BATCH) -> None:
        self.ranks, self.hidden, self.batch_size = ranks, hidden, batch_size
        self.window = warm_up, warm_up + measured
        self.steps = warm_up + measured + 2
        self.samples = (self.steps + 2) * batch_size * ranks
        images(self.samples)

    def open_clock(self) -> None:
        torch.manual_seed(0)
        clock.set_window(*self.window)


def fit(work: Work, folder: Path) -> Reading:
    """Train by `python -m pipeline fit`."""
    work.open_clock()
    arguments = (
        "fit",
        "--model=tests.benchmarks.workloads.Autoencoder",
        f"--model.hidden={work.hidden}",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.benchmarks.workloads.Rows",
        f"--data.train.count={work.samples}",
        f"--data.batch_size={work.batch_size}",
        "--trainer.accelerator=cpu",
        f"--trainer.max_steps={work.steps}",
        f"--run_dir={folder / 'run'}",
    )
    with Preemption() as preemption:
        assert app(arguments, preemption) == 0
    return clock.reading()


def lightning(work: Work, folder: Path) -> Reading:
    """Train as Lightning's documentation does."""
    work.open_clock()
    strategy = "ddp" if work.ranks > 1 else "auto"
    trainer = pl.Trainer(
        max_steps=work.steps, accelerator="cpu", devices=work.ranks, strategy=strategy, default_root_dir=folder
    )
    loader = DataLoader(TensorDataset(*images(work.samples)), work.batch_size, shuffle=True)
    trainer.fit(Autoencoder(work.hidden), loader)
    return clock.reading()


def by_hand(work: Work, folder: Path) -> Reading:
    """Train by `tests.benchmarks.handwritten`."""
    work.open_clock()
    if work.ranks > 1:
        dist.init_process_group("gloo")
    handwritten.train(
        Autoencoder(work.hidden),
        *images(work.samples),
        steps=work.steps,
        batch_size=work.batch_size,
        before_step=clock.tick,
    )
    if work.ranks > 1:
        dist.destroy_process_group()
    return clock.reading()


WAYS: dict[str, Callable[[Any, Path], Reading]] = {OURS: fit, LIGHTNING: lightning, HAND: by_hand}


def contenders(work: Any, context: Context, ways: dict[str, Callable[[Any, Path], Reading]] = WAYS) -> Contenders:
    def turn(function: Callable[[Any, Path], Reading]) -> Reading:
        folder = context.folder / uuid.uuid4().hex[:8]
        folder.mkdir()
        found: Reading = forked(function, work, folder, ranks=work.ranks, log=folder / "log.txt")
        return found

    return {name: (lambda function=function: turn(function)) for name, function in ways.items()}


def bars(ratio: float) -> tuple[Bar, ...]:
    return tuple(Bar(OURS, quantity, ratio) for quantity in ("wall", "cpu"))


@subject("step", unit="us a step", reference=HAND, bars=bars(0.90))
def two_ranks(context: Context) -> Contenders:
    """A step of the autoencoder 784-64-3, 2 ranks."""
    return contenders(Work(context.pick(4, 100, 200), context.pick(4, 300, 1000), ranks=2), context)


@subject("step_alone", unit="us a step", reference=HAND, bars=bars(0.90))
def one_process(context: Context) -> Contenders:
    """A step of the autoencoder 784-64-3, one process."""
    return contenders(Work(context.pick(4, 100, 200), context.pick(4, 400, 2000), ranks=1), context)


@subject("step_heavy", unit="us a step", reference=HAND, bars=bars(0.985))
def heavy(context: Context) -> Contenders:
    """A step of 20 ms or more: the autoencoder 784-512-3 with batches of 512, 2 ranks."""
    work = Work(context.pick(2, 10, 20), context.pick(2, 40, 120), ranks=2, hidden=512, batch_size=512)
    return contenders(work, context)
