"""A checkpoint says where in its epoch training stands, and training stands there again."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pipeline.data.datamodule import DataModule
from pipeline.data.ledger import Ledger
from pipeline.errors import UserError
from pipeline.process.preemption import Preemption
from pipeline.run.goodput import Goodput
from pipeline.run.run_dir import RunDir
from pipeline.training.epoch_loop import install
from pipeline.training.hooks import SessionHooks
from pipeline.training.session import TrainingSession
from pipeline.training.state.run_state import RunState
from pipeline.training.stop_vote import StopVote
from pipeline.training.trainer import Trainer
from pipeline.training.trainer_state import TrainerState
from tests.support.commands import Ended
from tests.support.models import Regression, Rows
from tests.support.resumes import BASE, equal
from tests.support.runs import verified

App = Callable[..., Ended]


@pytest.mark.parametrize("change", ["--trainer.limit_train_batches=3", "--data.batch_size=3"])
def test_a_limit_that_the_epoch_has_passed_already_ends_it(app: App, tmp_path: Path, change: str) -> None:
    more = (*BASE, "--trainer.limit_train_batches=6", "--run_dir", tmp_path)
    assert app(*more, "--trainer.max_epochs=-1", "--trainer.max_steps=5").status == 0
    ended = app(*more, change)
    assert ended.status == 0, ended.err
    rows = verified(app("verify", "--run_dir", tmp_path))
    assert rows[0] == ["0", "80", "80", "0", "0", "ok", "limit_train_batches"]
    assert len(rows) == 3


def test_somebody_elses_checkpoint_restarts_its_epoch(app: App, tmp_path: Path) -> None:
    theirs = (
        *("--trainer.callbacks=ModelCheckpoint", f"--trainer.callbacks.dirpath={tmp_path / 'theirs'}"),
        *("--trainer.callbacks.every_n_train_steps=5", "--trainer.callbacks.save_top_k=-1"),
    )
    assert app(*BASE, *theirs, "--run_dir", tmp_path / "one", "--trainer.max_epochs=1").status == 0
    found = next((tmp_path / "theirs").glob("*step=5.ckpt"))
    ended = app(*BASE, "--ckpt_path", found, "--run_dir", tmp_path / "two", "--trainer.max_epochs=2")
    assert ended.status == 0, ended.err
    assert "checkpoint has no sample position: restarting its epoch from the beginning" in ended.err
    assert app("verify", "--run_dir", tmp_path / "two").status == 0


def records(run: Path) -> list[Any]:
    return [
        RunDir(str(run)).read_json(name.relative_to(run).as_posix()) for name in sorted(run.glob("checkpoints/*.json"))
    ]


def test_every_record_says_where_in_the_epoch_it_stands(app: App, tmp_path: Path) -> None:
    assert app(*BASE, "--run_dir", tmp_path).status == 0
    found = [(record["step"], record["epoch"], record["position"]) for record in records(tmp_path)]
    assert found[:8] == [(1, 0, 16), (2, 0, 32), (3, 0, 48), (4, 0, 64), (5, 0, 80), (6, 0, 96), (7, 1, 0), (8, 1, 16)]
    assert found[-1] == (21, 3, 0)


def test_where_another_batch_leaves_nothing_over_the_epoch_is_complete(app: App, tmp_path: Path) -> None:
    more = ("--data.drop_last=true", "--trainer.max_epochs=-1", "--run_dir", tmp_path)
    assert app(*BASE, *more, "--trainer.max_steps=5").status == 0
    # 80 of 101 are used, and the rest does not fill a batch of 32.
    ended = app(*BASE, *more, "--data.batch_size=32", "--trainer.max_steps=9")
    assert ended.status == 0, ended.err
    assert verified(app("verify", "--run_dir", tmp_path)) == [
        ["0", "80", "80", "0", "21", "ok", "complete"],
        ["1", "96", "96", "0", "5", "ok", "complete"],
        ["2", "32", "32", "0", "0", "ok", "max_steps"],
    ]


class AsksWhere(pl.Callback):
    """Notes the boundary after each batch, and a whole checkpoint after one of them."""

    def __init__(self, state: TrainerState, step: int) -> None:
        self.state, self.step = state, step
        self.stood: list[tuple[int, int, bool]] = []
        self.checkpoint: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        at = self.state.boundary("batch")
        self.stood.append((at.step, at.batches, at.accumulating))
        if at.step == self.step and not self.checkpoint:
            self.checkpoint = copy.deepcopy(self.state.capture(at)[0])  # the next step changes its tensors


def trained(accumulate: int = 1, **more: Any) -> tuple[TrainerState, AsksWhere]:
    """One epoch of 4 batches, with a whole checkpoint after step 2."""
    trainer = Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
    )
    install(trainer)
    data = DataModule(train=Rows(16), batch_size=4)
    state = TrainerState(trainer, {"seed": 7}, Ledger(data))
    asks = AsksWhere(state, 2)
    session = TrainingSession(state, StopVote(Preemption()), Goodput())
    trainer.callbacks[:0] = [SessionHooks(session), asks]  # type: ignore[attr-defined]
    trainer.fit(Regression(), data, **more)
    return state, asks


def test_a_boundary_says_what_is_done_and_whether_a_step_is_half_done() -> None:
    assert trained()[1].stood == [(0, 0, False), (1, 1, False), (2, 2, False), (3, 3, False)]
    assert trained(accumulate=3)[1].stood == [(0, 0, False), (0, 1, True), (0, 2, True), (1, 3, False)]


def test_a_captured_checkpoint_is_one_that_training_resumes_from(tmp_path: Path) -> None:
    straight, asks = trained()
    own = RunState.of_checkpoint(asks.checkpoint)
    assert own is not None
    assert (own.epoch, own.batches, own.position, own.facts) == (0, 2, 8, {"seed": 7})
    assert own.ledger is not None
    assert own.ledger[0]["consumed"][0] == 8
    torch.save(asks.checkpoint, tmp_path / "x.ckpt")
    resumed, again = trained(ckpt_path=str(tmp_path / "x.ckpt"))
    assert again.stood == [(2, 2, False), (3, 3, False)]
    assert not resumed.is_restoring
    assert equal(
        straight.trainer.lightning_module.state_dict(),
        resumed.trainer.lightning_module.state_dict(),
    )


def test_a_damaged_ledger_is_the_users_to_know(tmp_path: Path) -> None:
    _, asks = trained()
    del asks.checkpoint["pipeline"]["ledger"][0]["seed"]
    torch.save(asks.checkpoint, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="the checkpoint's ledger is damaged"):
        trained(ckpt_path=str(tmp_path / "x.ckpt"))
