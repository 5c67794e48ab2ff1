"""The logged metrics that somebody acts on: one that is never logged is one sentence, as early as that is certain."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from pipeline.run.run_dir import RunDir
from pipeline.training.monitored_metric import MonitoredMetric, not_logged, warn_of_a_near_miss
from pipeline.training.save_policy import Boundary
from tests.support.commands import Ended, torchrun
from tests.support.models import Regression
from tests.support.runs import App, fit

START, MIDDLE = Boundary(0, 0, 0, "epoch"), Boundary(3, 0, 3, "batch")
OVER = Boundary(7, 1, 0, "epoch")


@dataclass
class State:
    """What was logged, and what rank 0 says of it."""

    known: dict[str, Any] = field(default_factory=dict)
    rank_0: bool | None = None
    validates: bool = True
    summed: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, Any]:
        return self.known

    def broadcast(self, value: bool) -> bool:
        return value if self.rank_0 is None else self.rank_0

    @property
    def trainer(self) -> Any:
        results = {name: SimpleNamespace(meta=SimpleNamespace(name=name)) for name in self.summed}
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(_results=results))
        return SimpleNamespace(fit_loop=loop, callbacks=[], lightning_module=pl.LightningModule(), world_size=1)


def metric(state: State, name: str | None = "val_loss") -> MonitoredMetric:
    found = MonitoredMetric(state, name, "min")  # type: ignore[arg-type]
    assert found.missing(START, None) is None, "nothing is trained yet"
    return found


def test_its_value_is_what_was_logged_last() -> None:
    found = metric(State({"val_loss": torch.tensor(0.25)})).value
    assert found is not None
    assert (found.name, found.value) == ("val_loss", 0.25)
    assert metric(State()).value is None
    assert metric(State({"val_loss": 1.0}), None).value is None


def test_one_that_is_not_logged_is_named_with_those_that_are_the_nearest_first() -> None:
    found = metric(State({"acc": 0.5, "loss": 1.0, "val_acc": 1.0}))
    found.validated()
    assert found.missing(OVER, 7) == (
        "checkpoints.monitor='val_loss' is not logged by the model; logged are: loss, val_acc, acc. Step 7 is saved: "
        "fix the name and start again"
    )
    assert not_logged("x", "y", ()) == "x='y' is not logged by the model; logged are: none"


def test_the_names_of_several_validation_sets_are_explained() -> None:
    text = not_logged("x", "val_loss", ["train_loss", "val_loss/dataloader_idx_0", "val_loss/dataloader_idx_1"])
    assert text.endswith("has a name of its own: choose one, such as 'val_loss/dataloader_idx_0'")


def test_it_is_missed_as_soon_as_that_is_certain() -> None:
    assert metric(State()).missing(MIDDLE, None) is None, "no validation has ended"
    assert metric(State()).missing(OVER, None) is None, "this epoch had none"
    assert "Nothing is saved yet" in str(metric(State(validates=False)).missing(OVER, None)), "there is none"
    found = metric(State())
    found.validated()
    assert found.missing(MIDDLE, None) is not None


def test_what_comes_at_an_epochs_end_is_waited_for() -> None:
    found = metric(State(summed=["train_acc"]), "train_acc")
    found.validated()
    assert found.missing(MIDDLE, None) is None
    assert found.missing(OVER, None) is not None
    assert metric(State(validates=False), "train_acc").missing(MIDDLE, None) is None


def test_a_metric_that_rank_0_alone_logs_is_logged() -> None:
    found = metric(State(rank_0=True, validates=False))
    assert found.missing(OVER, None) is None
    assert metric(State({"val_loss": 1.0}, validates=False)).missing(OVER, None) is None
    assert metric(State(validates=False), None).missing(OVER, None) is None


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("val_mse", ["val/mse", "x"], True),
        ("val_lss", ["val_loss"], True),
        ("val_loss", ["val_loss"], False),
        ("train_loss", ["val_loss"], False),
        ("val_loss", [], False),
        (None, ["None"], False),
    ],
)
def test_one_that_looks_misspelt_is_warned_of_before_the_first_epoch(
    caplog: pytest.LogCaptureFixture, name: str | None, known: list[str], said: bool
) -> None:
    warn_of_a_near_miss(name, known)
    assert [f"has logged {known[0]!r}" in each.message for each in caplog.records] == [True] * said


def test_the_trial_validation_shows_a_misspelt_one(app: App, tmp_path: Path) -> None:
    ended = fit(app, str(tmp_path), 1, "--checkpoints.monitor=val_los", "--trainer.num_sanity_val_steps=1")
    assert ended.status == 2
    assert ended.err.index("the validation that was tried has logged 'val_loss'") < ended.err.index("is not logged by")


class LogsItsPart(Regression):
    """Logs what each rank has found of its own samples."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("part", float(self.trainer.global_rank), sync_dist=False)
        self.log("whole", float(self.trainer.global_rank), sync_dist=True)


@pytest.mark.parametrize(("name", "said"), [("part", 1), ("whole", 0)])
def test_a_value_of_rank_0s_samples_alone_is_warned_of_once(tmp_path: Path, name: str, said: int) -> None:
    model = ("--model=tests.training.test_monitored_metric.LogsItsPart", "--data=pipeline.data.DataModule")
    rows = ("--data.train=tests.support.models.Rows", "--data.val=tests.support.models.Rows", "--data.batch_size=16")
    more = (f"--checkpoints.monitor={name}", "--trainer.max_epochs=2", "--run_dir", tmp_path)
    ended = torchrun(2, "-m", "pipeline", "fit", *model, *rows, *more, timeout=60)
    assert ended.status == 0, ended.text
    assert ended.text.count("is of rank 0's samples alone: 0 there, 1 on other ranks") == said


class LogsAtEpochEnds(Regression):
    """Logs what is known at the end of an epoch alone."""

    def on_train_epoch_end(self) -> None:
        self.log("mine", 1.0)


class ByPlateau(Regression):
    """Lowers its learning rate by a metric."""

    def __init__(self, monitor: str) -> None:
        super().__init__()
        self.monitor = monitor

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": self.monitor}}


def errors(ended: Ended) -> Iterator[str]:
    assert ended.status == 2, ended.err
    assert "Traceback" not in ended.err
    return (line for line in ended.err.splitlines() if line.startswith("error"))


@pytest.mark.parametrize("name", ["train_loss_epoch", "mine"])
def test_a_save_within_an_epoch_misses_nothing_that_its_end_logs(name: str, app: App, tmp_path: Any) -> None:
    model = ("--model=tests.training.test_monitored_metric.LogsAtEpochEnds", "--checkpoints.every_n_steps=2")
    if name == "train_loss_epoch":
        model = ("--model=tests.support.models.Thorough", *model[1:])
    ended = fit(app, str(tmp_path), 1, *model, f"--checkpoints.monitor={name}", "--trainer.val_check_interval=3")
    assert ended.status == 0, ended.err


def test_a_name_that_is_misspelt_is_found_by_the_first_validation_within_an_epoch(app: App, tmp_path: Any) -> None:
    ended = fit(app, str(tmp_path), 9, "--checkpoints.monitor=val_los", "--trainer.val_check_interval=3")
    (error,) = errors(ended)
    assert "logged are: val_loss, train_loss. Nothing is saved yet: fix the name" in error
    assert not RunDir(str(tmp_path)).steps()["json"]


def test_all_who_ask_for_what_is_not_logged_are_named_at_once(app: App, tmp_path: Any) -> None:
    stopping = ("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_los")
    model = ("--model=tests.training.test_monitored_metric.ByPlateau", "--model.monitor=val_acc")
    found = list(errors(fit(app, str(tmp_path), 2, *stopping, *model)))
    assert [each.partition(" is not logged")[0] for each in found] == [
        "error: EarlyStopping.monitor='val_los'",
        "error: ReduceLROnPlateau's monitor='val_acc'",
    ]
    assert all("; logged are: val_loss, " in each for each in found)
    (error,) = errors(fit(app, str(tmp_path), 2, *model))
    assert error.startswith(
        "error: ReduceLROnPlateau's monitor='val_acc' is not logged by the model; logged are: val_l"
    )
