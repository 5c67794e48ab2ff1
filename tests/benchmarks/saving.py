"""Saving and loading a state, ours beside Lightning's defaults on the same storage: `--url s3://bucket/prefix`.

python -m tests.benchmarks --url s3://bucket/prefix save save_memory load save_beside
"""

import multiprocessing
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from pipeline.checkpoint.commit import CommitRecord
from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.transfer import PART, open_ranges, open_writer
from pipeline.run.run_dir import RunDir, now
from pipeline.training.checkpoint_io import RunIO
from tests.benchmarks.processes import forked, peak_memory, timed
from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject

LIGHTNING = "Lightning's TorchCheckpointIO"
COPY = "a plain copy in memory"
STOPPED, COMMITTED = "s until training continues", "s until it is committed"
STEP = 100


def state(megabytes: int, device: str = "cpu") -> dict[str, Any]:
    """Twenty tensors."""
    each = megabytes * 1_000_000 // 80
    return {"state_dict": {f"layer{number}": torch.rand(each, device=device) for number in range(20)}}


def record(step: int) -> CommitRecord:
    return CommitRecord(step, 0, 0, 0, "", None, 1, now(), ["steps"])


def seconds(do: Callable[[], Any]) -> float:
    return timed(do)["wall"] / 1e6


def save_ours(url: str, megabytes: int) -> Reading:
    """How long training stops, and how long the bytes take."""
    held, saver = state(megabytes), Saver(RunDir(url), 60)
    saver.save(held, record(1))  # makes buffers and connections
    saver.finish()
    began = time.perf_counter()
    stopped = seconds(lambda: saver.save(held, record(2)))
    saver.finish()
    return {STOPPED: stopped, COMMITTED: time.perf_counter() - began}


def save_lightning(url: str, megabytes: int) -> Reading:
    held, lightning = state(megabytes), TorchCheckpointIO()
    lightning.save_checkpoint(held, f"{url}/first.ckpt")
    took = seconds(lambda: lightning.save_checkpoint(held, f"{url}/second.ckpt"))
    return {STOPPED: took, COMMITTED: took}


def copy(url: str, megabytes: int) -> Reading:
    tensors = list(state(megabytes)["state_dict"].values())
    buffers = [torch.zeros_like(tensor) for tensor in tensors]
    return {STOPPED: seconds(lambda: [to.copy_(of) for to, of in zip(buffers, tensors, strict=True)])}


def turns(context: Context, ways: dict[str, Callable[..., Reading]], *arguments: Any) -> Contenders:
    """Each way in a fork of its own, with a run directory of its own."""

    def turn(way: Callable[..., Reading]) -> Reading:
        url = f"{context.url}/{uuid.uuid4().hex[:8]}"
        found: Reading = forked(way, url, *arguments, log=context.folder / "log.txt")
        return found

    return {name: partial(turn, way) for name, way in ways.items()}


@subject(
    "save",
    unit="s",
    reference=LIGHTNING,
    bars=(Bar(OURS, STOPPED, 20), Bar(OURS, COMMITTED, 1.5)),
    rounds=(1, 3, 5),
    stores=True,
)
def save(context: Context) -> Contenders:
    """A save of 400 MB (40 MB if quick)."""
    ways = {OURS: save_ours, LIGHTNING: save_lightning, COPY: copy}
    return turns(context, ways, context.pick(1, 40, 400))


def grown(url: str, megabytes: int, way: str) -> Reading:
    """By how many times the state a process grows while it saves."""
    held, run, lightning = state(megabytes), RunDir(url), TorchCheckpointIO()
    saver = Saver(run, 60)
    if way == OURS:
        Saver(run, 60).save(state(1), record(1))  # what any save needs: clients, modules
    else:
        lightning.save_checkpoint(state(1), f"{url}/first.ckpt")
    before = peak_memory(reset=True)
    if way == OURS:
        for step in (2, 3):
            saver.save(held, record(step))
        saver.finish()
    else:
        lightning.save_checkpoint(held, f"{url}/second.ckpt")
    return {"x the state": (peak_memory() - before) / megabytes / 1e6}


@subject("save_memory", unit="s", reference=LIGHTNING, rounds=(1, 1, 3), stores=True)
def save_memory(context: Context) -> Contenders:
    """Peak memory that a process grows by in a save of 400 MB (40 MB if quick)."""
    ways = {name: partial(grown, way=name) for name in (OURS, LIGHTNING)}
    return turns(context, ways, context.pick(1, 40, 400))


def commit(url: str, megabytes: int) -> None:
    """Leave a checkpoint, and a small one."""
    saver = Saver(RunDir(url), 60)
    for step, size in ((1, 1), (STEP, megabytes)):
        saver.save(state(size), record(step))
    saver.finish()


def load_by(read: Callable[[RunDir, str], Any], url: str) -> Reading:
    run = RunDir(url)
    read(run, RunDir.checkpoint(1))  # makes clients and connections
    found = timed(lambda: read(run, RunDir.checkpoint(STEP)))
    return {quantity: value / 1e6 for quantity, value in found.items()}


def read_ours(run: RunDir, name: str) -> None:
    touch(RunIO(run).load_checkpoint(run.url_of(name)))


def read_lightning(run: RunDir, name: str) -> None:
    touch(TorchCheckpointIO().load_checkpoint(run.url_of(name)))


def read_bytes(run: RunDir, name: str) -> None:
    """Read the file in parallel parts, and forget them: what is possible."""
    read, size = open_ranges(run, name), run.size(name) or 0
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda start: read(start, min(start + PART, size)), range(0, size, PART)):
            pass


def touch(loaded: dict[str, Any]) -> None:
    """Read every number: a mapped file has not been read before."""
    for tensor in loaded["state_dict"].values():
        tensor.sum()


@subject("load", unit="s", reference=LIGHTNING, bars=(Bar(OURS, "wall", 2),), rounds=(1, 3, 5), stores=True)
def load(context: Context) -> Contenders:
    """A load of 400 MB (40 MB if quick) to tensors, verified if ours, from a file that is new to this node."""
    megabytes, log = context.pick(1, 40, 400), context.folder / "log.txt"

    def turn(read: Callable[[RunDir, str], Any]) -> Reading:
        url = f"{context.url}/{uuid.uuid4().hex[:8]}"
        forked(commit, url, megabytes, log=log)
        found: Reading = forked(load_by, read, url, log=log)
        return found

    ways = {OURS: read_ours, LIGHTNING: read_lightning, "the bytes alone": read_bytes}
    return {name: partial(turn, read) for name, read in ways.items()}


def compute(url: str, megabytes: int, ranks: int, limit: float, way: str) -> Reading:
    """Microseconds of a stand-in for a step, on each of some ranks, for so many seconds in which one save falls.

    Args:
        url: Of a run directory.
        megabytes: Size of the state.
        ranks: Processes, which meet after every ten steps.
        limit: Seconds.
        way: What is saved meanwhile, one of `WAYS`.
    """
    rank = 0
    if ranks > 1:
        dist.init_process_group("gloo")
        rank = dist.get_rank()
    saver, held, uploading = Saver(RunDir(url), 60), state(megabytes), None
    if rank == 0 and way == OURS:
        saver.save(held, record(1))  # makes buffers and connections
        saver.finish()
    if rank == 0 and way == FOREIGN:
        uploading = multiprocessing.get_context("fork").Process(target=upload, args=(url, megabytes, limit / 6))
        uploading.start()
    x, weight, mean = torch.rand(256, 1024), torch.rand(1024, 1024), torch.zeros(1000)
    if ranks > 1:
        dist.barrier()
    began, count, saved = time.perf_counter(), 0, False
    while mean[0] == 0:
        passed = time.perf_counter() - began
        if rank == 0 and way == OURS and not saved and passed > limit / 6:
            saver.save(held, record(2))
            saved = True
        for _ in range(10):
            torch.mm(x, weight)
        count += 10
        mean[0] = float(passed > limit)
        if ranks > 1:
            dist.all_reduce(mean)
    took = 1e6 * (time.perf_counter() - began) / count
    saver.finish()
    if uploading is not None:
        uploading.join()
    return {"wall": took}


def upload(url: str, megabytes: int, later: float) -> None:
    """Upload random bytes as a save of ours does, but from a process of its own, and only that."""
    data = np.random.default_rng(0).bytes(megabytes * 1_000_000)
    time.sleep(later)
    file = open_writer(RunDir(url), "foreign")
    for start in range(0, len(data), 1 << 20):
        file.write(data[start : start + (1 << 20)])
    file.close()


NEVER, FOREIGN = "no save", "another process uploads as much"


def beside(context: Context, ranks: int, reference: str) -> Contenders:
    log, limit = context.folder / "log.txt", context.pick(1, 6, 30)

    def turn(way: str) -> Reading:
        url = f"{context.url}/{uuid.uuid4().hex[:8]}"
        arguments = (url, context.pick(1, 40, 400), ranks, limit, way)
        found: Reading = forked(compute, *arguments, ranks=ranks, log=log)
        return found

    return {way: partial(turn, way) for way in (reference, OURS)}


@subject("save_beside", "us a step", NEVER, (Bar(OURS, "wall", 0.965),), (1, 0, 3), stores=True)
def save_beside(context: Context) -> Contenders:
    """Steps of one process over half a minute in which a save of 400 MB falls."""
    return beside(context, 1, NEVER)


@subject("save_beside_ranks", "us a step", FOREIGN, (Bar(OURS, "wall", 0.98),), (0, 0, 3), stores=True)
def save_beside_ranks(context: Context) -> Contenders:
    """The same with 2 ranks, beside a process that only uploads as many bytes."""
    return beside(context, 2, FOREIGN)
