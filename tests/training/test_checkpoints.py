"""The flags under checkpoints: what they refuse, and when they save."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint.commit import committed
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.runs import FIT

App = Callable[..., Ended]


ROWS = "tests.support.models.Rows"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--checkpoints.every_minutes=0.000001",), "minutes"),
        (("--checkpoints.after_validation=true", "--trainer.val_check_interval=3", f"--data.val={ROWS}"),
         "validation"),
        (("--checkpoints.every_n_steps=3",), "steps"),
    ],
)  # fmt: skip
def test_saves_by_time_by_validation_and_by_steps(app: App, tmp_path: Path, more: tuple[str, ...], reason: str) -> None:
    assert app(*FIT, *more, "--run_dir", tmp_path).status == 0
    records = list(committed(RunDir(str(tmp_path))))
    assert any(reason in each.reason and each.position for each in records)
    assert len({each.step for each in records}) == len(records), "what is due at one step is one save"


@pytest.mark.parametrize("value", ["every_minutes=0", "every_n_steps=0", "storage_budget=-1"])
def test_numbers_out_of_range_are_named(app: App, tmp_path: Path, value: str) -> None:
    ended = app(*FIT, f"--checkpoints.{value}", "--run_dir", tmp_path)
    assert ended.status == 2
    assert f"checkpoints.{value} must be" in ended.err
