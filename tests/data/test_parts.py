"""Parts of datasets, and several as one: by YAML, nested, in batches, with all that is known of what they hold."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.data
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import Concat, Split, Subset
from pipeline.data.datamodule import DataModule
from pipeline.data.parts import fetches_batches, is_deterministic
from pipeline.data.pictures import has_pictures, pixels_of
from pipeline.data.sample_ids import fingerprint
from pipeline.data.seeded import SeededDataset
from pipeline.errors import UserError
from tests.support.commands import Ended
from tests.support.wished import SIZE, Batched, PreparedLate, Ragged, Seeded, Uneven

App = Callable[..., Ended]


def firsts(dataset: Any) -> list[int]:
    return [int(dataset[at][0][0]) for at in range(len(dataset))]


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 200), shares=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_the_parts_of_a_split_are_all_of_it_and_none_overlap(size: int, shares: list[int], seed: int) -> None:
    fractions = [share / sum(shares) for share in shares]
    parts = [Split(range(size), fractions, part, seed) for part in range(len(shares))]  # type: ignore[arg-type]
    found = [int(index) for part in parts for index in part.indices]
    assert sorted(found) == list(range(size))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * size) <= 1
        assert list(part.indices) == sorted(part.indices)


def test_a_split_is_random_and_the_same_each_time() -> None:
    found = [list(Split(Uneven(), {"a": 0.5, "b": 0.5}, "a", seed).indices) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0] != list(range(len(found[0])))


def test_a_subset_is_what_is_named_or_the_first_ones_or_what_a_file_says(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", np.array([5, 3]))
    assert firsts(Subset(Uneven(), [7, 2])) == [7, 2]
    assert firsts(Subset(Uneven(), f"{tmp_path}/i.npy")) == [5, 3]
    assert firsts(Subset(Uneven(), first=3)) == [0, 1, 2]
    assert firsts(Concat([Subset(Uneven(), [7, 2]), Subset(Uneven(), first=2)])) == [7, 2, 0, 1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Subset(Uneven()), "takes either indices or first"),
        (lambda: Subset(Uneven(), [1], first=1), "takes either indices or first"),
        (lambda: Subset(Uneven(), first=-1), "first=-1 must be >= 0"),
        (lambda: len(Subset(Uneven(), first=102)), "Subset of Uneven, which has 101 samples: first=102 are more"),
        (lambda: len(Subset(Uneven(), [3, 101, -1])), "indices must be 0 to 100; 2 are not, first 101"),
        (lambda: len(Subset(Uneven(), [0.5])), "indices are float64"),  # type: ignore[list-item]
        (lambda: Split(Uneven(), [0.5, 0.4], 0), r"fractions \[0.5, 0.4\] sum up to 0.9, and must to 1"),
        (lambda: Split(Uneven(), [1.5, -0.5], 0), "fractions has -0.5, and each must be a number > 0"),
        (lambda: Split(Uneven(), {"train": 1.0}, "val"), "part='val' is none of 'train'"),
        (lambda: Split(Uneven(), [0.5, 0.2], 2), "sum up to 0.7"),
        (lambda: Split(Uneven(), [0.5, 0.2], 2), "part=2 is none of 0, 1"),
        (lambda: Concat([]), "datasets is empty"),
    ],
)
def test_what_cannot_be_is_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


def nested(kind: Any, ours: bool = True) -> Any:
    if ours:
        return Subset(Concat([Subset(kind(), first=60), kind(80)]), list(range(139, 0, -3)))
    tu = torch.utils.data
    return tu.Subset(tu.ConcatDataset([tu.Subset(kind(), range(60)), kind(80)]), list(range(139, 0, -3)))


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("kind", [Uneven, Batched, Seeded])
def test_batches_through_parts_are_those_of_their_samples(kind: Any, ours: bool) -> None:
    dataset, indices = nested(kind, ours), [3, 40, 0, 31, 12]
    expected = firsts(dataset)
    assert fetches_batches(dataset) is (kind is not Uneven)
    assert bool(is_deterministic(dataset)) is (kind is Batched)
    fetched = SeededDataset(dataset, 3).__getitems__(indices)
    found = fetched[0][:, 0].tolist() if isinstance(fetched, tuple) else [row[0][0].item() for row in fetched]
    assert found == [expected[index] for index in indices]
    assert isinstance(fetched, tuple) is (kind is not Uneven)
    again = SeededDataset(pickle.loads(pickle.dumps(copy.deepcopy(dataset))), 3).__getitems__(indices)
    if isinstance(fetched, tuple):
        assert torch.equal(fetched[0], again[0]), "a sample's seed belongs to its place in the whole"


@pytest.mark.parametrize("workers", [0, 1])
def test_parts_of_different_kinds_are_one_batch_too(workers: int) -> None:
    data = DataModule(train=Concat([Batched(20), Uneven(10), Seeded(9)]), batch_size=13, num_workers=workers)
    found = sorted(index for batch in data.train_dataloader() for index in batch[0][:, 0].int().tolist())
    assert found == sorted([*range(20), *range(10), *range(9)])


def test_pictures_and_fingerprints_are_those_of_what_they_hold() -> None:
    dataset = nested(Batched)
    assert has_pictures(dataset)
    assert pixels_of(dataset, 0).item() == 139 - 60
    kinds = {
        name: fingerprint(each)
        for name, each in {
            "all": Batched(),
            "some": Subset(Batched(), [1, 2]),
            "others": Subset(Batched(), [2, 1]),
            "split": Split(Batched(), [0.5, 0.5], 0),
            "both": Concat([Batched(), Batched()]),
        }.items()
    }
    assert {kind for kind, _ in kinds.values()} == {"own"}
    assert len({value for _, value in kinds.values()}) == 5
    assert fingerprint(Subset(Uneven(), [1, 2]))[0] == "samples", "the dataset has none of its own"
    assert fingerprint(Subset(Uneven(), [1, 2])) != fingerprint(Subset(Uneven(), [2, 1]))


def test_data_are_prepared_before_a_part_asks_for_a_length() -> None:
    PreparedLate.ready = False
    data = DataModule(
        train=Split(Concat([PreparedLate()]), [0.5, 0.5], 0), val=torch.utils.data.Subset(PreparedLate(), [1])
    )
    data.prepare_data()
    assert len(data.sets("train")["train"]) in (50, 51)


def test_a_part_that_changes_its_samples_is_not_looked_through() -> None:
    class Negated(torch.utils.data.Subset[Any]):
        def __getitem__(self, index: Any) -> Any:
            x, y = super().__getitem__(index)
            return -x, y

        def __getitems__(self, indices: list[int]) -> Any:
            return [self[index] for index in indices]

    dataset = Negated(Batched(), [5, 6])
    assert not fetches_batches(dataset)
    assert [row[0][0].item() for row in SeededDataset(dataset, 0).__getitems__([0, 1])] == [-5, -6]


def test_a_length_that_no_batch_has_is_named_through_parts() -> None:
    class Short(Batched):
        def __getitems__(self, indices: list[int]) -> Any:
            return super().__getitems__(indices[1:])

    with pytest.raises(ValueError, match=r"Short.__getitems__ returned 1 samples for 2 indices"):
        SeededDataset(Concat([Batched(5), Short(5)]), 0).__getitems__([6, 7, 0])


YAML = """
seed_everything: 1
model: tests.support.wished.PerSet
data:
  class_path: pipeline.data.DataModule
  init_args:
    train:
      class_path: pipeline.data.Split
      init_args:
        dataset:
          class_path: pipeline.data.Concat
          init_args:
            datasets:
            - {class_path: tests.support.wished.Batched}
            - {class_path: tests.support.wished.Batched, init_args: {n: 50}}
        fractions: {train: 0.8, val: 0.2}
        part: train
    val:
      clean:
        class_path: pipeline.data.Subset
        init_args: {dataset: {class_path: tests.support.wished.Uneven}, first: 30}
      noisy:
        class_path: torch.utils.data.Subset
        init_args: {dataset: {class_path: tests.support.wished.Uneven}, indices: [40, 41, 42]}
    test:
      class_path: torch.utils.data.ConcatDataset
      init_args:
        datasets:
        - {class_path: tests.support.wished.Batched}
        - {class_path: tests.support.wished.Uneven, init_args: {n: 9}}
    balance: oversample
    batch_size: 8
trainer: {max_epochs: 2, enable_model_summary: false, logger: false}
checkpoints: {monitor: val_index/clean}
"""


def test_a_configuration_names_them_nested_and_each_validation_set_is_scored_once(app: App, tmp_path: Path) -> None:
    (tmp_path / "parts.yaml").write_text(YAML)
    ended = app("fit", "--config", tmp_path / "parts.yaml", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "val_index/clean 14.5" in ended.err, "the mean of 0 to 29"
    assert "val_index/noisy 41" in ended.err
    record = (tmp_path / "run" / "checkpoints").glob("*.json")
    assert '"name": "val_index/clean"' in max(record).read_text()
    verified = app("verify", "--run_dir", tmp_path / "run")
    assert "every sample is accounted for" in verified.out
    ended = app("test", "--run_dir", tmp_path / "run")
    assert ended.status == 0, ended.err
    assert "110 of 110 test samples scored, once each" in ended.err
    shown = app("data", "--config", tmp_path / "parts.yaml", "--read=20")
    assert shown.status == 0, shown.text
    for words in (
        "val.clean: pipeline.data",
        "val.noisy: torch.utils.data",
        "4 classes",
        "samples of smaller ones are",
    ):
        assert words in " ".join(shown.out.split())
    again = app("fit", "--config", tmp_path / "parts.yaml", "--run_dir", tmp_path / "run", "--trainer.max_epochs=3",
                "--data.val.clean.init_args.first=29")  # fmt: skip
    assert again.status == 2, again.text
    assert "val_data is clean" in again.err


def test_a_batch_that_does_not_fit_together_names_its_samples(app: App, tmp_path: Path) -> None:
    for workers in (0, 2):
        ended = app(
            *("fit", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule"),
            *(
                "--data.train=tests.support.wished.Ragged",
                f"--data.num_workers={workers}",
                "--run_dir",
                tmp_path / "run",
            ),
            "--trainer.enable_model_summary=false",
        )
        assert ended.status == 2, ended.text
        assert "field 'x': sample 17 has a tensor of float32 (3,), but sample" in ended.err
        assert "Traceback" not in ended.text
    assert len(Ragged()) == SIZE
