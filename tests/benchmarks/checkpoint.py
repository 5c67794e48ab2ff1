"""Saving and loading a state of 400 MB, ours beside Lightning's defaults on the same storage.

python -m tests.benchmarks.checkpoint s3://bucket/prefix [MB [saving] [memory] [loading] [training]]
"""

import logging
import multiprocessing
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
import torch.distributed
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from pipeline.checkpoint.commit import CommitRecord
from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.transfer import PART, open_ranges, open_writer
from pipeline.run.run_dir import RunDir, now
from pipeline.training.checkpoint_io import RunIO
from tests.benchmarks.sampler import spread
from tests.support.agent_harness import free_port

ROUNDS = 3
SECONDS = 30.0
LATER = 5.0


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
    for number in range(1, ROUNDS + 2):  # the first one makes buffers and connections
        tensors = list(held["state_dict"].values())
        copy = timed(lambda: [buffer.copy_(tensor) for buffer, tensor in zip(buffers, tensors, strict=True)])  # noqa: B023
        began = time.perf_counter()
        stopped = timed(lambda: saver.save(held, record(number)))  # noqa: B023
        saver.finish()
        behind = time.perf_counter() - began
        whole = timed(lambda: lightning.save_checkpoint(held, run.url_of("lightning.ckpt")))
        if number > 1:
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
    found: dict[str, list[float]] = {"ours": [], "lightning": [], "bytes alone": []}
    saver = Saver(run, 60)
    for number in range(ROUNDS):
        saver.save(state(megabytes), record(100 + number))  # a new one each time, which no cache knows
        saver.finish()
        url = run.url_of(RunDir.checkpoint(100 + number))
        found["ours"].append(timed(lambda: touch(RunIO(run).load_checkpoint(url))))  # noqa: B023
        found["lightning"].append(timed(lambda: touch(TorchCheckpointIO().load_checkpoint(url))))  # noqa: B023
        found["bytes alone"].append(timed(lambda: fetch(run, RunDir.checkpoint(100 + number))))  # noqa: B023
    print("to a loaded state, seconds: median [quartiles]")
    for name, values in found.items():
        print(f"  {name:34}{spread(values)}  {megabytes / float(np.median(values)):.0f} MB/s")
    for name, bar in (("ours", "bar: 3"), ("bytes alone", "neither hashed, kept nor loaded: what is possible")):
        ratio = np.array(found["lightning"]) / np.array(found[name])
        print(f"  {name}: {np.median(ratio):.2f} x Lightning's ({ratio.min():.2f} .. {ratio.max():.2f}; {bar})")


def fetch(run: RunDir, name: str) -> None:
    """Read a file in parallel parts, and forget them."""
    read, size = open_ranges(run, name), run.size(name) or 0
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda start: read(start, min(start + PART, size)), range(0, size, PART)):
            pass


def touch(loaded: dict[str, Any]) -> None:
    """Read every number: a mapped file has not been read before."""
    for tensor in loaded["state_dict"].values():
        tensor.sum()


def memory(run: RunDir, megabytes: int) -> None:
    """How much a process grows while it saves, in a process of its own for each way."""
    for way in ("ours", "lightning"):
        program = [sys.executable, "-m", "tests.benchmarks.checkpoint", run.url, str(megabytes), "grow", way]
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


def steps(ranks: int, url: str, megabytes: int, way: str) -> float:
    """Steps a second of each of some ranks with one thread, for half a minute in which one save falls.

    Args:
        ranks: Processes, which meet after every few steps.
        url: Of a run directory.
        megabytes: Size of the state.
        way: `never`, `ours`, or `foreign`: another process uploads as many bytes meanwhile.
    """
    context = multiprocessing.get_context("spawn")
    rates, port = context.Queue(), free_port()
    processes = [
        context.Process(target=_train, args=(rank, ranks, port, url, megabytes, way, rates)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = [rates.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    return float(np.mean(found))


def _train(rank: int, ranks: int, port: str, url: str, megabytes: int, way: str, rates: Any) -> None:
    torch.set_num_threads(1)
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    run = RunDir(url)
    held, saver = state(megabytes), Saver(run, 60)
    uploading: Any = None
    if rank == 0 and way == "ours":
        saver.save(held, record(1))  # what any save needs: buffers, clients
        saver.finish()
    if rank == 0 and way == "foreign":
        uploading = multiprocessing.get_context("spawn").Process(target=_upload, args=(url, megabytes))
        uploading.start()
    x, weight, mean = torch.rand(256, 1024), torch.rand(1024, 1024), torch.zeros(1000)
    torch.distributed.barrier()
    began, count, saved = time.perf_counter(), 0, False
    while (passed := time.perf_counter() - began) < SECONDS or ranks > 1:
        if rank == 0 and way == "ours" and not saved and passed > LATER:
            saver.save(held, record(2))
            saved = True
        for _ in range(10):
            torch.mm(x, weight)
        count += 10
        mean[0] = float(passed > SECONDS)
        torch.distributed.all_reduce(mean)
        if mean[0] > 0:
            break
    rates.put(count / (time.perf_counter() - began))
    saver.finish()
    if uploading is not None:
        uploading.join()


def _upload(url: str, megabytes: int) -> None:
    """Upload random bytes as a save of ours does, but from a process of its own, and only that."""
    data = np.random.default_rng(0).bytes(megabytes * 1_000_000)
    time.sleep(LATER)
    file = open_writer(RunDir(url), "foreign")
    for start in range(0, len(data), 1 << 20):
        file.write(data[start : start + (1 << 20)])
    file.close()


def training(run: RunDir, megabytes: int) -> None:
    """Steps a second with a save every 30 s."""
    for ranks, other, bar in ((1, "never", 0.965), (2, "foreign", 0.98)):
        ratios = []
        for _ in range(ROUNDS):
            ours, theirs = steps(ranks, run.url, megabytes, "ours"), steps(ranks, run.url, megabytes, other)
            ratios.append(ours / theirs)
        words = "without a save" if other == "never" else "beside a foreign process that uploads as much"
        print(
            f"steps/s of {ranks} process(es) with a save every {SECONDS:.0f} s: {np.median(ratios):.3f} x {words} "
            f"({min(ratios):.3f} .. {max(ratios):.3f}; bar: {bar})"
        )


def main() -> None:
    """Measure and print."""
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    url, megabytes = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 400
    parts = {each.__name__: each for each in (saving, memory, loading, training)}
    asked = sys.argv[3:] or list(parts)
    if asked[0] == "grow":
        grow(RunDir(url), megabytes, asked[1])
        return
    run = RunDir(f"{url.rstrip('/')}/bench-{uuid.uuid4().hex[:8]}")
    try:
        for name in asked:
            parts[name](run, megabytes)
    finally:
        fs, path = fsspec.core.url_to_fs(run.url)
        if fs.exists(path) and Path(path).name.startswith("bench-"):
            fs.rm(path, recursive=True)


if __name__ == "__main__":
    main()
