"""`make gpu-check` works before a device is there: everything in it runs on the CPU, and finds what is wrong."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT, Ended, command

NEEDS_A_DEVICE = {"stack"}
QUICK = ("stack", "preflight", "snapshots", "save", "kill")
SLOW = ("sigterm", "bf16", "compile", "memory_recovery", "step")
PAGE = "# Before\n<!-- made by `make gpu-check`: begin -->\nold\n<!-- made by `make gpu-check`: end -->\nafter\n"


def gpu_check(folder: Path, *arguments: str, first: str = "") -> Ended:
    """The command on the CPU, after some statements of ours."""
    program = f"import runpy\n{first}\nrunpy.run_module('tests.gpu_check', run_name='__main__', alter_sys=True)"
    start = ("-c", program) if first else ("-m", "tests.gpu_check")
    return command(sys.executable, *start, "--cpu", "--json", folder / "gpu.json", *arguments, timeout=240)


def outcomes(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "gpu.json").read_text())
    assert found["machine"]["gpu"] is None
    return {each["check"]: each for each in found["checks"]}


@pytest.mark.timeout(260)
@pytest.mark.parametrize("names", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_without_a_device_everything_runs_on_the_cpu_and_says_what_was_not_measured(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    ended = gpu_check(tmp_path, *names, "--write-docs", str(page))
    assert ended.status == 0, ended.text
    assert "there is no CUDA device: everything runs smaller, on the CPU" in ended.out
    found = outcomes(tmp_path)
    expected = {name: "not measured" if name in NEEDS_A_DEVICE else "ok" for name in names}
    assert {name: each["verdict"] for name, each in found.items()} == expected, ended.out
    assert all(each["figures"] for name, each in found.items() if name not in NEEDS_A_DEVICE)
    for name in {"kill", "bf16", "compile", "sigterm"} & set(names):
        assert found[name]["figures"]["resumed from step"] == (5 if name == "sigterm" else 8)
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("after\n")
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \| .*\|$", text, re.MULTILINE)
    assert rows == [(name, "not measured") for name in names], "the CPU says nothing of a device"


NO_COPY = """
from pipeline.checkpoint.snapshot import Snapshots
Snapshots.take = lambda self, state: state
"""
OTHER_RANDOM_NUMBERS = """
from pipeline.training.state import rng_state
rng_state.set_random_state = lambda *_: None
"""


@pytest.mark.parametrize(
    ("first", "failing"),
    [
        pytest.param(NO_COPY, "snapshots", id="a snapshot that is no copy"),
        pytest.param(OTHER_RANDOM_NUMBERS, "kill", id="a resume with other random numbers", marks=pytest.mark.slow),
    ],
)
def test_what_does_not_hold_fails_and_the_others_are_made_all_the_same(
    first: str, failing: str, tmp_path: Path
) -> None:
    ended = gpu_check(tmp_path, failing, "preflight", first=first)
    assert ended.status == 1, ended.text
    assert f"failed: {failing}" in ended.err
    found = outcomes(tmp_path)
    assert {name: each["verdict"] for name, each in found.items()} == {failing: "FAILED", "preflight": "ok"}
    assert "values differ" in found[failing]["why"]


def test_what_is_left_when_the_time_is_over_is_not_measured(tmp_path: Path) -> None:
    ended = gpu_check(tmp_path, "kill", "preflight", "--limit", "1")
    assert ended.status == 0, ended.text
    for each in outcomes(tmp_path).values():
        assert (each["verdict"], each["why"]) == ("not measured", "the limit of 1 s for all checks was reached")


def test_every_check_is_made_by_some_test_and_stands_in_the_docs(tmp_path: Path) -> None:
    refused = gpu_check(tmp_path, "nothing")
    assert refused.status == 2
    names = re.findall(r"there are (.*)", refused.err)[0].split(", ")
    assert sorted(names) == sorted([*QUICK, *SLOW])
    section = (ROOT / "docs/performance.md").read_text().partition("<!-- made by `make gpu-check`: begin -->")[2]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == names
