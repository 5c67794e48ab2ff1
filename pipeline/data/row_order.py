"""In which order a collate function put its samples into a batch, as far as their content shows.

A collate function that sorts, reverses, shuffles or groups a copy of its list (`sorted(samples, key=len)`, usually)
leaves no trace but the rows themselves. They are compared with what the samples hold.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
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
    tables = [_Rows(part) for part in parts]
    in_order: list[tuple[list[Any], _Rows]] = []
    moved: list[list[set[int]]] = []
    for path in cells[0] if count > 1 else ():
        if not all(path in each for each in cells):
            continue
        column = [each[path] for each in cells]
        if same := [table for table in tables if all(map(_equal, column, table.rows))]:
            in_order.append((column, same[0]))
        else:
            moved += [found for table in tables if (found := table.of(column)) is not None]
    if not moved or any(all(len(rows) == 1 for rows in table.of(column) or ()) for column, table in in_order):
        return list(range(count))
    possible = [set.intersection(*rows) for rows in zip(*moved, strict=True)]
    if any(len(rows) != 1 for rows in possible) or len(set.union(*possible)) != count:
        return None
    row_of = [rows.pop() for rows in possible]
    return sorted(range(count), key=row_of.__getitem__)


class _Rows:
    """The rows of a part, by what they hold: to compare each sample with each row would take the square of a batch.

    Args:
        part: Of a batch.
    """

    def __init__(self, part: Any) -> None:
        self.rows = list(part)
        self._tables: dict[Any, dict[Any, set[int]]] = {}

    def of(self, column: Sequence[Any]) -> list[set[int]] | None:
        """Return the rows that each sample's value is in; None if one is in none, or a row holds none of them."""
        found: list[set[int]] = []
        for value in column:
            found.append(self._holding(value))
            if not found[-1]:
                return None
        return found if len(set.union(*found)) == len(self.rows) else None

    @cached_property
    def _arrays(self) -> dict[tuple[tuple[int, ...], Any], list[tuple[int, Any]]]:
        """Which rows are arrays of a shape and a type, with their numbers."""
        found: dict[Any, list[tuple[int, Any]]] = {}
        for at, row in enumerate(self.rows):
            array = None if isinstance(row, (str, bytes)) else _array(row)
            if array is not None and array.size:
                found.setdefault((array.shape, array.dtype), []).append((at, array))
        return found

    def _holding(self, value: Any) -> set[int]:
        """Return the rows that hold a value, as `_equal` compares them."""
        found = self._table(id, lambda: ((at, id(row)) for at, row in enumerate(self.rows))).get(id(value), set())
        if isinstance(value, (str, bytes)):
            texts = ((at, (type(row), row)) for at, row in enumerate(self.rows) if isinstance(row, (str, bytes)))
            return found | self._table(str, lambda: texts).get((type(value), value), set())
        array = _array(value)
        if array is None or not array.size:
            return found
        for shape, kind in self._arrays:
            for pick in _picks(array.shape, shape):
                found = found | self._alike(shape, kind, pick).get(_content(array, pick, kind), set())
        return found

    def _alike(self, shape: tuple[int, ...], kind: Any, pick: slice | None) -> dict[Any, set[int]]:
        """The rows of a shape and type, by the content of a piece of each."""
        key = shape, kind, None if pick is None else (pick.start, pick.stop)
        rows = self._arrays[shape, kind]
        return self._table(key, lambda: ((at, _content(array, pick, kind)) for at, array in rows))

    def _table(self, key: Any, pairs: Callable[[], Iterable[tuple[int, Any]]]) -> dict[Any, set[int]]:
        if key not in self._tables:
            table = self._tables[key] = {}
            for at, content in pairs():
                table.setdefault(content, set()).add(at)
        return self._tables[key]


def _picks(value: tuple[int, ...], row: tuple[int, ...]) -> list[slice | None]:
    """Return which pieces of a value and a row of some shapes are to be equal, any of them; None: all of it."""
    if value == row:
        return [None]
    if len(value) != len(row) or value[1:] != row[1:]:
        return []
    length = min(value[0], row[0])
    return [slice(None, length), slice(-length, None)]


def _content(array: Any, pick: slice | None, kind: Any) -> bytes:
    """Return the bytes of what is compared, as numbers of the row's type: the same for what `_same` takes for equal."""
    piece = array.reshape(-1)[:: max(1, array.size // _COMPARED)] if pick is None else array[pick]
    piece = piece.astype(kind)
    if kind.kind in "fc":
        piece = np.where(np.isnan(piece), np.array(np.nan, kind), piece + np.array(0, kind))  # no -0.0
    return bytes(piece.tobytes())


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
