"""What the scheduler asks the cluster to explain why a run is pending."""

from typing import Any

import pytest
from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import NONE, AppDef, AppState

from components.train import train
from k8s.scheduler import KubernetesJob
from tests.support.api_server import ApiServer

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


def training(nodes: str = "2", **parameters: Any) -> AppDef:
    return train(run_dir="s3://bucket/one", nodes=nodes, rdzv_port=29_500, **parameters)


def submit(scheduler: KubernetesJob, **cfg: Any) -> str:
    resolved = scheduler.run_opts().resolve({"app_id": "one", **cfg})
    return scheduler.schedule(scheduler.submit_dryrun(training(), resolved))


def now(scheduler: KubernetesJob, run: str) -> DescribeAppResponse:
    found = scheduler.describe(run)
    assert found is not None
    return found


def test_the_reason_of_a_queued_run_is_kueues(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler, queue="research")
    job = api.change("Job", "one-train", {"spec": {"suspend": True}})
    assert now(scheduler, run).msg == "queued by Kueue in 'research'"
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota for nvidia.com/gpu"}
    labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
    workload = {"metadata": {"name": "job-one", "labels": labels}, "status": {"conditions": [condition]}}
    api.store("Workload", workload)
    found = now(scheduler, run)
    assert found.state == AppState.PENDING
    assert found.msg == "queued by Kueue in 'research': insufficient unused quota for nvidia.com/gpu"
    # Without the right to read it, the reason is left out.
    api.allowed.discard(("kueue.x-k8s.io", "workloads", "list"))
    assert now(scheduler, run).msg == "queued by Kueue in 'research'"


def test_events_explain_missing_pods(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler)
    job = api.one("Job", "one-train")
    message = 'pods "one-train-0-abcde" is forbidden: exceeded quota: few'
    for name, reason, uid in (("a", "FailedCreate", "other"), ("b", "Other", job["metadata"]["uid"])):
        event = {"metadata": {"name": name}, "reason": reason, "message": "no", "involvedObject": {"uid": uid}}
        api.store("Event", event)
    assert now(scheduler, run).msg == NONE
    involved = {"uid": job["metadata"]["uid"]}
    api.store(
        "Event", {"metadata": {"name": "c"}, "reason": "FailedCreate", "message": message, "involvedObject": involved}
    )
    assert now(scheduler, run).msg == f"its pods cannot be created: {message}"
    api.start_pod("one-train", 0)
    assert now(scheduler, run).msg == NONE


def test_a_config_map_that_is_not_there_is_named(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler, config_maps={"mine": "/config"})
    pod = api.one("Pod", api.start_pod("one-train", 0, phase="Pending", reason="ContainerCreating"))

    def event(name: str, at: str, kind: str, reason: str, message: str) -> None:
        involved = {"uid": pod["metadata"]["uid"]}
        what = {"type": kind, "reason": reason, "message": message, "lastTimestamp": f"2026-01-01T00:00:{at}Z"}
        api.store("Event", {"metadata": {"name": name}, "involvedObject": involved, **what})

    event("a", "01", "Warning", "FailedScheduling", "no node")
    assert now(scheduler, run).msg == "train 0: pulling the image, mounting volumes"
    message = 'MountVolume.SetUp failed for volume "config-0" : configmap "mine" not found'
    event("c", "03", "Warning", "FailedMount", message)
    event("b", "02", "Normal", "Scheduled", "to node-0")
    assert now(scheduler, run).msg == f"train 0: FailedMount: {message}"
    event("d", "04", "Normal", "Pulling", "Pulling image")
    assert now(scheduler, run).msg == "train 0: pulling the image, mounting volumes"
    api.allowed.discard(("", "events", "list"))
    assert now(scheduler, run).msg == "train 0: pulling the image, mounting volumes"


def test_pods_that_were_deleted_are_counted_as_restarts(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler)
    job = api.change("Job", "one-train", {"status": {"startTime": "2026-01-01T00:00:00Z"}})
    for name, count in (("a", 1), ("b", 1), ("c", None), ("combined", 4)):
        what = {"reason": "SuccessfulCreate", "involvedObject": {"uid": job["metadata"]["uid"]}, "count": count}
        api.store("Event", {"metadata": {"name": name}, **what})
    # None is left.
    found = now(scheduler, run)
    assert found.num_restarts == 5
    delayed = (
        "after 7 ended pods the Job controller waits for 600 s or longer (python -m components.launch and kind=job"
    )
    assert found.msg.startswith(f"train 0, train 1 without a pod: {delayed}")
    # The pods that are left came long after the Job.
    api.start_pod("one-train", 0)
    assert now(scheduler, run).msg.startswith(
        "train 1 without a pod: after 6 ended pods the Job controller waits for 320 s"
    )
    api.start_pod("one-train", 1)
    found = now(scheduler, run)
    assert (found.num_restarts, found.msg) == (5, NONE)
