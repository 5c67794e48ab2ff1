"""Arrays over memory-mapped files, which loader workers map again instead of getting a copy."""

import hashlib
import mmap
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Source:
    """The file behind a mapped array.

    Attributes:
        url: As the user gave it; an absolute path for a local file.
        path: What is mapped: the local file itself, or its copy in the cache.
        bytes: Its length.
        mtime_ns: When its content was last written.
        decompress: Whether gzip was undone.
        known: The digest of the copy in the cache, empty for a local file mapped in place.
    """

    url: str
    path: str
    bytes: int
    mtime_ns: int
    decompress: bool = False
    known: str = ""

    @cached_property
    def sha256(self) -> str:
        """The digest of what is mapped; a local file's is computed when first asked for."""
        if self.known:
            return self.known
        with open(self.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if os.fstat(file.fileno()).st_mtime_ns != self.mtime_ns:
                raise OSError(f"{self.url} was changed since it was mapped: start again")
        return f"sha256:{digest}"


class Mapped(np.ndarray[Any, np.dtype[Any]]):
    """A read-only array over a mapped file, or a view of one.

    Pickled, it says where its bytes lie, not what they are: loader workers map the same file again.

    Attributes:
        source: The file; None for an array with memory of its own, such as a computed one.
    """

    source: Source | None = None
    _address = 0

    def __array_finalize__(self, origin: Any) -> None:
        if isinstance(origin, Mapped) and origin.source is not None and np.may_share_memory(self, origin):
            self.source, self._address = origin.source, origin._address

    def __reduce__(self) -> Any:
        if self.source is None or not self.size:
            return super().__reduce__()
        return _again, (self.source, _address(self) - self._address, self.shape, self.strides, self.dtype)


def map_file(source: Source) -> Mapped:
    """Map a file; a length of -1 takes it as long as it is."""
    descriptor = os.open(source.path, os.O_RDONLY | (os.O_NOFOLLOW if source.known else 0))
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise OSError(f"{source.path} is not a file")
        if source.bytes not in (-1, state.st_size):
            raise OSError(f"{source.path} has {state.st_size} bytes, expected {source.bytes}")
        buffer = mmap.mmap(descriptor, state.st_size, access=mmap.ACCESS_READ) if state.st_size else b""
    finally:
        os.close(descriptor)
    array = Mapped((state.st_size,), np.uint8, buffer)
    array.source = Source(source.url, source.path, state.st_size, state.st_mtime_ns, source.decompress, source.known)
    array._address = _address(array)
    return array


def _again(source: Source, offset: int, shape: Any, strides: Any, dtype: Any) -> Mapped:
    """What a pickled array becomes: the same view of the same file, or an error."""
    array: Mapped | None = None
    with suppress(OSError):
        array = map_file(source)
    if array is None or array.source != source:
        # The cache may have dropped it since; another version is no substitute.
        from pipeline.cache.fetch import mapped  # noqa: PLC0415 - which itself maps by this module

        array = mapped(source.url, decompress=source.decompress) if source.known else None
        if array is None or array.source is None or array.source.sha256 != source.known:
            raise OSError(f"{source.url} was changed or removed since it was mapped: start again")
    view = Mapped(shape, dtype, array.data, offset, strides)
    view.source, view._address = array.source, array._address
    return view


def _address(array: Mapped) -> int:
    return int(array.__array_interface__["data"][0])
