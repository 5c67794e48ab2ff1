"""What a callback was given wins over what its state says, and a state that Lightning cannot load is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping, SpikeDetection

from pipeline.run.run_dir import RunDir
from pipeline.training.state.callback_state import prepare
from pipeline.training.trainer import Trainer
from tests.support.commands import Ended
from tests.support.resumes import equal
from tests.support.runs import ROWS

App = Callable[..., Ended]


def prepared(saved: Any, now: Any) -> dict[str, Any]:
    states = {saved.state_key: saved.state_dict()}
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=[now])
    prepare(trainer, states)
    now.load_state_dict(states[now.state_key])
    return states


def test_early_stopping_keeps_the_patience_that_was_asked_for() -> None:
    saved, now = EarlyStopping("val_loss", patience=3), EarlyStopping("val_loss", patience=7)
    saved.wait_count = 2
    prepared(saved, now)
    assert (now.patience, now.wait_count) == (7, 2)


def test_spike_detection_loads_its_last_value() -> None:
    saved, now = SpikeDetection(rtol=2.0), SpikeDetection(rtol=5.0)
    saved.last_val, saved.bad_batches = 0.25, [3, 4]
    prepared(saved, now)
    assert (now.last_val, now.bad_batches, now.rtol) == (0.25, [3, 4], 5.0)


def test_an_average_that_is_in_the_models_place_in_a_validation_is_saved_as_the_average(
    app: App, tmp_path: Path
) -> None:
    flags = (*ROWS, "--trainer.max_epochs=3", "--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.5")
    assert app("fit", *flags, "--run_dir", tmp_path / "straight", "--checkpoints.every_n_steps=7").status == 0
    asked = ("--trainer.callbacks+=tests.support.callbacks.AskedToEnd", f"--trainer.callbacks.marker={tmp_path}/asked")
    for status in (75, 0):
        assert app("fit", *flags, *asked, "--run_dir", tmp_path / "resumed").status == status
    for step in (14, 21):
        saved = [
            torch.load(tmp_path / run / RunDir.checkpoint(step), weights_only=True) for run in ("straight", "resumed")
        ]
        for part in ("state_dict", "current_model_state"):
            assert equal(saved[0][part], saved[1][part]), (step, part)
