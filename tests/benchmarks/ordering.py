"""The order of an epoch's samples: how long its start takes, in how much memory, and each of its samples."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from torch.utils.data.distributed import DistributedSampler

from pipeline.data.sampler import Batches, PositionedSampler
from tests.benchmarks.processes import forked, peak_memory, timed
from tests.benchmarks.subject import Bar, Contenders, Context, Reading, subject
from tests.benchmarks.workloads import BATCH

MILLION, BILLION = 10**6, 10**9
TORCHS = "DistributedSampler, 1e6 samples"
BILLION_OF_OURS = "this pipeline, 1e9 samples, from the middle on"


def ours(size: int, position: int = 0) -> PositionedSampler:
    return PositionedSampler(range(size), 2, 1, seed=1, position=position)


def torchs(size: int) -> DistributedSampler[Any]:
    dataset: Any = range(size)
    return DistributedSampler(dataset, 2, 1, seed=1)


def start(make: Callable[[], Iterable[Any]], repeats: int) -> Reading:
    """Microseconds from nothing to the first sample, and how many MB a process grows by at most until its 1,000th."""
    list(islice(ours(1000), 1000))  # what any order needs
    before = peak_memory(reset=True)
    list(islice(make(), 1000))
    grown = (peak_memory() - before) / 1e6
    return timed(lambda: [next(iter(make())) for _ in range(repeats)], repeats) | {"MB": grown}


def each(make: Callable[[], Iterable[Any]], count: int, taken: int) -> Reading:
    """Nanoseconds a sample, over the first `count` that are taken, so many at a time."""
    iterator = islice(make(), count)
    found = timed(lambda: [None for _ in iterator], count * taken)
    return {quantity: 1000 * value for quantity, value in found.items()}


@subject(
    "epoch_start",
    unit="us",
    reference=TORCHS,
    bars=(Bar(BILLION_OF_OURS, "wall", limit=50_000),),
    rounds=(1, 5, 11),
)
def epoch_start(context: Context) -> Contenders:
    """The start of an epoch: to its first sample, and the memory of its order."""
    big = context.pick(MILLION, 10 * MILLION, 10 * MILLION)
    ways: dict[str, tuple[Callable[[], Iterable[Any]], int]] = {
        TORCHS: (lambda: torchs(MILLION), 1),
        f"DistributedSampler, {big:.0e} samples": (lambda: torchs(big), 1),
        "this pipeline, 1e6 samples": (lambda: ours(MILLION), 20),
        BILLION_OF_OURS: (lambda: ours(BILLION, BILLION // 2), 20),
    }
    log = context.folder / "log.txt"
    return {name: (lambda way=way: forked(start, *way, log=log)) for name, way in ways.items()}


@subject(
    "epoch_order",
    unit="ns a sample",
    reference=TORCHS,
    bars=(Bar(BILLION_OF_OURS, "cpu", limit=100),),
    rounds=(1, 5, 11),
)
def epoch_order(context: Context) -> Contenders:
    """The order itself: each sample of it, in batches of 64 as a loader asks for them."""
    count = context.pick(1000, 200_000, MILLION // 2)
    batches = count // BATCH
    ways: dict[str, tuple[Callable[[], Iterable[Any]], int, int]] = {
        TORCHS: (lambda: torchs(MILLION), count, 1),
        "this pipeline, 1e6 samples": (lambda: Batches(ours(MILLION), BATCH), batches, BATCH),
        BILLION_OF_OURS: (lambda: Batches(ours(BILLION, BILLION // 2), BATCH), batches, BATCH),
    }
    log = context.folder / "log.txt"
    return {name: (lambda way=way: forked(each, *way, log=log)) for name, way in ways.items()}
