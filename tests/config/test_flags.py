"""Each subcommand has this project's flags beside Lightning's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.commands import DIGITS, Ended

App = Callable[..., Ended]
FIT = ("fit", "--config", DIGITS)


@pytest.mark.parametrize(
    ("subcommand", "flags", "others"),
    [
        ("fit", ("--run_dir", "--grace", "--allow_mismatch", "--override_optimizer"), ("--checkpoint ",)),
        ("test", ("--run_dir", "--checkpoint"), ("--grace", "--allow_mismatch")),
        ("summary", ("--max_depth", "--device_memory"), ("--run_dir", "--grace", "--checkpoint ", "--picture")),
        ("data", ("--samples", "--read", "--picture"), ("--run_dir", "--grace", "--checkpoint ", "--max_depth")),
    ],
)
def test_each_subcommand_has_the_flags_that_concern_it(
    app: App, subcommand: str, flags: tuple[str, ...], others: tuple[str, ...]
) -> None:
    text = app(subcommand, "--help").out
    assert [flag for flag in flags if flag not in text] == []
    assert [flag for flag in others if flag in text] == []


def test_the_default_seed_is_a_number_so_that_all_ranks_share_it(app: App, tmp_path: Path) -> None:
    arguments = (
        "fit",
        "--model",
        "tests.support.models.Regression",
        "--data",
        "tests.support.models.Own",
        "--trainer.max_epochs=1",
    )
    assert app(*arguments, "--run_dir", tmp_path).status == 0
    assert yaml.safe_load((tmp_path / "fit.yaml").read_text())["seed_everything"] == 42
