"""What one of the sets is: its samples, the batches of an epoch on each rank, and their order.

The order of this project's DataModule is that of its real samplers. Of loaders of the user's own it is what their
samplers say here; where those draw from the global generators, a training draws another one.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.datamodule import DataModule
from pipeline.data.sample_ids import user_dataset
from pipeline.data.sample_survey import SampleSurvey, survey, survey_stream
from pipeline.data.sampler import Batches, PositionedSampler
from pipeline.errors import UserError

SPLITS = {"train": "fit", "val": "fit", "test": "test", "predict": "predict"}
"""The sets, and the stage for which Lightning sets each of them up."""
_EPOCHS = (0, 1)
_RANKS = 4
_BATCHES = 2
_OWN_BATCHES = 8
"""Of a loader that is not torch's: how many batches are looked at."""


@dataclass(frozen=True)
class DataQuestion:
    """What is asked of each set.

    Attributes:
        world_size: Processes that an epoch is spread over.
        accumulate: Batches of each optimizer step.
        count: Samples that are looked at.
        shown: First samples that are kept.
        seed: Of `seed_everything`.
        distributes: Whether Lightning spreads loaders over the ranks.
    """

    world_size: int = 1
    accumulate: int = 1
    count: int = 1000
    shown: int = 8
    seed: int = 0
    distributes: bool = True


@dataclass(frozen=True)
class FirstBatches:
    """The first batches of a rank in an epoch: lists of indices."""

    epoch: int
    rank: int
    batches: list[list[int]]


@dataclass
class SetFacts:
    """One set.

    Attributes:
        name: Its split, and which one of several loaders.
        dataset: The class of its dataset, or else of its loader.
        samples: Its length, None where it has none.
        batch_size: Of each rank, None where that is not known.
        batches: Of each rank in an epoch, None where that is not known.
        world_size: Ranks that share it.
        order: How it is gone through, and what becomes of its tail; one sentence each.
        first_batches: What the order begins with.
        survey: What its samples consist of.
        fields_of: Whether `survey` looked at samples or at batches.
        problems: What a fit would refuse, and what cannot be read, one sentence each.
        source: The dataset, None where there is none to be seen.
    """

    name: str
    dataset: str
    samples: int | None = None
    batch_size: int | None = None
    batches: int | None = None
    world_size: int = 1
    order: list[str] = field(default_factory=list)
    first_batches: list[FirstBatches] = field(default_factory=list)
    survey: SampleSurvey = field(default_factory=SampleSurvey)
    fields_of: str = "samples"
    problems: list[str] = field(default_factory=list)
    source: Any = None


def class_path(value: Any) -> str:
    """Return the import path of an object's class."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def of_data_module(data: DataModule, split: str, asked: DataQuestion, name: str | None = None) -> SetFacts:
    """Return what a set of this project's DataModule is, with the order of its real samplers.

    Args:
        data: Has the set.
        split: `train`, say.
        asked: What is asked of it.
        name: Of the set among several of the split; None: it is the only one.
    """
    name = name or split
    dataset: Any = data.sets(split)[name]
    facts = SetFacts(name, class_path(dataset), len(dataset), source=dataset)
    facts.world_size = 1 if split == "test" else asked.world_size
    facts.survey = survey(dataset, asked.count, asked.shown, data.seed)
    if not facts.samples:
        facts.problems.append(f"data.{name}={type(dataset).__name__} is empty: it has no samples")
        return facts
    try:
        own = data.check(facts.world_size, asked.accumulate)
    except UserError as error:
        facts.problems += error.problems
        return facts
    facts.batch_size = own if split == "train" else data.eval_batch_size or own
    try:
        _add_order(facts, data, split, asked)
    except UserError as error:
        facts.problems += error.problems
    return facts


def _add_order(facts: SetFacts, data: DataModule, split: str, asked: DataQuestion) -> None:
    assert facts.batch_size is not None and facts.samples is not None  # noqa: PT018
    dataset, world_size = facts.source, facts.world_size
    if split == "predict":
        facts.batches = _shares(_shares(facts.samples, world_size), facts.batch_size)
        facts.order.append("In order, each rank a piece of it; each sample once.")
        return

    def batches(epoch: int, rank: int) -> Batches:
        if split == "train":
            return data.planned(epoch, 0, rank, world_size, asked.accumulate)
        sampler = PositionedSampler(dataset, world_size, rank, shuffle=False, tail="keep")
        return Batches(sampler, facts.batch_size or 1)

    first = batches(0, 0)
    facts.batches = len(first)
    if split == "train":
        drawn = f"drawn from data.seed={data.seed} and the epoch."
        order = data.train_order
        facts.order.append(
            f"Shuffled: a permutation {drawn}" if order is None else f"{order.describe()} All of it is {drawn}"
        )
        facts.order.append(_tail_of(first, first.sampler.size, world_size))
    else:
        facts.order.append("In order; no sample is repeated or left out.")
    for epoch in _EPOCHS if split == "train" else _EPOCHS[:1]:
        for rank in range(min(world_size, _RANKS)):
            shown = [list(each) for each in islice(batches(epoch, rank), _BATCHES)]
            facts.first_batches.append(FirstBatches(epoch, rank, shown))


def _tail_of(batches: Batches, samples: int, world_size: int) -> str:
    if batches.drop_last:
        left = samples - len(batches) * batches.batch_size * world_size
        return f"drop_last: the {left:,} samples that fill no batch are left out of each epoch."
    repeated = batches.sampler.padded(0)
    last = batches.sampler.count(0) - (len(batches) - 1) * batches.batch_size
    padded = (
        f"{repeated:,} of the epoch's first samples are repeated, for all ranks to have as many" if repeated else ""
    )
    whose = " of each rank" if world_size > 1 else ""
    short = f"the last batch{whose} has {last:,} sample{'s' * (last != 1)}" if last != batches.batch_size else ""
    text = "; ".join(filter(None, (padded, short))) or "batches and ranks go evenly into it"
    return f"{text[0].upper()}{text[1:]}."


def of_loaders(split: str, loaders: Any, asked: DataQuestion) -> list[SetFacts]:
    """Return what the sets of the user's own loaders are: of one, or of several in sequences and mappings."""
    loaders = getattr(loaders, "iterables", loaders)  # of Lightning's CombinedLoader
    if loaders is None:
        return []
    if isinstance(loaders, dict):
        return [facts for key, each in loaders.items() for facts in of_loaders(f"{split}[{key!r}]", each, asked)]
    if isinstance(loaders, (list, tuple)):
        if len(loaders) == 1:
            return of_loaders(split, loaders[0], asked)
        return [facts for at, each in enumerate(loaders) for facts in of_loaders(f"{split}[{at}]", each, asked)]
    return [_of_loader(split, loaders, asked)]


def _of_loader(name: str, loader: Any, asked: DataQuestion) -> SetFacts:
    dataset = user_dataset(loader) if isinstance(loader, DataLoader) else None
    facts = SetFacts(name, class_path(loader if dataset is None else dataset), source=dataset)
    facts.world_size = 1 if name.startswith("test") else asked.world_size
    with isolate_rng():
        if dataset is None:
            _look_at_batches(facts, loader, asked)
        elif isinstance(dataset, IterableDataset):
            facts.survey = survey_stream(dataset, asked.count, asked.shown)
            facts.batch_size, facts.batches = loader.batch_size, sized_len(loader)
            facts.order.append("A stream: it has neither a length nor indices, its order is its own.")
            if facts.world_size > 1:
                facts.order.append("All ranks read all of it, unless it asks torch.distributed which rank it is on.")
        else:
            facts.samples = len(dataset)
            facts.survey = survey(dataset, asked.count, asked.shown, asked.seed)
            _add_own_order(facts, loader, asked)
    if facts.samples == 0 or (facts.samples is None and not facts.survey.tried and not facts.survey.failures):
        facts.problems.append(f"{name}: {facts.dataset.rpartition('.')[2]} is empty")
    return facts


def _look_at_batches(facts: SetFacts, loader: Any, asked: DataQuestion) -> None:
    facts.fields_of = "batches"
    facts.survey = survey_stream(loader, _OWN_BATCHES, min(asked.shown, 1))
    facts.batches = sized_len(loader)
    facts.order.append("A loader of your own: only it knows which samples come when.")


def _add_own_order(facts: SetFacts, loader: DataLoader[Any], asked: DataQuestion) -> None:
    sampler: Any = _sampler_of(loader)
    own_batches: Any = loader.batch_sampler
    facts.batch_size = getattr(own_batches, "batch_size", None) if own_batches is not None else 1
    facts.batches = sized_len(loader)
    if not facts.samples:
        return
    spreads = asked.distributes and facts.world_size > 1 and not isinstance(sampler, DistributedSampler)
    plain = type(sampler) in (RandomSampler, SequentialSampler) and loader.batch_size is not None
    if spreads and plain and not getattr(sampler, "replacement", False):
        _add_distributed_order(facts, loader, asked.seed)
        return
    if spreads:
        facts.order.append(
            f"Lightning spreads what {type(sampler).__name__} gives over {facts.world_size} ranks; the "
            "batches below are those of one process."
        )
        facts.world_size = 1
    before = _generators()
    for epoch in _EPOCHS[:1] if isinstance(sampler, SequentialSampler) else _EPOCHS:
        for each in (sampler, own_batches):
            if callable(getattr(each, "set_epoch", None)):
                each.set_epoch(epoch)
        try:
            shown = _first_of(loader)
        except Exception as error:  # noqa: BLE001 - a sampler of anybody's
            facts.problems.append(f"{facts.name}: {type(sampler).__name__} fails: {error!r}")
            return
        facts.first_batches.append(FirstBatches(epoch, 0, shown))
    facts.order.append(_order_of(sampler, drawn=_generators() != before))


def _sampler_of(loader: DataLoader[Any]) -> Any:
    """Return what says in which order a loader goes; beside batches of one's own, `loader.sampler` is a stand-in."""
    batches = loader.batch_sampler
    if batches is None:
        return loader.sampler
    return getattr(batches, "sampler", loader.sampler) if isinstance(batches, BatchSampler) else batches


def _add_distributed_order(facts: SetFacts, loader: DataLoader[Any], seed: int) -> None:
    """What Lightning puts into the place of torch's own samplers."""
    shuffled, size = isinstance(loader.sampler, RandomSampler), loader.batch_size or 1
    dataset, world_size = loader.dataset, facts.world_size
    each = _shares(len(dataset), world_size)  # type: ignore[arg-type]
    facts.batches = each // size if loader.drop_last else _shares(each, size)
    how = f"shuffled from seed_everything={seed} and the epoch" if shuffled else "in order"
    facts.order.append(f"Spread over {world_size} ranks by torch's DistributedSampler, {how}; it repeats samples")
    facts.order[-1] += " until all ranks have as many."
    for epoch in _EPOCHS if shuffled else _EPOCHS[:1]:
        for rank in range(min(world_size, _RANKS)):
            sampler: Any = DistributedSampler(dataset, world_size, rank, shuffle=shuffled, seed=seed)
            sampler.set_epoch(epoch)
            indices = list(islice(sampler, _BATCHES * size))
            facts.first_batches.append(FirstBatches(epoch, rank, [indices[:size], indices[size:]]))


def _shares(count: int, size: int) -> int:
    """Return how many pieces of a size hold so many, the last one perhaps in part."""
    return -(-count // size)


def _first_of(loader: DataLoader[Any]) -> list[list[int]]:
    batches: Iterable[Any] = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    found = list(islice(iter(batches), _BATCHES))
    return [list(map(int, each)) if isinstance(each, Iterable) else [int(each)] for each in found]


def _order_of(sampler: Any, drawn: bool) -> str:
    if isinstance(sampler, SequentialSampler):
        return "In order."
    if drawn:
        name = type(sampler).__name__
        return f"{name} draws from the global random numbers: a training has another order than this one."
    return f"By {type(sampler).__name__}."


def _generators() -> tuple[Any, ...]:
    numpys: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), numpys[1].tobytes(), numpys[2:], random.getstate()
