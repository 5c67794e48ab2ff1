"""Pruning deletes what need not be kept, and the run resumes."""

from collections.abc import Callable

from pipeline.run.run_dir import RunDir
from tests.support.checkpoints import commit, steps
from tests.support.commands import Ended
from tests.support.runs import fit

App = Callable[..., Ended]


def test_pruning_by_hand_lists_first_and_deletes_then(app: App, storage: str) -> None:
    run = RunDir(storage)
    for step in (1, 2, 3):
        commit(run, step)
    listed = app("prune", "--run_dir", storage, "--keep_last=1", "--dry_run=true")
    assert (listed.status, listed.out.splitlines()[-2:]) == (
        0,
        ["would be deleted: 2 of 3 checkpoints, 3 bytes", "kept: 1 checkpoint, the newest at step 3"],
    )
    assert steps(run) == [1, 2, 3]
    assert app("prune", "--run_dir", storage, "--keep_last=1", "--keep_every_n_steps=2").status == 0
    assert steps(run) == [2, 3]
    assert app("prune", "--run_dir", storage, "--keep_last=1").status == 0
    assert steps(run) == [3]


def test_a_pruned_run_resumes(app: App, storage: str) -> None:
    assert fit(app, storage, 2, "--checkpoints.every_n_steps=2").status == 0
    assert app("prune", "--run_dir", storage, "--keep_last=1").status == 0
    assert steps(RunDir(storage)) == [14]
    assert "resumed at step 14" in fit(app, storage, 3).err
    assert app("verify", "--run_dir", storage).status == 0
