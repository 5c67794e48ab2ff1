"""The memory limit of this container and its OOM kills, from its control group (cgroups 1 and 2).

https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

import re
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


class MemoryCgroup:
    """The memory of this container.

    Args:
        cgroups: Where the kernel shows control groups.
        meminfo: Where it shows the memory of the machine.
    """

    def __init__(self, cgroups: Path = _CGROUPS, meminfo: Path = _MEMINFO) -> None:
        self._cgroups = cgroups
        self._meminfo = meminfo
        self._known_kills = self._kills()

    def new_kills(self) -> str:
        """Describe OOM kills since the last call; empty for none, or if they cannot be known."""
        before, self._known_kills = self._known_kills, self._kills()
        if self._known_kills <= before:
            return ""
        limit = self.limit()
        return "killed for memory" + (f": the limit here is {limit >> 20} MB" if limit is not None else "")

    def limit(self) -> int | None:
        """Return the bytes that this container may use; None for no limit, or if it cannot be known."""
        limit = self._first_number("memory.max", "memory/memory.limit_in_bytes")
        # Without a limit version 2 reads max, and version 1 a number near 2**63.
        return limit if limit is not None and limit < 1 << 60 else None

    def free(self) -> int | None:
        """Return the bytes that are still free here: of the limit or of the machine, whichever is less."""
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(self._meminfo), re.MULTILINE)
        free = [int(found[1]) << 10] if found else []
        limit, used = self.limit(), self._first_number("memory.current", "memory/memory.usage_in_bytes")
        if limit is not None and used is not None:
            free.append(max(0, limit - used))
        return min(free, default=None)

    def _first_number(self, *names: str) -> int | None:
        texts = (_read(self._cgroups / name).strip() for name in names)
        return next((int(text) for text in texts if text.isdecimal()), None)

    def _kills(self) -> int:
        for name in ("memory.events", "memory/memory.oom_control"):
            if found := re.search(r"^oom_kill (\d+)$", _read(self._cgroups / name), re.MULTILINE):
                return int(found[1])
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
