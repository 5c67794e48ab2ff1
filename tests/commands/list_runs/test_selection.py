"""Which runs are listed, and in which order."""

from datetime import UTC, datetime

import pytest

from pipeline.checkpoint.run_summary import RunCondition
from pipeline.commands.list_runs.selection import SORTS, ordered, selected
from pipeline.errors import UserError
from tests.support.summaries import a_run

RUNS = [
    a_run("a", 0.5, config={"model.lr": 0.1, "model.name": "a*b", "model.layers": [8, 8], "x.flag": True}, bytes=10**6),
    a_run("b", 0.25, config={"model.lr": 1e-3, "model.name": "ab", "x.flag": None}, goodput=0.9, step=7, bytes=10),
    a_run("c", state=RunCondition.FAILED, status=1, started=None, metrics={"test_loss": 0.1}, bytes=5 * 10**9),
    a_run(
        "d",
        0.75,
        "max",
        state=RunCondition.RUNNING,
        status=None,
        started=datetime(2026, 11, 25, tzinfo=UTC),
        goodput=0.95,
    ),
]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ([], "abcd"),
        (["state=failed"], "c"),
        (["state==failed"], "c"),
        (["state!=failed"], "bad"),
        (["state=f*"], "abc"),
        (["status=0"], "ab"),
        (["metric<0.5"], "b"),
        (["metric<=0.5", "state=finished"], "ab"),
        (["model.lr>0.01"], "a"),
        (["model.lr=0.001"], "b"),
        (["model.lr=1e-3"], "b"),
        (["model.lr!=0.001"], "acd"),
        (["model.name=a*b"], "ab"),
        (["model.layers=[8, 8]"], "a"),
        (["x.flag=true"], "a"),
        (["x.flag=null"], "b"),
        (["x.flag>0"], ""),
        (["test_loss < 0.2"], "c"),
        (["size>=1MB"], "ac"),
        (["goodput<92%"], "b"),
        (["goodput>0.92"], "d"),
        (["started>2026-11-24T18:00"], "d"),
        (["name=[ab]"], "ab"),
        (["step=7"], "b"),
    ],
)
def test_filters(filters: list[str], names: str) -> None:
    assert sorted(run.label[-1] for run in selected(RUNS, filters, "runs")) == sorted(names)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("failed", "must be <name><sign><value>"),
        ("=x", "must be <name><sign><value>"),
        ("state=fail", "state must be one of running, .*did you mean 'failed'"),
        ("metric<low", "'low' must be a number"),
        ("metric<nan", "'nan' must be a number"),
        ("started>yesterday", "'yesterday' must be a date"),
        ("model.Lr=1", "no run here has 'model.Lr'; did you mean 'model.lr'"),
    ],
)
def test_a_filter_that_is_none_is_the_user_s_to_mend(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        selected(RUNS, [given], "runs")


def test_where_there_are_no_runs_no_name_is_unknown() -> None:
    assert selected([], ["model.lr=1"], "runs") == []


@pytest.mark.parametrize(
    ("by", "names"),
    [
        ("started", "dabc"),
        ("name", "abcd"),
        ("metric", "dbac"),
        ("goodput", "dbac"),
        ("size", "cabd"),
        ("step", "bdac"),
        ("state", "dcab"),
        ("updated", "dabc"),
    ],
)
def test_orders(by: str, names: str) -> None:
    assert "".join(run.label[-1] for run in ordered(RUNS, by)) == names
    assert by in SORTS


def test_the_best_comes_first_by_the_mode_of_its_own_monitor() -> None:
    runs = [a_run(f"{value}", value, "max") for value in (0.1, 0.3, 0.2)]
    assert [run.label for run in ordered(runs, "metric")] == ["runs/0.3", "runs/0.2", "runs/0.1"]
