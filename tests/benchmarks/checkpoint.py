"""Saving and loading a state of 400 MB, ours beside Lightning's defaults on the same storage.

python -m tests.benchmarks.checkpoint s3://bucket/prefix [MB]
"""

import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from pipeline.checkpoint.io import RunIO
from pipeline.checkpoint.record import CommitRecord
from pipeline.checkpoint.saver import Saver
from pipeline.run_dir import RunDir, now
from tests.benchmarks.sampler import spread

ROUNDS = 3
SECONDS = 35.0


def state(megabytes: int) -> dict[str, Any]:
    """Twenty tensors."""
    each = megabytes * 1_000_000 // 80
    return {"state_dict": {f"layer{number}": torch.rand(each) for number in range(20)}}


def record(step: int) -> CommitRecord:
    return CommitRecord(step, 0, 0, 0, "", None, 1, now(), ["steps"])


def timed(do: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def saving(run: RunDir, megabytes: int) -> None:
    """How long training stops, and how fast the bytes go up."""
    held = state(megabytes)
    saver, lightning = Saver(run, 60), TorchCheckpointIO()
    buffers = [torch.empty_like(tensor) for tensor in held["state_dict"].values()]
    found: dict[str, list[float]] = {name: [] for name in ("copy", "stopped", "behind", "lightning")}
    for number in range(ROUNDS + 1):  # the first one makes buffers and connections
        tensors = list(held["state_dict"].values())
        copy = timed(lambda: [buffer.copy_(tensor) for buffer, tensor in zip(buffers, tensors, strict=True)])  # noqa: B023
        began = time.perf_counter()
        stopped = timed(lambda: saver.save(held, record(number)))  # noqa: B023
        saver.finish()
        behind = time.perf_counter() - began
        whole = timed(lambda: lightning.save_checkpoint(held, run.url_of("lightning.ckpt")))
        if number:
            for name, value in zip(found, (copy, stopped, behind, whole), strict=True):
                found[name].append(value)
    print(f"a state of {megabytes} MB, seconds: median [quartiles]")
    print(f"  a plain copy of it                {spread(found['copy'])}")
    print(f"  training stopped, ours            {spread(found['stopped'])}")
    print(f"  training stopped, Lightning's     {spread(found['lightning'])}")
    print(f"  until it is committed, ours       {spread(found['behind'])}")
    ours, theirs, copied = (float(np.median(found[name])) for name in ("stopped", "lightning", "copy"))
    print(f"  stopped: 1/{theirs / ours:.0f} of Lightning's (bar: 1/20), {ours / copied:.2f} x a plain copy")
    ratio = np.array(found["lightning"]) / np.array(found["behind"])
    print(f"  upload: {np.median(ratio):.2f} x Lightning's ({ratio.min():.2f} .. {ratio.max():.2f}; bar: 1.5)")


def loading(run: RunDir, megabytes: int) -> None:
    """How fast a state comes back, from a storage that this node has not read from yet."""
    found: dict[str, list[float]] = {"ours": [], "lightning": []}
    saver = Saver(run, 60)
    for number in range(ROUNDS):
        saver.save(state(megabytes), record(100 + number))  # a new one each time, which no cache knows
        saver.finish()
        url = run.url_of(RunDir.checkpoint(100 + number))
        found["ours"].append(timed(lambda: touch(RunIO(run).load_checkpoint(url))))  # noqa: B023
        found["lightning"].append(timed(lambda: touch(TorchCheckpointIO().load_checkpoint(url))))  # noqa: B023
    print("to a loaded state, seconds: median [quartiles]")
    for name, values in found.items():
        print(f"  {name:34}{spread(values)}  {megabytes / float(np.median(values)):.0f} MB/s")
    ratio = np.array(found["lightning"]) / np.array(found["ours"])
    print(f"  {np.median(ratio):.2f} x Lightning's ({ratio.min():.2f} .. {ratio.max():.2f}; bar: 3)")


def touch(loaded: dict[str, Any]) -> None:
    """Read every number: a mapped file has not been read before."""
    for tensor in loaded["state_dict"].values():
        tensor.sum()


def memory(run: RunDir, megabytes: int) -> None:
    """How much a process grows while it saves, in a process of its own for each way."""
    for way in ("ours", "lightning"):
        program = [sys.executable, "-m", "tests.benchmarks.checkpoint", run.url, str(megabytes), way]
        grown = float(subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()[-1])
        print(f"  peak memory above the state, {way:10}{grown / megabytes:6.2f} x the state")


def grow(run: RunDir, megabytes: int, way: str) -> None:
    """Print by how many MB one save lets this process grow."""
    held = state(megabytes)
    if way == "ours":
        Saver(run, 60).save(state(1), record(1))  # what any save needs: clients, modules
    else:
        TorchCheckpointIO().save_checkpoint(state(1), run.url_of("lightning.ckpt"))
    before = peak(reset=True)
    if way == "ours":
        saver = Saver(run, 60)
        for step in (2, 3):
            saver.save(held, record(step))
        saver.finish()
    else:
        TorchCheckpointIO().save_checkpoint(held, run.url_of("lightning.ckpt"))
    print((peak() - before) / 1_000_000)


def peak(reset: bool = False) -> int:
    """The most bytes that this process has held in memory, since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def training(run: RunDir, megabytes: int) -> None:
    """Steps a second of a loop with one thread, with and without a save every 30 s."""
    torch.set_num_threads(1)
    held, saver = state(megabytes), Saver(run, 60)
    x, weight = torch.rand(256, 1024), torch.rand(1024, 1024)
    rates: dict[str, list[float]] = {"never": [], "every 30 s": []}
    for number in range(2):
        for way in ("never", "every 30 s"):
            began, steps, saved = time.perf_counter(), 0, -20.0
            while (passed := time.perf_counter() - began) < SECONDS:
                if way != "never" and passed - saved > 30:
                    saved = passed
                    saver.save(held, record(1000 + 10 * number + int(passed)))
                for _ in range(20):
                    torch.mm(x, weight)
                steps += 20
            rates[way].append(steps / (time.perf_counter() - began))
            saver.finish()
    ratio = np.array(rates["every 30 s"]) / np.array(rates["never"])
    print(f"steps/s with a save every 30 s: {np.median(ratio):.3f} x without ({ratio.min():.3f} .. {ratio.max():.3f})")


def main() -> None:
    """Measure and print."""
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    url, megabytes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 400
    if len(sys.argv) > 3:
        grow(RunDir(url), megabytes, sys.argv[3])
        return
    run = RunDir(f"{url.rstrip('/')}/bench-{uuid.uuid4().hex[:8]}")
    try:
        saving(run, megabytes)
        memory(run, megabytes)
        loading(run, megabytes)
        training(run, megabytes)
    finally:
        fs, path = fsspec.core.url_to_fs(run.url)
        if fs.exists(path) and Path(path).name.startswith("bench-"):
            fs.rm(path, recursive=True)


if __name__ == "__main__":
    main()
