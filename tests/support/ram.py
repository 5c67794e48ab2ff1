"""A storage that the pipeline knows nothing of but its fsspec implementation, in the memory of this process."""

from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class RamFileSystem(MemoryFileSystem):
    """fsspec's memory under another protocol: `memory://` itself is refused as a run directory."""

    protocol = "ram"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(each) for each in path]
        return super()._strip_protocol(str(path).replace("ram://", "memory://", 1))


fsspec.register_implementation("ram", RamFileSystem, clobber=True)
