"""explain_resume shows beforehand what a start would do, and does nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.numbered_run import BASE, copied_run, fit, notes
from tests.support.runs import listing

App = Callable[..., Ended]


@pytest.fixture
def run(app: App, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_run(app, tmp_path_factory.getbasetemp(), tmp_path)


def test_explain_resume_says_what_the_resume_then_does(app: App, run: Path) -> None:
    ended = app("explain_resume", "--run_dir", run)
    assert ended.status == 0, ended.err
    assert "checkpoint     step 10\n" in ended.out
    assert "a fit compares its bytes with its record when it starts" in ended.out
    assert "mismatches     none in data, seeds" in ended.out
    assert "position       epoch 1, 48 of its samples are used" in ended.out
    said = [int(index) for index in re.findall(r"rank 0: ([\d, ]+), \.\.\.", ended.out)[0].split(", ")]
    assert fit(app, run, 11).status == 0
    assert notes(run)[-1]["indices"][: len(said)] == said


def test_explain_resume_says_from_where_the_last_attempt_had_resumed(app: App, run: Path) -> None:
    path = RunDir(str(run))
    assert "before " not in app("explain_resume", "--run_dir", run).out
    path.write_json(RunDir.attempt(2), {"attempt": 2, "first_step": 7, "resumed_from": "storage"})
    path.write_json(RunDir.attempt(3), {"attempt": 3, "first_step": 9, "resumed_from": "memory"})
    path.write_json(RunDir.attempt(4), {"attempt": 4, "first_step": None, "resumed_from": ["nonsense"]})
    assert "before         attempt 3 resumed at step 9 from memory\n" in app("explain_resume", "--run_dir", run).out


def test_explain_resume_for_another_world(app: App, run: Path) -> None:
    alone = app("explain_resume", "--run_dir", run, "--world_size=1").out
    ended = app("explain_resume", "--run_dir", run, "--world_size=3")
    assert "mismatch       world_size 1 -> 3" in ended.out
    assert "mismatch       global_batch_size 16 -> 48" in ended.out
    ranks = [[int(i) for i in line.split(", ")] for line in re.findall(r"rank \d: ([\d, ]+), \.\.\.", ended.out)]
    assert len(ranks) == 3
    together = [index for turn in zip(*ranks, strict=True) for index in turn]
    order = [int(i) for i in re.findall(r"rank 0: ([\d, ]+), \.\.\.", alone)[0].split(", ")]
    assert together[: len(order)] == order, "all ranks together continue in the same order"


def test_explain_resume_says_why_newer_checkpoints_are_skipped(app: App, run: Path) -> None:
    path = RunDir(str(run))
    (run / RunDir.record(10)).unlink()
    newest = run / RunDir.checkpoint(9)
    newest.write_bytes(newest.read_bytes()[:-10])
    (run / RunDir.record(8)).write_text("{")
    ended = app("explain_resume", "--run_dir", run)
    assert ended.status == 0
    assert "skipped        step 10: it has no commit record: its save did not finish" in ended.out
    assert re.search(r"skipped        step 9: its file has \d+ bytes, its record says \d+ bytes", ended.out)
    assert "skipped        step 8: its commit record is torn or foreign" in ended.out
    assert "checkpoint     step 7" in ended.out
    assert path.read_json(RunDir.record(7)) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--data.seed=5", "mismatch       data_seed 0 -> 5  REFUSED unless --allow_mismatch=data_seed"),
        ("--data.seed=5", "restarts epoch 1 from its beginning: its order has changed (101 samples)"),
        ("--data.batch_size=8", "mismatch       batch_size 16 -> 8\n"),
        ("--data.train.init_args.n=20", "REFUSED unless --allow_mismatch=train_data"),
        ("--seed_everything=1", "REFUSED unless --allow_mismatch=seed\n"),
    ],
)
def test_explain_resume_shows_what_a_changed_configuration_would_do(
    app: App, run: Path, change: str, words: str
) -> None:
    before = listing(str(run))
    ended = app("explain_resume", "--run_dir", run, change)
    assert ended.status == 0
    assert words in ended.out
    assert listing(str(run)) == before, "nothing is written"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--world_size=0",), "world_size=0 must be >= 1"),
        (("--world_size=102",), "data.val has 101 samples for 102 processes"),
        (("--data.batch_size=null", "--data.global_batch_size=10", "--world_size=4"), "does not divide by 4"),
    ],
)
def test_explain_resume_names_what_would_be_refused(app: App, run: Path, more: tuple[str, ...], words: str) -> None:
    ended = app("explain_resume", "--run_dir", run, *more)
    assert ended.status == 2
    assert words in ended.err


def test_explain_resume_of_nothing_and_of_foreign_data(app: App, tmp_path: Path) -> None:
    ended = app("explain_resume", "--run_dir", tmp_path / "none")
    assert ended.status == 2
    assert "nothing was trained there" in ended.err
    foreign = (
        "--model=tests.support.models.Regression",
        "--data=tests.support.models.Own",
        "--trainer.max_epochs=1",
    )
    assert app("fit", *foreign, "--run_dir", tmp_path / "foreign").status == 0
    ended = app("explain_resume", "--run_dir", tmp_path / "foreign")
    assert ended.status == 0
    assert "its position in the data is not known" in ended.out
    first = app("explain_resume", *BASE[1:], "--model.notes=x", "--run_dir", tmp_path / "none")
    assert first.status == 0
    assert "none: training would begin at step 0" in first.out


def test_explain_resume_names_what_changes_the_numbers_and_what_becomes_of_weights(app: App, run: Path) -> None:
    ended = app("explain_resume", "--run_dir", run, "--trainer.gradient_clip_val=0.5", "--weights=elsewhere.ckpt")
    assert ended.status == 0, ended.err
    assert "mismatch       gradient_clip_val none -> 0.5" in ended.out.lower()
    assert "weights        elsewhere.ckpt: not used: the run has a checkpoint to resume from" in ended.out
