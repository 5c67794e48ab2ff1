"""Batches that a dataset fetches as a whole: a list of samples, a tensor, or a tuple or mapping of such."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.errors import UserError


def rows_of(fetched: Any) -> int:
    """Samples in a list of them or in a whole batch.

    Raises:
        UserError: It is neither.
    """
    counts = {_length(part) for part in _parts(fetched)}
    count = counts.pop() if len(counts) == 1 else None
    if count is None:
        raise UserError(
            f"__getitems__ returned {_described(fetched)}, which is no batch: it must be a list of samples, a tensor, "
            "or a tuple or mapping of tensors, arrays and lists with one row for each index"
        )
    return count


def rows(fetched: Any) -> list[Any]:
    """The samples of a whole batch, each as `__getitem__` would give it."""
    if isinstance(fetched, Mapping):
        return [dict(zip(fetched, values, strict=True)) for values in zip(*fetched.values(), strict=True)]
    if isinstance(fetched, tuple):
        return list(zip(*fetched, strict=True))
    return list(fetched)


def joined(pieces: Sequence[Any], places: npt.NDArray[np.int64]) -> Any:
    """Return several batches as one.

    Args:
        pieces: Whole batches or lists of samples.
        places: (n,) int64, where each row of the pieces, one after the other, belongs: a permutation.

    Returns:
        A batch of the same kind, or a list of samples where the pieces are of different kinds.
    """
    order = np.argsort(places)
    first = pieces[0]
    try:
        if all(type(each) is tuple and len(each) == len(first) for each in pieces):
            return tuple(_joined(parts, order) for parts in zip(*pieces, strict=True))
        if all(type(each) is dict and each.keys() == first.keys() for each in pieces):
            return {key: _joined([each[key] for each in pieces], order) for key in first}
        return _joined(pieces, order)
    except TypeError:
        return _joined(list(map(rows, pieces)), order)


def _joined(parts: Sequence[Any], order: npt.NDArray[np.int64]) -> Any:
    kinds: set[Any] = {type(part) for part in parts}
    if kinds == {list}:
        every = [row for part in parts for row in part]
        return [every[at] for at in order.tolist()]
    alike = len(kinds) == 1 and len({(part.dtype, part.shape[1:]) for part in parts if hasattr(part, "dtype")}) == 1
    joins: dict[Any, Callable[[Any], Any]] = {torch.Tensor: torch.cat, np.ndarray: np.concatenate}
    join = joins.get(kinds.pop())
    if not alike or join is None:
        raise TypeError("parts of different kinds")
    return join(parts)[order]


def _parts(fetched: Any) -> list[Any]:
    if isinstance(fetched, tuple):
        return list(fetched)
    return list(fetched.values()) if isinstance(fetched, Mapping) else [fetched]


def _length(part: Any) -> int | None:
    """Rows of a part of a batch, None if it cannot have any."""
    if isinstance(part, (torch.Tensor, np.ndarray)):
        return part.shape[0] if part.ndim else None
    return len(part) if isinstance(part, list) else None


def _described(fetched: Any) -> str:
    kind = f"a {type(fetched).__name__}"
    if not isinstance(fetched, (tuple, Mapping)):
        return kind
    parts = [(type(part).__name__, _length(part)) for part in _parts(fetched)]
    named = [name if count is None else f"{name} with {count} rows" for name, count in parts]
    return f"{kind} of {', '.join(named[:8]) or 'nothing'}"
