"""Evaluation that proves itself: every test sample is scored once, and a receipt says so.

The identity of a sample (its index and the digest of its content) is attached where the dataset hands the sample out.
It travels with the batch through collate function, loader workers and whatever wraps the loader, and is counted after
`test_step` has used the batch. The sampler's own formula proves nothing and is never asked.

What cannot be proven is refused, or, where the user asks for it, evaluated with a receipt that says so.
"""

import hashlib
import logging
import math
import time
from collections import deque
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from pipeline.data.ledger import changes_batches
from pipeline.data.sample_ids import (
    IdentifiedBatch,
    StripSampleIds,
    identified,
    is_indexed,
    makes_own_batches,
    user_dataset,
)
from pipeline.errors import ProofFailed, UserError
from pipeline.run.run_dir import OUTPUTS, RECEIPT, RunDir, now
from pipeline.training.results.pictures import clear_pictures, write_pictures
from pipeline.training.results.scores import Scores

log = logging.getLogger(__name__)

_LISTED = 100
UNPROVEN = "To evaluate all the same, with a receipt that says what it does not prove: --unproven true"
"""What a refusal ends with."""


class _Counts:
    """How often each sample was scored, and what it held.

    Args:
        samples: Of the test set.
    """

    def __init__(self, samples: int) -> None:
        self.times = np.zeros(samples, np.uint32)
        self._digests = np.zeros((samples, 32), np.uint8)
        self._canonical = True

    def add(self, identity: IdentifiedBatch) -> None:
        # Indices may come twice within one batch, which plain indexed addition would count once.
        np.add.at(self.times, identity.indices, np.uint32(1))
        if identity.digests:
            self._digests[identity.indices] = np.frombuffer(b"".join(identity.digests), np.uint8).reshape(-1, 32)
            self._canonical &= all(identity.canonical)

    def receipt(self) -> dict[str, Any]:
        """Return what was counted, once: the digests, 32 bytes a sample, are no longer kept."""
        missing, duplicate = np.flatnonzero(self.times == 0), np.flatnonzero(self.times > 1)
        fingerprint = f"sha256:{hashlib.sha256(self._digests.reshape(-1).data).hexdigest()}"
        del self._digests
        complete = not len(missing) and not len(duplicate)
        return {
            "dataset_fingerprint": fingerprint if complete else None,
            "fingerprint_kind": "content" if self._canonical else "pickled content",
            "samples_expected": len(self.times),
            "samples_scored": int(np.count_nonzero(self.times)),
            "duplicates": int((self.times[duplicate] - 1).sum()),
            "missing": len(missing),
            "duplicate_indices": duplicate[:_LISTED].tolist(),
            "missing_indices": missing[:_LISTED].tolist(),
        }


_UNKNOWN: dict[str, Any] = dict.fromkeys(
    (
        *("dataset_fingerprint", "fingerprint_kind", "samples_expected", "samples_scored", "duplicates", "missing"),
        *("duplicate_indices", "missing_indices"),
    )
)


class Evaluation(pl.Callback):
    """Counts what `test_step` used, and writes `evaluation/receipt.json` and `evaluation/scores.csv`.

    Args:
        run: Where the receipt goes.
        checkpoint: The URL of what is evaluated.
        sha256: Its digest, `sha256:<hex>`.
        unproven: Whether what cannot be proven is evaluated all the same.
        reasons: What cannot be proven, as far as that is known before.
    """

    def __init__(
        self, run: RunDir, checkpoint: str, sha256: str, unproven: bool = False, reasons: tuple[str, ...] = ()
    ) -> None:
        self.run = run
        self.checkpoint = checkpoint
        self.sha256 = sha256
        self.receipt: dict[str, Any] = {}
        self._unproven = unproven
        self._reasons = list(reasons)
        self._in_flight: deque[IdentifiedBatch] = deque()
        self._counts: _Counts | None = None
        self._identifies = False
        self._scored: int | None = 0
        self._samples: Any = None

    def watch(self, trainer: pl.Trainer, source: Any) -> None:
        """Have the test loader of `source` (a data module, or a model that brings its own) carry identities.

        Raises:
            UserError: At once, or when the loader is asked for: it could leave a sample out or repeat one.
        """
        if trainer.limit_test_batches == 0:  # the trainer would not even ask for the loader
            raise UserError("trainer.limit_test_batches=0 leaves every sample out: remove the limit")
        original = source.test_dataloader

        def test_dataloader() -> Any:
            loaders = original()
            loader = loaders[0] if isinstance(loaders, (list, tuple)) and len(loaders) == 1 else loaders
            refusals = _refusals(trainer, loader)
            if refusals and not self._unproven:
                raise UserError(*(f"{each}. {UNPROVEN}" for each in refusals))
            indexed = is_indexed(loader)
            if indexed and self._unproven and makes_own_batches(loader):  # what is not asked to prove must not hinder
                indexed = False
                refusals.append(f"the loader {type(loader).__name__} makes its batches in a way of its own")
            self._reasons += refusals
            self._dataset = ", ".join(dict.fromkeys(map(_name_of, _each(loader))))
            if not indexed:
                self._scores = Scores(self.run)
                return loaders
            self._samples = user_dataset(loader)
            samples = len(self._samples)
            self._counts, self._scores = _Counts(samples), Scores(self.run, samples)
            self._identifies = True
            return StripSampleIds(identified(loader), self._in_flight, changes_batches(trainer))

        source.test_dataloader = test_dataloader

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._scores.clear()
        clear_pictures(self.run)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the samples of a batch, now that `test_step` has used them.

        Raises:
            UserError: Which samples that are cannot be told.
        """
        indices: npt.NDArray[np.int64] | None = None
        if self._identifies:
            identity = self._in_flight.popleft().transferred(batch)
            if identity.unknown is not None:
                self._cannot_tell(identity.unknown)
            elif self._counts is not None:
                known = identity if batch is not None else identity.of_those([])
                self._counts.add(known)
                indices = known.indices
        count = _size_of(batch) if indices is None else len(indices)
        self._scored = None if count is None or self._scored is None else self._scored + count
        self._scores.add(indices, count or 0, outputs)

    def _cannot_tell(self, reason: str) -> None:
        """Count no samples any more."""
        problem = f"which test samples are scored cannot be told: {reason}"
        if not self._unproven:
            raise UserError(f"{problem}. {UNPROVEN}")
        if self._counts is not None:
            self._counts = self._scored = None
            self._reasons.append(problem)
            self._scores.forget_indices()

    def conclude(self, trainer: pl.Trainer) -> None:
        """Write scores and receipt, and judge.

        Raises:
            ProofFailed: A sample was missing or scored more than once. The receipt is there all the same.
        """
        metrics = {str(name): float(value) for name, value in trainer.callback_metrics.items()}
        counted = {**_UNKNOWN, "samples_scored": self._scored} if self._counts is None else self._counts.receipt()
        incomplete = ""
        if counted["missing"] or counted["duplicates"]:
            incomplete = (
                f"of {counted['samples_expected']} test samples {counted['missing']} were not scored (first: "
                f"{counted['missing_indices'][:5]}) and {counted['duplicates']} scored more than once (first: "
                f"{counted['duplicate_indices'][:5]})"
            )
        if incomplete and self._unproven:
            self._reasons.append(incomplete)
        self.receipt = {
            "checkpoint": self.checkpoint,
            "checkpoint_sha256": self.sha256,
            "dataset": self._dataset,
            **counted,
            "devices": trainer.num_devices,
            # JSON has no NaN.
            "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
            "unproven": self._reasons,
            "seconds": round(time.monotonic() - self._started, 3),
            "created": now(),
        }
        self._scores.write("position" if self._counts is None else "index")
        self.run.write_json(RECEIPT, self.receipt)
        if names := ", ".join(sorted(self._scores.beside)):
            log.info("%s of what test_step returned is no column of numbers: see %s/%s", names, self.run, OUTPUTS)
        for name, value in metrics.items():
            if not math.isfinite(value):
                log.warning("%s is %s, no finite number: %s/%s shows null", name, value, self.run, RECEIPT)
        if self._counts is not None and not incomplete and (column := self._scores.first_column()) is not None:
            write_pictures(self.run, self._samples, column)
        if incomplete and not self._unproven:
            raise ProofFailed(
                f"the evaluation of {self.checkpoint} is incomplete: {incomplete}. Something between the dataset and "
                "test_step (a collate function, a loader wrapper, a loader worker) drops, doubles or swaps samples. "
                f"Details: {self.run}/{RECEIPT}"
            )

    def summary(self) -> str:
        """Return the result in one line."""
        receipt = self.receipt
        if self._reasons:
            how = f"{receipt['samples_scored'] or 'an unknown number of'} test samples scored, not proven: "
            how += "; ".join(self._reasons)
        else:
            how = f"{receipt['samples_scored']} of {receipt['samples_expected']} test samples scored, once each"
        # JSON has no number for what is not finite: the receipt says null.
        shown = {name: "nan" if value is None else f"{value:.6g}" for name, value in receipt["metrics"].items()}
        return how + "".join(f", {name} {value}" for name, value in shown.items())


def _each(loader: Any) -> list[Any]:
    if isinstance(loader, dict):
        return list(loader.values())
    return list(loader) if isinstance(loader, (list, tuple)) else [loader]


def _name_of(loader: Any) -> str:
    kind = type(user_dataset(loader) if hasattr(loader, "dataset") else loader)
    return f"{kind.__module__}.{kind.__qualname__}"


def _size_of(batch: Any) -> int | None:
    try:
        return extract_batch_size(batch)
    except (MisconfigurationException, RecursionError):
        return None


def _refusals(trainer: pl.Trainer, loader: Any) -> list[str]:
    """Why this loader could leave a sample out or repeat one, known before the first batch."""
    if not isinstance(loader, DataLoader):
        found = f"{len(loader)} loaders" if isinstance(loader, (list, tuple, dict)) else f"a {type(loader).__name__}"
        return [
            f"test_dataloader() returns {found}: a receipt covers one torch DataLoader (a subclass is fine) over a "
            "map-style dataset, for only there each sample has an index that can be counted"
        ]
    dataset = user_dataset(loader)
    if not is_indexed(loader):
        return [
            f"the test set {type(dataset).__name__} has no length: whether each sample was scored cannot be proven. "
            "Use a map-style dataset, with __len__ and __getitem__"
        ]
    problems = []
    samples, batches = len(dataset), len(loader)
    if samples == 0:
        raise UserError(f"the test set {type(dataset).__name__} is empty")
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
