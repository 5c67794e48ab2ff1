"""Each set is told with the order that its real samplers give, on every rank, and with what a fit would refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.datamodule import DataModule
from pipeline.training.inspection.set_facts import DataQuestion, SetFacts, of_data_module, of_loaders
from tests.support.inspected import PairStream, Torn
from tests.support.loaders import loader
from tests.support.models import Rows


def train(asked: DataQuestion, **data: Any) -> SetFacts:
    return of_data_module(DataModule(**{"train": Rows(101), "val": Rows(21), "batch_size": 8, **data}), "train", asked)


def only(loaders: Any, asked: DataQuestion = DataQuestion()) -> SetFacts:  # noqa: B008 - it is frozen
    (facts,) = of_loaders("train", loaders, asked)
    return facts


@pytest.mark.parametrize("world_size", [1, 3])
def test_the_first_batches_are_those_that_a_training_gives_its_ranks(world_size: int) -> None:
    facts = train(DataQuestion(world_size), seed=5)
    assert {(each.epoch, each.rank) for each in facts.first_batches} == {
        (epoch, rank) for epoch in (0, 1) for rank in range(world_size)
    }
    for each in facts.first_batches:
        real = DataModule(train=Rows(101), batch_size=8, seed=5).planned(each.epoch, 0, each.rank, world_size)
        assert each.batches == [list(batch) for batch in real][:2]
        assert facts.batches == len(real)


def test_of_many_ranks_the_first_ones_are_shown() -> None:
    facts = train(DataQuestion(64), val=None)
    assert {each.rank for each in facts.first_batches} == {0, 1, 2, 3}
    assert facts.world_size == 64


@pytest.mark.parametrize(
    ("data", "world_size", "words"),
    [
        ({}, 1, "The last batch has 5 samples."),
        ({}, 4, "3 of the epoch's first samples are repeated, for all ranks to have as many"),
        ({"drop_last": True}, 4, "drop_last: the 5 samples that fill no batch are left out of each epoch."),
        ({"train": Rows(96)}, 4, "Batches and ranks go evenly into it."),
    ],
)
def test_the_tail_of_an_epoch_is_told(data: dict[str, Any], world_size: int, words: str) -> None:
    facts = train(DataQuestion(world_size), **data)
    assert words in facts.order[1]
    if facts.order[1].startswith("drop_last"):
        used = facts.batches * 8 * world_size
        assert f" {101 - used} " in facts.order[1]


def test_validation_is_spread_and_the_test_is_not() -> None:
    data = DataModule(val=Rows(21), test=Rows(21), predict=Rows(21), eval_batch_size=4)
    found = {split: of_data_module(data, split, DataQuestion(2)) for split in ("val", "test", "predict")}
    assert [each.world_size for each in found.values()] == [2, 1, 2]
    assert [each.batches for each in found.values()] == [3, 6, 3]
    assert found["val"].first_batches[1].batches == [[1, 3, 5, 7], [9, 11, 13, 15]]
    assert found["test"].first_batches[0].batches[0] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("data", "world_size", "words"),
    [
        ({"train": Rows(0)}, 1, "data.train=Rows is empty"),
        ({"batch_size": None, "global_batch_size": 10}, 4, "data.global_batch_size=10 does not divide by 4"),
        ({"val": Rows(2)}, 4, "data.val has 2 samples for 4 processes"),
        ({"batch_size": 500, "drop_last": True}, 1, "which fill no batch of 500"),
    ],
)
def test_what_a_fit_would_refuse_is_told_beside_the_samples(data: dict[str, Any], world_size: int, words: str) -> None:
    facts = train(DataQuestion(world_size), **data)
    assert any(words in problem for problem in facts.problems)
    assert facts.survey.fields.samples == facts.samples


def test_the_global_batch_is_shared_by_ranks_and_accumulated_batches() -> None:
    assert train(DataQuestion(2, accumulate=4), batch_size=None, global_batch_size=64).batch_size == 8


def test_a_sample_that_fails_leaves_the_rest_to_be_told() -> None:
    facts = train(DataQuestion(), train=Torn(at=17))
    assert (list(facts.survey.failures), facts.batches, facts.survey.fields.samples) == ([17], 7, 49)


@pytest.mark.parametrize(
    ("kind", "batches", "order"),
    [
        ("in order", 7, "In order."),
        ("shuffled", 7, "RandomSampler draws from the global random numbers"),
        ("seeded", 7, "By RandomSampler."),
        ("weighted", 7, "WeightedRandomSampler draws from the global random numbers"),
        ("own sampler", 7, "By NumpyOrder."),
        ("own batches", 7, "By NumpyOrder."),
        ("one by one", 101, "RandomSampler draws from the global random numbers"),
        ("distributed", 7, "By DistributedSampler."),
    ],
)
def test_a_loader_of_ones_own_is_told_by_its_sampler(kind: str, batches: int, order: str) -> None:
    facts = only(loader(kind, noise=False))
    assert (facts.samples, facts.batches, facts.problems) == (101, batches, [])
    assert facts.order[0].startswith(order)
    assert len(facts.first_batches) == (1 if kind == "in order" else 2)
    size = 1 if kind == "one by one" else 16
    assert [len(batch) for batch in facts.first_batches[0].batches] == [size, size]


def test_the_order_of_a_seeded_loader_is_the_real_one() -> None:
    rows = Rows(50)
    shown = only(DataLoader(rows, 5, shuffle=True, generator=torch.Generator().manual_seed(3)))
    real = iter(DataLoader(rows, 5, sampler=RandomSampler(rows, generator=torch.Generator().manual_seed(3))))
    assert torch.equal(rows.x[shown.first_batches[0].batches[0]], next(real)[0])


@pytest.mark.parametrize("shuffle", [False, True])
def test_over_several_ranks_the_order_is_that_of_the_sampler_that_lightning_puts_in(shuffle: bool) -> None:
    facts = only(DataLoader(Rows(50), 5, shuffle=shuffle), DataQuestion(3, seed=42))
    for each in facts.first_batches:
        sampler: Any = DistributedSampler(Rows(50), 3, each.rank, shuffle=shuffle, seed=42)
        sampler.set_epoch(each.epoch)
        assert [index for batch in each.batches for index in batch] == list(sampler)[:10]
    assert facts.batches == 4
    assert only(DataLoader(Rows(50), 5, shuffle=shuffle, drop_last=True), DataQuestion(3)).batches == 3


def test_a_sampler_of_ones_own_over_several_ranks_is_said_to_be_spread() -> None:
    facts = only(loader("own sampler"), DataQuestion(3))
    assert "Lightning spreads what NumpyOrder gives over 3 ranks" in facts.order[0]
    assert only(loader("own sampler"), DataQuestion(3, distributes=False)).order[0].startswith("By NumpyOrder")


@pytest.mark.parametrize(
    ("kind", "of"), [("stream", "samples"), ("no DataLoader", "batches"), ("no length", "batches")]
)
def test_what_has_no_index_is_told_by_what_comes_first(kind: str, of: str) -> None:
    facts = only(loader(kind, noise=False))
    assert (facts.samples, facts.fields_of, facts.first_batches) == (None, of, [])
    assert facts.survey.fields.samples == (101 if of == "samples" else 7)
    assert facts.batches == (None if kind in ("stream", "no length") else 7)


def test_an_empty_stream_is_empty() -> None:
    assert only(DataLoader(PairStream(0))).problems == ["train: PairStream is empty"]


def test_several_loaders_are_several_sets() -> None:
    both = {"a": DataLoader(Rows(10)), "b": [DataLoader(Rows(20)), DataLoader(Rows(30))]}
    for loaders in (both, CombinedLoader(both)):
        found = of_loaders("val", loaders, DataQuestion())
        assert [(each.name, each.samples) for each in found] == [
            ("val['a']", 10),
            ("val['b'][0]", 20),
            ("val['b'][1]", 30),
        ]
    assert of_loaders("val", [], DataQuestion()) == []
    assert of_loaders("val", None, DataQuestion()) == []
    assert of_loaders("val", [DataLoader(Rows(10))], DataQuestion())[0].name == "val"


@pytest.mark.parametrize("kind", ["shuffled", "stream", "shuffled stream", "no DataLoader", "weighted"])
def test_looking_at_a_loader_draws_no_random_number(kind: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    only(loader(kind))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
