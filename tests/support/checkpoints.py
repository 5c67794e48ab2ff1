"""Checkpoints without a training: tensors to save, and committed steps to look at."""

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from pipeline.checkpoint.commit import CommitRecord, Monitor, committed, write_record
from pipeline.run.run_dir import RunDir


def a_record(step: int, value: float | None = None, mode: str = "min", name: str = "val_loss") -> CommitRecord:
    monitor = None if value is None else Monitor(name, value, mode)
    return CommitRecord(step, 1, 0, step, "sha256:00", monitor, 2, "2026-11-24T12:00:00.000Z", ["epoch"])


def tensors(fill: float = 1.0) -> dict[str, Any]:
    weights = torch.full((1000,), fill)
    return {
        "weights": weights,
        "tied": weights,
        "slice": weights[10:20],
        "list": [torch.arange(5), (torch.ones(2, 3).t(), 7)],
        "empty": torch.zeros(0),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "number": 3,
    }


def commit(run: RunDir, step: int, value: float | None = None) -> CommitRecord:
    data = b"x" * step
    run.write(RunDir.checkpoint(step), data)
    record = replace(a_record(step, value), sha256=f"sha256:{hashlib.sha256(data).hexdigest()}")
    write_record(run, record)
    return record


def steps(run: RunDir) -> list[int]:
    return sorted(record.step for record in committed(run))


class StripSampleIds:
    """A filesystem that counts its calls, however a file is opened as `open`, and fails from the n-th change on."""

    def __init__(self, fs: Any, changes: int | None = None) -> None:
        self._fs, self.changes, self.calls = fs, changes, Counter[str]()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._fs, name)
        if name not in ("ls", "open", "info", "rm_file", "cat_file", "cat_ranges"):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            for path in args[0] if name == "cat_ranges" else args[:1]:
                self.calls["open" if name in ("cat_file", "cat_ranges") else name] += 1
                self.calls[str(path).rsplit(".", 1)[-1]] += 1
            if name == "rm_file" and self.changes is not None:
                if not self.changes:
                    raise OSError("the storage is away")
                self.changes -= 1
            return value(*args, **kwargs)

        return call


def watched(run: RunDir, changes: int | None = None) -> StripSampleIds:
    run.fs = StripSampleIds(run.fs, changes)
    return run.fs
