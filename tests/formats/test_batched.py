"""Batches are fetched whole, transforms draw by the sample, and names that do not exist have a neighbour."""

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.seeded import SeededCollate, SeededDataset
from pipeline.errors import UserError
from pipeline.formats.batched import Batched, as_classes, choose, load_library, stacked
from tests.support.commands import BLOCK, ROOT


class Squares(Batched):
    """Numbers and their squares."""

    def __len__(self) -> int:
        return 10

    def fetch(self, indices: Any) -> dict[str, Any]:
        return {"x": torch.from_numpy(indices), "y": torch.from_numpy(indices**2)}


def noisy(sample: Any) -> Any:
    return {**sample, "noise": (torch.rand(()).item(), np.random.random(), random.random())}


def test_batches_and_samples_hold_the_same() -> None:
    batch = Squares().__getitems__([3, -1, 3])
    assert batch["y"].tolist() == [9, 81, 9]
    assert Squares()[3] == {"x": 3, "y": 9}
    assert Squares(as_tuple=True)[2] == (2, 4)
    assert [int(sample["x"]) for sample in Squares()] == list(range(10)), "it ends as a sequence does"
    for wrong in (10, -11):
        with pytest.raises(IndexError, match="has 10 samples"):
            Squares()[wrong]


def test_what_a_transform_draws_depends_on_the_sample_alone() -> None:
    dataset = SeededDataset(Squares(noisy), seed=5)
    state = torch.get_rng_state()
    assert dataset.whole, "batch by batch all the same"
    first = dataset.__getitems__([1, 2, 3])
    assert torch.equal(state, torch.get_rng_state())
    assert dataset.__getitems__([3])[0]["noise"] == first[2]["noise"] != first[1]["noise"]
    assert Squares(noisy)[1]["x"] == 1, "without a seed it draws as it is"


def test_a_collate_function_of_the_users_gets_the_samples_of_a_whole_batch() -> None:
    dataset = SeededDataset(Squares(), seed=5)
    found = SeededCollate(lambda samples: [int(each["y"]) for each in samples], dataset)(dataset.__getitems__([1, 2]))
    assert found == [1, 4]


def test_names_that_do_not_exist_have_a_neighbour() -> None:
    assert choose(None, ["a", "b"], "x") == ["a", "b"]
    assert choose(["b", "b", "a"], ["a", "b"], "x") == ["b", "a"]
    with pytest.raises(UserError) as raised:
        choose(["labl", "pixls"], ["label", "pixels"], "rows.parquet")
    assert raised.value.problems == (
        "rows.parquet has no column 'labl' (it has label, pixels); did you mean 'label'?",
        "rows.parquet has no column 'pixls' (it has label, pixels); did you mean 'pixels'?",
    )
    with pytest.raises(UserError, match="at least one"):
        choose([], ["a"], "x")


def test_numbers_and_tensors_of_one_shape_are_stacked_and_nothing_else_is() -> None:
    assert stacked([1, 2]).dtype == torch.int64
    assert stacked([1.0, 2.0]).dtype == torch.float32
    assert stacked([torch.zeros(2), torch.ones(2)]).shape == (2, 2)
    for values in ([torch.zeros(2), torch.ones(3)], [1, None], ["a"], [1, 2.0], []):
        assert stacked(values) is values
    with pytest.raises(UserError, match="one whole number for each sample"):
        as_classes(np.zeros(3), "x")


@pytest.mark.parametrize(
    ("library", "extra", "call"),
    [
        ("pyarrow", "parquet", "Table('tests').prepare_data()"),
        ("datasets", "datasets", "HuggingFace('tests')"),
        ("PIL", "images", "Images('tests')"),
        ("webdataset", "shards", "TarShards('tests')"),
    ],
)
def test_a_missing_library_names_the_command_that_installs_it(
    library: str, extra: str, call: str, tmp_path: Any
) -> None:
    (tmp_path / "a.arrow").write_bytes(b"ARROW1")
    program = f"import sys; from pipeline.formats import *\n{call}".replace("'tests'", repr(str(tmp_path)))
    ended = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=(library,)) + program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=90,
    )
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("pipeline.errors.UserError")
    assert f"pip install 'torchx-lightning-pipeline[{extra}]'" in last
    assert load_library("json", "none", "x").dumps(1) == "1"
