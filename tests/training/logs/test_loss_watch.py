"""A loss that is not finite is logged once, with its step, and training continues."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.training.logs.loss_watch import LossWatch
from tests.support.commands import Ended
from tests.support.runs import ROWS


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("form", ["tensor", "mapping", "half"])
def test_the_first_one_is_said_once_with_its_step(value: float, form: str, caplog: pytest.LogCaptureFixture) -> None:
    watch = LossWatch()
    for step in range(200):
        loss = torch.tensor(value if step >= 123 else 0.5)
        watch.add({"tensor": loss, "mapping": {"loss": loss}, "half": loss.half()}[form], step)
    watch.look()
    assert caplog.text.count("the loss of step 123 is") == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("outputs", [None, {}, {"loss": None}, torch.ones(3), "text", torch.tensor(3)])
def test_what_is_no_loss_is_not_looked_at(outputs: Any, caplog: pytest.LogCaptureFixture) -> None:
    watch = LossWatch()
    watch.add(outputs, 1)
    watch.look()
    assert not caplog.records


def test_a_training_whose_loss_becomes_nan_says_so_and_never_takes_the_latest_for_the_best(
    app: Callable[..., Ended], tmp_path: Path
) -> None:
    model = ("--model", "tests.support.models.LogsNaN", "--data.test=tests.support.models.Rows")
    more = ("--checkpoints.monitor=val_loss", "--trainer.max_epochs=2", "--run_dir", tmp_path)
    ended = app("fit", *ROWS, *model, *more)
    assert ended.status == 0, ended.err
    assert ended.err.count("the loss of step 5 is nan; training continues") == 1
    assert ended.err.count("val_loss is nan: this checkpoint cannot become the best") == 2
    assert [json.loads(path.read_text())["monitor"] for path in tmp_path.glob("checkpoints/*.json")] == [None, None]
    ended = app("test", "--run_dir", tmp_path)
    assert ended.status == 0, ended.err
    assert "no checkpoint has a finite val_loss, so none is the best: taking the latest, step 14" in ended.err
    assert app("test", "--run_dir", tmp_path, "--checkpoint=best").status == 2
