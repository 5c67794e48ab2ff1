"""Tables in Parquet, Arrow and Feather, by pyarrow: any row at any moment, from any storage.

data.train: {class_path: pipeline.formats.Table, init_args: {source: s3://bucket/rows/, columns: [x, y]}}
"""

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError
from pipeline.formats import arrow_values
from pipeline.formats.arrow_files import ENDINGS, ArrowFile, same_columns
from pipeline.formats.batched import Batched, Rows, as_classes, choose, stacked
from pipeline.formats.files import FileList

log = logging.getLogger(__name__)


class _Chunks(NamedTuple):
    """Where the rows are.

    Attributes:
        columns: Those that a sample has.
        files: Of each row group or record batch: in which file it is,
        within: and which one of that file.
        ends: The number of rows up to its end.
    """

    columns: list[str]
    files: list[int]
    within: list[int]
    ends: npt.NDArray[np.int64]


class Table(Batched):
    """The rows of Parquet, Arrow and Feather files: (column: value), numbers as tensors, all else as it is.

    Local files are memory-mapped. Remote ones are fetched once a node where all of them fit into the cache
    (`PIPELINE_CACHE_BYTES`), else read by ranges. Arrow files without compression are read in place; row groups of
    Parquet and compressed record batches are decoded whole, and the last ones used are kept.

    A batch has a tensor for each column of numbers, and for one of lists of numbers that have the same length there;
    else a list. Null is NaN among floating-point numbers, None in a list, and an error among whole numbers.

    Args:
        source: A file, a folder or a pattern with `*`, as a local path or any fsspec URL; or several.
        columns: Those to read, in this order. Default: all.
        target: The column of whole numbers that is the attribute `targets`, by which classes are balanced.
        length: The column that is the attribute `lengths`, by which samples are grouped: the lengths of its texts or
            lists, or its whole numbers.
        as_tuple: Whether samples and batches are tuples of the columns instead of mappings.
        decoded_bytes: Bytes of decoded row groups that each process keeps.
        transform: Called with each sample, with seeded generators.

    Raises:
        UserError: There is no such file or column.
        StorageAway: The storage does not answer.
    """

    def __init__(
        self,
        source: str | list[str],
        columns: list[str] | None = None,
        target: str | None = None,
        length: str | None = None,
        as_tuple: bool = False,
        decoded_bytes: int = 1 << 29,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(transform, as_tuple)
        if decoded_bytes < 0:
            raise UserError(f"Table(decoded_bytes={decoded_bytes}) must be >= 0")
        self.files = FileList(source, ENDINGS, "Table(source)")
        self.columns, self.target, self.length = columns, target, length
        self.decoded_bytes = decoded_bytes
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._open: dict[int, ArrowFile] = {}
        self._kept: OrderedDict[int, tuple[dict[str, Any], int]] = OrderedDict()
        self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_kept": OrderedDict(), "_kept_bytes": 0}

    def prepare_data(self) -> None:
        """Fetch what is to be mapped, once a node, and read where the rows are."""
        self.files.prepare()
        len(self)

    def __len__(self) -> int:
        return int(self._chunks.ends[-1]) if len(self._chunks.ends) else 0

    @cached_property
    def _chunks(self) -> _Chunks:
        files: list[int] = []
        within: list[int] = []
        counts: list[int] = []
        columns, first = self.columns, None
        for at in range(len(self.files)):
            opened = self._file(at)
            columns = same_columns(opened, columns, first)
            first = opened.schema if first is None else first
            for name, column in (("target", self.target), ("length", self.length)):
                choose(None if column is None else [column], opened.schema.names, f"Table({name}): {opened.url}")
            files += [at] * len(opened.chunks)
            within += range(len(opened.chunks))
            counts += opened.chunks
        if not sum(counts):
            raise UserError(f"{self.files.what}: {self.files.given} has no rows")
        return _Chunks(columns or [], files, within, np.cumsum(counts, dtype=np.int64))

    def _file(self, at: int) -> ArrowFile:
        if not self.files.mapped and self._process != os.getpid():
            self._forget()
        if at not in self._open:
            self._open[at] = ArrowFile(self.files, at)
        return self._open[at]

    def _chunk(self, chunk: int) -> dict[str, Any]:
        """Return the columns of a chunk: numbers as arrays, all else as Arrow has it."""
        known = self._chunks
        if chunk in self._kept:
            self._kept.move_to_end(chunk)
            return self._kept[chunk][0]
        opened = self._file(known.files[chunk])
        found, size = opened.read(known.within[chunk], known.columns)
        columns: dict[str, Any] = {}
        for name, column in found.items():
            array = arrow_values.numbers(column, f"{self.files.what}: {opened.url}: {name!r}")
            columns[name] = column if array is None else array
        self._keep(chunk, columns, size)
        return columns

    def _keep(self, chunk: int, columns: dict[str, Any], size: int) -> None:
        self._kept[chunk] = (columns, size)
        self._kept_bytes += size
        while self._kept_bytes > self.decoded_bytes and len(self._kept) > 1:
            _, (_, freed) = self._kept.popitem(last=False)
            self._kept_bytes -= freed
            if not self.__dict__.setdefault("_said", False):
                self._said = True
                log.info(
                    "Table: decoded row groups do not all fit into decoded_bytes=%d, so that rows in random order have "
                    "them decoded again and again. Raise it, or write the table as Arrow without compression, which is "
                    "mapped as it is",
                    self.decoded_bytes,
                )

    def fetch(self, indices: Rows) -> dict[str, Any]:
        """Return the rows of a batch, each chunk read once."""
        known = self._chunks
        chunks = np.searchsorted(known.ends, indices, side="right")
        order = np.argsort(chunks, kind="stable")
        inverse = np.argsort(order)
        chunks = chunks[order]
        local = indices[order] - np.where(chunks, known.ends[chunks - 1], 0)
        bounds = [0, *(np.flatnonzero(np.diff(chunks)) + 1).tolist(), len(indices)]
        arrays: dict[str, list[npt.NDArray[Any]]] = {}
        lists: dict[str, list[Any]] = {}
        for start, end in pairwise(bounds if len(indices) else []):
            for name, column in self._chunk(int(chunks[start])).items():
                if isinstance(column, np.ndarray):
                    arrays.setdefault(name, []).append(column[local[start:end]])
                else:
                    lists.setdefault(name, []).extend(arrow_values.plain(column.take(_indices(local[start:end]))))
        return {
            name: arrow_values.tensor(np.concatenate(arrays[name])[inverse])
            if name in arrays
            else stacked([lists[name][place] for place in inverse])
            for name in (known.columns if len(indices) else ())
        }

    def _whole(self, column: str) -> Iterator[Any]:
        for at, within in zip(self._chunks.files, self._chunks.within, strict=True):
            yield self._file(at).read(within, [column])[0][column]

    @cached_property
    def targets(self) -> Sequence[int]:
        """The values of the column `target`."""
        if self.target is None:
            raise AttributeError("Table(target=...) names no column of classes")
        name = f"Table(target={self.target!r})"
        parts = [arrow_values.numbers(each, name) for each in self._whole(self.target)]
        return [value for each in parts for value in as_classes([] if each is None else each, name)]

    @cached_property
    def lengths(self) -> Sequence[int]:
        """The lengths of the column `length`."""
        if self.length is None:
            raise AttributeError("Table(length=...) names no column")
        name = f"Table(length={self.length!r})"
        return [int(value) for each in self._whole(self.length) for value in arrow_values.lengths(each, name)]

    def fingerprint(self) -> str:
        """A digest of the files, and of what is read of them."""
        return self.files.fingerprint("Table", self.columns, self.as_tuple)


def _indices(local: Rows) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    return pa.array(local)
