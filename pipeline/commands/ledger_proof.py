"""What the ledger in a checkpoint proves: epoch by epoch, whether each sample was used as often as it should have been.

Needs numpy, but neither torch nor Lightning.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy.typing as npt

from pipeline.checkpoint.commit import CommitRecord
from pipeline.data.epoch_record import EpochRecord, Tally
from pipeline.data.orders import Order, order_of
from pipeline.errors import UserError

Values = Callable[[str], npt.NDArray[Any]]
"""Takes a digest, and returns the numbers that have it; raises ValueError where there are none."""

COLUMNS = ("epoch", "expected", "consumed", "padded", "dropped", "proof", "closed by")
ACCOUNTED = "every sample is accounted for"


@dataclass(frozen=True)
class LedgerProof:
    """The judgement.

    Attributes:
        step: Of the checkpoint that holds the ledger.
        rows: One for each epoch, as in COLUMNS.
        notes: What the proof leaves open, in words.
        problems: What is wrong, in words.
        proven: Whether every sample of every epoch is accounted for, and there was one.
    """

    step: int
    rows: Sequence[tuple[str, ...]]
    notes: Sequence[str]
    problems: Sequence[str]
    proven: bool

    @property
    def conclusion(self) -> str:
        """The result in one sentence, empty where notes or problems say it."""
        if not self.rows and not self.problems:
            return "no epoch has been trained yet"
        return ACCOUNTED if self.proven else ""


def judge(
    records: Sequence[Any], record: CommitRecord, label: str, most: int | None = None, values: Values | None = None
) -> LedgerProof:
    """Judge a ledger.

    The expected samples are computed again from each epoch's seed and position; what was counted in training is only
    compared with them.

    Args:
        records: The ledger, as a checkpoint holds it.
        record: The commit record of that checkpoint.
        label: What to call the run.
        most: Samples that are computed at most, for who has little time.
        values: Reads what an order by weights, lengths or classes was drawn from; None: nothing does.

    Raises:
        UserError: It is damaged, or it has more samples than that.
    """
    try:
        epochs = [EpochRecord.from_dict(found) for found in records]
    except ValueError as error:
        raise UserError(f"run_dir={label!r}: the ledger of step {record.step} is damaged: {error}") from error
    if most is not None and (samples := _computed(epochs)) > most:
        raise UserError(f"its {samples} samples would take long to compare: `python -m pipeline verify` does")
    problems, notes = _gaps(epochs, record), _notes(epochs, record)
    rows: list[tuple[str, ...]] = []
    orders = _Orders(values)
    for each in epochs:
        expected, unknown = orders.expected(each)
        problem = each.problem(expected) if unknown is None else None
        problems += [problem] if problem else []
        notes += [] if unknown is None else [f"epoch {each.epoch}: which samples it should have used: {unknown}"]
        left_out = each.dropped + each.withheld.count
        counts = each.epoch, expected.count, each.consumed.count, each.padded, left_out
        proof = "FAILED" if problem else "unproven" if each.unproven.count or unknown else "ok"
        rows.append((*map(str, counts), proof, each.closed or "open"))
    proven = bool(rows) and not problems and all("unproven" not in row for row in rows)
    return LedgerProof(record.step, rows, notes, problems, proven)


def _notes(epochs: Sequence[EpochRecord], record: CommitRecord) -> list[str]:
    notes = [
        f"epoch {each.epoch}: {each.withheld.count} samples were left out by the collate function, or came in batches "
        "that were None"
        for each in epochs
        if each.withheld.count
    ]
    notes += [
        f"epoch {each.epoch}: {each.unproven.count} samples went into batches of which it cannot be told which samples "
        "they hold; whether each was used as often as it should have been is not proven"
        for each in epochs
        if each.unproven.count
    ]
    if "end" not in record.reason:
        notes.append("training has not ended there; what came later is not known")
    return notes


def _computed(epochs: Sequence[EpochRecord]) -> int:
    """Return how many samples a judgement computes."""
    whole = {each.samples for each in epochs if each.is_whole}
    return sum(whole) + sum(each.position + each.padded for each in epochs if not each.is_whole)


class _Orders:
    """Computes what epochs should have used.

    Args:
        values: Reads what an order by weights, lengths or classes was drawn from; None: nothing does.
    """

    def __init__(self, values: Values | None) -> None:
        self._values = values
        self._known: dict[str, Order] = {}

    def expected(self, epoch: EpochRecord) -> tuple[Tally, str | None]:
        """Return what should have been used, and why only its count is known, where it is."""
        if epoch.is_whole:  # whatever its order; it is hashed only once
            return _whole(epoch.samples), None
        if epoch.order is None:
            return epoch.expected(), None
        try:
            order = self._order(epoch.order)
            if order.entries != epoch.samples:
                raise ValueError(f"its order has {order.entries} entries, and its record says {epoch.samples}")
            return epoch.expected(entries=order.of_epoch(epoch.seed, epoch.epoch)), None
        except (ValueError, IndexError) as error:
            return Tally(epoch.position + epoch.padded), f"{error}"

    def _order(self, facts: Mapping[str, Any]) -> Order:
        key = json.dumps(dict(facts), sort_keys=True, default=str)
        if self._values is None:
            raise ValueError("what its order was drawn from is not known")
        if key not in self._known:
            self._known = {key: order_of(facts, self._values(facts["values"]))}  # only one: it may be large
        return self._known[key]


@cache
def _whole(samples: int) -> Tally:
    return EpochRecord(epoch=0, seed=0, samples=samples, position=samples).expected()


def _gaps(epochs: Sequence[EpochRecord], record: CommitRecord) -> list[str]:
    """Return the epochs without a record, after the first one with one: earlier ones were another program's."""
    known = {each.epoch for each in epochs}
    begun = record.epoch + bool(record.position)
    first = min(known, default=begun)
    return [f"epoch {epoch} has no record" for epoch in range(first, begun) if epoch not in known]
