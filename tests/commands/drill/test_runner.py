"""A drill carries out real faults on real processes: what is kept passes, and what is forgotten is found."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.run.run_dir import RunDir
from tests.support.commands import DIGITS, ROOT, command, heeding_ctrl_c

DRILL = (sys.executable, "-m", "pipeline", "drill")


# The drills of .ci/run are longer ones.
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_drill_carries_out_its_faults_and_nothing_is_lost(tmp_path: Path) -> None:
    more = ("--faults=3", "--seed=1", "--args=--trainer.max_epochs=2 --trainer.enable_model_summary=false")
    ended = command(*DRILL, "--config", DIGITS, "--run_dir", tmp_path / "drill", *more, timeout=220)
    assert ended.status == 0, ended.text
    assert "3 faults, nothing lost" in ended.out
    assert "left out: outage, a local disk does not go away" in ended.out
    assert "weights: equal bit for bit" in ended.out
    found = RunDir(str(tmp_path / "drill")).read_json("drill.json")
    assert found is not None
    assert found["verdict"] is True
    assert (found["seed"], found["config"], found["nodes"], found["processes"]) == (1, DIGITS, 2, 1)
    assert found["steps"] == 40
    assert [fault["injected"] for fault in found["faults"]] == [True] * 3
    assert all(fault["held"] for fault in found["faults"])
    assert found["seconds"].keys() == {"reference", "drilled", "lost"}
    assert {each["name"] for each in found["comparisons"]} >= {"weights", "optimizers", "losses", "steps", "ledger"}
    assert (tmp_path / "drill" / "reference" / "fit.yaml").exists()


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_what_a_checkpoint_forgets_is_found(tmp_path: Path) -> None:
    rows = {"class_path": "tests.support.models.Rows"}
    config = {
        "model": {"class_path": "tests.support.models.UnsavedGenerator"},
        "data": {"class_path": "pipeline.data.DataModule", "init_args": {"train": rows, "val": rows, "batch_size": 16}},
        "trainer": {"max_epochs": 2, "enable_model_summary": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    more = ("--faults=1", "--nodes=1", "--run_dir", tmp_path / "drill")
    kept = {"TMPDIR": str(tmp_path)}
    ended = command(*DRILL, "--config", tmp_path / "config.yaml", *more, env=kept, timeout=140)
    assert ended.status == 1, ended.text
    assert "FAILED  weights: layers." in ended.out
    assert "FAILED  losses: step " in ended.out
    found = json.loads((tmp_path / "drill" / "drill.json").read_text())
    assert found["verdict"] is False
    assert f"logs are kept in {tmp_path}/pipeline-drill-" in ended.out


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_drill_that_ends_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    with heeding_ctrl_c():
        process = subprocess.Popen(
            [*DRILL, "--config", DIGITS, "--run_dir", str(tmp_path / "drill")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
        )
    try:
        until(lambda: len(running(str(tmp_path))) >= 5)  # the drill, two agents and their workers
        process.send_signal(number)
        status = process.wait(20)
    finally:
        process.kill()
    assert status == (130 if number is not signal.SIGKILL else -9)
    until(lambda: not running(str(tmp_path)))


def until(so: Any, seconds: float = 40) -> None:
    began = time.monotonic()
    while not so():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)


def running(word: str) -> list[int]:
    """The processes that run and name a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
