"""A digest of a sample's content, the same in every process that holds equal data, whatever a sample consists of.

Numbers, texts, tensors, arrays and containers of them have a canonical form. Any other object is taken apart as pickle
would do it, but in an order that does not depend on the process. What pickle cannot take apart (a lock, an open file)
counts by its type alone.
"""

import hashlib
import types
from collections.abc import Iterable, Mapping, Set
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_PLAIN = (str, bytes, int, float, complex, type(None))


def digest(value: Any) -> tuple[bytes, bool]:
    """Return the digest of a value, 32 bytes, and whether all of it is in canonical form.

    Without that, another version of Python or of a library may give another digest.
    """
    hasher, canonical = fed(hashlib.sha256(), value)
    return hasher.digest(), canonical


def fed(hasher: Any, value: Any) -> tuple[Any, bool]:
    """Return a hash that has been fed with a value, each part with its type and extent.

    Args:
        hasher: What was fed before; it stays as it is.
        value: Anything.

    Returns:
        The hash, and whether all of the value is in canonical form.
    """
    content = _Content(hasher.copy())
    try:
        content.add(value)
    except OSError:  # a storage that is away, under what is read only now
        raise
    except Exception:  # noqa: BLE001 - too deep, or an object's own code: how far it came must not count
        content = _Content(hasher.copy())
        content.inexact(f"{type(value).__module__}.{type(value).__qualname__}")
    return content.hasher, content.canonical


def row_digests(batch: Any) -> list[bytes] | None:
    """Return the digests of the samples of a whole batch, each as `digest` gives it, all in canonical form.

    Args:
        batch: A tensor, or a tuple or mapping of tensors and arrays, each with a row for each sample.

    Returns:
        None where the batch is of something else.
    """
    if isinstance(batch, tuple):
        pieces: list[Any] = [b"sequence %d;" % len(batch)]
        parts = [(b"", part) for part in batch]
    elif isinstance(batch, Mapping) and all(type(key) is str for key in batch):
        pieces = [b"mapping %d;" % len(batch)]
        parts = [(b"str %d;" % len(_encoded(key)) + _encoded(key), batch[key]) for key in sorted(batch, key=repr)]
    else:
        pieces, parts = [], [(b"", batch)]
    for name, part in parts:
        numbers = _numbers(part) if isinstance(part, torch.Tensor) else part
        if type(numbers) is not np.ndarray or numbers.dtype.kind not in "biufc" or not numbers.ndim or not numbers.size:
            return None
        row: Any = numbers[0]  # of one number, it has the byte order of this machine
        header = _tensor_header(part.dtype, part.shape[1:]) if part is not numbers else _array_header(row)
        pieces += [name + header, np.ascontiguousarray(numbers, row.dtype).reshape(len(numbers), -1).view(np.uint8)]
    return _of_rows(pieces)


def _of_rows(pieces: list[Any]) -> list[bytes]:
    """Return the digest of each row of some pieces side by side: bytes, the same in all rows, and (n, bytes) uint8."""
    rows = next(len(piece) for piece in pieces if isinstance(piece, np.ndarray))
    ends = np.cumsum([len(piece) if isinstance(piece, bytes) else piece.shape[1] for piece in pieces]).tolist()
    table = np.empty((rows, ends[-1]), np.uint8)
    for piece, start, stop in zip(pieces, [0, *ends], ends, strict=False):
        table[:, start:stop] = np.frombuffer(piece, np.uint8) if isinstance(piece, bytes) else piece
    data, length = table.reshape(-1).data, ends[-1]
    return [hashlib.sha256(data[at : at + length]).digest() for at in range(0, rows * length, length)]


def _numbers(value: torch.Tensor) -> npt.NDArray[Any] | None:
    """Return the numbers of a plain tensor in this process's memory; None of any other, and where numpy lacks them."""
    if type(value) is not torch.Tensor:
        return None
    try:
        return value.numpy()
    except (RuntimeError, TypeError):
        return None


@lru_cache
def _tensor_header(dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    return f"tensor {dtype} {tuple(shape)}".encode()


class _Content:
    """Feeds one value.

    Args:
        hasher: Takes the bytes.
    """

    def __init__(self, hasher: Any) -> None:
        self.hasher = hasher
        self.canonical = True
        self._within: list[int] = []
        """The containers and objects that hold the part that is being fed."""

    def add(self, value: Any) -> None:
        """Feed a value, or where it is within itself."""
        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self._array(value)
        elif value is None or isinstance(value, (bool, int, float, complex)):
            self.hasher.update(f"{type(value).__name__} {value!r};".encode())
        elif isinstance(value, (str, bytes, bytearray, memoryview)):
            data = _encoded(value) if isinstance(value, str) else bytes(value)
            self.hasher.update(f"{type(value).__name__} {len(data)};".encode())
            self.hasher.update(data)
        elif id(value) in self._within:
            self.inexact(f"within itself {len(self._within) - self._within.index(id(value))}")
        else:
            self._within.append(id(value))
            self._parts(value)
            self._within.pop()

    def _parts(self, value: Any) -> None:
        if type(value) in (tuple, list):  # without a look at what else it could be
            self.hasher.update(b"sequence %d;" % len(value))
            self._all(value)
            return
        if is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name, None) for field in fields(value)}
        if isinstance(value, Mapping):
            plain = all(isinstance(key, _PLAIN) for key in value)
            keys = sorted(value, key=repr) if plain else sorted(value, key=lambda key: digest(key)[0])
            self.hasher.update(f"mapping {len(value)};".encode())
            self._all(part for key in keys for part in (key, value[key]))
        elif isinstance(value, (list, tuple)):
            self.hasher.update(f"sequence {len(value)};".encode())
            self._all(value)
        elif isinstance(value, Set):
            found = sorted(digest(each) for each in value)
            self.canonical &= all(canonical for _, canonical in found)
            self.hasher.update(f"set {len(found)};".encode() + b"".join(each for each, _ in found))
        else:
            self._object(value)

    def _all(self, parts: Iterable[Any]) -> None:
        for part in parts:
            self.add(part)

    def _tensor(self, value: torch.Tensor) -> None:
        if (array := _numbers(value)) is not None:
            self.hasher.update(_tensor_header(value.dtype, value.shape))
            self.hasher.update(np.ascontiguousarray(array).reshape(-1))
            return
        try:
            value = value.detach().cpu()
            if value.is_nested:
                parts: dict[str, Any] = {"nested": list(value.unbind())}
            elif value.layout is torch.sparse_coo:
                value = value.coalesce()
                parts = {"indices": value.indices(), "values": value.values()}
            elif value.layout is not torch.strided:
                names = ("crow_indices", "col_indices", "ccol_indices", "row_indices")
                by_column = value.layout in (torch.sparse_csc, torch.sparse_bsc)
                parts = {name: getattr(value, name)() for name in (names[2:] if by_column else names[:2])}
                parts["values"] = value.values()
            elif value.is_quantized:
                parts = {"values": value.int_repr(), "numbers": value.dequantize()}
            else:
                value = value.resolve_conj().resolve_neg()
                data = value.contiguous().reshape(-1).view(torch.uint8).numpy() if value.numel() else b""
                self.hasher.update(_tensor_header(value.dtype, value.shape))
                self.hasher.update(data)
                return
        except (RuntimeError, TypeError, NotImplementedError):  # one without data, or of an exotic kind
            self.inexact(f"{type(value).__qualname__} {value.dtype} {value.layout} {tuple(value.shape)}")
            return
        self.hasher.update(f"tensor {value.dtype} {value.layout}".encode())
        self._all(parts[name] for name in parts)

    def _array(self, value: Any) -> None:
        if isinstance(value, np.ma.MaskedArray):
            self.hasher.update(b"masked ")
            self._array(np.ma.getmaskarray(value))
            value = value.filled()
        array = np.ascontiguousarray(value)
        self.hasher.update(_array_header(array))
        if array.dtype.hasobject:
            self._all(array.reshape(-1).tolist())
        else:
            self.hasher.update(array.tobytes())

    def _object(self, value: Any) -> None:
        """Feed what pickle would write of an object, or of a function its name and code."""
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)):
            owner = getattr(value, "__module__", "")
            self.inexact(f"{name} {owner}.{getattr(value, '__qualname__', value.__name__)}")
            if isinstance(value, types.FunctionType):
                code, cells = value.__code__, value.__closure__ or ()
                self._all([code.co_code, [each for each in code.co_consts if isinstance(each, _PLAIN)]])
                self._all([value.__defaults__, value.__kwdefaults__, [_cell(cell) for cell in cells]])
            return
        try:
            reduced: Any = value.__reduce_ex__(2)
        except Exception:  # noqa: BLE001 - an object's own code may raise anything
            reduced = None
        self.inexact(name)
        if isinstance(reduced, str):
            self.add(reduced)
        elif reduced is not None:
            _, arguments, *rest = reduced
            state, entries, items = [*rest, None, None, None][:3]
            self._all([arguments, state, list(entries or ()), [list(each) for each in items or ()]])

    def inexact(self, text: str) -> None:
        """Feed a description in the place of content."""
        self.canonical = False
        self.hasher.update(f"{text};".encode())


def _array_header(array: Any) -> bytes:
    return f"array {array.dtype.str} {array.shape or (1,)}".encode()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is not filled yet
        return None
