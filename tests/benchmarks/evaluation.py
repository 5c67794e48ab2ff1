"""An evaluation in one process: ours, with receipt and scores, Lightning's, and a bare loop without gradients."""

import uuid
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
from torch.utils.data import DataLoader, TensorDataset

from pipeline.__main__ import main as app
from pipeline.process.preemption import Preemption
from tests.benchmarks import handwritten
from tests.benchmarks.processes import clock, forked, peak_memory
from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject
from tests.benchmarks.workloads import BATCH, WIDTH, Autoencoder, images

BARE = "bare no_grad loop"
WARM_UP = 5


class Evaluating:
    """What is evaluated: so many samples of a width, in batches."""

    def __init__(self, folder: Path, samples: int, width: int, batch_size: int) -> None:
        self.samples, self.width, self.batch_size = samples, width, batch_size
        self.run = folder / f"run-{uuid.uuid4().hex[:8]}"
        self.log = folder / "log.txt"
        images(samples, width)

    @property
    def measured(self) -> int:
        """Samples after the warm-up."""
        return self.samples - WARM_UP * self.batch_size

    def app(self, *arguments: str) -> None:
        with Preemption() as preemption:
            assert app((*arguments, f"--run_dir={self.run}", "--trainer.accelerator=cpu"), preemption) == 0

    def train(self) -> None:
        """Leave a checkpoint to evaluate."""
        data = [f"--data.{split}=tests.benchmarks.workloads.Rows" for split in ("train", "test")]
        sizes = [f"--data.{split}.{name}={value}" for split in ("train", "test") for name, value in self.shape]
        model = ("--model=tests.benchmarks.workloads.Autoencoder", f"--model.width={self.width}")
        batches = f"--data.batch_size={self.batch_size}"
        self.app("fit", *model, "--data=pipeline.data.DataModule", *data, *sizes, batches, "--trainer.max_steps=1")

    @property
    def shape(self) -> tuple[tuple[str, int], ...]:
        return ("count", self.samples), ("width", self.width)


def ours(work: Evaluating) -> Reading:
    """Evaluate by `python -m pipeline test`, to its end: receipt and scores are written."""
    clock.set_window(WARM_UP, 1 << 60)
    work.app("test")
    clock.stop()
    return clock.reading(work.measured)


def lightning(work: Evaluating) -> Reading:
    clock.set_window(WARM_UP, 1 << 60)
    loader = DataLoader(TensorDataset(*images(work.samples, work.width)), work.batch_size)
    trainer = pl.Trainer(accelerator="cpu", devices=1, default_root_dir=work.run)
    trainer.test(Autoencoder(width=work.width), loader)
    clock.stop()
    return clock.reading(work.measured)


def bare(work: Evaluating) -> Reading:
    clock.set_window(WARM_UP, 1 << 60)
    x, _ = images(work.samples, work.width)
    handwritten.evaluate(Autoencoder(width=work.width), x.split(work.batch_size), before_step=clock.tick)
    clock.stop()
    return clock.reading(work.measured)


def stock(work: Evaluating) -> Reading:
    """The bare loop, but over torch's loader, as most write it."""
    clock.set_window(WARM_UP, 1 << 60)
    loader = DataLoader(TensorDataset(*images(work.samples, work.width)), work.batch_size)
    handwritten.evaluate(Autoencoder(width=work.width), (x for x, _ in loader), before_step=clock.tick)
    clock.stop()
    return clock.reading(work.measured)


def grown(work: Evaluating, evaluate: Callable[[Evaluating], Reading]) -> Reading:
    """The most that a process grows by."""
    before = peak_memory(reset=True)
    found = evaluate(work)
    return found | {"MB": (peak_memory() - before) / 1e6}


@subject("evaluation", unit="us a sample", reference=BARE, bars=(Bar(OURS, "wall", 0.90), Bar(OURS, "cpu", 0.90)))
def evaluation(context: Context) -> Contenders:
    """Evaluation of the autoencoder 784-64-3 in batches of 64, with receipt and scores, one process."""
    work = Evaluating(context.folder, BATCH * context.pick(8, 300, 1000), WIDTH, BATCH)
    forked(work.train, log=work.log)
    ways = {OURS: ours, "Lightning, defaults": lightning, "the loop over a stock DataLoader": stock, BARE: bare}
    return {name: (lambda way=way: forked(way, work, log=work.log)) for name, way in ways.items()}


@subject("evaluation_memory", unit="us a sample", reference=BARE, bars=(Bar(OURS, "MB", limit=1000),), rounds=(1, 1, 1))
def evaluation_memory(context: Context) -> Contenders:
    """Memory that an evaluation of 10 M samples (200,000 if quick) grows by, in batches of 4,096."""
    work = Evaluating(context.folder, context.pick(50_000, 200_000, 10_000_000), 1, 4096)
    forked(work.train, log=work.log)
    return {
        name: (lambda way=way: forked(grown, work, way, log=work.log, limit=1800))
        for name, way in ((OURS, ours), (BARE, bare))
    }
