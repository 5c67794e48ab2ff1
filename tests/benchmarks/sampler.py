"""What the start of an epoch costs, in time and memory, and each of its samples: ours beside torch's own sampler.

Needs Linux, whose /proc tells the memory.

python -m tests.benchmarks.sampler
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.sampler import Batches, PositionedSampler

MILLION = 10**6
BILLION = 10**9


def spread(values: Sequence[float]) -> str:
    """The median and the quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:9.1f}  [{low:.1f} .. {high:.1f}]"


def interleaved(repetitions: int, cases: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """What each case measures, taken in turn, so that a busy moment of the machine meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, case in cases.items():
            found[name].append(case())
    return found


def seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def ours(size: int, position: int = 0) -> PositionedSampler:
    return PositionedSampler(range(size), 2, 1, seed=1, position=position)


def torchs(size: int) -> Any:
    dataset: Any = range(size)
    return DistributedSampler(dataset, 2, 1, seed=1)


def start(sampler: Callable[[], Any]) -> Callable[[], float]:
    """Microseconds from nothing to the first sample."""
    return lambda: 1e6 * seconds(lambda: next(iter(sampler())))


def each(iterator: Callable[[], Iterator[Any]]) -> Callable[[], float]:
    """Nanoseconds a sample, over the first half million of one rank."""

    def measure() -> float:
        count = MILLION // 2
        samples = islice(iterator(), count)
        return 1e9 * seconds(lambda: [None for _ in samples]) / count

    return measure


def blocks(sampler: PositionedSampler) -> float:
    """Nanoseconds a sample, in arrays."""
    taken = 0
    begin = time.perf_counter()
    for block in sampler.blocks():
        taken += len(block)
        if taken >= MILLION // 2:
            break
    return 1e9 * (time.perf_counter() - begin) / taken


def batches(sampler: PositionedSampler) -> float:
    """Nanoseconds a sample, in batches of 64."""
    count = MILLION // 2 // 64
    iterator = islice(Batches(sampler, 64), count)
    return 1e9 * seconds(lambda: [None for _ in iterator]) / (64 * count)


def grown(name: str, size: int, position: int) -> float:
    """Megabytes that a fresh process grows by at most, from before the sampler to its 1,000th sample."""
    list(islice(ours(1000), 1000))
    # Forgets the peak that importing has left behind.
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    list(islice(ours(size, position) if name == "ours" else torchs(size), 1000))
    return (peak() - before) / 1e6


def peak() -> int:
    """Bytes that this process has held in memory at most; getrusage would count those of its parent too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    """Measure and print."""
    print("start of an epoch, us: median [quartiles]")
    cases = {
        f"ours    {size:13,} at {position:13,}": start(lambda size=size, position=position: ours(size, position))
        for size in (MILLION, BILLION)
        for position in (0, size // 2, size - 2)
    }
    found = interleaved(201, cases)
    found |= interleaved(
        7, {f"torch's {size:13,} at {0:13,}": start(lambda size=size: torchs(size)) for size in (MILLION, 10 * MILLION)}
    )
    for name, values in found.items():
        print(f"  {name}  {spread(values)}")
    million, billion = (np.median(found[f"ours    {size:13,} at {0:13,}"]) for size in (MILLION, BILLION))
    print(f"  1e9 / 1e6 = {billion / million:.2f} (bar: 3); 1e9 in ms: {billion / 1e3:.2f} (bar: 50)")

    print("growth of a fresh process, MB")
    places = [("ours", size, at) for size in (MILLION, BILLION) for at in (0, size // 2, size - 2000)]
    places += [("torch's", size, 0) for size in (MILLION, 10 * MILLION)]
    for name, size, position in places:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            print(f"  {name:8}{size:13,} at {position:13,}  {fresh.submit(grown, name, size, position).result():9.1f}")

    print("iterating, ns a sample: median [quartiles] (bar: 100)")
    middle = BILLION // 2
    found = interleaved(
        9,
        {
            "ours    1e6  for index in sampler": each(lambda: iter(ours(MILLION))),
            "ours    1e9  for index in sampler": each(lambda: iter(ours(BILLION, middle))),
            "ours    1e6  blocks()": lambda: blocks(ours(MILLION)),
            "ours    1e9  blocks()": lambda: blocks(ours(BILLION, middle)),
            "ours    1e9  batches of 64": lambda: batches(ours(BILLION, middle)),
            "torch's 1e6  for index in sampler": each(lambda: iter(torchs(MILLION))),
        },
    )
    for name, values in found.items():
        print(f"  {name:36}{spread(values)}")


if __name__ == "__main__":
    main()
