"""`data`: what the sets consist of and how an epoch goes through them; nothing is trained and no run is touched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.datamodule import DataModule
from tests.support.commands import DIGITS, Ended
from tests.support.models import Rows

App = Callable[..., Ended]
DATA = ("data", "--data=pipeline.data.DataModule")
ROWS = (*DATA, "--data.train=tests.support.models.Rows", "--data.batch_size=16")


def told(app: App, *arguments: object, status: int = 0) -> dict[str, Any]:
    ended = app(*arguments, "--json")
    assert ended.status == status, ended.text
    found: dict[str, Any] = json.loads(ended.out)
    return {**{each["name"]: each for each in found["sets"]}, "problems": found["problems"]}


def test_sizes_ranges_classes_and_the_order_are_shown_within_80_columns(app: App) -> None:
    ended = app("data", "--config", DIGITS, "--trainer.devices=3")
    assert ended.status == 0, ended.err
    for words in (
        *("data for 3 ranks", "train: pipeline.examples.digits.Digits", "1,257", "14 of 32 samples on each of 3 ranks"),
        *("float32  64", "10 classes: 0: 101, 1: 96", "of 1,000 samples, spread evenly over the set", "epoch 1 rank 2"),
        *("predict: pipeline.examples.digits.Digits", "first samples"),
    ):
        assert words in ended.out, words
    assert max(map(len, ended.out.splitlines())) <= 80


def test_the_same_goes_through_json(app: App) -> None:
    train = told(app, "data", "--config", DIGITS, "--read=100", "--samples=2")["train"]
    assert (train["samples"], train["batches"], train["read"], train["read_all"]) == (1257, 40, 100, False)
    assert [field["dtype"] for field in train["fields"]] == ["float32", "int64"]
    assert sum(train["fields"][1]["classes"].values()) == 100
    assert list(train["first_samples"]) == ["0", "1"]


def test_no_model_is_needed_and_the_order_is_that_of_a_training(app: App) -> None:
    train = told(app, *ROWS, "--data.seed=9", "--trainer.num_nodes=2")["train"]
    real = [list(batch) for batch in DataModule(train=Rows(), batch_size=16, seed=9).planned(1, 0, 1, 2)][:2]
    assert {"epoch": 1, "rank": 1, "batches": real} in train["first_batches"]


def test_a_model_that_brings_its_loader_is_asked_for_it(app: App) -> None:
    assert told(app, "data", "--model=tests.support.inspected.BringsItsOwn")["train"]["samples"] == 50


def test_texts_labels_and_nested_fields_are_told(app: App) -> None:
    ended = app(*DATA, "--data.train=tests.support.inspected.Mappings")
    for words in ("3 classes: ant: 13, cat: 14, horse: 13", "more.v", "2x3", "3..5 long", "word 'horse'"):
        assert words in ended.out, ended.out


def test_a_sample_that_fails_is_named_and_the_rest_is_told(app: App) -> None:
    ended = app(*DATA, "--data.train=tests.support.inspected.Torn", "--data.batch_size=8")
    assert ended.status == 2
    assert "error: train: sample 17 cannot be read: ValueError: the row is torn" in ended.err
    assert "(raised by Torn[17])" in ended.err
    assert "of all 49 samples" in ended.out
    assert "Traceback" not in ended.text


def test_an_empty_set_is_said_to_be_empty(app: App) -> None:
    found = told(app, *DATA, "--data.train=tests.support.models.Rows", "--data.train.n=0", status=2)
    assert found["train"]["samples"] == 0
    assert found["problems"] == ["data.train=Rows is empty: it has no samples"]


def test_streams_and_stages_that_fail_are_told_side_by_side(app: App) -> None:
    ended = app("data", "--data=tests.support.inspected.Streams")
    assert ended.status == 2
    assert "of all 30 samples" in ended.out
    assert "A stream: it has neither a length nor indices" in ended.out
    assert "val['small']: tests.support.models.Rows" in ended.out
    assert "setup('test') fails: RuntimeError: the test set is not for you (tests/support/inspected.py:" in ended.err


def test_what_a_fit_would_refuse_is_refused_here(app: App) -> None:
    ended = app(*ROWS, "--data.batch_size=null", "--data.global_batch_size=10", "--trainer.devices=4")
    assert ended.status == 2
    assert "data.global_batch_size=10 does not divide by 4" in ended.err
    assert "of all 101 samples" in ended.out


def test_pictures_of_the_first_samples_are_one_file(app: App, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    sets = ("--data.train=tests.support.inspected.Pictured", "--data.val=tests.support.inspected.Pictured")
    ended = app(*DATA, *sets, "--picture", tmp_path / "data.png", "--samples=3")
    assert ended.status == 0, ended.err
    assert "data.png shows the first samples of train, val, in this order." in ended.out
    pixels = np.asarray(image.open(tmp_path / "data.png"))
    assert {0, 43, 85} <= set(np.unique(pixels).tolist())


def test_without_pictures_no_file_is_written(app: App, tmp_path: Path) -> None:
    ended = app(*ROWS, "--picture", tmp_path / "data.png")
    assert "is not written: no dataset here has a method picture(index)" in ended.out
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_picture_is_named(app: App, tmp_path: Path) -> None:
    ended = app(
        *(
            *DATA,
            "--data.train=tests.support.inspected.Pictured",
            "--data.train.wrong=true",
            "--picture",
            tmp_path / "x.png",
        )
    )
    assert ended.status == 2
    assert "train: ValueError: Pictured.picture(0): a picture must be" in ended.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--samples=-1",), "samples=-1 must be >= 0"),
        (("--read=-5",), "read=-5 must be >= 0"),
        (("--picture=/nowhere/x.png",), "there is no folder /nowhere: make it first"),
        (("--picture=x.png", "--samples=0"), "samples=0 leaves no sample for --picture"),
        (("--data.train.m=1",), "m"),
    ],
)
def test_a_mistake_is_one_sentence(app: App, flags: tuple[str, ...], words: str) -> None:
    ended = app(*ROWS, *flags)
    assert ended.status == 2
    assert words in ended.err
    assert "Traceback" not in ended.text


def test_without_data_and_model_it_says_what_to_name(app: App) -> None:
    ended = app("data")
    assert ended.status == 2
    assert "data is missing: name the data to look at" in ended.err


def test_a_model_without_loaders_brings_no_data(app: App) -> None:
    ended = app("data", "--model=tests.support.models.Regression")
    assert ended.status == 2
    assert "Regression brings no data" in ended.err
