"""Numbers become tensors, everything else stays as it is."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import UserError
from pipeline.formats import arrow_values


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, 2], pa.uint8()), np.array([1, 2], np.uint8)),
        (pa.array([True, False]), np.array([True, False])),
        (pa.array([1.5, None]), np.array([1.5, np.nan])),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)), np.array([[1, 2], [3, 4]], np.int16)),
        (pa.array([[1, 2], [3, 4]], pa.list_(pa.int16(), 2)).slice(1), np.array([[3, 4]], np.int16)),
        (
            pa.array([[[1.0], [2.0]]], pa.list_(pa.list_(pa.float32(), 1), 2)),
            np.array([[[1.0], [2.0]]], np.float32),
        ),
        (
            pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6.0).reshape(1, 2, 3)),
            np.arange(6.0).reshape(1, 2, 3),
        ),
    ],
)
def test_numbers_of_a_fixed_shape_are_arrays(column: pa.Array, expected: np.ndarray) -> None:
    found = arrow_values.numbers(column, "x")
    assert found is not None
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert arrow_values.tensor(found.copy()).shape == expected.shape


@pytest.mark.parametrize(
    "values",
    [
        ["a", None],
        [b"\0", b""],
        [datetime.datetime(2020, 1, 1)],
        [decimal.Decimal("1.50")],
        [{"a": 1}],
        [["a"], []],
        [None, None],
    ],
)
def test_everything_else_is_as_python_has_it(values: list[object]) -> None:
    column = pa.array(values)
    assert arrow_values.numbers(column, "x") is None
    assert arrow_values.plain(column) == values


def test_lists_of_numbers_are_tensors() -> None:
    found = arrow_values.plain(pa.array([[1, 2], [], None]))
    assert found[0].tolist() == [1, 2]
    assert (found[1].shape, found[2]) == (torch.Size([0]), None)


def test_null_among_whole_numbers_is_an_error_with_its_row() -> None:
    for column in (pa.array([1, None]), pa.array([[1], None], pa.list_(pa.int8(), 1))):
        with pytest.raises(UserError, match="x is null in 1 of 2 rows, the first of them row 1"):
            arrow_values.numbers(column, "x")


def test_lengths_are_those_of_texts_and_lists_or_the_numbers_themselves() -> None:
    for values in (["ab", "ä"], [b"ab", b"c"], [[1, 2], [3]], [2, 1]):
        assert arrow_values.lengths(pa.array(values), "x").tolist() == [2, 1]
    with pytest.raises(UserError, match="neither lengths nor whole numbers"):
        arrow_values.lengths(pa.array([1.5]), "x")
