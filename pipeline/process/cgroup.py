"""The memory of this container, as its control group says (cgroups 1 and 2): its limit, and whether it was too little.

https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

import re
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_MACHINE = Path("/proc/meminfo")


class Memory:
    """What the kernel has killed since this was made, or since the last question.

    Args:
        groups: Where the kernel shows control groups.
        machine: Where it shows the memory of the machine.
    """

    def __init__(self, groups: Path = _GROUPS, machine: Path = _MACHINE) -> None:
        self._groups = groups
        self._machine = machine
        self._known = self._kills()

    def taken(self) -> str:
        """What to say of processes that were killed for memory; empty where none was, or where it cannot be known."""
        before, self._known = self._known, self._kills()
        if self._known <= before:
            return ""
        limit = self.limit()
        return "killed for memory" + (f": the limit here is {limit >> 20} MB" if limit is not None else "")

    def limit(self) -> int | None:
        """Bytes that this container may take; None for no limit, or where it cannot be known."""
        for name in ("memory.max", "memory/memory.limit_in_bytes"):
            text = _read(self._groups / name).strip()
            # Without a limit version 2 says max, and version 1 a number near 2**63.
            if text.isdecimal() and int(text) < 1 << 60:
                return int(text)
        return None

    def free(self) -> int | None:
        """Bytes that can still be taken here: of the limit, or of the machine's memory where that is less."""
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(self._machine), re.MULTILINE)
        free = [int(found[1]) << 10] if found else []
        limit = self.limit()
        for name in ("memory.current", "memory/memory.usage_in_bytes"):
            text = _read(self._groups / name).strip()
            if limit is not None and text.isdecimal():
                free.append(max(0, limit - int(text)))
        return min(free, default=None)

    def _kills(self) -> int:
        for name in ("memory.events", "memory/memory.oom_control"):
            if found := re.search(r"^oom_kill (\d+)$", _read(self._groups / name), re.MULTILINE):
                return int(found[1])
        return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
