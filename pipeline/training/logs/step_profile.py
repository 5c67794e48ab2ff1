"""`--profile`: what a few steps of each rank spend their time on, by torch's profiler.

It starts and stops between two batches and changes nothing that is computed. Of each rank it leaves, in
`<run_dir>/logs/profile/attempt-<nnnn>/`, a trace (`rank-0.trace.json.gz`, for chrome://tracing or ui.perfetto.dev), the
ten most expensive operators (`rank-0.txt`, `rank-0.json`), and of a CUDA device the history of its memory
(`rank-0.memory.pickle`, for pytorch.org/memory_viz).
"""

import logging
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.run.run_dir import LOGS, RunDir
from pipeline.run.storage_errors import storage_error
from pipeline.training.compat import Member, check

log = logging.getLogger(__name__)

MEMBERS = (
    Member(torch.cuda.memory, "_record_memory_history", None, "records what takes the memory of a device"),
    Member(torch.cuda.memory, "_dump_snapshot", None, "writes what was recorded"),
)

_WINDOW = re.compile(r"(\d{1,9}):(\d{1,9})")
_DEFAULT = "10:15"
_OPERATORS = 10
_EVENTS = 100_000
"""Allocations that the history of a device's memory holds."""
_LIMIT = 30.0
"""Seconds that the end of training waits for what a storage has not taken yet."""


class Window(NamedTuple):
    """The steps to profile, counted from the first one of an attempt, which is 0.

    Attributes:
        start: The first one.
        stop: The first one that is not profiled any more.
    """

    start: int
    stop: int


def window_problem(text: str | None) -> str | None:
    """Return what is wrong with a value of `--profile`; None for nothing."""
    if text is None or text in ("true", "false"):
        return None
    match = _WINDOW.fullmatch(text)
    if match is not None and int(match[1]) < int(match[2]):
        return None
    return (
        f"profile={text!r} must be true, which stands for {_DEFAULT}, or <start>:<stop> with start < stop: steps, "
        "counted from the first one of this attempt"
    )


def window(text: str | None) -> Window | None:
    """Return the window of a value of `--profile` without problems; None where nothing is profiled."""
    match = _WINDOW.fullmatch(_DEFAULT if text == "true" else text or "")
    return None if match is None else Window(int(match[1]), int(match[2]))


def folder_of(attempt: int) -> str:
    """Return the name, within a run directory, of the folder with the profiles of an attempt."""
    return f"{LOGS}/profile/attempt-{attempt:04d}"


class StepProfile(pl.Callback):
    """Profiles a window of steps, on every rank.

    Args:
        run: The run directory.
        attempt: The number of this attempt.
        steps: Which steps.
    """

    def __init__(self, run: RunDir, attempt: int, steps: Window) -> None:
        self._run, self._folder, self._steps = run, folder_of(attempt), steps
        self._attempt = attempt
        self._first: int | None = None
        self._at = -1
        self._profile: profile | None = None
        self._ended = False
        self._threads: list[threading.Thread] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start before the window's first step, one step early where there is one; stop after its last."""
        if self._ended:
            return
        self._first = trainer.global_step if self._first is None else self._first
        step = trainer.global_step - self._first
        if step == self._at:
            return  # batches are accumulated for it
        self._at = step
        if self._profile is not None:
            if step >= self._steps.stop:
                self._end(trainer)
            else:
                self._profile.step()
        elif step >= self._steps.start - 1:
            self._begin(trainer, warm_up=int(step < self._steps.start))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what there is, and wait until it is written."""
        if self._profile is not None:
            self._end(trainer)
        elif not self._ended and trainer.is_global_zero:
            log.warning(
                "nothing was profiled: --profile=%d:%d, and this attempt made %d steps",
                *(*self._steps, trainer.global_step - (self._first or 0)),
            )
        deadline = time.monotonic() + _LIMIT
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("the profile was not written to %s: the storage did not take it", self._url)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop: a process that continues after an error must not be slowed down."""
        if self._profile is not None:
            try:
                self._end(trainer)
            except RuntimeError as error:  # of a device that has failed
                log.warning("the profile could not be written: %s", error)

    @property
    def _url(self) -> str:
        return self._run.url_of(self._folder)

    def _begin(self, trainer: pl.Trainer, warm_up: int) -> None:
        device = trainer.strategy.root_device
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        active = self._steps.stop - max(self._at + warm_up, self._steps.start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a window from the first step on has no step before it to warm up
            # One step more than there are: what is under way is written by `_end` alone.
            plan = schedule(wait=0, warmup=warm_up, active=active + 1, repeat=1)
        self._profile = profile(activities=activities, schedule=plan)
        if device.type == "cuda":
            check(MEMBERS)
            torch.cuda.memory._record_memory_history(max_entries=_EVENTS)
        self._profile.start()

    def _end(self, trainer: pl.Trainer) -> None:
        assert self._profile is not None
        assert self._first is not None
        ended, self._profile, self._ended = self._profile, None, True
        device, first = trainer.strategy.root_device, self._first
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ended.stop()
        steps = range(first + self._steps.start, min(trainer.global_step, first + self._steps.stop))
        local = tempfile.TemporaryDirectory(prefix="pipeline-profile-")
        stem = f"rank-{trainer.global_rank}"
        folder = Path(local.name)
        if device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(folder / f"{stem}.memory.pickle"))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
        if not steps:
            local.cleanup()
            log.warning("nothing was profiled: training ended before the first step of --profile was over")
            return
        averages = ended.key_averages()
        table = {
            "attempt": self._attempt,
            "rank": trainer.global_rank,
            "device": device.type,
            "first_step": steps[0],
            "steps": len(steps),
            "operators": list(_most_expensive(averages, device.type)),
        }
        if trainer.is_global_zero:
            log.info("profiled steps %d to %d: %s", steps[0], steps[-1], self._url)

        def write() -> None:
            with local:
                try:
                    ended.export_chrome_trace(str(folder / f"{stem}.trace.json.gz"))
                    key = f"self_{device.type}_time_total"
                    (folder / f"{stem}.txt").write_text(averages.table(sort_by=key, row_limit=_OPERATORS))
                    for path in folder.iterdir():
                        self._run.write(f"{self._folder}/{path.name}", path.read_bytes())
                    self._run.write_json(f"{self._folder}/{stem}.json", table)
                except Exception as error:  # noqa: BLE001 - every storage has errors of its own
                    log.warning("the profile was not written to %s: %s", self._url, storage_error(error))

        thread = threading.Thread(target=write, name="profile", daemon=True)
        thread.start()
        self._threads.append(thread)


def keep_summary(trainer: pl.Trainer, run: RunDir, attempt: int) -> None:
    """Have what a profiler of Lightning's prints at the end of a fit written to the run too, unless it has a file.

    Args:
        trainer: Not running yet.
        run: The run directory.
        attempt: The number of this attempt.
    """
    profiler: Any = getattr(trainer, "profiler", None)
    if not (trainer.is_global_zero and isinstance(profiler, (SimpleProfiler, AdvancedProfiler))) or profiler.filename:
        return
    name, stock = f"{folder_of(attempt)}/{type(profiler).__name__}.txt", profiler.describe

    def describe() -> None:
        try:
            run.write(name, profiler.summary().encode())
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            log.warning("the profile was not written to %s: %s", run.url_of(name), storage_error(error))
        stock()  # which forgets what it has printed

    profiler.describe = describe  # type: ignore[method-assign]


def _most_expensive(averages: Any, device: str) -> Iterator[dict[str, Any]]:
    """Yield the operators that took the most time of their own, in microseconds over all profiled steps."""

    def own(each: Any) -> float:
        return float(each.self_device_time_total if device == "cuda" else each.self_cpu_time_total)

    operators = [each for each in averages if not each.key.startswith("ProfilerStep")]
    whole = sum(map(own, operators)) or 1.0
    for each in sorted(operators, key=own, reverse=True)[:_OPERATORS]:
        yield {
            "name": each.key,
            "calls": int(each.count),
            "share": round(own(each) / whole, 4),
            "self_cpu_microseconds": float(each.self_cpu_time_total),
            "cpu_microseconds": float(each.cpu_time_total),
            "self_device_microseconds": float(each.self_device_time_total),
            "device_microseconds": float(each.device_time_total),
        }
