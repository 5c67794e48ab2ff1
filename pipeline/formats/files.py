"""The files of a dataset: listed once, in one order for all ranks, and read in any process, mapped or by ranges.

Nothing that is open is shared between processes: a pickled or forked list opens its files again.
"""

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from pipeline.cache import Mapped, mapped
from pipeline.cache.fetch import version_of
from pipeline.cache.folder import cache_bytes
from pipeline.errors import StorageAway, UserError
from pipeline.formats.node_cache import kept, this_start
from pipeline.run.retry import patiently
from pipeline.run.storage import is_local, open_filesystem
from pipeline.run.storage_errors import is_away, raise_for_user

_WILD = re.compile(r"[*?\[]")
_ADVICE = "Name files that are there and that this user may read"
_WHOLE = 16 << 20
"""Bytes of local files up to which all of them are in the fingerprint."""
_PIECE = 16 << 10
"""Bytes of each piece of larger ones."""
_PIECES = 256
_ZIPPED = (".gz", ".tgz")


class DataFile(NamedTuple):
    """A file as it was listed.

    Attributes:
        path: In its filesystem.
        name: Below the folder that was listed, the same on every node.
        size: In bytes.
        version: What a remote storage says that changes with the content; empty for a local file.
    """

    path: str
    name: str
    size: int
    version: str


class FileList:
    """The files that a dataset is in.

    Args:
        where: A file, a folder or a pattern with `*`, as a local path or any fsspec URL; or several.
        endings: Which files of a folder belong to it, by the end of their lower-case names; all of a pattern do.
        what: What to call `where` in an error, such as `Table(source=...)`.
        whole: Whether remote files are fetched whole, once a node, where all of them fit into the cache together. Else
            they are read by ranges.
        fit: Whether files that do not fit into the cache are read by ranges; else they are an error.

    Raises:
        UserError: There is none, or the storage refuses.
        StorageAway: It does not answer.
    """

    def __init__(
        self, where: str | Sequence[str], endings: Sequence[str], what: str, whole: bool = True, fit: bool = True
    ) -> None:
        self.given = [where] if isinstance(where, str) else list(where)
        self.what = what
        if not self.given or not all(isinstance(each, str) and each for each in self.given):
            raise UserError(f"{what}={where!r} must name a file, a folder or a pattern, or several in a list")
        self.local = all(is_local(open_filesystem(url, f"{what}={url!r}")[0]) for url in self.given)
        self.files: list[DataFile] = []
        self._from: list[int] = []
        for at, url in enumerate(self.given):
            found = self._listed(url, endings)
            self.files += found
            self._from += [at] * len(found)
        total = sum(each.size for each in self.files)
        self.mapped = self.local or (whole and (not fit or total <= cache_bytes()))
        self._maps: dict[int, Mapped] = {}
        self._opened: tuple[int, dict[int, Any]] = (0, {})

    def __len__(self) -> int:
        return len(self.files)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": (0, {})}

    def _listed(self, url: str, endings: Sequence[str]) -> list[DataFile]:
        """List by one process of a node: a bucket of a million objects takes a minute, for each who asks."""
        start = "" if is_local(open_filesystem(url, self.what)[0]) else this_start()
        packed = kept(f"listing {url} {endings}", start, lambda: json.dumps(self._list(url, endings)).encode())
        return [DataFile(*each) for each in json.loads(packed)]

    def _list(self, url: str, endings: Sequence[str]) -> list[DataFile]:
        fs, path = open_filesystem(url, f"{self.what}={url!r}")
        local = is_local(fs)
        with self.reported(url, "listed"):
            if _WILD.search(url):
                base = _WILD.split(path)[0].rpartition("/")[0]
                found = patiently(url, lambda: fs.glob(path, detail=True))
                if not found:
                    raise UserError(f"{self.what}={url!r} matches no file")
                return _listed(found.values(), base, local)
            info = patiently(url, lambda: fs.info(path))
            if info["type"] != "directory":
                return _listed([info], path.rpartition("/")[0], local)
            found = patiently(url, lambda: fs.find(path, detail=True))
        path = str(info["name"]).rstrip("/")
        files = _listed(found.values(), path, local)
        fitting = [each for each in files if each.name.lower().endswith(tuple(endings))]
        if not fitting:
            others = f"{len(files)} files, such as {files[0].name}" if files else "no file"
            raise UserError(f"{self.what}={url!r} has no file that ends with {', '.join(endings)}: it holds {others}")
        return fitting

    @contextmanager
    def reported(self, of: str, verb: str = "read") -> Iterator[None]:
        """Say what an error of the storage means for the user."""
        try:
            yield
        except (StorageAway, UserError):
            raise
        except Exception as error:
            if isinstance(error, OSError) or is_away(error):
                raise_for_user(error, f"{self.what}: {of} cannot be {verb}", _ADVICE)
            if not isinstance(error, ValueError):
                raise
            raise UserError(f"{self.what}: {error}") from error  # gzip, from the cache

    def url(self, at: int) -> str:
        """Return the URL of a file, or its local path."""
        protocol, marked, _ = self.given[self._from[at]].partition("://")
        path = self.files[at].path
        return path if self.local or not marked or path.startswith(f"{protocol}://") else f"{protocol}://{path}"

    def prepare(self) -> None:
        """Have all files on this node, where they are to be mapped."""
        for at in range(len(self) if self.mapped else 0):
            self.map(at)

    def map(self, at: int) -> Mapped:
        """Return the bytes of a file, mapped: (n,) uint8, read-only. Gzip is undone."""
        if at not in self._maps:
            url = self.url(at)
            zipped = url.lower().endswith(_ZIPPED)
            with self.reported(url):
                array = mapped(url, decompress=zipped)
            if not zipped:
                self._compare(at, len(array))
            self._maps[at] = array
        return self._maps[at]

    def open(self, at: int) -> Any:
        """Return a file of the storage that seeks and reads by ranges, opened in this process."""
        if self._opened[0] != os.getpid():
            self._opened = (os.getpid(), {})
        if at not in self._opened[1]:
            fs, path = self.filesystem(at)
            with self.reported(self.url(at)):
                self._opened[1][at] = patiently(self.url(at), lambda: fs.open(path, "rb"))
        return self._opened[1][at]

    def ranges(self, wanted: Sequence[tuple[int, int, int]]) -> list[bytes]:
        """Return parts of files, those of a remote storage all at once.

        Args:
            wanted: Of each part, which file, the offset of its first byte, and that after its last one.
        """
        if self.mapped:
            return [self.map(at)[start:end].tobytes() for at, start, end in wanted]
        found: list[bytes] = [b""] * len(wanted)
        for given in sorted({self._from[at] for at, _, _ in wanted}):
            mine = [place for place, (at, start, end) in enumerate(wanted) if self._from[at] == given and start < end]
            if not mine:
                continue
            fs = self.filesystem(wanted[mine[0]][0])[0]
            paths = [self.files[wanted[place][0]].path for place in mine]
            starts, ends = ([wanted[place][bound] for place in mine] for bound in (1, 2))
            ask = partial(fs.cat_ranges, paths, starts, ends, on_error="raise")
            with self.reported(self.url(wanted[mine[0]][0])):
                came = patiently(self.given[given], ask)
            for place, data in zip(mine, came, strict=True):
                found[place] = data
        return found

    def contents(self, wanted: Sequence[int]) -> list[bytes]:
        """Return whole files of their own, those of a remote storage all at once and not through the cache."""
        if self.local:
            return list(map(self._content, wanted))
        parts = [(at, 0, self.files[at].size) for at in wanted]
        found = self.ranges(parts)
        for at, data in zip(wanted, found, strict=True):
            self._compare(at, len(data))
        return found

    def _content(self, at: int) -> bytes:
        with self.reported(self.files[at].path), open(self.files[at].path, "rb") as file:
            data = file.read()
        self._compare(at, len(data))
        return data

    def filesystem(self, at: int) -> tuple[Any, str]:
        """Return the filesystem of a file, for this process, and the path in it."""
        fs, _ = open_filesystem(self.given[self._from[at]], self.what)
        return fs, self.files[at].path

    def _compare(self, at: int, size: int) -> None:
        if size != self.files[at].size:
            raise UserError(
                f"{self.what}: {self.url(at)} has {size} bytes, and had {self.files[at].size} when it was listed: it "
                "was changed. Leave files alone as long as they are read, and start again"
            )

    def version(self, at: int) -> str:
        """Return what tells the content of a file from a later one's on this node."""
        if not self.local:
            return self.files[at].version
        state = os.stat(self.files[at].path)
        return f"{state.st_size} {state.st_mtime_ns}"

    def fingerprint(self, *of: object) -> str:
        """Return a digest of names, sizes and content.

        The content is told by what a remote storage says of it (an ETag, say). Of local files all of it counts up to
        16 MiB, and 256 pieces of larger ones: times are others on each node.

        Args:
            of: What else makes the dataset what it is.
        """
        digest = hashlib.sha256(repr(of).encode())
        for file in self.files:
            digest.update(f"{file.name}\0{file.size}\0{file.version}\0".encode())
        if self.local:
            for at, start, end in _pieces([each.size for each in self.files]):
                with self.reported(self.files[at].path), open(self.files[at].path, "rb") as content:
                    content.seek(start)
                    digest.update(content.read(end - start))
        return f"sha256:{digest.hexdigest()}"


def _listed(infos: Any, base: str, local: bool) -> list[DataFile]:
    """Return files in the order of their names, without hidden ones."""
    found = []
    for info in infos:
        path = str(info["name"])
        name = path.removeprefix(base.rstrip("/")).lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if info["type"] == "file" and not hidden and info.get("size") is not None:
            found.append(DataFile(path, name, int(info["size"]), "" if local else version_of(info)))
        elif local and info.get("islink") and not hidden and stat.S_ISREG((state := os.stat(path)).st_mode):
            found.append(DataFile(path, name, state.st_size, ""))
    return sorted(found, key=lambda each: each.name)


def _pieces(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield the parts of files that stand for their content: file, first byte, end."""
    total = sum(sizes)
    if total <= _WHOLE:
        yield from ((at, 0, size) for at, size in enumerate(sizes))
        return
    # Evenly spread, the very first and the very last bytes among them: headers and footers.
    places = [number * (total - _PIECE) // (_PIECES - 1) for number in range(_PIECES)]
    before, at = 0, 0
    for place in places:
        while before + sizes[at] <= place:
            before, at = before + sizes[at], at + 1
        yield at, place - before, min(place - before + _PIECE, sizes[at])


class MappedFile(io.RawIOBase):
    """Mapped bytes as a file that seeks.

    Args:
        raw: The bytes.
    """

    def __init__(self, raw: Mapped) -> None:
        self.raw, self.at = raw, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: len(self.raw)}[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        """Read on from there."""
        data = self.raw[self.at : self.at + len(buffer)].tobytes()
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)
