"""`summary`: layers and what a step takes, from the data or without them; whatever is amiss is one sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import DIGITS, ROOT, Ended

App = Callable[..., Ended]
SUMMARY = ("summary", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule")
ROWS = (*SUMMARY, "--data.train=tests.support.models.Rows", "--data.batch_size=16")


def measured(app: App, *arguments: object) -> dict[str, Any]:
    ended = app(*arguments, "--json")
    assert ended.status == 0, ended.text
    found: dict[str, Any] = json.loads(ended.out)
    return found


def test_sizes_operations_and_memory_come_from_the_first_batch(app: App) -> None:
    ended = app("summary", "--config", DIGITS)
    assert ended.status == 0, ended.err
    for words in ("a batch of 32 samples", "encoder.l1.0", "[32, 64]", "FLOPs of a step", "optimizer", "Adam", "fits"):
        assert words in ended.out
    assert "yes" in ended.out


def test_without_data_the_example_gives_the_sizes_of_every_layer(app: App) -> None:
    model = ("summary", "--model=pipeline.examples.autoencoder.LitAutoEncoder")
    ended = app(*model, "--max_depth", "-1", "--model.input_dim=784")
    assert ended.status == 0
    rows = re.findall(r"^\d+ +\| ([\w.]+) .*\| (\[[\d, ]+\]) +\| (\[[\d, ]+\])", ended.out, re.MULTILINE)
    assert len(rows) == 10
    assert rows[2] == ("encoder.l1.0", "[1, 784]", "[1, 64]")
    assert rows[9] == ("decoder.l1.2", "[1, 64]", "[1, 784]")
    assert len(re.findall(r"^\d+ +\| ", app(*model, "--max_depth=1").out, re.MULTILINE)) == 2


def test_without_data_and_an_example_it_says_why_there_are_no_sizes(app: App) -> None:
    ended = app("summary", "--model", "tests.support.models.WithoutHyperparameters")
    assert ended.status == 0
    assert "WithoutHyperparameters sets no example_input_array" in ended.out
    assert "layer" in ended.out


def test_max_depth_works_as_before(app: App) -> None:
    assert "encoder.l1" not in app("summary", "--config", DIGITS, "--max_depth=1").out
    assert "encoder " in app("summary", "--config", DIGITS, "--max_depth=1").out


def test_nothing_is_written_and_a_saved_configuration_can_be_summarized(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = ("fit", *ROWS[1:], "--trainer.max_epochs=1", "--trainer.enable_model_summary=false")
    assert app(*fit, "--run_dir", tmp_path / "run").status == 0
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    found = measured(app, "summary", "--config", tmp_path / "run/fit.yaml")
    assert found["batch_size"] == 16
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("accelerator", ["cuda", "gpu"])
def test_a_gpu_that_is_asked_for_and_absent_is_measured_on_the_cpu(app: App, accelerator: str) -> None:
    ended = app(*ROWS, f"--trainer.accelerator={accelerator}", "--trainer.devices=8")
    assert ended.status == 0, ended.err
    assert f"trainer.accelerator={accelerator!r}: torch" in ended.out
    assert "not known: there is no GPU here to ask: say --device_memory 80GB" in ended.out
    there = app(*ROWS, "--trainer.accelerator=cuda", "--trainer.devices=8", "--device_memory=80GB")
    assert "80.0 GB for each of 8 processes (device_memory)" in there.out


def test_the_batch_is_that_of_one_of_the_processes_that_are_asked_for(app: App) -> None:
    flags = (*SUMMARY, "--data.train=tests.support.models.Rows", "--data.global_batch_size=64")
    more = ("--trainer.devices=2", "--trainer.num_nodes=2", "--trainer.accumulate_grad_batches=4")
    assert measured(app, *flags, *more)["batch_size"] == 4


def test_the_trainers_own_flags_hinder_nothing(app: App) -> None:
    values = (
        *(
            "max_steps=1",
            "max_epochs=0",
            "limit_train_batches=0",
            "strategy=ddp",
            "overfit_batches=1",
            "max_time=0:0:0:1",
        ),
        *("callbacks=LearningRateMonitor", "logger=true", "fast_dev_run=true", "profiler=simple"),
        *("val_check_interval=500", "accumulate_grad_batches=4", "precision=bf16-mixed", "max_time=0:0:0:1"),
    )
    flags = [f"--trainer.{value}" for value in values]
    found = measured(app, *ROWS, *flags)
    assert (found["precision"], found["notes"]) == ("bf16-mixed", [])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            (*SUMMARY, "--data.train=tests.support.inspected.Refuses"),
            "Nothing is measured: the data cannot be built here",
        ),
        ((*SUMMARY, "--data.val=tests.support.models.Rows"), "Nothing is measured: data.train names no dataset."),
        (SUMMARY[:2], "Nothing is measured: there are no training data."),
    ],
)
def test_without_data_the_layers_are_shown_and_the_reason(app: App, flags: tuple[str, ...], words: str) -> None:
    ended = app(*flags)
    assert ended.status == 0, ended.err
    assert words in ended.out
    assert "Total params" in ended.out
    assert measured(app, *flags)["parameters"] == 49


def test_a_step_that_fails_is_reported_beneath_the_layers(app: App) -> None:
    ended = app("summary", "--model=tests.support.inspected.Breaks", *ROWS[2:])
    assert ended.status == 2
    assert "Total params" in ended.out
    assert "error: the first training steps fail: KeyError: 'no such column' (tests/support/inspected.py:" in ended.err
    assert "Traceback" not in ended.text


def test_sizes_that_do_not_fit_the_data_are_the_users_to_mend(app: App) -> None:
    ended = app("summary", "--config", DIGITS, "--model.input_dim=784")
    assert ended.status == 2
    assert "mat1 and mat2 shapes cannot be multiplied (32x64 and 784x64)" in ended.err
    assert "[1, 784]" in ended.out, "the example still shows the sizes that the model expects"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--max_depth=-2",), "max_depth=-2 must be >= -1"),
        (("--device_memory=80",), "device_memory='80' must be a number > 0 and its unit"),
        (("--data.train.n=0",), "data.train=Rows is empty"),
        (("--trainer.devices=none",), "trainer.devices='none'"),
    ],
)
def test_a_mistake_is_one_sentence(app: App, flags: tuple[str, ...], words: str) -> None:
    ended = app(*ROWS, *flags)
    assert ended.status == 2
    assert words in ended.err
    assert "Traceback" not in ended.text


def test_a_sample_that_cannot_be_read_is_named(app: App) -> None:
    ended = app(*SUMMARY, "--data.train=tests.support.inspected.Torn", "--data.train.n=1", "--data.train.at=0")
    assert ended.status == 2
    assert "the row is torn" in ended.err
    assert "Torn[0]" in ended.err
