"""Every callback that Lightning ships: a run that is resumed before, at and after its moment equals a straight one.

The epochs of 7 batches end at steps 7, 14 and 21. Most callbacks that act do so at the start or end of epoch 1.
"""

from collections.abc import Callable
from pathlib import Path

import lightning.pytorch.callbacks
import pytest

from tests.support.commands import Ended
from tests.support.resumes import BASE, PARTS, only, same_end
from tests.support.runs import logged

App = Callable[..., Ended]
LOGGED = ("train_loss_step", "train_loss_epoch", "train_mean", "train_max", "val_loss")
SWA = ("swa_lrs=0.01", "swa_epoch_start=2")
PRUNING = ("pruning_fn=l1_unstructured", "amount=0.2")
BACKBONED = "--model=tests.support.models.Backboned"
CASES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = {
    # Of each: the callback, its arguments, other flags, the steps to resume from, and those in the full grid only.
    "BackboneFinetuning": ("", ("unfreeze_backbone_at_epoch=1",), (BACKBONED,), (10, 17), (3, 7, 8, 14)),
    "BatchSizeFinder": ("", ("max_trials=1", "init_val=8"), (), (), (3, 7, 8)),
    "DeviceStatsMonitor": ("", ("cpu_stats=false",), (), (), (3, 7)),
    "EarlyStopping": ("", ("monitor=val_loss", "patience=1"), (), (), (7, 10, 14)),
    "EMAWeightAveraging": ("", ("decay=0.9",), (), (8,), (3, 7, 14, 17)),
    "GradientAccumulationScheduler": ("", ("scheduling={1: 2, 2: 3}",), (), (8,), (3, 7, 10, 12)),
    "LambdaCallback": ("", (), (), (), (3, 7)),
    "LearningRateFinder": ("", ("num_training_steps=20",), ("--model=tests.support.models.Regression",), (), (3, 7, 8)),
    "a finder at some epochs": (
        "tests.support.callbacks.MilestoneFinder",
        ("milestones=[1]", "num_training_steps=5"),
        ("--model=tests.support.models.Regression",),
        (8,),
        (3, 7, 14),
    ),
    "LearningRateMonitor": ("", (), (), (), (3, 7, 8)),
    "ModelCheckpoint": ("", ("monitor=val_loss", "save_top_k=2", "save_last=true"), (), (), (3, 7, 8, 14)),
    "ModelPruning": ("", PRUNING, (), (8,), (3, 7, 14, 17)),
    "without lottery tickets": (
        "ModelPruning",
        (*PRUNING, "use_lottery_ticket_hypothesis=false", "prune_on_train_epoch_end=false"),
        (),
        (),
        (3, 7, 8, 14, 17),
    ),
    "not made permanent": (
        "ModelPruning",
        (*PRUNING, "use_lottery_ticket_hypothesis=false", "make_pruning_permanent=false"),
        (),
        (14,),
        (3, 7, 8, 17),
    ),
    "ModelSummary": ("", (), (), (), (3, 7)),
    "OnExceptionCheckpoint": ("", ("dirpath=",), (), (), (3, 7)),
    "RichModelSummary": ("", (), (), (), (3, 7)),
    "RichProgressBar": ("", (), (), (8,), (3, 7, 14)),
    "SpikeDetection": ("", ("window=5", "rtol=100"), (), (8,), (3, 7)),
    "StochasticWeightAveraging": ("", SWA, ("--trainer.max_epochs=4", BACKBONED), (17,), (3, 7, 8, 10, 14, 21, 24)),
    "without batch norm": (
        "StochasticWeightAveraging",
        SWA,
        ("--trainer.max_epochs=4", "--model=tests.support.models.Regression"),
        (),
        (3, 7, 8, 10, 14, 17, 21, 24),
    ),
    "ThroughputMonitor": ("", ("batch_size_fn=tests.support.models.batch_rows",), (), (), (3, 7)),
    "Timer": ("", ("duration=00:01:00:00",), (), (7,), (3, 8)),
    "TQDMProgressBar": ("", (), (), (), (3, 7)),
    "WeightAveraging": ("", (), (), (), (3, 7, 8, 14, 17)),
}
GRID = [
    *(pytest.param(case, few, id=f"{case}-few") for case, (*_, few, _) in CASES.items() if few),
    *(pytest.param(case, all_, id=f"{case}-all", marks=pytest.mark.slow) for case, (*_, all_) in CASES.items()),
]
NOT_OF_A_FIT = {"BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"}
"""Bases of others, and what acts in predictions only."""


def test_no_callback_of_lightning_is_forgotten() -> None:
    assert set(lightning.pytorch.callbacks.__all__) - set(CASES) == NOT_OF_A_FIT


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "steps"), GRID)
def test_resumed_equals_straight_whatever_the_callback_does(
    app: App, tmp_path: Path, case: str, steps: tuple[int, ...]
) -> None:
    callback, arguments, more, *_ = CASES[case]
    options = [f"--trainer.callbacks.{each}" for each in arguments]
    if "dirpath=" in arguments:
        options = [f"--trainer.callbacks.dirpath={tmp_path}"]
    flags = (*BASE, *more, f"--trainer.callbacks+={callback or case}", *options)
    straight = tmp_path / "straight"
    ended = app(*flags, "--run_dir", straight)
    assert ended.status == 0, ended.err
    for step in steps:
        resumed = tmp_path / f"from-{step}"
        only(straight, resumed, step)
        ended = app(*flags, "--run_dir", resumed)
        assert ended.status == 0, ended.err
        same_end(straight, resumed, tuple(part for part in PARTS if part != "pipeline" or case != "Timer"))
        for name in LOGGED:
            before, after = logged(str(straight), name), logged(str(resumed), name)
            assert after == {at: value for at, value in before.items() if at in after}, (step, name)


def test_the_epoch_that_swa_adds_after_the_last_one_is_trained_after_a_resume(app: App, tmp_path: Path) -> None:
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    swa = (f"--trainer.callbacks.{each}" for each in SWA)
    flags = (*BASE, "--trainer.callbacks+=StochasticWeightAveraging", *swa, BACKBONED, "--trainer.max_epochs=3")
    assert app(*flags, "--run_dir", straight).status == 0
    only(straight, resumed, 21)
    ended = app(*flags, "--run_dir", resumed)
    assert ended.status == 0, ended.err
    same_end(straight, resumed, ("global_step", "state_dict"))
