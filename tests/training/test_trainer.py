"""The subcommands that only look, and what is set right in Lightning's trainer."""

import copy
import signal
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.constants import default_pg_timeout

from pipeline.data.datamodule import DataModule
from pipeline.training import compat
from pipeline.training.inspection.set_facts import DataQuestion
from pipeline.training.inspection.step_measurement import MEASURING
from pipeline.training.trainer import Trainer, adapt
from tests.support.models import Own, Regression, Rows


def test_it_tells_what_a_step_takes_and_what_data_consist_of() -> None:
    made = Trainer(**MEASURING, accelerator="cpu", max_epochs=2)
    data = DataModule(train=Rows(20), batch_size=10)
    assert made.summary(Regression(), data).batch_size == 10
    (train,) = made.data(DataModule(train=Rows(20), batch_size=10), DataQuestion()).sets
    assert (train.samples, train.batches) == (20, 2)


def trainer(**more: Any) -> Trainer:
    return Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu", **more)


def test_a_limit_of_collectives_is_set_unless_the_user_has_set_one() -> None:
    limits = []
    for strategy in (DDPStrategy(), DDPStrategy(timeout=timedelta(seconds=7))):
        for seconds in (None, 60.0):
            made = trainer(strategy=copy.deepcopy(strategy))
            adapt(made, seconds)
            limits.append(compat.collective_timeout(made))
    assert limits == [default_pg_timeout, timedelta(seconds=60), timedelta(seconds=7), timedelta(seconds=7)]


def test_lightnings_own_handlers_of_signals_are_not_installed() -> None:
    made = trainer(max_epochs=1, enable_model_summary=False)
    adapt(made)
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []
    model = Regression()
    model.on_train_start = lambda: seen.append(signal.getsignal(signal.SIGTERM))  # type: ignore[method-assign]
    made.fit(model, Own())
    assert seen == [before]
