"""Evaluation that proves itself: every test sample is scored once, and a receipt says so.

The identity of a sample (its index and the digest of its content) is attached where the dataset hands the sample out.
It travels with the batch through collate function, loader workers and whatever wraps the loader, and is counted after
`test_step` has used the batch. The sampler's own formula proves nothing and is never asked.
"""

import csv
import hashlib
import io
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.sample_ids import IdentifiedBatch, StripSampleIds, identified
from pipeline.data.seeded import SeededDataset
from pipeline.errors import ProofFailed, UserError
from pipeline.run.run_dir import RECEIPT, SCORES, RunDir, now

log = logging.getLogger(__name__)

_LISTED = 100


class Evaluation(pl.Callback):
    """Counts what `test_step` used, and writes `evaluation/receipt.json` and `evaluation/scores.csv`.

    Args:
        run: Where the receipt goes.
        checkpoint: The URL of what is evaluated.
        sha256: Its digest, `sha256:<hex>`.
    """

    def __init__(self, run: RunDir, checkpoint: str, sha256: str) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.receipt: dict[str, Any] = {}
        self._in_flight: deque[IdentifiedBatch] = deque()
        self._scores: list[tuple[list[int], dict[str, Any]]] = []

    def watch(self, trainer: pl.Trainer, source: Any) -> None:
        """Have the test loader of `source` (a data module, or a model that brings its own) carry identities.

        Raises:
            UserError: At once, or when the loader is asked for: it could leave a sample out or repeat one.
        """
        if trainer.limit_test_batches == 0:  # the trainer would not even ask for the loader
            raise UserError("trainer.limit_test_batches=0 leaves every sample out: remove the limit")
        original = source.test_dataloader

        def test_dataloader() -> StripSampleIds:
            loader = _only(original())
            problems = _refusals(trainer, loader)
            if problems:
                raise UserError(*problems)
            dataset = _dataset_of(loader)
            self._dataset = f"{type(dataset).__module__}.{type(dataset).__qualname__}"
            self._count = np.zeros(len(dataset), np.uint32)
            self._digests = np.zeros((len(dataset), 32), np.uint8)
            self._canonical = True
            return StripSampleIds(identified(loader), self._in_flight)

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
        indices = identity.indices.tolist()
        for index, digest, canonical in zip(indices, identity.digests, identity.canonical, strict=True):
            self._digests[index] = np.frombuffer(digest, np.uint8)
            self._canonical &= canonical
        columns = {}
        if isinstance(outputs, Mapping):
            for name, value in outputs.items():
                if isinstance(value, torch.Tensor) and value.shape == (len(indices),):
                    columns[str(name)] = value.detach().cpu().tolist()
        self._scores.append((indices, columns))

    def conclude(self, trainer: pl.Trainer) -> None:
        """Write scores and receipt, and judge.

        Raises:
            ProofFailed: A sample was missing or scored more than once. The receipt is there all the same.
        """
        missing = np.flatnonzero(self._count == 0)
        duplicate = np.flatnonzero(self._count > 1)
        complete = not len(missing) and not len(duplicate)
        fingerprint = f"sha256:{hashlib.sha256(self._digests.tobytes()).hexdigest()}"
        self.receipt = {
            "checkpoint": self.checkpoint,
            "checkpoint_sha256": self.sha256,
            "dataset": self._dataset,
            "dataset_fingerprint": fingerprint if complete else None,
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
                f"the evaluation of {self.checkpoint} is incomplete: of {len(self._count)} test samples "
                f"{len(missing)} were not scored (first: {missing[:5].tolist()}) and {len(duplicate)} more than once "
                f"(first: {duplicate[:5].tolist()}). Something between the dataset and test_step (a collate function, "
                f"a loader wrapper, a loader worker) drops, doubles or swaps samples. Details: {self.run}/{RECEIPT}"
            )

    def _table(self) -> str:
        names = list(dict.fromkeys(name for _, columns in self._scores for name in columns))
        rows: list[tuple[Any, ...]] = [
            (index, *(columns[name][at] if name in columns else "" for name in names))
            for indices, columns in self._scores
            for at, index in enumerate(indices)
        ]
        rows.sort(key=lambda row: int(row[0]))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("index", *names))
        writer.writerows(rows)
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


def _dataset_of(loader: DataLoader[Any]) -> Any:
    """The user's own dataset."""
    return loader.dataset.dataset if isinstance(loader.dataset, SeededDataset) else loader.dataset


def _refusals(trainer: pl.Trainer, loader: DataLoader[Any]) -> list[str]:
    """Why this loader could leave a sample out or repeat one, known before the first batch."""
    dataset = _dataset_of(loader)
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
    sampler: Any = loader.sampler
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
