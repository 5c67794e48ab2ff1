"""Epochs by weight, by class and in groups of lengths survive a kill on two ranks, bit for bit, and are proven."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.commands import Ended, torchrun
from tests.support.resumes import WEIGHTS, same_end

App = Callable[..., Ended]

FIT = (
    *("-m", "pipeline", "fit", "--model=tests.support.wished.Small", "--data=pipeline.data.DataModule"),
    *("--data.train=tests.support.wished.Uneven", "--data.val=tests.support.wished.Uneven"),
    *("--data.global_batch_size=16", "--trainer.max_epochs=2", "--trainer.enable_model_summary=false"),
    *("--checkpoints.every_n_steps=1", "--trainer.logger=false"),
)
WISHES = {
    "weights": ("--data.weights=weights", "--data.samples_per_epoch=90", "--data.num_workers=1"),
    "lengths": ("--data.group_by_length=true",),
    "classes": ("--data.balance=oversample",),
}


def verify(app: App, run: Path) -> str:
    ended = app("verify", "--run_dir", run)
    assert ended.status == 0, ended.text
    assert "every sample is accounted for" in ended.out, ended.out
    return ended.out


@pytest.mark.timeout(240)
@pytest.mark.parametrize("wish", ["weights", "lengths", pytest.param("classes", marks=pytest.mark.slow)])
def test_killed_in_an_epoch_on_two_ranks_it_ends_like_a_straight_run(app: App, tmp_path: Path, wish: str) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    ended = torchrun(2, *FIT, *WISHES[wish], "--run_dir", straight)
    assert ended.status == 0, ended.text
    ended = torchrun(2, *FIT, *WISHES[wish], "--run_dir", killed, "--model.die_at=4")
    assert ended.status != 0
    assert (killed / "checkpoints" / "step-00000003.json").exists(), ended.text
    ended = torchrun(2, *FIT, *WISHES[wish], "--run_dir", killed)
    assert ended.status == 0, ended.text
    assert "resumed at step 3" in ended.err
    same_end(straight, killed, WEIGHTS)
    assert verify(app, straight).splitlines()[-6:] == verify(app, killed).splitlines()[-6:]
    if wish == "lengths":
        return
    # What an order was drawn from is what verify computes with: without it, or with another, nothing is proven.
    (kept,) = (killed / "orders").iterdir()
    np.save(kept, np.load(kept)[::-1])
    ended = app("verify", "--run_dir", killed)
    assert "which samples it should have used: the numbers are not those that it was drawn from" in ended.out
    kept.unlink()
    ended = app("verify", "--run_dir", killed)
    assert "unproven" in ended.out
    assert "every sample is accounted for" not in ended.out


@pytest.mark.timeout(180)
def test_in_the_middle_of_an_epoch_the_number_of_ranks_may_change(app: App, tmp_path: Path) -> None:
    ended = torchrun(2, *FIT, *WISHES["lengths"], "--run_dir", tmp_path, "--trainer.max_steps=3")
    assert ended.status == 0, ended.text
    shown = app("explain_resume", "--run_dir", tmp_path, "--world_size", "1")
    assert shown.status == 0, shown.text
    assert "epoch 0, 48 of its samples are used" in shown.out
    assert "REFUSED" not in shown.out
    ended = app(*FIT[2:], *WISHES["lengths"], "--run_dir", tmp_path)
    assert ended.status == 0, ended.text
    assert "resumed at step 3" in ended.err
    table = verify(app, tmp_path)
    assert [line.split()[1:3] for line in table.splitlines() if line.lstrip().startswith(("0 ", "1 "))] == [
        ["101", "101"]
    ] * 2


def test_the_report_judges_such_a_ledger_too(app: App, tmp_path: Path) -> None:
    ended = app(*FIT[2:], *WISHES["classes"], "--run_dir", tmp_path, "--trainer.max_steps=5")
    assert ended.status == 0, ended.text
    ended = app("report", "--run_dir", tmp_path)
    assert ended.status == 0, ended.text
    assert "Every training sample is accounted for" in (tmp_path / "report.html").read_text()
