"""Predictions that stay: each sample's once, in the order of the dataset, whatever the number of processes.

Each process predicts a contiguous range of the samples, and writes it in parts that are named by their range. A part is
whole or absent, so a prediction that was killed continues with the ranges that no part covers, in any world. The names
sort in the order of the samples.
"""

import hashlib
import json
import logging
import re
import time
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import CombinedLoader

from pipeline.data.datamodule import DataModule
from pipeline.data.ledger import changes_batches
from pipeline.data.sample_ids import IdentifiedBatch, StripSampleIds, identified
from pipeline.errors import Preempted, ProofFailed, UserError
from pipeline.process.preemption import Preemption
from pipeline.process.topology import Topology
from pipeline.run import lineage
from pipeline.run.retry import patiently
from pipeline.run.run_dir import PREDICTIONS, RunDir, now
from pipeline.training.results.outputs import encode, portable, size
from pipeline.training.results.predict_loader import PredictLoader, Range, share, uncovered

log = logging.getLogger(__name__)

_PART = re.compile(r"part-(\d{10,})-(\d{10,})(?:-without-(\d+))?\.(pt|parquet)")
_OURS = re.compile(rf"receipt\.json|plan\.json|(loader-\d+/)?{_PART.pattern}")
_PART_SAMPLES = 1 << 17
_PART_BYTES = 64 << 20
_PART_SECONDS = 60.0
"""A part is written once it has so many samples or bytes, or is so old: what a kill costs."""
_LISTED = 100


class Predictions(pl.Callback):
    """Writes what `predict_step` returns to `predictions/`, and a receipt once all is written.

    Where the user brings a BasePredictionWriter, that writes instead; this only spreads the samples of a DataModule
    over the processes.

    Args:
        run: The run directory.
        checkpoint: The URL of what predicts.
        sha256: Its digest, `sha256:<hex>`.
        config: The resolved configuration: a prediction by another one does not continue this one.
        topology: Which process this is.
        preemption: Whether it is asked to stop.
    """

    def __init__(
        self, run: RunDir, checkpoint: str, sha256: str, config: bytes, topology: Topology, preemption: Preemption
    ) -> None:
        self.run, self.topology, self.preemption = run, topology, preemption
        self._plan: dict[str, Any] = {
            "checkpoint": checkpoint,
            "checkpoint_sha256": sha256,
            "config_sha256": f"sha256:{hashlib.sha256(config).hexdigest()}",
        }
        self._sources: list[PredictLoader] = []
        self._writes = self._empty = True
        self._transfers = False
        self._began = time.monotonic()

    def watch(self, trainer: pl.Trainer, source: Any) -> None:
        """Have the predict loaders of `source` (a data module, or a model that brings its own) spread over processes.

        Raises:
            UserError: When they are asked for: they cannot be spread.
        """
        original = source.predict_dataloader
        trainer.callbacks.append(self)  # type: ignore[attr-defined]

        def predict_dataloader() -> Any:
            callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
            writers = [type(each).__name__ for each in callbacks if isinstance(each, BasePredictionWriter)]
            self._writes = not writers
            loaders = original()
            if writers:
                log.info("predictions are written by %s, and not to %s/%s", ", ".join(writers), self.run, PREDICTIONS)
                if self.topology.world_size == 1 or not isinstance(source, DataModule):
                    return loaders
            self._transfers = changes_batches(trainer)
            source.allow_zero_length_dataloader_with_multiple_devices = True
            return self._spread(_flat(loaders))

        source.predict_dataloader = predict_dataloader

    def _spread(self, loaders: list[Any]) -> list[Any]:
        folders = [PREDICTIONS] if len(loaders) == 1 else [f"{PREDICTIONS}/loader-{n}" for n in range(len(loaders))]
        self._sources = [PredictLoader.of(loader, folder) for loader, folder in zip(loaders, folders, strict=True)]
        world_size, rank = self.topology.world_size, self.topology.rank
        reasons = [source.reason for source in self._sources if source.reason is not None]
        if reasons and world_size > 1:
            raise UserError(
                *(f"{each}: its samples cannot be spread over {world_size} processes. Start one" for each in reasons)
            )
        for reason in reasons:
            log.info("predictions are in the order of the loader, and a restart predicts all of them again: %s", reason)
        done: list[list[Range]] = [[] for _ in self._sources]
        if self._writes:
            done = self.topology.agree("predictions", self._open)
        spread: list[Any] = []
        for source, ranges in zip(self._sources, done, strict=True):
            loader = source.loader
            if source.reason is None:
                assert source.samples is not None
                loader = source.ranged(share(uncovered(source.samples, [(a, b) for a, b in ranges]), rank, world_size))
            if source.identifies:
                loader = StripSampleIds(identified(loader, digests=False), source.in_flight, self._transfers)
            spread.append(loader)
        return spread

    def _open(self) -> list[list[Range]]:
        """Return what earlier attempts of this prediction have written of each loader; else remove what is there."""
        plan = {**self._plan, "loaders": [source.described for source in self._sources]}
        found = self.run.read_json(f"{PREDICTIONS}/plan.json") or {}
        parts = [self._parts(source) for source in self._sources]
        in_order = all(source.reason is None for source in self._sources)
        same = {key: found.get(key) for key in plan} == json.loads(json.dumps(plan))
        if same and in_order and self.run.read(f"{PREDICTIONS}/receipt.json") is None:
            kept = [list(each) for each in parts]
            count = sum(stop - start for ranges in kept for start, stop in ranges)
            total = sum(source.samples or 0 for source in self._sources)
            log.info("resuming predictions: %d of %d samples are written already", count, total)
            return kept
        self._remove()
        self.run.write_json(f"{PREDICTIONS}/plan.json", {**plan, "created": now()})
        return [[] for _ in self._sources]

    def _remove(self) -> None:
        """Remove another prediction, whose loaders may have been others; the receipt first."""
        root = f"{self.run.path}/{PREDICTIONS}"
        found = patiently(f"run_dir={self.run.label!r}", lambda: self.run.fs.find(root))
        names = [str(name).removeprefix(f"{root}/") for name in found]
        ours = [name for name in names if _OURS.fullmatch(name)]
        for name in sorted(ours, key=lambda name: name != "receipt.json"):
            self.run.remove(f"{PREDICTIONS}/{name}")

    def _parts(self, source: PredictLoader) -> dict[Range, int]:
        """Return how many samples each part of a loader goes without, by their ranges, in order."""
        matches = (_PART.fullmatch(name) for name in self.run.names(source.folder))
        return dict(sorted(((int(match[1]), int(match[2])), int(match[3] or 0)) for match in matches if match))

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep what a batch has given; write a part where one is full, or where this process is asked to stop.

        Raises:
            Preempted: This process is asked to stop; all that it has predicted is written.
        """
        if not self._sources:
            return
        source = self._sources[dataloader_idx]
        identity = source.in_flight.popleft().transferred(batch) if source.identifies else None
        if not self._writes:
            return
        self._empty = self._empty and outputs is None
        self._keep(source, identity, portable(outputs))
        if self.preemption.asked:
            self._flush_all()
            raise Preempted(f"preempted while predicting; what was predicted is in {self.run}/{PREDICTIONS}")
        self.preemption.batch_ended()
        self.preemption.heartbeat()

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what is left."""
        self._flush_all()

    def _keep(self, source: PredictLoader, identity: IdentifiedBatch | None, output: Any) -> None:
        indices = None if identity is None else identity.indices
        first, stop = source.stop, source.stop + (1 if indices is None else len(indices))
        if source.reason is None and identity is not None:
            given = np.sort(np.concatenate([identity.indices, identity.withheld]))
            first, stop = int(given[0]), int(given[-1]) + 1
            if not np.array_equal(given, np.arange(first, stop)):
                raise ProofFailed(
                    f"a batch of predictions holds the samples {given[:5].tolist()}..., which are not one after the "
                    "other, once each: something between the dataset and predict_step drops, doubles or swaps samples"
                )
        if source.pending and first != source.stop:
            self._flush(source)
        if not source.pending:
            source.start, source.bytes, source.since = first, 0, time.monotonic()
        source.pending.append((indices, output))
        source.stop = stop
        source.bytes += size(output)
        if identity is not None:
            source.withheld += len(identity.withheld)
            if identity.unknown is not None and source.unknown is None:
                log.warning("which sample each prediction is of cannot be told: %s", identity.unknown)
            source.unknown = source.unknown or identity.unknown
        if (
            source.stop - source.start >= _PART_SAMPLES
            or source.bytes >= _PART_BYTES
            or time.monotonic() - source.since >= _PART_SECONDS
        ):
            self._flush(source)

    def _flush_all(self) -> None:
        for source in self._sources:
            self._flush(source)

    def _flush(self, source: PredictLoader) -> None:
        if source.pending and self._writes:
            kind, data = encode(source.pending, "what predict_step returns", by_batch=source.unknown is not None)
            without = f"-without-{source.withheld}" if source.withheld else ""
            self.run.write(f"{source.folder}/part-{source.start:010d}-{source.stop:010d}{without}.{kind}", data)
        source.pending, source.withheld = [], 0

    def conclude(self, trainer: pl.Trainer) -> None:
        """Check that the parts of all processes cover each sample once, and write the receipt.

        Raises:
            ProofFailed: On rank 0: some are missing or double. The receipt is there all the same.
        """
        trainer.strategy.barrier("predictions")
        if not (self._writes and self.topology.rank == 0 and self._sources):
            return
        loaders = [self._judged(source) for source in self._sources]

        def total(name: str) -> int | None:
            values = [loader[name] for loader in loaders]
            return None if None in values else sum(values)

        counts = {name: total(name) for name in ("samples_expected", "samples_predicted", "duplicates", "missing")}
        self.run.write_json(
            f"{PREDICTIONS}/receipt.json",
            {
                **{key: self._plan[key] for key in ("checkpoint", "checkpoint_sha256")},
                **counts,
                "devices": self.topology.world_size,
                "loaders": loaders,
                "seconds": round(time.monotonic() - self._began, 3),
                "created": now(),
            },
        )
        lineage.of_result("predict", self.run, counts, f"{PREDICTIONS}/receipt.json")
        limited = trainer.limit_predict_batches != 1.0
        if counts["duplicates"] or (counts["missing"] and not limited):
            raise ProofFailed(
                f"predictions in {self.run}/{PREDICTIONS} are incomplete: {counts['missing']} of "
                f"{counts['samples_expected']} samples are missing, {counts['duplicates']} double. Run the same "
                f"command again. Details: {self.run}/{PREDICTIONS}/receipt.json"
            )
        if self._empty:
            log.warning("predict_step returned None for all samples: %s/%s holds nothing else", self.run, PREDICTIONS)
        if withheld := total("withheld"):
            log.info("%d samples were left out by the collate function", withheld)
        known, expected = counts["samples_predicted"], counts["samples_expected"]
        log.info(
            "finished: predictions of %s samples are in %s/%s",
            "all" if known is None else f"{known} of {expected}" if known != expected else f"{known}",
            self.run,
            PREDICTIONS,
        )

    def _judged(self, source: PredictLoader) -> dict[str, Any]:
        """Return what the parts of a loader prove."""
        parts = self._parts(source)
        covered = np.zeros(source.samples or 0, np.uint8)
        for start, stop in parts if source.reason is None else {}:
            covered[start:stop] += 1
        missing = np.flatnonzero(covered == 0)
        known = source.reason is None
        withheld = sum(parts.values())
        count = int(np.count_nonzero(covered)) if known else sum(stop - start for start, stop in parts)
        return {
            **source.described,
            "folder": source.folder,
            "parts": len(parts),
            "samples_predicted": count - withheld if source.identifies else None,
            "withheld": withheld if source.identifies else None,
            "duplicates": int(np.count_nonzero(covered > 1)) if known else None,
            "missing": len(missing) if known else None,
            "missing_indices": missing[:_LISTED].tolist() if known else None,
            "unproven": source.reason or source.unknown,
        }


def _flat(loaders: Any) -> list[Any]:
    """Return the loaders in the order in which Lightning goes through them."""
    return list((loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "sequential")).flattened)
