"""Each subcommand has this project's flags beside Lightning's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.commands import DIGITS, Ended, assert_one_message

App = Callable[..., Ended]
FIT = ("fit", "--config", DIGITS)


@pytest.mark.parametrize(
    ("subcommand", "flags", "others"),
    [
        ("fit", ("--run_dir", "--grace", "--allow_mismatch", "--override_optimizer"), ("--checkpoint ",)),
        ("test", ("--run_dir", "--checkpoint", "--log_format"), ("--grace", "--allow_mismatch")),
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


@pytest.mark.parametrize("where", ["flag", "environment", "YAML"])
def test_lines_for_machines_can_be_asked_for_everywhere_and_are_of_one_start(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    more = ["--log_format=json"] if where == "flag" else []
    if where == "environment":
        monkeypatch.setenv("PIPELINE_LOG_FORMAT", "json")
    if where == "YAML":
        (tmp_path / "more.yaml").write_text("log_format: json\n")
        more = ["--config", str(tmp_path / "more.yaml")]
    run = tmp_path / "run"
    ended = app(*FIT, *more, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--run_dir", run)
    assert ended.status == 0, ended.err
    found = [json.loads(line) for line in ended.err.splitlines()]
    assert found[0]["message"] == f"started on 1 node x 1 process: {run}"
    assert any("Total params" in each["message"] for each in found), "the summary of the model is one line, too"
    assert "log_format" not in yaml.safe_load((run / "fit.yaml").read_text())


def test_another_form_of_lines_is_one_message(app: App, tmp_path: Path) -> None:
    assert_one_message(app(*FIT, "--log_format=xml", "--run_dir", tmp_path), "log_format='xml' must be text or json")
    (tmp_path / "more.yaml").write_text("log_format: xml\n")
    assert_one_message(app(*FIT, "--config", tmp_path / "more.yaml", "--run_dir", tmp_path), "log_format")
