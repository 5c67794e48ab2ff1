"""Which rank sees which sample when: an exact share of the order, that starts anywhere at once."""

import statistics
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.sampler import Batches, Indices, PositionedSampler, Tail
from tests.support.samples import order

# ---- an epoch starts anywhere at once


def started(size: int, position: int = 0) -> float:
    begin = time.perf_counter()
    next(iter(PositionedSampler(range(size), seed=1, position=position)))
    return time.perf_counter() - begin


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0], ids=["first", "middle", "last"])
def test_a_billion_samples_start_as_fast_as_a_million(where: float) -> None:
    sizes = (10**6, 10**9)
    at = {size: min(int(where * size), size - 1) for size in sizes}
    times: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(101):
        for size in sizes:
            times[size].append(started(size, at[size]))
    small, large = (statistics.median(times[size]) for size in sizes)
    assert large <= 3 * small, f"1e6: {small * 1e6:.0f} us, 1e9: {large * 1e6:.0f} us"


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


@pytest.mark.parametrize("position", [0, 500_000_000, 999_999_000])
def test_a_billion_samples_take_no_memory(position: int) -> None:
    started(1000)
    before = resident()
    tracemalloc.start()
    sampler = PositionedSampler(range(10**9), position=position)
    batches = Batches(sampler, 64)
    for number, _ in enumerate(batches):
        if number == 500:
            break
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20
    assert resident() - before < 10 * 2**20


# ---- ranks


def world(
    size: int,
    ranks: int,
    batch_size: int,
    position: int = 0,
    tail: Tail = "pad",
    drop_last: bool = False,
    shuffle: bool = True,
) -> list[Batches]:
    return [
        Batches(
            PositionedSampler(range(size), ranks, rank, shuffle=shuffle, seed=9, tail=tail, epoch=4, position=position),
            batch_size,
            drop_last,
        )
        for rank in range(ranks)
    ]


def steps(batches: list[Batches]) -> list[list[int]]:
    """What all ranks together take, batch by batch; fails if one of them runs another number."""
    return [[index for part in parts for index in part] for parts in zip(*batches, strict=True)]


def some_world(draw: st.DrawFn) -> dict[str, Any]:
    size = draw(st.integers(1, 500))
    found = {
        "size": size,
        "ranks": draw(st.integers(1, 9)),
        "batch_size": draw(st.integers(1, 40)),
        "position": draw(st.integers(0, size)),
        "tail": draw(st.sampled_from(["pad", "drop", "keep"])),
        "drop_last": draw(st.booleans()),
        "shuffle": draw(st.booleans()),
    }
    if found["tail"] == "keep":
        found["drop_last"] = False
        assume(found["ranks"] <= size and not 0 < size - found["position"] < found["ranks"])
    return found


worlds = st.composite(some_world)()
exact = settings(derandomize=True, deadline=None, max_examples=250)


@exact
@given(given=worlds)
def test_all_ranks_together_take_exactly_the_rest(given: dict[str, Any]) -> None:
    size, position, tail, ranks = given["size"], given["position"], given["tail"], given["ranks"]
    batches = world(**given)
    whole = order(size, 9, 4).tolist() if given["shuffle"] else list(range(size))
    rest = whole[position:]
    parts = [list(each) for each in batches]
    assert {len(each) for each in parts} == {batches[0].count(position)}
    seen = Counter(index for each in parts for batch in each for index in batch)
    left_out = Counter(rest) - seen
    more = seen - Counter(rest)
    padded = batches[0].sampler.padded(position)
    assert padded < ranks
    if given["drop_last"]:
        # Only what does not fill a batch on every rank, from the end of the order.
        assert left_out.total() < ranks * given["batch_size"]
        assert left_out == Counter(rest[len(rest) - left_out.total() :])
        assert more.total() in (0, padded)
        assert {len(batch) for each in parts for batch in each} <= {given["batch_size"]}
    elif tail == "pad":
        assert not left_out
        assert more == Counter(whole[at % size] for at in range(padded))
    elif tail == "drop":
        assert not more
        assert left_out == Counter(rest[len(rest) - len(rest) % ranks :])
    else:
        assert not left_out
        assert not more
        counts = [sum(map(len, each)) for each in parts]
        assert max(counts) - min(counts) <= 1
    for each in parts:
        assert all(len(batch) == given["batch_size"] for batch in each[:-1])
        assert all(1 <= len(batch) <= given["batch_size"] + (tail == "keep") for batch in each[-1:])


@exact
@given(given=worlds, others=st.integers(1, 9), data=st.data())
def test_the_position_is_what_was_taken_and_going_on_there_gives_the_rest(
    given: dict[str, Any], others: int, data: st.DataObject
) -> None:
    size, position, tail = given["size"], given["position"], given["tail"]
    batches = world(**given)
    whole = order(size, 9, 4).tolist() if given["shuffle"] else list(range(size))
    taken = steps(batches)
    done, length = batches[0].done, len(batches[0])
    assert {(each.done, len(each)) for each in batches} == {(done, length)}
    assert 0 <= done <= length
    assert done + len(taken) == length
    for number in range(len(taken) + 1):
        found = {each.position(done + number) for each in batches}
        assert len(found) == 1
        (stands,) = found
        seen = Counter(index for step in taken[:number] for index in step)
        assert seen - Counter(whole[position:stands]) == Counter(
            whole[at % size] for at in range(seen.total() - (stands - position))
        ), "beyond the position there is only padding"
        assert not Counter(whole[position:stands]) - seen
        assert stands == size or seen.total() == stands - position, "padding only at the end"
    number = data.draw(st.integers(0, len(taken)))
    stands = batches[0].position(done + number)
    assume(tail != "keep" or (others <= size and not 0 < size - stands < others))
    after = world(**{**given, "ranks": others, "position": stands, "drop_last": False})
    rest = Counter(index for step in steps(after) for index in step)
    expected = Counter(whole[stands:])
    assert rest - expected == Counter(whole[at % size] for at in range(after[0].sampler.padded(stands)))
    assert expected - rest == (Counter(whole[size - (size - stands) % others :]) if tail == "drop" else Counter())


@exact
@given(size=st.integers(1, 500), position=st.integers(0, 500), tail=st.sampled_from(["pad", "drop"]))
def test_a_global_batch_is_the_same_samples_in_any_world(size: int, position: int, tail: Tail) -> None:
    position = min(position, size)
    alone, *others = (
        steps(world(size, ranks, 12 // ranks, position, tail, drop_last=tail == "drop")) for ranks in (1, 2, 3, 4)
    )
    for other in others:
        assert len(other) == len(alone)
        assert [sorted(step) for step in other[:-1]] == [sorted(step) for step in alone[:-1]]
        if alone:
            assert not Counter(alone[-1]) - Counter(other[-1]), "the last may hold padding besides"
            assert tail == "pad" or len(other[-1]) == len(alone[-1])


def test_a_run_that_changes_its_world_at_every_step_sees_an_epoch_once() -> None:
    seen: list[int] = []
    position = 0
    for ranks in (1, 4, 2, 3, 1, 3, 4, 2, 1):
        batches = world(100, ranks, 12 // ranks, position)
        seen += steps(batches)[0]
        position = batches[0].position(batches[0].done + 1)
        if position == 100:
            break
    assert Counter(seen) == Counter(range(100))


@exact
@given(size=st.integers(0, 300), ranks=st.integers(1, 9), drop=st.booleans())
def test_in_order_it_is_torchs_own_sampler(size: int, ranks: int, drop: bool) -> None:
    assume(size or not drop)
    for rank in range(ranks):
        torchs: Any = DistributedSampler(range(size), ranks, rank, shuffle=False, drop_last=drop)  # type: ignore[arg-type]
        ours = PositionedSampler(range(size), ranks, rank, shuffle=False, tail="drop" if drop else "pad")
        assert len(ours) == len(torchs)
        assert list(ours) == (list(torchs) if size else [])


@exact
@given(given=worlds)
def test_the_length_is_the_whole_epochs_at_any_position(given: dict[str, Any]) -> None:
    for here, start in zip(world(**given), world(**{**given, "position": 0}), strict=True):
        assert len(here) == len(start) == len(list(start))
        assert len(here.sampler) == len(start.sampler) == len(list(start.sampler))
        assert len(list(here.sampler)) == here.sampler.count(given["position"])
        assert [index for block in here.sampler.blocks() for index in block[0].tolist()] == list(here.sampler)


def test_large_epochs_go_in_blocks_without_a_seam() -> None:
    size = 50_000
    samplers = [batches.sampler for batches in world(size, 3, 1, position=5)]
    together = [index for step in zip(*samplers, strict=True) for index in step]
    whole = order(size, 9, 4).tolist()
    assert together == whole[5:] + whole[: samplers[0].padded(5)]
    for batch_size in (1, 7, 8192, 10_000, 16_666, 20_000):
        taken = [index for batch in world(size, 3, batch_size)[2] for index in batch]
        assert taken == list(world(size, 3, 1)[2].sampler)


# ---- a DistributedSampler like any other


def test_it_is_a_distributed_sampler_for_a_plain_loader() -> None:
    sampler = PositionedSampler(range(103), 2, 1, seed=3)
    loader = DataLoader(range(103), batch_size=8, sampler=sampler)  # type: ignore[arg-type]
    assert isinstance(sampler, DistributedSampler)
    assert len(sampler) == 52
    assert len(loader) == 7
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(np.concatenate([np.asarray(batch) for batch in loader]).tolist())
    assert epochs[0] == epochs[2] == list(PositionedSampler(range(103), 2, 1, seed=3))
    assert epochs[1] == list(PositionedSampler(range(103), 2, 1, seed=3, epoch=1))
    assert epochs[0] != epochs[1]


def test_another_epoch_starts_at_its_beginning_and_the_same_one_where_it_stands() -> None:
    sampler = PositionedSampler(range(50), seed=1, epoch=2, position=30)
    rest = order(50, 1, 2)[30:].tolist()
    assert list(sampler) == list(sampler) == rest
    sampler.set_epoch(2)
    assert sampler.position == 30
    assert list(sampler) == rest
    sampler.set_epoch(3)
    assert sampler.position == 0
    assert list(sampler) == order(50, 1, 3).tolist()
    sampler.set_epoch(2)
    assert list(sampler) == order(50, 1, 2).tolist()


def test_batches_carry_the_epoch_and_are_arrays_to_numpy() -> None:
    batches = Batches(PositionedSampler(range(50), epoch=6), 20)
    assert [type(batch) for batch in batches] == [Indices] * 3
    first: Any = next(iter(batches))
    assert first == order(50, 0, 6)[:20].tolist()
    assert first.epoch == 6
    changed = np.asarray(first)
    assert changed.dtype == np.int64
    changed[:] = 0
    assert np.array_equal(np.asarray(first), list(first)), "who changes the array changes a copy"
    assert np.asarray(first, np.float32).dtype == np.float32


def test_an_iteration_is_not_disturbed_by_the_next_epoch() -> None:
    sampler = PositionedSampler(range(50), seed=1)
    batches = iter(Batches(sampler, 10))
    taken = [*next(batches)]
    sampler.set_epoch(1)
    rest = [(index, batch.epoch) for batch in batches for index in batch]  # type: ignore[attr-defined]
    assert taken + [index for index, _ in rest] == order(50, 1, 0).tolist()
    assert {epoch for _, epoch in rest} == {0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 2, "num_replicas": 2}, "rank"),
        ({"rank": -1}, "rank"),
        ({"num_replicas": 0}, "num_replicas=0 must be >= 1"),
        ({"position": -1}, "position=-1 must be 0 to 10"),
        ({"position": 11}, "position=11 must be 0 to 10"),
        ({"tail": "cut"}, "tail='cut' must be one of 'pad', 'drop', 'keep'"),
    ],
)
def test_wrong_arguments_of_the_sampler_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PositionedSampler(range(10), **arguments)


@pytest.mark.parametrize(
    ("size", "tail", "position", "arguments", "message"),
    [
        (10, "pad", 0, {"batch_size": 0}, "batch_size=0 must be >= 1"),
        (10, "keep", 0, {"batch_size": 2, "drop_last": True}, "drop_last=True leaves samples out"),
        (3, "keep", 0, {"batch_size": 2}, "3 samples for 4 ranks"),
        (10, "keep", 8, {"batch_size": 2}, "2 samples for 4 ranks"),
        (3, "keep", 3, {"batch_size": 2}, "3 samples for 4 ranks"),
    ],
)
def test_wrong_arguments_of_the_batches_are_named(
    size: int, tail: Tail, position: int, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Batches(PositionedSampler(range(size), 4, tail=tail, position=position), **arguments)


def test_nothing_comes_of_nothing() -> None:
    assert not list(PositionedSampler([], 2, 1))
    assert not list(Batches(PositionedSampler([], tail="keep"), 3))
    assert not list(PositionedSampler(range(10), position=10))
