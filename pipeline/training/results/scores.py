"""What `test_step` returned of each sample: numbers as a table, anything else in a file beside it.

Nothing here grows as Python objects by the sample: ten million samples take some hundred MB.
"""

import csv
import io
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.checkpoint.serializable import plain
from pipeline.errors import UserError
from pipeline.run.run_dir import OUTPUTS, SCORES, RunDir
from pipeline.training.results.outputs import concatenated, in_a_file, is_column, portable, saved, size
from pipeline.training.results.pictures import ScoreColumn

log = logging.getLogger(__name__)

_ROWS = 1 << 16
_FILE_BYTES = 64 << 20
_OUTPUTS = re.compile(re.escape(OUTPUTS).replace(r"\.pt", r"(-\d{4})?\.pt"))


class Scores:
    """Writes `evaluation/scores.csv`, and `evaluation/outputs.pt` where there is more than a table holds.

    Args:
        run: Where to.
        samples: How many are expected; 0 where that is not known.
    """

    def __init__(self, run: RunDir, samples: int = 0) -> None:
        self.run = run
        self._capacity = samples
        self._used = 0
        self._index = np.empty(samples, np.int64)
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self._absent: dict[str, list[tuple[int, int]]] = {}
        """Rows of batches whose output had no such column."""
        self._rest: list[tuple[slice, dict[str, Any]]] = []
        self._rest_bytes = self._files = 0
        self._left_out: set[str] = set()
        self.beside: set[str] = set()
        """The names of what is in the file beside the table."""

    def add(self, indices: npt.NDArray[np.int64] | None, count: int, outputs: Any) -> None:
        """Keep the output of a batch.

        Args:
            indices: Of its samples; None where they are not known, and rows are counted in the order of the loader.
            count: Its samples.
            outputs: What `test_step` returned: a mapping, or one value, which is called `output`.
        """
        start, stop = self._used, self._used + count
        self._reserve(stop)
        self._index[start:stop] = np.arange(start, stop) if indices is None else indices
        self._used = stop
        named = portable(outputs if isinstance(outputs, Mapping) else {"output": outputs})
        table = {str(name): value for name, value in named.items() if _is_number_each(value, count)}
        for name, value in table.items():
            self._put(name, value, start, stop)
        for name in self._columns.keys() - table.keys():
            self._absent.setdefault(name, []).append((start, stop))
        if not isinstance(outputs, Mapping) and not isinstance(outputs, (list, tuple)) and not _has_rows(outputs):
            return  # `return loss`: it is logged, or of no use to anybody
        rest = {
            str(name): value
            for name, value in named.items()
            if str(name) not in table and self._can_be_saved(value, name)
        }
        if rest:
            self._rest.append((slice(start, stop), rest))
            self._rest_bytes += size(rest)
            if self._rest_bytes >= _FILE_BYTES:
                self._write_rest()

    def first_column(self) -> ScoreColumn | None:
        """Return the first column of numbers, without samples that have none there; None where there is no column."""
        for name, column in self._columns.items():
            there = np.ones(self._used, bool)
            for start, stop in self._absent[name]:
                there[start:stop] = False
            return ScoreColumn(name, self._index[: self._used][there], column[: self._used][there])
        return None

    def forget_indices(self) -> None:
        """Count the rows in the order of the loader, also those so far."""
        self._index[: self._used] = np.arange(self._used)

    def clear(self) -> None:
        """Remove what an earlier evaluation has left beside its table."""
        folder = OUTPUTS.rpartition("/")[0]
        for name in (f"{folder}/{name}" for name in self.run.names(folder)):
            if _OUTPUTS.fullmatch(name):
                self.run.remove(name)

    def write(self, key: str = "index") -> None:
        """Write the table, in ascending order of the samples, and what is left of the rest.

        Args:
            key: The name of the first column.
        """
        self._write_rest()
        table = io.BytesIO()  # unlike a list of its parts, it is not copied to become whole
        table.writelines(self._table(key))
        self.run.write(SCORES, table.getvalue())

    def _reserve(self, rows: int) -> None:
        if rows > self._capacity:
            self._capacity = max(rows, 2 * self._capacity)
            self._index = np.resize(self._index, self._capacity)
            self._columns = {name: np.resize(column, self._capacity) for name, column in self._columns.items()}

    def _put(self, name: str, value: torch.Tensor, start: int, stop: int) -> None:
        given = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = np.zeros(self._capacity, given.dtype)
            self._absent[name] = [(0, start)] if start else []
        elif column.dtype != given.dtype:
            column = self._columns[name] = column.astype(np.result_type(column, given))
        column[start:stop] = given

    def _table(self, key: str) -> Iterator[bytes]:
        index = self._index[: self._used]
        order = None if np.all(index[1:] >= index[:-1]) else np.argsort(index, kind="stable")
        absent = {name: np.zeros(self._used, bool) for name, ranges in self._absent.items() if ranges}
        for name, flags in absent.items():
            for start, stop in self._absent[name]:
                flags[start:stop] = True
        yield _csv([(key, *self._columns)])
        for first in range(0, self._used, _ROWS):
            block = slice(first, min(first + _ROWS, self._used))
            rows = block if order is None else order[block]
            columns = [index[rows].tolist(), *(column[rows].tolist() for column in self._columns.values())]
            for at, name in enumerate(self._columns, start=1):
                if name in absent:
                    columns[at] = [
                        "" if no else value for no, value in zip(absent[name][rows], columns[at], strict=True)
                    ]
            yield _csv(zip(*columns, strict=True))

    def _write_rest(self) -> None:
        if not self._rest:
            return
        sizes = [rows.stop - rows.start for rows, _ in self._rest]
        content: dict[str, Any] = {}
        for name in dict.fromkeys(name for _, rest in self._rest for name in rest):
            values = [rest.get(name) for _, rest in self._rest]
            whole = all(is_column(value, count) for value, count in zip(values, sizes, strict=True))
            joined = concatenated({name: value} for value in values) if whole else None
            content[name] = values if joined is None else joined[name]
        index = torch.from_numpy(np.concatenate([self._index[rows] for rows, _ in self._rest]))
        data = saved({"index": index, "batch_sizes": sizes, "outputs": content}, "what test_step returns")
        self.run.write(OUTPUTS.replace(".pt", f"-{self._files:04d}.pt" if self._files else ".pt"), data)
        self.beside |= content.keys()
        self._files, self._rest, self._rest_bytes = self._files + 1, [], 0

    def _can_be_saved(self, value: Any, name: str) -> bool:
        if name in self._left_out:
            return False
        try:
            plain({name: value})
        except UserError as error:
            self._left_out.add(name)
            log.warning("left out of %s/%s: %s", self.run, OUTPUTS, in_a_file(error.problems[0]))
            return False
        return True


def _is_number_each(value: Any, count: int) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == (count,) and not value.is_complex()


def _has_rows(value: Any) -> bool:
    return getattr(value, "ndim", 0) > 0


def _csv(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
