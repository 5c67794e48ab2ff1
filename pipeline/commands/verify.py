"""`python -m pipeline verify`: check that every checkpoint's bytes are what was saved, and what the ledger proves."""

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.checkpoint.commit import UNCOMMITTED, CommitRecord, Corrupt, examined
from pipeline.commands.command_parser import add_run_dir, readable_run
from pipeline.commands.table import table
from pipeline.errors import CRASH, DONE, UserError
from pipeline.run.goodput_report import GoodputReport
from pipeline.run.run_dir import RunDir

if TYPE_CHECKING:
    from pipeline.data.epoch_record import EpochRecord

_COLUMNS = ("epoch", "expected", "consumed", "padded", "dropped", "proof", "closed by")


@dataclass(frozen=True)
class Verification:
    """What `verify` found: a text to read, and whether every proof holds."""

    text: str
    holds: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `verify`."""
    add_run_dir(parser)
    parser.add_argument(
        "--mtbf",
        type=float,
        help="Mean hours between two failures, to suggest how often to save. Default: as in the run's attempts.",
    )


def run(arguments: argparse.Namespace) -> int:
    """Verify, print what was found, and return the exit status.

    Raises:
        UserError: The run cannot be read, or has nothing to verify.
    """
    if arguments.mtbf is not None and not 0 < arguments.mtbf < math.inf:
        raise UserError(f"mtbf={arguments.mtbf:g} must be a number of hours > 0")
    verdict = verify(readable_run(arguments.run_dir), arguments.mtbf)
    print(verdict.text)  # noqa: T201 - the output of the command
    return DONE if verdict.holds else CRASH


def verify(run: RunDir, mtbf_hours: float | None = None) -> Verification:
    """Hash every committed checkpoint of a run again, and judge what the newest good one says about its epochs.

    Each checkpoint is a line on standard output as soon as it is known. The expected samples are computed again from
    each epoch's seed and position; what was counted in training is only compared with them.

    Args:
        run: The run directory.
        mtbf_hours: Mean hours between two failures, to suggest how often to save; None: as seen.

    Raises:
        UserError: The bytes are as they were saved, but there is no ledger to judge.
    """
    newest, failed = _rehash(run)
    if newest is None and not failed:
        raise UserError(f"run_dir={run.label!r} has no checkpoint: there is nothing to verify yet")
    damaged = [f"FAILED: the checkpoint of step {step} is damaged" for step in failed]
    try:
        found = Verification("no checkpoint is good: there is no ledger to judge", True)
        if newest is not None:
            found = _judge(run, newest)
    except UserError as error:
        if not failed:
            raise
        found = Verification("\n".join(error.problems), True)
    spent = GoodputReport.of(run).lines(mtbf_hours=mtbf_hours)
    text = "\n".join(["", *spent, *([""] if spent else []), found.text, *damaged])
    return Verification(text, found.holds and not failed)


def _rehash(run: RunDir) -> tuple[CommitRecord | None, list[int]]:
    """Print of every checkpoint whether its bytes match its record; return the newest good one, and the bad steps."""
    from pipeline.checkpoint.load import check  # noqa: PLC0415 - imports torch

    newest: CommitRecord | None = None
    failed: list[int] = []
    for step, found in examined(run):
        size, problem = "", None if isinstance(found, CommitRecord) else found
        if isinstance(found, CommitRecord):
            size = f"  {found.bytes} bytes"
            try:
                check(run, found)
                newest = newest or found
            except Corrupt as error:
                problem = str(error)
        words = "ok" if problem is None else f"FAILED: {problem}"
        if problem == UNCOMMITTED:
            words = f"not committed: {problem}"
        elif problem is not None:
            failed.append(step)
        print(f"step {step}{size}  {words}", flush=True)  # noqa: T201 - the output of the command
    return newest, failed


def _judge(run: RunDir, record: CommitRecord) -> Verification:
    """Judge what the ledger in a checkpoint proves.

    Raises:
        UserError: There is none to judge.
    """
    epochs = _ledger(run, record)
    problems = _gaps(epochs, record)
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for each in epochs:
        expected = each.expected()
        problem = each.problem(expected)
        problems += [problem] if problem else []
        left_out = each.dropped + each.withheld.count
        counts = each.epoch, expected.count, each.consumed.count, each.padded, left_out
        proof = "FAILED" if problem else "unproven" if each.unproven.count else "ok"
        rows.append((*map(str, counts), proof, each.closed or "open"))
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
    lines = [f"ledger of {run} at step {record.step} (the newest good checkpoint)", ""]
    lines += [*table(rows, ("proof", "closed by")), "", *notes, *(f"FAILED: {problem}" for problem in problems)]
    if not problems and not any(each.unproven.count for each in epochs):
        lines.append("every sample is accounted for" if epochs else "no epoch has been trained yet")
    return Verification("\n".join(lines), not problems)


def _ledger(run: RunDir, record: CommitRecord) -> "list[EpochRecord]":
    from pipeline.data.epoch_record import EpochRecord  # noqa: PLC0415 - imports torch
    from pipeline.training.state.run_state import read_run_state  # noqa: PLC0415 - imports torch

    state = read_run_state(run.url_of(record.name))
    if state is None or state.ledger is None:
        raise UserError(
            f"run_dir={run.label!r}: its newest checkpoint (step {record.step}) holds no ledger. Only what the "
            "train_dataloader of pipeline.data.DataModule yields, without overfit_batches, is accounted for"
        )
    try:
        return [EpochRecord.from_dict(found) for found in state.ledger]
    except ValueError as error:
        raise UserError(f"run_dir={run.label!r}: the ledger of step {record.step} is damaged: {error}") from error


def _gaps(epochs: "list[EpochRecord]", record: CommitRecord) -> list[str]:
    """Return the epochs without a record, after the first one with one: earlier ones were another program's."""
    known = {each.epoch for each in epochs}
    begun = record.epoch + bool(record.position)
    first = min(known, default=begun)
    return [f"epoch {epoch} has no record" for epoch in range(first, begun) if epoch not in known]
