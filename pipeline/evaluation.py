"""Evaluation that proves itself: every test sample is scored once, and a receipt says so.

The identity of a sample (its index and the digest of its content) is attached where the dataset hands the sample out.
It travels with the batch through collate function, loader workers and whatever wraps the loader, and is counted after
`test_step` has used the batch. The sampler's own formula proves nothing and is never asked.
"""

import copy
import csv
import hashlib
import io
import logging
import math
import pickle
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from pipeline.checkpoint.record import CommitRecord
from pipeline.errors import UserError
from pipeline.run_dir import RECEIPT, SCORES, RunDir, now

log = logging.getLogger(__name__)

_LISTED = 100


class ProofFailed(Exception):
    """The evaluation ran, but its samples were not scored once each: its numbers are worth nothing."""


@dataclass(frozen=True)
class Checkpoint:
    """What is evaluated: the URL of a checkpoint and its digest, `sha256:<hex>`, where a commit record tells it."""

    url: str
    sha256: str | None

    @staticmethod
    def of(run: RunDir, record: CommitRecord) -> "Checkpoint":
        """The checkpoint of a commit record."""
        return Checkpoint(run.url_of(record.name), record.sha256)


class Evaluation(pl.Callback):
    """Counts what `test_step` used, and writes `evaluation/receipt.json` and `evaluation/scores.csv`.

    Args:
        run: Where the receipt goes.
        checkpoint: What is evaluated.
    """

    def __init__(self, run: RunDir, checkpoint: Checkpoint) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.receipt: dict[str, Any] = {}
        self._in_flight: deque[_Batch] = deque()
        self._scores: list[tuple[list[int], dict[str, Any]]] = []

    def watch(self, trainer: pl.Trainer, source: Any) -> None:
        """Have the test loader of `source` (a data module, or a model that brings its own) carry identities.

        Raises:
            UserError: Once the loader is asked for: it could leave a sample out or repeat one.
        """
        original = source.test_dataloader

        def test_dataloader() -> "_Watched":
            loader = _only(original())
            problems = _refusals(trainer, loader)
            if problems:
                raise UserError(*problems)
            dataset = loader.dataset
            self._dataset = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
            self._count = np.zeros(len(dataset), np.uint32)
            self._digests = np.zeros((len(dataset), 32), np.uint8)
            self._canonical = True
            return _Watched(_identified(loader), self._in_flight)

        source.test_dataloader = test_dataloader

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the samples of a batch, now that `test_step` has used them."""
        identity = self._in_flight.popleft()
        # Indices may come twice within one batch, which plain indexed addition would count once.
        np.add.at(self._count, identity.indices, 1)
        for index, digest, canonical in zip(identity.indices, identity.digests, identity.canonical, strict=True):
            self._digests[index] = np.frombuffer(digest, np.uint8)
            self._canonical &= canonical
        columns = {}
        if isinstance(outputs, Mapping):
            for name, value in outputs.items():
                if isinstance(value, torch.Tensor) and value.shape == (len(identity.indices),):
                    columns[str(name)] = value.detach().cpu().tolist()
        self._scores.append((identity.indices, columns))

    def conclude(self, trainer: pl.Trainer) -> None:
        """Write scores and receipt, and judge.

        Raises:
            ProofFailed: A sample was missing or scored more than once. The receipt is there all the same.
        """
        missing = np.flatnonzero(self._count == 0)
        duplicate = np.flatnonzero(self._count > 1)
        complete = not len(missing) and not len(duplicate)
        self.receipt = {
            "checkpoint": self.checkpoint.url,
            "checkpoint_sha256": self.checkpoint.sha256,
            "dataset": self._dataset,
            "dataset_fingerprint": f"sha256:{hashlib.sha256(self._digests.tobytes()).hexdigest()}" if complete else None,
            "fingerprint_kind": "content" if self._canonical else "pickled content",
            "samples_expected": len(self._count),
            "samples_scored": int(np.count_nonzero(self._count)),
            "duplicates": int((self._count[duplicate] - 1).sum()),
            "missing": len(missing),
            "duplicate_indices": duplicate[:_LISTED].tolist(),
            "missing_indices": missing[:_LISTED].tolist(),
            "devices": trainer.num_devices,
            "metrics": {
                str(name): float(value) if math.isfinite(value) else None
                for name, value in trainer.callback_metrics.items()
            },
            "seconds": round(time.monotonic() - self._started, 3),
            "created": now(),
        }
        self.run.write(SCORES, self._table().encode())
        self.run.write_json(RECEIPT, self.receipt)
        if not complete:
            raise ProofFailed(
                f"the evaluation of {self.checkpoint.url} proves nothing: of {len(self._count)} test samples "
                f"{len(missing)} were not scored (first: {missing[:5].tolist()}) and {len(duplicate)} more than once "
                f"(first: {duplicate[:5].tolist()}). Something between the dataset and test_step (a collate function, "
                f"a loader wrapper, a loader worker) drops, doubles or swaps samples. Details: {self.run}/{RECEIPT}"
            )

    def _table(self) -> str:
        names = list(dict.fromkeys(name for _, columns in self._scores for name in columns))
        rows = [
            (index, *(columns[name][at] if name in columns else "" for name in names))
            for indices, columns in self._scores
            for at, index in enumerate(indices)
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("index", *names))
        writer.writerows(sorted(rows, key=lambda row: row[0]))
        return text.getvalue()


def _only(loaders: Any) -> DataLoader[Any]:
    loader = loaders[0] if isinstance(loaders, (list, tuple)) and len(loaders) == 1 else loaders
    if not isinstance(loader, DataLoader):
        found = f"{len(loader)} loaders" if isinstance(loader, (list, tuple, dict)) else f"a {type(loader).__name__}"
        raise UserError(
            f"test_dataloader() returns {found}: a receipt covers one torch DataLoader (a subclass is fine) over a "
            "map-style dataset, for only there each sample has an index that can be counted"
        )
    return loader


def _refusals(trainer: pl.Trainer, loader: DataLoader[Any]) -> list[str]:
    """Why this loader could leave a sample out or repeat one, known before the first batch."""
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return [
            f"the test set {type(dataset).__name__} has no length: whether each sample was scored cannot be proven. "
            "Use a map-style dataset, with __len__ and __getitem__"
        ]
    problems = []
    samples, batches = len(dataset), len(loader)
    if samples == 0:
        problems.append(f"the test set {type(dataset).__name__} is empty")
    limit = trainer.limit_test_batches
    if (isinstance(limit, float) and limit < 1.0) or (isinstance(limit, int) and limit < batches):
        problems.append(
            f"trainer.limit_test_batches={limit} leaves samples out: the test set has {batches} batches. Remove the "
            "limit, or try things out with --trainer.fast_dev_run=true, which writes no receipt"
        )
    if loader.drop_last and loader.batch_size and samples % loader.batch_size:
        problems.append(
            f"drop_last=True leaves {samples % loader.batch_size} of {samples} test samples out at "
            f"batch_size={loader.batch_size}: set drop_last=False in test_dataloader()"
        )
    sampler = loader.sampler
    once = (
        type(sampler) is SequentialSampler
        or (type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == samples)
        or (type(sampler) is DistributedSampler and sampler.num_replicas == 1)
    )
    if not once or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        name = type(sampler if not once else loader.batch_sampler).__name__
        problems.append(
            f"the test loader's sampler {name} could repeat samples or leave some out: use a plain "
            "DataLoader(dataset, batch_size=..., shuffle=False)"
        )
    return problems


class _Sample(NamedTuple):
    """A sample with its identity, on its way from the dataset to the collate function."""

    index: int
    digest: bytes
    canonical: bool
    item: Any


class _Batch(NamedTuple):
    """A batch with the identities of its samples, on its way from the collate function to the trainer."""

    indices: list[int]
    digests: list[bytes]
    canonical: list[bool]
    batch: Any


class _IdentifiedDataset:
    """Hands out each sample with its identity."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> _Sample:
        return _identify(index, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[_Sample]:
        if not getattr(self.dataset, "__getitems__", None):
            return [self[index] for index in indices]
        items = self.dataset.__getitems__(indices)
        if len(items) != len(indices):
            raise ProofFailed(
                f"{type(self.dataset).__name__}.__getitems__ returned {len(items)} samples for {len(indices)} indices: "
                "which of them are missing or double cannot be told"
            )
        return [_identify(index, item) for index, item in zip(indices, items, strict=True)]


class _IdentifiedCollate:
    """Collates the samples as the user's function does, and keeps their identities beside."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> _Batch:
        if isinstance(samples, _Sample):  # a loader with batch_size=None: one sample is one batch
            return _Batch([samples.index], [samples.digest], [samples.canonical], self.collate(samples.item))
        return _Batch(
            [sample.index for sample in samples],
            [sample.digest for sample in samples],
            [sample.canonical for sample in samples],
            self.collate([sample.item for sample in samples]),
        )


class _Watched:
    """The outermost iterable around a loader: takes the identities off, so that the model sees its own batches.

    Between here and `test_step` batches stay in order: only the trainer's fetcher, a queue, lies between.
    """

    def __init__(self, loader: DataLoader[Any], in_flight: deque[_Batch]) -> None:
        self.loader = loader
        self.in_flight = in_flight

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for identified in self.loader:
            if not isinstance(identified, _Batch):
                raise ProofFailed(
                    f"the test loader {type(self.loader).__name__} yields a {type(identified).__name__} that its "
                    "collate function did not make: which samples are in it cannot be told"
                )
            self.in_flight.append(identified._replace(batch=None))
            yield identified.batch


def _identified(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The same loader, of the same class and with the same sampler and workers, whose samples have identities."""
    twin = copy.copy(loader)
    # A DataLoader forbids replacing its dataset by attribute, lest its sampler no longer fit; this one has the same
    # length and order.
    twin.__dict__.update(dataset=_IdentifiedDataset(loader.dataset), collate_fn=_IdentifiedCollate(loader.collate_fn))
    return twin


def _identify(index: int, item: Any) -> _Sample:
    hasher = hashlib.sha256()
    canonical = _hash(hasher, item)
    return _Sample(int(index), hasher.digest(), canonical, item)


def _hash(hasher: Any, value: Any) -> bool:
    """Feed a sample's content into a hash, each value with its type and extent.

    Returns:
        False where a part is of a type without a canonical form and was pickled: another Python may hash it otherwise.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        hasher.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        hasher.update(value.contiguous().reshape(-1).view(torch.uint8).numpy() if value.numel() else b"")
        return True
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind != "O":
        array = np.ascontiguousarray(value)
        hasher.update(f"array {array.dtype.str} {array.shape}".encode())
        hasher.update(array.tobytes())
        return True
    if value is None or isinstance(value, (bool, int, float, complex)):
        hasher.update(f"{type(value).__name__} {value!r};".encode())
        return True
    if isinstance(value, (str, bytes)):
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        hasher.update(f"{type(value).__name__} {len(data)};".encode())
        hasher.update(data)
        return True
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        hasher.update(f"mapping {len(value)};".encode())
        parts = [part for key in sorted(value, key=repr) for part in (key, value[key])]
        return all([_hash(hasher, part) for part in parts])
    if isinstance(value, (list, tuple)):
        hasher.update(f"sequence {len(value)};".encode())
        return all([_hash(hasher, part) for part in value])
    data = pickle.dumps(value, protocol=5)
    hasher.update(f"pickle {len(data)};".encode())
    hasher.update(data)
    return False
