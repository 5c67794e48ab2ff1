"""Data are prepared once a node, before any constructor that needs them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from pipeline.config import early_preparation
from tests.support.commands import Ended, torchrun

App = Callable[..., Ended]
FIRST = "tests.support.wished.PreparedFirst"


def data_of(folder: Path) -> str:
    return f"{{class_path: {FIRST}, init_args: {{root: {folder}}}}}"


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split() if (folder / "calls").exists() else []


def test_each_dataset_is_prepared_once_with_the_arguments_that_it_names(tmp_path: Path) -> None:
    one = Namespace(class_path=FIRST, init_args=Namespace(root=str(tmp_path), n=5))
    part = Namespace(class_path="pipeline.data.Subset", init_args=Namespace(dataset=one, first=2))
    several: Any = {"a": part, "b": [one]}
    early_preparation.prepare(Namespace(class_path="pipeline.data.DataModule", init_args=Namespace(val=several)))
    assert calls(tmp_path) == ["PreparedFirst"]
    early_preparation.prepare(None)


@pytest.mark.timeout(120)
def test_on_two_processes_of_a_node_it_is_done_once_and_before_any_constructor(tmp_path: Path) -> None:
    ended = torchrun(
        2,
        *("-m", "pipeline", "fit", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule"),
        *(f"--data.train={data_of(tmp_path)}", f"--data.val={data_of(tmp_path)}", "--run_dir", tmp_path / "run"),
        *("--trainer.max_epochs=1", "--trainer.enable_model_summary=false", "--trainer.logger=false"),
    )
    assert ended.status == 0, ended.text
    assert calls(tmp_path) == ["PreparedFirst"]


def test_commands_that_only_look_at_data_prepare_them_too(app: App, tmp_path: Path) -> None:
    ended = app("data", "--data=pipeline.data.DataModule", f"--data.train={data_of(tmp_path)}")
    assert ended.status == 0, ended.text
    assert calls(tmp_path) == ["PreparedFirst"]


def test_what_it_refuses_is_one_message(app: App, tmp_path: Path) -> None:
    ended = app(
        *("fit", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule"),
        *(f"--data.train={data_of(tmp_path / 'absent')}", "--run_dir", tmp_path / "run"),
    )
    assert ended.status == 2, ended.text
    assert "No such file or directory" in ended.err
    assert "Traceback" not in ended.text
