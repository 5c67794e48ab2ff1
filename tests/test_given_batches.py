"""Ledger and receipt count the samples that the model was given, whatever collate functions and hooks have done."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Ended
from tests.support.runs import verified

App = Callable[..., Ended]
DATA = (
    *("--data=pipeline.data.DataModule", "--data.train=tests.support.models.Indexed", "--data.train.n=24"),
    *("--data.test=tests.support.models.Indexed", "--data.test.n=9", "--data.batch_size=4"),
    *("--trainer.enable_model_summary=false", "--trainer.logger=false"),
)
FIT = ("fit", "--model=tests.support.collates.TakesAnything", *DATA, "--trainer.max_epochs=2")


def collate(name: str) -> str:
    return f"--data.collate_fn=tests.support.collates.{name}"


def unread(split: str, n: int) -> tuple[str, str]:
    return f"--data.{split}=tests.support.collates.Gaps", f"--data.{split}.n={n}"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_ledger_knows_the_samples_that_a_collate_function_filters(app: App, tmp_path: Path, workers: int) -> None:
    more = (*unread("train", 24), collate("without_none"), f"--data.num_workers={workers}")
    ended = app(*FIT, *more, "--run_dir", tmp_path)
    assert ended.status == 0, ended.err
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 0, ended.out
    assert "epoch 1: 2 samples were left out by the collate function" in ended.out
    assert verified(ended) == [[epoch, "24", "22", "0", "2", "ok", "complete"] for epoch in "01"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ((collate("packed"),), "packed made a batch with 1 row of 4 samples"),
        ((*unread("train", 24), collate("filled_up")), "filled_up made a batch with 4 rows of 4 samples"),
        (
            ("--model=tests.support.collates.DropsOnTheWay",),
            "a batch transfer hook made a batch with 3 rows of 4 samples",
        ),
    ],
)
def test_what_cannot_be_told_is_said_and_proves_nothing(
    app: App, tmp_path: Path, more: tuple[str, ...], reason: str
) -> None:
    for epochs in (1, 2):  # also what a resume continues
        ended = app(*FIT, *more, f"--trainer.max_epochs={epochs}", "--run_dir", tmp_path)
        assert ended.status == 0, ended.err
        assert ended.err.count(reason) == 1
    ended = app("verify", "--run_dir", tmp_path)
    assert ended.status == 0, ended.out
    assert {row[5] for row in verified(ended)} == {"unproven"}
    assert "every sample is accounted for" not in ended.out


def test_two_batches_a_step_are_refused_with_what_to_do(app: App, tmp_path: Path) -> None:
    ended = app(*FIT, "--model=tests.support.collates.TakesTwo", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "training_step has taken 2 batches of its dataloader_iter in one step" in ended.err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    from pipeline.cli import main

    url = str(tmp_path_factory.mktemp("run"))
    assert main([*FIT, "--run_dir", url, "--trainer.max_epochs=1"]) == 0
    return url


def evaluated(app: App, run: str, *more: str) -> tuple[Ended, dict[str, Any], dict[int, float]]:
    """A test, its receipt, and the scores by index."""
    ended = app("test", "--run_dir", run, *more)
    with Path(run, "evaluation/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    scores = {int(row["index"]): float(row["first"]) for row in rows if "index" in row}
    return ended, json.loads(Path(run, "evaluation/receipt.json").read_text()), scores


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_that_a_collate_function_filters_are_missing_in_the_receipt(app: App, run: str, workers: int) -> None:
    more = (*unread("test", 9), collate("without_none"), f"--data.num_workers={workers}")
    ended, receipt, scores = evaluated(app, run, *more)
    assert ended.status == 2
    assert "of 9 test samples 2 were not scored (first: [2, 5])" in ended.err
    assert (receipt["samples_scored"], receipt["missing_indices"]) == (7, [2, 5])
    assert scores == {index: index for index in (0, 1, 3, 4, 6, 7, 8)}


@pytest.mark.parametrize("function", ["sorted_in_place", "uncollated"])
def test_samples_that_change_their_order_are_scored_under_their_own_index(app: App, run: str, function: str) -> None:
    ended, receipt, scores = evaluated(app, run, collate(function))
    assert ended.status == 0, ended.err
    assert receipt["samples_scored"] == 9
    assert scores == {index: index for index in range(9)}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ((collate("packed"),), "packed made a batch with 1 row of 4 samples"),
        ((*unread("test", 9), collate("filled_up")), "filled_up made a batch with 4 rows of 4 samples"),
    ],
)
def test_an_evaluation_of_which_the_samples_cannot_be_told_is_refused_or_says_so(
    app: App, run: str, more: tuple[str, ...], reason: str
) -> None:
    ended = app("test", "--run_dir", run, *more)
    assert ended.status == 2
    assert f"which test samples are scored cannot be told: {reason}. To evaluate all the same" in ended.err
    ended, receipt, _ = evaluated(app, run, *more, "--unproven=true")
    assert ended.status == 0, ended.err
    assert receipt["unproven"] == [f"which test samples are scored cannot be told: {reason}"]
    assert receipt["samples_scored"] is receipt["missing"] is None


def test_a_hook_that_drops_samples_on_their_way_proves_nothing(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--model=tests.support.collates.DropsOnTheWay", "--run_dir", tmp_path).status == 0
    ended = app("test", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "a batch transfer hook made a batch with 3 rows of 4 samples" in ended.err
