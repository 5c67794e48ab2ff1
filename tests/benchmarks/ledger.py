"""What the ledger adds to a training step of the example model: batches of 64 rows of 784 floats, one thread.

Two parts, each measured where it arises: what the loop calls of the ledger, timed in place, and the identity that
travels with each batch, from loaders with and without it. Training as a whole, with and without a ledger, is shown
beside: its noise is larger than what is looked for.

python -m tests.benchmarks.ledger
"""

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.data.datamodule import DataModule
from pipeline.data.ledger import Ledger
from pipeline.examples.autoencoder import LitAutoEncoder
from pipeline.process.preemption import Preemption
from pipeline.run.goodput import Goodput
from pipeline.training import epoch_loop as loops
from pipeline.training.hooks import SessionHooks
from pipeline.training.session import TrainingSession
from pipeline.training.stop_vote import StopVote
from pipeline.training.trainer_state import TrainerState
from tests.benchmarks.loading import BATCH, BATCHES, ROWS, OneByOne, Rows
from tests.benchmarks.sampler import interleaved, spread

CALLS = ("open", "count", "close")


class Steps(pl.Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.ends.append(time.perf_counter())


def train(dataset: Dataset[Any], counted: bool = False) -> tuple[float, float]:
    """Train an epoch.

    Returns:
        Microseconds of the median step, and microseconds a step that the calls of the ledger took.
    """
    data, steps = DataModule(train=dataset, batch_size=BATCH), Steps()
    spent = [0.0]
    ledger = Ledger(data) if counted else None
    if ledger is not None:
        for name in CALLS:
            setattr(ledger, name, timed(getattr(ledger, name), spent))
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        callbacks=[steps],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    loops.install(trainer)
    session = TrainingSession(TrainerState(trainer, ledger=ledger), StopVote(Preemption()), Goodput())
    trainer.callbacks.insert(0, SessionHooks(session))  # type: ignore[attr-defined]
    trainer.fit(LitAutoEncoder(), datamodule=data)
    return 1e6 * float(np.median(np.diff(steps.ends))), 1e6 * spent[0] / BATCHES


def timed(method: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The method, adding its seconds to `spent`."""

    def call(*arguments: Any, **named: Any) -> Any:
        begin = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            spent[0] += time.perf_counter() - begin

    return call


def loaded(dataset: Dataset[Any], ledger: bool) -> Callable[[], float]:
    """Microseconds a batch out of the loader that training sees."""
    data = DataModule(train=dataset, batch_size=BATCH)
    in_flight: Any = Ledger(data)._in_flight if ledger else None

    loader = data.train_dataloader()

    def measure() -> float:
        begin = time.perf_counter()
        for _ in loader:
            if ledger:
                in_flight.popleft()
        return 1e6 * (time.perf_counter() - begin) / BATCHES

    return measure


def difference(found: dict[str, list[float]], more: str, less: str) -> Sequence[float]:
    return (np.array(found[more]) - np.array(found[less])).tolist()


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(ROWS, 784, generator=generator), torch.randint(10, (ROWS,), generator=generator)
    batched, single = Rows(x, y), OneByOne(x, y, deterministic=True)

    calls: list[float] = []

    def with_ledger() -> float:
        step, spent = train(batched, counted=True)
        calls.append(spent)
        return step

    steps = interleaved(
        5,
        {
            "without a ledger": lambda: train(batched)[0],
            "with a ledger": with_ledger,
        },
    )
    loads = interleaved(
        11,
        {
            "batched": loaded(batched, ledger=False),
            "batched, with identities": loaded(batched, ledger=True),
            "one by one": loaded(single, ledger=False),
            "one by one, with identities": loaded(single, ledger=True),
        },
    )
    print("us a step: median [quartiles]")
    for name, values in (steps | loads).items():
        print(f"  {name:34}{spread(values)}")
    step = float(np.median(steps["without a ledger"]))
    print(f"the ledger's share, of a step of {step:.0f} us (bar: 0.5 %)")
    one_by_one = difference(loads, "one by one, with identities", "one by one")
    parts = {
        "calls of it": calls,
        "identities, batched": difference(loads, "batched, with identities", "batched"),
    }
    total = sum(float(np.median(values)) for values in parts.values())
    for name, values in parts.items():
        print(f"  {name:34}{spread(values)}  {100 * np.median(values) / step:.2f} %")
    print(f"  {'together':34}{total:9.1f}  {100 * total / step:.2f} %")
    print(f"  {'identities, if one by one':34}{spread(one_by_one)}  {100 * np.median(one_by_one) / step:.2f} %")


if __name__ == "__main__":
    main()
