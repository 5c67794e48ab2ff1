"""The state of a run, derived from its objects."""

import copy
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import NONE, AppDef, AppState, Role

from components.evaluate import evaluate
from components.train import train
from k8s.manifests import objects
from k8s.options import RunOptions
from k8s.pod_exit import pod_exit
from k8s.snapshot import CANCELLED, RunSnapshot
from k8s.status import described
from pipeline.process.error_file import parse
from tests.support.k8s_parts import Object, status_of

pytestmark = pytest.mark.timeout(60)

TAKEN = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "to make room"}
START = datetime(2026, 1, 1, tzinfo=UTC)


def training(nodes: str = "2", **parameters: Any) -> AppDef:
    return train(run_dir="s3://bucket/one", nodes=nodes, rdzv_port=29_500, **parameters)


def job_of(app: AppDef, **changes: Any) -> Object:
    job = copy.deepcopy(objects(app, "one", RunOptions())[0])
    job["metadata"]["uid"] = "1"
    return {**job, **changes}


def pod_of(job: Object, index: int, phase: str, at: int = 0, **how: Any) -> Object:
    """A pod of a Job that was created, and if so ended, some seconds after the start."""
    template = copy.deepcopy(job["spec"]["template"])
    when = (START + timedelta(seconds=at)).isoformat()
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": str(index)}
    metadata = {"name": f"one-train-{index}-{at}", "uid": f"{index}-{at}", "labels": labels, "creationTimestamp": when}
    status = status_of(phase, **how)
    for container in status.get("containerStatuses", ()):
        container["state"].get("terminated", {})["finishedAt"] = when
    return {"metadata": metadata, "spec": {**template["spec"], "nodeName": f"node-{index}"}, "status": status}


def ended(kind: str, reason: str = "", message: str = "") -> Object:
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": message}]}


def look(job: Object, *pods: Object, notes: Mapping[str, str] | None = None) -> DescribeAppResponse:
    return described("default:one", RunSnapshot([job], list(pods), notes=notes or {}))


def test_the_states_of_a_run_from_pending_to_succeeded() -> None:
    job = job_of(training())
    found = look(job)
    assert (found.state, found.msg, found.structured_error_msg) == (AppState.PENDING, NONE, NONE)
    found = look(job, pod_of(job, 0, "Pending", reason="ContainerCreating"), pod_of(job, 1, "Pending"))
    assert (found.state, found.msg) == (AppState.PENDING, "train 0: pulling the image, mounting volumes")
    found = look(job, pod_of(job, 0, "Running"), pod_of(job, 1, "Running"))
    assert (found.state, found.msg, found.num_restarts) == (AppState.RUNNING, NONE, 0)
    (role,) = found.roles_statuses
    assert [(one.id, str(one.state), one.hostname) for one in role.replicas] == [
        (0, "RUNNING", "node-0"),
        (1, "RUNNING", "node-1"),
    ]
    found = look(job, pod_of(job, 0, "Succeeded"), pod_of(job, 1, "Succeeded"))
    assert found.state == AppState.RUNNING, "until the Job says so"
    found = look({**job, "status": ended("Complete")}, pod_of(job, 0, "Succeeded"))
    assert (found.state, found.msg) == (AppState.SUCCEEDED, NONE)
    assert {str(one.state) for one in found.roles_statuses[0].replicas} == {"SUCCEEDED"}


def test_roles_are_described_as_far_as_known() -> None:
    app = training(gpu=2, memory=8192, cpu=4, env={"A": "1"}, retries=5)
    (role,) = look(job_of(app)).roles
    (asked,) = app.roles
    assert (role.name, role.image, role.num_replicas, role.max_retries) == ("train", asked.image, 2, 5)
    assert (role.resource.cpu, role.resource.memMB, role.resource.gpu) == (4, 8192, 2)
    canonical = {"memory": "8Gi", "cpu": "4"}
    job = job_of(app)
    job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"] = canonical
    assert look(job).roles[0].resource.memMB == 8192, "as an API server writes it"
    assert role.env.items() >= {"A": "1", "OMP_NUM_THREADS": "2"}.items()
    assert role.entrypoint == "sh"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"reason": "ErrImagePull", "message": "pull access denied"}, "image cannot be pulled: pull access denied"),
        ({"reason": "ImagePullBackOff", "message": "not found"}, "image cannot be pulled: not found"),
        ({"reason": "InvalidImageName"}, "image cannot be pulled: InvalidImageName"),
        (
            {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'},
            'CreateContainerConfigError: secret "s3" not found',
        ),
    ],
)
def test_a_pending_pod_shows_the_reason(how: dict[str, Any], message: str) -> None:
    job = job_of(training())
    found = look(job, pod_of(job, 0, "Pending", **how), pod_of(job, 1, "Pending", **how))
    assert (found.state, found.msg) == (AppState.PENDING, f"train 0, train 1: {message}")
    found = look(job, pod_of(job, 0, "Running"), pod_of(job, 1, "Pending", **how))
    assert (found.state, found.msg) == (AppState.RUNNING, f"train 1: {message}")


def test_an_unschedulable_pod_shows_the_reason() -> None:
    job = job_of(training(nodes="1"))
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    found = look(job, pod_of(job, 0, "Pending", conditions=[condition]))
    assert (found.state, found.msg) == (AppState.PENDING, f"train 0: no node fits: {message}")


def test_a_restarting_run_shows_how_many_pods_and_why() -> None:
    job = job_of(training(nodes="3"))
    first, second = pod_of(job, 1, "Failed", code=1), pod_of(job, 2, "Failed", code=137, reason="OOMKilled")
    found = look(job, pod_of(job, 0, "Running"), first, second)
    words = "train 1 ended with status 1, train 2 was killed for memory: its limit is 4096Mi; give it more by --memory"
    delay = "; after 2 ended pods the Job controller waits for 20 s, until 00:00:20 UTC"
    assert (found.state, found.msg, found.num_restarts) == (AppState.RUNNING, f"restarting 2 of 3: {words}{delay}", 0)
    found = look(job, first, pod_of(job, 1, "Pending", at=10, reason="ContainerCreating"))
    assert found.state == AppState.PENDING
    assert found.msg.startswith("restarting 1 of 3: train 1 ended with status 1; train 1: pulling the image")
    found = look(job, first, pod_of(job, 1, "Running", at=10))
    assert (found.state, found.msg, found.num_restarts) == (AppState.RUNNING, NONE, 1)


def failed(job: Object, reason: str, message: str, *pods: Object) -> tuple[int | None, str]:
    found = look({**job, "status": ended("Failed", reason, message)}, *pods)
    assert found.state == AppState.FAILED
    report = parse(json.loads(found.structured_error_msg))
    assert report is not None
    assert report.message == found.msg
    return report.status, found.msg


def test_a_failed_run_names_the_pod_that_failed_first() -> None:
    job = job_of(training())
    pods = [pod_of(job, 0, "Failed", at=20, code=1), pod_of(job, 1, "Failed", at=10, code=7, message="Traceback\nboom")]
    spent = failed(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit", *pods)
    assert spent == (7, "train 1 ended with status 7; all its retries are used up")
    # Of those that were preempted, or taken away, nothing came.
    early = pod_of(job, 0, "Failed", at=1, code=75)
    taken = pod_of(job, 0, "Failed", at=2, code=137, conditions=[TAKEN])
    assert failed(job, "BackoffLimitExceeded", "", early, taken, *pods) == spent
    status, words = failed(job, "BackoffLimitExceeded", "", taken)
    assert (status, words[:50]) == (137, "train 0 was taken from its node with status 137 (P")


def test_status_2_is_that_of_the_pod_that_the_job_names() -> None:
    job = job_of(training())
    pods = [pod_of(job, 0, "Failed", at=5, code=1), pod_of(job, 1, "Failed", at=9, code=2, message="error: max_epochs")]
    message = "Container train for pod default/one-train-1-9 failed with exit code 2 matching FailJob rule at index 0"
    assert failed(job, "PodFailurePolicy", message, *pods) == (2, "train 1 ended with status 2")
    assert failed(job, "PodFailurePolicy", message) == (2, "train ended with status 2"), "its pod is gone"


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        (
            {"code": 137, "reason": "OOMKilled"},
            137,
            "was killed for memory: its limit is 4096Mi; give it more by --memory",
        ),
        ({"code": 137}, 137, "ended with status 137 (killed)"),
        (
            {"code": 128, "reason": "StartError", "message": "exec: sh: not found"},
            128,
            "could not be started (exec: sh",
        ),
    ],
)
def test_the_exit_of_a_container_is_a_sentence(how: dict[str, Any], status: int, message: str) -> None:
    job = job_of(training())
    found = failed(job, "BackoffLimitExceeded", "", pod_of(job, 1, "Failed", **how))
    assert found[0] == status
    assert found[1].startswith(f"train 1 {message}")


def test_the_exit_of_a_pod_without_a_container_is_a_sentence() -> None:
    job = job_of(training())
    evicted = pod_of(job, 0, "Failed", code=137)
    evicted["status"].update(reason="Evicted", message="The node was low on resource: memory.")
    assert failed(job, "BackoffLimitExceeded", "", evicted)[1].startswith("train 0 was evicted: The node was low")
    refused = pod_of(job, 0, "Failed")
    refused["status"] = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no such device"}
    spent = "; all its retries are used up"
    message = f"train 0 never ran (UnexpectedAdmissionError: no such device){spent}"
    assert failed(job, "BackoffLimitExceeded", "", refused) == (1, message)


def test_a_deadline_and_unknown_reasons_are_reported() -> None:
    job = job_of(training())
    assert job["spec"]["activeDeadlineSeconds"] > 604_800, "its pods save before, and stay"
    status, words = failed(job, "DeadlineExceeded", "Job was active longer than specified deadline")
    assert (status, words[:33]) == (1, "exceeded its deadline of 604800 s")
    late = pod_of(job, 1, "Failed", code=75)
    late["status"]["reason"] = "DeadlineExceeded"
    assert pod_exit(late).how == "reached its deadline, and ended with status 75"
    late["spec"]["activeDeadlineSeconds"] = 1
    assert pod_exit(late).how == "was asked to save and end, and ended with status 75"
    assert failed(job, "Whatever", "the words") == (1, "Whatever: the words")


def test_a_failed_replica_shows_the_end_of_its_log() -> None:
    job = job_of(training())
    pod = pod_of(job, 1, "Failed", at=60, code=7, message="Traceback\nboom\n")
    (role,) = look({**job, "status": ended("Failed", "BackoffLimitExceeded")}, pod).roles_statuses
    report = json.loads(role.replicas[1].structured_error_msg)["message"]
    assert report["message"] == "ended with status 7\nTraceback\nboom"
    assert report["extraInfo"]["timestamp"] == str(int(START.timestamp()) + 60)
    assert role.replicas[0].structured_error_msg == NONE


def test_a_cancelled_run_is_not_failed() -> None:
    job = job_of(training())
    job["metadata"]["annotations"] = {CANCELLED: "2026-01-01T00:00:00Z"}
    running = pod_of(job, 0, "Running")
    found = look(job, running)
    assert (found.state, found.msg[:36]) == (AppState.RUNNING, "cancelled at 2026-01-01T00:00:00Z: i")
    found = look({**job, "status": ended("Failed", "DeadlineExceeded")}, pod_of(job, 0, "Failed", code=75))
    assert (found.state, found.msg) == (AppState.CANCELLED, "cancelled at 2026-01-01T00:00:00Z")
    found = look({**job, "status": ended("Complete")}, pod_of(job, 0, "Succeeded"))
    assert found.state == AppState.SUCCEEDED, "it was done before"


def test_a_run_of_several_jobs_ends_with_the_last_one() -> None:
    resource = training().roles[0].resource
    app = AppDef("one", [Role(name, "image", entrypoint="sh", resource=resource) for name in ("server", "reader")])
    server, reader = (one for one in objects(app, "one", RunOptions()) if one["kind"] == "Job")
    pod = pod_of(reader, 0, "Running")
    done = {**server, "status": ended("Complete")}
    assert described("one", RunSnapshot([done, reader], [pod])).state == AppState.RUNNING
    lost = {**reader, "status": ended("Failed", "Whatever", "words")}
    found = described("one", RunSnapshot([lost, done], [pod]))
    assert (found.state, [role.name for role in found.roles]) == (AppState.FAILED, ["server", "reader"])


def test_the_state_of_a_job_set_is_its_own() -> None:
    (first,), (then,) = training().roles, evaluate(run_dir="s3://bucket/one").roles
    then.metadata["pipeline"]["after"] = "train"
    (job_set,) = objects(AppDef("one", [first, then]), "one", RunOptions(kind="jobset"))
    found = described("one", RunSnapshot([], [], job_set))
    assert (found.state, [role.name for role in found.roles]) == (AppState.PENDING, ["train", "evaluate"])
    child = job_of(training())
    pods = [pod_of(child, 0, "Running")]
    found = described("one", RunSnapshot([child], pods, {**job_set, "status": {"restarts": 2}}))
    assert (found.state, found.num_restarts) == (AppState.RUNNING, 2)
    status = {**ended("Completed"), "restarts": 2}
    assert described("one", RunSnapshot([child], [], {**job_set, "status": status})).state == AppState.SUCCEEDED
    message = "Container train for pod default/gone failed with exit code 2 matching FailJob rule at index 0"
    child = {**child, "status": ended("Failed", "PodFailurePolicy", message)}
    found = described(
        "one", RunSnapshot([child], [], {**job_set, "status": ended("Failed", "FailedJobs", "one of them")})
    )
    assert (found.state, found.msg) == (AppState.FAILED, "ended with status 2")
    job_set["spec"]["suspend"] = True
    assert described("one", RunSnapshot([], [], job_set)).msg.startswith("suspended: `kubectl patch jobset one`")
