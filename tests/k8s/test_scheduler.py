"""The scheduler `kubernetes_job` against an API server: submitting, retries, patching, listing."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.specs import AppState

from components.evaluate import evaluate
from k8s.cluster_api import Cluster, ClusterAway
from k8s.scheduler import KubernetesJob
from pipeline.errors import UserError
from tests.support.api_server import ApiServer, Fault
from tests.support.k8s_parts import ROLES, Nodes, Object, app, in_order, rules_of, start_child, submit

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


def test_a_job_is_created_with_a_service_that_it_owns(api: ApiServer, scheduler: KubernetesJob) -> None:
    assert submit(scheduler) == "default:one"
    (job,), (service,) = api.objects_of("Job"), api.objects_of("Service")
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert job["metadata"]["labels"]["pipeline/user"] == "ada"
    api.remove("Job", "one-train")
    assert not api.objects_of("Service")


def test_the_namespace_option_selects_the_namespace(api: ApiServer, scheduler: KubernetesJob) -> None:
    assert submit(scheduler, namespace="team") == "team:one"
    assert [one["metadata"]["name"] for one in api.objects_of("Job", "team")] == ["one-train"]
    described = scheduler.describe("team:one")
    assert described is not None
    assert described.state == AppState.PENDING
    assert scheduler.describe("one") is None


@pytest.mark.parametrize(
    "refused", ["create services one-train", "create jobs one-evaluate", "create services one-evalu.*"]
)
def test_a_rejected_object_leaves_none_behind(api: ApiServer, scheduler: KubernetesJob, refused: str) -> None:
    api.faults = [Fault(refused, 422, "spec.x: Invalid value")]
    with pytest.raises(UserError, match=r"namespace 'default': create .* is not valid: spec.x: Invalid value"):
        submit(scheduler, in_order(""))
    assert not [*api.objects_of("Job"), *api.objects_of("Service")]


def test_an_object_that_cannot_be_removed_is_named(
    api: ApiServer, scheduler: KubernetesJob, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults = [Fault("create services .*", 422), Fault("delete jobs .*", 403, "no")]
    with pytest.raises(UserError, match="create Service"):
        submit(scheduler)
    assert "Job one-train is left behind in default" in caplog.text


def test_the_name_of_a_run_is_taken_once(
    api: ApiServer, scheduler: KubernetesJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(scheduler)
    with pytest.raises(UserError, match="a run 'one' exists already"):
        submit(scheduler, evaluate(run_dir="s3://bucket/one"))
    assert [one["metadata"]["name"] for one in api.objects_of("Job")] == ["one-train"]
    # Two at the same time: the second one sees the first one too late, and does not delete what is not its own.
    monkeypatch.setattr(Cluster, "items", lambda *_: [])
    with pytest.raises(UserError, match="Job 'one-train' exists already: choose another app_id"):
        submit(scheduler)
    assert len(api.objects_of("Job")) == len(api.objects_of("Service")) == 1


def test_an_object_whose_creation_lost_its_response_is_recognized(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault("create jobs one-train", -1), Fault("create services one-train", -1)]
    submit(scheduler)
    (job,), (service,) = api.objects_of("Job"), api.objects_of("Service")
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]


def test_check_validates_all_objects_before_any_is_created(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault("create services .*", 403, "services is forbidden: exceeded quota: few")]
    with pytest.raises(UserError, match=r"exceeds its quota .*exceeded quota: few"):
        submit(scheduler, check=True)
    assert not api.events, "nothing was there for a moment, either"
    submit(scheduler, check=True)
    assert len(api.objects_of("Job")) == 1


def test_a_busy_server_is_retried_after_the_delay_it_asks_for(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault("create jobs .*", 429, "slow down", {"Retry-After": "1"}), Fault("list jobs", 503, times=3)]
    start = time.monotonic()
    submit(scheduler)
    assert time.monotonic() - start > 1
    assert api.seen.count("create jobs one-train") == 2
    assert api.seen.count("list jobs") == 4


@pytest.mark.parametrize("fault", [Fault(".*", 500, "etcd", times=99), Fault(".*", 0, times=99)])
def test_an_unreachable_cluster_is_given_up_after_the_timeout(
    api: ApiServer, scheduler: KubernetesJob, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults = [fault]
    with pytest.raises(
        ClusterAway, match=r"the cluster at http://127.*does not answer .* after \d+ tries to list jobs"
    ):
        scheduler.describe("one")
    # Of this thread: a log that another test has followed may still be waited for.
    said = [each.getMessage() for each in caplog.records if each.thread == threading.get_ident()]
    assert sum("retrying for" in each for each in said) == 1


def test_a_delay_beyond_the_timeout_is_not_waited_for(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault(".*", 429, headers={"Retry-After": "3600"})]
    with pytest.raises(ClusterAway, match="429"):
        scheduler.describe("one")


def test_a_dry_run_needs_no_cluster(scheduler: KubernetesJob, api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    what = app()
    scheduler.build_workspace_and_update_role(what.roles[0], "file:///nowhere", {"image_repo": None})
    assert "runs image torchx-lightning-pipeline:latest without the code in file:///nowhere" in caplog.text
    printed = str(scheduler.submit_dryrun(what, scheduler.run_opts().resolve({})))
    assert [one["kind"] for one in yaml.safe_load_all(printed)] == ["Service", "Job"], "no Job without its Service"
    assert not api.seen


class Engine:
    """What TorchX asks a Docker engine when it patches an image, and pushes it."""

    def __init__(self) -> None:
        self.images = self.api = self
        self.pushed: list[str] = []
        self.built: list[str] = []

    def list(self, name: str) -> "list[Any]":
        return []

    def pull(self, image: str) -> None:
        raise RuntimeError("not there")

    def build(self, buildargs: dict[str, str], **_: Any) -> "list[Object]":
        self.built.append(buildargs["IMAGE"])
        return [{"aux": {"ID": "sha256:abc"}}]

    def get(self, name: str) -> "Engine":
        return self

    def tag(self, repo: str, tag: str) -> None:
        self.pushed.append(f"{repo}:{tag}")

    def push(self, repo: str, **_: Any) -> "list[Object]":
        return [{"status": "pushed"}]


def test_a_patched_image_is_pushed_on_submit_only(api: ApiServer, tmp_path: Path) -> None:
    engine: Any = Engine()
    scheduler = KubernetesJob("torchx", docker_client=engine)
    what, cfg = app(image="base:1"), {"image_repo": "registry.example.com/team", "app_id": "one"}
    resolved = scheduler.run_opts().resolve(cfg)
    scheduler.build_workspace_and_update_role(what.roles[0], f"file://{tmp_path}", resolved)
    info = scheduler.submit_dryrun(what, resolved)
    assert "image: registry.example.com/team:abc" in str(info)
    assert not engine.pushed
    scheduler.schedule(info)
    assert (engine.built, engine.pushed) == (["base:1"], ["registry.example.com/team:abc"])
    container = api.one("Job", "one-train")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example.com/team:abc"


def test_patching_without_a_docker_engine_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    scheduler, what = KubernetesJob("torchx"), app()
    resolved = scheduler.run_opts().resolve({"image_repo": "registry.example.com/team"})
    with pytest.raises(UserError, match=r"image_repo='registry.example.com/team': .* start a Docker engine"):
        scheduler.build_workspace_and_update_role(what.roles[0], f"file://{tmp_path}", resolved)


def test_list_returns_the_users_own_runs_newest_first(
    api: ApiServer, scheduler: KubernetesJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(scheduler)
    submit(scheduler, app_id="two", kind="jobset")
    start_child(api, "train")
    api.start_pod("two-train-0", 0)
    monkeypatch.setenv("LOGNAME", "grace")
    submit(scheduler, app_id="three")
    assert [(one.app_id, str(one.state)) for one in scheduler.list()] == [("default:three", "PENDING")]
    monkeypatch.setenv("LOGNAME", "ada")
    found = [(one.app_id, str(one.state)) for one in scheduler.list()]
    assert found == [("default:two", "RUNNING"), ("default:one", "PENDING")]
    assert scheduler.list({"namespace": "team"}) == []
    api.allowed = rules_of([path for path in ROLES if "components" not in path.parts])
    assert [one.app_id for one in scheduler.list()] == ["default:two", "default:one"]
    api.allowed.discard(("batch", "jobs", "list"))
    with pytest.raises(UserError, match="`list jobs`"):
        scheduler.list()


def test_commands_without_options_read_torchxconfig(
    api: ApiServer, scheduler: KubernetesJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(scheduler, namespace="team")
    monkeypatch.setenv("TORCHXCONFIG", str(tmp_path / ".torchxconfig"))
    (tmp_path / ".torchxconfig").write_text("[kubernetes_job]\nnamespace = team\ncontext = here\n")
    fresh = KubernetesJob("torchx")
    assert [one.app_id for one in fresh.list()] == ["team:one"]
    assert fresh.describe("one") is not None
    (tmp_path / ".torchxconfig").write_text("[kubernetes_job]\ncontext = nobody\n")
    with pytest.raises(UserError, match="context='nobody'"):
        KubernetesJob("torchx").list()


def kubectl(cluster: Cluster, text: str) -> None:
    """What `kubectl apply -f -`, the same once more, and `kubectl delete -f -` send."""
    things = list(yaml.safe_load_all(text))
    for _ in range(2):
        for one in things:
            kind, name = one["kind"], one["metadata"]["name"]
            if cluster.read(kind, "default", name) is None:
                cluster.create(one, "default")
            else:
                cluster.patch(kind, "default", name, {"metadata": {"labels": {"applied": "again"}}})
    for one in things:
        cluster.delete(one["kind"], "default", one["metadata"]["name"])


def test_the_shipped_role_holds_exactly_what_is_used(api: ApiServer, scheduler: KubernetesJob) -> None:
    logging.disable(logging.WARNING)
    api.faults = [Fault("create jobs one-train", -1)]
    run = submit(scheduler, in_order(""), keep_nodes=True)
    Nodes(api, saving=0.05)
    scheduler.describe(run)  # no pods: the events say why
    pod = api.start_pod("one-train", 0)
    list(scheduler.log_iter(run, "train"))
    scheduler.list()
    # Made anew, as far as that needs no more of the controllers than these do.
    submit(scheduler, app_id="six", keep_nodes=True)
    scheduler.describe("default:six")
    api.change("Pod", api.start_pod("six-train"), {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})
    for _ in range(2):
        scheduler.describe("default:six")
        assert scheduler.renew("default:six")
    scheduler.cancel(run)
    assert api.one("Pod", pod)["status"]["phase"] == "Failed"
    for name, cfg in (("two", {}), ("three", {"queue": "research"})):
        run = submit(scheduler, app_id=name, kind="jobset", keep_nodes=True, **cfg)
        api.change("JobSet", name, {"spec": {"suspend": bool(cfg)}})
        scheduler.describe(run)
        scheduler.cancel(run)
    submit(scheduler, app_id="four")
    api.faults = [Fault("create services five-train", 422)]
    with pytest.raises(UserError):
        submit(scheduler, app_id="five")
    # Where a replica has no pod yet its log waits for one.
    follow = iter(scheduler.log_iter("four", "train", should_tail=True))
    api.later(0.3, lambda: api.say(api.start_pod("four-train"), "first"))
    assert next(iter(follow)) == "first\n"
    for cfg in ({}, {"kind": "jobset"}):
        made = scheduler.submit_dryrun(app(), scheduler.run_opts().resolve({"app_id": "ap", "keep_nodes": True, **cfg}))
        kubectl(scheduler._cluster("", ""), str(made))
    assert api.used == rules_of(ROLES)
    logging.disable(logging.NOTSET)
