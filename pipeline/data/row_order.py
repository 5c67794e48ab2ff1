"""In which order a collate function put its samples into a batch, as far as their content shows.

A collate function that sorts, reverses, shuffles or groups a copy of its list (`sorted(samples, key=len)`, usually)
leaves no trace but the rows themselves. They are compared with what the samples hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

_COMPARED = 64
"""Numbers of an array that are compared where it has the shape of its row: enough to tell samples apart."""
_DEPTH = 8


def row_order(batch: Any, samples: Sequence[Any]) -> list[int] | None:
    """Return which sample is in which row; None where rows are in another order that cannot be told.

    Where no content is found again (it is tokenized or normalized, say), nothing shows another order.

    Args:
        batch: With a row for each sample.
        samples: Those in the batch.
    """
    count = len(samples)
    cells = [dict(_nodes(sample)) for sample in samples]
    parts = [part for _, part in _nodes(batch) if _length(part) == count]
    in_order, moved = [], []
    for path in cells[0] if count > 1 else ():
        if not all(path in each for each in cells):
            continue
        column = [each[path] for each in cells]
        if same := [part for part in parts if all(map(_equal, column, part))]:
            in_order.append((column, same[0]))
        else:
            moved += [found for part in parts if (found := _rows_of(column, part)) is not None]
    if not moved or any(all(len(rows) == 1 for rows in _rows_of(*each) or ()) for each in in_order):
        return list(range(count))
    possible = [set.intersection(*rows) for rows in zip(*moved, strict=True)]
    if any(len(rows) != 1 for rows in possible) or len(set.union(*possible)) != count:
        return None
    row_of = [rows.pop() for rows in possible]
    return sorted(range(count), key=row_of.__getitem__)


def _rows_of(column: Sequence[Any], part: Any) -> list[set[int]] | None:
    """Return the rows that each sample's value is in; None if one is in none, or a row holds none of them."""
    found: list[set[int]] = []
    for value in column:
        found.append({at for at, row in enumerate(part) if _equal(value, row)})
        if not found[-1]:
            return None
    return found if len(set.union(*found)) == len(part) else None


def _equal(value: Any, row: Any) -> bool:
    """Return whether a row holds a value, which may be padded at either end or cut."""
    if value is row:
        return True
    if isinstance(value, (str, bytes)) or isinstance(row, (str, bytes)):
        return type(value) is type(row) and bool(value == row)
    left, right = _array(value), _array(row)
    if left is None or right is None or not left.size or not right.size:
        return False
    if left.shape == right.shape:
        stride = max(1, left.size // _COMPARED)
        return _same(left.reshape(-1)[::stride], right.reshape(-1)[::stride])
    if left.ndim != right.ndim or left.shape[1:] != right.shape[1:]:
        return False
    length = min(len(left), len(right))
    return _same(left[:length], right[:length]) or _same(left[-length:], right[-length:])


def _same(left: Any, right: Any) -> bool:
    return bool(np.array_equal(left.astype(right.dtype), right, equal_nan=right.dtype.kind in "fc"))


def _array(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, a sparse tensor
        return None
    return found if found.dtype.kind in "biufc" else None


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield all that a sample or batch is made of, with its place; a list of numbers (tokens, say) is one."""
    yield path, value
    if len(path) == _DEPTH or isinstance(value, (torch.Tensor, np.ndarray, str, bytes)):
        return
    if isinstance(value, Mapping):
        parts: Any = value.items()
    elif isinstance(value, (list, tuple)):
        parts = () if isinstance(value, list) and value and isinstance(value[0], (int, float)) else enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name)) for field in fields(value)]
    else:
        parts = getattr(value, "__dict__", {}).items() if not path else ()
    for name, part in parts:
        yield from _nodes(part, (*path, name))


def _length(part: Any) -> int | None:
    """Return the rows of a tensor, array or list; None of anything else."""
    if isinstance(part, torch.Tensor) and (part.is_nested or part.layout != torch.strided):
        return None
    if isinstance(part, (torch.Tensor, np.ndarray)):
        return len(part) if part.ndim else None
    return len(part) if isinstance(part, (list, tuple)) else None
