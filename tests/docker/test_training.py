"""The whole pipeline in containers: two train, one evaluates, and some are killed."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from torchx.schedulers.docker_scheduler import LABEL_APP_ID

from pipeline.checkpoint.commit import newest
from pipeline.run.run_dir import RECEIPT, RunDir
from tests.support.commands import ROOT, Ended, command
from tests.support.containers import IMAGE
from tests.support.launcher_cases import CASES, Launcher, tried
from tests.support.resumes import same_end

OWN = ("--workspace", str(ROOT / "tests/docker/own"))
QUIET = "--trainer.enable_model_summary=false"
PACED = ("--trainer.max_epochs=8", "--trainer.callbacks+=own.Paced", "--checkpoints.every_n_steps=10", QUIET)


def mounted(folder: Path) -> tuple[str, ...]:
    folder.mkdir(exist_ok=True)
    return ("--mounts", f"type=bind,src={folder},dst=/runs", "--run_dir", "/runs/one")


@pytest.mark.timeout(120)
def test_two_containers_train_to_s3_and_one_evaluates(
    launch: Callable[..., Any], app: Callable[..., Ended], bucket: tuple[str, str], tmp_path: Path
) -> None:
    s3, endpoint = bucket
    run = RunDir(f"{s3}/{tmp_path.name}-{os.getpid()}")
    environment = f"AWS_ENDPOINT_URL={endpoint},AWS_DEFAULT_REGION={os.environ.get('AWS_DEFAULT_REGION', 'us-east-1')}"
    with launch(
        *("--nodes", "2", "--run_dir", str(run), "--env", environment, "--shm", "128"),
        *("--preflight", "true"),
        *("--secrets", "AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY", "--scheduler_args", "user=4242:4242"),
        *("--", "--trainer.max_epochs=3", QUIET),
    ) as launched:
        first, second = launched.node(0), launched.node(1)
        shown = str(first.attrs["HostConfig"])
        assert first.attrs["Config"]["User"] == "4242:4242"
        assert first.attrs["HostConfig"]["ShmSize"] == 128 << 20
        assert '"Privileged": True' not in shown
        assert first.attrs["NetworkSettings"]["Networks"].keys() == second.attrs["NetworkSettings"]["Networks"].keys()
        assert launched.status() == 0, launched.output
    assert "preflight of 2 nodes x 1 process: ready" in launched.output
    receipt = run.read_json(RECEIPT)
    assert receipt is not None
    assert receipt["samples_scored"] == receipt["samples_expected"] == 360
    assert receipt["devices"] == 1
    assert "test samples scored  360 of 360, once each" in launched.output
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in launched.output
    assert "Traceback" not in launched.output
    assert app("verify", "--run_dir", run).status == 0


@pytest.mark.timeout(120)
def test_torchx_run_patches_the_image_with_the_working_directory(engine: docker.DockerClient, tmp_path: Path) -> None:
    ended = command(
        *("torchx", "run", "-s", "local_docker", "components/train.py:train", "--image", IMAGE, "--cpu", "1"),
        *(*mounted(tmp_path / "runs"), "--", "--trainer.max_epochs=1", QUIET),
    )
    assert ended.status == 0, ended.text
    (handle,) = set(re.findall(r"local_docker://torchx/[\w-]+", ended.text))
    # This run's own: the engine may have containers of other people, and of tests before.
    label = f"{LABEL_APP_ID}={handle.rpartition('/')[2]}"
    (container,) = engine.containers.list(all=True, filters={"label": label})
    told = command("torchx", "log", f"{handle}/train/0")
    assert "\ntrain/0 finished: step 40" in f"\n{told.out}", "a line of the log is a line"
    assert "SUCCEEDED" in command("torchx", "status", handle).out
    patched = container.image
    base = engine.images.get(IMAGE)
    assert patched.attrs["RootFS"]["Layers"][:-1] == base.attrs["RootFS"]["Layers"], "one layer more, and no other"
    listing = ["ls", "README.md", "pipeline/cli.py"]
    assert engine.containers.run(patched.id, listing, remove=True).decode().split() == listing[1:]
    absent = engine.containers.run(patched.id, ["sh", "-c", "ls -d .git tests docker .venv || true"], remove=True)
    assert absent == b""


@pytest.mark.timeout(240)
def test_a_killed_container_restarts_and_the_run_ends_in_the_same_weights(
    launch: Callable[..., Any], tmp_path: Path
) -> None:
    arguments = ("--nodes", "2", *OWN)
    with launch(*arguments, *mounted(tmp_path / "straight"), "--", *PACED) as straight:
        assert straight.status() == 0, straight.output
    run = RunDir(str(tmp_path / "disturbed/one"))
    with launch(*arguments, *mounted(tmp_path / "disturbed"), "--", *PACED, "--collective_timeout=5") as disturbed:
        for replica in (1, 0):  # a node, and the one that hosts the store
            at = record.step if (record := newest(run)) else 0
            disturbed.until(lambda at=at: (record := newest(run)) and record.step > at)
            node = disturbed.node(replica)
            # What `docker kill` has killed Docker lets rest; what a crash or a lack of memory has, it starts again.
            os.kill(node.attrs["State"]["Pid"], signal.SIGKILL)
            disturbed.until(lambda replica=replica: disturbed.node(replica).attrs["RestartCount"] == 1)
        assert disturbed.status() == 0, disturbed.output
        assert len(run.attempts()) == 3, "each kill has cost one start"
    same_end(tmp_path / "straight/one", tmp_path / "disturbed/one")


@pytest.mark.timeout(120)
def test_docker_stop_leaves_75_and_a_durable_checkpoint(
    launch: Callable[..., Any], app: Callable[..., Ended], tmp_path: Path
) -> None:
    run = RunDir(str(tmp_path / "runs/one"))
    with launch(
        *("--nodes", "2", "--join_timeout", "5", "--retries", "0", *OWN, *mounted(tmp_path / "runs")),
        *("--", *PACED, "--trainer.max_epochs=100"),
    ) as launched:
        launched.until(lambda: newest(run))
        node = launched.node(1)
        node.stop()
        node.reload()
        assert node.attrs["State"]["ExitCode"] == 75
        assert launched.status() == 75, launched.output
        assert launched.node(0).attrs["State"]["ExitCode"] == 75 if launched.process.poll() is None else True
    assert "preempted; rerun the same command to resume from its newest checkpoint" in launched.output
    attempt = run.read_json(RunDir.attempt(1))
    record = newest(run)
    assert attempt is not None
    assert record is not None
    assert (attempt["status"], attempt["last_step"]) == (75, record.step)
    assert app("verify", "--run_dir", run).status in (0, 1), "an unfinished epoch is open"


@pytest.mark.timeout(120)
def test_an_evaluation_stops_on_sigterm(launch: Callable[..., Any], tmp_path: Path) -> None:
    with launch("--nodes", "1", *mounted(tmp_path / "runs"), "--", "--trainer.max_epochs=1", QUIET) as launched:
        node = launched.node(0, "evaluate")
        node.stop()
        launched.status()
    node.reload()
    assert node.attrs["State"]["ExitCode"] != 137, "it was not killed for want of an answer"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["user's mistake", "crash at each start", "preempted"])
def test_what_happens_on_docker(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o777)
    mounts = ("--mounts", f"type=bind,src={tmp_path},dst=/runs")
    arguments = ("-s", "local_docker", "--image", IMAGE, "--memory", "1500", *OWN, *mounts)
    tried(CASES[name], Launcher(arguments, restarts=True, continues=True, runs="/runs"), tmp_path, timeout=150)


@pytest.mark.timeout(120)
def test_out_of_memory_is_reported_with_the_limit(launch: Callable[..., Any], tmp_path: Path) -> None:
    with launch(
        *("--nodes", "2", "--retries", "0", "--max_restarts", "0", "--join_timeout", "5", *OWN),
        *(*mounted(tmp_path / "runs"), "--", QUIET, "--trainer.callbacks+=own.Hungry", "--collective_timeout=5"),
    ) as launched:
        assert launched.status() not in (0, 2, 75), launched.output
    assert "killed for memory: its limit is 1500 MB" in launched.output
    assert "rank 1 on" in launched.output
    assert "SIGKILL, killed for memory: the limit here is 1500 MB" in launched.output, "the same limit in any container"


@pytest.mark.timeout(120)
def test_ctrl_c_stops_all_containers(engine: docker.DockerClient, launch: Callable[..., Any], tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "runs/one"))
    with launch(
        "--nodes", "2", *OWN, *mounted(tmp_path / "runs"), "--", *PACED, "--trainer.max_epochs=100"
    ) as launched:
        launched.until(lambda: newest(run))
        nodes = [launched.node(0), launched.node(1)]
        launched.process.send_signal(signal.SIGTERM)
        assert launched.status() == 130, launched.output
    for node in nodes:
        node.reload()
        assert node.attrs["State"]["ExitCode"] == 75
    assert not [one for one in engine.containers.list(filters={"label": LABEL_APP_ID}) if one in nodes]
