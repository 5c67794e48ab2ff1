"""Optuna proposes and prunes from the records alone."""

import math
import sys

import pytest

from components.sweep.folder import TrialRecord, TrialState
from components.sweep.space import SweepSpace
from components.sweep.study import OptunaStudy
from pipeline.errors import UserError

SPACE = SweepSpace.parse([], [], ["a=log:1e-4:1", "b=choice:x,y", "c=int:1:5"], 30, 0)


def tried(pruner: str = "median", mode: str = "min", cut: int = 0) -> list[TrialRecord]:
    """Thirty trials one after the other, whose best is a=0.01; the study is made anew from trial `cut` on."""
    study, records = OptunaStudy(SPACE, mode, pruner, parallel=False), list[TrialRecord]()
    sign = -1 if mode == "max" else 1
    for number in range(1, SPACE.trials + 1):
        if number == cut:
            study = OptunaStudy(SPACE, mode, pruner, parallel=False)
        records.append(trial := TrialRecord(number, study.values(number, records)))
        for epoch in range(1, 10):
            trial.reported.append(sign * (abs(math.log10(float(trial.values["a"])) + 2) + 1 / epoch))
            if study.prunes(trial, records):
                trial.state = TrialState.PRUNED
                break
        else:
            trial.state, trial.value = TrialState.FINISHED, trial.reported[-1]
    return records


def test_a_sweep_that_is_continued_asks_the_same_trials() -> None:
    assert tried() == tried(cut=17)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_it_learns_and_stops_what_is_worse_than_others(mode: str) -> None:
    records = tried(mode=mode)
    pruned = [each for each in records if each.state is TrialState.PRUNED]
    finished = [each for each in records if each.state is TrialState.FINISHED]
    assert 8 < len(pruned) < 25
    assert min(abs(math.log10(float(each.values["a"])) + 2) for each in finished) < 0.1
    first, last = records[:10], records[-10:]
    distance = [sum(abs(math.log10(float(each.values["a"])) + 2) for each in part) for part in (first, last)]
    assert distance[1] < 0.8 * distance[0]


def test_hyperband_prunes_and_none_does_not() -> None:
    assert any(each.state is TrialState.PRUNED for each in tried("hyperband"))
    assert all(each.state is TrialState.FINISHED for each in tried("none"))


def test_a_value_that_is_no_number_and_a_failed_trial_are_taken() -> None:
    study = OptunaStudy(SPACE, "min", "median", parallel=True)
    records = [
        TrialRecord(1, {"a": 0.1, "b": "x", "c": 1}, TrialState.FAILED, reported=[None]),
        TrialRecord(2, {"a": 0.1, "b": "x", "c": 1}, TrialState.FINISHED, value=0.5, reported=[None, 0.5]),
        TrialRecord(3, {"a": 0.1, "b": "y", "c": 2}, reported=[None]),
    ]
    assert study.values(4, records).keys() == {"a", "b", "c"}
    assert not study.prunes(records[2], records)


def test_without_optuna_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'torchx-lightning-pipeline\[sweep\]'"):
        OptunaStudy(SPACE, "min", "none", parallel=False)
