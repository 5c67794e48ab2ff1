"""A step of a transformer: this pipeline, Lightning's Trainer with its defaults, and a loop written by hand."""

import time
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from pipeline.__main__ import main as app
from pipeline.process.preemption import Preemption
from tests.benchmarks import handwritten
from tests.benchmarks.processes import clock, forked
from tests.benchmarks.steps import HAND, LIGHTNING, OURS, contenders
from tests.benchmarks.subject import Bar, Contenders, Context, Reading, Subject, measure
from tests.gpu_check.check import CheckFailed, Figures, Setting, check
from tests.gpu_check.transformer import GPT2, SMALL, LitTransformer, Shape, Tokens, Transformer, loss_of, peak_of, tick

BAR = 0.985
"""Of the hand-written loop's speed, on a device: that of `make bench` for steps of 20 ms or more."""
PRECISION = "bf16-mixed"


@dataclass(frozen=True)
class Steps:
    """So many steps of a transformer in one process."""

    setting: Setting
    shape: Shape
    batch_size: int
    warm_up: int
    measured: int
    ranks: int = 1

    @property
    def count(self) -> int:
        return self.warm_up + self.measured + 2

    @property
    def samples(self) -> int:
        """In one epoch, which the window lies in the midst of."""
        return (self.count + 2) * self.batch_size

    def data(self) -> Tokens:
        return Tokens(self.samples, self.shape.length, self.shape.vocabulary)

    def open_clock(self) -> None:
        torch.manual_seed(0)
        clock.set_window(self.warm_up, self.warm_up + self.measured)


def ours(steps: Steps, folder: Path) -> Reading:
    """Train by `python -m pipeline fit`."""
    steps.open_clock()
    arguments = (
        *("fit", "--model=tests.gpu_check.transformer.LitTransformer", *steps.shape.flags("--model")),
        *("--data=pipeline.data.DataModule", "--data.train=tests.gpu_check.transformer.Tokens"),
        *(f"--data.train.count={steps.samples}", f"--data.train.length={steps.shape.length}"),
        *(f"--data.train.vocabulary={steps.shape.vocabulary}", f"--data.batch_size={steps.batch_size}"),
        *(f"--trainer.accelerator={steps.setting.accelerator}", f"--trainer.precision={PRECISION}"),
        *(f"--trainer.max_steps={steps.count}", f"--run_dir={folder / 'run'}"),
    )
    with Preemption() as preemption:
        assert app(arguments, preemption) == 0
    return clock.reading()


def lightning(steps: Steps, folder: Path) -> Reading:
    """Train as Lightning's documentation does."""
    steps.open_clock()
    trainer = pl.Trainer(
        max_steps=steps.count,
        accelerator=steps.setting.accelerator,
        devices=1,
        precision=PRECISION,
        default_root_dir=folder,
    )
    loader = DataLoader(steps.data(), steps.batch_size, shuffle=True, pin_memory=steps.setting.card is not None)
    trainer.fit(LitTransformer(**vars(steps.shape)), loader)
    return clock.reading()


def by_hand(steps: Steps, folder: Path) -> Reading:
    """Train by `tests.benchmarks.handwritten`."""
    steps.open_clock()
    model = Transformer(steps.shape, 0.0).to(steps.setting.device)
    handwritten.train_in_bf16(model, steps.data().x, steps.count, steps.batch_size, loss_of, tick)
    return clock.reading()


def product_speed(size: int = 8192, count: int = 20) -> float:
    """Operations a second of a bf16 product of matrices on the device."""
    left, right = torch.randn(2, size, size, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        left @ right
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        left @ right
    torch.cuda.synchronize()
    return 2 * size**3 * count / (time.perf_counter() - began)


def used(setting: Setting, rate: float) -> Figures:
    """The share of the card's speed that so many operations a second are: of its data sheet (MFU), of a product's."""
    if setting.card is None:
        return {"MFU": "not measured (no CUDA device)"}
    peak = peak_of(setting.card)
    product = float(forked(product_speed, log=setting.log, limit=60))
    return {
        "MFU": rate / peak if peak else f"not measured (the peak of {setting.card} is not known)",
        "of a product's speed": rate / product,
        "a product's TFLOP/s": product / 1e12,
    }


@check("step")
def step(setting: Setting) -> Figures:
    """A step of a transformer of 124 M weights in bf16, beside Lightning and the hand-written loop."""
    if setting.card is None:
        work = Steps(setting, SMALL, batch_size=4, warm_up=2, measured=8)
    else:
        work = Steps(setting, GPT2, batch_size=8, warm_up=20, measured=60)

    def prepare(context: Context) -> Contenders:
        return contenders(work, context, {OURS: ours, LIGHTNING: lightning, HAND: by_hand})

    subject = Subject("transformer", prepare, "A step of a transformer", "us a step", HAND, (Bar(OURS, "wall", BAR),))
    context = Context("full", setting.folder, str(setting.folder / "url"))
    found = {(row.contender, row.quantity): row for row in measure(subject, context, setting.pick(1, 3)).rows()}
    own = found[OURS, "wall"]
    rate = work.batch_size * work.shape.length / (own.cost.value / 1e6)
    figures: Figures = {f"{name}, ms": found[name, "wall"].cost.value / 1e3 for name in (OURS, LIGHTNING, HAND)}
    for name in (OURS, LIGHTNING):
        for quantity in ("wall", "cpu"):
            ratio = found[name, quantity].ratio
            figures[f"{name}, of the loop's speed ({quantity})"] = ratio.value if ratio else "none"
    figures |= {
        "M weights": work.shape.parameters / 1e6,
        "tokens/s": rate,
        **used(setting, rate * work.shape.operations),
    }
    if setting.card is not None and not own.met:
        raise CheckFailed(f"a step takes longer than the hand-written loop's / {BAR}", figures)
    return figures
