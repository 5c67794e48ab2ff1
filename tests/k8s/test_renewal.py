"""A run whose pods are taken away is made anew at once, by whoever waits for it."""

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from torchx.specs import NONE, AppState

from components import launch, stages
from k8s.api_errors import ApiRequest
from k8s.cluster_api import Cluster, Patience
from k8s.scheduler import KubernetesJob
from tests.support.api_server import ApiServer, Fault
from tests.support.k8s_parts import Controllers, Object, app, start_child, submit

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(120)

TAKEN = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "a drain"}


@pytest.fixture
def controllers(api: ApiServer) -> Controllers:
    return Controllers(api)


def step(scheduler: KubernetesJob, run: str = "default:one") -> str:
    """What a launcher does between two polls: what was said."""
    scheduler.describe(run)
    return scheduler.renew(run)


def until_started(scheduler: KubernetesJob, controllers: Controllers, job: str) -> list[str]:
    """Step until a Job has all its pods: their names."""
    for _ in range(200):
        step(scheduler)
        if job in controllers.started:
            return controllers.pods_of(job)
        time.sleep(0.01)
    raise AssertionError(f"{job} never started")


def names(api: ApiServer, kind: str = "Job") -> list[str]:
    return sorted(one["metadata"]["name"] for one in api.objects_of(kind))


def evicted(api: ApiServer, controllers: Controllers, pod: str) -> None:
    """As by the eviction API: it saves, ends and is gone (`Controllers`)."""
    stamp = datetime.now(UTC).isoformat()
    api.change("Pod", pod, {"metadata": {"deletionTimestamp": stamp}, "status": {"conditions": [TAKEN]}})


def deleted_by_force(api: ApiServer, controllers: Controllers, pod: str) -> None:
    api.remove("Pod", pod)


def out_of_disk(api: ApiServer, controllers: Controllers, pod: str) -> None:
    """As by the node's kubelet."""
    controllers.end(pod, 137, conditions=[{**TAKEN, "reason": "TerminationByKubelet"}])


def signalled(api: ApiServer, controllers: Controllers, pod: str) -> None:
    """As by a notice to the process itself."""
    controllers.end(pod, 75)


WAYS = (evicted, deleted_by_force, out_of_disk, signalled)


class Play:
    """What happens in a cluster while a launcher waits in this thread."""

    def __init__(self, api: ApiServer, controllers: Controllers, happens: Callable[[], None]) -> None:
        self.api, self.controllers, self.happens = api, controllers, happens
        self.error: Exception | None = None
        api.later(0, self.run)

    def run(self) -> None:
        try:
            self.happens()
        except Exception as error:
            self.error = error
            for job in self.api.objects_of("Job"):
                self.api.finish(job["metadata"]["name"], "Failed", reason="TheTestHasFailed")

    def await_look(self, job: str) -> None:
        """Wait until the launcher has seen all pods of a Job."""
        while "pipeline/all-created" not in self.api.one("Job", job)["metadata"]["annotations"]:
            time.sleep(0.01)

    def done(self, job: str) -> None:
        """Let all pods of a Job end well."""
        for pod in self.controllers.pods_of(job):
            self.api.end_pod(pod)
        self.api.finish(job)


@pytest.fixture
def _launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(stages, "_POLL", 0.02)
    monkeypatch.setattr(KubernetesJob.__init__, "__defaults__", (0.05, Patience(total=1, first=0.02), None))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


LAUNCH = ("-s", "kubernetes_job", "--name", "fox", "--nodes", "3", "--run_dir", "s3://bucket/one")


@pytest.mark.usefixtures("_launcher")
@pytest.mark.parametrize("evictions", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_each_eviction_of_a_run_is_answered_at_once_however_many_there_were(
    api: ApiServer,
    controllers: Controllers,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    evictions: int,
) -> None:
    monkeypatch.setattr(launch, "show_result", lambda _: None)

    def happens() -> None:
        name = "fox-train-train"
        for number in range(evictions):
            pods = controllers.pods_of(name)
            play.await_look(name)
            # Each way to each pod, and all at once.
            for pod in pods if number % 3 == 2 else [pods[number % 3]]:
                WAYS[number % 4](api, controllers, pod)
            name = f"fox-train-train-g{number + 2}"
        play.done(name)
        play.done("fox-evaluate-evaluate")

    play = Play(api, controllers, happens)
    status = launch.main(LAUNCH)
    assert play.error is None
    assert status == 0
    # The last but one is kept for its logs.
    assert names(api) == ["fox-evaluate-evaluate", *(f"fox-train-train-g{evictions + more}" for more in (0, 1))]
    assert names(api, "Service") == names(api)
    out = capsys.readouterr()
    assert "train 1 has lost its pod" in out.err
    assert "all pods save, and start anew as fox-train-train-g3" in out.err
    assert f"train: fox-train-train-g{evictions + 1} starts" in out.err
    assert f"-g{evictions - 1}-2-" in out.out, "the log goes on"


def test_what_was_given_to_a_run_goes_on_and_what_it_has_used_up_is_gone(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler, app("3", retries=2), deadline=3600, annotations={"a": "b"}, labels={"team": "x"}, ttl=77)
    pods = controllers.pods_of("one-train")
    # Two crashes, and two pods that were deleted by force, which the Job controller counts, too.
    for index in (0, 2):
        api.end_pod(api.start_pod("one-train", index), 1)
    api.change("Job", "one-train", {"status": {"failed": 4}})
    template = api.one("Job", "one-train")["spec"]["template"]
    # What a server adds.
    template["metadata"]["labels"].update({"controller-uid": "1", "batch.kubernetes.io/job-name": "one-train"})
    api.change(
        "Job", "one-train", {"spec": {"selector": {"matchLabels": {"controller-uid": "1"}}, "template": template}}
    )
    first = api.one("Job", "one-train")
    evicted(api, controllers, pods[1])
    until_started(scheduler, controllers, "one-train-g2")
    second = api.one("Job", "one-train-g2")
    assert second["spec"]["backoffLimit"] == 6 - 2
    assert 3500 < second["spec"]["template"]["spec"]["activeDeadlineSeconds"] <= 3540
    assert second["spec"]["ttlSecondsAfterFinished"] == 77
    assert second["spec"].keys() - first["spec"].keys() == {"suspend"}
    metadata = second["metadata"]
    assert metadata["labels"] == {**first["metadata"]["labels"], "pipeline/generation": "2"}
    assert {"a": "b", "pipeline/deadline": "3600"}.items() <= metadata["annotations"].items()
    assert "pipeline/waits-for" not in metadata["annotations"]
    made = second["spec"]["template"]
    assert made["metadata"]["labels"].keys() == first["spec"]["template"]["metadata"]["labels"].keys() - {
        "controller-uid",
        "batch.kubernetes.io/job-name",
    }
    variables = {one["name"]: one.get("value") for one in made["spec"]["containers"][0]["env"]}
    assert (variables["TORCHX_RANK0_HOST"], made["spec"]["subdomain"]) == (
        "one-train-g2-0.one-train-g2",
        "one-train-g2",
    )
    # No pod of the first one is among the names of the second.
    service = api.one("Service", "one-train-g2")
    assert service["spec"]["selector"]["pipeline/generation"] == "2"
    assert service["metadata"]["ownerReferences"][0] == {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": "one-train-g2",
        "uid": metadata["uid"],
    }
    found = scheduler.describe("default:one")
    assert found is not None
    assert (found.state, found.num_restarts) == (AppState.RUNNING, 1)
    api.finish("one-train-g2", "Failed", reason="DeadlineExceeded")
    found = scheduler.describe("default:one")
    assert found is not None
    assert found.msg.startswith("exceeded its deadline of 3600 s")


def test_the_pods_that_are_left_save_and_their_logs_stay(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler)
    left, taken = controllers.pods_of("one-train")
    evicted(api, controllers, taken)
    taken_away = "train 1 is taken from its node (EvictionByEvictionAPI: a drain)"
    assert step(scheduler) == f"{taken_away}: all pods save, and start anew as one-train-g2"
    assert api.one("Job", "one-train-g2")["spec"]["suspend"] is True
    found = scheduler.describe("default:one")
    assert found is not None
    assert "one-train-g2 starts when the pods of one-train have saved" in found.msg
    until_started(scheduler, controllers, "one-train-g2")
    assert api.one("Pod", left)["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 75
    assert list(scheduler.log_iter("default:one", "train", 0)) == [f"{left} saved\n"]
    assert controllers.started == ["one-train", "one-train-g2"]


@pytest.mark.parametrize("ending", ["crash", "mistake", "soon", "succeeded"])
def test_what_is_no_preemption_is_left_to_the_job_controller(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers, ending: str
) -> None:
    submit(scheduler)
    pod = controllers.pods_of("one-train")[0]
    if ending == "soon":
        # Without a delay it would start and end for ever.
        started = datetime.now(UTC).isoformat()
        api.end_pod(pod, 75, startTime=started)
    else:
        controllers.end(pod, {"crash": 1, "mistake": 2, "succeeded": 0}[ending])
    assert [step(scheduler) for _ in range(3)] == [""] * 3
    assert names(api) == ["one-train"]


@pytest.mark.parametrize("cfg", [{"queue": "research"}, {"kind": "jobset"}])
def test_what_others_restart_is_left_to_them(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers, cfg: dict[str, Any]
) -> None:
    submit(scheduler, **cfg)
    if "kind" in cfg:
        start_child(api, "train")
        pods = [api.start_pod("one-train-0", 0)]
    else:
        pods = controllers.pods_of("one-train")
    scheduler.describe("default:one")
    before = names(api)
    evicted(api, controllers, pods[0])
    assert [step(scheduler) for _ in range(3)] == [""] * 3
    assert names(api) == before


@pytest.mark.parametrize(
    "change",
    [
        {"spec": {"suspend": True}},
        {"metadata": {"annotations": {"pipeline/cancelled": "now"}}},
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"conditions": [{"type": "FailureTarget", "status": "True", "reason": "PodFailurePolicy"}]}},
    ],
    ids=["suspended", "cancelled", "deleted", "failing"],
)
def test_a_job_that_is_to_end_is_not_made_anew(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers, change: Object
) -> None:
    submit(scheduler)
    pods = controllers.pods_of("one-train")
    assert step(scheduler) == ""
    api.change("Job", "one-train", change)
    evicted(api, controllers, pods[0])
    assert [step(scheduler) for _ in range(3)] == [""] * 3
    assert names(api) == ["one-train"]


def test_a_run_that_reaches_its_deadline_keeps_the_logs_of_pods_that_had_waited_for_a_node(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    run = submit(scheduler, deadline=100)
    pods = controllers.pods_of("one-train")
    assert step(scheduler) == ""
    started = (datetime.now(UTC) - timedelta(seconds=101)).isoformat()
    api.change("Job", "one-train", {"status": {"startTime": started}})
    assert step(scheduler) == "one-train has reached its deadline: its pods save and end"
    until = time.monotonic() + 20
    while (found := scheduler.describe(run)) and found.state != AppState.FAILED:
        assert scheduler.renew(run) == ""
        assert time.monotonic() < until
        time.sleep(0.01)
    assert found is not None
    assert found.msg == "exceeded its deadline of 100 s (deadline=); submit it again to resume"
    assert list(scheduler.log_iter(run, "train", 1)) == [f"{pods[1]} saved\n"]
    assert names(api) == ["one-train"]
    assert step(scheduler) == ""


def test_an_elastic_run_goes_on_with_fewer_nodes_but_not_without_rank_0(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler, app("2:4"))
    pods = controllers.pods_of("one-train")
    step(scheduler)
    for pod in pods[2:]:
        deleted_by_force(api, controllers, pod)
    assert step(scheduler) == ""
    deleted_by_force(api, controllers, pods[1])
    assert "train 1 has lost its pod" in step(scheduler), "two are needed"
    pods = until_started(scheduler, controllers, "one-train-g2")
    step(scheduler)
    deleted_by_force(api, controllers, pods[0])
    assert "train 0 has lost its pod" in step(scheduler)
    until_started(scheduler, controllers, "one-train-g3")


class Killed(BaseException):
    """As by kill -9, between two requests."""


@pytest.mark.parametrize("after", range(12))
def test_a_launcher_killed_at_any_request_leaves_what_the_next_one_completes(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    submit(scheduler)
    pods = controllers.pods_of("one-train")
    step(scheduler)
    evicted(api, controllers, pods[1])
    whole, count = Cluster._call, itertools.count()

    def call(self: Cluster, request: ApiRequest, *rest: Any, **more: Any) -> Any:
        if request.verb not in ("list", "get") and next(count) == after // 2:
            # Before the request, or after it.
            if after % 2:
                whole(self, request, *rest, **more)
            raise Killed
        return whole(self, request, *rest, **more)

    monkeypatch.setattr(Cluster, "_call", call)
    with pytest.raises(Killed):
        until_started(scheduler, controllers, "one-train-g3")
    monkeypatch.setattr(Cluster, "_call", whole)
    another = KubernetesJob("torchx", poll=0.05)
    until_started(another, controllers, "one-train-g2")
    assert names(api) == names(api, "Service") == ["one-train", "one-train-g2"]
    assert [step(another) for _ in range(3)] == [""] * 3
    assert controllers.started == ["one-train", "one-train-g2"]
    another.close()


def test_two_launchers_make_a_run_anew_once(api: ApiServer, scheduler: KubernetesJob, controllers: Controllers) -> None:
    submit(scheduler)
    pods = controllers.pods_of("one-train")
    others = [KubernetesJob("torchx", poll=0.05) for _ in range(3)]
    for other in others:
        step(other)
    evicted(api, controllers, pods[0])

    def follow(other: KubernetesJob) -> None:
        until_started(other, controllers, "one-train-g2")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(follow, others))
    for other in others:
        assert step(other) == ""
        other.close()
    assert names(api) == ["one-train", "one-train-g2"]
    assert controllers.started == ["one-train", "one-train-g2"]


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ({"kind": "Complete"}, AppState.SUCCEEDED),
        ({"kind": "Failed", "reason": "PodFailurePolicy", "message": "no"}, AppState.FAILED),
        ({"kind": "Failed", "reason": "BackoffLimitExceeded"}, AppState.FAILED),
    ],
)
def test_a_job_that_ends_by_itself_meanwhile_has_no_successor(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers, end: dict[str, str], state: AppState
) -> None:
    run = submit(scheduler)
    pods = controllers.pods_of("one-train")
    evicted(api, controllers, pods[1])
    assert "start anew" in step(scheduler)
    api.finish("one-train", **end)
    found = scheduler.describe(run)
    assert found is not None
    assert found.state == state, "also for whoever looks before"
    assert step(scheduler) == "one-train-g2 is not needed: one-train has ended by itself"
    assert names(api) == ["one-train"]
    assert step(scheduler) == ""
    assert controllers.started == ["one-train"]


def test_a_mistake_that_is_seen_meanwhile_is_not_tried_again(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler)
    pods = controllers.pods_of("one-train")
    evicted(api, controllers, pods[1])
    controllers.end(pods[0], 2)
    step(scheduler)
    # The Job controller has not yet seen it.
    assert [step(scheduler) for _ in range(3)] == [""] * 3
    api.finish("one-train", "Failed", reason="PodFailurePolicy")
    assert "is not needed" in step(scheduler)
    assert controllers.started == ["one-train"]
    found = scheduler.describe("default:one")
    assert found is not None
    assert (found.state, found.msg) == (AppState.FAILED, "train 0 ended with status 2")


def test_a_next_job_that_somebody_deletes_is_no_deadline(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler)
    pods = controllers.pods_of("one-train")
    evicted(api, controllers, pods[1])
    until_started(scheduler, controllers, "one-train-g2")
    api.remove("Job", "one-train-g2")
    found = scheduler.describe("default:one")
    assert found is not None
    assert (found.state, found.msg) == (
        AppState.FAILED,
        "its pods were to start anew as one-train-g2, which was deleted",
    )


def test_a_run_that_is_cancelled_meanwhile_stays_cancelled(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    run = submit(scheduler)
    pods = controllers.pods_of("one-train")
    other = KubernetesJob("torchx", poll=0.05)
    evicted(api, controllers, pods[1])
    assert "start anew" in step(other)
    scheduler.cancel(run)
    assert [step(other) for _ in range(3)] == [""] * 3
    other.close()
    assert names(api) == ["one-train"]
    found = scheduler.describe(run)
    assert found is not None
    assert found.state == AppState.CANCELLED
    assert controllers.started == ["one-train"]


def test_a_node_that_does_not_answer_is_left_behind(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    run = submit(scheduler)
    left, lost = controllers.pods_of("one-train")
    # About 40 seconds after its last word.
    away = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    api.change("Pod", lost, {"status": {"conditions": [{"type": "ContainersReady", "status": "True"}, away]}})
    assert step(scheduler) == "", "it may come back"
    found = scheduler.describe(run)
    assert found is not None
    words = "train 1: its node node-1 does not answer since 2026-01-01T00:00:00Z; its pod is taken from there soon"
    assert (found.state, found.msg) == (AppState.RUNNING, words)
    # The cluster gives it up, and waits for an end of which only the node could tell.
    controllers.lost.append(lost)
    api.change("Pod", lost, {"metadata": {"deletionTimestamp": datetime.now(UTC).isoformat()}})
    found = scheduler.describe(run)
    assert found is not None
    assert f"`kubectl delete pod {lost} --force` lets the Job replace it" in found.msg
    assert "train 1 is deleted: all pods save, and start anew as one-train-g2" in step(scheduler)
    until_started(scheduler, controllers, "one-train-g2")
    assert api.one("Pod", left)["status"]["phase"] == "Failed"
    assert api.one("Pod", lost)["status"]["phase"] == "Running", "as far as the cluster knows"
    found = scheduler.describe(run)
    assert found is not None
    assert (found.state, found.msg) == (AppState.RUNNING, NONE)


def test_a_pod_that_its_node_is_ending_is_waited_for(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler)
    left, taken = controllers.pods_of("one-train")
    # As Kubernetes 1.36 shows a pod from the signal on until it has ended.
    ending = [{"type": one, "status": "False", "reason": "PodFailed"} for one in ("Ready", "ContainersReady")]
    api.change("Pod", left, {"status": {"conditions": ending}})
    api.on_change = lambda *_: None
    deleted_by_force(api, controllers, taken)
    api.change("Job", "one-train", {"metadata": {"annotations": {"pipeline/all-created": "true"}}})
    assert "start anew" in step(scheduler)
    assert [step(scheduler) for _ in range(3)] == [""] * 3
    assert api.one("Job", "one-train-g2")["spec"]["suspend"] is True
    api.on_change = controllers.on_change
    controllers.end(left, 75)
    assert step(scheduler) == "one-train-g2 starts"


def test_a_refusal_is_said_and_the_job_goes_on_as_it_can(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler)
    pods = controllers.pods_of("one-train")
    evicted(api, controllers, pods[1])
    api.faults = [Fault("create jobs .*", 403, "exceeded quota: count/jobs", times=2)]
    said = step(scheduler)
    assert said.startswith("the run cannot be made anew (namespace 'default': Job 'one-train-g2' exceeds its quota")
    assert said.endswith("the Job controller replaces its pods, after its delay")
    step(scheduler)
    until_started(scheduler, controllers, "one-train-g2")


def test_a_drain_waits_for_the_next_job_as_it_did_for_the_first(
    api: ApiServer, scheduler: KubernetesJob, controllers: Controllers
) -> None:
    submit(scheduler, keep_nodes=True)
    pods = controllers.pods_of("one-train")
    evicted(api, controllers, pods[1])
    until_started(scheduler, controllers, "one-train-g2")
    budgets = {one["metadata"]["name"]: one["spec"] for one in api.objects_of("PodDisruptionBudget")}
    assert budgets.keys() == {"one-train", "one-train-g2"}
    assert budgets["one-train-g2"]["selector"]["matchLabels"]["pipeline/generation"] == "2"
