"""What Lightning documents works through this app."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from pipeline.examples.autoencoder import LitAutoEncoder
from pipeline.run.run_dir import RunDir
from pipeline.training.trainer import Trainer
from tests.support.commands import DIGITS, QUICK, Ended, command
from tests.support.models import LogsInEveryWay, Own, WithoutHyperparameters

App = Callable[..., Ended]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, trained for two epochs, made once."""
    from pipeline.cli import main

    url = tmp_path_factory.mktemp("habits") / "run"
    assert main(["fit", "--config", DIGITS, *QUICK, "--run_dir", str(url)]) == 0
    return url


@pytest.fixture
def checkpoint(run: Path) -> Path:
    return max(run.glob("checkpoints/*.ckpt"))


def fit(app: App, run: Path, model: str, *more: str) -> Ended:
    ended = app(
        *("fit", "--model", model, "--data", "tests.support.models.Own", "--run_dir", run),
        *("--trainer.max_epochs=1", "--trainer.enable_model_summary=false", *more),
    )
    assert ended.status == 0, ended.err
    return ended


def test_the_weights_summary_at_fit_with_max_depth_minus_1_has_its_ten_rows() -> None:
    depth = ("--trainer.callbacks=ModelSummary", "--trainer.callbacks.max_depth=-1", "--trainer.fast_dev_run=true")
    data = ("--data=pipeline.data.DataModule", "--data.train=tests.support.models.BlankImages", "--data.val=null")
    model = "--model=pipeline.examples.autoencoder.LitAutoEncoder"
    ended = command(sys.executable, "-m", "pipeline", "fit", model, *data, *depth)
    assert ended.status == 0, ended.text
    rows = re.findall(r"^(\d+) +\| ([\w.]+) +\| \w+ +\| ([\d.]+(?: K)?)", ended.text, re.MULTILINE)
    assert [row[1:] for row in rows] == [
        ("encoder", "50.4 K"),
        ("encoder.l1", "50.4 K"),
        ("encoder.l1.0", "50.2 K"),
        ("encoder.l1.1", "0"),
        ("encoder.l1.2", "195"),
        ("decoder", "51.2 K"),
        ("decoder.l1", "51.2 K"),
        ("decoder.l1.0", "256"),
        ("decoder.l1.1", "0"),
        ("decoder.l1.2", "51.0 K"),
    ]


def test_checkpoints_are_on_by_themselves(run: Path) -> None:
    assert len(list(run.glob("checkpoints/*.ckpt"))) == 2


def test_checkpoints_are_off_by_flag(app: App, tmp_path: Path) -> None:
    fit(app, tmp_path, "tests.support.models.Regression", "--trainer.enable_checkpointing=false")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_hyperparameters_are_saved_also_from_kwargs(app: App, tmp_path: Path, checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert (saved["learning_rate"], saved["input_dim"]) == (0.003, 64)
    fit(app, tmp_path, "tests.support.models.KeywordHyperparameters", "--model.width=5", "--model.dict_kwargs.depth=7")
    saved = torch.load(max(tmp_path.glob("checkpoints/*.ckpt")), weights_only=True)["hyper_parameters"]
    assert (saved["width"], saved["depth"]) == (5, 7)


def test_hyperparameters_that_a_model_does_not_save_are_not_saved(app: App, tmp_path: Path) -> None:
    fit(app, tmp_path, "tests.support.models.WithoutHyperparameters", "--model.width=3")
    path = max(tmp_path.glob("checkpoints/*.ckpt"))
    assert not torch.load(path, weights_only=True).get("hyper_parameters")
    assert WithoutHyperparameters.load_from_checkpoint(path, width=3).layer.out_features == 3


def test_load_from_checkpoint_then_eval_on_random_input(checkpoint: Path) -> None:
    model = LitAutoEncoder.load_from_checkpoint(checkpoint)
    model.eval()
    with torch.no_grad():
        assert model(torch.randn(1, 64)).shape == (1, 64)
    assert model.learning_rate == 0.003


def test_load_from_checkpoint_from_every_storage(app: App, storage: str) -> None:
    assert app("fit", "--config", DIGITS, *QUICK, "--run_dir", storage).status == 0
    run = RunDir(storage)
    model = LitAutoEncoder.load_from_checkpoint(run.url_of(RunDir.checkpoint(max(run.steps()["ckpt"]))))
    assert model.hparams["input_dim"] == 64


def test_torch_load_shows_the_documented_keys(checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    for key in (
        *("epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks"),
        *("optimizer_states", "lr_schedulers", "hparams_name", "hyper_parameters"),
    ):
        assert key in saved
    assert (saved["epoch"], saved["global_step"]) == (2, 80)


def test_the_optimizers_state_is_restored_by_hand(checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    model = LitAutoEncoder.load_from_checkpoint(checkpoint)
    optimizer = model.configure_optimizers()
    optimizer.load_state_dict(saved["optimizer_states"][0])
    assert {int(state["step"]) for state in optimizer.state.values()} == {80}


def test_the_state_dict_fits_a_plain_module(checkpoint: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = LitAutoEncoder(input_dim=64).children()

    Plain().load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])


def test_the_encoders_weights_are_taken_alone(checkpoint: Path) -> None:
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    encoder = LitAutoEncoder(input_dim=64).encoder
    encoder.load_state_dict({name[8:]: value for name, value in weights.items() if name.startswith("encoder.")})


def test_a_plain_trainer_goes_on_from_our_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    from pipeline.data.datamodule import DataModule
    from pipeline.examples.digits import Digits

    trainer = pl.Trainer(
        max_epochs=3, default_root_dir=tmp_path, logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(LitAutoEncoder(input_dim=64), DataModule(train=Digits("train")), ckpt_path=str(checkpoint))
    assert (trainer.current_epoch, trainer.global_step) == (3, 120)


def finished(ended: Ended) -> str:
    """The line that says how far training came."""
    (line,) = (line for line in ended.err.splitlines() if line.startswith("finished: "))
    return line


def test_on_train_batch_start_returning_minus_1_skips_the_rest_of_the_epoch(app: App, tmp_path: Path) -> None:
    ended = fit(app, tmp_path, "tests.support.models.SkipsTheRest", "--trainer.max_epochs=3")
    assert "finished: step 6, epoch 3" in ended.err


@pytest.mark.parametrize(
    ("values", "flags", "epochs"),
    [
        ([5, 4, 3, 3, 3, 3, 3], ["patience=2"], 5),
        ([1, 2, 3, 2, 2, 2, 2], ["patience=2", "mode=max"], 5),
        ([5, 4.9, 4.8, 4.7, 4, 4, 4], ["patience=2", "min_delta=0.5"], 3),
        ([5, math.nan, 1, 1, 1, 1, 1], ["patience=5", "check_finite=true"], 2),
        ([5, 4, 3, 2, 1, 0.5, 0.1], ["patience=5", "stopping_threshold=2.5"], 4),
        ([5, 4, 90, 2, 1, 0.5, 0.1], ["patience=5", "divergence_threshold=50"], 3),
        ([5, 5, 5, 5, 5, 5, 5], ["patience=2"], 3),
    ],
)
def test_early_stopping_counts_validations(
    app: App, tmp_path: Path, values: list[float], flags: list[str], epochs: int
) -> None:
    script = "[" + ",".join(".nan" if math.isnan(value) else str(float(value)) for value in values) + "]"
    stopping = [f"--trainer.callbacks.{flag}" for flag in ("monitor=val_loss", *flags)]
    ended = fit(
        *(app, tmp_path, "tests.support.models.ScriptedValLoss", f"--model.values={script}", "--trainer.max_epochs=7"),
        *("--trainer.num_sanity_val_steps=0", "--trainer.callbacks=EarlyStopping", *stopping),
    )
    assert f"epoch {epochs}" in finished(ended)


def test_early_stoppings_patience_is_counted_in_validations_not_epochs(app: App, tmp_path: Path) -> None:
    ended = fit(
        *(app, tmp_path, "tests.support.models.ScriptedValLoss", "--model.values=[1.0]", "--trainer.max_epochs=20"),
        *("--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss"),
        *("--trainer.callbacks.patience=2", "--trainer.check_val_every_n_epoch=3"),
    )
    assert "epoch 9" in finished(ended)


def test_log_reduces_as_it_is_told_and_log_dict_logs_all(tmp_path: Path) -> None:
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(LogsInEveryWay(), Own())
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert (logged["by_min"], logged["by_max"], logged["by_mean"], logged["by_sum"]) == (0, 14, 7, 105)
    assert (logged["first"], logged["second"]) == (14, 28)
    assert trainer.progress_bar_metrics["on_bar"] == 14


def test_what_is_on_the_progress_bar_is_in_the_plain_lines(app: App, tmp_path: Path) -> None:
    assert "on_bar 14" in fit(app, tmp_path, "tests.support.models.LogsInEveryWay").err
