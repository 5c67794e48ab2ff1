"""Scores become distributions, whatever their columns hold, and pictures data URLs."""

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.report import score_table
from pipeline.commands.report.score_table import read_pictures, read_scores
from pipeline.run.run_dir import PICTURES, SCORES, RunDir
from tests.support.reported import picture


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(str(tmp_path))


def test_each_column_of_numbers_has_its_distribution(storage: str) -> None:
    run = RunDir(storage)
    run.write(SCORES, b"index,loss,label\n" + b"".join(b"%d,%d.5,3\n" % (row, row) for row in range(101)))
    (loss, label), left_out = read_scores(run)
    assert left_out == []
    assert (loss.name, loss.samples, loss.others, loss.mean) == ("loss", 101, 0, 50.5)
    assert (loss.quantiles["min"], loss.quantiles["median"], loss.quantiles["max"]) == (0.5, 50.5, 100.5)
    assert sum(loss.counts) == 101
    assert len(loss.edges) == len(loss.counts) + 1
    assert (label.name, label.counts) == ("label", [101])


def test_empty_cells_truth_values_and_nan_are_no_obstacle(run: RunDir) -> None:
    run.write(SCORES, b'index,loss,right,"a,b",text\n0,nan,True,,x\n1,2,False,3,y\n2,inf,True,5,z\nshort\n')
    found, _ = read_scores(run)
    assert [(each.name, each.samples, each.others, each.mean) for each in found] == [
        ("loss", 1, 2, 2.0),
        ("right", 3, 0, pytest.approx(2 / 3)),
        ("a,b", 2, 1, 4.0),
    ]


@pytest.mark.parametrize("data", [b"", b"index\n", b"index\n1\n2\n", b"\xff\xfe\x00", b"index,loss\n", b"a\nb\nc,d\n"])
def test_a_table_without_scores_has_no_distribution(run: RunDir, data: bytes) -> None:
    run.write(SCORES, data)
    assert read_scores(run) == ([], [])


def test_of_a_huge_table_the_head_is_read_and_that_is_said(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write(SCORES, b"index,loss\n" + b"1,2\n" * 100)
    monkeypatch.setattr(score_table, "_BYTES", 99)
    (loss,), (said,) = read_scores(run)
    assert loss.samples == 22
    assert "the distributions are of its first 99" in said


def listed(**more: Any) -> dict[str, Any]:
    return {"column": "loss", "lowest": [{"index": 5, "score": 0.1, "file": "lowest-1.png"}], "highest": [], **more}


def test_a_picture_is_part_of_the_page(run: RunDir) -> None:
    run.write(f"{PICTURES}/lowest-1.png", picture(9))
    run.write_json(f"{PICTURES}/pictures.json", listed())
    found = read_pictures(run)
    (shown,) = found.of("lowest")
    assert (found.column, shown.index, shown.score) == ("loss", 5, 0.1)
    assert shown.url.startswith("data:image/png;base64,iVBOR")
    assert found.of("highest") == []


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {},
        {"index": 1, "score": 1.0, "file": "../../receipt.json"},
        {"index": "<b>", "score": 1.0, "file": "lowest-1.png"},
        {"index": 1, "score": math.pi, "file": "text.png"},
        {"index": 1, "score": 1.0, "file": "absent.png"},
    ],
)
def test_a_foreign_entry_is_no_picture(run: RunDir, entry: Any) -> None:
    run.write(f"{PICTURES}/lowest-1.png", picture(9))
    run.write(f"{PICTURES}/text.png", b"<script>")
    run.write_json(f"{PICTURES}/pictures.json", listed(lowest=[entry]))
    assert read_pictures(run).pictures == ()


def test_a_list_of_another_form_shows_nothing(run: RunDir) -> None:
    run.write_json(f"{PICTURES}/pictures.json", {"lowest": 3})
    assert read_pictures(run).pictures == ()
