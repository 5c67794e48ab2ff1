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
