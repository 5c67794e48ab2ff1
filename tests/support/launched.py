"""A run of the driver, `python -m components.launch`, on whatever launcher."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.support.commands import ROOT


class Launched:
    """A driver that runs, with its output in a file."""

    def __init__(self, log: Path, *arguments: object, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen([*map(str, arguments)], cwd=ROOT, env=env, stdout=out, stderr=out)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until(self, is_true: Callable[[], Any], seconds: float = 120) -> Any:
        """Wait for something to be true."""
        deadline = time.monotonic() + seconds
        while not (found := is_true()):
            assert time.monotonic() < deadline, self.output
            assert self.process.poll() is None, self.output
            time.sleep(0.1)
        return found

    def status(self, seconds: float = 350) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(seconds)


Kind = TypeVar("Kind", bound=Launched)


@contextmanager
def killed_in_the_end(launched: Kind) -> Iterator[Kind]:
    """No driver outlives its test."""
    try:
        yield launched
    finally:
        launched.process.kill()
        launched.process.wait()
