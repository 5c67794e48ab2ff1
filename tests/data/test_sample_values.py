"""One value for each sample is found by name, in a file or in a list, also through parts of datasets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.data

from pipeline.data.parts import Concat, Split, Subset
from pipeline.data.sample_values import class_names, numbers_of, values_of
from pipeline.errors import UserError
from tests.support.wished import Uneven


def test_a_list_an_array_a_tensor_a_method_and_a_file_are_all_the_same(tmp_path: Path) -> None:
    dataset: Any = Uneven(50)
    dataset.tensor = torch.from_numpy(dataset.lengths)
    dataset.list = dataset.lengths.tolist()
    dataset.method = lambda: dataset.list
    np.save(tmp_path / "a.npy", dataset.lengths)
    for source in (
        "lengths",
        "tensor",
        "list",
        "method",
        f"{tmp_path}/a.npy",
        f"file://{tmp_path}/a.npy",
        dataset.list,
    ):
        assert values_of(dataset, source, "data.weights").tolist() == dataset.list


@pytest.mark.parametrize("kind", ["ours", "torch's"])
def test_values_are_those_of_the_parts_in_their_order(kind: str) -> None:
    left, right = Uneven(40, seed=1), Uneven(30, seed=2)
    both: Any = Concat([left, right]) if kind == "ours" else torch.utils.data.ConcatDataset([left, right])
    chosen = [69, 0, 41, 7]
    some: Any = Subset(both, chosen) if kind == "ours" else torch.utils.data.Subset(both, chosen)
    expected = np.concatenate([left.lengths, right.lengths])[chosen]
    assert values_of(some, "lengths", "data.weights").tolist() == expected.tolist()
    split = Split(some, [0.5, 0.5], 1)
    assert values_of(split, "lengths", "data.weights").tolist() == expected[split.indices].tolist()
    assert class_names(Subset(left, first=3)) == ["a", "b", "c", "d"]
    assert class_names(both) == [], "each may number its classes otherwise"


@pytest.mark.parametrize("source", ["left.npy", "absent"])
def test_what_is_missing_names_the_dataset_within(source: str, tmp_path: Path) -> None:
    dataset = Subset(Concat([Uneven(9)]), first=4)
    if source.endswith(".npy"):
        np.save(tmp_path / source, np.ones(9))
        with pytest.raises(UserError, match=r"float64 \(9,\), and must give one number or text for each of the 4"):
            values_of(dataset, f"{tmp_path}/{source}", "data.weights")
    else:
        with pytest.raises(
            UserError, match=r"Uneven has no attribute or method 'absent'.*name one of lengths, .*weight"
        ):
            values_of(dataset, source, "data.weights")


def test_texts_are_no_numbers_and_rows_of_different_lengths_no_array() -> None:
    dataset: Any = Uneven(3)
    dataset.names, dataset.rows = ["a", "b", "c"], [[1], [1, 2], [3]]
    with pytest.raises(UserError, match=r"data.weights='names' gives <U1, and must give numbers"):
        numbers_of(dataset, "names", "data.weights")
    with pytest.raises(UserError, match=r"data.weights='rows': no array of one value for each sample"):
        numbers_of(dataset, "rows", "data.weights")
