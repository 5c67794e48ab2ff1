"""A cancelled run saves a checkpoint and keeps its logs."""

import time

import pytest
from torchx.specs import AppState

from k8s.cluster_api import ClusterAway
from k8s.scheduler import KubernetesJob
from k8s.snapshot import CANCELLED
from tests.support.api_server import ApiServer, Fault
from tests.support.k8s_parts import Nodes, Object, app, start_child, submit

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


def test_a_cancelled_run_saves_and_keeps_its_logs(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler)
    nodes = Nodes(api)
    pods = [api.start_pod("one-train", index) for index in (0, 1)]
    for pod in pods:
        api.say(pod, "step 119")
    scheduler.cancel(run)
    assert nodes.ended == ["one-train"], "once all have saved"
    assert all(api.one("Pod", pod)["status"]["phase"] == "Failed" for pod in pods)
    api.change("Job", "one-train", {})  # the controller comes after
    time.sleep(0.2)
    described = scheduler.describe(run)
    assert described is not None
    assert described.state == AppState.CANCELLED
    assert described.msg.startswith("cancelled at 2")
    assert list(scheduler.log_iter(run, "train", 1)) == ["step 119\n", "saved step 120\n"]
    scheduler.cancel(run)


def test_cancel_does_not_wait_for_replacement_pods(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler)
    nodes, pods = Nodes(api), [api.start_pod("one-train", 0)]
    ends = api.on_change

    def ends_and_is_replaced(plural: str, thing: Object) -> None:
        ends(plural, thing)
        if plural == "pods" and len(pods) == 1 and thing["metadata"]["name"] == pods[0]:
            pods.append("")
            api.later(0, api.start_pod, "one-train", 0)

    api.on_change = ends_and_is_replaced
    start = time.monotonic()
    scheduler.cancel(run)
    assert time.monotonic() - start < 10, "it has 25 seconds and more"
    assert len(api.objects_of("Pod")) == 2
    assert nodes.ended == ["one-train"], "the Job's end is theirs"


def test_a_cancel_whose_client_is_killed_still_takes_effect(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler)
    pod = api.start_pod("one-train", 0)
    api.faults = [Fault(f"patch pods {pod}", 500, times=99)]
    with pytest.raises(ClusterAway):
        scheduler.cancel(run)
    job = api.one("Job", "one-train")
    grace = job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace <= job["spec"]["activeDeadlineSeconds"] <= grace + 20
    assert CANCELLED in job["metadata"]["annotations"]
    described = scheduler.describe(run)
    assert described is not None
    assert described.state == AppState.RUNNING
    assert "its processes save a checkpoint and end" in described.msg


def test_a_user_who_may_not_patch_pods_can_still_cancel(
    api: ApiServer, scheduler: KubernetesJob, caplog: pytest.LogCaptureFixture
) -> None:
    run = submit(scheduler, app(grace=1))
    pod = api.start_pod("one-train", 0)
    api.change("Pod", pod, {"spec": {"terminationGracePeriodSeconds": -9}})
    api.allowed.discard(("", "pods", "patch"))
    Nodes(api)
    scheduler.cancel(run)
    assert "may not patch pods" in caplog.text
    assert api.one("Job", "one-train")["spec"]["activeDeadlineSeconds"] == 1


def test_cancelling_a_queued_run_deletes_it(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler, queue="research")
    api.change("Job", "one-train", {"spec": {"suspend": True}})
    scheduler.cancel(run)
    assert not api.objects_of("Job")
    assert scheduler.describe(run) is None
    scheduler.cancel(run)


def test_a_cancelled_job_set_is_suspended_until_its_pods_have_saved(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler, kind="jobset")
    start_child(api, "train")
    pod = api.start_pod("one-train-0", 1)

    def end(plural: str, thing: Object) -> None:
        if plural == "jobsets" and thing["spec"].get("suspend"):
            api.later(0.3, api.remove, "Pod", pod)

    api.on_change = end
    scheduler.cancel(run)
    assert not api.objects_of("Pod")
    assert CANCELLED in api.one("JobSet", "one")["metadata"]["annotations"]
    described = scheduler.describe(run)
    assert described is not None
    assert described.state == AppState.CANCELLED


def test_cancelling_a_queued_job_set_deletes_it(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler, kind="jobset", queue="research")
    scheduler.cancel(run)
    assert not api.objects_of("JobSet")


def test_a_run_without_nodes_ends_at_once(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler)
    nodes = Nodes(api)
    pod = api.start_pod("one-train", 0, phase="Pending")
    api.change("Pod", pod, {"spec": {"nodeName": ""}})
    start = time.monotonic()
    scheduler.cancel(run)
    assert time.monotonic() - start < 5
    assert nodes.ended == ["one-train"]
    assert f"patch pods {pod}" not in api.seen


def test_a_pod_that_never_started_has_nothing_to_save(api: ApiServer, scheduler: KubernetesJob) -> None:
    run = submit(scheduler)
    nodes = Nodes(api)
    pod = api.start_pod("one-train", 0, phase="Pending", reason="ImagePullBackOff")
    start = time.monotonic()
    scheduler.cancel(run)
    assert time.monotonic() - start < 5, "it has a node, but no process"
    assert nodes.ended == ["one-train"]
    assert f"patch pods {pod}" not in api.seen
