"""The benchmarks run, each of them in a moment, and tell what they are asked to tell."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT, Ended, command, heeding_ctrl_c

GROUPS = {
    "one of each kind": ("step", "samples", "evaluation", "save"),
    "steps": ("step_alone", "step_heavy", "parts"),
    "data": (
        "loader",
        "samples_drawn",
        "samples_workers",
        "epoch_start",
        "epoch_order",
        "ranks",
        "nodes",
        "evaluation_memory",
    ),
    "starts": ("first_step", "recovery"),
    "starts of a node": ("recovery_node",),
    "saves": ("save_memory", "load", "save_beside", "save_beside_ranks", "memory_keep", "memory_fetch"),
}
ELSEWHERE = {"turnaround": "needs containers"}


def bench(folder: Path, *arguments: str) -> Ended:
    program = (sys.executable, "-m", "tests.benchmarks", "--scale", "tiny", "--json", folder / "bench.json")
    return command(*program, *arguments, timeout=380)


@pytest.mark.timeout(400)  # a cold start takes 20 seconds where others use the cores, too
@pytest.mark.parametrize(
    "group", [pytest.param(name, marks=pytest.mark.slow if place else ()) for place, name in enumerate(GROUPS)]
)
def test_every_contender_of_a_subject_is_measured(group: str, tmp_path: Path) -> None:
    ended = bench(tmp_path, *GROUPS[group])
    assert ended.status == 0, ended.text
    found = json.loads((tmp_path / "bench.json").read_text())
    assert [one["subject"] for one in found["subjects"]] == list(GROUPS[group])
    assert found["machine"]["cores"] >= 1
    assert {"commit", "python", "torch", "lightning"} <= set(found["versions"])
    for one in found["subjects"]:
        assert all(row["cost"]["value"] >= 0 for row in one["rows"])
        contenders = {row["contender"] for row in one["rows"]}
        assert one["reference"] is None or one["reference"] in contenders
        for row in one["rows"]:
            assert row["contender"] in ended.out
            assert row["cost"]["low"] <= row["cost"]["value"] <= row["cost"]["high"]


def test_every_subject_is_measured_by_some_test(tmp_path: Path) -> None:
    refused = bench(tmp_path, "nothing")
    assert refused.status == 2
    listed = re.findall(r"there are (.*)", refused.err)[0].split(", ")
    assert sorted(listed) == sorted([*ELSEWHERE, *(name for names in GROUPS.values() for name in names)])


@pytest.fixture
def earlier(tmp_path: Path) -> dict[str, Any]:
    """A result of two subjects."""
    assert bench(tmp_path, "loader", "ranks").status == 0
    found: dict[str, Any] = json.loads((tmp_path / "bench.json").read_text())
    return found


def row_of(result: dict[str, Any], subject: str, contender: str, quantity: str) -> dict[str, Any]:
    one = next(each for each in result["subjects"] if each["subject"] == subject)
    found: dict[str, Any] = next(
        row for row in one["rows"] if (row["contender"], row["quantity"]) == (contender, quantity)
    )
    return found


def test_what_has_moved_beyond_the_noise_is_told_and_nothing_else(earlier: dict[str, Any], tmp_path: Path) -> None:
    for one in earlier["subjects"]:
        for row in one["rows"]:
            for spread in (row["cost"], row["ratio"]):
                if spread is not None:
                    spread |= {"low": 0.0, "high": 1e12}
    row_of(earlier, "loader", "this pipeline", "cpu")["ratio"] = {"value": 1000.0, "low": 990.0, "high": 1010.0}
    row_of(earlier, "loader", "stock DataLoader", "cpu")["ratio"] = {"value": 1e-6, "low": 1e-6, "high": 2e-6}
    row_of(earlier, "ranks", "2 ranks", "keys read each")["cost"] = {"value": 1.0, "low": 1.0, "high": 1.0}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    ended = bench(tmp_path, "loader", "ranks", "--against", str(tmp_path / "earlier.json"))
    told = ended.out.partition("\nagainst ")[2].splitlines()[1:]
    assert [line.partition(":")[0].strip() for line in told] == [
        "loader, this pipeline, cpu",
        "loader, stock DataLoader, cpu",
        "ranks, 2 ranks, keys read each",
    ]
    assert ["WORSE" in line for line in told] == [True, False, True], told


def test_tables_are_written_into_the_docs_beside_what_was_kept(earlier: dict[str, Any], tmp_path: Path) -> None:
    kept = tmp_path / "docs/performance.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps(earlier))
    pages = tmp_path / "README.md", tmp_path / "docs/performance.md"
    for page in pages:
        page.write_text(
            "# Before\n<!-- made by `make bench`: begin -->\nold\n<!-- made by `make bench`: end -->\nafter\n"
        )
    assert bench(tmp_path, "ranks", "--write-docs", str(tmp_path)).status == 0
    for page in pages:
        text = page.read_text()
        assert text.startswith("# Before\n")
        assert text.endswith("after\n")
        assert "old" not in text
        assert "out of a loader" in text, "the subject that was not measured again"
    assert "2 ranks" in pages[1].read_text()
    subjects = json.loads(kept.read_text())["subjects"]
    assert [one["subject"] for one in subjects] == ["loader", "ranks"]
    assert subjects[1]["made"] >= earlier["subjects"][1]["made"]


def test_a_subject_that_fails_leaves_the_others_measured(tmp_path: Path) -> None:
    ended = bench(tmp_path, "save", "ranks", "--url", "nowhere://bucket/prefix")
    assert ended.status == 1
    assert "failed: save" in ended.err
    assert [one["subject"] for one in json.loads((tmp_path / "bench.json").read_text())["subjects"]] == ["ranks"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_benchmark_that_is_stopped_leaves_nothing_on_the_storage(tmp_path: Path, number: signal.Signals) -> None:
    storage, program = tmp_path / "storage", (sys.executable, "-m", "tests.benchmarks", "--scale", "quick", "save")
    with heeding_ctrl_c():
        more = ("--json", str(tmp_path / "bench.json"), "--url", str(storage))
        process = subprocess.Popen([*program, *more], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not list(storage.glob("bench-*/*/*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert not list(storage.glob("bench-*"))
