"""What hooks save and load is asked for before and after others that are called a second time."""

from typing import Any

import lightning.pytorch as pl

from pipeline.training.state.hook_state import HookState
from pipeline.training.trainer import Trainer
from tests.support.callbacks import CountsEpochs, CountsEpochsToo


def test_counts_are_put_back_and_nothing_else_is_touched() -> None:
    model, callback, still = CountsEpochs(), CountsEpochsToo(), CountsEpochsToo()
    trainer = connected(model, callback, still)
    model.epochs, model.counting.count = 3, 4
    state = HookState(trainer)
    assert state.put_back() == ([], [])
    model.epochs, model.counting.count, callback.epochs = 5, 6, 7
    assert state.put_back() == (["what counting saves", "what CountsEpochs saves", "what CountsEpochsToo saves"], [])
    assert (model.epochs, model.counting.count, callback.epochs, still.epochs) == (3, 4, 0, 0)


def test_a_hook_that_wants_a_whole_checkpoint_is_left_alone_to_save_and_named_if_it_cannot_load() -> None:
    model = CountsEpochs(shares=True)
    state = HookState(connected(model))
    model.epochs = 5
    assert state.put_back() == ([], []), "it cannot be asked without the weights"
    model = Resizes()
    state = HookState(connected(model))
    model.epochs = 5
    assert state.put_back() == ([], ["what Resizes saves"])


class Resizes(CountsEpochs):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.head = len(checkpoint["state_dict"])
        super().on_load_checkpoint(checkpoint)


def connected(model: pl.LightningModule, *callbacks: pl.Callback) -> pl.Trainer:
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=list(callbacks))
    trainer.strategy.connect(model)
    return trainer
