"""Files of Parquet and Arrow (its file and its stream, which Feather is too) as chunks of rows, read one by one."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

from pipeline.errors import StorageAway, UserError, in_one_line
from pipeline.formats.batched import choose, load_library
from pipeline.formats.files import FileList
from pipeline.run.storage_errors import is_away, raise_for_user

ENDINGS = (".parquet", ".pq", ".arrow", ".feather", ".ipc")
_PARQUET, _FILE, _STREAM, _OLD = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"FEA1"

_STREAM_END = _STREAM + bytes(4)


class ArrowFile:
    """One file, opened in this process.

    Args:
        files: The list that it is in.
        at: Which one it is.

    Raises:
        UserError: It is damaged, or something else.
        StorageAway: The storage does not answer.
    """

    def __init__(self, files: FileList, at: int) -> None:
        self.url = files.url(at)
        self.what = files.what
        self._pa = load_library("pyarrow", "parquet", "pipeline.formats.Table")
        self._size = files.files[at].size
        self._mapped = (0, 0)
        self._narrowed: tuple[tuple[str, ...], Any] | None = None
        if files.mapped:
            buffer = self._pa.py_buffer(files.map(at))
            self._mapped = (buffer.address, buffer.address + buffer.size)
            magic, end = buffer[:6].to_pybytes(), buffer[max(0, buffer.size - 8) :].to_pybytes()
            self._source = self._pa.BufferReader(buffer)
        else:
            magic = files.ranges([(at, 0, min(6, self._size))])[0]
            end = b""
            self._source = self._pa.PythonFile(files.open(at), mode="r")
        self.parquet, self._stream = magic.startswith(_PARQUET), magic.startswith(_STREAM)
        if self._stream and not files.mapped:
            raise UserError(
                f"{self.what}: {self.url} is a stream of Arrow's, which is read from its beginning, and does not fit "
                "into PIPELINE_CACHE_BYTES. Raise that, or write it as an Arrow file (pyarrow.ipc.new_file)"
            )
        if not (self.parquet or self._stream or magic.startswith(_FILE)):
            hint = "Feather of version 1: write it anew" if magic.startswith(_OLD) else f"it begins with {magic!r}"
            raise UserError(f"{self.what}: {self.url} is neither Parquet nor Arrow: {hint}")
        with self._judged(f"its {self._size} bytes are no whole {'Parquet' if self.parquet else 'Arrow'} file"):
            self._reader = self._open(None)
            self._batches = list(self._reader) if self._stream else None
            if self._stream and end != _STREAM_END:
                raise ValueError("a stream's end mark is missing")

    def _open(self, columns: Sequence[str] | None) -> Any:
        if self.parquet:
            parquet = load_library("pyarrow.parquet", "parquet", "pipeline.formats.Table")
            return parquet.ParquetFile(self._source, page_checksum_verification=True, pre_buffer=self._mapped == (0, 0))
        ipc = load_library("pyarrow.ipc", "parquet", "pipeline.formats.Table")
        self._source.seek(0)
        if self._stream:
            return ipc.open_stream(self._source)
        fields = None if columns is None else [self._reader.schema.get_field_index(each) for each in columns]
        return ipc.open_file(self._source, options=ipc.IpcReadOptions(included_fields=fields))

    @property
    def schema(self) -> Any:
        """The columns: a pyarrow.Schema."""
        return self._reader.schema_arrow if self.parquet else self._reader.schema

    @cached_property
    def chunks(self) -> list[int]:
        """The rows of each row group or record batch."""
        if self.parquet:
            metadata = self._reader.metadata
            return [metadata.row_group(each).num_rows for each in range(metadata.num_row_groups)]
        if self._batches is not None:
            return [each.num_rows for each in self._batches]
        with self._judged("the length of a record batch cannot be read"):
            # Only the first column is decompressed to tell them.
            narrow = self._open(self.schema.names[:1])
            return [narrow.get_batch(each).num_rows for each in range(narrow.num_record_batches)]

    def read(self, chunk: int, columns: Sequence[str]) -> tuple[dict[str, Any], int]:
        """Return columns of a chunk, each a pyarrow.Array, and the bytes that they take beside the mapped file.

        Raises:
            UserError: It is damaged.
            StorageAway: The storage does not answer.
        """
        with self._judged(partial(self._place, chunk)):
            if self.parquet:
                table = self._reader.read_row_group(chunk, columns=list(columns), use_threads=False)
                table.validate()
                return {name: _one(table.column(name)) for name in columns}, table.nbytes
            source = self._batches if self._batches is not None else self._narrow(columns)
            batch = source[chunk] if isinstance(source, list) else source.get_batch(chunk)
            found = {name: batch.column(name) for name in columns}
            for each in found.values():
                each.validate(full=True)  # offsets that point elsewhere would be followed
            return {name: _one(each) for name, each in found.items()}, sum(map(self._own_bytes, found.values()))

    def table(self) -> Any:
        """Return all of an Arrow file, a pyarrow.Table over the mapped memory. Errors as `read`."""
        with self._judged("some of its record batches are damaged"):
            batches = self._batches
            if batches is None:
                batches = [self._reader.get_batch(each) for each in range(self._reader.num_record_batches)]
            found = self._pa.Table.from_batches(batches, self.schema)
            found.validate(full=True)
            return found

    def _narrow(self, columns: Sequence[str]) -> Any:
        """Return what reads record batches with these columns, and without a copy of what is mapped."""
        if self._in_place:
            return self._reader
        chosen = tuple(columns)
        if self._narrowed is None or self._narrowed[0] != chosen:
            self._narrowed = (chosen, self._open(chosen))
        return self._narrowed[1]

    @cached_property
    def _in_place(self) -> bool:
        """Whether record batches lie in the mapped file as they are, without compression."""
        if self._mapped == (0, 0) or not self._reader.num_record_batches:
            return False
        first = self._reader.get_batch(0)
        return not sum(self._own_bytes(first.column(each)) for each in range(first.num_columns))

    def _own_bytes(self, column: Any) -> int:
        first, last = self._mapped
        buffers = [each for each in column.buffers() if each is not None]
        return sum(each.size for each in buffers if not first <= each.address < last)

    def _place(self, chunk: int) -> str:
        first = sum(self.chunks[:chunk])
        rows = f"rows {first} to {first + self.chunks[chunk] - 1}"
        if not self.parquet:
            return f"record batch {chunk} ({rows}) is damaged"
        column = self._reader.metadata.row_group(chunk).column(0)
        offset = min(each for each in (column.dictionary_page_offset, column.data_page_offset) if each)
        return f"row group {chunk} at byte {offset} ({rows}) is damaged"

    @contextmanager
    def _judged(self, problem: str | Callable[[], str]) -> Iterator[None]:
        try:
            yield
        except (StorageAway, UserError):
            raise
        except Exception as error:
            if is_away(error):
                raise_for_user(error, f"{self.what}: {self.url} cannot be read", "")
            if not isinstance(error, (self._pa.ArrowException, OSError, ValueError, EOFError)):
                raise
            said, problem = in_one_line(error), problem if isinstance(problem, str) else problem()
            raise UserError(
                f"{self.what}: {self.url}: {problem} ({said}). Write the file again, or leave it out"
            ) from error


def _one(column: Any) -> Any:
    """Return a column as one array, without a dictionary."""
    found = column
    if hasattr(column, "num_chunks"):
        found = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return found.dictionary_decode() if hasattr(found, "dictionary") else found


def same_columns(opened: ArrowFile, asked: Sequence[str] | None, first: Any) -> list[str]:
    """Return the columns of a file that are asked for, which must be those of the first file.

    Args:
        opened: The file.
        asked: None for all of the first file's.
        first: The schema of the first file; None for that file itself.

    Raises:
        UserError: Some are missing, or of another type.
    """
    where = f"{opened.what}: {opened.url}"
    columns = choose(asked if asked is not None or first is None else first.names, opened.schema.names, where)
    problems = [
        f"{where} has {name!r} as {opened.schema.field(name).type}, and the first file as {first.field(name).type}: "
        "all files of a table must have the same types"
        for name in columns
        if first is not None and opened.schema.field(name).type != first.field(name).type
    ]
    if problems:
        raise UserError(*problems)
    return columns
