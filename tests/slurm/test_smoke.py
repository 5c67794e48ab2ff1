"""Jobs on a real Slurm of two nodes: `make smoke-slurm`; `make test` needs none."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.checkpoint.commit import newest
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import ROOT, command
from tests.support.launcher_cases import CASES, Launcher, tried
from tests.support.slurm_cluster import Cluster

QUIET = "--trainer.enable_model_summary=false"
PACED = (
    *("--trainer.max_epochs=8", "--trainer.callbacks+=own.Paced", "--checkpoints.every_n_steps=10"),
    QUIET,
)
ENDLESS = (*PACED, "--trainer.max_epochs=1000")
TWO = ("--nodes", "2")


def state_of(handle: str) -> str:
    return command("torchx", "--log_level", "ERROR", "status", handle).text


def steps(run: Path) -> int:
    record = newest(RunDir(str(run)))
    return record.step if record else 0


def attempts(run: Path) -> list[int | None]:
    found = RunDir(str(run))
    return [(found.read_json(RunDir.attempt(number)) or {}).get("status") for number in sorted(found.attempts())]


@pytest.mark.timeout(400)
def test_two_nodes_train_and_one_evaluates(launch: Callable[..., Any], tmp_path: Path, cluster: Cluster) -> None:
    run = tmp_path / "run"
    arguments = ("--scheduler_args", "partition=main,time=10,comment=it's mine,sbatch_args=--nice=5")
    with launch(*TWO, *arguments, "--run_dir", run, "--", "--trainer.max_epochs=2", QUIET) as launched:
        assert launched.status() == 0, launched.output
        job = launched.job
        shown = launched.shows(job)
    assert "test samples scored  360 of 360, once each" in launched.output
    receipt = RunDir(str(run)).read_json(RECEIPT)
    assert receipt is not None
    assert receipt["samples_scored"] == receipt["samples_expected"] == 360
    assert " JobState=COMPLETED " in shown
    assert " NumNodes=2 " in shown
    assert " TimeLimit=00:10:00 " in shown
    assert " Nice=5 " in shown
    assert "Comment=it's mine" in shown
    told = command("torchx", "--log_level", "ERROR", "log", f"slurm://torchx/{job}/train").text
    assert re.search(r"train/\d \S*\w* ?finished: step 40", re.sub(r"\x1b\[\d*m", "", told)), told
    assert f"slurm://torchx/{job}  SUCCEEDED" in command("torchx", "--log_level", "ERROR", "list", "-s", "slurm").text
    assert not list(Path().glob("slurm-*")), "no files in the working directory"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("done", "crash")])
def test_what_happens_on_slurm(cluster: Cluster, tmp_path: Path, name: str) -> None:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests/docker/own")))
    launcher = Launcher(("-s", "slurm", "--memory", "1000"), restarts=True, continues=True)
    ended = tried(CASES[name], launcher, tmp_path, env={"PYTHONPATH": path}, timeout=350)
    found = re.search(r"train: slurm://torchx/(\d+)", ended.text)
    assert found is not None
    shown = cluster.run("scontrol", "show", "job", "-o", found[1])
    assert " Restarts=0 " in shown, "the nodes were never given back"
    assert f" ExitCode={ended.status}:0 " in shown


@pytest.mark.timeout(700)
def test_a_training_longer_than_its_time_limit_goes_on_through_three_jobs(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with launch(
        *(*TWO, "--retries", "0", "--grace", "5", "--scheduler_args", "time=1", "--run_dir", run, "--", *PACED),
        "--trainer.max_epochs=50",  # more than a minute
    ) as launched:
        assert launched.status(650) == 0, launched.output
        shown = launched.shows(launched.job)
    # A time limit that comes as training ends has the job requeued once more, which finds nothing left to do.
    preempted = attempts(run).count(75)
    assert attempts(run) == [75] * preempted + [0] * (len(attempts(run)) - preempted)
    assert preempted >= 2, launched.output
    assert len(attempts(run)) - preempted in (1, 2), launched.output
    assert int(re.search(r" Restarts=(\d+)", shown)[1]) == len(attempts(run)) - 1
    assert steps(run) == 50 * 20
    assert "360 of 360" in launched.output


@pytest.mark.timeout(400)
def test_scancel_saves_and_ends_the_job(launch: Callable[..., Any], tmp_path: Path, cluster: Cluster) -> None:
    run = tmp_path / "run"
    with launch(*TWO, "--run_dir", run, "--", *ENDLESS) as launched:
        launched.until(lambda: steps(run) >= 10)
        cluster.run("scancel", launched.job)
        assert launched.status() == 130, launched.output
        assert " JobState=CANCELLED " in launched.shows(launched.job)
    assert attempts(run) == [75]
    assert "train: cancelled" in launched.output


@pytest.mark.timeout(400)
def test_torchx_cancel_saves_and_ends_the_job(launch: Callable[..., Any], tmp_path: Path, cluster: Cluster) -> None:
    run = tmp_path / "run"
    with launch(*TWO, "--run_dir", run, "--", *ENDLESS) as launched:
        launched.until(lambda: steps(run) >= 10)
        handle = f"slurm://torchx/{launched.job}"
        assert command("torchx", "cancel", handle).status == 0
        assert launched.status() == 130, launched.output
    assert attempts(run) == [75]
    assert "CANCELLED" in state_of(handle)


@pytest.mark.timeout(400)
def test_a_lost_node_costs_nothing(launch: Callable[..., Any], tmp_path: Path, cluster: Cluster) -> None:
    run = tmp_path / "run"
    with launch(*TWO, "--retries", "0", "--run_dir", run, "--", *PACED, "--trainer.max_epochs=20") as launched:
        launched.until(lambda: steps(run) >= 10)
        cluster.lose("n2")
        at = steps(run)
        launched.until(lambda: "JobState=PENDING" in launched.shows(launched.job), 90)
        cluster.back("n2")
        launched.until(lambda: steps(run) > at, 60)
        assert launched.status() == 0, launched.output
    assert steps(run) == 400


@pytest.mark.timeout(400)
def test_a_more_urgent_job_takes_the_nodes_and_gives_them_back(
    launch: Callable[..., Any], tmp_path: Path, cluster: Cluster
) -> None:
    run = tmp_path / "run"
    with launch(*TWO, "--retries", "0", "--run_dir", run, "--", *PACED, "--trainer.max_epochs=15") as launched:
        launched.until(lambda: steps(run) >= 10)
        cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")
        launched.until(lambda: attempts(run)[0] == 75, 60)
        assert launched.status() == 0, launched.output
    assert attempts(run) == [75, 0]


@pytest.mark.timeout(400)
def test_detached_stages_run_one_after_the_other_with_accounts(accounted: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = (*TWO, "--run_dir", run, "--config", "pipeline/configs/digits.yaml", "--cpu", "1", "--memory", "1000")
    launch = ("python", "-m", "components.launch", "-s", "slurm", "--detach", "--name", "fox")
    ended = command(*launch, *arguments, "--", "--trainer.max_epochs=2", QUIET)
    assert ended.status == 0, ended.text
    jobs = re.findall(r"cancel\} slurm://torchx/(\d+)", ended.text)
    assert len(jobs) == 2
    assert "waits for another job" in state_of("slurm://torchx/fox-evaluate")
    deadline = time.monotonic() + 90
    while "SUCCEEDED" not in (told := state_of("slurm://torchx/fox-evaluate")):
        assert time.monotonic() < deadline, told
        time.sleep(1)
    receipt = RunDir(str(run)).read_json(RECEIPT)
    assert receipt is not None
    assert receipt["samples_scored"] == 360
    again = command(*launch, *arguments)
    assert again.status == 2
    assert "a job 'fox-train' exists already" in again.err
