"""The last rows of a terminal, kept for one process, while everything that is printed scrolls above them.

The terminal itself keeps them apart: its scrolling region ends above them. So no line is torn, whoever prints it: this
process, C code in it, another process of the node, a debugger that waits for input. Nothing is replaced in Python, the
cursor stays where the printed text ends, and each frame is one write, which a terminal does not mix with others.
"""

import os
from collections.abc import Sequence
from contextlib import suppress

_SAVE, _RESTORE = "\x1b7", "\x1b8"
_WHOLE = "\x1b[r"
"""Scroll all rows; moves the cursor."""
_CLEAR_BELOW = "\x1b[J"
_DOWN = "\x1bD"
"""Move one row down in the same column, and scroll at the end."""
_FEWEST, _NARROWEST = 4, 20
"""Rows that are left for what is printed, and columns, below which a terminal is too small for a frame."""
_SIMPLE = ("", "dumb", "unknown")
"""Values of TERM."""

RELEASE = f"{_SAVE}{_WHOLE}{_RESTORE}{_CLEAR_BELOW}"
"""Give the rows back. It changes nothing where nobody has taken any and nothing is below the cursor."""


class BottomRows:
    """Keeps the last rows of a terminal from the first frame until `close`.

    Args:
        fd: Of the terminal.
        count: How many rows.
    """

    def __init__(self, fd: int, count: int) -> None:
        self._fd, self._count = fd, count
        self._size: os.terminal_size | None = None
        """That of the terminal when the rows were taken; None while they are not."""
        self._shown: tuple[str, ...] = ()

    @property
    def columns(self) -> int:
        """How many fit in a row now; 0 where the terminal is too small, or gone."""
        size = self._ask_size()
        return 0 if size is None else size.columns

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, at once and whole.

        Args:
            lines: As many as there are rows, with escape sequences for colours only, and no wider than `columns`.

        Raises:
            OSError: The terminal is gone.
        """
        size = self._ask_size()
        if size is None:
            self.close()
        elif size != self._size or tuple(lines) != self._shown:
            begin = "" if size == self._size else self._take(size)
            first = size.lines - self._count + 1
            rows = "".join(f"\x1b[{first + row};1H\x1b[2K{line}" for row, line in enumerate(lines))
            self._size, self._shown = size, tuple(lines)
            self._write(f"{begin}{_SAVE}{rows}{_RESTORE}")

    def close(self) -> None:
        """Give the rows back, empty.

        Raises:
            OSError: The terminal is gone.
        """
        if self._size is not None:
            self._size = None
            self._write(RELEASE)

    def _ask_size(self) -> os.terminal_size | None:
        with suppress(OSError):
            size = os.get_terminal_size(self._fd)
            if size.lines >= self._count + _FEWEST and size.columns >= _NARROWEST:
                return size
        return None

    def _take(self, size: os.terminal_size) -> str:
        """Return what takes the rows, also again after the terminal has changed its size.

        What is below the cursor is an earlier frame, wherever the change has moved it.
        """
        make_room = f"{_DOWN * self._count}\x1b[{self._count}A"
        return f"{RELEASE}{make_room}{_SAVE}\x1b[1;{size.lines - self._count}r{_RESTORE}"

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._fd, data) :]


def suit(fd: int) -> bool:
    """Return whether a terminal can keep rows apart: no notebook's, nor one that knows no escape sequences."""
    with suppress(OSError):
        watched = os.isatty(fd) and os.get_terminal_size(fd).columns > 0
        return watched and "JPY_PARENT_PID" not in os.environ and os.environ.get("TERM", "") not in _SIMPLE
    return False


def release(fd: int) -> None:
    """Give rows back that a process has taken which was killed; does nothing where there can be none."""
    if suit(fd):
        with suppress(OSError):
            os.write(fd, RELEASE.encode())
