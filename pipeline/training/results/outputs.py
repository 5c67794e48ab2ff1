"""What steps return, in forms that load without executing pickled code: columns, or objects by batch."""

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.checkpoint.serializable import plain
from pipeline.errors import UserError

Columns = dict[str, Any]
"""By name, a tensor of shape (samples, ...) or a list with an entry for each sample."""

_CELL = (str, bool, int, float, type(None))


def portable(value: Any) -> Any:
    """Return a value on the CPU, of tensors, numbers, strings, lists, tuples and dictionaries as far as it can be.

    Arrays become tensors; mappings, dataclasses and named tuples become dictionaries. What is left of other types is
    for `encode` to refuse.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value)) if value.dtype.kind in "biufc" else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: portable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(each) for each in value] if isinstance(value, list) else tuple(map(portable, value))
    return value


def columns(output: Any, samples: int) -> Columns | None:
    """Return the columns of a batch's output, which is portable: None where a part has no entry for each sample."""
    named = output if isinstance(output, dict) else {"prediction": output}
    if not named or not all(isinstance(name, str) and is_column(value, samples) for name, value in named.items()):
        return None
    return dict(named)


def is_column(value: Any, samples: int) -> bool:
    """Return whether a portable value has one entry for each sample, which a table can hold."""
    if isinstance(value, torch.Tensor):
        return value.ndim > 0 and len(value) == samples and value.layout is torch.strided
    return isinstance(value, list) and len(value) == samples and all(type(each) in _CELL for each in value)


def concatenated(batches: Iterable[Columns]) -> Columns | None:
    """Return the columns of several batches as one; None where their names, types or shapes differ."""
    parts = list(batches)
    if any(part.keys() != parts[0].keys() for part in parts):
        return None
    made: Columns = {}
    for name in parts[0]:
        values = [part[name] for part in parts]
        if all(isinstance(value, list) for value in values):
            made[name] = [each for value in values for each in value]
        elif len({(type(v), getattr(v, "dtype", None), tuple(getattr(v, "shape", ()))[1:]) for v in values}) == 1:
            made[name] = torch.cat(values)
        else:
            return None
    return made


def encode(
    batches: list[tuple[npt.NDArray[np.int64] | None, Any]], what: str, by_batch: bool = False
) -> tuple[str, bytes]:
    """Return the kind of file (`parquet` or `pt`) and its bytes for the outputs of some batches.

    What is a value for each sample becomes columns: Parquet where pyarrow is installed, else a `.pt` file of
    `{"index": (n,) int64, "predictions": {name: column}}`. Anything else becomes a `.pt` file of
    `{"index": [(n,) int64, ...], "predictions": [output, ...]}`, with an entry for each batch. `torch.load` reads both
    as they are; index is None where it is not known.

    Args:
        batches: Indices of the samples (None: not known) and the portable output of each batch.
        what: What the outputs are, for an error.
        by_batch: Which entry is of which sample cannot be told: the indices are those that went into a batch.

    Raises:
        UserError: An output holds an object that no file can hold.
    """
    tables = [None if given is None else columns(output, len(given)) for given, output in batches]
    merged = None if by_batch or None in tables else concatenated(table for table in tables if table is not None)
    if merged is not None:
        index = np.concatenate([given for given, _ in batches if given is not None])
        if np.any(np.diff(index) < 0):
            order = np.argsort(index, kind="stable")
            index = index[order]
            merged = {name: _ordered(column, order) for name, column in merged.items()}
        if find_spec("pyarrow") is not None and "index" not in merged and _is_tabular(merged):
            return "parquet", _parquet({"index": torch.from_numpy(index), **merged})
        content: dict[str, Any] = {"index": torch.from_numpy(index), "predictions": merged}
    else:
        content = {
            "index": [None if given is None else torch.from_numpy(given) for given, _ in batches],
            "predictions": [output for _, output in batches],
        }
    return "pt", saved(content, what)


def saved(content: dict[str, Any], what: str) -> bytes:
    """Return the bytes of a `.pt` file.

    Raises:
        UserError: It would not load again without executing pickled code.
    """
    file = io.BytesIO()
    try:
        torch.save(plain(content), file)
    except UserError as error:
        raise UserError(*(f"{what}: {in_a_file(problem)}" for problem in error.problems)) from None
    return file.getvalue()


def in_a_file(problem: str) -> str:
    """Return what `plain` says of a checkpoint as it is for a file of outputs."""
    problem = problem.replace("no checkpoint", "no file")
    return re.sub(r" from (on_save_checkpoint|state_dict of .*)$", " instead", problem)


def size(value: Any) -> int:
    """Return about how many bytes a portable value takes in memory."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(size, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(size, value))
    return len(value) if isinstance(value, (str, bytes)) else 64


def _ordered(column: Any, order: npt.NDArray[np.intp]) -> Any:
    return [column[at] for at in order] if isinstance(column, list) else column[torch.from_numpy(order)]


def _is_tabular(merged: Columns) -> bool:
    return not any(isinstance(value, torch.Tensor) and value.is_complex() for value in merged.values())


def _parquet(merged: Columns) -> bytes:
    import pyarrow  # noqa: PLC0415 - an extra
    import pyarrow.parquet  # noqa: PLC0415

    def array(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return pyarrow.array(value)
        if value.dtype is torch.bfloat16:
            value = value.float()
        found = pyarrow.array(value.contiguous().reshape(-1).numpy())
        for extent in reversed(value.shape[1:]):
            found = pyarrow.FixedSizeListArray.from_arrays(found, extent)
        return found

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({name: array(value) for name, value in merged.items()}), sink)
    return bytes(sink.getvalue())
