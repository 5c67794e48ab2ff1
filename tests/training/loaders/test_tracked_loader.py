"""Training on loaders of the user's own resumes where it stood: bit for bit as if it had never been interrupted."""

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pipeline.process.preemption import Preemption
from pipeline.run.goodput import Goodput
from pipeline.training.epoch_loop import install
from pipeline.training.hooks import SessionHooks
from pipeline.training.save_policy import Boundary
from pipeline.training.session import TrainingSession
from pipeline.training.stop_vote import StopVote
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import TrainerState
from tests.support.loaders import Loaders, Trains
from tests.support.resumes import equal

# 101 samples make 7 batches of 16. In the first epoch, before and at its end, and in later ones.
STEPS = (3, 7, 13)
KINDS = [
    *("in order", "shuffled", "seeded", "replacement", "weighted", "own sampler", "own batches"),
    *(
        "stream",
        "shuffled stream",
        "no DataLoader",
        "no length",
        "own state",
        "own state, no length",
        "own state until its end",
    ),
    *("two", "two by the shorter", "two by the longer", "torchdata shuffled", "torchdata seeded", "torchdata stream"),
    *("distributed", "torchdata distributed"),
]
ALL_STEPS = (*range(2, 21),)
WITH_WORKERS = [
    *("seeded persistent", "torchdata seeded"),
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in (
            *("shuffled", "persistent", "seeded", "weighted", "own sampler", "own batches", "replacement", "stream"),
            *("torchdata shuffled", "torchdata persistent", "torchdata stream"),
        )
    ),
]


class Keeps(TrainingSession):
    """A session that keeps whole checkpoints of some steps."""

    def __init__(self, state: TrainerState, steps: tuple[int, ...]) -> None:
        super().__init__(state, StopVote(Preemption()), Goodput())
        self.steps = steps
        self.checkpoints: dict[int, tuple[int, Any]] = {}
        """By step, the batches of all epochs before it, and the checkpoint."""

    def at_boundary(self, at: Boundary) -> None:
        super().at_boundary(at)
        if at.step in self.steps and at.step not in self.checkpoints and not at.accumulating:
            batches = self.state.trainer.fit_loop.epoch_loop.total_batch_idx + 1
            self.checkpoints[at.step] = batches, copy.deepcopy(self.state.capture(at)[0])


class Fitted:
    """What a fit has left."""

    def __init__(self, data: Any, model: Trains, steps: tuple[int, ...] = (), start: Any = None, **more: Any) -> None:
        options = {"max_epochs": 3, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(**{**options, "enable_model_summary": False, **more})
        install(trainer)
        self.session = Keeps(TrainerState(trainer), steps)
        trainer.callbacks.insert(0, SessionHooks(self.session))  # type: ignore[attr-defined]
        trainer.fit(model, data, ckpt_path=start)
        self.trainer, self.seen, self.order = trainer, model.seen, model.order
        self.checkpoints = self.session.checkpoints
        self.end = [model.state_dict(), *(each.state_dict() for each in trainer.optimizers)]


def fitted(kind: str, num_workers: int = 0, noise: bool = True, **more: Any) -> Fitted:
    pl.seed_everything(1, verbose=False)
    return Fitted(Loaders(kind, num_workers, noise), Trains(), **more)


def resumed_equals_straight(
    tmp_path: Path, kind: str, num_workers: int = 0, steps: tuple[int, ...] = STEPS, **more: Any
) -> None:
    straight = fitted(kind, num_workers, steps=steps, **more)
    assert set(straight.checkpoints) == {step for step in steps if step < straight.trainer.global_step}
    for step, (batches, checkpoint) in straight.checkpoints.items():
        path = tmp_path / f"{step}.ckpt"
        torch.save(checkpoint, path)
        resumed = fitted(kind, num_workers, start=str(path), **more)
        rest = {batch: seen for batch, seen in straight.seen.items() if batch >= batches}
        assert resumed.seen == rest, f"losses and batches after step {step}"
        assert equal(resumed.end, straight.end), f"weights after step {step}"


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_of_the_users_own_resumes_exactly(tmp_path: Path, kind: str) -> None:
    resumed_equals_straight(tmp_path, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_of_the_users_own_resumes_exactly_after_every_step(tmp_path: Path, kind: str) -> None:
    resumed_equals_straight(tmp_path, kind, steps=ALL_STEPS)


@pytest.mark.parametrize("kind", WITH_WORKERS)
def test_a_loader_with_workers_resumes_exactly(tmp_path: Path, kind: str) -> None:
    resumed_equals_straight(tmp_path, kind, num_workers=2, steps=(7, 10))


def test_samples_that_are_no_batches_resume_exactly(tmp_path: Path) -> None:
    resumed_equals_straight(tmp_path, "one by one", max_epochs=1, steps=(3, 40))


@pytest.mark.parametrize("kind", ["shuffled", "own state", "own state, no length"])
def test_accumulated_batches_are_resumed_exactly(tmp_path: Path, kind: str) -> None:
    resumed_equals_straight(tmp_path, kind, accumulate_grad_batches=3)


class StopsAt(pl.Callback):
    """Stops training after so many batches, and saves as the end of training is saved."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batches

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        state = trainer.fit_loop.epoch_loop.session.state  # type: ignore[attr-defined]
        state.leave_epoch()
        trainer.should_stop = False  # as if the time was up: a resume would stop at once where a callback asked for it
        at = state.boundary("end")
        assert (at.step, at.batches) == (1, 3)
        torch.save(state.capture(at)[0], self.path)


@pytest.mark.parametrize("kind", ["shuffled", "own state", "own state, no length"])
def test_batches_of_a_step_that_was_never_made_come_again(tmp_path: Path, kind: str) -> None:
    straight = fitted(kind, noise=False, max_epochs=1)
    more: dict[str, Any] = {"noise": False, "accumulate_grad_batches": 3}
    stopped = fitted(kind, callbacks=[StopsAt(5, tmp_path / "x.ckpt")], **more)  # in the middle of the second step
    again = fitted(kind, start=str(tmp_path / "x.ckpt"), **more)
    assert stopped.order == straight.order[:5]
    assert again.order[:4] == straight.order[3:]


@pytest.mark.parametrize("kind", ["shuffled", "seeded", "own state", "torchdata shuffled", "stream"])
def test_several_resumes_in_one_epoch_are_exact(tmp_path: Path, kind: str) -> None:
    straight, start = fitted(kind), None
    for step in (9, 11, 12):
        checkpoint = fitted(kind, steps=(step,), start=start).checkpoints[step][1]
        start = str(tmp_path / f"{step}.ckpt")
        torch.save(checkpoint, start)
    last = fitted(kind, start=start)
    assert last.seen == {batch: straight.seen[batch] for batch in range(12, 21)}
    assert equal(last.end, straight.end)


@pytest.mark.parametrize("kind", ["shuffled", "own state", "torchdata shuffled"])
def test_an_epoch_that_a_limit_ends_is_resumed_exactly(tmp_path: Path, kind: str) -> None:
    resumed_equals_straight(tmp_path, kind, limit_train_batches=4, max_epochs=5)
