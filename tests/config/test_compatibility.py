"""Another dataset or seed never slips into a run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.data.sample_ids import fingerprint
from tests.support.commands import Ended
from tests.support.models import Indexed, Mixed, Noisy, OwnGenerator, Rows
from tests.support.numbered_run import copied_run, fit, notes
from tests.support.runs import listing, verified

App = Callable[..., Ended]


@pytest.fixture
def run(app: App, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied_run(app, tmp_path_factory.getbasetemp(), tmp_path)


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
def test_another_dataset_or_seed_stops_a_resume_unless_allowed(app: App, run: Path, change: str, name: str) -> None:
    before = listing(str(run))
    ended = fit(app, run, 12, change)
    assert ended.status == 2, ended.err
    assert f"--allow_mismatch={name}" in ended.err
    assert listing(str(run)) == before, "nothing is lost"
    ended = fit(app, run, 12, change, "--allow_mismatch", name)
    assert ended.status == 0, ended.err
    assert f"mismatches with the resumed checkpoint: {name} " in ended.err
    # From now on it is the run's own.
    assert fit(app, run, 13, change).status == 0


def test_all_mismatches_that_stop_a_resume_are_named_at_once(app: App, run: Path) -> None:
    ended = fit(app, run, 12, "--seed_everything=43", "--data.seed=1", "--allow_mismatch=val_data")
    assert ended.status == 2
    assert "seed is 43, the checkpoint's 42" in ended.err
    assert "data_seed is 1, the checkpoint's 0" in ended.err
    assert fit(app, run, 12, "--seed_everything=43", "--data.seed=1", "--allow_mismatch=seed, data_seed").status == 0


def test_a_name_that_stops_no_resume_is_refused(app: App, run: Path) -> None:
    ended = fit(app, run, 12, "--allow_mismatch=world_size")
    assert ended.status == 2
    assert "allow_mismatch='world_size'" in ended.err
    assert "train_data, val_data, train_order, seed, data_seed" in ended.err


def test_a_harmless_mismatch_is_named_and_training_resumes(app: App, run: Path) -> None:
    ended = fit(app, run, 12, "--data.batch_size=20")
    assert ended.status == 0
    assert "mismatches with the resumed checkpoint: batch_size 16 -> 20; global_batch_size 16 -> 20" in ended.err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("--trainer.precision=64-true", "precision 32-true -> 64-true"),
        ("--trainer.gradient_clip_val=0.1", "gradient_clip_val none -> 0.1"),
        ("--trainer.deterministic=warn", "deterministic false -> warn"),
    ],
)
def test_what_a_step_computes_otherwise_from_now_on_is_named(app: App, run: Path, change: str, named: str) -> None:
    ended = fit(app, run, 12, change)
    assert ended.status == 0, ended.err
    assert f"mismatches with the resumed checkpoint: {named}" in ended.err


@pytest.mark.parametrize("change", ["--data.seed=1", "--data.train.init_args.n=30"])
def test_in_another_order_the_epoch_restarts_and_both_parts_are_proven(app: App, run: Path, change: str) -> None:
    name = "data_seed" if "seed" in change else "train_data"
    size = 101 if "seed" in change else 30
    assert fit(app, run, 40, change, f"--allow_mismatch={name}").status == 0
    ended = app("verify", "--run_dir", run)
    assert ended.status == 0, ended.out
    rows = verified(ended)
    assert rows[:3] == [
        ["0", "101", "101", "0", "0", "ok", "complete"],
        ["1", "48", "48", "0", "0", "ok", "mismatch"],
        ["1", str(size), str(size), "0", "0", "ok", "complete"],
    ]
    epoch = [index for note in notes(run) if note["epoch"] == 1 and note["step"] > 10 for index in note["indices"]]
    assert sorted(epoch) == list(range(size))


def test_a_second_resume_after_a_mismatch_keeps_both_accounts(app: App, run: Path) -> None:
    change = ("--data.seed=1", "--allow_mismatch=data_seed")
    assert fit(app, run, 13, *change).status == 0
    assert fit(app, run, 20, "--data.seed=1").status == 0
    ended = app("verify", "--run_dir", run)
    assert ended.status == 0, ended.out
    assert [row[-1] for row in verified(ended)] == ["complete", "mismatch", "complete", "max_steps"]


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
