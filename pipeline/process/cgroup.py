"""The memory limit of this container and its OOM kills, from its control group (cgroups 1 and 2).

https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_FILES = (
    ("memory.events", "memory.max", "memory.current"),
    ("memory.oom_control", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of cgroups 2 and 1: what counts OOM kills, the limit, the usage."""


class MemoryCgroup:
    """The memory of this container, or of the group within it that this process is in, as on Slurm and under systemd.

    Args:
        cgroups: Where the kernel shows control groups.
        meminfo: Where it shows the memory of the machine.
        membership: Where it shows the groups of this process.
    """

    def __init__(self, cgroups: Path = _CGROUPS, meminfo: Path = _MEMINFO, membership: Path = _MEMBERSHIP) -> None:
        self._meminfo = meminfo
        self._groups = [
            (folder, files)
            for files, root, pattern in zip(
                _FILES,
                (cgroups, cgroups / "memory"),
                (r"0::(/.*)", r"\d+:(?:[^:]*,)?memory(?:,[^:]*)?:(/.*)"),
                strict=True,
            )
            for folder in _own_and_parents(root, re.search(f"^{pattern}$", _read(membership), re.MULTILINE))
        ]
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
        return min((limit for limit, _ in self._limits()), default=None)

    def free(self) -> int | None:
        """Return the bytes that are still free here: of the limits or of the machine, whichever is less."""
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", _read(self._meminfo), re.MULTILINE)
        free = [int(found[1]) << 10] if found else []
        free += [max(0, limit - used) for limit, used in self._limits() if used is not None]
        return min(free, default=None)

    def _limits(self) -> Iterator[tuple[int, int | None]]:
        """Yield limit and usage of each group that has a limit."""
        for folder, (_, limit, usage) in self._groups:
            value = _number(folder / limit)
            # Without a limit version 2 reads max, and version 1 a number near 2**63.
            if value is not None and value < 1 << 60:
                yield value, _number(folder / usage)

    def _kills(self) -> int:
        """Return the kills within the innermost group that counts them: a group outside counts those of others, too."""
        for folder, (events, _, _) in self._groups:
            if found := re.search(r"^oom_kill (\d+)$", _read(folder / events), re.MULTILINE):
                return int(found[1])
        return 0


def _own_and_parents(root: Path, own: re.Match[str] | None) -> list[Path]:
    """Return the folders of a group and of those around it, as far as they are shown here, the innermost first.

    A container may be shown its own group as the root, while the name of that is the host's.
    """
    path = PurePosixPath(own[1]).relative_to("/") if own else PurePosixPath()
    return [folder for part in (path, *path.parents) if (folder := root / part).is_dir()]


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdecimal() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
