"""A terminal as its user sees it: a pseudo-terminal whose output a terminal emulator draws on a screen."""

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyte

from tests.support.commands import ROOT, heeding_ctrl_c


class Terminal:
    """A terminal of some size.

    Attributes:
        fd: What programs write to.
        raw: All that was written.
        screen: What is seen of it.
        scrolled: The lines that have left the screen at its top.
    """

    def __init__(self, rows: int = 24, columns: int = 100) -> None:
        self._leader, self.fd = pty.openpty()
        termios.tcsetwinsize(self.fd, (rows, columns))
        self.screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        self.read()
        termios.tcsetwinsize(self.fd, (rows, columns))
        self.screen.resize(rows, columns)

    def read(self, seconds: float = 0.0) -> bool:
        """Take what was written; whether the other side is still open."""
        while select.select([self._leader], [], [], seconds)[0]:
            try:
                part = os.read(self._leader, 1 << 16)
            except OSError:
                return False
            if not part:
                return False
            self.raw += part
            self._stream.feed(part)
        return True

    @property
    def rows(self) -> list[str]:
        """The lines of the screen."""
        self.read()
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """All lines: those that have scrolled away, and those of the screen."""
        rows = self.rows
        gone = ["".join(line[at].data for at in sorted(line)).rstrip() for line in self.screen.history.top]
        return "\n".join([*gone, *rows])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in (self.fd, self._leader):
            with suppress(OSError):
                os.close(fd)


class Watched(Terminal):
    """A terminal on which a program runs."""

    def __init__(
        self, arguments: Sequence[object], rows: int = 24, columns: int = 100, cwd: Path = ROOT, **environment: str
    ) -> None:
        super().__init__(rows, columns)
        known = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1", **environment}
        for name in ("NO_COLOR", "JPY_PARENT_PID", "COLUMNS", "LINES"):
            if name not in environment:
                known.pop(name, None)
        with heeding_ctrl_c():
            self.process = subprocess.Popen(
                [*map(str, arguments)], cwd=cwd, env=known, stdin=self.fd, stdout=self.fd, stderr=self.fd
            )

    def until(self, is_true: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait for something to be true of what is shown."""
        deadline = time.monotonic() + seconds
        while not (found := is_true()):
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None, self.text
            self.read(0.05)
        return found

    def status(self, seconds: float = 60) -> int:
        """Its exit status, once it has ended."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text
            self.read(0.05)
        self.read(0.05)
        return int(self.process.returncode)

    def __exit__(self, *error: Any) -> None:
        self.process.kill()
        self.process.wait()
        super().__exit__(*error)
