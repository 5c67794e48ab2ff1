"""A run in words: what ran, what is proven, and what went wrong."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.run_records import summarize
from pipeline.commands.report.run_facts import read_facts
from pipeline.commands.report.sections import RunSection, run_section
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.reported import receipt, reported


def section(run: RunDir) -> RunSection:
    (summary,) = summarize(run.label)
    return run_section(read_facts(run), summary)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> RunSection:
    return section(reported(str(tmp_path_factory.mktemp("run"))))


def test_what_ran_is_told(told: RunSection) -> None:
    facts = told.facts
    assert told.state == "finished at step 400"
    assert facts["Model"] == "m.Model"
    assert facts["Nodes"] == "2 nodes x 1 process"
    assert facts["Hosts"] == "a, b"
    assert facts["Versions"] == "python 3.11.7, torch 2.13.0, lightning 2.6.6"
    assert facts["Revision"] == "0" * 12
    assert facts["Best checkpoint"] == "val_loss 0.25, step 2"
    assert facts["Started (UTC)"] == "2026-11-24 12:10:00"
    assert "Image" not in facts, "it is not known"


def test_attempts_checkpoints_and_metrics_are_tables(told: RunSection) -> None:
    assert told.attempts is not None
    assert [row[0] for row in told.attempts.rows] == ["1", "2"]
    assert told.attempts.rows[1][5:8] == ("200", "400", "storage")
    assert told.checkpoints is not None
    assert [row[:4] for row in told.checkpoints.rows] == [
        ("4", "1", "4 B", "0.5"),
        ("2", "1", "2 B", "0.25 (best)"),
    ]
    assert told.metrics is not None
    assert told.metrics.rows == [("test_loss", "0.035898"), ("broken", "not finite")]
    for table in (told.attempts, told.checkpoints, told.metrics):
        assert all(len(row) == len(table.header) for row in table.rows)


def test_the_figures_are_those_of_logs_telemetry_time_and_scores(told: RunSection) -> None:
    assert [each.title for each in told.curves] == ["loss", "lr-Adam", "epoch"]
    assert told.curves[0].layout["annotations"][0]["text"] == "attempt 2"
    assert [each.title for each in told.throughput][:2] == ["Throughput", "Where the time of the steps went"]
    assert told.time is not None
    assert [each.title for each in told.scores] == [
        "Distribution of reconstruction_error",
        "Distribution of correct",
    ]
    assert told.slowest


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "200 of 200 test samples were scored, once each, with the checkpoint step-00000004.ckpt on 1 device"),
        ({"missing": 3, "duplicates": 1}, "FAILED: of 200 test samples 3 were not scored and 1 were scored more"),
        ({"unproven": ["a stream", "two loaders"]}, "Not proven: 200 test samples were scored"),
        ({"samples_scored": "<b>", "devices": [], "seconds": "x", "checkpoint": 7}, "- of 200 test samples"),
    ],
)
def test_the_receipt_is_told_in_a_sentence(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    run = reported(str(tmp_path))
    run.write_json(RECEIPT, receipt(**more))
    assert any(said.startswith(words) for said in section(run).results)


def test_values_that_a_later_attempt_logged_again_are_said(told: RunSection) -> None:
    assert any("6 values that a later attempt logged again are hidden" in said for said in told.results)


@pytest.mark.parametrize(
    "record",
    [
        {"schema": 1},
        {"schema": 1, "started": 3, "ended": [], "world_size": "x", "first_step": {}, "versions": 7, "nodes": 0},
        {"schema": 1, "started": "2026-11-24T12:10:00Z", "ended": "2020-01-01T00:00:00Z", "host": 3, "world_size": 2},
    ],
)
def test_a_foreign_record_of_an_attempt_is_shown_as_far_as_it_goes(tmp_path: Path, record: dict[str, Any]) -> None:
    run = reported(str(tmp_path))
    run.write_json(RunDir.attempt(3), record)
    told = section(run)
    assert told.attempts is not None
    assert [row[0] for row in told.attempts.rows] == ["1", "2", "3"]


def test_many_checkpoints_are_counted_and_the_newest_listed(tmp_path: Path) -> None:
    from dataclasses import asdict

    from tests.support.checkpoints import a_record

    run = reported(str(tmp_path))
    for step in range(10, 230):
        run.write(RunDir.checkpoint(step), b"x" * step)
        run.write_json(RunDir.record(step), asdict(a_record(step)))
    told = section(run)
    assert told.checkpoints is not None
    assert told.checkpoints.rows[0][0] == "229"
    assert told.checkpoints.rows[-1][0] == "22 more"
    assert told.facts["Checkpoints"].startswith("222, ")


def test_a_run_of_which_nothing_is_known_has_a_section(tmp_path: Path) -> None:
    told = run_section(read_facts(RunDir(str(tmp_path))), None)
    assert told.state == "how it stands is not known"
    assert (told.facts, told.results, told.curves, told.attempts, told.time) == ({}, [], [], None, None)
