"""A drill carries out real faults on real processes: what is kept passes, and what is forgotten is found."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.commands.drill import options, runner
from pipeline.commands.drill.plan import FaultKind
from pipeline.run.run_dir import RunDir
from tests.support.commands import DIGITS, ROOT, Ended, command, heeding_ctrl_c
from tests.support.web_host import Host

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
        "checkpoints": {"every_n_steps": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    # Of this seed the fault is a preemption in the middle, which saves a checkpoint and so is resumed from one.
    more = ("--faults=1", "--seed=20", "--nodes=1", "--run_dir", tmp_path / "drill")
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


@pytest.mark.timeout(90)
def test_a_mistake_in_the_configuration_is_the_users_and_leaves_nothing(
    app: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ended = app(
        "drill", "--config", DIGITS, "--run_dir", tmp_path / "drill", "--nodes=1", "--args=--trainer.nonsense=1"
    )
    assert ended.status == 2, ended.text
    assert "nonsense" in ended.err
    assert "training the reference" in ended.err
    assert list(tmp_path.glob("pipeline-drill-*")) == []
    assert not (tmp_path / "drill" / "drill.json").exists()


def test_a_signal_ends_the_drill_and_its_handler_is_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with pytest.raises(KeyboardInterrupt), runner._stop_signals():
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_storage_and_data_that_are_away_at_a_start_are_waited_for(
    app: Callable[..., Ended], s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, away, real = Host(), {FaultKind.OUTAGE_START, FaultKind.OUTAGE_DATA}, options.possible_kinds

    def possible_kinds(*arguments: Any) -> Any:
        kinds, left_out = real(*arguments)
        assert away <= set(kinds), left_out
        return sorted(away), left_out

    monkeypatch.setattr(options, "possible_kinds", possible_kinds)
    # Not the address of the S3 server, which the data's proxy leaves alone.
    url = host.url.replace("127.0.0.1", "localhost")
    train = {"class_path": "tests.support.late_data.Fetched", "init_args": {"url": url}}
    config = {
        "model": {"class_path": "tests.support.models.Regression"},
        "data": {"class_path": "pipeline.data.DataModule", "init_args": {"train": train, "batch_size": 16}},
        "trainer": {"max_epochs": 2, "enable_model_summary": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = f"{s3}/{uuid.uuid4().hex[:12]}/drill"
    ended = app("drill", "--config", tmp_path / "config.yaml", "--run_dir", run, "--faults=2", "--nodes=1")
    host.gone()
    assert ended.status == 0, ended.text
    assert "2 faults, nothing lost" in ended.out
    found = RunDir(run).read_json("drill.json")
    assert found is not None
    assert {fault["kind"]: fault["ended"] for fault in found["faults"]} == {kind: [-9] for kind in away}
    assert all(fault["resumed"] for fault in found["faults"])
    assert host.requests.count("GET") == 3, "the reference's, and one of each start with an empty cache"


def test_between_the_job_and_its_server_is_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as stack:
        port = server.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}/base")
        proxy, environment = runner._proxied_storage(stack)
        assert environment == dict.fromkeys(
            ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), f"http://127.0.0.1:{proxy.port}/base"
        )
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
            client.sendall(b"hello")
            accepted, _ = server.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
