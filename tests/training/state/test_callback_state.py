"""What a callback was given wins over what its state says, and a state that Lightning cannot load is loaded."""

from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, SpikeDetection

from pipeline.training.state.callback_state import prepare
from pipeline.training.trainer import Trainer


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
