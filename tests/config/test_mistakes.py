"""What only the user can fix is one sentence, whichever library found it; a bug in the user's code is a crash."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import DeviceStatsMonitor, EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pipeline.config.mistakes import reported, where
from pipeline.errors import UserError
from pipeline.training.trainer import Trainer
from tests.support.commands import Ended, assert_one_message, torchrun
from tests.support.models import Own, Regression, Rows
from tests.support.runs import FIT

App = Callable[..., Ended]
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1)


def model(**hooks: Any) -> pl.LightningModule:
    """A regression some of whose methods are the given functions."""
    return type("Mine", (Regression,), hooks)()


class Misnamed(pl.Callback):
    def on_train_start(self, trainer: pl.Trainer) -> None:  # type: ignore[override]
        """Take fewer arguments than Lightning gives."""


class Stateful(pl.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"count": 1}


class Loaders(pl.LightningDataModule):
    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader


def schedule(**more: Any) -> Callable[[nn.Module], Any]:
    def configure(self: nn.Module) -> Any:
        made = optimizer(self)
        steps = torch.optim.lr_scheduler.OneCycleLR(made, 0.1, total_steps=3)
        return {"optimizer": made, "lr_scheduler": {"scheduler": steps, **more}}

    return configure


def logs(value: Any) -> Callable[..., Tensor]:
    def training_step(self: Any, batch: Any, batch_idx: int) -> Tensor:
        self.log("mine", value)
        return self(batch[0]).mean()

    return training_step


def imports(self: Any, batch: Any, batch_idx: int) -> None:
    __import__("nosuchpackage")


MISTAKES: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "a hook of Lightning 1": (lambda: model(training_epoch_end=lambda *_: None), {}, "has been removed in v2.0.0"),
    "a hook with other parameters": (
        lambda: model(on_train_epoch_end=lambda self, outputs: None),
        {},
        "missing 1 required positional argument: 'outputs': its parameters must be those that Lightning's",
    ),
    "a callback with other parameters": (
        Regression,
        {"callbacks": [Misnamed()]},
        "Misnamed.on_train_start() takes 2 positional arguments but 3 were given: its parameters",
    ),
    "a loss without a gradient": (
        lambda: model(training_step=lambda self, batch, index: self(batch[0]).mean().detach()),
        {},
        "the loss that training_step returns depends on no parameter that is trained",
    ),
    "everything frozen": (lambda: Regression().requires_grad_(False), {}, "leave some parameters unfrozen"),
    "a loss of many numbers": (
        lambda: model(training_step=lambda self, batch, index: self(batch[0])),
        {},
        "the loss that training_step returns must be one number",
    ),
    "a loss that is text": (lambda: model(training_step=lambda *_: "loss"), {}, "`training_step` must return a Tensor"),
    "an optimizer of nothing": (
        lambda: model(configure_optimizers=lambda self: torch.optim.SGD([], 0.1)),
        {},
        "optimizer got an empty parameter list (tests/config/test_mistakes.py:",
    ),
    "a rate below 0": (lambda: Regression(learning_rate=-1), {}, "Invalid learning rate: -1"),
    "two optimizers": (
        lambda: model(configure_optimizers=lambda self: [optimizer(self), optimizer(self)]),
        {},
        "only supported with manual optimization",
    ),
    "a misspelt key": (
        lambda: model(configure_optimizers=lambda self: {"optimiser": optimizer(self)}),
        {},
        "Lightning cannot use what it was given: KeyError: 'optimizer' in lightning.pytorch.core.optimizer._configure",
    ),
    "a schedule that is too short": (
        lambda: model(configure_optimizers=schedule(interval="step")),
        {},
        "the learning rate schedule ends before training does",
    ),
    "a schedule by nothing": (
        lambda: model(configure_optimizers=schedule(interval="steps")),
        {},
        '"interval" key in lr scheduler dict must be "step" or "epoch"',
    ),
    "text that is logged": (
        lambda: model(training_step=logs("text")),
        {},
        "`str` values cannot be logged (tests/config",
    ),
    "a vector that is logged": (lambda: model(training_step=logs(torch.ones(3))), {}, "must have a single element"),
    "a metric that is not there": (
        Regression,
        {"callbacks": [EarlyStopping("val_los")]},
        "Early stopping conditioned on metric `val_los` which is not available",
    ),
    "accumulated in two ways": (
        Regression,
        {"callbacks": [GradientAccumulationScheduler({1: 2})], "accumulate_grad_batches": 2},
        "You have set `accumulate_grad_batches` and are using",
    ),
    "two callbacks of a kind": (Regression, {"callbacks": [Stateful(), Stateful()]}, "more than one stateful callback"),
    "a validation every 0 batches": (Regression, {"val_check_interval": 50}, "`val_check_interval` (50) must be less"),
    "a package that is missing": (
        lambda: model(training_step=imports),
        {},
        "No module named 'nosuchpackage' (tests/con",
    ),
    "a path that cannot be": (Regression, {"logger": CSVLogger("/proc/none")}, "name a path that exists"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_one_sentence_however_it_is_found(mistake: str, tmp_path: Path) -> None:
    make, more, words = MISTAKES[mistake]
    flags = {"max_epochs": 1, "logger": False, "num_sanity_val_steps": 0, "default_root_dir": tmp_path, **QUIET, **more}
    with pytest.raises(UserError) as raised, reported():
        Trainer(**flags).fit(make(), Own())
    (problem,) = raised.value.problems
    assert words in problem
    assert "\n" not in problem


@pytest.mark.parametrize("loader", [None, 3])
def test_what_is_no_loader_is_one_sentence(loader: Any) -> None:
    trainer = Trainer(max_epochs=1, logger=False, **QUIET)
    with pytest.raises(UserError, match=f"An invalid dataloader was returned .* Found {loader}"), reported():
        trainer.fit(Regression(), Loaders(loader))


def test_code_that_a_library_has_generated_is_no_place_in_the_users() -> None:
    made: dict[str, Any] = {}
    exec("def fail(x): raise ValueError(x)", made)
    with pytest.raises(ValueError, match="1") as raised:
        tree_map(made["fail"], [1])
    assert where(raised.value) == ""
    with pytest.raises(ValueError, match="invalid literal") as raised:
        tree_map(lambda x: int(x, 10), ["x"])
    assert "test_mistakes.py" in where(raised.value)


def test_a_package_that_a_callback_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", False)
    trainer = Trainer(callbacks=[DeviceStatsMonitor()], logger=CSVLogger("x"), **QUIET)
    with pytest.raises(UserError, match="`psutil` is not installed"), reported():
        trainer.fit(Regression(), Own())


def test_a_package_that_an_extra_brings_is_named_with_the_command_that_installs_it() -> None:
    words = r"No module named 'pyarrow.parquet': pip install 'torchx-lightning-pipeline\[parquet\]'"
    with pytest.raises(UserError, match=words), reported():
        raise ModuleNotFoundError("No module named 'pyarrow.parquet'", name="pyarrow.parquet")


class Fails(Rows):
    def __init__(self, error: str) -> None:
        super().__init__()
        self.error = error

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        raise {"value": ValueError("sample 3 is bad"), "package": ModuleNotFoundError("No module named 'x'")}[
            self.error
        ]


CRASHES: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "a bug in training_step": (
        lambda: model(training_step=lambda self, batch, index: self.layrs(batch)),
        AttributeError,
    ),
    "a bug in configure_optimizers": (
        lambda: model(configure_optimizers=lambda self: torch.optim.Adamm()),  # type: ignore[attr-defined]
        AttributeError,
    ),
    "shapes that do not fit": (
        lambda: model(training_step=lambda self, batch, index: self(batch[0][:, :2]).mean()),
        RuntimeError,
    ),
    "what the code itself refuses": (
        lambda: model(training_step=lambda self, batch, index: int("three")),
        ValueError,
    ),
}


@pytest.mark.parametrize("bug", CRASHES)
def test_a_bug_in_the_users_code_is_a_crash_with_its_traceback(bug: str) -> None:
    make, kind = CRASHES[bug]
    trainer = Trainer(max_epochs=1, logger=False, **QUIET)
    with pytest.raises(kind), reported():
        trainer.fit(make(), Own())


@pytest.mark.parametrize(("error", "kind"), [("value", ValueError), ("package", UserError)])
def test_what_a_loader_worker_raises_is_judged_as_where_it_was_raised(error: str, kind: type[Exception]) -> None:
    loader = torch.utils.data.DataLoader(Fails(error), num_workers=1)
    trainer = Trainer(max_epochs=1, logger=False, **QUIET)
    with pytest.raises(kind) as raised, reported():
        trainer.fit(Regression(), Loaders(loader))
    assert kind is ValueError or str(raised.value).startswith("No module named 'x'")


class NeedsMemory(Regression):
    def __init__(self) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")


class NeedsAPackage(Regression):
    def __init__(self) -> None:
        super().__init__()
        __import__("nosuchpackage")


class UnusedPart(Regression):
    """Has a layer that no loss depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"learning_rate": 0.1})
        self.unused = nn.Linear(2, 2)


HERE = "tests.config.test_mistakes"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((f"--model={HERE}.NeedsAPackage",), f"{HERE}.NeedsAPackage: No module named 'nosuchpackage' (tests/config/"),
        (("--trainer.callbacks=RichProgressBar",), "RichProgressBar` requires `rich`"),
        (("--trainer.logger=WandbLogger",), "pip install -U 'wandb"),
        (("--trainer.precision=transformer-engine",), "pip install -U 'transformer_engine"),
        (
            ("--trainer.callbacks=ModelCheckpoint", "--trainer.callbacks.save_top_k=-3"),
            "ModelCheckpoint: Invalid value for save_top_k=-3",
        ),
        (("--trainer.precision=17",), "trainer.precision='17': must be one of 64, 32, 16"),
        (("--trainer.check_val_every_n_epoch=0",), "trainer.check_val_every_n_epoch=0 must be >= 1"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr("lightning.pytorch.callbacks.progress.rich_progress._RICH_AVAILABLE", False)
    assert_one_message(app(*FIT, *flags, "--run_dir", tmp_path), words)


def test_a_constructor_that_runs_out_of_memory_is_a_crash(app: App, tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        app(*FIT, f"--model={HERE}.NeedsMemory", "--run_dir", tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.slow
def test_a_part_of_the_model_without_gradients_on_two_ranks_is_one_sentence(tmp_path: Path) -> None:
    ended = torchrun(2, "-m", "pipeline", *FIT, f"--model={HERE}.UnusedPart", "--run_dir", tmp_path)
    assert ended.err.count("some parameters have no part in the loss of training_step") == 1, ended.err
    assert "exitcode  : 2" in ended.err


def test_barebones_trains(app: App, tmp_path: Path) -> None:
    ended = app(*(flag for flag in FIT if "summary" not in flag), "--trainer.barebones=true", "--run_dir", tmp_path)
    assert ended.status == 0, ended.err
