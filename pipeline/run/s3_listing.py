"""List a folder of a bucket and read small files there, many at once: through obstore, without s3fs.

s3fs takes 0.6 s to be imported, which is a third of what a list of runs may take.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from fsspec.config import conf as fsspec_config

from pipeline.run.s3_client import S3Location, locate

_PAGE = 1000
"""Objects of one answer of S3's, at most."""
_PARTS = 4
"""Of a folder, which are listed concurrently."""
_AT_ONCE = 128
"""Small files that are read concurrently."""


class S3Folder:
    """All objects whose keys begin with a prefix.

    Args:
        location: How the bucket is reached.
        prefix: Without slashes around it; empty for the whole bucket.
    """

    def __init__(self, location: S3Location, prefix: str) -> None:
        self._location = location
        self._prefix = prefix
        self._store = location.object_store()

    @staticmethod
    def open(url: str) -> "S3Folder | None":
        """Return the folder that a URL names; None where only fsspec can reach it, or it is on another storage.

        Raises:
            Exception: The storage does not answer.
        """
        protocol, _, path = url.partition("://")
        if protocol not in ("s3", "s3a") or fsspec_config.get(protocol):
            return None
        try:
            import obstore.store  # noqa: F401, PLC0415 - part of the extra for S3
        except ImportError:
            return None
        bucket, *parts = (part for part in path.split("/") if part not in ("", "."))
        location = locate(bucket)
        return None if location is None else S3Folder(location, "/".join(parts))

    @property
    def url(self) -> str:
        """The URL by which it is known to fsspec."""
        return f"s3://{self._location.bucket}/{self._prefix}".rstrip("/")

    @property
    def now(self) -> float:
        """The storage's clock in seconds since 1970, a second slow: it tells whole ones, and nothing expires early."""
        return time.time() + self._location.ahead - 1

    def files(self, folder: str = "") -> Iterator[tuple[str, int, float]]:
        """Yield the name below this one, the bytes and the time of each object in a folder, in seconds since 1970.

        A listing comes page by page, each after the last one: so several go through parts of the folder at once.
        """
        prefix = self._key(folder)
        below = sorted(self._key(each) for each in self.level(folder)[0])
        cuts = [below[len(below) * part // _PARTS] for part in range(1, _PARTS)] if len(below) >= _PARTS else []
        with ThreadPoolExecutor(_PARTS) as pool:
            for part in pool.map(partial(self._part, prefix), [None, *cuts], [*cuts, None]):
                yield from part

    def level(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the folders and the objects that lie directly in a folder, by their names below this one."""
        import obstore  # noqa: PLC0415

        found = obstore.list_with_delimiter(self._store, self._key(folder) or None)
        skip = len(self._prefix) + bool(self._prefix)
        below = [each[skip:].rstrip("/") for each in found["common_prefixes"]]
        return below, [each["path"][skip:] for each in found["objects"]]

    def _key(self, name: str) -> str:
        return "/".join(each for each in (self._prefix, name) if each)

    def _part(self, prefix: str, after: str | None, last: str | None) -> list[tuple[str, int, float]]:
        """Return the objects whose keys begin with a prefix and come after one, up to another one."""
        import obstore  # noqa: PLC0415

        skip = len(self._prefix) + bool(self._prefix)
        found: list[tuple[str, int, float]] = []
        for page in obstore.list(self._store, prefix=prefix or None, offset=after, chunk_size=_PAGE):
            if after is not None and page[0]["path"] <= after:
                raise NotImplementedError("this store does not list in the order of keys")
            found += [
                (path[skip:], each["size"], each["last_modified"].timestamp())
                for each in page
                if (path := each["path"]) and (last is None or path <= last)
            ]
            if last is not None and page[-1]["path"] > last:
                break
        return found

    def contents(self, names: Sequence[str]) -> list[tuple[bytes, float] | Exception]:
        """Return the bytes of files below the folder with the time of each, or why one cannot be read."""
        with ThreadPoolExecutor(min(_AT_ONCE, len(names) or 1)) as pool:
            return list(pool.map(self._content, names))

    def _content(self, name: str) -> tuple[bytes, float] | Exception:
        import obstore  # noqa: PLC0415

        try:
            found = obstore.get(self._store, self._key(name))
            return bytes(found.bytes()), found.meta["last_modified"].timestamp()
        except Exception as error:  # noqa: BLE001 - whoever asked tells an outage from a refusal
            return error
