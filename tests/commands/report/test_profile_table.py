"""What profiled steps spent their time on, as the report tells it."""

from collections.abc import Callable
from typing import Any

from pipeline.commands.report.profile_table import profile_table, read_profiles
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended
from tests.support.runs import FIT

App = Callable[..., Ended]


def profile(**more: Any) -> dict[str, Any]:
    operator = {"name": "aten::mm", "calls": 12, "share": 0.75, "self_cpu_microseconds": 1500.0}
    return {"attempt": 2, "rank": 0, "device": "cpu", "first_step": 10, "steps": 5, "operators": [operator], **more}


def test_what_fit_left_is_read_on_each_storage(app: App, storage: str) -> None:
    ended = app(*FIT, "--profile=2:4", "--run_dir", storage)
    assert ended.status == 0, ended.err
    (found,) = read_profiles(RunDir(storage))
    assert (found.attempt, found.rank, found.first_step, found.steps) == (1, 0, 2, 2)
    table = profile_table(found)
    assert table.caption == "Rank 0, steps 2 to 3 of attempt 1, on the CPU"
    assert len(table.rows) == 10
    assert any(row[0].startswith("aten::") for row in table.rows)


def test_the_newest_attempt_that_has_some_is_shown_rank_by_rank(storage: str) -> None:
    run = RunDir(storage)
    run.write_json("logs/profile/attempt-0001/rank-0.json", profile(attempt=1))
    for rank in (10, 2):
        run.write_json(f"logs/profile/attempt-0002/rank-{rank}.json", profile(rank=rank))
    run.write("logs/profile/attempt-0003/rank-0.json", b"torn")
    assert [(each.attempt, each.rank) for each in read_profiles(run)] == [(2, 2), (2, 10)]
    assert profile_table(read_profiles(run)[0]).rows == [("aten::mm", "12", "75.0 %", "1.5")]


def test_a_run_without_profiles_has_none_and_damage_is_left_out(storage: str) -> None:
    run = RunDir(storage)
    assert read_profiles(run) == []
    run.write_json("logs/profile/attempt-0001/rank-0.json", {"operators": {}, "first_step": "x"})
    run.write_json("logs/profile/attempt-0001/rank-1.json", profile(operators=["x", {"name": 3}]))
    (found,) = read_profiles(run)
    assert profile_table(found).rows[0][0] == "3"


def test_time_on_a_device_is_shown_where_there_is_some(storage: str) -> None:
    run = RunDir(storage)
    operator = {"name": "k", "calls": 1, "share": 1.0, "self_cpu_microseconds": 9e6, "self_device_microseconds": 2e6}
    run.write_json("logs/profile/attempt-0001/rank-0.json", profile(operators=[operator]))
    table = profile_table(read_profiles(run)[0])
    assert table.caption.endswith("on the device")
    assert table.rows[0][3] == "2,000.0"
