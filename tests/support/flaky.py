"""A storage of one folder that counts the requests it gets, and fails those that a test chooses."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem


class Flaky(AbstractFileSystem):
    """A folder under `flaky://`, whose every request may fail.

    Attributes:
        root: The folder.
        requests: What was asked so far, `<operation> <path>` each.
        error: Makes what a request fails with.
        good: So many requests are answered; all later ones fail.
        first: Whether each request fails the first time, and is answered when it is repeated.
    """

    protocol = "flaky"
    cachable = False  # codespell:ignore cachable
    root = Path()
    requests: ClassVar[list[str]] = []
    error: Callable[[], Exception] = staticmethod(lambda: ConnectionResetError(104, "Connection reset by peer"))
    good: int | None = None
    first = False
    _seen: ClassVar[Counter[str]] = Counter()

    @classmethod
    def reset(cls, root: Path, **how: Any) -> str:
        """Start again over a folder; return the URL of a run there."""
        cls.root, cls.requests, cls._seen = root, [], Counter()
        cls.good, cls.first = how.get("good"), how.get("first", False)
        cls.error = staticmethod(how.get("error", ConnectionResetError))
        return "flaky://store/run"

    def _local(self, operation: str, path: str) -> tuple[LocalFileSystem, str]:
        cls, path = type(self), self._strip_protocol(path)
        request = f"{operation} {path}"
        cls.requests.append(request)
        if cls.good is not None and len(cls.requests) > cls.good:
            raise cls.error()
        cls._seen[request] += 1
        if cls.first and cls._seen[request] == 1:
            raise cls.error()
        return LocalFileSystem(auto_mkdir=True), str(cls.root / path)

    def _named(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "name": str(Path(info["name"]).relative_to(self.root))}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        fs, local = self._local("ls", path)
        found = [self._named(each) for each in fs.ls(local, detail=True)]
        return found if detail else [each["name"] for each in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        fs, local = self._local("info", path)
        return self._named(fs.info(local))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        fs, local = self._local("get", path)
        data: bytes = fs.cat_file(local, start, end)
        return data

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        fs, local = self._local("put", path)
        fs.pipe_file(local, value, mode=mode)

    def rm_file(self, path: str) -> None:
        fs, local = self._local("delete", path)
        fs.rm_file(local)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        fs, local = self._local("open", path)
        return fs.open(local, mode)


fsspec.register_implementation("flaky", Flaky, clobber=True)
