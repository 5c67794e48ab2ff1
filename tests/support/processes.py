"""A fit in a process of its own, to be signalled while it runs."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.commands import ROOT, heeding_ctrl_c
from tests.support.runs import FIT


class FitProcess:
    """A fit in a process of its own, and what it has said so far."""

    def __init__(self, folder: Path, *arguments: object, run: str | None = None) -> None:
        self.run = folder / "run"
        self._said = folder / "said.txt"
        with self._said.open("w") as file:
            line = [sys.executable, "-m", "pipeline", *FIT, *arguments, "--run_dir", run or self.run]
            with heeding_ctrl_c():
                self.process = subprocess.Popen(
                    [str(each) for each in line], cwd=ROOT, stdout=file, stderr=file, text=True, start_new_session=True
                )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def until(self, words: str) -> None:
        began = time.monotonic()
        while words not in self.said:
            assert time.monotonic() - began < 60, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.02)

    def until_committed(self, step: int) -> None:
        """Wait for a commit, which the log may tell only together with later ones."""
        began = time.monotonic()
        while not (self.run / f"checkpoints/step-{step:08}.json").exists():
            assert time.monotonic() - began < 60, self.said
            assert self.process.poll() is None, self.said
            time.sleep(0.02)

    def signalled(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)


@contextmanager
def fit_process(folder: Path, *arguments: object, run: str | None = None) -> Iterator[FitProcess]:
    """Start a fit into a folder, or into another run directory."""
    started = FitProcess(folder, *arguments, run=run)
    try:
        yield started
    finally:
        started.process.kill()


def blocks_or_catches(pid: int, number: int) -> bool:
    """Whether a process lets the kernel keep a signal, or has a handler for it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return any(line.startswith(("SigBlk", "SigCgt")) and int(line.split()[1], 16) >> number - 1 & 1 for line in lines)
