"""What the tests against an API server share: objects, and those who change them in a cluster."""

import re
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from torchx.specs import AppDef

from components.evaluate import evaluate
from components.train import train
from k8s.scheduler import KubernetesJob

if TYPE_CHECKING:
    from tests.support.api_server import ApiServer

Object = dict[str, Any]
Rule = tuple[str, str, str]
"""Group, resource and verb."""

ROOT = Path(__file__).parents[2]
ROLES = sorted((ROOT / "k8s/cluster").rglob("role.yaml"))


def rules_of(paths: list[Path]) -> set[Rule]:
    """What the Roles in some files allow."""
    documents = [one for path in paths for one in yaml.safe_load_all(path.read_text()) if one["kind"] == "Role"]
    return {
        (group, resource, verb)
        for role in documents
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def status_of(phase: str, code: int = 1, reason: str = "", message: str = "", **more: Any) -> Object:
    """The status of a pod.

    Args:
        phase: Pending, Running, Succeeded or Failed.
        code: The exit status, of one that has failed.
        reason: Why it waits or has ended.
        message: The same in words, or the end of its log.
        more: Other fields.
    """
    now = datetime.now(UTC).isoformat()
    states = {
        "Pending": {"waiting": {"reason": reason, "message": message}},
        "Running": {"running": {"startedAt": now}},
        "Succeeded": {"terminated": {"exitCode": 0, "reason": "Completed", "finishedAt": now}},
        "Failed": {
            "terminated": {"exitCode": code, "reason": reason or "Error", "message": message, "finishedAt": now}
        },
    }
    container = {"name": "train", "state": states[phase], "ready": phase == "Running"}
    found: Object = {"phase": phase, "containerStatuses": [container]}
    if phase == "Pending" and not reason:
        del found["containerStatuses"]
    return {**found, **more}


def kubeconfig(path: Path, url: str, namespace: str = "default") -> Path:
    """A kubeconfig for a server, and a second context, of nobody's."""
    user, cluster = {"name": "ada", "user": {"token": "secret"}}, {"name": "here", "cluster": {"server": url}}
    away = {"name": "away", "cluster": {"server": "http://127.0.0.1:9"}}
    contexts = [
        {"name": one, "context": {"cluster": one, "user": "ada", "namespace": namespace}} for one in ("here", "away")
    ]
    content = {"apiVersion": "v1", "kind": "Config", "users": [user], "clusters": [cluster, away], "contexts": contexts}
    path.write_text(yaml.safe_dump({**content, "current-context": "here"}))
    return path


def app(nodes: str = "2", **parameters: Any) -> AppDef:
    return train(run_dir="s3://bucket/one", nodes=nodes, rdzv_port=29_500, **parameters)


def submit(scheduler: KubernetesJob, what: AppDef | None = None, **cfg: Any) -> str:
    cfg = {"app_id": "one", **cfg}
    return scheduler.schedule(scheduler.submit_dryrun(what or app(), scheduler.run_opts().resolve(cfg)))


def in_order(after: str) -> AppDef:
    """Training, and then an evaluation."""
    (first,), (then,) = app().roles, evaluate(run_dir="s3://bucket/one").roles
    then.metadata["pipeline"]["after"] = after
    return AppDef("one", [first, then])


class Controllers:
    """The Job controller and the nodes, as far as a run is made anew: a Job that is not suspended starts its pods.

    They replace no pod: the delay before they would is longer than any test.

    Attributes:
        started: The Jobs that have started their pods.
        lost: Pods whose node does not answer, so that they are never removed.
    """

    def __init__(self, api: "ApiServer") -> None:
        self.api = api
        self.started: list[str] = []
        self.lost: list[str] = []
        self._lock = threading.Lock()
        api.on_change = self.on_change

    def on_change(self, plural: str, thing: Object) -> None:
        # Not in the server's own thread, which answers.
        if plural == "jobs":
            self.api.later(0, self.on_job, thing["metadata"]["name"])
        elif plural == "pods" and thing["spec"].get("activeDeadlineSeconds") == 1:
            self.api.later(0.05, self.end, thing["metadata"]["name"], 75)

    def on_job(self, name: str) -> None:
        with self._lock:
            (job,) = [one for one in self.api.objects_of("Job") if one["metadata"]["name"] == name] or [{}]
            if not job or job["spec"].get("suspend"):
                return
            if "pipeline/renewed-by" in job["metadata"].get("annotations", {}):
                # Pods that are deleted take so long, however slow the test is.
                for pod in self.api.objects_of("Pod"):
                    its_name = pod["metadata"]["name"]
                    deleted = pod["metadata"].get("deletionTimestamp") and its_name not in self.lost
                    if deleted and its_name.startswith(f"{name}-"):
                        self.api.remove("Pod", its_name)
            if job["spec"].get("activeDeadlineSeconds") == 1 and not job["status"].get("conditions"):
                self.api.finish(name, "Failed", reason="DeadlineExceeded")
            elif name not in self.started:
                self.started.append(name)
                long_ago = (datetime.now(UTC) - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
                self.api.change("Job", name, {"status": {"startTime": long_ago}})
                for index in range(job["spec"]["completions"]):
                    self.api.start_pod(name, index, startTime=long_ago)

    def end(self, name: str, status: int, **how: Any) -> None:
        """Let a pod that runs end with a status."""
        for pod in self.api.objects_of("Pod"):
            if pod["metadata"]["name"] == name and pod["status"]["phase"] == "Running":
                started = pod["status"]["startTime"]
                self.api.say(name, f"{name} saved")
                self.api.end_pod(name, status, startTime=started, **how)

    def pods_of(self, job: str) -> list[str]:
        """The running pods of a Job, once all of them are there."""
        until = time.monotonic() + 20
        while True:
            pods = [one for one in self.api.objects_of("Pod") if one["metadata"]["name"].startswith(f"{job}-")]
            pods = [one for one in pods if re.fullmatch(r"\d+-\w+", one["metadata"]["name"].removeprefix(f"{job}-"))]
            running = [one["metadata"]["name"] for one in pods if one["status"]["phase"] == "Running"]
            if job in self.started and len(running) == self.api.one("Job", job)["spec"]["completions"]:
                return sorted(running)
            assert time.monotonic() < until, f"{job}: {running}"
            time.sleep(0.01)


NOT_READY = {"type": "Ready", "status": "False", "reason": "PodFailed"}
"""What a kubelet says of a pod at its deadline."""


class Nodes:
    """What ends pods that have a deadline, and Jobs that have reached theirs: nodes, and the Job controller."""

    def __init__(self, api: "ApiServer", saving: float = 0.2) -> None:
        self.api = api
        self.saving = saving
        self.ending = set[str]()
        self.ended: list[str] = []
        api.on_change = self.on_change

    def on_change(self, plural: str, thing: Object) -> None:
        name, deadline = thing["metadata"]["name"], thing.get("spec", {}).get("activeDeadlineSeconds")
        if plural == "pods" and deadline == 1 and name not in self.ending:
            self.ending.add(name)
            # Called not ready from this moment on, while its processes still save.
            self.api.later(0, self.api.change, "Pod", name, {"status": {"conditions": [NOT_READY]}})
            self.api.later(self.saving, self.end, name)
        if plural == "jobs" and deadline == 1:
            self.ended.append(name)
            self.api.later(0.05, self.finish, name)

    def finish(self, job: str) -> None:
        """As the Job controller does: pods that still run are deleted, with their logs."""
        for pod in self.api.objects_of("Pod"):
            if pod["metadata"]["name"].startswith(f"{job}-") and pod["status"]["phase"] == "Running":
                self.api.remove("Pod", pod["metadata"]["name"])
        self.api.finish(job, "Failed", reason="DeadlineExceeded")

    def end(self, name: str) -> None:
        self.api.say(name, "saved step 120")
        self.api.end_pod(name, 75, reason_of_pod="DeadlineExceeded")


def start_child(api: "ApiServer", role: str) -> None:
    """Let the JobSet's controller make the Job of a role."""
    (job_set,) = api.objects_of("JobSet")
    template = next(one["template"] for one in job_set["spec"]["replicatedJobs"] if one["name"] == role)
    name = job_set["metadata"]["name"]
    labels = {**template["metadata"]["labels"], "jobset.sigs.k8s.io/jobset-name": name}
    metadata = {"name": f"{name}-{role}-0", "labels": labels}
    metadata["ownerReferences"] = [{"uid": job_set["metadata"]["uid"]}]
    api.store("Job", {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]})
