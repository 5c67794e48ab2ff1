"""Commands and ranks as real processes of this machine, each to its end and within a limit."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIGITS = "pipeline/configs/digits.yaml"
QUICK = ("--trainer.max_epochs=2", "--checkpoints.every_n_epochs=1", "--trainer.enable_model_summary=false")


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def assert_one_message(ended: Ended, words: str) -> None:
    """It ended with status 2, and with one line for each problem."""
    assert ended.status == 2, ended.text
    assert words in ended.err
    assert "Traceback" not in ended.text
    assert len(ended.err.strip().splitlines()) <= 2, "one line for each problem"


@contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """Start processes that heed SIGINT, which a shell's background jobs, and all that they start, ignore."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def command(*arguments: object, env: dict[str, str] | None = None, timeout: float = 90, cwd: Path = ROOT) -> Ended:
    """Any command, to its end, within a limit; its process group dies with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of the `make test` that runs this
        environment.pop(name, None)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    process = subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"not ended after {timeout} s:\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def torchrun(
    ranks: int, *arguments: object, env: dict[str, str] | None = None, timeout: float = 90, cwd: Path = ROOT
) -> Ended:
    """A program on `ranks` gloo processes of this machine."""
    return command(
        *(sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
        f"--nproc-per-node={ranks}",
        *arguments,
        env=env,
        timeout=timeout,
        cwd=cwd,
    )


BLOCK = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names}:
            raise ImportError(f'{{name}} is not installed here')
sys.meta_path.insert(0, Block())
"""


def without(names: tuple[str, ...], program: str) -> None:
    ended = command(sys.executable, "-c", BLOCK.format(names=names) + program)
    assert ended.status == 0, ended.text
