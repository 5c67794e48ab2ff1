"""What takes long to find out of a dataset's files, found by one process of a node and kept in the cache folder."""

import hashlib
import os
from collections.abc import Callable
from typing import Any

from pipeline.cache.folder import CacheFolder

_START = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")
"""What torch's agent sets, and is the same for the processes that it started together, and for no later ones."""


def this_start() -> str:
    """Return what the processes of a node that were started together share; empty for one that is alone."""
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) < 2:
        return ""
    return " ".join([str(os.getppid()), *(os.environ.get(name, "") for name in _START)])


def kept(what: str, version: str, make: Callable[[], bytes]) -> bytes:
    """Return what was found out.

    Args:
        what: Of which file or folder, and what.
        version: Of the file; another one's is not kept any longer. Without one each process finds out by itself.
        make: Finds it out.
    """
    if not version:
        return make()
    folder = CacheFolder()
    key = hashlib.sha256(what.encode()).hexdigest()[:32]
    stem = folder.path / f"{key}-{hashlib.sha256(version.encode()).hexdigest()[:16]}"

    def find() -> bytes | None:
        record = folder.read_record(stem, what, version=version)
        if record is None or folder.mtime_if_whole(stem, record) is None:
            return None
        return stem.with_suffix(".bin").read_bytes()

    def fetch() -> None:
        data = make()

        def fill(file: Any) -> dict[str, Any]:
            file.write(data)
            return {"version": version, "bytes": len(data), "sha256": f"sha256:{hashlib.sha256(data).hexdigest()}"}

        for older in folder.path.glob(f"{key}-*.json"):
            older.with_suffix(".bin").unlink(missing_ok=True)
            older.unlink(missing_ok=True)
        folder.take_in(stem, what, len(data), fill, durable=False)

    with folder.hold(key, what, find, fetch) as found:
        return found
