"""Several runs beside each other: their results, the flags in which they differ, their curves."""

from pathlib import Path

import pytest

from pipeline.checkpoint.run_records import summarize
from pipeline.commands.report.comparison import compared, distinct_labels
from pipeline.commands.report.run_facts import read_facts
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.reported import receipt, reported


def test_runs_are_compared_by_results_flags_and_curves(tmp_path: Path) -> None:
    runs = [
        reported(str(tmp_path / "one")),
        reported(str(tmp_path / "two"), scale=2.0, learning_rate=0.3, layers=list(range(100))),
    ]
    runs[1].write_json(RECEIPT, receipt(metrics={"test_loss": 0.07, "accuracy": 0.9}))
    found = compared([(read_facts(run), *summarize(run.label)) for run in runs])  # type: ignore[arg-type]
    assert found is not None
    assert found.results.header[-5:] == ("val_loss (best)", "val_loss (last)", "test_loss", "broken", "accuracy")
    assert [row[0] for row in found.results.rows] == ["one", "two"]
    assert [row[-3:] for row in found.results.rows] == [("0.035898", "-", "-"), ("0.07", "-", "0.9")]
    assert found.config is not None
    assert found.config.header == ("flag", "one", "two")
    assert ("model.learning_rate", "0.1", "0.3") in found.config.rows
    assert all(len(cell) <= 121 for row in found.config.rows for cell in row)
    loss = next(each for each in found.curves if each.title == "train_loss")
    assert [trace["name"].partition(":")[0] for trace in loss.traces] == ["one", "two"]


def test_where_there_are_more_runs_than_flags_each_run_has_a_row(tmp_path: Path) -> None:
    rates = {"one": 0.1, "two": 0.3, "three": 0.5}
    runs = [reported(str(tmp_path / name), learning_rate=rate) for name, rate in rates.items()]
    found = compared([(read_facts(run), None) for run in runs])
    assert found is not None
    assert found.config is not None
    assert found.config.header == ("run", "model.learning_rate")
    assert found.config.rows == [(name, str(rate)) for name, rate in rates.items()]


def test_the_monitored_value_comes_first_and_curves_are_known_by_what_was_tried(tmp_path: Path) -> None:
    runs = [reported(str(tmp_path / name), learning_rate=rate) for name, rate in (("one", 0.1), ("two", 0.3))]
    found = compared([(read_facts(run), *summarize(run.label)) for run in runs])  # type: ignore[arg-type]
    assert found is not None
    assert found.curves[0].title == "val_loss"
    assert [trace["name"] for trace in found.curves[0].traces] == ["one: learning_rate=0.1", "two: learning_rate=0.3"]


def test_runs_of_one_configuration_differ_in_nothing(tmp_path: Path) -> None:
    runs = [reported(str(tmp_path / name)) for name in ("one", "two")]
    found = compared([(read_facts(run), None) for run in runs])
    assert found is not None
    assert found.config is None
    assert found.results.rows[0][1] == "-"


def test_a_run_without_anything_can_be_compared(tmp_path: Path) -> None:
    found = compared([(read_facts(RunDir(str(tmp_path / name))), None) for name in ("one", "two")])
    assert found is not None
    assert found.curves == []


def test_a_single_run_is_not_compared(tmp_path: Path) -> None:
    assert compared([(read_facts(RunDir(str(tmp_path))), None)]) is None


@pytest.mark.parametrize(
    ("labels", "short"),
    [
        (["runs/a", "runs/b"], ["a", "b"]),
        (["s3://b/x/a", "s3://b/y/a"], ["x/a", "y/a"]),
        (["runs/a", "runs/a/b"], ["a", "a/b"]),
        (["/a", "b"], ["/a", "b"]),
        (["runs/a/", "runs/a"], ["a", "a"]),
    ],
)
def test_names_leave_out_what_all_of_them_have_in_common(labels: list[str], short: list[str]) -> None:
    assert distinct_labels(labels) == short
