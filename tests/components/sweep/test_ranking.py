"""The best trial stands first, by the metric's own direction."""

from components.sweep import ranking
from components.sweep.folder import SweepFolder, TrialRecord, TrialState
from components.sweep.preview import MonitoredMetric

TRIALS = [
    TrialRecord(1, {"a": 0.123456789}, TrialState.FAILED, 1, 1, "crash: " + "x" * 100),
    TrialRecord(2, {"a": 0.5}, TrialState.FINISHED, 1, 0, None, 0.25),
    TrialRecord(3, {"a": 0.25}, TrialState.PRUNED, 1, 130, "pruned", 0.01),
    TrialRecord(4, {"a": 1.0}, TrialState.FINISHED, 1, 0, None, 0.75),
]


def test_pruned_and_failed_trials_are_never_the_best() -> None:
    assert [each.trial for each in ranking.ranked(TRIALS, "min")] == [2, 4, 3, 1]
    assert [each.trial for each in ranking.ranked(TRIALS, "max")] == [4, 2, 3, 1]
    assert ranking.best(TRIALS[:1], "min") is None


def test_the_table_has_a_line_for_each_trial_with_its_run_directory() -> None:
    folder = SweepFolder("runs/s")
    folder.metric = MonitoredMetric("acc", "max")
    lines = ranking.lines(folder, TRIALS)
    assert lines[0].split() == ["trial", "state", "acc", "a", "run_dir", "reason"]
    assert lines[1].split() == ["0004", "finished", "0.75", "1", "runs/s/0004"]
    assert lines[4].split()[:6] == ["0001", "failed", "(1)", "0.123457", "runs/s/0001", "crash:"]
    assert max(map(len, lines)) < 160
