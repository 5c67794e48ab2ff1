"""What models, callbacks and data modules of users do is resumed exactly too; what cannot be is refused or reported."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import Ended
from tests.support.resumes import BASE, GRID, equal, only, same_end, state
from tests.support.runs import logged, verified

App = Callable[..., Ended]
HABITS: dict[str, tuple[str, ...]] = {
    "two optimizers": ("--model=tests.support.callbacks.TwoOptimizers",),
    "steps of its own": ("--model=tests.support.callbacks.ManualSteps",),
    "a schedule by numpy": ("--model=tests.support.callbacks.NumpySchedule",),
    "a list of outputs": ("--model=tests.support.callbacks.ListsItsOutputs",),
    "metrics in wrappers": ("--model=tests.support.callbacks.WrappedMetrics",),
    "counting": ("--trainer.callbacks=tests.support.callbacks.Counts",),
    "averaging at start": ("--trainer.callbacks=tests.support.callbacks.AveragesAtStart",),
    "mixing up": ("--trainer.callbacks=tests.support.callbacks.MixesUp",),
    "scheduled accumulation": (
        "--trainer.callbacks=GradientAccumulationScheduler",
        "--trainer.callbacks.scheduling={0: 2, 1: 3}",
    ),
    "weight averaging": (
        "--trainer.callbacks=lightning.pytorch.callbacks.EMAWeightAveraging",
        "--trainer.callbacks.decay=0.9",
    ),
    "stochastic weight averaging": (
        *("--model=tests.support.callbacks.NumpySchedule", "--trainer.callbacks=StochasticWeightAveraging"),
        *("--trainer.callbacks.swa_lrs=0.01", "--trainer.callbacks.swa_epoch_start=1"),
    ),
    "two validations an epoch and patience": (
        *(
            "--trainer.val_check_interval=3",
            "--trainer.callbacks=EarlyStopping",
            "--trainer.callbacks.monitor=val_loss",
        ),
        "--trainer.callbacks.patience=4",
    ),
}


@pytest.mark.parametrize("every", GRID)
@pytest.mark.parametrize("habit", HABITS)
def test_resumed_after_any_step_equals_straight(app: App, tmp_path: Path, habit: str, every: bool) -> None:
    straight, more = tmp_path / "straight", HABITS[habit]
    ended = app(*BASE, *more, "--run_dir", straight)
    assert ended.status == 0, ended.err
    names = ("lowest", "highest", "running", "best", "epoch_start", "train_loss_step", "train_mean", "val_loss")
    last = state(str(straight))["global_step"]
    committed = sorted(int(path.stem[5:]) for path in straight.glob("checkpoints/*.json"))
    chosen = (committed[0], committed[len(committed) // 2], committed[-3], committed[len(committed) // 3])
    for step in dict.fromkeys(chosen[: None if every else 2]):
        run = tmp_path / f"from-{step}"
        only(straight, run, step)
        ended = app(*BASE, *more, "--run_dir", run)
        assert ended.status == 0, ended.err
        assert step < last
        same_end(straight, run)
        assert equal(state(str(straight))["callbacks"], state(str(run))["callbacks"])
        for name in names:
            # What belongs to the step at which an epoch ended is logged after the save.
            found, expected = logged(str(run), name), logged(str(straight), name)
            assert found == {at: expected[at] for at in found}, (name, step)
            if habit != "steps of its own":  # which Lightning logs by batches
                assert {at for at in expected if at >= step} <= set(found), (name, step)
    assert app("verify", "--run_dir", straight).status == 0


def test_a_batch_of_several_steps_does_not_jump_over_a_save(app: App, tmp_path: Path) -> None:
    more = (
        "--model=tests.support.callbacks.ManualSteps",
        "--model.n=1",
        "--model.steps=2",
        "--checkpoints.every_n_steps=4",
    )
    assert app(*BASE, *more, "--run_dir", tmp_path, "--trainer.max_epochs=1").status == 0
    assert sorted(int(path.stem[5:]) for path in tmp_path.glob("checkpoints/*.json")) == [5, 9, 13]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ("--model=tests.support.callbacks.HoldsAPath",),
            r"hyper_parameters\.folder is a pathlib\.\w+, which no checkpoint can hold.*save_hyperparameters\(ignore=",
        ),
        (
            ("--model=tests.support.callbacks.SavesAnArray",),
            r"mine\.array is a numpy\.ndarray, .*torch.from_numpy\(\)",
        ),
        (
            ("--trainer.callbacks=tests.support.callbacks.KeepsDates",),
            r"callbacks\.KeepsDates\.days\[0\] is a datetime\.date, .*isoformat\(\) of it from state_dict of Keeps",
        ),
    ],
)
def test_what_would_not_load_again_is_refused_before_an_epoch_is_lost(
    app: App, tmp_path: Path, flags: tuple[str, ...], words: str
) -> None:
    ended = app(*BASE, *flags, "--checkpoints.every_n_steps=null", "--run_dir", tmp_path)
    assert ended.status == 2
    assert re.search(words, ended.err), ended.err
    assert "epoch 1/3" not in ended.err
    assert not list(tmp_path.glob("checkpoints/*.json"))


def test_what_hooks_need_that_is_not_there_yet_is_asked_for_again_when_a_save_is_due(app: App, tmp_path: Path) -> None:
    saves = ("--model=tests.support.callbacks.SavesWhatAValidationFound", "--checkpoints.every_n_steps=null")
    ended = app(*BASE, *saves, "--trainer.num_sanity_val_steps=0", "--trainer.max_epochs=1", "--run_dir", tmp_path)
    assert ended.status == 0, ended.err
    assert state(str(tmp_path))["found"] == 7


def test_batches_that_are_none_are_not_used_and_the_ledger_says_so(app: App, tmp_path: Path) -> None:
    straight, more = (
        tmp_path / "straight",
        (
            *(
                "--data.collate_fn=tests.support.callbacks.now_and_then",
                "--data.train=tests.support.models.Rows",
                "--data.val=null",
            ),
            *("--model=tests.support.callbacks.NumpySchedule",),
        ),
    )
    assert app(*BASE, *more, "--run_dir", straight).status == 0
    ended = app("verify", "--run_dir", straight)
    assert ended.status == 0, ended.out
    withheld = [
        int(count) for count in re.findall(r"epoch \d: (\d+) samples were left out by the collate function", ended.out)
    ]
    assert withheld
    rows = verified(ended)
    assert sum(int(row[1]) - int(row[2]) for row in rows) == sum(int(row[4]) for row in rows) == sum(withheld)
    assert {row[-1] for row in rows} == {"complete"}
    only(straight, tmp_path / "again", sorted(int(path.stem[5:]) for path in straight.glob("checkpoints/*.json"))[4])
    assert app(*BASE, *more, "--run_dir", tmp_path / "again").status == 0
    same_end(straight, tmp_path / "again")


def test_a_loader_that_says_itself_that_it_is_shorter_fails_the_run(app: App, tmp_path: Path) -> None:
    ended = app(
        *BASE,
        "--data=tests.support.callbacks.Shorter",
        "--data.train=tests.support.models.Rows",
        "--run_dir",
        tmp_path,
    )
    assert ended.status == 2
    assert "5 samples were left out" in ended.err


@pytest.mark.parametrize("kind", ["own", "dict", "list", "combined"])
def test_a_data_module_with_loaders_of_its_own_trains_and_is_told_what_that_gives_up(
    app: App, tmp_path: Path, kind: str
) -> None:
    more = (
        "--data=tests.support.callbacks.BringsLoaders",
        "--data.train=tests.support.models.Rows",
        f"--data.kind={kind}",
    )
    ended = app(
        *BASE,
        "--model=tests.support.callbacks.TakesTheFirst",
        *more,
        "--run_dir",
        tmp_path,
        "--trainer.max_epochs=1",
    )
    assert ended.status == 0, ended.err
    assert ended.err.count("DataLoader of Rows: its samples are not accounted for") == 1
    assert "holds no ledger" in app("verify", "--run_dir", tmp_path).err


def test_a_finder_of_learning_rates_is_not_counted(app: App, tmp_path: Path) -> None:
    finder = (
        *("--trainer.callbacks=LearningRateFinder", "--trainer.callbacks.num_training_steps=5"),
        *("--model=tests.support.models.Regression", "--trainer.max_epochs=1"),
    )
    ended = app(*BASE, *finder, "--run_dir", tmp_path)
    assert ended.status == 0, ended.err
    assert verified(app("verify", "--run_dir", tmp_path)) == [["0", "101", "101", "0", "0", "ok", "complete"]]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--trainer.val_check_interval=50",), "val_check_interval"),
        (
            ("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_los"),
            "not logged by the model; logged are: val_loss",
        ),
        (("--trainer.accumulate_grad_batches=0",), "trainer.accumulate_grad_batches=0"),
    ],
)
def test_what_lightning_finds_late_is_one_message_too(
    app: App, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    ended = app(*BASE, *more, "--run_dir", tmp_path)
    assert ended.status == 2, ended.err
    assert words in ended.err
