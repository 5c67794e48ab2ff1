"""What looks after runs and their storage says what it found, and ends with a status to act on."""

from collections.abc import Callable
from pathlib import Path

import pytest

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


def test_a_pruned_run_goes_on(app: App, storage: str) -> None:
    assert fit(app, storage, 2, "--checkpoints.every_n_steps=2").status == 0
    assert app("prune", "--run_dir", storage, "--keep_last=1").status == 0
    assert steps(RunDir(storage)) == [14]
    assert "resumed at step 14" in fit(app, storage, 3).err
    assert app("verify", "--run_dir", storage).status == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prune", "--run_dir=runs/none"), "keep_last"),
        (("prune", "--run_dir=runs/none", "--keep_last=0"), "keep_last=0 must be >= 1"),
        (("prune", "--run_dir=runs/none", "--keep_last=1"), "has no good checkpoint"),
        (("prune", "--run_dir=s3://pipeline-tests-no-such-bucket/x", "--keep_last=1"), "has no good checkpoint"),
        (("verify", "--run_dir=runs/none"), "has no checkpoint"),
        (("verify",), "run_dir"),
        (("probe",), "url"),
        (("probe", "runs", "--megabytes=0"), "megabytes=0: allowed are 1 and more"),
        (("probe", "runs", "--megabytes=x"), "megabytes"),
        (("probe", "nonsense://x"), "nonsense"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_a_mistake_gets_one_clear_message(app: App, arguments: tuple[str, ...], said: str) -> None:
    ended = app(*arguments)
    assert ended.status == 2, ended.text
    assert said in ended.err
    assert "Traceback" not in ended.text
    assert not ended.out


def test_a_folder_that_may_not_be_read_is_the_user_s_to_mend(app: App, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file in the place of the folder")
    for arguments in (("verify",), ("prune", "--keep_last=1")):
        ended = app(*arguments, "--run_dir", tmp_path / "run")
        assert ended.status == 2, ended.text
        assert "Traceback" not in ended.text


def test_a_probe_says_whether_a_storage_can_carry_a_run(app: App, storage: str) -> None:
    good = app("probe", storage, "--megabytes=2")
    assert good.status == 0
    assert "this store can carry a run" in good.out
    assert list(RunDir(storage).fs.find(RunDir(storage).path)) == [], "nothing is left there"
    bad = app("probe", "/sys/pipeline-probe", "--megabytes=1")
    assert bad.status == 2
    assert "mend what FAILED" in bad.out
