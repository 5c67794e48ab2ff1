"""The driver: train, wait, evaluate, show; and the whole of `make pipeline`."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.launch import main
from tests.support.commands import DIGITS, ROOT, command

LAUNCH = (sys.executable, "-m", "components.launch", "--config", DIGITS)


def test_help_lists_every_parameter_of_the_components() -> None:
    ended = command(*LAUNCH[:3], "--help")
    assert ended.status == 0
    for flag in (
        "--scheduler",
        "--run_dir",
        "--nodes",
        "--processes",
        "--image",
        "--mounts",
        "--checkpoint",
        "--rdzv_port",
    ):
        assert flag in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nodes", "2"], "--run_dir"),
        (["--run_dir", "r", "--node", "2"], "--node"),
        (["--run_dir", "r", "--nodes", "many"], "nodes='many'"),
        (["--run_dir", "memory://x"], "lives within one process"),
        (["--run_dir", "r", "--cpu", "two"], "'two' is not int"),
        (["--run_dir", "r", "--preflight", "maybe"], "'maybe' is neither true nor false"),
        (["--run_dir", "r", "--config", "missing.yaml"], "config='missing.yaml' does not exist"),
        (["--run_dir", "r", "-s", "local_docker"], "run_dir='r' is a folder within each container"),
        (["--run_dir", "s3://b/r", "-s", "local_docker", "--scheduler_args", "user"], "scheduler_args='user': "),
        (
            ["--run_dir", "s3://b/r", "-s", "local_docker", "--scheduler_args", "usr=3"],
            "scheduler_args=usr: local_docker has",
        ),
        (["--run_dir", "s3://b/r", "-s", "local_docker", "--workspace", "no/such"], "workspace='no/such' is no folder"),
        (["--run_dir", "r", "--env", "A=1", "--secrets", "A"], "secrets=A is also in env"),
        (["--run_dir", "r", "--notify", "ftp://h/S3CRET"], "notify='ftp://h/...' must be"),
        (["--run_dir", "r", "--notify", "true", "--detach"], "with --detach everybody would see it"),
        (["--run_dir", "r", "-s", "nowhere"], "scheduler='nowhere' must be one of"),
        (["--run_dir", "r", "--trainer.max_epochs=3"], "the app's own flags go after --"),
    ],
)
def test_a_mistake_is_reported_on_the_submitter_with_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_an_interrupt_or_a_closed_terminal_cancels_the_stage_and_leaves_no_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [*LAUNCH, "--run_dir", str(run), "--nodes", "2", "--", "--trainer.max_epochs=100000"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(run.glob("checkpoints/*.json")):
            assert time.monotonic() < deadline, "training never began"
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.2)
        process.send_signal(number)
        out, _ = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 130, out
    assert "train: cancelled" in out
    deadline = time.monotonic() + 15
    while still := running(str(run)):
        assert time.monotonic() < deadline, still
        time.sleep(0.2)


@pytest.mark.timeout(240)
def test_a_preempted_stage_ends_the_driver_with_75_and_the_same_command_resumes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    told = tmp_path / "told"
    more = (
        "--run_dir",
        str(run),
        "--notify",
        f"sh -c 'cat >> {told}; echo >> {told}'",
        "--",
        "--trainer.max_epochs=20",
    )
    process = subprocess.Popen([*LAUNCH, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(run.glob("checkpoints/*.json")):
            assert time.monotonic() < deadline, "training never began"
            time.sleep(0.1)
        (worker,) = [
            pid for pid, line in processes(str(run)) if " -m pipeline fit " in line and "pipeline.agent" not in line
        ]
        os.kill(worker, signal.SIGTERM)
        out, _ = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 75, out
    assert "train: preempted; rerun the same command to resume from its newest checkpoint" in out
    assert "Traceback" not in out
    assert not (run / "evaluation").exists()
    again = command(*LAUNCH, *more)
    assert again.status == 0, again.text
    assert "resumed at step" in again.text
    events = [json.loads(line) for line in told.read_text().splitlines()]
    assert [(each["event"], each["status"]) for each in events] == [("preempted", 75), ("finished", 0)], "by the driver"
    assert events[1]["reason"] == "trained and evaluated"


def running(word: str) -> list[str]:
    """Command lines of live processes that contain a word."""
    return [line for _, line in processes(word)]


def processes(word: str) -> list[tuple[int, str]]:
    """The live processes whose command line contains a word, except this one."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            line = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if word in line and int(pid) != os.getpid():
            found.append((int(pid), line))
    return found


GOLDEN = Path(__file__).parent / "golden" / "quickstart.txt"


def without_numbers(text: str, run: str) -> list[str]:
    """The lines of a log as they are for any numbers, times and speed of the machine.

    A slow one has more lines for the same: those within an epoch are left out, and those that repeat one another.
    """
    text = re.sub(r"^epoch \d+/\d+: .*\n", "", text.replace(run, "RUN"), flags=re.MULTILINE)
    text = re.sub(r"\d[\d.]*(e-\d+)? (ms|s|min|h)\b( \d+ (s|min)\b)?", "TIME", text)
    text = re.sub(r"\d+([.,]\d+)*(e-\d+)?", "#", text)
    lines = [line.rstrip() for line in re.sub(r"[a-z ]+ took TIME", " SOMETHING took TIME", text).splitlines()]
    return [line for at, line in enumerate(lines) if not at or line != lines[at - 1]]


@pytest.mark.timeout(240)
def test_make_pipeline_trains_on_two_nodes_scores_each_sample_once_and_fits_on_a_screen(tmp_path: Path) -> None:
    run = tmp_path / "quickstart"
    ended = command("make", "pipeline", f"RUN_DIR={run}", f"PYTHON={sys.executable}", timeout=150)
    assert ended.status == 0, ended.text
    lines = ended.text.splitlines()
    assert len(ended.out.splitlines()) <= 30 + len(re.findall(r"^epoch \d+/20", ended.out, re.MULTILINE)), ended.out
    assert without_numbers(ended.out, str(run)) == GOLDEN.read_text().splitlines()
    told = [line for line in lines if line.strip() and not line.startswith("-")]
    assert len(told) == len(set(told)), "no line twice"
    assert "\r" not in ended.text
    assert "\x1b" not in ended.text, "no bar fragments"
    for word in ("Warning", "Traceback", "warn(", "it/s", "[W", "Error"):
        assert word not in ended.text
    assert "started on 2 nodes x 1 process" in ended.text
    shown = dict(line.rsplit("  ", 1) for line in ended.out.splitlines()[-5:])
    assert shown["test samples scored"] == "360 of 360, once each"
    assert shown["run directory"] == str(run)
    assert shown["report"] == f"{run}/report.html"
    assert "once each" in (run / "report.html").read_text()
    assert 0 < float(shown["test_loss"]) < 0.05
    assert 0 < float(shown["final val_loss"].split(" ")[0]) < 0.05
    assert (run / "evaluation" / "receipt.json").exists()

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if "evaluation" not in str(path)}
    again = command(*LAUNCH, "--nodes", "2", "--cpu", "1", "--run_dir", run, timeout=150)  # what make runs
    assert again.status == 0, again.text
    assert "nothing to train" in again.text
    assert "360 of 360, once each" in again.text
    trained = {
        path: time
        for path, time in before.items()
        if path.is_file() and path.name not in ("test.yaml", "report.html", "run.json")
    }
    assert all(path.stat().st_mtime_ns == time for path, time in trained.items()), "not trained over"
