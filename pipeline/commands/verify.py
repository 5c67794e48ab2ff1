"""`python -m pipeline verify`: whether every checkpoint's bytes are what was saved, and what the ledger proves."""

import argparse
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.checkpoint.commit import UNCOMMITTED, CommitRecord, Corrupt, examined
from pipeline.commands.command_parser import add_run_dir, readable_run
from pipeline.errors import CRASH, DONE, UserError
from pipeline.run.goodput_report import GoodputReport
from pipeline.run.run_dir import RunDir
from pipeline.training.run_state import read_run_state

if TYPE_CHECKING:
    from pipeline.data.epoch_record import EpochRecord

_COLUMNS = ("epoch", "expected", "consumed", "padded", "dropped", "proof", "closed by")


@dataclass(frozen=True)
class Verdict:
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
        raise UserError(f"mtbf={arguments.mtbf:g}: must be a number of hours > 0")
    verdict = verify(readable_run(arguments.run_dir), arguments.mtbf)
    print(verdict.text)  # noqa: T201 - the output of the command
    return DONE if verdict.holds else CRASH


def verify(run: RunDir, mtbf_hours: float | None = None) -> Verdict:
    """Hash every committed checkpoint of a run again, and judge what the newest good one says about its epochs.

    Each checkpoint is a line on standard output as soon as it is known. The expected samples are computed again from
    each epoch's seed and position; what was counted in training is only compared with them.

    Args:
        run: The run directory.
        mtbf_hours: Hours between two failures, for the advice how often to save; None: as seen.

    Raises:
        UserError: The bytes are as they were saved, but there is no ledger that could be judged.
    """
    newest, failed = _rehash(run)
    if newest is None and not failed:
        raise UserError(f"run_dir={run.label!r} has no checkpoint: there is nothing to verify yet")
    damaged = [f"FAILED: the checkpoint of step {step} is damaged" for step in failed]
    try:
        verdict = Verdict("no checkpoint is good: there is no ledger to judge", True)
        if newest is not None:
            verdict = _judge(run, newest)
    except UserError as error:
        if not failed:
            raise
        verdict = Verdict("\n".join(error.problems), True)
    spent = GoodputReport.of(run).lines(mtbf_hours=mtbf_hours)
    text = "\n".join(["", *spent, *([""] if spent else []), verdict.text, *damaged])
    return Verdict(text, verdict.holds and not failed)


def _rehash(run: RunDir) -> tuple[CommitRecord | None, list[int]]:
    """Say of every checkpoint whether its bytes match its record; the newest good one, and the steps that fail."""
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
        print(f"step {step}{size}  {words}", flush=True)  # noqa: T201 - it is what was asked for
    return newest, failed


def _judge(run: RunDir, record: CommitRecord) -> Verdict:
    """Return what the ledger in a checkpoint proves.

    Raises:
        UserError: There is none that could be judged.
    """
    from pipeline.data.epoch_record import EpochRecord  # noqa: PLC0415 - imports torch

    state = read_run_state(run.url_of(record.name))
    if state is None or state.ledger is None:
        raise UserError(
            f"run_dir={run.label!r}: its newest checkpoint (step {record.step}) holds no ledger. Only what the "
            "train_dataloader of pipeline.data.DataModule yields, without overfit_batches, is accounted for"
        )
    try:
        epochs = [EpochRecord.from_dict(each) for each in state.ledger]
    except ValueError as error:
        raise UserError(f"run_dir={run.label!r}: the ledger of step {record.step} is damaged: {error}") from error
    problems = _gaps(epochs, record)
    rows: list[tuple[str, ...]] = [_COLUMNS]
    for epoch in epochs:
        expected = epoch.expected()
        problem = epoch.problem(expected)
        problems += [problem] if problem else []
        rows.append(
            (
                str(epoch.epoch),
                str(expected.count),
                str(epoch.consumed.count),
                str(epoch.padded),
                str(epoch.dropped + epoch.withheld.count),
                "FAILED" if problem else "ok",
                epoch.closed or "open",
            )
        )
    notes = [
        f"epoch {epoch.epoch}: {epoch.withheld.count} samples came in batches that were None, and were not used"
        for epoch in epochs
        if epoch.withheld.count
    ]
    if "end" not in record.reason:
        notes.append("training has not ended there; what came later is not known")
    lines = [f"ledger of {run} at step {record.step} (the newest good checkpoint)", "", *_table(rows), "", *notes]
    if problems:
        lines += [f"FAILED: {problem}" for problem in problems]
    elif epochs:
        lines.append("every sample is accounted for")
    else:
        lines.append("no epoch has been trained by now")
    return Verdict("\n".join(lines), not problems)


def _gaps(epochs: "list[EpochRecord]", record: CommitRecord) -> list[str]:
    """Epochs without a record, from the first one that has one: what lies before it was another program's."""
    known = {each.epoch for each in epochs}
    begun = record.epoch + bool(record.position)
    first = min(known, default=begun)
    return [f"epoch {number} has no record" for number in range(first, begun) if number not in known]


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if name in ("proof", "closed by") else cell.rjust(width)
            for name, cell, width in zip(_COLUMNS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
