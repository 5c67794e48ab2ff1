"""A wish that cannot be is one message with all that is wrong, before anything is trained."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.datamodule import DataModule
from pipeline.data.wish import Wish, cached
from pipeline.errors import UserError
from tests.support.commands import Ended
from tests.support.wished import SIZE, Batched, Seeded, Uneven

App = Callable[..., Ended]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": "weights", "balance": "oversample"}, ["data.weights and data.balance each say what an epoch"]),
        ({"weights": "weights", "samples_per_epoch": 0}, ["data.samples_per_epoch=0 must be >= 1"]),
        ({"samples_per_epoch": 5}, ["there are no weights: name them, or limit epochs"]),
        ({"targets": "labels"}, ["data.targets='labels' names the classes for data.balance, which is not asked for"]),
        ({"group_by_length": True, "batch_size": 4}, ["give data.global_batch_size"]),
        (
            {"samples_per_epoch": -1, "targets": "y", "prefetch_factor": 2, "num_workers": 0, "batch_size": 0},
            [
                "samples_per_epoch=-1 must",
                "there are no weights",
                "data.targets='y'",
                "prefetch_factor=2",
                "batch_size=0",
            ],
        ),
    ],
)
def test_a_wish_that_cannot_be_is_refused_with_all_that_is_wrong(arguments: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        DataModule(train=Uneven(), **arguments)
    for each in words:
        assert sum(each in problem for problem in error.value.problems) == 1, error.value.problems


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (
            {"weights": [1.0] * 100},
            "data.weights gives float64 (100,), and must give one number or text for each of the 101",
        ),
        ({"weights": [0.0] * SIZE}, "data.weights: all 101 are 0, so that no sample can be drawn"),
        (
            {"weights": [-1.0] * 2 + [1.0] * 99},
            "data.weights: 2 of 101 are negative, and must be finite and >= 0; the first",
        ),
        (
            {"weights": [1.0] * 99 + [float("nan"), float("inf")]},
            "1 of 101 are NaN, and must be finite and >= 0; the first is",
        ),
        ({"weights": "other"}, "data.weights='other' gives float64 (100,)"),
        ({"weights": "weihgt"}, "Uneven has no attribute or method 'weihgt'"),
        ({"weights": "weihgt"}, "did you mean 'weight'?"),
        ({"group_by_length": "classes"}, "data.group_by_length='classes' gives <U1 (4,)"),
        ({"balance": "oversample", "targets": "x"}, "data.targets='x' gives float32 (101, 4)"),
        (
            {"balance": "oversample", "targets": "label"},
            "has no attribute or method 'label' with a value for each sample",
        ),
        ({"balance": "undersample", "targets": "ones"}, "3 have no sample (0 'a', 2 'c', 3 'd')"),
        (
            {"balance": "oversample", "targets": "three"},
            "of the 4 classes that the dataset lists, 1 have no sample (3 'd')",
        ),
        ({"balance": "oversample", "targets": "letters"}, "1 have no sample ('d')"),
        ({"balance": "oversample", "targets": "nan"}, "data.targets: sample 4 has nan, which is no class"),
    ],
)
def test_values_that_are_none_are_named(wish: dict[str, Any], words: str) -> None:
    dataset: Any = Uneven()
    dataset.ones = [1] * SIZE
    dataset.three = np.arange(SIZE) % 3
    dataset.letters = [("a", "b", "c")[at % 3] for at in range(SIZE)]
    dataset.nan = [0.0, 1.0, 2.0, 3.0, float("nan"), *[0.0] * 96]
    with pytest.raises(UserError, match=re.escape(words)):
        Wish(**wish, group=8).order(dataset)


def test_one_class_leaves_nothing_to_balance() -> None:
    dataset: Any = Uneven()
    dataset.classes, dataset.targets = None, [1] * SIZE
    with pytest.raises(UserError, match=r"has one class only \(1\), and nothing to balance"):
        Wish(balance="oversample").order(dataset)


def test_all_that_is_wrong_with_weights_is_said_at_once() -> None:
    with pytest.raises(UserError) as error:
        Wish([1.0] * 98 + [float("nan"), float("inf"), -1.0]).order(Uneven())
    assert [re.search(r"are (\w+),", each)[1] for each in error.value.problems] == ["NaN", "infinite", "negative"]  # type: ignore[index]


def test_a_wishs_numbers_are_read_once_for_a_dataset() -> None:
    calls = []

    class Counting(Uneven):
        def weights(self) -> list[float]:
            calls.append(1)
            return super().weights()

    order, dataset = cached(Wish("weights")), Counting()
    assert order(dataset) is order(dataset)
    assert len(calls) == 1
    assert order(Counting()) is not order(dataset)


@pytest.mark.parametrize(
    ("wish", "changed"),
    [
        (("--data.weights=weights",), ("--data.weights=weight", "--data.samples_per_epoch=90")),
        (("--data.weights=weights", "--data.samples_per_epoch=50"), ("--data.weights=weights",)),
        (("--data.group_by_length=true",), ("--data.group_by_length=weight",)),
        (("--data.balance=oversample",), ("--data.balance=undersample",)),
        (("--data.balance=undersample",), ()),
        ((), ("--data.balance=oversample",)),
    ],
)
def test_another_wish_stops_a_resume_unless_it_is_allowed(
    app: App, tmp_path: Path, wish: tuple[str, ...], changed: tuple[str, ...]
) -> None:
    fit = ("fit", "--model=tests.support.wished.Small", "--data=pipeline.data.DataModule", "--run_dir", tmp_path)
    data = ("--data.train=tests.support.wished.Uneven", "--data.global_batch_size=16", "--trainer.max_epochs=3")
    quiet = ("--trainer.enable_model_summary=false", "--trainer.logger=false")
    saved = (*quiet, "--checkpoints.every_n_steps=1", "--checkpoints.keep_last=30")
    ended = app(*fit, *data, *wish, *saved, "--trainer.max_steps=2")
    assert ended.status == 0, ended.err
    ended = app(*fit, *data, *changed, *quiet, "--trainer.max_steps=9")
    assert ended.status == 2, ended.err
    assert "train_order is" in ended.err
    assert "the current epoch would continue in an order that is not its own" in ended.err
    ended = app(*fit, *data, *changed, *quiet, "--trainer.max_steps=9", "--allow_mismatch=train_order")
    assert ended.status == 0, ended.err
    verified = app("verify", "--run_dir", tmp_path)
    assert verified.status == 0, verified.text
    assert "every sample is accounted for" in verified.out
    assert "mismatch" in verified.out or "ok" in verified.out


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [Uneven, Batched, Seeded])
def test_what_is_loaded_is_what_the_order_says(kind: Any, workers: int) -> None:
    data = DataModule(train=kind(), weights="weights", batch_size=8, num_workers=workers, seed=4)
    data.resume(1, 24)
    found = [index for batch in data.train_dataloader() for index in batch[0][:, 0].int().tolist()]
    order = data.train_order
    assert order is not None
    assert found == order.of_epoch(4, 1)(np.arange(24, SIZE)).tolist()


def test_a_sample_that_comes_twice_draws_other_numbers_each_time_and_the_same_ones_in_any_world() -> None:
    data = DataModule(train=Seeded(), weights="weights", samples_per_epoch=300, batch_size=8)
    rows = [tuple(row[:2].tolist()) for batch in data.train_dataloader() for row in batch[0]]
    assert len({index for index, _ in rows}) < 101
    assert len(set(rows)) == 300
    halves = []
    for rank in range(2):
        loader = data._loader(data.datasets["train"], batch_sampler=data.planned(0, 0, rank, 2))
        halves.append([tuple(row[:2].tolist()) for batch in loader for row in batch[0]])
    assert [row for pair in zip(*halves, strict=True) for row in pair] == rows


def test_the_app_refuses_what_a_training_set_lacks_before_training(app: App, tmp_path: Path) -> None:
    ended = app(
        *(
            "fit",
            "--model=tests.support.models.Regression",
            "--data=pipeline.data.DataModule",
            "--data.balance=oversample",
        ),
        *("--data.train=tests.support.models.Rows", "--run_dir", tmp_path),
    )
    assert ended.status == 2
    assert "data.targets='targets': Rows has no attribute or method 'targets'" in ended.err
    assert "Traceback" not in ended.err
    assert not list(tmp_path.glob("checkpoints/*"))
