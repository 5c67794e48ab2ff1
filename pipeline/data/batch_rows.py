"""Which samples a batch holds, as far as that can be told from what a collate function was given and what it made.

A collate function may filter, sort, pack or repeat samples. What it was given says nothing about what the model sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from pipeline.data.row_order import row_order


def given(
    batch: Any, before: Sequence[Any], after: Sequence[Any], ordered: bool = True
) -> tuple[list[int], str | None]:
    """Return which samples a batch holds, in their order.

    Args:
        batch: What the collate function made, not None.
        before: The samples.
        after: The list of them that the collate function was given: it may have sorted it, or deleted from it.
        ordered: Whether it matters which row is whose, so that the rows are compared with the samples.

    Returns:
        Positions in `before`, and why they are not known; where that is not None, all positions.
    """
    everything = list(range(len(before)))
    at = {id(sample): position for position, sample in enumerate(before)}
    if len(at) == len(before):  # else some are one and the same object
        if isinstance(batch, (list, tuple)) and batch and all(id(each) in at for each in batch):
            return [at[id(each)] for each in batch], None  # samples that were not collated
        if len(after) != len(before) or any(left is not right for left, right in zip(after, before, strict=True)):
            everything = [at[id(each)] for each in after if id(each) in at]
    present = [position for position in everything if before[position] is not None]
    if holds(batch, len(present)):
        order = row_order(batch, [before[at] for at in present]) if ordered and present else list(range(len(present)))
        if order is None:
            return list(
                range(len(before))
            ), "a batch in another order than that of its samples, not told by their content"
        return [present[at] for at in order], None
    return list(range(len(before))), f"{described(batch)} of {len(before)} samples"


def holds(batch: Any, samples: int) -> bool:
    """Return whether each part of a batch has a row for each of so many samples, as far as it has rows."""
    try:
        return _agrees(batch, samples, is_part=False) is True
    except RecursionError:  # it holds itself
        return False


def rows_of_parts(batch: Any) -> list[int]:
    """Return the rows of each tensor and array in a batch, to tell whether a hook has changed them."""
    try:
        return _rows_of_parts(batch, is_part=False)
    except RecursionError:
        return []


def _rows_of_parts(value: Any, is_part: bool) -> list[int]:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return [_rows(value)] if value.ndim else []
    parts = value if isinstance(value, (list, tuple)) else _fields(value, is_part)
    return [rows for part in parts or () for rows in _rows_of_parts(part, is_part=True)]


def described(batch: Any) -> str:
    """Return what a batch is, for a message: `a batch with 1 row`, `a batch whose parts have 3 and 12 rows`."""
    found = sorted(set(rows_of_parts(batch)))
    if not found:
        return f"a {type(batch).__name__} without rows"
    if len(found) == 1:
        return f"a batch with {found[0]} row{'s' * (found[0] != 1)}"
    return f"a batch whose parts have {', '.join(map(str, found[:-1]))} and {found[-1]} rows"


def _agrees(value: Any, samples: int, is_part: bool) -> bool | None:
    """Return whether a value has a row for each sample; None where it has no rows.

    Args:
        value: A batch, or a part of one.
        samples: Expected.
        is_part: Whether a list may hold one entry for each sample, as that of images of a detector does; at the top,
            two columns are no two samples.
    """
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return _rows(value) == samples if value.ndim else None
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        if is_part and value and len(value) == samples and len(set(map(type, value))) == 1:
            return True
        parts: Any = value
    elif (parts := _fields(value, is_part)) is None:
        return None
    agreed = {_agrees(part, samples, is_part=True) for part in parts}
    if isinstance(value, (list, tuple)) and not is_part and agreed == {None} and value:
        return len(value) == samples  # a list of texts, say
    return False if False in agreed else True if True in agreed else None


def _rows(value: Any) -> int:
    return value.size(0) if isinstance(value, torch.Tensor) else value.shape[0]


def _fields(value: Any, is_part: bool) -> list[Any] | None:
    """Return the parts of a mapping, dataclass or named tuple, of a batch also of any other object; else None."""
    if isinstance(value, Mapping):
        return list(value.values())
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    if isinstance(value, tuple):
        return list(value)
    return None if is_part else list(getattr(value, "__dict__", {}).values())
