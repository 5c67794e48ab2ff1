"""Figures of telemetry: what there are numbers for, and nothing else."""

from pathlib import Path

from pipeline.commands.report.figure import StepMark
from pipeline.commands.report.telemetry_figures import slowest_sentence, telemetry_figures
from pipeline.commands.report.telemetry_windows import TelemetryWindows, telemetry_windows
from pipeline.run.run_dir import RunDir
from pipeline.run.telemetry_record import read_telemetry
from tests.support.reported import telemetry_part, window


def windows(tmp_path: Path, **more: object) -> TelemetryWindows:
    run = RunDir(str(tmp_path))
    run.write("logs/telemetry/0001-0001.jsonl", telemetry_part(1, *(window(step, **more) for step in range(0, 90, 10))))
    return telemetry_windows(read_telemetry(run), {})


def test_each_kind_of_number_is_a_figure_in_units_that_a_person_reads(tmp_path: Path) -> None:
    found = windows(tmp_path, mfu=0.41, device_memory=3.2e10)
    figures = {each.title: each for each in telemetry_figures(found, [StepMark(40, "attempt 2")])}
    assert list(figures) == [
        "Throughput",
        "Where the time of the steps went",
        "Model FLOPs utilization",
        "Time of a step",
        "Greatest memory of a process",
        "Throughput of each node",
    ]
    assert figures["Model FLOPs utilization"].traces[0]["y"][0] == 41.0
    assert [each["name"] for each in figures["Time of a step"].traces] == ["median", "95th percentile", "slowest"]
    assert figures["Time of a step"].traces[0]["y"][0] == 20.0
    assert figures["Greatest memory of a process"].traces[1]["y"][0] == 32.0
    assert [each["name"] for each in figures["Throughput of each node"].traces] == ["a", "b"]
    assert figures["Throughput"].layout["shapes"][0]["x0"] == 40


def test_the_shares_of_the_time_are_stacked_and_told_in_words(tmp_path: Path) -> None:
    (shares,) = (each for each in telemetry_figures(windows(tmp_path), []) if "steps went" in each.title)
    assert sum(trace["y"][0] for trace in shares.traces) == 100
    assert "forward and backward 60.0 %" in shares.summary
    assert ("waiting for data", "10.0 %", "10.0 %") in shares.table.rows


def test_without_windows_there_are_no_figures() -> None:
    assert telemetry_figures(TelemetryWindows(), []) == []
    assert slowest_sentence(TelemetryWindows()) == ""


def test_the_slowest_ranks_are_named(tmp_path: Path) -> None:
    assert slowest_sentence(windows(tmp_path)) == "Slowest most often, of 9 windows: rank 1 on b in 9."
