"""Another dataset or seed never slips into a run, and explain_resume says beforehand what a start would do."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.sample_ids import fingerprint
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.models import Indexed, Mixed, Noisy, OwnGenerator, Rows
from tests.support.runs import listing, verified

App = Callable[..., Ended]
BASE = (
    *(
        "fit",
        "--model=tests.support.killable.Noting",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.support.models.Indexed",
    ),
    *("--data.val=tests.support.models.Rows", "--data.batch_size=16", "--trainer.enable_model_summary=false"),
    *("--checkpoints.every_n_steps=1",),
)


@pytest.fixture
def run(app: App, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stands at step 10: in epoch 1 at position 48."""
    trained = tmp_path_factory.getbasetemp() / "drift" / "run"
    if not trained.exists():
        trained.parent.mkdir()
        assert fit(app, trained, 10).status == 0
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def fit(app: App, run: Path, steps: int, *more: str) -> Ended:
    return app(
        *(*BASE, "--run_dir", run, f"--model.notes={run.parent / 'notes'}", "--trainer.max_epochs=-1"),
        *(f"--trainer.max_steps={steps}", *more),
    )


def notes(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.parent / "notes-0.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("--seed_everything=43", "seed"),
        ("--data.seed=1", "data_seed"),
        ("--data.train.init_args.n=102", "train_data"),
        ("--data.train.init_args.shift=0.001", "train_data"),
        ("--data.train=tests.support.models.Rows", "train_data"),
        ("--data.val=tests.support.models.Indexed", "val_data"),
        ("--data.val=null", "val_data"),
    ],
)
def test_another_dataset_or_seed_stops_a_resume_unless_it_is_meant(app: App, run: Path, change: str, name: str) -> None:
    before = listing(str(run))
    ended = fit(app, run, 12, change)
    assert ended.status == 2, ended.err
    assert f"--allow_mismatch={name}" in ended.err
    assert listing(str(run)) == before, "nothing is lost"
    ended = fit(app, run, 12, change, "--allow_mismatch", name)
    assert ended.status == 0, ended.err
    assert f"different from when the checkpoint was saved: {name} " in ended.err
    # From now on it is the run's own.
    assert fit(app, run, 13, change).status == 0


def test_all_differences_that_stop_a_resume_are_named_at_once(app: App, run: Path) -> None:
    ended = fit(app, run, 12, "--seed_everything=43", "--data.seed=1", "--allow_mismatch=val_data")
    assert ended.status == 2
    assert "seed is 43, the checkpoint's 42" in ended.err
    assert "data_seed is 1, the checkpoint's 0" in ended.err
    assert fit(app, run, 12, "--seed_everything=43", "--data.seed=1", "--allow_mismatch=seed, data_seed").status == 0


def test_a_name_that_stops_no_resume_is_refused(app: App, run: Path) -> None:
    ended = fit(app, run, 12, "--allow_mismatch=world_size")
    assert ended.status == 2
    assert "allow_mismatch='world_size'" in ended.err
    assert "train_data, val_data, seed, data_seed" in ended.err


def test_a_harmless_difference_is_named_and_training_goes_on(app: App, run: Path) -> None:
    ended = fit(app, run, 12, "--data.batch_size=20")
    assert ended.status == 0
    assert "different from when the checkpoint was saved: batch_size 16 -> 20; global_batch_size 16 -> 20" in ended.err


@pytest.mark.parametrize("change", ["--data.seed=1", "--data.train.init_args.n=30"])
def test_in_another_order_the_epoch_begins_anew_and_both_parts_are_proven(app: App, run: Path, change: str) -> None:
    name = "data_seed" if "seed" in change else "train_data"
    size = 101 if "seed" in change else 30
    assert fit(app, run, 40, change, f"--allow_mismatch={name}").status == 0
    ended = app("verify", "--run_dir", run)
    assert ended.status == 0, ended.out
    rows = verified(ended)
    assert rows[:3] == [
        ["0", "101", "101", "0", "0", "ok", "complete"],
        ["1", "48", "48", "0", "0", "ok", "drift"],
        ["1", str(size), str(size), "0", "0", "ok", "complete"],
    ]
    epoch = [index for note in notes(run) if note["epoch"] == 1 and note["step"] > 10 for index in note["indices"]]
    assert sorted(epoch) == list(range(size))


def test_a_second_resume_after_drift_keeps_both_accounts(app: App, run: Path) -> None:
    change = ("--data.seed=1", "--allow_mismatch=data_seed")
    assert fit(app, run, 13, *change).status == 0
    assert fit(app, run, 20, "--data.seed=1").status == 0
    ended = app("verify", "--run_dir", run)
    assert ended.status == 0, ended.out
    assert [row[-1] for row in verified(ended)] == ["complete", "drift", "complete", "max_steps"]


def test_fingerprints_tell_datasets_apart_and_stay_the_same(app: App) -> None:
    assert fingerprint(Rows()) == fingerprint(Rows())
    kinds = {fingerprint(dataset) for dataset in (Rows(), Rows(102), Indexed(), Indexed(shift=0.1), Noisy(), Mixed())}
    assert len(kinds) == 6
    assert {kind for kind, _ in kinds} == {"samples"}
    own = Rows()
    own.fingerprint = "version 3"  # type: ignore[attr-defined]
    assert fingerprint(own) == ("own", "version 3")
    own.fingerprint = lambda: 4  # type: ignore[attr-defined]
    assert fingerprint(own) == ("own", "4")
    assert fingerprint(OwnGenerator()) == fingerprint(OwnGenerator())
    assert fingerprint(OwnGenerator())[0] == "length"
    assert fingerprint(Rows(0)) == fingerprint(Rows(0))


def test_explain_resume_says_what_the_resume_then_does(app: App, run: Path) -> None:
    ended = app("explain_resume", "--run_dir", run)
    assert ended.status == 0, ended.err
    assert "checkpoint     step 10\n" in ended.out
    assert "its bytes are compared with its record when a fit starts" in ended.out
    assert "differences    none in data, seeds" in ended.out
    assert "position       epoch 1, 48 of its samples are used" in ended.out
    said = [int(index) for index in re.findall(r"rank 0: ([\d, ]+), \.\.\.", ended.out)[0].split(", ")]
    assert fit(app, run, 11).status == 0
    assert notes(run)[-1]["indices"][: len(said)] == said


def test_explain_resume_for_another_world(app: App, run: Path) -> None:
    alone = app("explain_resume", "--run_dir", run, "--world_size=1").out
    ended = app("explain_resume", "--run_dir", run, "--world_size=3")
    assert "difference     world_size 1 -> 3" in ended.out
    assert "difference     global_batch_size 16 -> 48" in ended.out
    ranks = [[int(i) for i in line.split(", ")] for line in re.findall(r"rank \d: ([\d, ]+), \.\.\.", ended.out)]
    assert len(ranks) == 3
    together = [index for turn in zip(*ranks, strict=True) for index in turn]
    order = [int(i) for i in re.findall(r"rank 0: ([\d, ]+), \.\.\.", alone)[0].split(", ")]
    assert together[: len(order)] == order, "all ranks together go on in the same order"


def test_explain_resume_says_why_newer_checkpoints_are_passed_over(app: App, run: Path) -> None:
    path = RunDir(str(run))
    (run / RunDir.record(10)).unlink()
    newest = run / RunDir.checkpoint(9)
    newest.write_bytes(newest.read_bytes()[:-10])
    (run / RunDir.record(8)).write_text("{")
    ended = app("explain_resume", "--run_dir", run)
    assert ended.status == 0
    assert "passed over    step 10: it has no commit record: its save did not finish" in ended.out
    assert re.search(r"passed over    step 9: its file has \d+ bytes, its record says \d+ bytes", ended.out)
    assert "passed over    step 8: its commit record is torn or foreign" in ended.out
    assert "checkpoint     step 7" in ended.out
    assert path.read_json(RunDir.record(7)) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--data.seed=5", "difference     data_seed 0 -> 5  REFUSED unless --allow_mismatch=data_seed"),
        ("--data.seed=5", "begins epoch 1 anew, for its order is another one (101 samples)"),
        ("--data.batch_size=8", "difference     batch_size 16 -> 8\n"),
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
        (("--world_size=0",), "world_size=0: allowed are 1 and more"),
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
    assert "where in its data is not known" in ended.out
    first = app("explain_resume", *BASE[1:], "--model.notes=x", "--run_dir", tmp_path / "none")
    assert first.status == 0
    assert "none: training would begin at step 0" in first.out
