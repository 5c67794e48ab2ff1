"""Datasets as users have them: downloaded first, split in setup, made by functions, with samples that fail."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.commands import Ended, torchrun

App = Callable[..., Ended]
FIT = (
    *("fit", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule", "--data.batch_size=4"),
    *("--trainer.enable_model_summary=false", "--trainer.logger=false", "--trainer.max_epochs=1"),
)
DOWNLOADS = "--data.train=tests.support.late_data.Downloads"


def test_a_dataset_that_is_only_there_after_prepare_data_trains(app: App, tmp_path: Path) -> None:
    ended = app(*FIT, DOWNLOADS, f"--data.train.path={tmp_path}/rows.pt", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "finished: step 6" in ended.err
    assert (tmp_path / "rows.pt.calls").read_text() == "0\n"


@pytest.mark.timeout(240)
def test_one_process_of_a_node_downloads_for_all(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(
        json.dumps([[*FIT, DOWNLOADS, f"--data.train.path={tmp_path}/rows.pt", "--run_dir", f"{tmp_path}/run"]])
    )
    ended = torchrun(2, "-m", "tests.support.rank_runner", tmp_path / "plan.json", timeout=200)
    assert ended.status == 0, ended.text
    assert (tmp_path / "rows.pt.calls").read_text() == "0\n"


def test_a_missing_file_is_one_sentence_with_what_to_do(app: App, tmp_path: Path) -> None:
    for dataset, words in (
        ("Downloads", "no"),  # a folder that is not there
        ("Local", "the training or validation data cannot be read"),
    ):
        data = (f"--data.train=tests.support.late_data.{dataset}", f"--data.train.path={tmp_path}/no/rows.pt")
        ended = app(*FIT, *data, "--run_dir", tmp_path / "run")
        assert ended.status == 2
        assert words in ended.err
    assert "belongs into the dataset's prepare_data()" in ended.err


def test_a_data_module_that_splits_in_setup_splits_once_and_resumes(app: App, tmp_path: Path) -> None:
    more = ("--data=tests.support.late_data.Splits", "--checkpoints.every_n_steps=2", "--run_dir", tmp_path)
    assert app(*FIT, *more, "--trainer.max_steps=2").status == 0
    ended = app(*FIT, *more)
    assert ended.status == 0, ended.err
    assert "resumed at step 2" in ended.err
    assert "finished: step 6" in ended.err
    assert app("verify", "--run_dir", tmp_path).status == 0


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--data.train=tests.support.late_data.Unreadable",), "raised by Unreadable[17]"),
        (("--data.train=tests.support.late_data.UnreadableBatch",), "raised by UnreadableBatch.__getitems__(["),
        (
            (
                "--data.train=tests.support.models.Rows",
                "--data.collate_fn=tests.support.late_data.cannot_collate",
            ),
            "raised while the samples [",
        ),
    ],
)
def test_a_sample_that_fails_is_named(
    app: App, tmp_path: Path, more: tuple[str, ...], words: str, workers: int
) -> None:
    with pytest.raises(ValueError, match=r"not an image|ragged") as raised:
        app(*FIT, *more, "--data.train.n=200", f"--data.num_workers={workers}", "--run_dir", tmp_path)
    assert words in f"{raised.value} {getattr(raised.value, '__notes__', '')}"
    attempt = json.loads((tmp_path / "attempts/0001.json").read_text())
    assert words in attempt["reason"]


def test_a_function_makes_a_dataset_if_it_says_so(app: App, tmp_path: Path) -> None:
    assert app(*FIT, "--data.train=tests.support.late_data.annotated", "--run_dir", tmp_path).status == 0
    ended = app(*FIT, "--data.train=tests.support.late_data.unannotated", "--run_dir", tmp_path / "two")
    assert ended.status == 2
    assert "def unannotated(...) -> torch.utils.data.Dataset:" in ended.err
    ended = app(*FIT, "--data.train=torch.utils.data.random_split", "--run_dir", tmp_path / "three")
    assert ended.status == 2
    assert "torch.utils.data.random_split is a function that returns list[" in ended.err


def test_torchs_own_datasets_of_datasets_are_named_in_yaml(app: App, tmp_path: Path) -> None:
    rows = "{class_path: tests.support.models.Rows, init_args: {n: 24}}"
    for name, arguments, samples in (
        ("Subset", f"dataset: {rows}, indices: [5, 3, 1, 7, 9, 11, 13, 15]", 8),
        ("ConcatDataset", f"datasets: [{rows}, {rows}]", 48),
    ):
        config = tmp_path / f"{name}.yaml"
        config.write_text(
            f"data: {{class_path: pipeline.data.DataModule, init_args: {{batch_size: 4, train: "
            f"{{class_path: torch.utils.data.{name}, init_args: {{{arguments}}}}}}}}}"
        )
        ended = app(*[each for each in FIT if "--data" not in each], "--config", config, "--run_dir", tmp_path / name)
        assert ended.status == 0, ended.err
        checkpoint = torch.load(max((tmp_path / name).glob("checkpoints/*.ckpt")), weights_only=True)
        assert checkpoint["pipeline"]["ledger"][0]["consumed"][0] == samples
