"""What the stop vote costs a step of the example model, on 2 gloo ranks of one thread each.

Three kinds of training, one after the other in each round: with the vote, without any, and with what Lightning
2.6.6 does in its place (a broadcast over all ranks before every batch, which the device waits for). The time within the
vote's own calls is measured in place, for it is far below the noise of a step.

torchrun --nproc_per_node 2 -m tests.benchmarks.stop_vote
"""

import logging
import os
import statistics
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from pipeline.data.datamodule import DataModule
from pipeline.examples.autoencoder import LitAutoEncoder
from pipeline.process.preemption import Preemption
from pipeline.run.goodput import Goodput
from pipeline.training import epoch_loop as loops
from pipeline.training.epoch_loop import EpochLoop
from pipeline.training.hooks import SessionHooks
from pipeline.training.session import TrainingSession
from pipeline.training.stop_vote import StopVote, Vote
from pipeline.training.trainer_state import TrainerState
from tests.benchmarks.ledger import Steps, timed
from tests.benchmarks.loading import BATCH, ROWS, Rows

KINDS = ("vote", "nothing", "lightning")
ROUNDS = 7
STEPS = 400


def train(kind: str) -> tuple[float, float]:
    """Train for some hundred steps.

    Returns:
        Microseconds a step, and microseconds a step within the vote.
    """
    spent, steps = [0.0], Steps()
    vote = StopVote(Preemption())
    vote.poll = timed(vote.poll if kind == "vote" else lambda minutes: Vote(False), spent)  # type: ignore[method-assign]
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[steps],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    loops.install(trainer)
    session = TrainingSession(TrainerState(trainer), vote, Goodput())
    trainer.callbacks.insert(0, SessionHooks(session))  # type: ignore[attr-defined]
    if kind == "lightning":
        loop: Any = trainer.fit_loop.epoch_loop
        assert isinstance(loop, EpochLoop)
        loop._broadcast_sigterm_tensor = lambda: _TrainingEpochLoop._broadcast_sigterm_tensor(loop)
    generator = torch.Generator().manual_seed(0)
    rows = Rows(torch.rand(ROWS, 784, generator=generator), torch.randint(10, (ROWS,), generator=generator))
    trainer.fit(LitAutoEncoder(input_dim=784), datamodule=DataModule(train=rows, batch_size=BATCH))
    first = STEPS // 10
    took = (steps.ends[-1] - steps.ends[first]) / (STEPS - 1 - first)
    return took * 1e6, spent[0] / STEPS * 1e6


def main() -> None:
    """Measure, and print on rank 0."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for round_ in range(ROUNDS):
        for kind in KINDS[round_ % 3 :] + KINDS[: round_ % 3]:
            found[kind].append(train(kind))
    if os.environ["RANK"] == "0":
        within = [own / step for step, own in found["vote"]]
        print(
            f"within the vote: {100 * statistics.median(within):.2f} % of a step "
            f"({100 * min(within):.2f} .. {100 * max(within):.2f})"
        )
        for kind in KINDS:
            ratios = [step / plain for (step, _), (plain, _) in zip(found[kind], found["nothing"], strict=True)]
            print(
                f"{kind:10} {statistics.median(step for step, _ in found[kind]):6.0f} us a step, "
                f"{statistics.median(ratios):.3f} x nothing ({min(ratios):.3f} .. {max(ratios):.3f})"
            )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
