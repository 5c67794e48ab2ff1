"""The page on Lightning's habits: each test that it names exists, and what no other test shows is shown here."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.commands import DIGITS, ROOT, Ended
from tests.support.models import Regression, WithoutHyperparameters

App = Callable[..., Ended]
PAGE = (ROOT / "docs/lightning_habits.md").read_text()


class SkipsBatches(WithoutHyperparameters):
    """Returns None for every second batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class SkipsAll(WithoutHyperparameters):
    """Returns None for every batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class LogsInTraining(WithoutHyperparameters):
    """Logs the same loss in each epoch, and has no validation."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("train_loss", 1.0, on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)


class Backboned(WithoutHyperparameters):
    """Takes a module as an argument, which is no hyperparameter."""

    def __init__(self, backbone: nn.Module, rate: float = 0.1) -> None:
        super().__init__(width=1)
        self.save_hyperparameters(ignore=["backbone"])
        self.backbone = backbone


class NeedsOptimizer(Regression):
    """Leaves its optimizer to the command line."""

    configure_optimizers = None  # type: ignore[assignment]


def fit(app: App, run: Path, model: type, *more: str) -> Ended:
    ended = app(
        *("fit", "--model", f"tests.test_lightning_habits.{model.__name__}", "--data", "tests.support.models.Own"),
        *("--run_dir", run, "--trainer.max_epochs=1", "--trainer.enable_model_summary=false", *more),
    )
    assert ended.status == 0, ended.err
    return ended


def saved(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(max(run.glob("checkpoints/*.ckpt")), weights_only=True)
    return found


def test_every_test_that_the_page_names_exists() -> None:
    known = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 30
    assert not named - known


def test_each_habit_of_the_page_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| ---", "| Habit"))]
    assert len(rows) > 40
    assert not [row for row in rows if "`test_" not in row.rpartition(" | ")[2]]


def test_keywords_of_load_from_checkpoint_come_before_what_was_saved(app: App, tmp_path: Path) -> None:
    from pipeline.examples.autoencoder import LitAutoEncoder

    one = ("--trainer.max_steps=1", "--trainer.enable_model_summary=false")
    assert app("fit", "--config", DIGITS, *one, "--run_dir", tmp_path).status == 0
    path = max(tmp_path.glob("checkpoints/*.ckpt"))
    assert LitAutoEncoder.load_from_checkpoint(path, learning_rate=0.5).learning_rate == 0.5
    assert LitAutoEncoder.load_from_checkpoint(path).learning_rate == 0.003


def test_the_run_directory_says_where_checkpoints_are_and_default_root_dir_does_not(app: App, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    fit(app, tmp_path / "run", SkipsBatches, f"--trainer.default_root_dir={elsewhere}")
    assert list(tmp_path.glob("run/checkpoints/*.ckpt"))
    assert not list(tmp_path.rglob("elsewhere/**/*.ckpt"))


def test_early_stopping_may_check_at_the_end_of_a_training_epoch(app: App, tmp_path: Path) -> None:
    stopping = ("monitor=train_loss", "patience=2", "check_on_train_epoch_end=true")
    ended = fit(
        *(app, tmp_path, LogsInTraining, "--trainer.max_epochs=9", "--trainer.limit_val_batches=0"),
        *("--trainer.callbacks=EarlyStopping", *(f"--trainer.callbacks.{each}" for each in stopping)),
    )
    assert "epoch 3" in ended.err.rpartition("finished: ")[2]


def test_early_stopping_need_not_find_its_metric_where_it_is_not_strict(app: App, tmp_path: Path) -> None:
    ended = fit(
        *(app, tmp_path, LogsInTraining, "--trainer.max_epochs=2", "--trainer.callbacks=EarlyStopping"),
        *("--trainer.callbacks.monitor=nowhere", "--trainer.callbacks.strict=false"),
    )
    assert "epoch 2" in ended.err.rpartition("finished: ")[2]


def test_a_training_step_that_returns_none_leaves_its_batch_out(app: App, tmp_path: Path) -> None:
    fit(app, tmp_path / "some", SkipsBatches)
    fit(app, tmp_path / "none", SkipsAll, "--trainer.max_epochs=2", "--checkpoints.every_n_epochs=1")
    first, last = (
        torch.load(path, weights_only=True)["state_dict"] for path in sorted(tmp_path.glob("none/checkpoints/*.ckpt"))
    )
    assert torch.equal(first["layer.weight"], last["layer.weight"])
    assert not torch.equal(saved(tmp_path / "some")["state_dict"]["layer.weight"], last["layer.weight"])


def test_a_checkpoint_callback_names_its_files_by_what_was_logged(app: App, tmp_path: Path) -> None:
    naming = (f"dirpath={tmp_path / 'mine'}", "filename={epoch}-{train_loss:.2f}", "monitor=train_loss")
    fit(
        *(app, tmp_path / "run", LogsInTraining, "--trainer.callbacks=ModelCheckpoint"),
        *(f"--trainer.callbacks.{each}" for each in naming),
    )
    assert [path.name for path in tmp_path.glob("mine/*")] == ["epoch=0-train_loss=1.00.ckpt"]


def test_a_checkpoint_callback_may_save_weights_alone(app: App, tmp_path: Path) -> None:
    flags = (f"dirpath={tmp_path / 'mine'}", "save_weights_only=true")
    fit(
        *(app, tmp_path / "run", LogsInTraining, "--trainer.callbacks=ModelCheckpoint"),
        *(f"--trainer.callbacks.{each}" for each in flags),
    )
    (path,) = tmp_path.glob("mine/*.ckpt")
    assert "optimizer_states" not in torch.load(path, weights_only=True)
    LogsInTraining.load_from_checkpoint(path, width=2)


def fit_backboned(app: App, run: Path) -> None:
    layer = ("--model.backbone=torch.nn.Linear", "--model.backbone.init_args={in_features: 2, out_features: 3}")
    fit(app, run, Backboned, *layer)


def test_a_module_that_is_no_hyperparameter_is_given_when_loading(app: App, tmp_path: Path) -> None:
    fit_backboned(app, tmp_path)
    assert "backbone" not in saved(tmp_path)["hyper_parameters"]
    backbone = nn.Linear(2, 3)
    path = max(tmp_path.glob("checkpoints/*.ckpt"))
    model = Backboned.load_from_checkpoint(path, backbone=backbone)
    assert torch.equal(model.backbone.weight, saved(tmp_path)["state_dict"]["backbone.weight"])
    assert model.hparams["rate"] == 0.1


def test_weights_that_are_left_over_load_where_it_is_not_strict(app: App, tmp_path: Path) -> None:
    fit_backboned(app, tmp_path)
    path = max(tmp_path.glob("checkpoints/*.ckpt"))
    with pytest.raises(RuntimeError, match="backbone"):
        WithoutHyperparameters.load_from_checkpoint(path, width=1)
    WithoutHyperparameters.load_from_checkpoint(path, width=1, strict=False)


def test_optimizer_and_schedule_may_come_from_the_command_line(app: App, tmp_path: Path) -> None:
    flags = ("--optimizer=SGD", "--optimizer.lr=0.25", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=5")
    fit(app, tmp_path, NeedsOptimizer, *flags)
    found = saved(tmp_path)
    assert found["optimizer_states"][0]["param_groups"][0]["lr"] == 0.25
    assert found["lr_schedulers"][0]["step_size"] == 5


def test_a_later_configuration_overrides_an_earlier_one(app: App, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("trainer: {max_steps: 3, enable_model_summary: false}\n")
    ended = app("fit", "--config", DIGITS, "--config", tmp_path / "more.yaml", "--run_dir", tmp_path / "run")
    assert ended.status == 0
    assert "finished: step 3," in ended.err


def test_weights_are_loaded_by_hand_and_predict_as_the_model_does(app: App, tmp_path: Path) -> None:
    fit(
        app,
        tmp_path,
        Backboned,
        "--model.backbone=torch.nn.Linear",
        "--model.backbone.init_args={in_features: 2, out_features: 3}",
    )
    model = Backboned(nn.Linear(2, 3))
    model.load_state_dict(saved(tmp_path)["state_dict"])
    given: Tensor = torch.ones(1, 2)
    loaded = Backboned.load_from_checkpoint(max(tmp_path.glob("checkpoints/*.ckpt")), backbone=nn.Linear(2, 3))
    assert torch.equal(model.backbone(given), loaded.backbone(given))
