"""`python -m pipeline verify`: check that every checkpoint's bytes are what was saved, and what the ledger proves."""

import argparse
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.checkpoint.commit import UNCOMMITTED, CommitRecord, Corrupt, examined
from pipeline.commands.command_parser import add_run_dir, readable_run
from pipeline.commands.ledger_proof import COLUMNS, judge
from pipeline.commands.table import table
from pipeline.errors import CRASH, DONE, UserError
from pipeline.run import order_values
from pipeline.run.goodput_report import GoodputReport
from pipeline.run.run_dir import RunDir


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
    proof = judge(_ledger(run, record), record, run.label, values=partial(order_values.read, run))
    lines = [f"ledger of {run} at step {record.step} (the newest good checkpoint)", ""]
    lines += [*table([COLUMNS, *proof.rows], ("proof", "closed by")), "", *proof.notes]
    lines += [*(f"FAILED: {problem}" for problem in proof.problems), *filter(None, [proof.conclusion])]
    return Verification("\n".join(lines), not proof.problems)


def _ledger(run: RunDir, record: CommitRecord) -> list[Any]:
    from pipeline.training.state.run_state import read_run_state  # noqa: PLC0415 - imports torch

    state = read_run_state(run.url_of(record.name))
    if state is None or state.ledger is None:
        raise UserError(
            f"run_dir={run.label!r}: its newest checkpoint (step {record.step}) holds no ledger. Only what the "
            "train_dataloader of pipeline.data.DataModule yields, without overfit_batches, is accounted for"
        )
    return state.ledger
