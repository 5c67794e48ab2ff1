"""Arrays over memory-mapped files, which loader workers map again instead of receiving a copy."""

import mmap
import os
import stat
from contextlib import suppress
from typing import Any

import numpy as np

from pipeline.cache.fetch import Source, fetched


class Mapped(np.ndarray[Any, np.dtype[Any]]):
    """A read-only array over a mapped file, or a view of one.

    Its pickle holds where its bytes are, not what they are: loader workers map the same file again.

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
        return _unpickle, (self.source, _address(self) - self._address, self.shape, self.strides, self.dtype)


def mapped(url: str, sha256: str | None = None, decompress: bool = False) -> Mapped:
    """Return the bytes of a file, memory-mapped.

    A local file is mapped in place, and must not change as long as it is mapped; any other comes from the cache,
    fetched if the cache has no copy of this version. While the storage does not answer, an existing copy is used.

    Args:
        url: A local path or any fsspec URL.
        sha256: The expected digest of the file at the URL, in hex. A copy of that digest is used without asking.
        decompress: Undo gzip, if it is gzip. The content is then in the cache, a local file's too.

    Returns:
        (n,) uint8, read-only.

    Raises:
        UserError: The digest differs, the cache's settings are wrong, or the file does not fit.
        ValueError: Damaged gzip.
        OSError: The file could not be read.
        StorageAway: It could not, and a start has waited for its storage.
    """
    with fetched(url, sha256, decompress) as source:
        return _map(source)


def _map(source: Source) -> Mapped:
    descriptor = os.open(source.path, os.O_RDONLY | (os.O_NOFOLLOW if source.known else 0))
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode) or (state.st_size, state.st_mtime_ns) != (source.bytes, source.mtime_ns):
            raise OSError(f"{source.path} is not what it was when it was verified")
        buffer = mmap.mmap(descriptor, state.st_size, access=mmap.ACCESS_READ) if state.st_size else b""
    finally:
        os.close(descriptor)
    array = Mapped((state.st_size,), np.uint8, buffer)
    array.source, array._address = source, _address(array)
    return array


def _unpickle(source: Source, offset: int, shape: Any, strides: Any, dtype: Any) -> Mapped:
    """Return the same view of the same file, or raise."""
    array: Mapped | None = None
    with suppress(OSError):
        array = _map(source)
    if array is None:
        # The cache may have dropped it since; another version is no substitute.
        array = mapped(source.url, decompress=source.decompress) if source.known else None
        if array is None or array.source is None or array.source.sha256 != source.known:
            raise OSError(f"{source.url} was changed or removed since it was mapped: start again")
    view = Mapped(shape, dtype, array.data, offset, strides)
    view.source, view._address = array.source, array._address
    return view


def _address(array: Mapped) -> int:
    return int(array.__array_interface__["data"][0])
