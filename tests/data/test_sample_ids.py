"""Each sample carries its index and a digest of its content through collate function, workers and wrappers."""

import copy
from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.data.content_digest import digest
from pipeline.data.sample_ids import IdentifiedBatch, StripSampleIds, fingerprint, identified
from pipeline.errors import ProofFailed
from tests.support.models import Indexed, OwnGenerator, Rows


def loaded(loader: Any) -> tuple[list[Any], list[IdentifiedBatch]]:
    """The batches that the model sees, and what is known of the samples in each."""
    in_flight: deque[IdentifiedBatch] = deque()
    seen, known = [], []
    for batch in StripSampleIds(identified(loader), in_flight):
        seen.append(batch)
        known.append(in_flight.popleft())
    return seen, known


@pytest.mark.parametrize("batch_size", [3, None])
def test_a_batch_is_the_loaders_own_and_its_samples_are_known_beside_it(batch_size: int | None) -> None:
    rows, order = Rows(7), [6, 0, 3, 3, 5]
    loader: DataLoader[Any] = DataLoader(rows, batch_size=batch_size, sampler=order)
    seen, known = loaded(loader)
    for (x, y), (own_x, own_y) in zip(seen, loader, strict=True):
        assert torch.equal(x, own_x)
        assert torch.equal(y, own_y)
    assert [int(index) for batch in known for index in batch.indices] == order
    digests = [digest for batch in known for digest in batch.digests]
    assert digests == [digest(rows[index])[0] for index in order]
    assert {batch.batch for batch in known} == {True}, "the batch itself is not held"


def test_a_batch_of_none_is_known_as_one() -> None:
    loader: DataLoader[Any] = DataLoader(Rows(2), collate_fn=lambda samples: None)
    seen, known = loaded(loader)
    assert seen == [None, None]
    assert [batch.batch for batch in known] == [None, None]
    assert [batch.indices.tolist() for batch in known] == [[0], [1]]


def test_all_else_is_asked_of_the_loader() -> None:
    loader: DataLoader[Any] = DataLoader(Rows(7), batch_size=3)
    stripped = StripSampleIds(loader, deque())
    assert len(stripped) == 3
    assert stripped.batch_size == 3
    assert copy.copy(stripped).loader is loader
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = stripped.nothing_like_that


def test_a_new_pass_forgets_what_the_last_one_has_left() -> None:
    in_flight: deque[IdentifiedBatch] = deque()
    stripped = StripSampleIds(identified(DataLoader(Rows(4))), in_flight)
    next(iter(stripped))
    list(stripped)
    assert [batch.indices.tolist() for batch in in_flight] == [[0], [1], [2], [3]]


def test_a_batch_without_identities_proves_nothing() -> None:
    with pytest.raises(ProofFailed, match="the loader DataLoader yields a list that its collate function did not make"):
        list(StripSampleIds(DataLoader(Rows(2)), deque()))


def test_a_fingerprint_tells_content_and_length_and_says_how_it_was_found() -> None:
    class Named(Rows):
        fingerprint = "release 3"

    class Pickled(Rows):
        def __getitem__(self, index: int) -> Any:
            return Path(f"{index}.png")

    assert fingerprint(Indexed(9)) == fingerprint(Indexed(9))
    assert len({fingerprint(each)[1] for each in (Indexed(9), Indexed(10), Indexed(9, shift=0.5), Rows(9))}) == 4
    assert fingerprint(Named()) == ("own", "release 3")
    assert [fingerprint(each)[0] for each in (Rows(5), Pickled(5), OwnGenerator(5))] == [
        *("samples", "pickled samples", "length"),
    ]
