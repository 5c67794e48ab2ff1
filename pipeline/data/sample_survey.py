"""A look at some samples of a dataset, read as a training reads them: nothing else is changed by it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pipeline.data.sample_fields import SampleFields, spread
from pipeline.data.seeded import SeededDataset
from pipeline.data.whole_batch import rows

_GIVES_UP = 8
"""Samples that could not be read, after which no other one is tried."""


@dataclass
class SampleSurvey:
    """What some samples consist of.

    Attributes:
        fields: Of those that were read.
        tried: How many were asked for.
        first: The first samples of the set, by index; those of a stream by position.
        failures: What reading raised, by index.
        whole: Whether these are all samples of the set.
    """

    fields: SampleFields = field(default_factory=SampleFields)
    tried: int = 0
    first: dict[int, Any] = field(default_factory=dict)
    failures: dict[int, Exception] = field(default_factory=dict)
    whole: bool = False


def survey(dataset: Any, count: int, shown: int, seed: int = 0) -> SampleSurvey:
    """Read samples that are spread evenly over a map-style dataset, and its first ones.

    Random numbers that the dataset draws are those of epoch 0; the global generators stay as they are.

    Args:
        dataset: With `__len__` and `__getitem__`.
        count: How many samples are looked at, at most.
        shown: How many of the first ones are kept.
        seed: The run's.
    """
    size, found, reader = len(dataset), SampleSurvey(), SeededDataset(dataset, seed)
    chosen = set(spread(size, count))
    found.whole = len(chosen) == size
    for index in sorted(chosen | set(range(min(size, shown)))):
        if len(found.failures) == _GIVES_UP:
            break
        found.tried += 1
        try:
            fetched = reader.__getitems__([index])
            sample = (fetched if isinstance(fetched, list) else rows(fetched))[0]
            if index in chosen:
                found.fields.add(sample)
        except Exception as error:  # noqa: BLE001 - a dataset of anybody's: which sample fails is what is asked
            found.failures[index] = error
            continue
        if index < shown:
            found.first[index] = sample
    return found


def survey_stream(stream: Iterable[Any], count: int, shown: int) -> SampleSurvey:
    """Read the first samples of a stream, which has no index. The caller takes care of random numbers."""
    found = SampleSurvey()
    iterator: Iterator[Any] = iter(())
    try:
        iterator = iter(stream)
        for position, sample in enumerate(islice(iterator, count)):
            found.fields.add(sample)
            found.tried += 1
            if position < shown:
                found.first[position] = sample
        found.whole = found.tried < count
    except Exception as error:  # noqa: BLE001 - as above
        found.failures[found.tried] = error
    finally:
        if callable(close := getattr(iterator, "close", None)):
            close()
    return found
