"""Where the samples of a tar shard lie: found by reading its headers once, and kept in the cache folder of the node."""

import io
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import UserError, in_one_line
from pipeline.formats.files import FileList, MappedFile
from pipeline.formats.node_cache import kept

_BLOCK = 512


class TarIndex(NamedTuple):
    """The samples of a shard.

    Attributes:
        keys: (samples,) texts: the names of their files, up to the first dot.
        parts: What their files end with, in lower case: each is a column of the arrays below.
        offsets: (samples, parts) int64: the first byte of a file.
        sizes: (samples, parts) int64: its bytes; -1 where a sample has no such file.
    """

    keys: npt.NDArray[np.str_]
    parts: list[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def index_of(files: FileList, at: int) -> TarIndex:
    """Return the samples of a shard.

    Raises:
        UserError: It is damaged, or has a file twice.
        StorageAway: The storage does not answer.
    """
    with np.load(io.BytesIO(kept(f"index {files.url(at)}", files.version(at), lambda: _packed(files, at)))) as found:
        return TarIndex(found["keys"], found["parts"].tolist(), found["offsets"], found["sizes"])


def _packed(files: FileList, at: int) -> bytes:
    samples: list[tuple[str, dict[str, tuple[int, int]]]] = []
    for name, offset, size in _members(files, at):
        folder, slash, base = name.rpartition("/")
        stem, dot, part = base.partition(".")
        if not dot or not stem:
            continue
        key, part = f"{folder}{slash}{stem}", part.lower()
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if part in samples[-1][1]:
            raise UserError(f"{files.what}: {files.url(at)} has {name} twice in one sample, again at byte {offset}")
        samples[-1][1][part] = (offset, size)
    parts = list(dict.fromkeys(part for _, found in samples for part in found))
    places = np.full((len(samples), len(parts), 2), -1, np.int64)
    columns = {part: column for column, part in enumerate(parts)}
    for row, (_, found) in enumerate(samples):
        for part, place in found.items():
            places[row, columns[part]] = place
    packed = io.BytesIO()
    keys = np.array([key for key, _ in samples], np.str_)
    np.savez(packed, keys=keys, parts=np.array(parts, np.str_), offsets=places[..., 0], sizes=places[..., 1])
    return packed.getvalue()


def _members(files: FileList, at: int) -> Iterator[tuple[str, int, int]]:
    """Yield the name, the first byte and the size of each file, and make sure that the archive is whole."""
    url = files.url(at)
    source: Any = io.BufferedReader(MappedFile(files.map(at))) if files.mapped else files.open(at)
    before, end = "", 0
    try:
        with files.reported(url), tarfile.open(fileobj=source, mode="r:") as archive:
            kept_members: list[Any] = archive.members  # type: ignore[attr-defined] # of which it keeps all
            for member in archive:
                before, end = member.name, archive.offset
                if member.isreg():
                    yield member.name, member.offset_data, member.size
                kept_members.clear()
            end = archive.offset
            source.seek(end)
            mark = source.read(_BLOCK)
    except (tarfile.TarError, EOFError) as error:
        behind = f", behind {before}" if before else ""
        raise UserError(
            f"{files.what}: {url} is no whole tar file: {in_one_line(error)} at byte {end} or later{behind}. "
            "Write it again"
        ) from error
    if len(mark) < _BLOCK or any(mark):
        what = "has no tar header there" if len(mark) == _BLOCK else "ends there without tar's end mark"
        raise UserError(
            f"{files.what}: {url} {what}, at byte {end} behind {before}: it is damaged or cut. Write it again"
        )
