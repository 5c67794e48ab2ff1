"""TorchX's own commands, with `-s kubernetes_job`, against an API server."""

import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from torchx.cli import argparse_util
from torchx.cli.main import main

from components import launch
from k8s.cluster_api import Patience
from k8s.options import OPTIONS
from k8s.scheduler import KubernetesJob
from tests.support.api_server import ApiServer, Fault
from tests.support.k8s_parts import ROOT

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)

KEPT = ("--mounts", "type=volume,src=runs,dst=/runs", "--run_dir", "/runs/one")
TRAIN = ("-s", "kubernetes_job", "-cfg")
COMPONENT = (f"{ROOT}/components/train.py:train", "--run_dir", "s3://bucket/one", "--nodes", "2", "--", "--a.b=$HOME")


class Ended(NamedTuple):
    status: int
    out: str
    text: str


Command = Callable[..., Ended]


@pytest.fixture
def torchx(api: ApiServer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Command:
    """`torchx <arguments>`, in this process."""

    def run(*arguments: str) -> Ended:
        capsys.readouterr()
        caplog.clear()
        # TorchX 0.7 counts its options over all commands of a process.
        for action in (argparse_util.torchxconfig, argparse_util.ArgOnceAction):
            getattr(action, "called_args", set()).clear()
        try:
            main(list(arguments))
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        out, err = capsys.readouterr()
        return Ended(status, re.sub(r"\x1b\[\d+m", "", out), out + err + caplog.text)

    return run


@pytest.fixture
def run(torchx: Command) -> str:
    """The handle of a run."""
    return torchx("run", *TRAIN, "app_id=one", *COMPONENT).out.split()[-1]


def test_a_dry_run_prints_what_kubectl_takes(api: ApiServer, torchx: Command) -> None:
    cfg = "app_id=one,namespace=team,node_selector=pool:gpu;zone:a,env_secrets=s3;more,deadline=60,read_only=False"
    ended = torchx("run", "--dryrun", *TRAIN, cfg, *COMPONENT)
    assert ended.status == 0
    service, job = yaml.safe_load_all(ended.out.split("=== SCHEDULER REQUEST ===\n")[1])
    assert (job["kind"], service["kind"], job["metadata"]["namespace"]) == ("Job", "Service", "team")
    pod = job["spec"]["template"]["spec"]
    assert (pod["activeDeadlineSeconds"], job["spec"]["activeDeadlineSeconds"]) == (60, 60 + 45 + 10)
    assert pod["nodeSelector"] == {"pool": "gpu", "zone": "a"}
    assert pod["containers"][0]["args"][1].endswith("--run_dir s3://bucket/one '--a.b=$HOME'")
    assert not api.seen, "no cluster was asked"
    assert "image_repo=" in ended.text


def test_run_submits_and_prints_the_handle(api: ApiServer, torchx: Command) -> None:
    ended = torchx("run", *TRAIN, "app_id=one", "--workspace", "", *COMPONENT)
    assert (ended.status, ended.out.split()[-1]) == (0, "kubernetes_job://torchx/default:one")
    assert "image_repo=" not in ended.text
    assert [job["metadata"]["name"] for job in api.objects_of("Job")] == ["one-train"]
    named = torchx("run", *TRAIN, "namespace=team", *COMPONENT).out.split()[-1]
    assert re.fullmatch(r"kubernetes_job://torchx/team:train-[a-z0-9]+", named)


def wait_for_job(api: ApiServer, role: str) -> str:
    """Wait until the Job of a role exists; its name."""
    until = time.monotonic() + 20
    while not (found := [one for one in api.objects_of("Job") if one["metadata"]["name"].endswith(f"-{role}")]):
        assert time.monotonic() < until
        time.sleep(0.02)
    return str(found[0]["metadata"]["name"])


def test_run_can_wait_for_the_end(api: ApiServer, torchx: Command) -> None:
    def live() -> None:
        wait_for_job(api, "train")
        for index in (0, 1):
            pod = api.start_pod("one-train", index)
            api.say(pod, f"hello from {index}")
            api.end_pod(pod, 7 * index)
        api.finish("one-train", "Failed", reason="BackoffLimitExceeded")

    api.later(0, live)
    ended = torchx("run", *TRAIN, "app_id=one", "--wait", "--log", *COMPONENT)
    assert ended.status == 1
    assert "hello from 1" in ended.text
    assert "train 1 ended with status 7; all its retries are used up" in ended.text


def test_status_shows_state_and_reason(api: ApiServer, torchx: Command, run: str) -> None:
    assert re.search(r"State: PENDING", torchx("status", run).out)
    api.end_pod(api.start_pod("one-train", 1), 137, reason="OOMKilled", message="the last words")
    api.finish("one-train", "Failed", reason="BackoffLimitExceeded")
    ended = torchx("status", run)
    assert ended.status == 0
    assert re.search(r"State: FAILED.*Msg: train 1 was killed for memory: its limit is 4096Mi", ended.out, re.DOTALL)
    assert re.search(r"train\[1\]:FAILED \(exit_?code: 137\).*the last words", ended.out, re.DOTALL)
    assert torchx("status", "kubernetes_job://torchx/default:nobody").status == 1


def test_log_prints_all_replicas_or_one(api: ApiServer, torchx: Command, run: str) -> None:
    for index in (0, 1):
        pod = api.start_pod("one-train", index)
        api.say(pod, f"hello from {index}", "bye")
        api.end_pod(pod)
    api.finish("one-train")
    every = ["train/0 bye", "train/0 hello from 0", "train/1 bye", "train/1 hello from 1"]
    assert sorted(torchx("log", run).out.splitlines()) == every
    assert torchx("log", "--tail", f"{run}/train/1").out.splitlines() == ["train/1 hello from 1", "train/1 bye"]
    assert torchx("log", "--regex", "from", f"{run}/train").out.count("hello") == 2


def test_describe_shows_roles_and_images(torchx: Command, run: str) -> None:
    ended = torchx("describe", run)
    assert ended.status == 0
    assert "'num_replicas': 2" in ended.out
    assert "'image': 'torchx-lightning-pipeline:latest'" in ended.out
    assert torchx("describe", "kubernetes_job://torchx/default:nobody").status == 1


def test_list_shows_the_runs(api: ApiServer, torchx: Command, run: str) -> None:
    api.start_pod("one-train", 0)
    (line,) = (line for line in torchx("list", "-s", "kubernetes_job").out.splitlines() if "://" in line)
    assert line.split() == [run, "RUNNING"]


def test_cancel_ends_a_run(api: ApiServer, torchx: Command, run: str) -> None:
    api.change("Job", "one-train", {"spec": {"suspend": True}})
    assert torchx("cancel", run).status == 0
    assert not api.objects_of("Job")
    assert torchx("cancel", run).status == 0


def test_the_options_are_explained(torchx: Command) -> None:
    text = " ".join(torchx("runopts", "kubernetes_job").out.split())
    for name in (*OPTIONS, "app_id", "kubeconfig", "context", "check", "image_repo"):
        assert re.search(rf"\b{name}\b", text), name
    assert "Kueue's LocalQueue, which decides when the run starts" in text


@pytest.fixture
def _handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the signal handlers that the launcher replaces; its scheduler polls fast."""
    monkeypatch.setattr(KubernetesJob.__init__, "__defaults__", (0.05, Patience(total=1, first=0.02), None))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stage(api: ApiServer, role: str, nodes: int, code: int = 0) -> None:
    """Wait for the Job of a role, then let its pods run and end."""
    name = wait_for_job(api, role)
    pods = [api.start_pod(name, index) for index in range(nodes)]
    for pod in pods:
        api.say(pod, f"{role} says hello")
        api.end_pod(pod, code)
    if code:
        message = (
            f"Container {role} for pod default/{pods[0]} failed with exit code {code} matching FailJob rule at index 0"
        )
        api.finish(name, "Failed", reason="PodFailurePolicy", message=message)
    else:
        api.finish(name)


@pytest.mark.usefixtures("_handlers")
def test_the_launcher_runs_one_stage_after_the_other(
    api: ApiServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    api.later(0, stage, api, "train", 2)
    api.later(0, stage, api, "evaluate", 1)
    assert launch.main(["-s", "kubernetes_job", "--nodes", "2", *KEPT]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "hello" in line and "train" in line].count("train says hello") == 1
    assert "[train 1] train says hello" in out
    assert out.index("train says") < out.index("evaluate says")


@pytest.mark.usefixtures("_handlers")
def test_the_launcher_ends_as_the_training_does(
    api: ApiServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    api.later(0, stage, api, "train", 1, 2)
    assert launch.main(["-s", "kubernetes_job", *KEPT]) == 2
    assert "train: failed with status 2 (train 0 ended with status 2); its log is above" in capsys.readouterr().err
    assert len(api.objects_of("Job")) == 1
    assert launch.main(["-s", "kubernetes_job", "--scheduler_args", "namespace=nowhere", *KEPT]) == 2
    assert "error: namespace 'nowhere' does not exist" in capsys.readouterr().err


DETACH = ("-s", "kubernetes_job", "--detach", "--name=fox", "--run_dir", "s3://bucket/one")


def command_of(api: ApiServer, job: str) -> list[str]:
    """The program that a Job's only container runs."""
    (container,) = api.one("Job", job)["spec"]["template"]["spec"]["containers"]
    words = shlex.split(container["args"][1])
    assert words[:4] == ["exec", "python", "-m", "components.launch"]
    return words[4:]


@pytest.mark.usefixtures("_handlers")
def test_a_detached_pipeline_is_a_driver_in_the_cluster(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    outside = f"kubeconfig={os.environ['KUBECONFIG']}"
    options = f"{outside},env_secrets=s3,queue=research,node_selector=pool:gpu,service_account=pipeline-training"
    arguments = [
        *DETACH,
        "--nodes",
        "2",
        "--scheduler_args",
        options,
        "--driver_image",
        "driver:1",
        "--driver_args",
        "queue=drivers",
        "--",
        "--a.b=$HOME c",
    ]
    assert launch.main(arguments) == 0
    assert "logs,cancel} kubernetes_job://torchx/default:fox" in capsys.readouterr().out
    (job,) = api.objects_of("Job")
    assert job["metadata"]["name"] == "fox-launch"
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "drivers", "of its own: driver_args"
    pod = job["spec"]["template"]["spec"]
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("pipeline-driver", True)
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert "activeDeadlineSeconds" not in {**pod, **job["spec"]}
    (container,) = pod["containers"]
    assert container["image"] == "driver:1"
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    inner = command_of(api, "fox-launch")
    assert not {"--detach", "--driver_args"} & set(inner)
    assert inner[:4] == ["--name", "fox", "--on_signal", "leave"]
    assert inner[inner.index("--scheduler_args") + 1] == options.partition(",")[2]
    assert inner[-2:] == ["--", "--a.b=$HOME c"]
    assert launch.main(arguments) == 2, "the name is taken"
    assert "exists already" in capsys.readouterr().err


@pytest.mark.usefixtures("_handlers")
def test_a_mistake_is_reported_before_a_driver_is_submitted(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([*DETACH, "--secrets", "KEY"]) == 2
    assert "secrets=KEY: taken from which Secret?" in capsys.readouterr().err
    assert launch.main([*DETACH, "--driver_args", "que=a"]) == 2
    assert "driver_args=que: kubernetes_job has no such run option; did you mean" in capsys.readouterr().err
    assert not api.objects_of("Job")


def terminated_once_there(api: ApiServer, kind: str, name: str) -> None:
    """Send SIGTERM to this process once an object is there, and some more requests have been made."""
    while name not in [one["metadata"]["name"] for one in api.objects_of(kind)]:
        time.sleep(0.02)
    asked = len(api.seen)
    while len(api.seen) < asked + 3:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("_handlers")
def test_a_restarted_driver_finds_its_stages_and_runs_none_twice(
    api: ApiServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch.main([*DETACH[:4], *KEPT, "--nodes", "2"]) == 0
    inner = command_of(api, "fox-launch")
    # The first one dies while training runs: it asks for nothing to be cancelled.
    api.later(0, terminated_once_there, api, "Job", "fox-train-train")
    assert launch.main(inner) == 75
    assert "train: keeps running without this driver" in capsys.readouterr().err
    assert not [one for one in api.seen if one.startswith(("delete", "patch"))]
    # The second one loses the cluster.
    api.faults.append(Fault("list jobs", 503, times=99))
    assert launch.main(inner) == 75
    assert "the same command finds it again" in capsys.readouterr().err
    api.faults.clear()
    # The third one comes when training is over, and dies in the evaluation; the fourth finds both done.
    stage(api, "train", 2)
    api.later(0, terminated_once_there, api, "Job", "fox-evaluate-evaluate")
    assert launch.main(inner) == 75
    stage(api, "evaluate", 1)
    assert launch.main(inner) == 0
    assert sorted(one["metadata"]["name"] for one in api.objects_of("Job")) == [
        *("fox-evaluate-evaluate", "fox-launch", "fox-train-train"),
    ]
    created = [one for one in api.seen if one.startswith("create jobs")]
    assert len(created) == 3


@pytest.mark.usefixtures("_handlers")
def test_a_named_job_set_is_called_as_it_was_named_and_found_again(
    api: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*DETACH[:2], "--name", "js1", "--scheduler_args", "kind=jobset,ttl=9", *KEPT]
    api.later(0, terminated_once_there, api, "JobSet", "js1")
    assert launch.main([*arguments, "--on_signal", "leave"]) == 75
    assert [one["metadata"]["name"] for one in api.objects_of("JobSet")] == ["js1"]
    api.change("JobSet", "js1", {"status": {"conditions": [{"type": "Completed", "status": "True"}]}})
    assert launch.main(arguments) == 0
    assert api.seen.count("create jobsets js1") == 1


@pytest.mark.usefixtures("_handlers")
def test_a_job_that_somebody_deletes_ends_its_launcher(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    def delete() -> None:
        api.remove("Job", wait_for_job(api, "train"))

    api.later(0, delete)
    assert launch.main(["-s", "kubernetes_job", *KEPT]) == 130
    assert "train: is gone: kubernetes_job no longer knows it" in capsys.readouterr().err


@pytest.mark.usefixtures("_handlers")
def test_cancelling_a_driver_cancels_its_stages(api: ApiServer, torchx: Command, tmp_path: Path) -> None:
    assert launch.main([*DETACH[:4], *KEPT]) == 0
    api.later(0, terminated_once_there, api, "Job", "fox-train-train")
    assert launch.main(command_of(api, "fox-launch")) == 75
    assert torchx("cancel", "kubernetes_job://torchx/default:fox").status == 0
    for job in api.objects_of("Job"):
        assert "pipeline/cancelled" in job["metadata"]["annotations"], job["metadata"]["name"]


@pytest.mark.usefixtures("_handlers")
def test_a_jobset_holds_both_stages_and_needs_no_driver(api: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main([*DETACH, "--scheduler_args", "kind=jobset"]) == 0
    assert (
        "submitted fox: python -m components.jobs {status,logs,cancel} kubernetes_job://torchx/default:fox\n"
        in capsys.readouterr().out
    )
    assert not api.objects_of("Job")
    (made,) = api.objects_of("JobSet")
    assert made["metadata"]["name"] == "fox"
    train, evaluate = made["spec"]["replicatedJobs"]
    assert evaluate["dependsOn"] == [{"name": "train", "status": "Complete"}]
    assert "dependsOn" not in train


@pytest.mark.parametrize("flag", [["--detach"], ["--name", "fox"]])
def test_names_need_a_scheduler_that_finds_runs_by_name(capsys: pytest.CaptureFixture[str], flag: list[str]) -> None:
    assert launch.main(["--run_dir", "runs/x", *flag]) == 2
    assert "use slurm or kubernetes_job" in capsys.readouterr().err
