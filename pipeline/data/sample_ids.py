"""Which samples are in a batch: an index and a digest of the content, attached where the dataset hands a sample out.

The identity travels with the sample through collate function, loader workers and whatever wraps the loader.
"""

import copy
import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, IterableDataset, default_collate

from pipeline.data.batch_rows import described, given, holds, rows_of_parts
from pipeline.data.content_digest import digest, fed, row_digests
from pipeline.data.parts import own_fingerprint
from pipeline.data.permutation import Permutation
from pipeline.data.sample_seeding import fetch_samples
from pipeline.data.seeded import SeededCollate, SeededDataset, SeededLoader
from pipeline.data.whole_batch import rows
from pipeline.errors import ProofFailed

_FINGERPRINTED = 64


@dataclass(frozen=True)
class Sample:
    """A sample with its identity, on its way from the dataset to the collate function."""

    index: int
    digest: bytes
    canonical: bool
    item: Any


class IdentifiedBatch(NamedTuple):
    """A batch with the identities of its samples, on its way from the collate function to the trainer.

    Attributes:
        indices: (n,) int64, of the samples that are in the batch, in its order.
        digests: n digests of 32 bytes; empty where only indices are asked for.
        canonical: Whether each digest is of content in canonical form.
        batch: What the model sees.
        withheld: Of the samples that the collate function left out.
        unknown: Why it cannot be told which samples are in the batch; `indices` are then those that went into it.
        rows: Those of the batch's parts, where hooks may still change it.
    """

    indices: npt.NDArray[np.int64]
    digests: list[bytes]
    canonical: list[bool]
    batch: Any
    withheld: npt.NDArray[np.int64] = np.empty(0, np.int64)
    unknown: str | None = None
    rows: list[int] | None = None

    @staticmethod
    def of(samples: Sequence[Sample], batch: Any) -> "IdentifiedBatch":
        """Return a batch that was made of some samples."""
        return IdentifiedBatch(
            np.array([sample.index for sample in samples], np.int64),
            [sample.digest for sample in samples],
            [sample.canonical for sample in samples],
            batch,
        )

    def of_those(self, positions: list[int]) -> "IdentifiedBatch":
        """Return the same batch, which holds only some of the samples, or holds them in another order."""
        if positions == list(range(len(self.indices))):
            return self
        return self._replace(
            indices=self.indices[positions],
            digests=[self.digests[at] for at in positions if self.digests],
            canonical=[self.canonical[at] for at in positions if self.canonical],
            withheld=np.delete(self.indices, positions),
        )

    def transferred(self, batch: Any) -> "IdentifiedBatch":
        """Return what is known once hooks have moved, and maybe changed, the batch."""
        if batch is None or self.rows is None or self.unknown is not None:
            return self if batch is not None else self._replace(batch=None)
        samples = len(self.indices)
        if rows_of_parts(batch) == self.rows or holds(batch, samples):
            return self
        return self._replace(unknown=f"a batch transfer hook made {described(batch)} of {samples} samples")


class _IdentifiedDataset:
    """Hands out each sample with its identity."""

    def __init__(self, dataset: Any, digests: bool) -> None:
        self.dataset = dataset
        self.digests = digests

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self._identify(index, *fetch_samples(self.dataset, [index]))

    def __getitems__(self, indices: list[int]) -> list[Sample] | IdentifiedBatch:
        if not callable(getattr(self.dataset, "__getitems__", None)):
            return [self[index] for index in indices]
        items = self.dataset.__getitems__(indices)
        if isinstance(self.dataset, SeededDataset) and (not self.digests or not isinstance(items, list)):
            # SeededDataset has compared the numbers of samples; a list is still to be collated.
            if not self.digests:
                return IdentifiedBatch(np.array(indices, np.int64), [], [], items)
            if (digests := row_digests(items)) is not None:
                return IdentifiedBatch(np.array(indices, np.int64), digests, [True] * len(digests), items)
            return IdentifiedBatch.of(list(map(self._identify, indices, rows(items))), items)
        if len(items) != len(indices):
            raise ProofFailed(
                f"{type(self.dataset).__name__}.__getitems__ returned {len(items)} samples for {len(indices)} indices: "
                "which of them are missing or double cannot be told"
            )
        return list(map(self._identify, indices, items))

    def _identify(self, index: int, item: Any) -> Sample:
        return Sample(int(index), *digest(item), item)


class _IdentifiedCollate:
    """Collates the samples as the user's function does, and keeps their identities beside."""

    def __init__(self, collate: Any, ordered: bool) -> None:
        self.collate = collate
        self.ordered = ordered
        self.own = collate.collate if isinstance(collate, SeededCollate) else collate
        """The user's, or torch's, which makes a row of each sample."""

    def __call__(self, samples: Any) -> IdentifiedBatch:
        if isinstance(samples, IdentifiedBatch):
            # A whole batch needs no collating, but a function of the user's takes samples.
            apart = self.own is not default_collate and not isinstance(samples.batch, list)
            items = rows(samples.batch) if apart else samples.batch
            return self._collated(samples, items) if isinstance(items, list) else samples
        if isinstance(samples, Sample):  # a loader with batch_size=None: one sample is one batch
            return IdentifiedBatch.of([samples], self.collate(samples.item))
        return self._collated(IdentifiedBatch.of(samples, None), [sample.item for sample in samples])

    def _collated(self, known: IdentifiedBatch, items: list[Any]) -> IdentifiedBatch:
        before = None if self.own is default_collate else list(items)
        batch = self.collate(items)
        known = known._replace(batch=batch)
        if batch is None or before is None:
            return known
        positions, unknown = given(batch, before, items, self.ordered)
        name = getattr(self.own, "__qualname__", type(self.own).__name__)
        return known._replace(unknown=f"{name} made {unknown}") if unknown else known.of_those(positions)


class StripSampleIds:
    """The outermost iterable around a loader: takes the identities off, so that the model sees its own batches.

    Between here and the model's step batches stay in order: only the trainer's fetcher, a queue, lies between.
    Everything else that is asked of it is the loader's own.

    Args:
        loader: Whose batches carry identities.
        in_flight: Takes them.
        transfers: Whether hooks of the user's may change a batch on its way to the step.
    """

    def __init__(self, loader: Any, in_flight: deque[IdentifiedBatch], transfers: bool = False) -> None:
        self.loader = loader
        self.in_flight = in_flight
        self.transfers = transfers

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        self.in_flight.clear()
        for identified in self.loader:
            if not isinstance(identified, IdentifiedBatch):
                raise ProofFailed(
                    f"the loader {type(self.loader).__name__} yields a {type(identified).__name__} that its collate "
                    "function did not make: which samples are in it cannot be told"
                )
            # Whether there is a batch, but not the batch: it must not be held longer than the trainer holds it.
            batch = identified.batch
            rows = rows_of_parts(batch) if self.transfers else None
            self.in_flight.append(identified._replace(batch=None if batch is None else True, rows=rows))
            yield batch

    def __getattr__(self, name: str) -> Any:
        # Copying asks for attributes before there is a loader to ask.
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)


def user_dataset(loader: Any) -> Any:
    """Return the user's own dataset of a loader; None where there is none to be seen."""
    dataset = getattr(loader, "dataset", None)
    return dataset.dataset if isinstance(dataset, SeededDataset) else dataset


def is_indexed(loader: Any) -> bool:
    """Return whether each sample that a loader gives has an index: a DataLoader's over a map-style dataset."""
    dataset = user_dataset(loader)
    return isinstance(loader, DataLoader) and not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__")


def makes_own_batches(loader: DataLoader[Any]) -> bool:
    """Return whether a loader's class goes through its batches in a way of its own, which may expect the user's."""
    return type(loader).__iter__ not in (DataLoader.__iter__, SeededLoader.__iter__)


def identified(loader: DataLoader[Any], digests: bool = True, ordered: bool = True) -> DataLoader[Any]:
    """The same loader, of the same class and with the same sampler and workers, whose samples have identities.

    Args:
        loader: Of the user's dataset.
        digests: Whether their content is digested.
        ordered: Whether it matters which row of a batch is whose.
    """
    twin = copy.copy(loader)
    # A DataLoader forbids replacing its dataset by attribute, lest its sampler no longer fit; this one has the same
    # length and order.
    twin.__dict__.update(
        dataset=_IdentifiedDataset(loader.dataset, digests), collate_fn=_IdentifiedCollate(loader.collate_fn, ordered)
    )
    return twin


def fingerprint(dataset: Any) -> tuple[str, str]:
    """Return what tells one dataset from another, and how it was found.

    Returns:
        (kind, fingerprint). `own`: the dataset's attribute or method `fingerprint`. `samples`: a digest of its class
        path, its length and 64 samples chosen by a fixed key; `pickled samples` where a sample holds an object without
        a canonical form, see `pipeline.data.content_digest`; `length` without any sample, where
        they are others each time, for the dataset draws from a generator of its own.
    """
    own = own_fingerprint(dataset)
    if own is not None:
        return "own", own
    size = len(dataset)
    name = f"{type(dataset).__module__}.{type(dataset).__qualname__} {size};"
    chosen = Permutation(size, 0, 0)(np.arange(min(size, _FINGERPRINTED))).tolist() if size else []
    # A thread of the user's may draw from a global generator meanwhile, once in a while.
    found = [_digest_of(dataset, name, chosen) for _ in range(2)]
    if found[0] != found[1]:
        found.append(_digest_of(dataset, name, chosen))
    (content, canonical), times = Counter(found).most_common(1)[0]
    if times == 1:
        return "length", f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    return "samples" if canonical else "pickled samples", f"sha256:{content}"


def _digest_of(dataset: Any, name: str, indices: list[int]) -> tuple[str, bool]:
    hasher = hashlib.sha256(name.encode())
    fetched = SeededDataset(dataset, 0).__getitems__(indices) if indices else []
    all_canonical = True
    for row in fetched if isinstance(fetched, list) else rows(fetched):
        hasher, canonical = fed(hasher, row)
        all_canonical &= canonical
    return hasher.hexdigest(), all_canonical
