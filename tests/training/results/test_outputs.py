"""What steps return is kept in forms that load without executing pickled code."""

import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

from pipeline.errors import UserError
from pipeline.training.results.outputs import columns, concatenated, encode, portable, size


@dataclass
class Box:
    corner: torch.Tensor
    label: str


def read(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def test_arrays_records_and_mappings_become_what_loads_anywhere() -> None:
    grad = torch.ones(2, requires_grad=True)
    found = portable(OrderedDict(a=np.arange(3.0), b=[Box(grad, "x")], c=(np.float32(1.5), {"d": np.array(["s"])})))
    assert type(found) is dict
    assert torch.equal(found["a"], torch.arange(3.0, dtype=torch.float64))
    assert found["b"] == [{"corner": found["b"][0]["corner"], "label": "x"}]
    assert not found["b"][0]["corner"].requires_grad
    assert found["c"] == (1.5, {"d": ["s"]})


@pytest.mark.parametrize(
    ("output", "named"),
    [
        (torch.ones(3), {"prediction"}),
        (torch.ones(3, 2, 2), {"prediction"}),
        ({"a": torch.ones(3), "b": ["x", "y", None]}, {"a", "b"}),
        (torch.ones(4), None),
        (torch.tensor(1.0), None),
        ({"a": torch.ones(3), "b": torch.tensor(1.0)}, None),
        ({"a": [torch.ones(1)] * 3}, None),
        ({}, None),
        (None, None),
    ],
)
def test_columns_are_values_for_each_sample(output: Any, named: set[str] | None) -> None:
    found = columns(output, 3)
    assert (None if found is None else set(found)) == named


def test_batches_are_joined_where_they_are_alike() -> None:
    assert torch.equal(
        (concatenated([{"a": torch.ones(2)}, {"a": torch.zeros(1)}]) or {})["a"], torch.tensor([1.0, 1, 0])
    )
    assert concatenated([{"a": ["x"]}, {"a": ["y"]}]) == {"a": ["x", "y"]}
    assert concatenated([{"a": torch.ones(2, 3)}, {"a": torch.ones(2, 4)}]) is None
    assert concatenated([{"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.float64)}]) is None
    assert concatenated([{"a": torch.ones(2)}, {"b": torch.ones(2)}]) is None
    assert concatenated([{"a": torch.ones(1)}, {"a": ["x"]}]) is None


def test_tables_become_parquet_also_of_images_and_half_precision() -> None:
    images = torch.arange(12.0).reshape(3, 2, 2)
    kind, data = encode([(np.arange(3), {"image": images, "half": torch.ones(3, dtype=torch.bfloat16)})], "it")
    assert kind == "parquet"
    table = pyarrow.parquet.read_table(io.BytesIO(data))
    assert table["image"].to_pylist() == images.tolist()
    assert table["half"].to_pylist() == [1.0] * 3
    assert table["index"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("output", [{"index": torch.ones(2)}, {"z": torch.ones(2, dtype=torch.complex64)}])
def test_what_parquet_cannot_hold_stays_a_torch_file(output: dict[str, Any]) -> None:
    kind, data = encode([(np.array([5, 6]), output)], "it")
    assert kind == "pt"
    found = read(data)
    assert torch.equal(found["index"], torch.tensor([5, 6]))
    assert all(torch.equal(found["predictions"][name], value) for name, value in output.items())


def test_what_has_no_entry_for_each_sample_is_kept_by_batch() -> None:
    kind, data = encode([(np.array([0, 1]), [torch.ones(1), torch.ones(2)]), (None, "text")], "it")
    assert kind == "pt"
    found = read(data)
    assert found["index"][0].tolist() == [0, 1]
    assert found["index"][1] is None
    assert [len(each) for each in found["predictions"][0]] == [1, 2]
    assert found["predictions"][1] == "text"


def test_an_object_that_no_file_can_hold_is_named() -> None:
    with pytest.raises(UserError, match=r"what predict_step returns: predictions\[0\]\.path is a pathlib"):
        encode([(np.array([0]), {"path": Path("x")})], "what predict_step returns")


def test_the_size_in_memory_is_about_that_of_the_values() -> None:
    assert size({"a": torch.ones(10), "b": ["12345"]}) == 45
