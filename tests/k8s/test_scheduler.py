"""The scheduler `kubernetes_job` against an API server: submitting, refusals, faults, cancelling, listing."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.config import incluster_config
from torchx.specs import AppState
from urllib3.exceptions import SSLError

from components.evaluate import evaluate
from k8s import cluster_api
from k8s.cluster_api import Cluster, ClusterAway, Patience
from k8s.manifests import owned
from k8s.scheduler import KubernetesJob
from pipeline.errors import UserError
from tests.support.api_server import ApiServer, Fault
from tests.support.k8s_parts import ROLES, Nodes, Object, app, in_order, kubeconfig, rules_of, start_child, submit

pytest_plugins = ("tests.support.k8s_fixtures",)
pytestmark = pytest.mark.timeout(60)


def test_a_job_is_created_and_a_service_that_goes_with_it(api: ApiServer, scheduler: KubernetesJob) -> None:
    assert submit(scheduler) == "default:one"
    (job,), (service,) = api.objects_of("Job"), api.objects_of("Service")
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert job["metadata"]["labels"]["pipeline/user"] == "ada"
    api.remove("Job", "one-train")
    assert not api.objects_of("Service")


def test_the_options_say_where(api: ApiServer, scheduler: KubernetesJob) -> None:
    assert submit(scheduler, namespace="team") == "team:one"
    assert [one["metadata"]["name"] for one in api.objects_of("Job", "team")] == ["one-train"]
    described = scheduler.describe("team:one")
    assert described is not None
    assert described.state == AppState.PENDING
    assert scheduler.describe("one") is None


@pytest.mark.parametrize(
    "refused", ["create services one-train", "create jobs one-evaluate", "create services one-evalu.*"]
)
def test_a_refused_object_leaves_none_behind(api: ApiServer, scheduler: KubernetesJob, refused: str) -> None:
    api.faults = [Fault(refused, 422, "spec.x: Invalid value")]
    with pytest.raises(UserError, match=r"namespace 'default': create .* is not valid: spec.x: Invalid value"):
        submit(scheduler, in_order(""))
    assert not [*api.objects_of("Job"), *api.objects_of("Service")]


def test_what_is_left_behind_after_all_is_named(
    api: ApiServer, scheduler: KubernetesJob, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults = [Fault("create services .*", 422), Fault("delete jobs .*", 403, "no")]
    with pytest.raises(UserError, match="create Service"):
        submit(scheduler)
    assert "Job one-train is left behind in default" in caplog.text


def test_one_run_has_a_name_and_no_second_one(
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


def test_a_creation_whose_answer_is_lost_is_known_again(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault("create jobs one-train", -1), Fault("create services one-train", -1)]
    submit(scheduler)
    (job,), (service,) = api.objects_of("Job"), api.objects_of("Service")
    assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]


def test_all_is_asked_before_anything_is_created(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault("create services .*", 403, "services is forbidden: exceeded quota: few")]
    with pytest.raises(UserError, match=r"exceeds its quota .*exceeded quota: few"):
        submit(scheduler, check=True)
    assert not api.events, "nothing was there for a moment, either"
    submit(scheduler, check=True)
    assert len(api.objects_of("Job")) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(".*", 401, "Unauthorized"), "the cluster does not accept your credentials .*log in again"),
        (Fault("create .*", 403, 'violates PodSecurity "restricted"'), "violates its pod security .*host_paths"),
        (
            Fault("create .*", 403, "admission webhook says no"),
            "create Job 'one-train' was rejected: admission webhook",
        ),
        (Fault("create .*", 400, "strict decoding error"), "was not understood: strict decoding error"),
        (Fault("create .*", 418, ""), "create Job 'one-train' failed with 418: I'm a Teapot"),
    ],
)
def test_a_refusal_is_a_sentence(api: ApiServer, scheduler: KubernetesJob, fault: Fault, said: str) -> None:
    api.faults = [fault]
    with pytest.raises(UserError, match=said):
        submit(scheduler)


def test_whoever_lacks_a_verb_is_told_which_to_ask_for(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.allowed.discard(("batch", "jobs", "create"))
    said = (
        "namespace 'team': you may not create jobs .*User \"ada\".*ask .*`create jobs` in this namespace; k8s/cluster/"
    )
    with pytest.raises(UserError, match=said):
        submit(scheduler, namespace="team")
    api.allowed = rules_of(ROLES) - {("", "services", "create")}
    with pytest.raises(UserError, match="`create services`"):
        submit(scheduler)
    assert not api.objects_of("Job")


def test_what_is_not_there_is_named(api: ApiServer, scheduler: KubernetesJob) -> None:
    with pytest.raises(UserError, match=r"namespace 'nowhere' does not exist .*namespace="):
        submit(scheduler, namespace="nowhere")
    api.faults = [Fault("list jobs", 404, "page not found")]
    with pytest.raises(UserError, match="jobs does not exist"):
        scheduler.list()
    api.installed.discard("jobsets")
    assert scheduler.list() == []
    with pytest.raises(UserError, match=r"this cluster has no JobSet .*kind=job"):
        submit(scheduler, kind="jobset")
    assert scheduler.describe("nobody") is None


def test_a_busy_server_is_asked_again_when_it_says(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault("create jobs .*", 429, "slow down", {"Retry-After": "1"}), Fault("list jobs", 503, times=3)]
    start = time.monotonic()
    submit(scheduler)
    assert time.monotonic() - start > 1
    assert api.seen.count("create jobs one-train") == 2
    assert api.seen.count("list jobs") == 4


@pytest.mark.parametrize("fault", [Fault(".*", 500, "etcd", times=99), Fault(".*", 0, times=99)])
def test_a_cluster_that_is_away_is_not_waited_for_for_ever(
    api: ApiServer, scheduler: KubernetesJob, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    api.faults = [fault]
    with pytest.raises(
        ClusterAway, match=r"the cluster at http://127.*does not answer .* after \d+ tries to list jobs"
    ):
        scheduler.describe("one")
    assert caplog.text.count("retrying for") == 1


def test_a_server_that_asks_for_too_much_patience_is_not_waited_for(api: ApiServer, scheduler: KubernetesJob) -> None:
    api.faults = [Fault(".*", 429, headers={"Retry-After": "3600"})]
    with pytest.raises(ClusterAway, match="429"):
        scheduler.describe("one")


def test_no_cluster_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(UserError, match="no cluster is configured: there is no kubeconfig"):
        Cluster.connect()
    with pytest.raises(UserError, match="kubeconfig='missing'"):
        Cluster.connect("missing")
    path = kubeconfig(tmp_path / "config", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"context='nobody'.*get-contexts"):
        Cluster.connect(str(path), "nobody")
    assert Cluster.connect(str(path), "away").namespace == "default"


def test_a_certificate_that_is_not_trusted_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kubeconfig(tmp_path / "config", "https://127.0.0.1:9")
    cluster = Cluster.connect(str(path), patience=Patience(total=0.1, first=0.02))

    def shake(*_: Any, **__: Any) -> None:
        raise SSLError(words)

    monkeypatch.setattr(cluster._api.rest_client.pool_manager, "request", shake)
    words = "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"
    with pytest.raises(UserError, match=r"certificate is not trusted \(.*self-signed\): ask its owner"):
        cluster.items("Job", "default", {})
    words = "[SSL: UNEXPECTED_EOF_WHILE_READING]"
    with pytest.raises(ClusterAway, match="UNEXPECTED_EOF"):
        cluster.items("Job", "default", {})


def test_a_pod_of_the_cluster_speaks_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    for name in ("TOKEN", "CERT"):
        (tmp_path / name).write_text(name)
        monkeypatch.setattr(incluster_config, f"SERVICE_{name}_FILENAME", str(tmp_path / name))
    (tmp_path / "namespace").write_text("team\n")
    monkeypatch.setattr(cluster_api, "_POD_NAMESPACE", tmp_path / "namespace")
    cluster = Cluster.connect()
    assert cluster.namespace == "team"
    assert cluster._api.configuration.host == "https://10.0.0.1:443"
    assert "bearer TOKEN" in cluster._api.configuration.api_key.values()


def test_a_dry_run_asks_nobody(scheduler: KubernetesJob, api: ApiServer, caplog: pytest.LogCaptureFixture) -> None:
    what = app()
    cfg = scheduler.run_opts().resolve({"image_repo": "registry.example.com/team"})
    # A Docker engine would be asked here, if it were not put off.
    scheduler.build_workspace_and_update_role(what.roles[0], "file:///nowhere", cfg)
    printed = str(scheduler.submit_dryrun(what, cfg))
    assert [one["kind"] for one in yaml.safe_load_all(printed)] == ["Job", "Service"]
    assert owned(list(yaml.safe_load_all(printed)), {}) == list(yaml.safe_load_all(printed))
    assert not api.seen
    scheduler.build_workspace_and_update_role(what.roles[0], "file:///nowhere", {"image_repo": None})
    assert "runs image torchx-lightning-pipeline:latest without the code in file:///nowhere" in caplog.text


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


def test_an_image_is_patched_and_pushed_when_it_is_not_only_a_dry_run(api: ApiServer, tmp_path: Path) -> None:
    engine: Any = Engine()
    scheduler = KubernetesJob("torchx", docker_client=engine)
    what, cfg = app(image="base:1"), {"image_repo": "registry.example.com/team", "app_id": "one"}
    resolved = scheduler.run_opts().resolve(cfg)
    scheduler.build_workspace_and_update_role(what.roles[0], f"file://{tmp_path}", resolved)
    info = scheduler.submit_dryrun(what, resolved)
    assert not engine.built
    scheduler.schedule(info)
    assert (engine.built, engine.pushed) == (["base:1"], ["registry.example.com/team:abc"])
    container = api.one("Job", "one-train")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example.com/team:abc"


def test_no_engine_for_a_patch_is_a_users_mistake(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    scheduler, what = KubernetesJob("torchx"), app()
    resolved = scheduler.run_opts().resolve({"image_repo": "registry.example.com/team"})
    scheduler.build_workspace_and_update_role(what.roles[0], f"file://{tmp_path}", resolved)
    with pytest.raises(UserError, match=r"image_repo='registry.example.com/team': .* start a Docker engine"):
        scheduler.schedule(scheduler.submit_dryrun(what, resolved))
    assert not api.objects_of("Job")


def test_a_user_sees_the_own_runs_the_newest_first(
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


def test_commands_without_options_read_the_settings(
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


def test_the_role_that_is_shipped_holds_what_is_used_and_nothing_else(api: ApiServer, scheduler: KubernetesJob) -> None:
    logging.disable(logging.WARNING)
    api.faults = [Fault("create jobs one-train", -1)]
    run = submit(scheduler, in_order(""), keep_nodes=True)
    Nodes(api, saving=0.05)
    scheduler.describe(run)  # no pods: the events say why
    pod = api.start_pod("one-train", 0)
    list(scheduler.log_iter(run, "train"))
    scheduler.list()
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
    assert api.used == rules_of(ROLES)
    logging.disable(logging.NOTSET)
