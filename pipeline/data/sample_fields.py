"""What the samples of a dataset consist of: each field's type, shape and values, found by looking at samples."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_BY_POSITION = 8
"""The most elements of a list or tuple that each are a field; more are one field together."""
_DEEPEST = 12
_CLASSES = 4096
"""The most different values that are counted one by one."""


class SampleFields:
    """Gathers what samples have in their fields.

    Attributes:
        samples: How many were added.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._found: dict[str, _Field] = {}

    def add(self, sample: Any) -> None:
        """Look at a sample: a value, or mappings, sequences and dataclasses of values, nested at will."""
        self.samples += 1
        for path, value in leaves(sample):
            self._found.setdefault(path, _Field()).add(value, self.samples)

    def facts(self) -> list[dict[str, Any]]:
        """Return what was found, a mapping for each field, of what JSON knows.

        Returns:
            `field` (its path, empty where the sample itself is the value), `type`, `samples` that have it, and what
            makes sense for it: `dtype`, `shape` (a dimension that varies is a list of its least and greatest size),
            `min`, `max`, `mean` of the finite numbers, `nan` and `inf` (counts), `classes` (value: count, of whole
            numbers, truth values and texts), `distinct` (how many values), `length` (least and greatest, of texts).
        """
        return [{"field": path, **field.facts()} for path, field in self._found.items()]


def leaves(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each field of a sample.

    Elements of a long list are one field, `name[*]`.
    """
    if depth == _DEEPEST:
        yield path, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}" if path else str(key), depth + 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name), f"{path}.{field.name}".lstrip("."), depth + 1)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for name, each in zip(value._fields, value, strict=True):
            yield from leaves(each, f"{path}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list) and len(value) > 1 and all(isinstance(each, (int, float)) for each in value):
        yield path, np.asarray(value)
    elif isinstance(value, (list, tuple)) and value:
        for at, each in enumerate(value):
            yield from leaves(each, f"{path}[{at if len(value) <= _BY_POSITION else '*'}]", depth + 1)
    else:
        yield path, value


class _Field:
    """What is known of one field."""

    def __init__(self) -> None:
        self.types: dict[str, None] = {}
        self.dtypes: dict[str, None] = {}
        self.shapes: list[tuple[int, int]] | None = None
        self.ranks: set[int] = set()
        self.lengths: list[int] = []
        self.low, self.high = np.inf, -np.inf
        self.total = 0.0
        self.finite = self.nan = self.inf = 0
        self.values: Counter[Any] | None = Counter()
        self.samples = self._last = 0

    def add(self, value: Any, sample: int) -> None:
        self.samples, self._last = self.samples + (sample != self._last), sample
        numbers = _numbers(value)
        self.types[_type_of(value)] = None
        if isinstance(value, (str, bytes)):
            self.lengths = [min([len(value), *self.lengths[:1]]), max([len(value), *self.lengths[1:]])]
            self._count(Counter([value if isinstance(value, str) else value.hex()]))
        shape = getattr(value, "shape", None)
        if isinstance(value, (torch.Tensor, np.ndarray)) and shape is not None:
            self.dtypes[str(value.dtype).removeprefix("torch.")] = None
            self._add_shape(tuple(int(size) for size in shape))
        if numbers is not None and numbers.size:
            self._add_numbers(numbers)

    def _add_shape(self, shape: tuple[int, ...]) -> None:
        self.ranks.add(len(shape))
        if self.shapes is None:
            self.shapes = [(size, size) for size in shape]
        elif len(self.ranks) == 1:
            pairs = zip(self.shapes, shape, strict=True)
            self.shapes = [(min(low, size), max(high, size)) for (low, high), size in pairs]

    def _add_numbers(self, numbers: npt.NDArray[Any]) -> None:
        if numbers.dtype.kind in "biu":
            self._count(_counted(numbers))
            finite = numbers
        else:
            self.values = None
            valid = np.isfinite(numbers)
            finite = numbers[valid]
            self.nan += int(np.isnan(numbers).sum())
            self.inf += int(np.isinf(numbers).sum())
        if finite.size:
            self.low, self.high = min(self.low, finite.min().item()), max(self.high, finite.max().item())
            self.total += float(finite.sum(dtype=np.float64))
            self.finite += finite.size

    def _count(self, values: Counter[Any] | None) -> None:
        if self.values is None or values is None:
            self.values = None
            return
        self.values.update(values)
        if len(self.values) > _CLASSES:
            self.values = None

    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = {"type": " or ".join(self.types), "samples": self.samples}
        if self.dtypes:
            found["dtype"] = " or ".join(self.dtypes)
        if self.shapes is not None:
            varying = len(self.ranks) > 1
            found["shape"] = (
                f"{min(self.ranks)} to {max(self.ranks)} dimensions"
                if varying
                else [low if low == high else [low, high] for low, high in self.shapes]
            )
        if self.lengths:
            found["length"] = self.lengths
        if self.finite:
            found.update(min=self.low, max=self.high, mean=self.total / self.finite)
        if self.finite or self.nan or self.inf:
            found.update(nan=self.nan, inf=self.inf)
        if self.values:
            found["distinct"] = len(self.values)
            ordered = sorted(self.values.items(), key=lambda each: (str(type(each[0])), each[0]))
            found["classes"] = {str(value): count for value, count in ordered}
        return found


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "tensor" if value.layout is torch.strided else f"{str(value.layout).removeprefix('torch.')} tensor"
    if isinstance(value, np.ndarray):
        return "array"
    if value is None:
        return "None"
    name = type(value).__qualname__
    return name if type(value).__module__ in ("builtins", "numpy") else f"{type(value).__module__}.{name}"


def _numbers(value: Any) -> npt.NDArray[Any] | None:
    """Return the numbers of a field as an array, None where it holds none, or complex ones."""
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            return None
        value = value.detach().cpu()
        value = value.double().numpy() if value.is_floating_point() else value.resolve_conj().numpy()
    if not isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "biuf" else None


def _counted(numbers: npt.NDArray[Any]) -> Counter[Any] | None:
    """Return how often each whole number occurs, None for too many different ones."""
    if numbers.dtype.kind == "b":
        held = int(numbers.sum())
        return Counter({key: count for key, count in ((False, numbers.size - held), (True, held)) if count})
    if numbers.min() >= 0 and numbers.max() < _CLASSES:
        counts = np.bincount(numbers.reshape(-1).astype(np.int64))
        return Counter({int(value): int(counts[value]) for value in np.flatnonzero(counts)})
    values, times = np.unique(numbers, return_counts=True)
    return Counter(dict(zip(values.tolist(), times.tolist(), strict=True))) if len(values) <= _CLASSES else None


def spread(size: int, count: int) -> list[int]:
    """Return indices that are spread evenly over a dataset, the first and the last among them.

    Args:
        size: Samples of the dataset.
        count: How many to choose, at most all.
    """
    if count >= size:
        return list(range(size))
    if count <= 1:
        return [0][:count]
    return [at * (size - 1) // (count - 1) for at in range(count)]
