"""What the attempts at a run have cost is added up, and a broken record is no obstacle."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.run.goodput import PURPOSES, REPEATED, USEFUL
from pipeline.run.goodput_report import AttemptGoodput, GoodputReport
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.runs import FIT, attempt

App = Callable[..., Ended]


def record(**changes: Any) -> dict[str, Any]:
    seconds = {**dict.fromkeys(PURPOSES, 1.0), USEFUL: 54.0}
    return {
        "first_step": 0,
        "ended": "2026-01-01T00:01:00.000Z",
        "status": 0,
        "goodput": {"seconds": seconds, "saves": 4, "stop_seconds": 1.0, "behind_seconds": 2.0},
    } | changes


def figures(**changes: Any) -> dict[str, Any]:
    good = record()
    return {**good, "goodput": {**good["goodput"], **changes}}


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {},
        record(goodput=None),
        record(goodput={"seconds": []}),
        record(ended="yesterday"),
        record(ended=7),
        record(first_step=None),
        record(goodput={"seconds": dict.fromkeys(PURPOSES, -1.0), "saves": 1, "behind_seconds": None}),
        record(goodput={"seconds": dict.fromkeys(PURPOSES, float("nan")), "saves": 1, "behind_seconds": None}),
        record(goodput={"seconds": dict.fromkeys(PURPOSES, "1 s"), "saves": 1, "behind_seconds": None}),
        figures(seconds=dict.fromkeys(PURPOSES, 10**400)),
        *(figures(saves=value) for value in (-1, float("inf"), float("nan"), 10**400, True, None)),
        *(figures(stop_seconds=value) for value in (-1.0, float("inf"), "1")),
        *(figures(behind_seconds=value) for value in (-5.0, float("inf"), float("nan"), 10**400)),
    ],
)
def test_a_record_that_cannot_be_understood_is_left_out(broken: Any) -> None:
    assert AttemptGoodput.parse(1, broken) is None


def test_attempts_are_added_up_with_the_time_between_them() -> None:
    pairs = [
        record(status=None),
        record(ended="2026-01-01T00:03:00.000Z", status=75),
        record(ended="2026-01-01T00:04:30.000Z", status=137),
    ]
    parsed = [AttemptGoodput.parse(number, each) for number, each in enumerate(pairs, 1)]
    history = GoodputReport([each for each in parsed if each is not None])
    assert [each.failed for each in history.attempts] == [True, False, True]
    assert [each.wall for each in history.attempts] == [60.0] * 3
    assert history.down == pytest.approx(60 + 30)
    costs = history.costs
    assert costs is not None
    assert (costs.failures, costs.wall, costs.upload) == (2, 180.0, 2.0)
    assert costs.pause == 0.25
    assert costs.restart == pytest.approx(1 + 45)
    first, second = history.lines()
    assert first.startswith("goodput of 3 attempts 60.0 % of 4 min 30 s: 2 min 42 s useful")
    assert first.endswith("1 min 30 s down between attempts")
    assert "mean time between failures 1 min 30 s (2 seen)" in second
    assert GoodputReport([]).lines() == []


def test_each_attempt_says_and_keeps_where_its_time_went(app: App, storage: str) -> None:
    ended = app(*FIT, "--trainer.max_epochs=2", "--run_dir", storage)
    assert ended.status == 0
    assert re.search(r"^goodput \d+\.\d %: .* of .* trained new steps, .* took .*$", ended.err, re.MULTILINE)
    more = f"more: python -m pipeline verify --run_dir {storage}"
    assert re.search(rf"^suggested checkpoint interval: .* \(now .*\); {more}$", ended.err, re.MULTILINE)
    found = attempt(storage, 1)
    assert found["reached_step"] == 14
    assert found["goodput"]["saves"] == 2
    seconds = found["goodput"]["seconds"]
    assert seconds[USEFUL] > 0
    assert seconds[REPEATED] == 0
    assert found["goodput"]["share"] == pytest.approx(seconds[USEFUL] / sum(seconds.values()), abs=1e-3)
    ended = app(*FIT, "--trainer.max_epochs=3", "--run_dir", storage)
    assert re.search(r"^goodput \d+\.\d % over 2 attempts: ", ended.err, re.MULTILINE)
    ended = app("verify", "--run_dir", storage, "--mtbf", "3")
    assert ended.status == 0, ended.text
    assert "goodput of 2 attempts" in ended.out
    assert "mean time between failures 3 h 00 min (given)" in ended.out
    refused = app("verify", "--run_dir", storage, "--mtbf", "0")
    assert refused.status == 2
    assert "mtbf=0 must be a number of hours > 0" in refused.err


def test_broken_attempts_are_no_obstacle(app: App, tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    assert app(*FIT, "--trainer.max_epochs=1", "--run_dir", tmp_path).status == 0
    (tmp_path / RunDir.attempt(1)).write_text("{}")
    (tmp_path / RunDir.attempt(2)).write_text('{"schema": 1, "reached_step": "many", "last_step": [], "goodput": 3}')
    assert app("verify", "--run_dir", tmp_path).status == 0
    assert app(*FIT, "--trainer.max_epochs=2", "--run_dir", tmp_path).status == 0
    assert max(run.attempts()) == 3


def test_it_says_from_where_attempts_have_resumed() -> None:
    sources = (None, "memory", "storage", "memory", {"no": "source"})
    records = [record(resumed_from=source, ended=f"2026-01-01T00:0{n}:00.000Z") for n, source in enumerate(sources, 1)]
    attempts = [AttemptGoodput.parse(number, each) for number, each in enumerate(records, 1)]
    report = GoodputReport([each for each in attempts if each is not None])
    assert report.lines()[0].startswith("goodput of 5 attempts (2 resumed from memory, 1 resumed from storage) ")
    alone = GoodputReport(report.attempts[1:2])
    assert alone.lines()[0].startswith("goodput (resumed from memory) ")
    assert GoodputReport(report.attempts[:1]).lines()[0].startswith("goodput 9")


def test_the_end_of_an_attempt_says_it_in_two_short_lines() -> None:
    records = [record(status=None), record(ended="2026-01-01T00:03:00.000Z", status=75)]
    attempts = [AttemptGoodput.parse(number, each) for number, each in enumerate(records, 1)]
    report = GoodputReport([each for each in attempts if each is not None])
    assert report.summary("s3://bucket/run") == [
        "goodput 60.0 % over 2 attempts: 1 min 48 s of 3 min 00 s trained new steps, the time between attempts took "
        "1 min 00 s",
        "suggested checkpoint interval: 7.6 s (now 15 s); more: python -m pipeline verify --run_dir s3://bucket/run",
    ]
    one = GoodputReport(report.attempts[:1]).summary("r")[0]
    assert one.startswith("goodput 90.0 %: 54 s of 1 min 00 s trained new steps, ")
    assert GoodputReport([]).summary("r") == []
    assert all(len(line) < 120 for line in report.summary("runs/one"))
