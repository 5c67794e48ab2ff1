"""Columns of Arrow as arrays and tensors: numbers become tensors, everything else stays as it is."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import UserError


def numbers(column: Any, name: str) -> npt.NDArray[Any] | None:
    """Return a column of numbers, or of lists of numbers that all have one length by their type.

    Args:
        column: A pyarrow.Array.
        name: What to call it in an error.

    Returns:
        (rows, ...), without a copy where the memory allows it; None where it holds something else.

    Raises:
        UserError: Some of them are null, and there is no number for that.
    """
    import pyarrow as pa  # noqa: PLC0415 - the extra for Parquet

    kind = column.type
    if isinstance(kind, pa.FixedShapeTensorType):
        _refuse_nulls(column, name)
        return np.asarray(column.to_numpy_ndarray())
    if isinstance(kind, pa.BaseExtensionType):
        return numbers(column.storage, name)
    if pa.types.is_fixed_size_list(kind):
        inner = numbers(column.flatten(), name)
        if inner is None:
            return None
        _refuse_nulls(column, name)
        return inner.reshape(len(column), kind.list_size, *inner.shape[1:])
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    if not pa.types.is_floating(kind):  # where they are, null is NaN
        _refuse_nulls(column, name)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _refuse_nulls(column: Any, name: str) -> None:
    if column.null_count:
        first = column.is_null().index(True).as_py()
        raise UserError(
            f"{name} is null in {column.null_count} of {len(column)} rows, the first of them row {first} there: "
            f"{column.type} has no number for that. Fill them, write floating-point numbers, or leave the column out"
        )


def plain(column: Any) -> list[Any]:
    """Return the values of a column that is no numbers: lists of numbers as tensors, anything else as Python has it."""
    import pyarrow as pa  # noqa: PLC0415

    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        within = kind.value_type
        if pa.types.is_integer(within) or pa.types.is_floating(within) or pa.types.is_boolean(within):
            found = [None if not each.is_valid else numbers(each.values, "a list") for each in column]
            return [None if each is None else torch.from_numpy(np.array(each)) for each in found]
    return list(column.to_pylist())


def tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """Return a tensor over an array's memory, in the byte order of this machine."""
    return torch.from_numpy(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))


def lengths(column: Any, name: str) -> npt.NDArray[np.int64]:
    """Return the length of each row: of texts, bytes and lists; whole numbers are lengths themselves.

    Raises:
        UserError: They are something else, or null.
    """
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import compute  # noqa: PLC0415

    kind = column.type
    _refuse_nulls(column, name)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = compute.utf8_length(column)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        found = compute.binary_length(column)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        found = compute.list_value_length(column)
    elif pa.types.is_integer(kind):
        found = column
    else:
        raise UserError(f"{name} has neither lengths nor whole numbers, to be used as `lengths`; it is {kind}")
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)
