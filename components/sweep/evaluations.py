"""Evaluate trials on one device each, as `components.launch` does its one run."""

from collections import deque
from collections.abc import Callable, Sequence

from torchx.specs import AppDef

from components.sweep.folder import SweepFolder, TrialRecord
from components.sweep.pool import EndedStage, StagePool
from pipeline.checkpoint.commit import select
from pipeline.errors import DONE, UserError
from pipeline.run.run_dir import RECEIPT, RunDir

_WAIT = 0.5


def evaluate_trials(
    folder: SweepFolder,
    pool: StagePool,
    chosen: Sequence[TrialRecord],
    app: Callable[[TrialRecord], AppDef],
    parallel: int,
) -> list[EndedStage]:
    """Evaluate trials, several at once, except those whose receipt is of the checkpoint that would be evaluated.

    Args:
        folder: Of the sweep.
        pool: In which nothing else runs.
        chosen: The trials.
        app: Returns the evaluation of one.
        parallel: How many at once.

    Returns:
        Those that failed.
    """
    waiting = deque(each for each in chosen if not _is_evaluated(RunDir(folder.url(each))))
    running, failed = 0, []
    while waiting or running:
        while waiting and running < parallel:
            trial = waiting.popleft()
            pool.start(trial.name, app(trial), folder.url(trial))
            running += 1
        if (ended := pool.next(_WAIT)) is not None:
            running -= 1
            if ended.status != DONE:
                failed.append(ended)
    return failed


def metrics_of(folder: SweepFolder, trial: TrialRecord) -> dict[str, float | None]:
    """Return what the evaluation of a trial has measured; empty where it was not evaluated."""
    found = (RunDir(folder.url(trial)).read_json(RECEIPT) or {}).get("metrics")
    return dict(found) if isinstance(found, dict) else {}


def _is_evaluated(run: RunDir) -> bool:
    receipt = run.read_json(RECEIPT)
    try:
        return receipt is not None and receipt.get("checkpoint_sha256") == select(run).sha256
    except UserError:
        return False  # the evaluation says what is wrong with the run
