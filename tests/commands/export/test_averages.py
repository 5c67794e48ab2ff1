"""Which weights are exported of a run that averages them is said, and chosen by a flag."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.commands.export.averages import chosen_weights
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir
from pipeline.training.checkpoint_io import RunIO
from tests.support.commands import Ended, assert_one_message
from tests.support.runs import ROWS

App = Callable[..., Ended]
EMA = ("--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.5")
SWA = (
    *("--trainer.callbacks=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"),
    "--trainer.callbacks.swa_epoch_start=1",
)


def export(app: App, run: Path, name: str, *more: str) -> tuple[Ended, Path]:
    file = run / f"{name}.safetensors"
    return app("export", "--run_dir", run, "--format", "safetensors", "--output", file, *more), file


def trained(app: App, run: Path, *flags: str) -> dict[str, Any]:
    """Train on rows, and return the checkpoint of step 15; at the end Lightning puts the average into the model."""
    limits = ("--trainer.max_epochs=4", "--trainer.max_steps=17", "--checkpoints.every_n_steps=3")
    assert app("fit", *ROWS, "--run_dir", run, *limits, *flags).status == 0
    return RunIO(None).load_checkpoint(run / RunDir.checkpoint(15))


def same(file: Path, weights: dict[str, Any]) -> bool:
    found = load_file(file)
    return all(torch.equal(found[name], weights[name]) for name in found)


def test_the_average_of_ema_is_exported_unless_it_is_not_wanted(app: App, tmp_path: Path) -> None:
    saved = trained(app, tmp_path, *EMA)
    ended, file = export(app, tmp_path, "usual", "--checkpoint", "15")
    assert ended.status == 0, ended.text
    assert "averaged by EMAWeightAveraging, " in ended.out
    assert same(file, saved["state_dict"])
    ended, file = export(app, tmp_path, "other", "--checkpoint", "15", "--average", "false")
    assert "those being trained, not the average of EMAWeightAveraging" in ended.out
    assert same(file, saved["current_model_state"])
    assert not same(file, saved["state_dict"])


def test_the_average_of_swa_is_found_in_its_callback(app: App, tmp_path: Path) -> None:
    saved = trained(app, tmp_path, *SWA, "--model=tests.support.exported.Normed")
    (average,) = (each for key, each in saved["callbacks"].items() if "Stochastic" in key)
    ended, file = export(app, tmp_path, "usual", "--checkpoint", "15")
    assert ended.status == 0, ended.text
    assert "averaged by StochasticWeightAveraging" in ended.out
    found = load_file(file)
    assert torch.equal(found["layers.0.weight"], average["average_model_state"]["layers.0.weight"])
    assert torch.equal(found["norm.running_mean"], saved["state_dict"]["norm.running_mean"]), "an average has none"
    ended, file = export(app, tmp_path, "other", "--checkpoint", "15", "--average", "false")
    assert same(file, saved["state_dict"])


def test_an_average_that_has_not_begun_is_not_taken_for_one(app: App, tmp_path: Path) -> None:
    saved = trained(app, tmp_path, *EMA, "--trainer.callbacks.update_starting_at_step=100")
    ended, file = export(app, tmp_path, "usual", "--checkpoint", "15")
    assert ended.status == 0, ended.text
    assert "as trained; the average of EMAWeightAveraging has not begun" in ended.out
    assert same(file, saved["current_model_state"])
    ended, _ = export(app, tmp_path, "other", "--checkpoint", "15", "--average", "true")
    assert_one_message(ended, "has not begun at this step")


def test_an_average_that_nobody_kept_cannot_be_asked_for() -> None:
    with pytest.raises(UserError, match="holds no averaged weights"):
        chosen_weights({"state_dict": {}}, average=True, parameters=())
    assert chosen_weights({"state_dict": {}}, average=False, parameters=()).said == "as trained"
