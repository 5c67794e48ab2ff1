"""The benchmarks run, each of them in a moment, and tell what they are asked to tell."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support.commands import ROOT, Ended, command, heeding_ctrl_c
from tests.support.fits import fit

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
    assert "out of a loader" in pages[1].read_text(), "the subject that was not measured again"
    assert "2 ranks" in pages[1].read_text()
    assert "| What | Cost | Ratio to | Bar |" in pages[0].read_text()
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


CURVES = ["agents", "ranks", "samples", "batch", "state", "checkpoints", "epochs", "attempts"]
PAGE = "# Before\n<!-- made by `make growth`: begin -->\nold\n<!-- made by `make growth`: end -->\nafter\n"


def test_every_curve_is_measured_drawn_and_told(tmp_path: Path) -> None:
    page = tmp_path / "docs/performance.md"
    page.parent.mkdir()
    page.write_text(PAGE)
    more = ("--scale", "tiny", "--json", tmp_path / "growth.json", "--write-docs", tmp_path)
    ended = command(sys.executable, "-m", "tests.benchmarks.growth", *more, timeout=100)
    assert ended.status == 0, ended.text
    found, text = json.loads((tmp_path / "docs/growth.json").read_text()), page.read_text()
    assert [one["curve"] for one in found["curves"]] == CURVES
    for one in found["curves"]:
        drawn = ElementTree.parse(tmp_path / f"docs/growth/{one['curve']}.svg")
        spots = drawn.findall("{*}circle")
        assert len(spots) == len(one["lines"]) * (1 + len(one["points"])), "and the legend"
        assert len(one["points"]) >= 2
        assert not one["ends"]
        assert f"]({Path('growth', one['curve'])}.svg)" in text
        for line in one["lines"]:
            assert all(point["costs"][line["name"]]["value"] > 0 for point in one["points"])
            assert line["law"].startswith(line["growth"])
            assert line["law"] in str(drawn.findtext("{*}desc")), "the text alternative"
            assert f" {line['name']} |" in text
    assert text.startswith("# Before\n")
    assert text.endswith("after\n")
    assert "\nold\n" not in text
    paper = found["on paper"]
    assert all(f"| {what} | {cost} |" in text for what, cost in paper["an hour"].items())
    assert f"The first wall stands at {paper['walls'][0][1]}: {paper['walls'][0][0]}. The first one of nodes" in text


@pytest.mark.parametrize(
    ("growth", "law"),
    [
        ("constant", lambda n: 7e-6),
        ("log n", lambda n: 0.1 + 0.5 * math.log2(n)),
        ("linear", lambda n: 0.001 + 2e-6 * n),
        ("n log n", lambda n: 3e-8 * n * math.log2(n)),
        ("quadratic", lambda n: 0.01 + 1e-7 * n * n),
        ("cubic", lambda n: 5.0 * n**3),
    ],
)
def test_a_law_is_found_again_in_noise_and_beyond_what_was_measured(growth: str, law: Callable[[float], float]) -> None:
    sizes = [2.0**power for power in range(1, 17)]
    noise = [1.02, 0.98, 0.99, 1.01]
    found = fit(sizes, [law(size) * noise[place % 4] for place, size in enumerate(sizes)])
    assert found.growth == growth
    assert found.at(1e6) == pytest.approx(law(1e6), rel=0.05)


def test_what_small_sizes_cost_by_themselves_is_no_growth() -> None:
    sizes = [2.0**power for power in range(1, 11)]
    assert fit(sizes, [3 - 2 / size for size in sizes]).growth == "constant"
