"""The ledger: which training samples were used, counted where they were used, carried over restarts.

The identity of a sample travels with its batch through collate function, loader workers and whatever wraps the loader,
and is counted after the optimizer step that used the batch. At the end of each epoch it is compared with what the
epoch's order says; a difference is an error.
"""

import logging
from collections import deque
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden

from pipeline.data.datamodule import DataModule
from pipeline.data.epoch_record import MISMATCH, EpochRecord, Tally
from pipeline.data.sample_ids import IdentifiedBatch, StripSampleIds
from pipeline.errors import ProofFailed, UserError

log = logging.getLogger(__name__)

_NOTHING = EpochRecord(epoch=0, seed=0, samples=0)
_FLUSH = 256
"""Batches whose indices are hashed at once: a step pays for an append only."""


class Ledger:
    """Counts what the training of a DataModule used.

    The loop over the batches (`pipeline.training.epoch_loop`) tells it of each; it is no callback, for Lightning's
    calls of one more would cost a step more than the counting.

    Args:
        data: Whose training loader to watch.
    """

    def __init__(self, data: DataModule) -> None:
        self.data = data
        self.closed: list[EpochRecord] = []
        self._before = _NOTHING
        """Of the open epoch: what all ranks had used when this attempt began. It is padded where only the validation
        after its last batch was left to do."""
        self._own = self._own_withheld = self._own_unproven = Tally()
        """Of the open epoch: what this rank has used in this attempt, what was withheld, and what cannot be told."""
        self._unhashed: list[npt.NDArray[np.int64]] = []
        self._accumulating: list[IdentifiedBatch] = []
        self._told = False
        self._in_flight: deque[IdentifiedBatch] = deque()
        self._step = 0
        self.transfers = False
        """Whether hooks of the user's may change a batch: then `receive` must be called with what they made of it."""
        self._received = False
        original = data.train_dataloader
        data.emit_sample_ids = True

        def train_dataloader() -> Any:
            data.reset_order()
            loader = original()
            if data.batches is not None and isinstance(loader, (dict, list, tuple, CombinedLoader)):
                data.emit_sample_ids = False
                loader = original()
                data.reset_order()
            if data.batches is not None:
                self.transfers = changes_batches(data.trainer)
                return StripSampleIds(loader, self._in_flight, self.transfers)
            return loader

        data.train_dataloader = train_dataloader  # type: ignore[method-assign]

    def load(self, records: list[dict[str, Any]], epoch: int, restart: bool = False) -> None:
        """Continue the records of a checkpoint.

        Args:
            records: What `state` returned.
            epoch: The epoch to continue with: its record, if there is one, is open again.
            restart: That epoch restarts in another order: its record is closed as `mismatch`.

        Raises:
            ValueError: They are no records.
        """
        read = [EpochRecord.from_dict(record) for record in records]
        reopened = [record for record in read if record.epoch == epoch and record.closed != MISMATCH]
        self.closed = [record for record in read if record not in reopened]
        if restart:
            self.closed += [replace(record, closed=MISMATCH) for record in reopened]
        elif reopened:
            self._before = reopened[0]

    def state(self, trainer: pl.Trainer, epoch: int, batches: int) -> list[dict[str, Any]] | None:
        """Return the records of all epochs so far, None without an order to compare with. All ranks must call it.

        Args:
            trainer: Whose ranks are summed up.
            epoch: The epoch to continue with.
            batches: Its batches that are over.

        Raises:
            ProofFailed: The open epoch has used another number of samples than its position says.
        """
        if self.data.batches is None:
            return None
        records = [record for record in self.closed if record.epoch <= epoch]
        ended = any(record.epoch == epoch and record.closed != MISMATCH for record in records)
        if batches and not ended:
            record = self._record(trainer, batches)
            used = record.position + record.padded
            if record.given.count != used:
                raise ProofFailed(record.problem(Tally(used, 0)) or "")
            records.append(record)
        return [record.as_dict() for record in records]

    def open(self, trainer: pl.Trainer, from_start: bool) -> None:
        """Open the record of an epoch, or continue the one that `load` has opened.

        Args:
            trainer: Stands before the next batch.
            from_start: The epoch begins at its start.
        """
        self._step = trainer.global_step
        self._own = self._own_withheld = self._own_unproven = Tally()
        self._unhashed, self._accumulating, self._received = [], [], False
        if from_start:
            self._before = _NOTHING

    def count(self, trainer: pl.Trainer) -> None:
        """Count the samples of the batch that is over, once a step has used it.

        Under manual optimization the steps are the model's own, and a batch counts once `training_step` has used it.

        Args:
            trainer: Has gone on by one batch.

        Raises:
            UserError: `training_step` has taken none or several batches by itself.
        """
        if self.data.batches is None:
            return
        if len(self._in_flight) != 1:
            raise UserError(
                f"training_step has taken {len(self._in_flight)} batches of its dataloader_iter in one step, and "
                "pipeline.data.DataModule counts one: take one by next(dataloader_iter), with a larger "
                "data.batch_size or trainer.accumulate_grad_batches in the place of more; or bring a "
                "LightningDataModule of your own, whose samples are not counted"
            )
        identity = self._in_flight.popleft()
        received, self._received = self._received or not self.transfers, False
        if identity.batch is None or not received:
            self._own_withheld += Tally.of(identity.indices)
            return
        self._accumulating.append(identity)
        step = trainer.global_step
        if step != self._step or not trainer.lightning_module.automatic_optimization:
            self._step = step
            self._use()

    def samples_of_batch(self) -> npt.NDArray[np.int64] | None:
        """Return the indices of the samples in the batch that is trained on; None where that cannot be told."""
        if self.data.batches is None or not self._in_flight or self._in_flight[0].unknown is not None:
            return None
        return self._in_flight[0].indices

    def receive(self, batch: Any) -> None:
        """Look at a batch as the model gets it, behind all hooks that move it."""
        if self.data.batches is not None and self._in_flight:
            self._received = True
            self._in_flight[0] = self._in_flight[0].transferred(batch)

    def close(self, trainer: pl.Trainer, reason: str, completed: int) -> None:
        """Close the record of an epoch, and compare. All ranks must call it.

        Args:
            trainer: Stands between two epochs.
            reason: What ended the epoch, see `EpochRecord`; `complete` also where a limit made it shorter.
            completed: Batches of the epoch that are over.

        Raises:
            ProofFailed: On every rank, if other samples were used than the epoch's order says.
        """
        if self.data.batches is None:
            return
        planned = len(self.data.batches)
        if reason == "complete" and completed < planned:
            limit: Any = trainer.limit_train_batches
            limited = int(planned * limit) if isinstance(limit, float) else min(planned, limit)
            # A loader that is shorter than its order says is never right, even if it says so itself.
            reason = "limit_train_batches" if completed >= limited else "loader"
        whole = reason in ("complete", "loader")
        over = completed
        if whole or reason == "limit_train_batches":
            self._use()  # where the last batches made no step, the model itself withheld it
        elif self._accumulating:
            over -= len(self._accumulating)  # accumulated and thrown away
        record = self._record(trainer, len(self.data.batches) if whole else over, reason)
        entries = self.data.batches.sampler.of_epoch() if record.order is not None else None
        (expected,) = self._all(trainer, record.expected(trainer.global_rank, trainer.world_size, entries))
        problem = record.problem(expected)
        if problem:
            raise ProofFailed(problem)
        self.closed.append(record)

    def _record(self, trainer: pl.Trainer, batches: int, reason: str | None = None) -> EpochRecord:
        """Return the record of the open epoch after so many batches of each rank."""
        self._hash()
        planned = self.data.batches
        assert planned is not None
        sampler = planned.sampler
        position = planned.position(batches)
        whole = reason in ("complete", "loader")
        consumed, withheld, unproven = self._all(trainer, self._own, self._own_withheld, self._own_unproven)
        return EpochRecord(
            epoch=sampler.epoch,
            seed=sampler.seed,
            samples=sampler.size,
            position=position,
            padded=self._before.padded
            + (sampler.padded(sampler.position) if batches == len(planned) and not planned.drop_last else 0),
            dropped=sampler.size - position if whole else 0,
            consumed=self._before.consumed + consumed,
            withheld=self._before.withheld + withheld,
            unproven=self._before.unproven + unproven,
            closed=reason,
            order=None if sampler.order is None else sampler.order.facts,
        )

    def _use(self) -> None:
        for batch in self._accumulating:
            if batch.unknown is None:
                self._unhashed.append(batch.indices)
            else:
                self._own_unproven += Tally.of(batch.indices)
                self._tell(batch.unknown)
            if len(batch.withheld):
                self._own_withheld += Tally.of(batch.withheld)
        self._accumulating = []
        if len(self._unhashed) >= _FLUSH:
            self._hash()

    def _tell(self, unknown: str) -> None:
        """Say once what cannot be proven."""
        if not self._told:
            self._told = True
            log.warning("which samples are used cannot be told, and the ledger does not prove it: %s", unknown)

    def _hash(self) -> None:
        if self._unhashed:
            self._own += Tally.of(np.concatenate(self._unhashed))
            self._unhashed = []

    def _all(self, trainer: pl.Trainer, *own: Tally) -> list[Tally]:
        """The sums over all ranks."""
        if trainer.world_size == 1:
            return list(own)
        # As signed numbers, whose sum wraps around modulo 2**64 like that of unsigned ones.
        words = np.array([(each.count, each.hash) for each in own], np.uint64).view(np.int64)
        summed = torch.from_numpy(words).to(trainer.strategy.root_device)
        dist.all_reduce(summed)
        return [Tally(count, digest) for count, digest in summed.cpu().numpy().view(np.uint64).tolist()]


def changes_batches(trainer: Any) -> bool:
    """Return whether the user's hooks may change a batch between the loader and the step."""
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
    owners = (getattr(trainer, "lightning_module", None), getattr(trainer, "datamodule", None))
    return any(is_overridden(hook, owner) for owner in owners if owner is not None for hook in hooks)
