"""Orders by weight, length and class are pure functions of (seed, epoch, entry), and visit what they say."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.orders import BalancedOrder, LengthOrder, Order, WeightedOrder, digest, order_of
from pipeline.data.sampler import Batches, PositionedSampler

KINDS = ("weights", "lengths", "oversample", "undersample")


def made(kind: str, size: int, group: int = 4, entries: int | None = None, seed: int = 0) -> Order:
    drawn = np.random.default_rng(seed)
    if kind == "weights":
        weights = drawn.exponential(size=size) * (drawn.random(size) > 0.3)
        weights[0] = 1.0
        return WeightedOrder(weights, entries or size)
    if kind == "lengths":
        return LengthOrder(drawn.integers(1, 30, size).astype(np.float64), group)
    codes = drawn.integers(0, 3, size)
    codes[: min(3, size)] = np.arange(min(3, size))
    return BalancedOrder(codes.astype(np.int32), kind)


def all_of(order: Order, seed: int = 0, epoch: int = 0) -> list[int]:
    return order.of_epoch(seed, epoch)(np.arange(order.entries)).tolist()


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.integers(3, 300),
    group=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 9),
    data=st.data(),
)
def test_an_entry_is_the_same_whatever_it_is_asked_with(
    kind: str, size: int, group: int, seed: int, epoch: int, data: Any
) -> None:
    order = made(kind, size, group, seed=size)
    whole = np.array(all_of(order, seed, epoch))
    asked = np.array(data.draw(st.lists(st.integers(0, order.entries - 1), max_size=20)), np.int64)
    again = order_of(order.facts, order.values).of_epoch(seed, epoch)
    assert again(asked).tolist() == whole[asked].tolist()
    assert whole.min() >= 0
    assert whole.max() < size


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 400), group=st.integers(1, 60), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_groups_of_similar_lengths_are_a_permutation(size: int, group: int, seed: int, epoch: int) -> None:
    assert sorted(all_of(made("lengths", size, group), seed, epoch)) == list(range(size))


def test_groups_have_similar_lengths_and_come_in_another_order_with_other_members_each_epoch() -> None:
    order = made("lengths", 4099, group=32)
    found = [order.values[all_of(order, epoch=epoch)] for epoch in range(2)]
    spread = [np.ptp(each[:4096].reshape(-1, 32), axis=1) for each in found]
    assert max(each.max() for each in spread) <= 5, "of 29"
    groups = [{frozenset(all_of(order, epoch=epoch)[at : at + 32]) for at in range(0, 4096, 32)} for epoch in range(2)]
    assert len(groups[0] & groups[1]) <= 1
    firsts = [each[:4096].reshape(-1, 32).mean(axis=1) for each in found]
    assert abs(np.corrcoef(firsts[0][:-1], firsts[0][1:])[0, 1]) < 0.3, "neither ascending nor descending"
    rests = [set(all_of(order, epoch=epoch)[4096:]) for epoch in range(20)]
    assert len(set.union(*rests)) > 40, "what fills no group is something else each time"


def test_padding_is_far_less_than_in_a_permutation() -> None:
    order = made("lengths", 2000, group=16)
    rng = np.random.default_rng(0)
    padded = [order.values[each].reshape(-1, 16).max(axis=1).sum() for each in (all_of(order), rng.permutation(2000))]
    assert padded[0] < 0.62 * padded[1]


def test_samples_are_drawn_in_proportion_to_their_weights_and_never_without_one() -> None:
    weights = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    counts = Counter(all_of(WeightedOrder(weights, 80_000), seed=3))
    assert set(counts) == {1, 2, 4}
    for index, share in ((1, 1 / 8), (2, 2 / 8), (4, 5 / 8)):
        assert abs(counts[index] / 80_000 - share) < 0.01


@pytest.mark.parametrize("scale", [1e-300, 1e300, 5e-324])
def test_weights_of_any_size_serve(scale: float) -> None:
    weights = np.array([1.0, 0.0, 1.0, 1.0]) * scale
    assert set(all_of(WeightedOrder(weights, 1000))) == {0, 2, 3}


def test_very_uneven_weights_are_found_as_a_plain_search_finds_them() -> None:
    weights = 10.0 ** -np.arange(0, 300, dtype=np.float64)
    order = WeightedOrder(weights, 5000)
    drawn = Counter(all_of(order))
    assert abs(drawn[0] / 5000 - 0.9) < 0.02
    assert max(drawn) < 8


def test_every_class_comes_as_often_as_the_largest_or_the_smallest_one() -> None:
    codes = np.array([0] * 10 + [1] * 4 + [2] * 7, np.int32)
    over, under = (BalancedOrder(codes, how) for how in ("oversample", "undersample"))
    assert Counter(codes[all_of(over)].tolist()) == {0: 10, 1: 10, 2: 10}
    times = Counter(all_of(over))
    assert set(times.values()) <= {1, 2, 3}
    assert {times[at] for at in range(10)} == {1}
    assert Counter(times[at] for at in range(10, 14)) == {2: 2, 3: 2}
    assert Counter(codes[all_of(under)].tolist()) == {0: 4, 1: 4, 2: 4}
    assert max(Counter(all_of(under)).values()) == 1, "without replacement"
    seen = set(itertools.chain(*(all_of(under, epoch=epoch) for epoch in range(30))))
    assert seen == set(range(21)), "others in each epoch"


@pytest.mark.parametrize("kind", KINDS)
def test_each_seed_and_epoch_has_an_order_of_its_own(kind: str) -> None:
    order = made(kind, 200)
    assert len({tuple(all_of(order, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


WORLDS = st.integers(1, 4)


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    size=st.integers(8, 150),
    worlds=st.lists(WORLDS, min_size=1, max_size=5),
    data=st.data(),
)
def test_ranks_together_use_a_prefix_of_the_order_across_any_worlds(
    kind: str, size: int, worlds: list[int], data: Any
) -> None:
    order = made(kind, size, group=12)
    position, used = 0, list[int]()
    for world in worlds:
        samplers = [
            PositionedSampler(range(size), world, rank, seed=5, position=position, order=order) for rank in range(world)
        ]  # type: ignore[arg-type]
        batches = [Batches(sampler, 12 // world) for sampler in samplers]
        left = batches[0].count(position)
        steps = data.draw(st.integers(0, left))
        taken = [list(itertools.islice(each, steps)) for each in batches]
        for step in range(steps):
            both = [each[step] for each in taken]
            used += [index for row in itertools.zip_longest(*both) for index in row if index is not None]
        position = batches[0].position(batches[0].done + steps)
        used = used[:position]
    assert used == all_of(order, 5)[:position]


def test_a_global_batch_is_one_group_in_any_world() -> None:
    order = made("lengths", 90, group=12)
    found = []
    for world in (1, 2, 3, 4, 6, 12):
        samplers = [PositionedSampler(range(90), world, rank, seed=1, order=order) for rank in range(world)]  # type: ignore[arg-type]
        ranks = [list(Batches(sampler, 12 // world)) for sampler in samplers]
        found.append([sorted(itertools.chain(*step)) for step in zip(*ranks, strict=True)][:-1])
    assert all(each == found[0] for each in found)


def test_a_sample_that_is_repeated_tells_which_time_it_is() -> None:
    order = made("oversample", 40)
    sampler = PositionedSampler(range(40), seed=2, order=order)  # type: ignore[arg-type]
    batches = list(Batches(sampler, 7))
    entries = [entry for batch in batches for entry in batch.entries.tolist()]  # type: ignore[attr-defined]
    assert entries == list(range(order.entries))
    plain = next(iter(Batches(PositionedSampler(range(40)), 7)))  # type: ignore[arg-type]
    assert plain.entries is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", [{"values": "sha256:0"}, {"kind": "other"}, {"kind": None}])
def test_facts_that_are_no_orders_are_refused(change: dict[str, Any]) -> None:
    order = made("weights", 20)
    with pytest.raises(ValueError, match=r"not an order|not those"):
        order_of({**order.facts, **change}, order.values)
    assert digest(order.values) == order.facts["values"]


GOLDEN = {
    "weights": [8, 1, 8, 0, 8, 1],
    "lengths": [3, 7, 5, 8, 4, 6],
    "oversample": [1, 5, 1, 6, 1, 3],
    "undersample": [1, 4, 10, 0, 2, 9],
}
"""The first entries of seed 3, epoch 2, over 11 samples: another order would change every run in progress."""


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_entries_stay_as_they_are(kind: str) -> None:
    assert all_of(made(kind, 11), 3, 2)[:6] == GOLDEN[kind]
