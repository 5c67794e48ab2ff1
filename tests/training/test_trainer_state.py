"""A checkpoint says where in its epoch training stands, and training stands there again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.resumes import BASE
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


def test_somebody_elses_checkpoint_begins_its_epoch_anew(app: App, tmp_path: Path) -> None:
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
