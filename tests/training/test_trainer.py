"""The subcommand that only looks at the model, and what is set right in Lightning's trainer."""

import copy
import re
import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.constants import default_pg_timeout

from pipeline.training import compat
from pipeline.training.trainer import Trainer, adapt
from tests.support.commands import DIGITS, Ended
from tests.support.models import Own, Regression

App = Callable[..., Ended]


def test_summary_prints_the_table_with_the_sizes_of_every_layer_without_fit(app: App) -> None:
    ended = app("summary", "--config", DIGITS, "--max_depth", "-1", "--model.input_dim=784")
    assert ended.status == 0
    rows = re.findall(r"^\d+ +\| ([\w.]+) .*\| (\[[\d, ]+\]) +\| (\[[\d, ]+\])", ended.out, re.MULTILINE)
    assert len(rows) == 10
    assert rows[2] == ("encoder.l1.0", "[1, 784]", "[1, 64]")
    assert rows[9] == ("decoder.l1.2", "[1, 64]", "[1, 784]")
    assert len(re.findall(r"^\d+ +\| ", app("summary", "--config", DIGITS, "--max_depth=1").out, re.MULTILINE)) == 2


def test_summary_of_a_model_without_an_example_says_why_there_are_no_sizes(app: App) -> None:
    ended = app("summary", "--model", "tests.support.models.WithoutHyperparameters")
    assert ended.status == 0
    assert "example_input_array" in ended.err
    assert "layer" in ended.out


def test_less_than_all_layers_cannot_be_shown(app: App) -> None:
    ended = app("summary", "--config", DIGITS, "--max_depth=-2")
    assert ended.status == 2
    assert "max_depth=-2 must be >= -1; -1 shows all layers" in ended.err


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
