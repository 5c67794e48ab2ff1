"""The newest attempt's record says of the whole run what all records say together."""

from typing import Any

import pytest

from pipeline.checkpoint.commit import select
from pipeline.run.goodput_report import AttemptGoodput, GoodputReport
from pipeline.run.run_dir import RunDir
from pipeline.run.run_totals import Commits, EarlierAttempts
from tests.support.checkpoints import commit
from tests.support.recorded import attempt, goodput


def val_loss(value: float, mode: str = "min") -> dict[str, Any]:
    return {"name": "val_loss", "value": value, "mode": mode}


def folded(*values: dict[str, Any] | None) -> Commits:
    found = Commits()
    for step, value in enumerate(values, start=1):
        found = found.and_one(step, step, value)
    return found


def test_the_goodput_of_all_is_what_the_earlier_ones_and_the_last_say_together() -> None:
    records = {number: attempt(number, 75, goodput=goodput(10 * number, 5)) for number in (1, 2, 3)}
    del records[2]["goodput"]  # of one that cannot be told
    parsed = [each for n, record in records.items() if (each := AttemptGoodput.parse(n, record)) is not None]
    report = GoodputReport(parsed)
    for last in (1, 2, 3):
        earlier = EarlierAttempts.of({number: records[number] for number in range(1, last)})
        assert EarlierAttempts.parse(earlier.as_dict()) == earlier
        newest = EarlierAttempts.of({number: records[number] for number in range(1, last + 1)})
        share = earlier.share(AttemptGoodput.parse(last, records[last]))
        assert share == pytest.approx(newest.share(None))
    assert share == pytest.approx(40 / report.whole)
    assert earlier.started == "2026-11-24T12:10:00.000Z"
    assert EarlierAttempts().share(None) is None


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        {},
        {"started": None, "useful": 1, "seconds": 0, "ended": None},
        {"started": None, "useful": -1, "seconds": 1, "ended": None},
        {"started": None, "useful": 0, "seconds": float("inf"), "ended": None},
        {"started": 7, "useful": 0, "seconds": 0, "ended": None},
        {"started": None, "useful": "x", "seconds": 0, "ended": None},
        {"started": None, "useful": 0, "seconds": 0, "ended": []},
    ],
)
def test_what_a_damaged_record_says_of_earlier_attempts_counts_for_nothing(found: Any) -> None:
    assert EarlierAttempts.parse(found) is None


@pytest.mark.parametrize(
    "found",
    [
        *(None, [], {}, {"through": "x", "epoch": 1, "best": None}, {"through": 1, "epoch": "x", "best": None}),
        *({"through": 1, "epoch": 1, "best": best} for best in (7, {}, {"name": "x", "value": "x", "step": 1})),
    ],
)
def test_what_a_damaged_record_says_of_commits_counts_for_nothing(found: Any) -> None:
    assert Commits.parse(found) is None


def test_the_best_is_that_which_an_evaluation_chooses(tmp_path: Any) -> None:
    run = RunDir(str(tmp_path))
    found = Commits()
    for step, value in ((1, 0.5), (2, 0.25), (3, None), (4, 0.25), (5, 0.75)):
        record = commit(run, step, value)
        found = found.and_one(step, record.epoch, None if value is None else val_loss(value))
        best = select(run, "best")
        assert found.best == {**val_loss(best.monitor.value if best.monitor else 0), "step": best.step}
    assert (found.through, found.epoch) == (5, 1)
    assert Commits.parse(found.as_dict()) == found


def test_a_value_of_another_monitor_begins_anew_and_one_that_is_no_number_never_counts() -> None:
    assert folded(val_loss(0.1), val_loss(0.9, "max")).best == {**val_loss(0.9, "max"), "step": 2}
    assert folded(val_loss(0.1, "max"), val_loss(0.9, "max"), val_loss(0.5, "max")).best == {
        **val_loss(0.9, "max"),
        "step": 2,
    }
    for value in (float("nan"), float("inf")):
        assert folded(val_loss(0.5), val_loss(value)).best == {**val_loss(0.5), "step": 1}
    assert folded({"name": "x"}).best is None


def test_a_value_that_becomes_known_later_takes_the_place_of_what_was_said_of_its_step() -> None:
    found = folded(val_loss(0.5), None)
    assert found.and_one(2, 2, val_loss(0.25)).best == {**val_loss(0.25), "step": 2}
    assert found.and_one(1, 1, val_loss(0.75)).best == {**val_loss(0.75), "step": 1}
    assert found.and_one(1, 1, val_loss(0.75)).through == 2


def test_a_start_knows_what_was_committed_after_the_last_renewal(tmp_path: Any) -> None:
    run = RunDir(str(tmp_path))
    for step, value in ((1, 0.5), (2, 0.25), (3, 0.75)):
        commit(run, step, value)
    steps = run.steps()["json"]
    known = {"commits": Commits(1, 1, {**val_loss(0.5), "step": 1}).as_dict()}
    for newest in (known, None, {}, {"commits": "damaged"}):
        assert Commits.before(run, steps, newest) == Commits(3, 1, {**val_loss(0.25), "step": 2})
    run.write(RunDir.record(2), b"torn")
    assert Commits.before(run, steps, known) == Commits(3, 1, {**val_loss(0.5), "step": 1})


def test_a_start_does_not_read_a_long_run_whole(tmp_path: Any) -> None:
    run = RunDir(str(tmp_path))
    assert Commits.before(run, range(1, 66), None) is None
    assert Commits.before(run, range(1, 66), {"commits": Commits(65, 1).as_dict()}) == Commits(65, 1)
