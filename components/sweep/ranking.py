"""The trials of a sweep as a table, the best one first."""

from collections.abc import Sequence

from components.sweep.folder import SweepFolder, TrialRecord, TrialState
from components.sweep.space import Value
from pipeline.commands.table import table


def ranked(records: Sequence[TrialRecord], mode: str) -> list[TrialRecord]:
    """Return trials: those that are finished, the best first; the pruned ones; the others."""
    order = {TrialState.FINISHED: 0, TrialState.PRUNED: 1}
    sign = -1.0 if mode == "max" else 1.0

    def key(trial: TrialRecord) -> tuple[int, float, int]:
        return order.get(trial.state, 2), sign * (trial.value or 0.0), trial.trial

    return sorted(records, key=key)


def finished(records: Sequence[TrialRecord], mode: str) -> list[TrialRecord]:
    """Return the trials that are finished, the best first."""
    return [each for each in ranked(records, mode) if each.state is TrialState.FINISHED]


def best(records: Sequence[TrialRecord], mode: str) -> TrialRecord | None:
    """Return the best trial of those that are finished; None where none is."""
    return next(iter(finished(records, mode)), None)


def lines(folder: SweepFolder, records: Sequence[TrialRecord]) -> list[str]:
    """Return the table, a line each."""
    metric, mode = folder.metric
    keys = list(dict.fromkeys(key for each in records for key in each.values))
    rows = [["trial", "state", metric, *keys, "run_dir", "reason"]]
    for each in ranked(records, mode):
        state = f"failed ({each.status})" if each.state is TrialState.FAILED else str(each.state)
        values = [shown(each.values[key]) if key in each.values else "" for key in keys]
        value = "" if each.value is None else f"{each.value:.6g}"
        rows.append([each.name, state, value, *values, folder.url(each), _short(each.reason)])
    return table(rows, ("trial", "state", "run_dir", "reason"))


def shown(value: Value) -> str:
    """Return a value as it is shown; a drawn number has more digits than anybody reads."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(reason: str | None) -> str:
    text = " ".join((reason or "").split())
    return text if len(text) <= 80 else f"{text[:79]}…"
