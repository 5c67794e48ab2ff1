"""What the run of a trial has come to, read from its run directory: whatever launched it, and whoever watched it."""

import math
from collections.abc import Sequence

from components.sweep.folder import SweepFolder, TrialRecord
from pipeline.checkpoint.run_records import summarize
from pipeline.checkpoint.run_summary import RunSummary
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir


def summary_of(folder: SweepFolder, trial: TrialRecord) -> RunSummary | None:
    """Return how the run of a trial stands; None where it has left nothing yet.

    Raises:
        StorageAway: The storage does not answer.
    """
    run = RunDir(folder.url(trial))
    try:
        return next((each for each in summarize(run.label) if each.url == run.url), None)
    except UserError:
        return None


def value_of(summary: RunSummary, metric: str) -> float | None:
    """Return the metric of a run at its best checkpoint; None where it has none."""
    return summary.best.value if summary.best is not None and summary.best.name == metric else None


def reported(folder: SweepFolder, trial: TrialRecord, metric: str) -> tuple[list[float | None], Sequence[str]]:
    """Return what a run has logged of a metric until now, and the names of all that it has logged.

    TensorBoard's event files have each validation at once; the commit records only those with a checkpoint.

    Returns:
        A value for each time that it was logged, None for one that is no number; and the names.
    """
    from pipeline.run.event_files import read_scalars  # noqa: PLC0415 - it needs numpy, and only some sweeps need it

    curves = read_scalars(RunDir(folder.url(trial))).curves
    wanted = (metric, f"{metric}_epoch")  # the latter where steps are logged, too
    found = next(
        (
            curve
            for name, curve in curves.items()
            if name in wanted or name.endswith(tuple(f"/{each}" for each in wanted))
        ),
        None,
    )
    values = [] if found is None else found.values.tolist()
    return [value if math.isfinite(value) else None for value in values], list(curves)
