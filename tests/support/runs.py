"""Command lines of short runs, and what they have left in their run directory."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint import saver
from pipeline.run import storage
from pipeline.run.run_dir import LEASE, RunDir
from tests.support.commands import Ended

App = Callable[..., Ended]
FIT = (
    *("fit", "--model=tests.support.models.Regression", "--data=pipeline.data.DataModule"),
    *("--data.train=tests.support.models.Rows", "--data.batch_size=16"),
    *("--trainer.enable_model_summary=false", "--trainer.max_epochs=2"),
)
ROWS = (
    *("--model", "tests.support.models.Regression", "--data", "pipeline.data.DataModule"),
    *("--data.train", "tests.support.models.Rows", "--data.val", "tests.support.models.Rows"),
    *("--data.batch_size=16", "--trainer.enable_model_summary=false"),
)
TAMPERING = (
    *("fit", "--model=tests.support.models.Regression", "--data=tests.support.models.Tampering"),
    *("--data.train=tests.support.models.Rows", "--data.batch_size=16"),
    *("--trainer.enable_model_summary=false", "--trainer.max_epochs=3"),
)
"""Three epochs over 101 rows, whose loader may drop, double or swap a batch: `--data.kind`."""


def fit(app: App, run: str, epochs: int, *more: str) -> Ended:
    """Train on rows for so many epochs."""
    return app("fit", *ROWS, "--run_dir", run, f"--trainer.max_epochs={epochs}", *more)


def listing(run: str) -> dict[str, Any]:
    """Every file of a run, but for one more attempt, with what changes when it is written again."""
    where = RunDir(run)
    found = where.fs.find(where.path, detail=True)
    keys = ("size", "mtime", "created", "LastModified", "ETag")
    return {name: [str(info.get(key)) for key in keys] for name, info in found.items() if not of_attempts(name)}


def of_attempts(name: str) -> bool:
    """Whether each start writes a file of this name."""
    return "/attempts/" in name or name.endswith("/run.json")


def logged(run: str, name: str) -> dict[int, float]:
    """Return what a run has logged under a name, by step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    values = {}
    for path in sorted(Path(run, "logs").glob("events.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tag == name:
                    values[event.step] = value.tensor.float_val[0]
    return {step: values[step] for step in sorted(values)}


def verified(ended: Ended) -> list[list[str]]:
    """The rows of verify's table, without the titles."""
    lines = [line.split() for line in ended.out.splitlines()]
    return [line for line in lines if line and line[0].isdecimal()]


def attempt(url: str, number: int) -> dict[str, Any]:
    """Return the record of one start of a run."""
    value = RunDir(url).read_json(RunDir.attempt(number))
    assert value is not None
    return value


def leave(url: str, **more: Any) -> None:
    """Leave a lease that is not renewed."""
    gone = {"attempt": 6, "launch": "gone", "host": "elsewhere", "pid": 1, "process": None, "token": "x", "seconds": 60}
    RunDir(url).write_json(LEASE, {**gone, **more})


def slow_saves(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have each save take its time behind training."""
    real = saver.open_writer

    def open_writer(*arguments: Any) -> Any:
        time.sleep(seconds)
        return real(*arguments)

    monkeypatch.setattr(saver, "open_writer", open_writer)


def written_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each small file that is written from here on, in a list that grows."""
    sizes: list[int] = []
    real = storage.write

    def write(fs: Any, path: str, data: bytes) -> None:
        sizes.append(len(data))
        real(fs, path, data)

    monkeypatch.setattr(storage, "write", write)
    return sizes
