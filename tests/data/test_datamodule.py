"""The DataModule: batches for every world, validation on uneven ranks, mistakes named before training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from tests.support.commands import Ended
from tests.support.models import Indexed, Rows

App = Callable[..., Ended]


def indices(loader: Any) -> list[list[int]]:
    return [batch[0][:, 0].long().tolist() for batch in loader]


def test_an_epoch_is_a_permutation_of_the_training_set_and_the_next_one_is_another() -> None:
    data = DataModule(train=Indexed(), batch_size=16, seed=3)
    loader = data.train_dataloader()
    first = [index for batch in indices(loader) for index in batch]
    loader.batch_sampler.sampler.set_epoch(1)
    second = [index for batch in indices(loader) for index in batch]
    assert sorted(first) == sorted(second) == list(range(101))
    assert first != second
    again = [
        index
        for batch in indices(DataModule(train=Indexed(), batch_size=16, seed=3).train_dataloader())
        for index in batch
    ]
    other = [
        index
        for batch in indices(DataModule(train=Indexed(), batch_size=16, seed=4).train_dataloader())
        for index in batch
    ]
    assert first == again
    assert first != other


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["val", "test", "predict"])
def test_evaluation_reads_in_ascending_order(split: str, workers: int) -> None:
    data = DataModule(**{split: Indexed()}, eval_batch_size=10, num_workers=workers)  # type: ignore[arg-type]
    found = indices(getattr(data, f"{split}_dataloader")())
    assert [index for batch in found for index in batch] == list(range(101))
    # In one process the eleventh batch holds the one that is left.
    assert [len(batch) for batch in found] == [10] * 10 + [1]


def test_the_loaders_length_is_the_whole_epochs_wherever_it_stands() -> None:
    data = DataModule(train=Indexed(), batch_size=16)
    data.resume(2, 48)
    loader = data.train_dataloader()
    assert len(loader) == 7
    assert len(indices(loader)) == 4
    whole = DataModule(train=Indexed(), batch_size=16)
    whole.resume(2, 0)
    assert indices(whole.train_dataloader())[3:] == indices(loader)


@pytest.mark.parametrize(
    ("world_size", "accumulate", "batch_size"), [(1, 1, 24), (2, 1, 12), (3, 1, 8), (2, 2, 6), (4, 3, 2), (24, 1, 1)]
)
def test_a_global_batch_is_shared_out(world_size: int, accumulate: int, batch_size: int) -> None:
    assert DataModule(train=Rows(), global_batch_size=24).check(world_size, accumulate) == batch_size


@pytest.mark.parametrize(
    ("world_size", "accumulate", "words"),
    [
        (5, 1, r"data.global_batch_size=24 does not divide by 5 \(world size 5 x accumulate_grad_batches 1\)"),
        (5, 1, "the nearest that do are 20 and 25"),
        (2, 5, "the nearest that do are 20 and 30"),
        (48, 1, "the nearest that do are 48$"),
    ],
)
def test_an_indivisible_global_batch_is_named_with_the_nearest(world_size: int, accumulate: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        DataModule(train=Rows(), global_batch_size=24).check(world_size, accumulate)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data.batch_size=4", "--data.global_batch_size=8"), "both set the batch"),
        (("--data.batch_size=0",), "data.batch_size=0 must be >= 1"),
        (("--data.global_batch_size=-1",), "data.global_batch_size=-1"),
        (("--data.eval_batch_size=0",), "data.eval_batch_size=0"),
        (("--data.num_workers=-1",), "data.num_workers=-1"),
        (("--data.train.init_args.n=0",), "data.train=Rows is empty: there is nothing to train on"),
        (("--data.train=tests.support.models._Stream",), "data.train=_Stream is not map-style"),
        (("--data.drop_last=true", "--data.batch_size=102"), "fill no batch of 102 on each of 1 processes"),
        (("--data.global_batch_size=7", "--trainer.accumulate_grad_batches=2"), "does not divide by 2"),
        (
            (
                "--data.global_batch_size=8",
                "--trainer.callbacks=GradientAccumulationScheduler",
                "--trainer.callbacks.scheduling={1: 2}",
            ),
            "GradientAccumulationScheduler changes the batches per step, so that it",
        ),
    ],
)
def test_a_mistake_is_one_message_before_training(
    app: App, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    ended = app(
        *(
            "fit",
            "--model=tests.support.models.Regression",
            "--data=pipeline.data.DataModule",
            "--data.train=tests.support.models.Rows",
        ),
        *(*arguments, "--run_dir", tmp_path / "run", "--trainer.max_epochs=1"),
    )
    assert ended.status == 2, ended.err
    assert words in ended.err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "fit.yaml").exists()


def test_a_command_without_its_dataset_names_those_that_there_are(app: App, tmp_path: Path) -> None:
    base = (
        "--model=tests.support.models.Regression",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.support.models.Rows",
    )
    assert app("fit", *base, "--run_dir", tmp_path, "--trainer.max_epochs=1").status == 0
    ended = app("test", "--run_dir", tmp_path)
    assert ended.status == 2
    assert "data.test names no dataset, and this command needs one; named are: train" in ended.err


def test_a_position_beyond_the_dataset_is_another_datasets() -> None:
    with pytest.raises(UserError, match=r"data\.train has 101 samples, but the checkpoint stands at position 102"):
        DataModule(train=Rows()).resume(0, 102)


def test_loading_draws_nothing_from_the_global_generator() -> None:
    data = DataModule(train=Rows(), val=Rows(), batch_size=16)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for _ in loader:
            pass
    assert torch.equal(before, torch.get_rng_state())
